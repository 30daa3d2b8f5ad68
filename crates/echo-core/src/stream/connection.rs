//! One connection: a state machine.
//!
//! An event only changes the state: the [`Phase`] and the states of receive ([`Inbound`]) and send
//! ([`Outbound`]). The next operations are then derived from the state in one place,
//! `Connection::advance`. No event handler sends, arms or closes by itself.
//!
//! | phase | bytes come | end of stream | send done | peer dead | deadline |
//! |---|---|---|---|---|---|
//! | `Preface` | header | `Closing`, or `Refusing` | impossible | `Closing` | `Refusing` |
//! | `Open` | queue | `HalfClosed` | next | `Closing` | idle, old: `Flushing`; stalled: `Closing` |
//! | `HalfClosed` | impossible | impossible | next, or `Closing` | `Closing` | `Closing` |
//! | `Flushing` | drop | `HalfClosed` | next, or FIN, `Lingering` | `Closing` | `Closing` |
//! | `Lingering` | drop | `Closing` | impossible | `Closing` | `Closing` |
//! | `Closing`, `Refusing` | drop | join | join | join | impossible |
//!
//! An open connection that reaches its byte limit is `Flushing`, too. So is a connection that is
//! sent an identity and nothing else (`identity`).
//!
//! `Free`, `Accepting` and `WaitingForCapacity` have no bytes: the first two have no socket, the
//! third has one that is not received from.
//!
//! *Join*: a dying connection is closed by its last completion. An earlier close(2) would neither
//! end an armed receive nor send FIN, because in Linux the request holds a reference to the file.

use super::inbound::{Inbound, Receive, Request};
use super::outbound::{Outbound, Pending, Progress, Send};
use super::phase::Phase;
use super::resources::{Context, Resources};
use super::timeouts::{Timeout, Timeouts};
use crate::id::{BufferId, ConnectionId, ListenerId, SizeClass, Timestamp};
use crate::limits;
use crate::op::{Expectation, Op, PrefaceProgress, Shutdown, TransferState, When};
use crate::reason::{CloseReason, ConnectionError, ReceiveEnd, RefuseReason, SendError};

#[cfg(test)]
mod cells;
mod identity;
mod invariants;
mod preface;

/// ENOMEM: connections that are lost because the system has no memory are counted under this errno,
/// see errno(3).
pub(crate) const ENOMEM: i32 = 12;

/// One slot. With its timer (12 bytes) and socket (8 bytes) it is a cache line.
#[derive(Debug)]
pub(crate) struct Connection {
    generation: u32,
    timeouts: Timeouts,
    phase: Phase,
    /// The listener that it came from, or is to come from.
    listener: ListenerId,
    outbound: Outbound,
    inbound: Inbound,
}

const _: () = assert!(size_of::<Connection>() <= 44);

impl Connection {
    /// A slot that has not been used yet.
    #[must_use]
    pub(crate) fn free() -> Self {
        Self {
            generation: 0,
            timeouts: Timeouts::default(),
            phase: Phase::Free,
            listener: ListenerId(0),
            outbound: Outbound::default(),
            inbound: Inbound::default(),
        }
    }

    /// What the slot is used for.
    #[must_use]
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The listener that it came from, or on which an accept for it is armed.
    #[must_use]
    pub(crate) fn listener(&self) -> ListenerId {
        self.listener
    }

    /// The generation of the present connection of the slot.
    #[must_use]
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether a one-shot receive into a small buffer is in flight.
    #[must_use]
    pub(crate) fn waits_for_one(&self) -> bool {
        self.receive() == Receive::Armed(Request::Once)
    }

    /// The state of the receive.
    #[must_use]
    pub(crate) fn receive(&self) -> Receive {
        self.inbound.receive()
    }

    /// Takes the slot for an accept.
    pub(crate) fn reserve(&mut self, listener: ListenerId) {
        assert_eq!(self.phase, Phase::Free);
        self.phase = Phase::Accepting;
        self.listener = listener;
    }

