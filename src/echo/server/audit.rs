//! What must be true of all connections together between two events. For tests and simulation.

use super::{ListenerStats, Phase, Server};

impl Server {
    /// Panics if the books do not balance. For tests and simulation: it visits every slot.
    pub fn check_invariants(&self) {
        let (mut lent, mut charged, mut places) = (0, 0, 0);
        let (mut stalled, mut backlogs) = (0, 0);
        for connection in &self.slots {
            let (buffers, bytes) = connection.check_invariants(&self.resources);
            lent += buffers;
            charged += bytes;
            stalled += u64::from(connection.is_stalled());
            backlogs += u64::from(connection.has_backlog());
            places += u64::from(!matches!(
                connection.phase(),
                Phase::Free | Phase::Accepting | Phase::Parked
            ));
        }
        let stats = self.stats();
        assert_eq!(lent, self.resources.pool.lent_total(), "a lent buffer has no owner");
        assert_eq!(charged, stats.aside_bytes, "a charged byte has no owner");
        assert_eq!(stalled, stats.stalled);
        assert_eq!(places, stats.connections);
        let came = stats.accepted + stats.taken_over;
        let ended = stats.closed_total() + stats.refused_total();
        assert_eq!(came, places + stats.parked + ended);
        let left = stats.bytes_out + stats.bytes_dropped + stats.bytes_handed_over;
        assert!(stats.bytes_in + stats.bytes_taken_over >= left);
        assert_eq!(backlogs, self.resources.stalled_since.len() as u64);
        assert!(stats.chunks_out >= stats.residence.count());
        let sum = |count: fn(&ListenerStats) -> u64| {
            self.resources.listeners.iter().map(count).sum::<u64>()
        };
        assert_eq!(stats.accepted, sum(|listener| listener.accepted));
        assert_eq!(stats.taken_over, sum(|listener| listener.taken_over));
        assert_eq!(places + stats.parked, sum(ListenerStats::connections));
        assert_eq!(stats.bytes_in, sum(|listener| listener.bytes_in));
        assert_eq!(stats.bytes_out, sum(|listener| listener.bytes_out));
        assert_eq!(stats.chunks_in, sum(|listener| listener.chunks_in));
        assert_eq!(stats.chunks_out, sum(|listener| listener.chunks_out));
    }
}
