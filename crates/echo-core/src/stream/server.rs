//! The stream server of one worker: slots, listeners, capacity, timers.
//!
//! It hands each event to its [`Connection`] and manages what connections share: which connection
//! gets the next capacity, which waits for a buffer, when accepting pauses, when the drain is over.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::connection::Connection;
use super::drain::Drain;
use super::listeners::{Accepting, Listeners};
use super::pause::Pause;
use super::phase::Phase;
use super::probing::Probing;
use super::receive_policy::Turn;
use super::resources::{Context, Resources};
use crate::admission::Admission;
use crate::fullness;
use crate::id::{ConnectionId, ListenerId, Timestamp};
use crate::kernel::Wake;
use crate::op::{Event, Expectation, Op};
use crate::parameters::{Keepalive, Parameters};
use crate::peer::PeerAddr;
use crate::stats::{Stats, Traffic};
use crate::timer_wheel::Wheel;

#[cfg(test)]
mod accepting;
mod commands;
#[cfg(test)]
mod draining;
#[cfg(test)]
mod handing_over;
mod invariants;
mod preface;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod reconfigure;
#[cfg(test)]
mod withheld;

/// All connections of one worker.
pub(crate) struct Server {
    resources: Resources,
    slots: Vec<Connection>,
    free: Vec<u32>,
    listeners: Listeners,
    /// Accepted connections for which there was no capacity, first come first served.
    waiting_for_capacity: VecDeque<ConnectionId>,
    admission: Admission,
    wheel: Wheel,
    pause: Pause,
    probing: Probing,
    drain: Drain,
    /// Slots given to connections of the previous process: there may be more of them than
    /// capacity.
    imported: u32,
    /// Whether all capacity of this worker was taken when listeners were last looked at.
    fullness: fullness::Part,
    /// While new limits are applied: timers of the slots below this have been set again.
    retimed: Option<usize>,
}

impl Server {
    /// A server that has not started.
    #[must_use]
    pub(crate) fn new(parameters: Parameters) -> Self {
        assert!(parameters.buffers.small.count > 0, "an echo needs a buffer");
        let buffers = parameters.buffers;
        assert!(buffers.small.size <= buffers.large.size, "large buffers are no smaller");
        let limits = &parameters.runtime_limits;
        let slots = limits.connections_max;
        Self {
            // Reserved, so that the table is never copied to grow. Until it is used it is address
            // space only.
            slots: Vec::with_capacity(slots as usize),
            free: Vec::new(),
            listeners: Listeners::new(parameters.listeners),
            waiting_for_capacity: VecDeque::new(),
            admission: Admission::new(
                Arc::clone(&limits.admission),
                Arc::clone(&parameters.limiter),
                parameters.has_proxies(),
            ),
            wheel: Wheel::new(Timestamp(0), parameters.tick_ms(), slots),
            pause: Pause::default(),
            probing: Probing::new(slots),
            drain: Drain::No,
            imported: 0,
            fullness: fullness::Part::new(Arc::clone(&parameters.fullness)),
            retimed: None,
            resources: Resources::new(parameters),
        }
    }

    /// The counters, and the present values of the gauges.
    #[must_use]
    pub(crate) fn stats(&self) -> Stats {
        let mut traffic = Traffic::default();
        for listener in self.listener_traffic() {
            traffic.add(listener);
        }
        Stats {
            traffic,
            buffers_lent: u64::from(self.resources.pool.lent_total()),
            waiting_for_capacity: self.waiting_for_capacity.len() as u64,
            ..self.resources.stats.clone()
        }
    }

    /// What the connections of each listener did, in the order of their [`ListenerId`].
    #[must_use]
    pub(crate) fn listener_traffic(&self) -> &[Traffic] {
        &self.resources.listeners
    }

    /// The refused sources, and the last accepts.
    #[must_use]
    pub(crate) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// When the present turn began, or the last one.
    pub(crate) fn clock_us(&self) -> u64 {
        self.resources.clock_us
    }

    /// A turn begins: its events were fetched from the kernel at `clock_us`, in microseconds since
    /// an arbitrary start. `overflows` turns so far found the completion queue overflowed.
    pub(crate) fn begin_turn(&mut self, clock_us: u64, overflows: u64) {
        self.resources.clock_us = clock_us;
        self.pause.begin_turn(Timestamp(clock_us / 1_000));
        self.resources.stats.completion_overflows = overflows;
    }