    /// Gives up the slot of an accept that failed, or of a connection that is refused.
    pub(crate) fn release(&mut self) {
        assert!(!self.phase.is_connection(), "{:?} has begun", self.phase);
        self.vacate();
    }

    /// The accepted connection has to wait for capacity.
    pub(crate) fn wait_for_capacity(&mut self) {
        assert!(self.phase == Phase::Accepting, "{:?} is not an accept", self.phase);
        self.phase = Phase::WaitingForCapacity;
    }

    /// There is capacity for the connection: starts it.
    pub(crate) fn open(&mut self, context: &mut Context) {
        let waits = matches!(self.phase, Phase::Accepting | Phase::WaitingForCapacity);
        assert!(waits, "{:?} cannot be opened", self.phase);
        let proxied = context.resources.parameters.proxies_of(self.listener).is_some();
        self.phase = if proxied { self.await_preface() } else { self.begin(context) };
        self.timeouts = Timeouts::begin(context.now);
        if context.resources.parameters.records.contains(&self.listener) {
            self.inbound = Inbound::with_records();
        }
        context.resources.set_received(context.id, 0);
        self.advance(context);
    }

    /// Bytes came.
    pub(crate) fn on_received(
        &mut self,
        context: &mut Context,
        buffer: BufferId,
        length: u32,
        armed: bool,
        rest: Expectation,
    ) {
        self.inbound.on_received(context, buffer, armed);
        let resources = &mut *context.resources;
        resources.pool.lend(buffer, length, resources.clock_us as u32);
        resources.count_received(self.listener, length, 1);
        match self.phase {
            Phase::Open => self.take_in(context, buffer, length, rest),
            Phase::Flushing(_) | Phase::Lingering(_) | Phase::Closing(_) | Phase::Refusing(_) => {
                // What is discarded counts towards the bulk of a turn like anything else.
                self.inbound.learn(context.resources, length, rest);
                context.drop_chunk(buffer);
            }
            Phase::Free
            | Phase::Accepting
            | Phase::WaitingForCapacity
            | Phase::Preface(_)
            | Phase::HalfClosed => unreachable!("no receive is armed in {:?}", self.phase),
        }
        self.advance(context);
    }

    /// Handles received bytes of an open connection. Bytes beyond the byte limit are dropped, as if
    /// they had arrived after the end that the limit causes.
    fn take_in(&mut self, context: &mut Context, buffer: BufferId, length: u32, rest: Expectation) {
        let resources = &mut *context.resources;
        self.timeouts.restart(context.now);
        self.inbound.learn(resources, length, rest);
        let left = resources.count_against_limit(context.id, length);
        let mut kept = length;
        if left <= u64::from(length) {
            kept = left as u32;
            self.phase = Phase::Flushing(CloseReason::ByteLimit);
            if kept == 0 {
                return context.drop_chunk(buffer);
            }
            resources.stats.bytes_dropped += u64::from(length - kept);
            resources.pool.shorten(buffer, kept);
        }
        self.outbound.push(context, buffer, kept);
    }

    /// The poll has found bytes, or the end.
    pub(crate) fn on_readable(&mut self, context: &mut Context) {
        self.inbound.on_readable();
        self.advance(context);
    }

    /// The receive, relay or poll ended without bytes.
    pub(crate) fn on_receive_ended(&mut self, context: &mut Context, reason: ReceiveEnd) {
        let ended = self.inbound.end(context);
        self.note_health_check(context, reason);
        let closing = self.phase.is_closing();
        match reason {
            ReceiveEnd::EndOfStream => self.on_end_of_stream(context),
            ReceiveEnd::NoBuffer => self.inbound.on_no_buffer(context, ended, closing),
            ReceiveEnd::Memory if closing => {}
            ReceiveEnd::Memory => self.inbound.retry_later(context),
            ReceiveEnd::Failed(error) => self.fail(context, error),
            ReceiveEnd::Stopped => {
                let wanted = self.wants_bytes(context.resources);
                self.inbound.on_stopped(context, ended, wanted);
            }
        }
        self.advance(context);
    }

