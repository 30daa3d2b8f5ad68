//! What the core counts. Plain numbers: the worker publishes them.

use crate::datagram::DatagramTraffic;
use crate::histogram::Histogram;
use crate::reason::{AcceptError, CloseReason, ConnectionError, RefuseReason};

/// Everything counted since the worker started. Gauges are marked as such; everything else only
/// grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What the connections of all listeners did.
    pub traffic: Traffic,
    /// What the datagram sockets of all listeners did.
    pub datagrams: DatagramTraffic,
    /// Gauge: open connections.
    pub connections: u64,
    /// Gauge: connections that were accepted in a race for the last capacity. They wait for
    /// capacity as they would in the listen backlog.
    pub waiting_for_capacity: u64,
    /// Bytes received that could not be echoed: the peer reset, stalled too long, or wrote after
    /// our FIN. Once a connection is closed its bytes in equal its bytes out plus its bytes
    /// dropped.
    pub bytes_dropped: u64,
    /// Bytes that the previous process received and left to this one to echo.
    pub bytes_taken_over: u64,
    /// Bytes received that were left to the next process to echo.
    pub bytes_handed_over: u64,
    /// The time in microseconds from fetching a chunk from the kernel to fetching the completion of
    /// its send, measured for one send in [`crate::limits::SENDS_PER_TIMED`], whether it succeeds
    /// or not. Bytes that the peer was slow to take are timed from the oldest byte to the last one.
    pub residence: Histogram,
    /// Turns that found the completion queue overflowed: the kernel kept completions in a slower
    /// list.
    pub completion_overflows: u64,
    /// Try-sends that the socket did not take whole: the peer reads slower than it writes.
    pub short_sends: u64,
    /// Receives that found no free buffer and waited for one.
    pub starved: u64,
    /// Gauge: stalled connections: nothing more is received from them until their peer has read.
    pub stalled: u64,
    /// Gauge: bytes of memory that spilled bytes take, in whole blocks.
    pub spilled_bytes: u64,
    /// Times that no memory was granted for bytes that a peer did not take: they stayed in the
    /// pooled buffers that held them.
    pub spills_refused: u64,
    /// Gauge: pooled buffers that are lent.
    pub buffers_lent: u64,
    /// Accepts that failed because the process had no free file descriptor.
    pub accept_process_files: u64,
    /// Accepts that failed because the system had no free file.
    pub accept_system_files: u64,
    /// Accepts that failed for lack of memory.
    pub accept_memory: u64,
    /// Accepts whose peer was gone already.
    pub accept_aborted: u64,
    /// Accepts that failed for an unexpected reason.
    pub accept_unexpected: u64,
    /// Times that this worker took the last capacity of all workers, so that further connections
    /// waited in the backlog.
    pub full: u64,
    /// Receives and sends that failed because the kernel was out of memory, and were tried again.
    pub memory_retries: u64,
    /// Unexpected errors of any kind.
    pub unexpected_errors: u64,
    /// The errno of the last of them, 0 if there was none.
    pub unexpected_errno: i32,
}

/// What connections did: those of one listener, or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections accepted: each is refused or closed later, or still open.
    pub accepted: u64,
    /// Connections taken over from the previous process.
    pub taken_over: u64,
    /// Connections whose header (PROXY protocol) announced an address.
    pub announced: u64,
    /// Connections of a proxy that ended after a header that announced no address, without any
    /// further byte.
    pub health_checks: u64,
    /// Connections to which the identity of their listener was sent; some had gone by then.
    pub identities: u64,
    /// Connections closed right after their accept or their header, by [`RefuseReason`].
    pub refused: [u64; RefuseReason::ALL.len()],
    /// Connections closed, by [`CloseReason`].
    pub closed: [u64; CloseReason::ALL.len()],
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes echoed.
    pub bytes_out: u64,
    /// Chunks received, each echoed by a send of its own.
    pub chunks_in: u64,
    /// Sends that completed an echo: of a chunk received or, when the peer was slow, of all that
    /// had been spilled for it.
    pub chunks_out: u64,
}

impl Traffic {
    /// Connections that are open, or wait for capacity.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.accepted + self.taken_over - self.closed_total() - self.refused_total()
    }

    /// Connections closed, for any reason.
    #[must_use]
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Connections refused, for any reason.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Adds what other connections did.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.refused.iter_mut().zip(other.refused) {
            *mine += theirs;
        }
        for (mine, theirs) in self.closed.iter_mut().zip(other.closed) {
            *mine += theirs;
        }
        self.accepted += other.accepted;
        self.taken_over += other.taken_over;
        self.announced += other.announced;
        self.health_checks += other.health_checks;
        self.identities += other.identities;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.chunks_in += other.chunks_in;
        self.chunks_out += other.chunks_out;
    }
}