    /// A turn is over: all its events have been handled.
    pub(crate) fn end_turn(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        self.listeners.end_turn();
        self.serve_bulk(now, ops);
        let connections = self.resources.stats.connections;
        let slots = &self.slots;
        let policy = &mut self.resources.receive_policy;
        policy.end_turn(connections, |id| {
            let connection = &slots[id.slot() as usize];
            connection.generation() != id.generation() || !connection.waits_for_one()
        });
        if policy.has_deferred() {
            self.submit_deferred(now, ops);
        }
        let deferring = self.resources.receive_policy.is_deferring();
        let receives = if deferring { connections } else { 0 };
        if let Some(count) = self.resources.buffer_offer.end_turn(receives) {
            ops.push(Op::OfferBuffers { count });
        }
    }

    /// Submits deferred receives behind the operations of the turn.
    fn submit_deferred(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let turn = if ops.iter().any(Op::is_answered_at_once) {
            Turn::Answered
        } else if self.wake() == Wake::Now {
            Turn::Brief
        } else {
            Turn::Waits
        };
        let mut due = self.resources.receive_policy.take_due(turn);
        due.retain(|&id| {
            let connection = &mut self.slots[id.slot() as usize];
            let listener = connection.listener();
            let resources = &mut self.resources;
            connection.generation() == id.generation()
                && connection.submit_deferred(&mut Context { id, listener, now, resources, ops })
        });
        self.resources.receive_policy.note_submitted(due);
    }

    /// Gives waiting connections their share of this turn's bulk. If some are left, cancels one
    /// idle receive that holds a large buffer: its reservation counts against the quantum even
    /// while it is idle.
    fn serve_bulk(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        while let Some(&id) = self.resources.bulk_waiting.front() {
            if self.with_if_alive(now, id, ops, Connection::serve_bulk) == Some(false) {
                break;
            }
            self.resources.bulk_waiting.pop_front();
        }
        if !self.resources.bulk_waiting.is_empty()
            && let Some(id) = self.resources.idle_large.pop_front()
        {
            self.with_if_alive(now, id, ops, Connection::revoke);
        }
    }

    /// Whether the next turn has a share of bulk for the connection that has waited longest.
    fn can_serve_bulk(&self) -> bool {
        self.resources.bulk_waiting.front().is_some_and(|id| {
            let connection = &self.slots[id.slot() as usize];
            let expected = connection.bulk_bytes(&self.resources);
            self.resources.pool.can_reserve_large(expected)
        })
    }

    /// When [`Server::on_time`] is to be called at the latest.
    #[must_use]
    pub(crate) fn wake(&self) -> Wake {
        let unfinished = self.retimed.is_some() || self.admission.is_recounting();
        let receives = self.resources.receive_policy.must_not_wait();
        if unfinished || receives || self.can_serve_waiting() || self.can_serve_bulk() {
            return Wake::Now;
        }
        let timers = self.pause.end().or_else(|| self.wheel.deadline());
        let retries = self.resources.retries.front().map(|&(at, _)| at);
        [timers.into(), retries.into(), self.drain.wake(self.slots.len()), self.probing.wake()]
            .into_iter()
            .fold(self.listeners.wake(), Wake::min)
    }

    /// From now on connections are accepted from those listeners for which `ours` is true, and from
    /// those that end.
    pub(crate) fn accept_from(&mut self, ours: &[bool]) {
        self.listeners.accept_from(ours);
    }

    /// Whether all capacity of this worker was taken when it was last looked at.
    pub(crate) fn is_full(&self) -> bool {
        self.fullness.is_full()
    }

    /// Begins to accept.
    pub(crate) fn start(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        self.admission.announce(ops);
        self.use_capacity(now, ops);
    }