    fn on_end_of_stream(&mut self, context: &mut Context) {
        self.phase = match self.phase {
            Phase::Preface(PrefaceProgress::Awaited) => Phase::Closing(CloseReason::Finished),
            Phase::Preface(PrefaceProgress::Begun) => {
                return self.refuse_header(context, RefuseReason::InvalidHeader);
            }
            Phase::Open | Phase::Flushing(_) => Phase::HalfClosed,
            Phase::Lingering(reason) | Phase::Closing(reason) => Phase::Closing(reason),
            Phase::Refusing(reason) => Phase::Refusing(reason),
            Phase::Free | Phase::Accepting | Phase::WaitingForCapacity | Phase::HalfClosed => {
                unreachable!("no receive is armed in {:?}", self.phase)
            }
        };
    }

    /// `length` bytes were echoed or dropped without a buffer of ours. The next relay should wait
    /// for `next`.
    pub(crate) fn on_relayed(
        &mut self,
        context: &mut Context,
        length: u32,
        chunks: u32,
        next: When,
    ) {
        let was = self.inbound.end(context);
        if chunks > 0 {
            context.resources.count_received(self.listener, length, chunks);
        }
        match was {
            Receive::Armed(Request::Relay(waited)) => {
                self.on_echoed(context, (length, chunks), waited, next);
            }
            Receive::Stopping(Request::Relay(_)) => {
                self.on_echoed(context, (length, chunks), When::Now, next);
            }
            // Our FIN is sent. The linger timeout runs, regardless of what the peer still sends.
            Receive::Armed(Request::Discard) | Receive::Stopping(Request::Discard) => {
                context.resources.stats.bytes_dropped += u64::from(length);
                self.inbound.expect(next);
            }
            _ => unreachable!("no relay was in flight: {was:?}"),
        }
        self.advance(context);
    }

    fn on_echoed(
        &mut self,
        context: &mut Context,
        (length, chunks): (u32, u32),
        waited: When,
        next: When,
    ) {
        let resources = &mut *context.resources;
        if chunks > 0 {
            self.timeouts.restart(context.now);
            let traffic = resources.traffic(self.listener);
            traffic.bytes_out += u64::from(length);
            traffic.chunks_out += u64::from(chunks);
            let left = resources.count_against_limit(context.id, length);
            // An empty message reaches no limit, not even one that a reload has set below the bytes
            // received so far.
            if length > 0 && self.phase == Phase::Open && left <= u64::from(length) {
                self.phase = Phase::Flushing(CloseReason::ByteLimit);
            }
        }
        if next == When::Writable && waited != When::Writable {
            // From here on the peer has to act.
            self.timeouts.restart(context.now);
        }
        self.inbound.on_echoed(context, self.phase, chunks, waited, next);
    }

    /// The send took the first `length` bytes.
    pub(crate) fn on_sent(&mut self, context: &mut Context, length: u32) {
        let progress = self.outbound.on_sent(context, length, self.phase.is_closing());
        self.note(context, progress);
        self.advance(context);
    }

    /// Spilled bytes were sent.
    pub(crate) fn on_spilled_sent(&mut self, context: &mut Context, length: u32) {
        self.outbound.on_spilled_sent(context, length);
        self.timeouts.restart(context.now);
        self.advance(context);
    }

    /// The send took nothing.
    pub(crate) fn on_send_failed(&mut self, context: &mut Context, error: SendError) {
        match self.outbound.on_failed(context, error, self.phase.is_closing()) {
            Ok(progress) => self.note(context, progress),
            Err(error) => self.fail(context, error),
        }
        self.advance(context);
    }

    fn note(&mut self, context: &Context, progress: Progress) {
        match progress {
            Progress::Unchanged => {}
            Progress::Moved => self.timeouts.restart(context.now),
            Progress::Stalled => {
                self.timeouts.restart(context.now);
                self.inbound.on_stall();
            }
        }
    }

