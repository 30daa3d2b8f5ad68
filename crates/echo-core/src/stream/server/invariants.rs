//! What must be true of a server between two events.

use super::Server;
use crate::stats::Traffic;

/// What must be true between two events. For tests and simulation.
impl Server {
    /// Panics if the counts do not add up. It visits every slot.
    pub(crate) fn check_invariants(&self) {
        let (mut lent, mut blocks, mut connections) = (0, 0, 0);
        let (mut stalled, mut backlogs) = (0, 0);
        for connection in &self.slots {
            let (buffers, memory) = connection.check_invariants(&self.resources);
            lent += buffers;
            blocks += u64::from(memory);
            stalled += u64::from(connection.is_stalled());
            backlogs += u64::from(connection.has_backlog());
            connections += u64::from(connection.phase().is_connection());
        }
        let stats = self.stats();
        let block_size = u64::from(self.resources.block_size());
        assert_eq!(lent, self.resources.pool.lent_total(), "a lent buffer has no owner");
        assert_eq!(blocks * block_size, stats.spilled_bytes, "a block of memory has no owner");
        assert_eq!(stalled, stats.stalled);
        assert_eq!(connections, stats.connections);
        let Traffic { bytes_in, bytes_out, chunks_out, .. } = stats.traffic;
        assert_eq!(connections + stats.waiting_for_capacity, stats.traffic.connections());
        let left = bytes_out + stats.bytes_dropped + stats.bytes_handed_over;
        assert!(bytes_in + stats.bytes_taken_over >= left);
        assert_eq!(backlogs, self.resources.stalled_since.len() as u64);
        assert!(chunks_out >= stats.residence.count());
    }
}
