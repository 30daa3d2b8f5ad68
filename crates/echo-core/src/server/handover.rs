//! The server at both ends of a hand-over: bringing everything to quiescence and giving it away,
//! and taking in what the process before gave away.

use super::{Connection, ConnectionId, Drain, Op, Phase, Server, Timestamp, TransferState};
use crate::op::ConnectionError;

impl Server {
    pub(super) fn on_hand_over_started(&mut self, deadline: Timestamp) {
        if self.drain == Drain::No {
            self.drain = Drain::Freezing { deadline, swept: 0, rested: 0 };
            self.resources.quiescing = true;
        }
    }

    /// Whether a hand-over has been asked for and the kernel holds nothing any more: time for
    /// [`Server::release`]. Costs each slot one look in all, since what rests stays quiescent.
    pub fn is_quiescent(&mut self) -> bool {
        let (swept, rested) = match &mut self.drain {
            Drain::Freezing { swept, rested, .. } | Drain::Overdue { swept, rested } => {
                (*swept, rested)
            }
            Drain::No
            | Drain::Waiting { .. }
            | Drain::Ending { .. }
            | Drain::Over { .. }
            | Drain::Released => return false,
        };
        while self.slots.get(*rested).is_some_and(Connection::is_quiescent) {
            *rested += 1;
        }
        let all = self.slots.len();
        swept.min(*rested) == all
            && !self.admission.has_unfinished()
            && !self.listeners.iter().any(|listener| listener.is_with_kernel())
            && self.has_ended_listeners()
    }

    /// Gives every connection away: the caller takes its socket and its unsent bytes from the
    /// driver. To be called once all are quiescent.
    ///
    /// If they cannot be handed over they come back to this server, as to a new one:
    /// [`Self::reserve_slot`] and `Event::Imported` for each, then `Event::DrainStarted`. Limits,
    /// timeouts, rules and counters are what they were, and nobody is accepted.
    pub fn release(&mut self, now: Timestamp) -> Vec<(ConnectionId, TransferState)> {
        assert!(self.is_quiescent(), "the kernel still holds a connection");
        let mut ops: Vec<Op> = Vec::new();
        while let Some(id) = self.parked.pop_front() {
            self.open(now, id, &mut ops);
        }
        let mut released = Vec::new();
        for slot in 0..self.slots.len() {
            let id = ConnectionId::new(slot as u32, self.slots[slot].generation());
            self.with(now, id, &mut ops, |connection, context| {
                released.extend(connection.export(context).map(|transfer| (id, transfer)));
            });
        }
        assert!(ops.is_empty(), "what is quiescent asks for nothing: {ops:?}");
        self.drain = Drain::Released;
        self.resources.quiescing = false;
        self.inherited = 0;
        released
    }

    /// Counts a connection of the process before us that ends here: there is no memory for the
    /// bytes that are still to be sent on it.
    pub fn note_lost_in_hand_over(&mut self) {
        const ENOMEM: i32 = 12;
        self.resources.stats.count_connection_error(ConnectionError::Unexpected(ENOMEM));
    }

    /// A free slot for a connection of the process before us, or for one that could not be handed
    /// over. To be called before the server starts, or after [`Self::release`]; `Event::Imported`
    /// must follow.
    pub fn reserve_slot(&mut self) -> ConnectionId {
        self.inherited += 1;
        self.take_slot()
    }

    pub(super) fn on_imported(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        transfer: TransferState,
        ops: &mut Vec<Op>,
    ) {
        assert_eq!(self.connection(id).phase(), Phase::Free, "{id:?} is taken");
        self.resources.count_taken_over(transfer.listener);
        self.resources.stats.connections += 1;
        self.begin_silence(now, id.slot());
        self.with(now, id, ops, |connection, context| {
            connection.import(context, transfer);
            context.timer_changed = true;
        });
    }
}