    /// A small buffer may be free: arms the receive if the connection still waits for one.
    pub(crate) fn serve(&mut self, context: &mut Context) {
        if self.inbound.end_wait(Receive::Starved) {
            // Timeouts exclude the time that the connection waited for our buffer.
            self.timeouts.restart(context.now);
            if self.wants_bytes(context.resources) {
                // Deferred, it might find the buffer gone.
                let defers = false;
                self.inbound.arm(context, self.phase, defers);
            }
        }
    }

    /// The expected size of its next receive into a large buffer.
    pub(crate) fn bulk_bytes(&self, resources: &Resources) -> u32 {
        self.inbound.bulk_bytes(resources)
    }

    /// It is the first in the queue for a share of a turn's bulk. Returns whether the connection
    /// after it may be served too.
    pub(crate) fn serve_bulk(&mut self, context: &mut Context) -> bool {
        if self.receive() != Receive::BulkWaiting {
            return true;
        }
        let wanted = self.wants_bytes(context.resources);
        let served = self.inbound.serve_bulk(context, self.phase, wanted);
        if served {
            // Timeouts exclude the time that it waited for its share.
            self.timeouts.restart(context.now);
        }
        served
    }

    /// The kernel may have memory again.
    pub(crate) fn retry(&mut self, context: &mut Context) {
        let receives = self.inbound.end_wait(Receive::Retrying);
        let sends = self.outbound.end_retry();
        if receives || sends {
            // Timeouts exclude the time that the connection waited for the kernel's memory.
            self.timeouts.restart(context.now);
        }
        self.advance(context);
    }

    /// Submits a receive that was deferred. False if it is not wanted any more.
    pub(crate) fn submit_deferred(&mut self, context: &mut Context) -> bool {
        let wanted = self.wants_bytes(context.resources);
        self.inbound.submit_deferred(context, wanted)
    }

    /// Returns the large buffer of a receive that waits for bulk.
    pub(crate) fn revoke(&mut self, context: &mut Context) {
        self.inbound.revoke(context);
    }

    /// The peer leaves every probe unanswered.
    pub(crate) fn on_unresponsive(&mut self, context: &mut Context) {
        self.fail(context, ConnectionError::Unreachable);
        self.advance(context);
    }

    /// The drain deadline has passed: echo the bytes received until now, then send FIN.
    pub(crate) fn on_drain_deadline(&mut self, context: &mut Context) {
        if matches!(self.phase, Phase::Preface(_) | Phase::Open) {
            self.phase = Phase::Flushing(CloseReason::Drained);
            self.advance(context);
        }
    }

    /// The drain is over, regardless of what the peer still does.
    pub(crate) fn on_drain_end(&mut self, context: &mut Context) {
        if self.phase.is_connection() {
            self.die(context, CloseReason::Drained);
            self.advance(context);
        }
    }

    /// Submits the operations that follow from the present state. This is the only place that
    /// starts a send, arms a receive or closes.
    fn advance(&mut self, context: &mut Context) {
        if self.outbound.is_unawaited()
            && (self.outbound.queued() > 0 || self.needs_completion(context.resources))
        {
            self.outbound.request_completion(context);
        }
        match self.phase {
            Phase::Free | Phase::Accepting | Phase::WaitingForCapacity => return,
            Phase::Closing(reason) => return self.join(context, reason),
            Phase::Refusing(reason) => return self.join_refused(context, reason),
            Phase::Preface(_) => self.advance_receive(context),
            Phase::Open => {
                self.advance_send(context);
                self.advance_receive(context);
            }
            Phase::HalfClosed => {
                if self.advance_send(context) == Pending::Nothing {
                    self.phase = Phase::Closing(CloseReason::Finished);
                    return self.join(context, CloseReason::Finished);
                }
            }
            Phase::Flushing(reason) => {
                // No byte may follow our FIN, so nothing is relayed any more.
                if self.inbound.is_relay() {
                    self.stop_receive(context);
                }
                let pending = self.advance_send(context);
                if pending == Pending::Nothing && !self.inbound.is_relay() {
                    context.ops.push(Op::Shutdown { connection: context.id, how: Shutdown::Write });
                    self.phase = Phase::Lingering(reason);
                    self.timeouts.restart(context.now);
                    self.advance_receive(context);
                }
            }
            Phase::Lingering(_) => self.advance_receive(context),
        }
        if context.resources.quiescing {
            self.withdraw(context);
        }
    }

