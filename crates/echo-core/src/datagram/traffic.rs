//! What is counted of datagrams.

use super::op::ReplyError;
use crate::reason::reasons;

reasons! {
    /// Why a datagram was not answered.
    pub enum DropReason {
        /// It, or what the kernel reports about it, did not fit into a buffer.
        Truncated = "truncated",
        /// It was sent to a broadcast or multicast address.
        Destination = "destination",
        /// Its source cannot be answered: multicast, broadcast, unspecified or reserved
        /// (240.0.0.0/4), port 0, or no address at all, as for an unbound Unix socket.
        Source = "source",
        /// Its source is the same address and port that it was sent to, or a Unix socket of this
        /// process.
        Own = "own-address",
        /// It comes from a port of a service that answers by itself.
        SourcePort = "source-port",
        /// The socket takes datagrams of trusted proxies only, and its sender is not one.
        Untrusted = "untrusted",
        /// It does not begin with a valid header (PROXY protocol).
        InvalidHeader = "invalid-header",
        /// The access lists do not admit its source.
        Denied = "denied",
        /// Its source has sent too many datagrams.
        SourceDatagrams = "source-datagrams",
        /// Its source has sent too many bytes.
        SourceBytes = "source-bytes",
        /// It is shorter than the identity that it asks for.
        TooShort = "too-short",
        /// The send buffer, or the queue of a Unix peer, was full.
        SendBuffer = "send-buffer",
        /// The route to the source does not carry a datagram of this size.
        TooLarge = "too-large",
        /// There is no route to the source, or none from the address that the datagram was sent to;
        /// or the Unix peer is gone.
        Unroutable = "unroutable",
        /// A packet filter refused the reply, or a Unix peer did.
        Refused = "refused",
        /// The kernel had no memory for the reply.
        Memory = "memory",
        /// The reply failed for an unexpected reason.
        Unexpected = "unexpected",
    }
}

impl DropReason {
    fn of(error: ReplyError) -> Self {
        match error {
            ReplyError::Full => Self::SendBuffer,
            ReplyError::Unsendable => Self::TooLarge,
            ReplyError::Unroutable => Self::Unroutable,
            ReplyError::TooShort => Self::TooShort,
            ReplyError::Refused => Self::Refused,
            ReplyError::Memory => Self::Memory,
            ReplyError::Unexpected(_) => Self::Unexpected,
        }
    }
}

/// What the sockets of one or several listeners did. A burst counts as the datagrams that it is
/// made of. If no reply is in flight, the number received equals the number sent plus the number
/// dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramTraffic {
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Bytes of payload received, without headers.
    pub bytes_in: u64,
    /// Datagrams sent back.
    pub datagrams_out: u64,
    /// Bytes of payload sent back.
    pub bytes_out: u64,
    /// Datagrams dropped, by [`DropReason`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Receives that failed and were tried again. No datagram is lost.
    pub receive_failures: u64,
    /// The errno of the last unexpected error, 0 if there was none.
    pub unexpected_errno: i32,
}

impl DatagramTraffic {
    /// Datagrams dropped for this reason.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Datagrams dropped, for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Adds what other sockets did.
    pub fn add(&mut self, other: &Self) {
        self.datagrams_in += other.datagrams_in;
        self.bytes_in += other.bytes_in;
        self.datagrams_out += other.datagrams_out;
        self.bytes_out += other.bytes_out;
        for (mine, theirs) in self.dropped.iter_mut().zip(other.dropped) {
            *mine += theirs;
        }
        self.receive_failures += other.receive_failures;
        if other.unexpected_errno != 0 {
            self.unexpected_errno = other.unexpected_errno;
        }
    }

    pub(super) fn count_failed(&mut self, error: ReplyError, datagrams: u32) {
        self.count_dropped(DropReason::of(error), datagrams);
        if let ReplyError::Unexpected(errno) = error {
            self.unexpected_errno = errno;
        }
    }

    pub(super) fn count_dropped(&mut self, reason: DropReason, datagrams: u32) {
        self.dropped[reason as usize] += u64::from(datagrams);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_in_the_order_of_their_list() {
        let mut traffic = DatagramTraffic::default();
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            traffic.count_dropped(reason, index as u32);
            assert_eq!(traffic.dropped_for(reason), index as u64);
        }
        let mut twice = traffic.clone();
        twice.add(&traffic);
        assert_eq!(twice.dropped_total(), 2 * traffic.dropped_total());
    }
}
