//! What must be true of a connection between two events.

use super::super::inbound::{Receive, Request};
use super::super::outbound::Send;
use super::super::phase::Phase;
use super::super::resources::Resources;
use super::Connection;

/// For tests and simulation.
impl Connection {
    /// Panics if the state contradicts itself. Returns how many lent buffers and how many blocks of
    /// memory the connection owns.
    pub(crate) fn check_invariants(&self, resources: &Resources) -> (u32, u32) {
        let (receive, send) = (self.receive(), self.outbound.send());
        let blocks = match send {
            Send::Spilled { spill, .. } => {
                // A connection that is closed for lack of memory in a handover may have none.
                assert!(spill.unsent() > 0 || self.phase.is_closing(), "nothing is spilled");
                spill.blocks(resources.block_size())
            }
            Send::Idle | Send::Trying { .. } | Send::Held { .. } => 0,
        };
        if self.inbound.is_relay() {
            assert_eq!(send, Send::Idle, "a relay and a send at once");
        }
        let quiescing = resources.quiescing;
        match self.phase {
            Phase::Free | Phase::Accepting | Phase::WaitingForCapacity => {
                assert_eq!((receive, send), (Receive::Off, Send::Idle));
            }
            Phase::Preface(_) => {
                assert_eq!(send, Send::Idle, "bytes are sent before the header is complete");
                assert!(receive != Receive::Off || quiescing, "nothing waits for the header");
            }
            Phase::Open => {
                let busy = send != Send::Idle || receive != Receive::Off;
                assert!(busy || quiescing, "an open connection waits for nothing");
            }
            Phase::HalfClosed => {
                assert_eq!(receive, Receive::Off);
                assert_ne!(send, Send::Idle, "a half-closed connection was not closed");
            }
            Phase::Flushing(_) => {
                let relay_stops = matches!(receive, Receive::Stopping(Request::Relay(_)));
                let busy = send != Send::Idle || relay_stops;
                assert!(busy, "FIN was not sent");
            }
            Phase::Lingering(_) => {
                assert_eq!(send, Send::Idle, "bytes after FIN");
                assert!(receive != Receive::Off || quiescing, "nothing waits for the peer's FIN");
            }
            Phase::Closing(_) | Phase::Refusing(_) => {
                assert!(!self.is_quiescent(), "a dead connection is not closed");
            }
        }
        if send == Send::Idle && !self.phase.is_closing() {
            assert_eq!(self.outbound.queued(), 0, "queued bytes are not being sent");
        }
        let sending = u32::from(matches!(send, Send::Trying { .. } | Send::Held { .. }));
        (u32::from(self.outbound.queued()) + sending, blocks)
    }
}