    fn advance_send(&mut self, context: &mut Context) -> Pending {
        let needs_completion = self.needs_completion(context.resources);
        let pending = self.outbound.advance(context, needs_completion);
        if pending == Pending::Begun {
            // Counted now, because the completion may be omitted or arrive late.
            self.timeouts.restart(context.now);
        }
        pending
    }

    fn advance_receive(&mut self, context: &mut Context) {
        let wanted = self.wants_bytes(context.resources);
        self.inbound.advance(context, self.phase, wanted);
    }

    fn stop_receive(&mut self, context: &mut Context) {
        if self.inbound.stop(context) {
            // Until now its peer did not read, so the connection was not idle.
            self.timeouts.restart(context.now);
        }
    }

    /// Whether anything but the connection's next send waits for this send to complete.
    fn needs_completion(&self, resources: &Resources) -> bool {
        self.phase != Phase::Open
            || resources.quiescing
            || !resources.waiting.is_empty()
            || self.inbound.class() == SizeClass::Large
            || self.inbound.relays(self.phase, resources)
            || resources.pool.is_busy()
    }

    /// Whether a receive should be armed: a stalled connection catches up first.
    fn wants_bytes(&self, resources: &Resources) -> bool {
        if resources.quiescing || !self.phase.receives() {
            return false;
        }
        match (self.outbound.send(), self.inbound.class()) {
            (Send::Idle, _) => true,
            (Send::Trying { .. }, SizeClass::Small) => {
                self.outbound.queued() < limits::QUEUE_CHUNKS_MAX
                    && !self.inbound.relays(self.phase, resources)
            }
            // One large buffer per connection: few are used in turn, so they stay in the cache.
            (Send::Trying { .. }, SizeClass::Large) => false,
            (Send::Spilled { .. } | Send::Held { .. }, _) => false,
        }
    }

    fn fail(&mut self, context: &mut Context, error: ConnectionError) {
        context.resources.stats.count_connection_error(error);
        self.die(context, CloseReason::of(error));
    }

    /// Gives up on the peer. Queued chunks are dropped; shutdown(2) makes the operations in flight
    /// complete.
    fn die(&mut self, context: &mut Context, reason: CloseReason) {
        if self.phase.is_closing() {
            return;
        }
        self.phase = Phase::Closing(reason);
        self.inbound.give_up();
        self.outbound.drop_queue(context);
        if !self.is_quiescent() {
            context.ops.push(Op::Shutdown { connection: context.id, how: Shutdown::Both });
        }
    }

    /// Closes if the kernel holds no operation of it any more.
    fn join(&mut self, context: &mut Context, reason: CloseReason) {
        if !self.is_quiescent() {
            return;
        }
        self.outbound.drop_backlog(context);
        assert_eq!(self.outbound.send(), Send::Idle, "a dead connection keeps no bytes");
        assert_eq!(self.outbound.queued(), 0, "a dead connection keeps no buffers");
        let connection = context.id;
        context.ops.push(match reason {
            CloseReason::Finished
            | CloseReason::Idle
            | CloseReason::Lifetime
            | CloseReason::ByteLimit
            | CloseReason::Drained
            | CloseReason::Identified => Op::Close { connection },
            CloseReason::Reset
            | CloseReason::Unreachable
            | CloseReason::Stalled
            | CloseReason::MessageSize
            | CloseReason::Unexpected => Op::Abort { connection },
            CloseReason::HandedOver => unreachable!("there is no connection to close"),
        });
        context.resources.traffic(self.listener).closed[reason as usize] += 1;
        self.vacate();
    }