    /// Handles one event and appends the resulting operations to `ops`, in order.
    ///
    /// # Panics
    /// If the event breaks the contract of [`crate::op`]: for example, bytes for a connection that
    /// has been closed.
    // Inlined, so that an event of an echo is read where it lies.
    #[inline]
    pub(crate) fn handle(&mut self, now: Timestamp, event: Event, ops: &mut Vec<Op>) {
        // An echo concerns no other connection unless it is the last of its own, so capacity and
        // listeners are not examined for it. That saves 9 of 95 ns of our own code per echo.
        let connections = self.resources.stats.connections;
        match event {
            Event::Received { connection, buffer, length, armed, rest } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_received(context, buffer, length, armed, rest);
                });
            }
            Event::Sent { connection, length } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_sent(context, length);
                });
            }
            other => return self.handle_no_echo(now, other, ops),
        }
        if self.resources.stats.connections != connections {
            self.use_capacity(now, ops);
        }
    }

    fn handle_no_echo(&mut self, now: Timestamp, event: Event, ops: &mut Vec<Op>) {
        match event {
            Event::Received { .. } | Event::Sent { .. } => unreachable!("{event:?} is of an echo"),
            Event::Accepted { connection, peer, backlog } => {
                self.on_accepted(now, connection, peer, backlog, ops);
            }
            Event::AcceptFailed { connection, error } => {
                let listener = self.accept_ended(connection);
                self.resources.stats.count_accept_error(error);
                self.listeners.on_failed(now, listener, error, ops);
                self.release_slot(connection);
            }
            Event::PrefacePartial { connection, received } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_preface_partial(context, received);
                });
            }
            Event::PrefaceComplete { connection, peer, origin } => {
                self.on_preface_complete(now, connection, peer, origin, ops);
            }
            Event::PrefaceInvalid { connection } => {
                self.with(now, connection, ops, Connection::on_preface_invalid);
            }
            Event::IdentifyFailed { connection, error } => {
                self.with_if_alive(now, connection, ops, |connection, context| {
                    connection.on_identify_failed(context, error);
                });
            }
            Event::Readable { connection } => {
                self.with(now, connection, ops, Connection::on_readable);
            }
            Event::ReceiveEnded { connection, reason } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_receive_ended(context, reason);
                });
            }
            Event::Relayed { connection, length, chunks, next } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_relayed(context, length, chunks, next);
                });
            }
            Event::SentSpilled { connection, length } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_spilled_sent(context, length);
                });
            }
            Event::SendFailed { connection, error } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_send_failed(context, error);
                });
            }
            Event::ProbeEnded { connection, heard } => {
                self.on_probe_ended(now, connection, heard, ops);
            }
        }
        self.use_capacity(now, ops);
    }

    /// Time has passed: handles all deadlines that have passed.
    pub(crate) fn on_time(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        self.admission.announce(ops);
        self.serve_waiting(now, ops);
        while let Some(&(at, id)) = self.resources.retries.front()
            && at <= now
        {
            self.resources.retries.pop_front();
            self.with_if_alive(now, id, ops, Connection::retry);
        }
        self.listeners.on_time(now);
        self.expire(now, ops);
        self.send_probes(now, ops);
        self.advance_retiming(now, ops);
        let linger = self.resources.parameters.linger_timeout;
        if let Some((slots, act)) = self.drain.advance(now, self.slots.len(), self.sweep(), linger)
        {
            for slot in slots {
                self.with(now, self.id_of(slot), ops, act);
            }
        }
        self.use_capacity(now, ops);
    }

    /// Ends connections whose deadline has passed. The rest follows in the next turn, which does
    /// not wait.
    fn expire(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        if self.pause.is_over(now, self.wheel.deadline()) {
            for _ in 0..self.sweep() {
                let Some(slot) = self.wheel.expired(now) else { break };
                self.on_timer(now, slot, ops);
            }
        }
    }

    /// Sets the next timers by the present limits, or ends connections whose deadline has passed by
    /// them.
    fn advance_retiming(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let Some(from) = self.retimed else { return };
        let to = self.slots.len().min(from + self.sweep());
        for slot in from..to {
            self.on_timer(now, slot as u32, ops);
        }
        self.retimed = (to < self.slots.len()).then_some(to);
    }

    fn on_timer(&mut self, now: Timestamp, slot: u32, ops: &mut Vec<Op>) {
        let connection = &self.slots[slot as usize];
        let id = self.id_of(slot as usize);
        if connection.deadline(&self.resources, now).is_some_and(|deadline| deadline <= now) {
            self.with(now, id, ops, Connection::on_deadline);
            return self.set_timer(now, slot);
        }
        let keepalive = self.keepalive();
        self.probing.note_last_byte(now, slot, connection, keepalive);
        let deadline = self.probing.deadline(now, slot, connection, keepalive);
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.probing.advance(now, id, keepalive, ops);
        }
        self.set_timer(now, slot);
    }

    /// Sets the timer of a slot to the next moment at which its connection has to be looked at.
    fn set_timer(&mut self, now: Timestamp, slot: u32) {
        let (connection, keepalive) = (&self.slots[slot as usize], self.keepalive());
        let deadline = connection.deadline(&self.resources, now);
        let probe = self.probing.deadline(now, slot, connection, keepalive);
        if let Some(next) = deadline.into_iter().chain(probe).min() {
            self.wheel.catch_up(now);
            self.wheel.set(slot, next);
        }
    }

    /// Slots that a turn visits at most, of all.
    fn sweep(&self) -> usize {
        self.resources.parameters.sweep_slots_max
    }

    /// How silent peers are probed. During a handover none is.
    fn keepalive(&self) -> Option<Keepalive> {
        let keepalive = self.resources.parameters.runtime_limits.keepalive;
        keepalive.filter(|_| !self.resources.quiescing)
    }

    fn send_probes(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let keepalive = self.keepalive();
        let Some(mut left) = self.probing.begin_burst(now, keepalive) else { return };
        // Entries whose connection has ended, or whose peer has sent something, are examined in
        // vain. Their number is bounded too.
        let mut looks = self.sweep();
        while left > 0
            && looks > 0
            && let Some(id) = self.probing.next_queued()
        {
            looks -= 1;
            let connection = &self.slots[id.slot() as usize];
            if connection.generation() == id.generation() {
                left -= u32::from(self.probing.send(now, id, connection, keepalive, ops));
                self.set_timer(now, id.slot());
            }
        }
        self.probing.end_burst(now, left > 0 && looks == 0);
    }

    fn on_probe_ended(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        heard: Timestamp,
        ops: &mut Vec<Op>,
    ) {
        let slot = id.slot();
        if self.slots[slot as usize].generation() != id.generation() {
            return;
        }
        if self.probing.on_ended(now, slot, heard, self.keepalive()) {
            self.with(now, id, ops, Connection::on_unresponsive);
        } else {
            self.set_timer(now, slot);
        }
    }

    fn can_serve_waiting(&self) -> bool {
        let pool = &self.resources.pool;
        !self.resources.waiting.is_empty() && (pool.free_small() > 0 || pool.is_withheld())
    }

    /// Arms as many waiting connections as buffers are free. Some of them may no longer want a
    /// buffer; the next turn, which does not wait, serves the rest. If buffers are withheld, up to
    /// `sweep` of them are relayed.
    fn serve_waiting(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let pool = &self.resources.pool;
        let mut free = match pool.is_withheld() {
            true => self.sweep() as u32,
            false => pool.free_small(),
        };
        while free > 0
            && let Some(id) = self.resources.waiting.pop_front()
        {
            if self.with_if_alive(now, id, ops, Connection::serve).is_some() {
                free -= 1;
            }
        }
    }

    fn capacity(&self) -> u64 {
        let most = u64::from(self.resources.parameters.runtime_limits.connections_max);
        most.saturating_sub(self.resources.stats.connections)
    }

    /// Whether there are fewer connections in all than workers, and none is for this worker.
    fn has_no_share(&self) -> bool {
        self.resources.parameters.runtime_limits.connections_max == 0
    }

    /// At the end of a drain, connections that wait for capacity are opened so that they can be
    /// ended; in a handover, so that they can be given away.
    fn has_capacity(&self) -> bool {
        self.drain.exceeds_capacity() || self.capacity() > 0
    }

    /// Opens connections that wait for capacity, in order, as long as there is some, and arms no
    /// more accepts than there is capacity left.
    pub(crate) fn use_capacity(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        while self.has_capacity()
            && let Some(id) = self.waiting_for_capacity.pop_front()
        {
            self.open(now, id, ops);
        }
        // Counts when this worker takes the last capacity of all workers: from then on connections
        // wait.
        let full = self.drain == Drain::No && self.capacity() == 0;
        self.resources.stats.full += u64::from(self.fullness.note(full));
        let accepting = match self.drain {
            Drain::No => Accepting::All,
            drain if drain.is_over() => Accepting::Nothing,
            drain if !drain.exceeds_capacity() && self.has_no_share() => Accepting::Elsewhere,
            _ => Accepting::Ending,
        };
        let capacity = if self.drain.exceeds_capacity() {
            // Else listeners that end would not be emptied, if no connection can close any more.
            u64::MAX
        } else if self.waiting_for_capacity.is_empty() {
            self.capacity()
        } else {
            0
        };
        let mut listeners = core::mem::take(&mut self.listeners);
        let take_slot = |listener| {
            let id = self.take_slot();
            self.connection(id).reserve(listener);
            id
        };
        listeners.arm(accepting, capacity, take_slot, ops);
        self.listeners = listeners;
    }

    /// Judges an accepted connection: it is opened, waits for capacity, or is closed at once.
    fn on_accepted(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        peer: PeerAddr,
        backlog: Expectation,
        ops: &mut Vec<Op>,
    ) {
        let listener = self.accept_ended(id);
        self.listeners.on_accepted(listener, backlog);
        self.resources.traffic(listener).accepted += 1;
        match self.judge_accepted(now, id, listener, peer) {
            Ok(()) if self.has_capacity() => self.open(now, id, ops),
            Ok(()) => {
                self.connection(id).wait_for_capacity();
                self.waiting_for_capacity.push_back(id);
            }
            Err(reason) => {
                self.resources.traffic(listener).refused[reason as usize] += 1;
                ops.push(Op::Close { connection: id });
                self.release_slot(id);
            }
        }
    }

    /// The listener whose accept had this id.
    fn accept_ended(&mut self, id: ConnectionId) -> ListenerId {
        let connection = self.connection(id);
        assert_eq!(connection.phase(), Phase::Accepting, "{id:?} is not an accept");
        connection.listener()
    }

    fn release_slot(&mut self, id: ConnectionId) {
        self.connection(id).release();
        self.free.push(id.slot());
    }

    fn open(&mut self, now: Timestamp, id: ConnectionId, ops: &mut Vec<Op>) {
        self.resources.stats.connections += 1;
        self.probing.begin_silence(now, id.slot(), self.keepalive());
        let drain = self.drain;
        self.with(now, id, ops, |connection, context| {
            connection.open(context);
            match drain {
                Drain::No
                | Drain::Waiting { .. }
                | Drain::Quiescing { .. }
                | Drain::QuiesceOverdue { .. }
                | Drain::Released => {}
                Drain::Ending { .. } => connection.on_drain_deadline(context),
                Drain::Over { .. } => connection.on_drain_end(context),
            }
        });
    }

    /// A free slot: the id of its next connection.
    fn take_slot(&mut self) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            let limits = &self.resources.parameters.runtime_limits;
            let most = limits.connections_max.max(self.imported) as usize;
            let most = most + usize::from(self.resources.parameters.listeners);
            let exceeds = self.drain.exceeds_capacity();
            assert!(exceeds || self.slots.len() < most, "more slots than capacity and listeners");
            self.slots.push(Connection::free());
            self.slots.len() as u32 - 1
        });
        self.id_of(slot as usize)
    }

    /// The id of the present connection of a slot.
    fn id_of(&self, slot: usize) -> ConnectionId {
        ConnectionId::new(slot as u32, self.slots[slot].generation())
    }

    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        let connection = &mut self.slots[id.slot() as usize];
        assert_eq!(connection.generation(), id.generation(), "{id:?} is gone");
        connection
    }

    fn with_if_alive<R>(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        ops: &mut Vec<Op>,
        act: impl FnOnce(&mut Connection, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let alive = self.slots[id.slot() as usize].generation() == id.generation();
        alive.then(|| self.with(now, id, ops, act))
    }

    /// Calls `act` on a connection, and then updates the server by the new state of the connection:
    /// whether it has closed, and which timeout runs.
    fn with<R>(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        ops: &mut Vec<Op>,
        act: impl FnOnce(&mut Connection, &mut Context<'_>) -> R,
    ) -> R {
        let connection = &mut self.slots[id.slot() as usize];
        assert_eq!(connection.generation(), id.generation(), "{id:?} is gone");
        let (listener, timeout) = (connection.listener(), connection.timeout());
        let resources = &mut self.resources;
        let outcome = act(connection, &mut Context { id, listener, now, resources, ops });
        if connection.generation() != id.generation() {
            self.on_closed(now, id);
        } else if connection.timeout() != timeout {
            self.set_timer(now, id.slot());
        }
        outcome
    }

    fn on_closed(&mut self, now: Timestamp, id: ConnectionId) {
        self.admission.leave(now, id.slot());
        self.wheel.clear(id.slot());
        self.probing.forget(id.slot());
        self.free.push(id.slot());
        self.resources.stats.connections -= 1;
        self.listeners.on_closed();
    }
}

#[cfg(test)]
impl Server {
    /// A turn without events.
    pub(crate) fn tick(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        self.on_time(now, ops);
        self.listeners.end_turn();
    }
}
