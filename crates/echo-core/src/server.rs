//! The server: slots, listeners, places, timers. One entry, [`Server::handle`].
//!
//! It hands each event to the [`Connection`] it concerns and looks after what connections share:
//! who gets the next place, who waits for a buffer, when accepting pauses, when the drain is over.

mod arming;
mod drain;
mod entrance;
mod pause;
#[cfg(test)]
mod probes;
mod probing;
#[cfg(test)]
mod reconfigure;

use std::collections::VecDeque;
use std::sync::Arc;

use self::arming::Arming;
use self::drain::Drain;
use self::pause::Pause;
use self::probing::Probing;
use super::admission::Admission;
use super::connection::{Connection, Phase};
use super::fullness;
use super::limits;
use super::listener::Listener;
use super::op::{
    AcceptError, BufferId, ConnectionId, Event, ListenerId, Op, SizeClass, Timestamp, TransferState,
};
use super::resources::{Context, Resources};
pub use super::resources::{Keepalive, Parameters, RuntimeLimits};
pub use super::stats::{CloseReason, RefuseReason, Stats, Traffic};
use super::timer::Wheel;

/// What every connection is made to do.
type Act = fn(&mut Connection, &mut Context<'_>);

/// The core of one worker.
pub struct Server {
    resources: Resources,
    slots: Vec<Connection>,
    free: Vec<u32>,
    listeners: Vec<Listener>,
    /// Accepted connections without a place, first come first served.
    parked: VecDeque<ConnectionId>,
    admission: Admission,
    wheel: Wheel,
    pause: Pause,
    probing: Probing,
    drain: Drain,
    arming: Arming,
    /// Slots given to connections of the process before us: there may be more of them than places.
    inherited: u32,
    /// Whether all places of this worker were taken when listeners were last looked at.
    fullness: fullness::Part,
    /// After a change of the limits: the timers of the slots below are right again.
    retimed: Option<usize>,
}

mod audit;
mod handover;

impl Server {
    /// A server quiescent. Handle [`Event::Started`] to arm its listeners.
    #[must_use]
    pub fn new(parameters: Parameters) -> Self {
        assert!(parameters.buffers[SizeClass::Small.index()] > 0, "an echo needs a buffer");
        assert!(parameters.buffer_sizes[0] <= parameters.buffer_sizes[1], "small, then large");
        Self {
            // Reserved, so that growing leaves no copies behind: address space until it is used.
            slots: Vec::with_capacity(parameters.runtime_limits.connections_max as usize),
            free: Vec::new(),
            listeners: vec![Listener::Off; usize::from(parameters.listeners)],
            parked: VecDeque::new(),
            admission: Admission::new(
                Arc::clone(&parameters.runtime_limits.rules),
                Arc::clone(&parameters.limiter),
            ),
            wheel: Wheel::new(
                Timestamp(0),
                parameters.tick_ms(),
                parameters.runtime_limits.connections_max,
            ),
            pause: Pause::default(),
            probing: Probing::new(parameters.runtime_limits.connections_max),
            drain: Drain::No,
            arming: Arming::new(parameters.listeners),
            inherited: 0,
            fullness: fullness::Part::new(Arc::clone(&parameters.fullness)),
            retimed: None,
            resources: Resources::new(parameters),
        }
    }

    /// What has been counted, and how things stand now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let undecided = self.admission.undecided.len();
        let mut traffic = Traffic::default();
        for listener in self.listener_traffic() {
            traffic.add(listener);
        }
        Stats {
            traffic,
            buffers_lent: u64::from(self.resources.pool.lent_total()),
            parked: (self.parked.len() + undecided) as u64,
            ..self.resources.stats.clone()
        }
    }

    /// What the connections of each listener did, in the order of their [`ListenerId`].
    #[must_use]
    pub fn listener_traffic(&self) -> &[Traffic] {
        &self.resources.listeners
    }

    /// To be called before the events of a turn are handled: when they were fetched from the
    /// kernel, in microseconds since an arbitrary start, and how often its completion queue has
    /// overflowed. Only what is counted depends on it.
    pub fn observe(&mut self, clock_us: u64, overflows: u64) {
        self.resources.clock_us = clock_us;
        self.pause.begin_turn(Timestamp(clock_us / 1_000));
        self.resources.stats.completion_overflows = overflows;
    }

    /// When to send [`Event::TimePassed`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let at_once = self.retimed.is_some() || self.admission.has_unfinished();
        if at_once || self.arming.standing_back || self.can_serve_waiting() {
            return Some(Timestamp(0));
        }
        let mut earliest = self.pause.end().or_else(|| self.wheel.deadline());
        let mut consider = |at: Timestamp| earliest = Some(earliest.map_or(at, |it| it.min(at)));
        if let Some(&(at, _)) = self.resources.retries.front() {
            consider(at);
        }
        for listener in &self.listeners {
            if let Listener::BackingOff(until) = *listener {
                consider(until);
            }
        }
        if let Some(at) = self.drain_deadline() {
            consider(at);
        }
        if let Some(at) = self.probing.deadline() {
            consider(at);
        }
        earliest
    }

    /// Takes in one event and appends what is to be done about it to `ops`, in order.
    ///
    /// # Panics
    /// If the event breaks the contract of [`super::op`]: for example, bytes for a connection that
    /// has been closed.
    // Inlined, so that an event of an echo is read where it lies.
    #[inline]
    pub fn handle(&mut self, now: Timestamp, event: Event, ops: &mut Vec<Op>) {
        // An echo is nobody else's affair unless it is a connection's last act, so places and
        // listeners are not looked at for it (86 instead of 95 ns of our own code an echo).
        let connections = self.resources.stats.connections;
        match event {
            Event::Received { connection, buffer, length, armed, more } => {
                self.on_received(now, connection, (buffer, length), armed, more, ops);
            }
            Event::Sent { connection, length } => self.on_sent(now, connection, length, ops),
            Event::Started
            | Event::Accepted { .. }
            | Event::AcceptFailed { .. }
            | Event::ReceiveEnded { .. }
            | Event::Relayed { .. }
            | Event::SentSpilled { .. }
            | Event::SendFailed { .. }
            | Event::ProbeEnded { .. }
            | Event::TimePassed
            | Event::ListenerEnding { .. }
            | Event::DrainStarted { .. }
            | Event::HandOverStarted { .. }
            | Event::Imported { .. } => return self.handle_no_echo(now, event, ops),
        }
        if self.resources.stats.connections != connections {
            self.use_places(now, ops);
        }
    }

    fn handle_no_echo(&mut self, now: Timestamp, event: Event, ops: &mut Vec<Op>) {
        match event {
            Event::Received { .. } | Event::Sent { .. } => unreachable!("{event:?} is an echo's"),
            Event::Started => self.admission.announce(ops),
            Event::Accepted { connection, source } => {
                self.on_accepted(now, connection, source, ops);
            }
            Event::AcceptFailed { connection, error } => {
                self.on_accept_failed(now, connection, error, ops);
            }
            Event::ReceiveEnded { connection, reason } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_receive_ended(context, reason);
                });
            }
            Event::Relayed { connection, length, next } => {
                self.with(now, connection, ops, |connection, context| {
                    connection.on_relayed(context, length, next);
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
            Event::TimePassed => self.on_time_passed(now, ops),
            Event::ListenerEnding { listener } => self.end_listener(listener),
            Event::DrainStarted { deadline } => {
                if matches!(self.drain, Drain::No | Drain::Released) {
                    self.drain = Drain::Waiting { deadline };
                }
            }
            Event::HandOverStarted { deadline } => self.on_hand_over_started(deadline),
            Event::Imported { connection, source, transfer } => {
                self.admission.count_imported(now, connection, source);
                self.on_imported(now, connection, transfer, ops)
            }
        }
        self.use_places(now, ops);
        if event == Event::TimePassed {
            // Accepts that are armed from here on are of another turn.
            self.arming.this_turn = 0;
        }
    }

    /// From `now` on `runtime_limits` is what counts, also for the connections that are open.
    /// Nobody is ended because a limit sank below what is in use; whose time is up by the new
    /// timeouts is ended in the next turns, so many in each that none takes long.
    pub fn reconfigure(&mut self, now: Timestamp, runtime_limits: RuntimeLimits) {
        // Reserved in one step, as at the start.
        let more = (runtime_limits.connections_max as usize).saturating_sub(self.slots.len());
        self.slots.reserve_exact(more);
        self.admission.change(Arc::clone(&runtime_limits.rules));
        if runtime_limits.bytes_max.is_none() {
            self.resources.received = Vec::new();
        }
        self.resources.parameters.runtime_limits = runtime_limits;
        self.wheel.set_tick(now, self.resources.parameters.tick_ms());
        self.retimed = Some(0);
    }

    fn on_accept_failed(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        error: AcceptError,
        ops: &mut Vec<Op>,
    ) {
        let listener = self.accept_ended(id);
        let index = usize::from(listener.0);
        self.resources.stats.count_accept_error(error);
        let aborts = &mut self.arming.aborts[index];
        *aborts = if error == AcceptError::Aborted { *aborts + 1 } else { 0 };
        self.listeners[index] = match error {
            AcceptError::Canceled => Listener::Off,
            AcceptError::Aborted if *aborts < limits::ACCEPT_ABORTS_MAX => Listener::Off,
            AcceptError::Nobody if self.arming.ending[index] => {
                ops.push(Op::CloseListener { listener });
                Listener::Ended
            }
            // Another worker has heard earlier than we that the listener ends.
            AcceptError::Nobody
            | AcceptError::Aborted
            | AcceptError::ProcessFiles
            | AcceptError::SystemFiles
            | AcceptError::Memory
            | AcceptError::Unexpected(_) => {
                *aborts = 0;
                Listener::BackingOff(now.plus(limits::ACCEPT_BACKOFF_MS))
            }
        };
        self.connection(id).release();
        self.free.push(id.slot());
    }

    /// The listener whose accept had this name.
    fn accept_ended(&mut self, id: ConnectionId) -> ListenerId {
        let connection = self.connection(id);
        let phase = connection.phase();
        assert_eq!(phase, Phase::Accepting, "{id:?} is no accept");
        let listener = connection.listener();
        self.arming.this_turn = self.arming.this_turn.saturating_sub(1);
        listener
    }

    fn on_received(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        (buffer, length): (BufferId, u32),
        armed: bool,
        more: bool,
        ops: &mut Vec<Op>,
    ) {
        self.with(now, id, ops, |connection, context| {
            connection.on_received(context, buffer, length, armed, more);
        });
    }

    fn on_sent(&mut self, now: Timestamp, id: ConnectionId, length: u32, ops: &mut Vec<Op>) {
        self.with(now, id, ops, |connection, context| connection.on_sent(context, length));
    }

    fn on_time_passed(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        self.admission.announce(ops);
        if self.admission.has_unfinished() {
            self.decide_undecided(now, ops);
        }
        self.serve_waiting(now, ops);
        while let Some(&(at, id)) = self.resources.retries.front()
            && at <= now
        {
            self.resources.retries.pop_front();
            self.with_if_alive(now, id, ops, Connection::retry);
        }
        for listener in &mut self.listeners {
            if let Listener::BackingOff(until) = *listener
                && until <= now
            {
                *listener = Listener::Off;
            }
        }
        self.expire(now, ops);
        self.send_probes(now, ops);
        self.advance_retiming(now, ops);
        self.advance_drain(now, ops);
    }

    /// Ends those whose time is up. What is left goes off in the next turn, at once: the deadline
    /// has passed.
    fn expire(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        if self.pause.is_over(now, self.wheel.deadline()) {
            for _ in 0..limits::SWEEP_SLOTS_MAX {
                let Some(slot) = self.wheel.expired(now) else { break };
                self.on_timer(now, slot, ops);
            }
        }
    }

    /// Sets the next timers by the present limits, or ends whose time is up by it.
    fn advance_retiming(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let Some(from) = self.retimed else { return };
        let to = self.slots.len().min(from + limits::SWEEP_SLOTS_MAX);
        for slot in from..to {
            self.on_timer(now, slot as u32, ops);
        }
        self.retimed = (to < self.slots.len()).then_some(to);
    }

    fn on_timer(&mut self, now: Timestamp, slot: u32, ops: &mut Vec<Op>) {
        let connection = &self.slots[slot as usize];
        let id = ConnectionId::new(slot, connection.generation());
        if connection.due(&self.resources, now).is_some_and(|due| due <= now) {
            return self.with(now, id, ops, |connection, context| {
                connection.on_due(context);
                context.timer_changed = true;
            });
        }
        self.note_last_byte(now, slot);
        if self.probe_due(now, slot).is_some_and(|due| due <= now) {
            self.advance_probe(now, id, ops);
        }
        if let Some(due) = self.next_timer(now, slot) {
            self.wheel.set(slot, due);
        }
    }

    fn can_serve_waiting(&self) -> bool {
        let pool = &self.resources.pool;
        !self.resources.waiting.is_empty()
            && (pool.home(SizeClass::Small) > 0 || pool.is_withheld())
    }

    /// Arms as many of those who wait for a buffer as buffers are at home. They may be fewer than
    /// we think, or the line may hold connections that turn out to have nothing to say: then the
    /// next turn, at once, serves the next in line. If buffers are withheld, all are relayed.
    fn serve_waiting(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        let pool = &self.resources.pool;
        let mut homes = match pool.is_withheld() {
            true => limits::SWEEP_SLOTS_MAX as u32,
            false => pool.home(SizeClass::Small),
        };
        while homes > 0
            && let Some(id) = self.resources.waiting.pop_front()
        {
            if self.with_if_alive(now, id, ops, Connection::serve) {
                homes -= 1;
            }
        }
    }

    fn has_place(&self) -> bool {
        let over = matches!(self.drain, Drain::Ending { .. } | Drain::Over { .. });
        over || self.free_places() > 0
    }

    fn free_places(&self) -> u64 {
        let most = u64::from(self.resources.parameters.runtime_limits.connections_max);
        most.saturating_sub(self.resources.stats.connections)
    }

    /// Gives places away that may have become free, and takes in no more than there are.
    fn use_places(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        self.fill_places(now, ops);
        self.arm_listeners(ops);
    }

    /// Gives free places to the connections that are parked, in order.
    fn fill_places(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        while self.has_place()
            && let Some(id) = self.parked.pop_front()
        {
            self.open(now, id, ops);
        }
    }

    fn open(&mut self, now: Timestamp, id: ConnectionId, ops: &mut Vec<Op>) {
        self.resources.stats.connections += 1;
        self.begin_silence(now, id.slot());
        let drain = self.drain;
        self.with(now, id, ops, |connection, context| {
            connection.open(context);
            context.timer_changed = true;
            match drain {
                Drain::No
                | Drain::Waiting { .. }
                | Drain::Freezing { .. }
                | Drain::Overdue { .. }
                | Drain::Released => {}
                Drain::Ending { .. } => connection.on_drain_deadline(context),
                Drain::Over { .. } => connection.on_drain_end(context),
            }
        });
    }

    /// A free slot, by the name of its next tenant.
    fn take_slot(&mut self) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            let places =
                self.resources.parameters.runtime_limits.connections_max.max(self.inherited);
            let most = places as usize + self.listeners.len();
            assert!(self.slots.len() < most, "more slots than places and listeners");
            self.slots.push(Connection::free());
            self.slots.len() as u32 - 1
        });
        ConnectionId::new(slot, self.slots[slot as usize].generation())
    }

    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        let connection = &mut self.slots[id.slot() as usize];
        assert_eq!(connection.generation(), id.generation(), "{id:?} is gone");
        connection
    }

    fn with_if_alive(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        ops: &mut Vec<Op>,
        act: Act,
    ) -> bool {
        let alive = self.slots[id.slot() as usize].generation() == id.generation();
        if alive {
            self.with(now, id, ops, act);
        }
        alive
    }

    /// Lets a connection act, and then does what its act means for the others.
    fn with(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        ops: &mut Vec<Op>,
        act: impl FnOnce(&mut Connection, &mut Context<'_>),
    ) {
        let connection = &mut self.slots[id.slot() as usize];
        assert_eq!(connection.generation(), id.generation(), "{id:?} is gone");
        let resources = &mut self.resources;
        let mut context = Context { id, now, resources, ops, closed: false, timer_changed: false };
        act(connection, &mut context);
        let Context { closed, timer_changed, .. } = context;
        if closed {
            self.on_closed(now, id);
        } else if timer_changed && let Some(due) = self.next_timer(now, id.slot()) {
            self.wheel.catch_up(now);
            self.wheel.set(id.slot(), due);
        }
    }

    fn on_closed(&mut self, now: Timestamp, id: ConnectionId) {
        self.admission.leave(now, id.slot());
        self.wheel.clear(id.slot());
        self.probing.forget(id.slot());
        self.free.push(id.slot());
        self.resources.stats.connections -= 1;
        for listener in &mut self.listeners {
            if let Listener::BackingOff(_) = listener {
                *listener = Listener::Off;
            }
        }
    }
}