    /// The slot is free for the next connection.
    fn vacate(&mut self) {
        let generation = (self.generation + 1) & ConnectionId::GENERATION_MASK;
        *self = Self { generation, ..Self::free() };
    }
}

/// Timeouts.
impl Connection {
    /// Which timeout runs, if any does.
    #[must_use]
    pub(crate) fn timeout(&self) -> Option<Timeout> {
        match (self.phase, self.outbound.send()) {
            (Phase::Free | Phase::Accepting | Phase::WaitingForCapacity, _)
            | (Phase::Closing(_) | Phase::Refusing(_), _) => None,
            (Phase::Preface(_), _) => Some(Timeout::Preface),
            (Phase::Lingering(_), _) => Some(Timeout::Linger),
            (Phase::Open, Send::Idle | Send::Trying { .. }) if !self.inbound.is_relay_blocked() => {
                Some(Timeout::Idle)
            }
            (Phase::Open | Phase::HalfClosed | Phase::Flushing(_), _) => Some(Timeout::Stall),
        }
    }

    /// The moment of its deadline: the end of its lifetime, or of the running timeout if no byte
    /// moves until then.
    #[must_use]
    pub(crate) fn deadline(&self, resources: &Resources, now: Timestamp) -> Option<Timestamp> {
        let parameters = &resources.parameters;
        let limits = &parameters.runtime_limits;
        let lifetime = limits.lifetime.filter(|_| self.phase == Phase::Open);
        let timeout = self.timeout().and_then(|timeout| match timeout {
            // During a handover it is not received from, so it is not idle. The next process
            // decides.
            Timeout::Preface => Some(parameters.preface_timeout).filter(|_| !resources.quiescing),
            Timeout::Idle => limits.idle_timeout.filter(|_| !resources.quiescing),
            Timeout::Stall => limits.stall_timeout,
            Timeout::Linger => Some(parameters.linger_timeout),
        });
        let silence_ends = timeout.map(|timeout| {
            if self.inbound.is_short() || self.outbound.is_short() {
                // Timeouts exclude the time that it waits for memory of ours or of the kernel.
                now.plus(timeout)
            } else {
                self.timeouts.silence_ends(timeout, now)
            }
        });
        let life_ends = lifetime.map(|lifetime| self.timeouts.life_ends(lifetime, now));
        silence_ends.into_iter().chain(life_ends).min()
    }

    /// Whether its peer may be probed: no other timeout waits for it.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Open
            && self.timeout() == Some(Timeout::Idle)
            && !self.inbound.is_short()
    }

    /// When bytes last moved in either direction, rounded up.
    #[must_use]
    pub(crate) fn last_moved(&self, now: Timestamp) -> Timestamp {
        self.timeouts.last_moved(now)
    }

    /// Its deadline has passed.
    pub(crate) fn on_deadline(&mut self, context: &mut Context) {
        let lifetime = context.resources.parameters.runtime_limits.lifetime;
        let age_ms = self.timeouts.age_ms(context.now);
        let is_old = lifetime.is_some_and(|lifetime| age_ms >= lifetime);
        match (self.phase, self.timeout()) {
            (_, None) => unreachable!("{:?} has no timer", self.phase),
            (Phase::Lingering(reason), _) => self.die(context, reason),
            (_, Some(Timeout::Preface)) => self.refuse_header(context, RefuseReason::HeaderTimeout),
            // Stalled or not, bytes that were received are still echoed.
            (Phase::Open, _) if is_old => self.phase = Phase::Flushing(CloseReason::Lifetime),
            (_, Some(Timeout::Idle)) => self.phase = Phase::Flushing(CloseReason::Idle),
            (_, Some(Timeout::Stall)) => self.die(context, CloseReason::Stalled),
            (_, Some(Timeout::Linger)) => unreachable!("only `Lingering` lingers"),
        }
        self.advance(context);
    }
}

