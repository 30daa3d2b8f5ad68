//! What must be true of a connection between two events. For tests and simulation.

use super::{Connection, Phase, Receive, Send};
use crate::resources::Resources;

impl Connection {
    /// Whether the peer is behind with reading.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.has_backlog() || self.is_relay_blocked()
    }

    /// Whether bytes are spilled or held for it.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        matches!(self.send, Send::Spilled { .. } | Send::Held { .. })
    }

    /// Panics if the state contradicts itself. Returns the lent buffers and the charged bytes it
    /// accounts for.
    pub fn check_invariants(&self, resources: &Resources) -> (u32, u64) {
        let sending = u32::from(matches!(self.send, Send::Trying { .. } | Send::Held { .. }));
        let charged = match self.send {
            Send::Spilled { unsent, begin, .. } => {
                // A connection that dies for want of memory in a hand-over may have none.
                let least = u32::from(!matches!(self.phase, Phase::Closing(_)));
                assert!(unsent >= least, "nothing is spilled");
                assert!(begin < resources.block_size(), "{begin} is in no first block");
                resources.memory_of(begin, unsent)
            }
            Send::Idle | Send::Trying { .. } | Send::Held { .. } => 0,
        };
        if self.receive.is_relay() {
            assert_eq!(self.send, Send::Idle, "two of them send");
        }
        match self.phase {
            Phase::Free | Phase::Accepting | Phase::Parked => {
                assert_eq!((self.receive, self.send), (Receive::Off, Send::Idle));
            }
            Phase::Open => {
                let busy = self.send != Send::Idle || self.receive != Receive::Off;
                assert!(busy || resources.quiescing, "an open connection waits for nothing");
            }
            Phase::Finishing => {
                assert_eq!(self.receive, Receive::Off);
                assert_ne!(self.send, Send::Idle, "a finished connection was not closed");
            }
            Phase::Flushing(_) => {
                let busy = self.send != Send::Idle || self.receive == Receive::RelayStopping;
                assert!(busy, "FIN was not sent");
            }
            Phase::Lingering(_) => {
                assert_eq!(self.send, Send::Idle, "bytes after FIN");
                let waits = self.receive != Receive::Off || resources.quiescing;
                assert!(waits, "nobody waits for the peer's FIN");
            }
            Phase::Closing(_) => {
                let held = self.receive.is_with_kernel() || self.send.is_with_kernel();
                assert!(held, "a dead connection was not closed");
            }
        }
        if self.send == Send::Idle && !matches!(self.phase, Phase::Closing(_)) {
            assert_eq!(self.queue.count(), 0, "queued bytes are not being sent");
        }
        (u32::from(self.queue.count()) + sending, charged)
    }
}
