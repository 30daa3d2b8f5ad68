//! Commands of the daemon: other limits, the end of a listener, a drain, a handover.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Server;
use crate::id::{ConnectionId, ListenerId, Timestamp};
use crate::kernel::Kernel;
use crate::op::{Op, TransferPhase, TransferState};
use crate::parameters::RuntimeLimits;
use crate::peer::PeerAddr;
use crate::reason::ConnectionError;
use crate::stream::connection::{Connection, ENOMEM};
use crate::stream::drain::Drain;
use crate::stream::phase::Phase;

impl Server {
    /// The limits and timeouts in force.
    pub(crate) fn runtime_limits(&self) -> &RuntimeLimits {
        &self.resources.parameters.runtime_limits
    }

    /// Applies `runtime_limits` to new and open connections. None is ended because a limit fell
    /// below the current use; those whose deadline has passed by the new timeouts are ended in the
    /// next turns, a bounded number in each.
    pub(crate) fn reconfigure(&mut self, now: Timestamp, runtime_limits: RuntimeLimits) {
        // Reserved in one step, as at the start.
        let more = (runtime_limits.connections_max as usize).saturating_sub(self.slots.len());
        self.slots.reserve_exact(more);
        self.admission.change(Arc::clone(&runtime_limits.admission));
        if runtime_limits.bytes_max.is_none() {
            self.resources.received = Vec::new();
        }
        self.resources.parameters.runtime_limits = runtime_limits;
        self.wheel.set_tick(now, self.resources.parameters.tick_ms());
        self.retimed = Some(0);
    }

    /// After a reload that starts to count sources: counts connections that were opened before,
    /// some of them in each turn.
    pub(crate) fn recount<K: Kernel>(&mut self, now: Timestamp, kernel: &K) {
        for slot in self.admission.next_to_recount(self.slots.len(), self.sweep()) {
            if self.has_been_judged(slot) && self.admission.is_uncounted(slot as u32) {
                let id = self.id_of(slot);
                self.admission.count_open(now, id, kernel.peer_of(id));
            }
        }
    }

    /// The kernel sends `listener` no new connections. Accepts those in its backlog, also during a
    /// drain or a handover, then closes it. A repeated call means that more may have arrived.
    pub(crate) fn end_listener(&mut self, now: Timestamp, listener: ListenerId, ops: &mut Vec<Op>) {
        self.listeners.end(listener);
        self.use_capacity(now, ops);
    }

    /// Stops accepting, continues to echo, and at `deadline` ends the connections that are still
    /// open.
    pub(crate) fn drain(&mut self, now: Timestamp, deadline: Timestamp, ops: &mut Vec<Op>) {
        if matches!(self.drain, Drain::No | Drain::Released) {
            self.drain = Drain::Waiting { deadline };
        }
        self.use_capacity(now, ops);
    }

    /// Whether a drain was requested and nothing is left: no connection, and no accept in flight.
    #[must_use]
    pub(crate) fn is_drained(&self) -> bool {
        self.drain.is_drain()
            && self.resources.stats.connections == 0
            && self.waiting_for_capacity.is_empty()
            && self.listeners.are_quiescent()
    }

    /// Stops accepting and receiving, and cancels sends that wait, so that every connection becomes
    /// quiescent and can be handed to the next process; try-sends continue. A connection that is
    /// not quiescent at `deadline` is ended.
    pub(crate) fn hand_over(&mut self, now: Timestamp, deadline: Timestamp, ops: &mut Vec<Op>) {
        if self.drain == Drain::No {
            self.drain = Drain::Quiescing { deadline, swept: 0, quiescent: 0 };
            self.resources.quiescing = true;
        }
        self.use_capacity(now, ops);
    }

    /// Whether a handover was requested and the kernel holds no operation: time for
    /// [`Server::release`]. Each slot is examined once in all, since quiescent slots stay so.
    pub(crate) fn is_quiescent(&mut self) -> bool {
        let Some(quiescent) = self.drain.quiescent_below(self.slots.len()) else { return false };
        while self.slots.get(*quiescent).is_some_and(Connection::is_quiescent) {
            *quiescent += 1;
        }
        *quiescent == self.slots.len() && self.listeners.are_quiescent()
    }

    /// See [`Worker::release`](crate::worker::Worker::release).
    pub(crate) fn release(&mut self, now: Timestamp) -> Vec<(ConnectionId, TransferState)> {
        assert!(self.is_quiescent(), "the kernel still has a connection");
        // They were opened when the handover began.
        assert!(self.waiting_for_capacity.is_empty(), "a connection still waits for capacity");
        let mut ops: Vec<Op> = Vec::new();
        let mut released = Vec::new();
        for slot in 0..self.slots.len() {
            let id = self.id_of(slot);
            self.with(now, id, &mut ops, |connection, context| {
                released.extend(connection.export(context).map(|transfer| (id, transfer)));
            });
        }
        assert!(ops.is_empty(), "a quiescent connection submits nothing: {ops:?}");
        self.drain = Drain::Released;
        self.resources.quiescing = false;
        self.imported = 0;
        released
    }

    /// See [`Worker::reserve_slot`](crate::worker::Worker::reserve_slot).
    pub(crate) fn reserve_slot(&mut self) -> ConnectionId {
        self.imported += 1;
        self.take_slot()
    }

    /// See [`Worker::import`](crate::worker::Worker::import).
    pub(crate) fn import(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        peer: PeerAddr,
        transfer: TransferState,
        ops: &mut Vec<Op>,
    ) {
        assert_eq!(self.connection(id).phase(), Phase::Free, "{id:?} is taken");
        if !matches!(transfer.phase, TransferPhase::Preface(_)) {
            self.admission.count_open(now, id, peer);
        }
        self.resources.traffic(transfer.listener).taken_over += 1;
        self.resources.stats.connections += 1;
        self.probing.begin_silence(now, id.slot(), self.keepalive());
        self.with(now, id, ops, |connection, context| connection.import(context, transfer));
        self.use_capacity(now, ops);
    }

    /// Counts a connection of the previous process that ends here, because there is no memory for
    /// the bytes that are still to be sent on it.
    pub(crate) fn note_lost_in_handover(&mut self) {
        self.resources.stats.count_connection_error(ConnectionError::Unexpected(ENOMEM));
    }
}
