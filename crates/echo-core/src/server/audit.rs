//! What must be true of all connections together between two events. For tests and simulation.

use super::{Phase, Server, Traffic};

impl Server {
    /// Panics if the counts do not add up. For tests and simulation: it visits every slot.
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
        assert_eq!(charged, stats.spilled_bytes, "a charged byte has no owner");
        assert_eq!(stalled, stats.stalled);
        assert_eq!(places, stats.connections);
        let Traffic { bytes_in, bytes_out, chunks_out, .. } = stats.traffic;
        assert_eq!(places + stats.parked, stats.traffic.connections());
        let left = bytes_out + stats.bytes_dropped + stats.bytes_handed_over;
        assert!(bytes_in + stats.bytes_taken_over >= left);
        assert_eq!(backlogs, self.resources.stalled_since.len() as u64);
        assert!(chunks_out >= stats.residence.count());
    }
}