/// Handover. The kernel holds no operation of a quiescent connection. It consists only of its
/// socket, its spilled bytes, and a [`TransferState`]. Queued chunks are still sent, since a
/// try-send never waits. Bytes of them that the socket does not take are spilled as usual.
impl Connection {
    /// A handover begins: stops receiving, and cancels a send that waits.
    pub(crate) fn quiesce(&mut self, context: &mut Context) {
        if self.inbound.give_up() {
            // Timeouts exclude the time that it waited for memory of ours or of the kernel.
            self.timeouts.restart(context.now);
        }
        self.advance(context);
    }

    /// The deadline of the handover has passed: a connection that is not quiescent is ended.
    pub(crate) fn on_quiesce_deadline(&mut self, context: &mut Context) {
        if !self.is_quiescent() {
            self.die(context, CloseReason::Drained);
            self.advance(context);
        }
    }

    /// Whether the kernel holds no operation of it.
    #[must_use]
    pub(crate) fn is_quiescent(&self) -> bool {
        !self.inbound.is_with_kernel() && !self.outbound.is_with_kernel()
    }

    /// Cancels operations that would wait in the kernel. (For a dying connection, shutdown(2) has
    /// already completed all operations.)
    fn withdraw(&mut self, context: &mut Context) {
        self.stop_receive(context);
        self.outbound.stop(context);
        if !self.outbound.spill_held(context) {
            // Without memory for its bytes it cannot be handed over.
            self.fail(context, ConnectionError::Unexpected(ENOMEM));
            self.advance(context);
        }
    }

    /// Gives the connection away. The slot is free at once. None if it has no connection.
    pub(crate) fn export(&mut self, context: &mut Context) -> Option<TransferState> {
        let phase = self.phase.exported()?;
        assert!(self.is_quiescent(), "the kernel holds an operation of {:?}", context.id);
        let unsent = self.outbound.export(context);
        let listener = self.listener;
        let traffic = context.resources.traffic(listener);
        traffic.closed[CloseReason::HandedOver as usize] += 1;
        let now = context.now;
        let (quiet_ms, age_ms) = (self.timeouts.quiet_ms(now), self.timeouts.age_ms(now));
        let received = context.resources.received_by(context.id);
        let records = self.inbound.has_records();
        self.vacate();
        Some(TransferState { listener, records, phase, unsent, quiet_ms, age_ms, received })
    }

    /// Continues where the previous process stopped.
    pub(crate) fn import(&mut self, context: &mut Context, transfer: TransferState) {
        assert_eq!(self.phase, Phase::Free, "an imported connection takes a slot of its own");
        let TransferState { listener, records, phase, unsent, quiet_ms, age_ms, received } =
            transfer;
        context.resources.set_received(context.id, received);
        self.timeouts = Timeouts::imported(context.now, quiet_ms, age_ms);
        self.listener = listener;
        self.phase = Phase::imported(phase);
        self.inbound = match records {
            true => Inbound::with_records(),
            false => Inbound::imported(unsent),
        };
        assert!(unsent == 0 || !records, "messages are never owned");
        if let Phase::Preface(_) = self.phase {
            assert_eq!(unsent, 0, "nothing is echoed before the header is complete");
            self.inbound.begin_unjudged();
            // No process could read it meanwhile.
            self.timeouts.restart(context.now);
        }
        if let Phase::Lingering(_) = self.phase {
            assert_eq!(unsent, 0, "no byte follows our FIN");
        }
        self.outbound = Outbound::imported(context, unsent);
        self.advance(context);
    }
}

/// What the counts of a worker are made of.
impl Connection {
    /// Whether the peer does not read fast enough.
    #[must_use]
    pub(crate) fn is_stalled(&self) -> bool {
        self.has_backlog() || self.inbound.is_relay_blocked()
    }

    /// Whether bytes are spilled or held for it.
    #[must_use]
    pub(crate) fn has_backlog(&self) -> bool {
        self.outbound.has_backlog()
    }
}