impl Stats {
    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Self) {
        self.traffic.add(&other.traffic);
        self.datagrams.add(&other.datagrams);
        self.connections += other.connections;
        self.waiting_for_capacity += other.waiting_for_capacity;
        self.bytes_dropped += other.bytes_dropped;
        self.bytes_taken_over += other.bytes_taken_over;
        self.bytes_handed_over += other.bytes_handed_over;
        self.residence.add(&other.residence);
        self.completion_overflows += other.completion_overflows;
        self.short_sends += other.short_sends;
        self.starved += other.starved;
        self.stalled += other.stalled;
        self.spilled_bytes += other.spilled_bytes;
        self.spills_refused += other.spills_refused;
        self.buffers_lent += other.buffers_lent;
        self.accept_process_files += other.accept_process_files;
        self.accept_system_files += other.accept_system_files;
        self.accept_memory += other.accept_memory;
        self.accept_aborted += other.accept_aborted;
        self.accept_unexpected += other.accept_unexpected;
        self.full += other.full;
        self.memory_retries += other.memory_retries;
        self.unexpected_errors += other.unexpected_errors;
        if other.unexpected_errno != 0 {
            self.unexpected_errno = other.unexpected_errno;
        }
    }

    pub(crate) fn count_connection_error(&mut self, error: ConnectionError) {
        if let ConnectionError::Unexpected(errno) = error {
            self.count_unexpected(errno);
        }
    }

    pub(crate) fn count_accept_error(&mut self, error: AcceptError) {
        match error {
            AcceptError::Canceled | AcceptError::Empty => {}
            AcceptError::Aborted => self.accept_aborted += 1,
            AcceptError::ProcessFiles => self.accept_process_files += 1,
            AcceptError::SystemFiles => self.accept_system_files += 1,
            AcceptError::Memory => self.accept_memory += 1,
            AcceptError::Unexpected(errno) => {
                self.accept_unexpected += 1;
                self.count_unexpected(errno);
            }
        }
    }

    fn count_unexpected(&mut self, errno: i32) {
        self.unexpected_errors += 1;
        self.unexpected_errno = errno;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Different counts, `times` as large. What belongs to another type is tested there.
    fn counts(times: u64) -> Stats {
        let mut next = 0;
        let mut count = || {
            next += 1;
            next * times
        };
        let traffic = Traffic {
            accepted: count(),
            taken_over: count(),
            announced: count(),
            health_checks: count(),
            identities: count(),
            refused: [(); RefuseReason::ALL.len()].map(|()| count()),
            closed: [(); CloseReason::ALL.len()].map(|()| count()),
            bytes_in: count(),
            bytes_out: count(),
            chunks_in: count(),
            chunks_out: count(),
        };
        Stats {
            traffic,
            datagrams: DatagramTraffic::default(),
            connections: count(),
            waiting_for_capacity: count(),
            bytes_dropped: count(),
            bytes_taken_over: count(),
            bytes_handed_over: count(),
            residence: Histogram::default(),
            completion_overflows: count(),
            short_sends: count(),
            starved: count(),
            stalled: count(),
            spilled_bytes: count(),
            spills_refused: count(),
            buffers_lent: count(),
            accept_process_files: count(),
            accept_system_files: count(),
            accept_memory: count(),
            accept_aborted: count(),
            accept_unexpected: count(),
            full: count(),
            memory_retries: count(),
            unexpected_errors: count(),
            unexpected_errno: 0,
        }
    }

    #[test]
    fn the_counts_of_workers_add_up() {
        let mut sum = counts(2);
        sum.add(&counts(100));
        assert_eq!(sum, counts(102));
    }

    #[test]
    fn the_last_unexpected_error_is_kept() {
        let mut sum = Stats { unexpected_errno: 5, ..Stats::default() };
        sum.add(&Stats::default());
        assert_eq!(sum.unexpected_errno, 5);
        sum.add(&Stats { unexpected_errno: 12, ..Stats::default() });
        assert_eq!(sum.unexpected_errno, 12);
    }

    #[test]
    fn errors_are_counted_by_their_kind() {
        let mut stats = Stats::default();
        for error in [
            AcceptError::Canceled,
            AcceptError::Empty,
            AcceptError::Aborted,
            AcceptError::ProcessFiles,
            AcceptError::SystemFiles,
            AcceptError::Memory,
            AcceptError::Unexpected(5),
        ] {
            stats.count_accept_error(error);
        }
        stats.count_connection_error(ConnectionError::Reset);
        stats.count_connection_error(ConnectionError::Unexpected(12));
        let expected = Stats {
            accept_process_files: 1,
            accept_system_files: 1,
            accept_memory: 1,
            accept_aborted: 1,
            accept_unexpected: 1,
            unexpected_errors: 2,
            unexpected_errno: 12,
            ..Stats::default()
        };
        assert_eq!(stats, expected);
    }
}
