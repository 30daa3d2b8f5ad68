//! Why accepts, receives, sends and connections end or fail.

/// An enum of reasons that are counted, each with its word for logs and metrics.
macro_rules! reasons {
    ($(#[$docs:meta])* pub enum $name:ident {
        $($(#[$about:meta])* $reason:ident = $word:literal,)+
    }) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$about])* $reason,)+
        }

        impl $name {
            /// All reasons, in the order in which they are counted.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$reason),+];

            /// The reason as one word, for logs and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $word,)+
                }
            }
        }
    };
}

pub(crate) use reasons;

/// Why an accept brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AcceptError {
    /// It was canceled on request.
    Canceled,
    /// The peer was gone before it was accepted (ECONNABORTED and other network errors, accept(2)):
    /// try again.
    Aborted,
    /// No file descriptor is free in the process (EMFILE). The connection stays in the backlog.
    ProcessFiles,
    /// No file descriptor is free in the system (ENFILE). The connection stays in the backlog.
    SystemFiles,
    /// No memory (ENOMEM, ENOBUFS). The connection stays in the backlog.
    Memory,
    /// The backlog is empty and stays so: the completion of an accept from a listener that ends,
    /// see [`Command::EndListeners`](crate::command::Command::EndListeners).
    Empty,
    /// An unexpected error, by its errno; the backlog is as it was.
    Unexpected(i32),
}

/// Why a receive ended without bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer has sent its FIN: there will be no more bytes.
    EndOfStream,
    /// The kernel was offered no small buffer (ENOBUFS). Nothing was taken from the socket, not
    /// even its end. Small buffers may be free nevertheless, because not all of them need be on
    /// offer, see [`Op::OfferBuffers`](crate::op::Op::OfferBuffers).
    NoBuffer,
    /// Canceled, or ended by the kernel for reasons of its own. Nothing is lost; the receive can be
    /// armed again.
    Stopped,
    /// The kernel was out of memory (ENOMEM): try again a little later.
    Memory,
    /// The connection is dead (ECONNRESET, ETIMEDOUT, …).
    Failed(ConnectionError),
}

/// Why a send failed without taking a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The kernel was out of memory (ENOMEM, ENOBUFS): try again a little later.
    Memory,
    /// It was canceled.
    Stopped,
    /// The connection is dead (ECONNRESET, EPIPE, ETIMEDOUT, …).
    Failed(ConnectionError),
}

/// How a connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The peer reset it, or is gone (ECONNRESET, EPIPE, ENOTCONN, ECONNABORTED).
    Reset,
    /// The network gave up on it (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, …).
    Unreachable,
    /// The next message is longer than can be received or sent as one.
    MessageSize,
    /// An unexpected error, by its errno.
    Unexpected(i32),
}

reasons! {
    /// Why a connection ended.
    pub enum CloseReason {
        /// The peer sent FIN and got all its bytes back.
        Finished = "finished",
        /// The peer reset the connection.
        Reset = "reset",
        /// The network gave up on the peer.
        Unreachable = "unreachable",
        /// No byte moved for the idle timeout.
        Idle = "idle",
        /// It had been open for the longest time that is allowed.
        Lifetime = "lifetime",
        /// It had received as many bytes as are allowed.
        ByteLimit = "byte-limit",
        /// The peer did not read for the stall timeout.
        Stalled = "stalled",
        /// The peer sent a message that is longer than can be echoed as one.
        MessageSize = "message-size",
        /// The drain deadline came first.
        Drained = "drained",
        /// It was told the identity of its listener, and was open for nothing else.
        Identified = "identified",
        /// An unexpected error; see
        /// [`Stats::unexpected_errno`](crate::stats::Stats::unexpected_errno).
        Unexpected = "unexpected",
        /// It was not closed here: the next process has it now.
        HandedOver = "handed-over",
    }
}

impl CloseReason {
    /// The close reason for a dead connection.
    #[must_use]
    pub fn of(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Reset => Self::Reset,
            ConnectionError::Unreachable => Self::Unreachable,
            ConnectionError::MessageSize => Self::MessageSize,
            ConnectionError::Unexpected(_) => Self::Unexpected,
        }
    }
}

reasons! {
    /// Why a connection was closed right after its accept or after its header (PROXY protocol).
    pub enum RefuseReason {
        /// The access lists do not permit it.
        Denied = "denied",
        /// Its source has reached its maximum number of connections.
        SourceFull = "source-full",
        /// Its source has connected too often within a second.
        SourceRate = "source-rate",
        /// The listener takes connections of trusted proxies only, and this one comes from
        /// elsewhere.
        Untrusted = "untrusted",
        /// It does not begin with a valid header, or the header is too long or cut short.
        InvalidHeader = "invalid-header",
        /// Its header was not complete in time.
        HeaderTimeout = "header-timeout",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the words are labels of metrics and fields of logs, so they stay.
    #[test]
    fn the_words_are_those_of_the_manual() {
        let closed = [
            "finished",
            "reset",
            "unreachable",
            "idle",
            "lifetime",
            "byte-limit",
            "stalled",
            "message-size",
            "drained",
            "identified",
            "unexpected",
            "handed-over",
        ];
        assert_eq!(CloseReason::ALL.map(CloseReason::name), closed);
        let refused = [
            "denied",
            "source-full",
            "source-rate",
            "untrusted",
            "invalid-header",
            "header-timeout",
        ];
        assert_eq!(RefuseReason::ALL.map(RefuseReason::name), refused);
    }
}
