//! One connection: a state machine that never forgets a byte.
//!
//! An event only changes what is known ([`Phase`], [`Receive`], [`Send`], the queue); what to do
//! next is then derived from it in one place, `Connection::advance`. So no path can forget to
//! send, to arm or to close.
//!
//! | phase | bytes come | end of stream | send done | peer dead | time is up |
//! |---|---|---|---|---|---|
//! | `Open` | queue | `Finishing` | next | `Closing` | idle, old `Flushing`, stalled `Closing` |
//! | `Finishing` | impossible | impossible | next, or `Closing` | `Closing` | `Closing` |
//! | `Flushing` | drop | `Finishing` | next, or FIN, `Lingering` | `Closing` | `Closing` |
//! | `Lingering` | drop | `Closing` | impossible | `Closing` | `Closing` |
//! | `Closing` | drop | join | join | join | impossible |
//!
//! An open connection that reaches its byte limit is `Flushing`, too; `intake` takes in bytes,
//! `backlog` keeps what the peer does not take, `relay` echoes without keeping anything, `timeouts`
//! knows when time is up.
//!
//! `Free`, `Accepting` and `Parked` have no bytes: the first two have no socket, the third has one
//! that waits for a place and is not received from. *Join*: the last completion of a dying
//! connection closes it; close(2) before would neither end an armed receive nor be seen by the peer
//! (Linux: the request holds the file).

mod audit;
mod backlog;
mod handover;
mod intake;
mod measure;
mod relay;
mod stamp;
mod state;
mod timeouts;
mod waiting;

#[cfg(test)]
mod cells;

use stamp::Stamp;
pub use state::{Phase, Receive, Send, Step};

use super::limits;
use super::op::{
    BufferId, ConnectionError, ConnectionId, Expectation, ListenerId, Op, ReceiveEnd, ReceiveMode,
    SendError, Shutdown, SizeClass,
};
use super::pool::Queue;
use super::resources::{Context, Resources};
use super::stats::CloseReason;

/// One slot. With its timer (12 bytes) and socket (8 bytes) it is a cache line.
#[derive(Debug)]
pub struct Connection {
    generation: u32,
    /// When bytes last moved in either direction.
    progress: Stamp,
    /// When it was opened.
    opened: Stamp,
    phase: Phase,
    /// Where it came from, or is to come from.
    listener: ListenerId,
    send: Send,
    queue: Queue,
    receive: Receive,
    class: SizeClass,
    /// See `classify`.
    bulky_receives: u8,
    probation: u8,
    expectation: Expectation,
}

const _: () = assert!(size_of::<Connection>() <= 44);

impl Connection {
    /// A slot that nobody has used yet.
    #[must_use]
    pub fn free() -> Self {
        Self {
            generation: 0,
            progress: Stamp::default(),
            opened: Stamp::default(),
            phase: Phase::Free,
            listener: ListenerId(0),
            send: Send::Idle,
            queue: Queue::default(),
            receive: Receive::Off,
            class: SizeClass::Small,
            bulky_receives: 0,
            probation: 0,
            expectation: Expectation::Data,
        }
    }

    /// What the slot is used for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The listener it came from, or that an accept for it is armed on.
    #[must_use]
    pub fn listener(&self) -> ListenerId {
        self.listener
    }

    /// Which tenant this is.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Takes the slot for an accept.
    pub fn reserve(&mut self, listener: ListenerId) {
        assert_eq!(self.phase, Phase::Free);
        self.phase = Phase::Accepting;
        self.listener = listener;
    }

    /// Gives up the slot of an accept that failed, or of a connection that is refused.
    pub fn release(&mut self) {
        assert!(
            matches!(self.phase, Phase::Accepting | Phase::Parked),
            "{:?} has begun",
            self.phase
        );
        *self = Self { generation: next_generation(self.generation), ..Self::free() };
    }

    /// The accept brought a connection that has to wait: for a place, or for its verdict.
    pub fn park(&mut self) {
        assert!(self.phase == Phase::Accepting, "{:?} is no accept", self.phase);
        self.phase = Phase::Parked;
    }

    /// The connection has a place: start.
    pub fn open(&mut self, context: &mut Context) {
        assert!(
            matches!(self.phase, Phase::Accepting | Phase::Parked),
            "{:?} cannot be opened",
            self.phase
        );
        self.phase = Phase::Open;
        self.progress = Stamp::at(context.now);
        self.opened = Stamp::at(context.now);
        context.resources.forget_received(context.id);
        self.advance(context);
    }

    /// Bytes came.
    pub fn on_received(
        &mut self,
        context: &mut Context,
        buffer: BufferId,
        length: u32,
        armed: bool,
        more: bool,
    ) {
        let armed_before = matches!(self.receive, Receive::Armed(_) | Receive::Stopping);
        assert!(armed_before, "bytes without a receive: {:?}", self.receive);
        if !armed {
            self.receive = Receive::Off;
        }
        let resources = &mut *context.resources;
        resources.pool.lend(buffer, length, resources.clock_us as u32);
        resources.count_received(self.listener, length);
        match self.phase {
            Phase::Open => self.take_in(context, buffer, length, more),
            Phase::Flushing(_) | Phase::Lingering(_) | Phase::Closing(_) => {
                resources.stats.bytes_dropped += u64::from(length);
                context.recycle(buffer);
            }
            Phase::Free | Phase::Accepting | Phase::Parked | Phase::Finishing => {
                unreachable!("no receive is armed in {:?}", self.phase)
            }
        }
        self.advance(context);
    }

    /// The receive ended without bytes.
    pub fn on_receive_ended(&mut self, context: &mut Context, reason: ReceiveEnd) {
        assert!(self.receive.is_with_kernel(), "an end without a receive: {:?}", self.receive);
        let ended = self.receive_becomes(context, Receive::Off);
        let pooled = matches!(ended, Receive::Armed(_) | Receive::Stopping);
        assert!(pooled || reason != ReceiveEnd::NoBuffer, "{ended:?} needs no buffer");
        match reason {
            ReceiveEnd::EndOfStream => self.on_end_of_stream(),
            ReceiveEnd::NoBuffer => self.on_no_buffer(context, ended),
            // Waiting for readiness misses nothing: it finds what is there already.
            ReceiveEnd::Stopped => self.expectation = Expectation::Silence,
            ReceiveEnd::Memory => {
                if !matches!(self.phase, Phase::Closing(_)) {
                    self.receive = Receive::Retrying;
                    context.retry_later();
                }
            }
            ReceiveEnd::Failed(error) => self.fail(context, error),
        }
        self.advance(context);
    }

    fn on_end_of_stream(&mut self) {
        self.phase = match self.phase {
            Phase::Open | Phase::Flushing(_) => Phase::Finishing,
            Phase::Lingering(reason) | Phase::Closing(reason) => Phase::Closing(reason),
            Phase::Free | Phase::Accepting | Phase::Parked | Phase::Finishing => {
                unreachable!("no receive is armed in {:?}", self.phase)
            }
        };
    }

    fn on_no_buffer(&mut self, context: &mut Context, ended: Receive) {
        context.resources.stats.starved += 1;
        self.expectation = Expectation::Data;
        match (self.class, ended) {
            _ if matches!(self.phase, Phase::Closing(_)) => {}
            // What it waits for may be held for long: it is relayed instead.
            (SizeClass::Small, _) if context.resources.pool.is_withheld() => {}
            (SizeClass::Small, _) => self.stand_in_line(context),
            // Others use the large ones now. A small one serves this time; the next full one asks
            // for a large again.
            (SizeClass::Large, Receive::Armed(ReceiveMode::Once)) => self.class = SizeClass::Small,
            // It was a multishot, so a small buffer that lacked; a large one is wanted next.
            (SizeClass::Large, _) => {}
        }
    }

    /// The send took the first `length` bytes.
    pub fn on_sent(&mut self, context: &mut Context, length: u32) {
        let Send::Trying { buffer, length: asked, timed, .. } = self.send else {
            return self.on_held_sent(context, length);
        };
        assert!(length <= asked, "sent {length} of {asked} bytes");
        context.resources.count_sent(self.listener, length);
        self.send = Send::Idle;
        if let Phase::Closing(_) = self.phase {
            context.resources.stats.bytes_dropped += u64::from(asked - length);
            context.recycle(buffer);
        } else {
            let since_us = timed.then(|| context.resources.pool.filled_us(buffer));
            if length == asked {
                context.resources.count_echo(self.listener, since_us);
                context.recycle(buffer);
            } else {
                context.resources.pool.advance(buffer, length);
                self.stall(context, buffer, since_us);
            }
        }
        self.advance(context);
    }

    /// The send took nothing.
    pub fn on_send_failed(&mut self, context: &mut Context, error: SendError) {
        let held = self.send.is_with_kernel();
        assert!(held, "a send failed that was not under way: {:?}", self.send);
        match (error, &mut self.send) {
            (_, Send::Idle) => unreachable!("the kernel holds a send"),
            (SendError::Memory, Send::Trying { .. }) => {
                context.resources.stats.memory_retries += 1;
                return self.on_sent(context, 0);
            }
            (SendError::Stopped, Send::Trying { .. }) => return self.on_sent(context, 0),
            (SendError::Memory, Send::Spilled { step, .. } | Send::Held { step, .. }) => {
                *step = Step::Retrying;
                context.retry_later();
            }
            (SendError::Stopped, Send::Spilled { step, .. } | Send::Held { step, .. }) => {
                *step = Step::Ready;
            }
            (SendError::Failed(error), &mut Send::Trying { buffer, length, .. }) => {
                self.send = Send::Idle;
                context.resources.stats.bytes_dropped += u64::from(length);
                context.recycle(buffer);
                self.fail(context, error);
            }
            (SendError::Failed(error), Send::Spilled { step, .. } | Send::Held { step, .. }) => {
                *step = Step::Ready;
                self.fail(context, error);
            }
        }
        self.advance(context);
    }

    /// The drain deadline has passed: echo what was received until now, then send FIN.
    pub fn on_drain_deadline(&mut self, context: &mut Context) {
        if self.phase == Phase::Open {
            self.phase = Phase::Flushing(CloseReason::Drained);
            self.advance(context);
        }
    }

    /// The drain is over, whatever the peer still does.
    pub fn on_drain_end(&mut self, context: &mut Context) {
        match self.phase {
            Phase::Free | Phase::Accepting | Phase::Parked => {}
            Phase::Open
            | Phase::Finishing
            | Phase::Flushing(_)
            | Phase::Lingering(_)
            | Phase::Closing(_) => {
                self.die(context, CloseReason::Drained);
                self.advance(context);
            }
        }
    }

    /// Does whatever follows from the present state. The only place that starts a send, arms a
    /// receive or closes.
    fn advance(&mut self, context: &mut Context) {
        self.request_completion(context);
        match self.phase {
            Phase::Free | Phase::Accepting | Phase::Parked => {}
            Phase::Closing(reason) => self.join(context, reason),
            Phase::Open => {
                self.advance_send(context);
                self.advance_receive(context);
            }
            Phase::Finishing => {
                if self.advance_send(context) == Pending::Nothing {
                    self.phase = Phase::Closing(CloseReason::Finished);
                    self.join(context, CloseReason::Finished);
                }
            }
            Phase::Flushing(reason) => {
                // No byte may follow our FIN, so nothing is relayed any more.
                self.stop_relay(context);
                let pending = self.advance_send(context);
                if pending == Pending::Nothing && !self.receive.is_relay() {
                    context.ops.push(Op::Shutdown { connection: context.id, how: Shutdown::Write });
                    self.phase = Phase::Lingering(reason);
                    self.progress = Stamp::at(context.now);
                    context.timer_changed = true;
                    self.advance_receive(context);
                }
            }
            Phase::Lingering(_) => self.advance_receive(context),
        }
        if context.resources.quiescing {
            self.withdraw_operations(context);
        }
    }

    fn advance_send(&mut self, context: &mut Context) -> Pending {
        match &mut self.send {
            Send::Idle => {
                let Some((buffer, length)) = self.queue.pop(&mut context.resources.pool) else {
                    return Pending::Nothing;
                };
                let timed = context.resources.is_next_send_timed();
                let needs_completion = timed || self.needs_completion(context.resources);
                self.send = Send::Trying { buffer, length, needs_completion, timed };
                // The answer may come late, but this is when they move, if they do.
                self.progress = Stamp::at(context.now);
                context.ops.push(Op::Send {
                    connection: context.id,
                    buffer,
                    length,
                    needs_completion,
                });
            }
            Send::Spilled { step: step @ Step::Ready, .. } if !context.resources.quiescing => {
                *step = Step::InFlight;
                context.ops.push(Op::SendSpilled { connection: context.id });
            }
            &mut Send::Held { buffer, ref mut step } if *step == Step::Ready => {
                if !context.resources.quiescing {
                    *step = Step::InFlight;
                    let (offset, length) = context.resources.pool.unsent(buffer);
                    let connection = context.id;
                    context.ops.push(Op::SendHeld { connection, buffer, offset, length });
                }
            }
            Send::Trying { .. } | Send::Spilled { .. } | Send::Held { .. } => {}
        }
        Pending::Something
    }

    /// If the answer of a send has become interesting since it was submitted, asks for it.
    fn request_completion(&mut self, context: &mut Context) {
        if let Send::Trying { buffer, length, needs_completion: false, timed } = self.send
            && self.needs_completion(context.resources)
        {
            self.send = Send::Trying { buffer, length, needs_completion: true, timed };
            context.ops.push(Op::FlushSends);
        }
    }

    /// Whether anything is to happen when the bytes at hand are sent.
    fn needs_completion(&self, resources: &Resources) -> bool {
        self.phase != Phase::Open
            || self.queue.count() > 0
            || resources.quiescing
            || !resources.waiting.is_empty()
            || self.class == SizeClass::Large
            || self.relays(resources)
            || resources.pool.is_busy()
    }

    /// Arms the receive when bytes are wanted, and stops a multishot when they are not.
    fn advance_receive(&mut self, context: &mut Context) {
        let wanted = self.wants_bytes(context.resources);
        match self.receive {
            Receive::Off if wanted => {
                if context.resources.waiting.is_empty() || self.relays(context.resources) {
                    self.arm(context);
                } else {
                    self.stand_in_line(context);
                }
            }
            Receive::Armed(ReceiveMode::Multishot) if !wanted || self.class == SizeClass::Large => {
                self.receive = Receive::Stopping;
                context.ops.push(Op::CancelReceive { connection: context.id });
            }
            Receive::Off
            | Receive::Armed(_)
            | Receive::Stopping
            | Receive::Relaying(_)
            | Receive::RelayStopping
            | Receive::Discarding(_)
            | Receive::DiscardStopping
            | Receive::Starved
            | Receive::Retrying => {}
        }
    }

    /// Whether a receive should be armed: a stalled connection catches up first.
    fn wants_bytes(&self, resources: &Resources) -> bool {
        match (self.phase, self.send) {
            _ if resources.quiescing => false,
            (Phase::Lingering(_), _) => true,
            (Phase::Open, Send::Idle) => true,
            (Phase::Open, Send::Trying { .. }) => match self.class {
                SizeClass::Small => {
                    self.queue.count() < limits::QUEUE_CHUNKS_MAX && !self.relays(resources)
                }
                // One large buffer a connection: few of them stay in the cache, and go round.
                SizeClass::Large => false,
            },
            (Phase::Open, Send::Spilled { .. } | Send::Held { .. })
            | (
                Phase::Free
                | Phase::Accepting
                | Phase::Parked
                | Phase::Finishing
                | Phase::Flushing(_)
                | Phase::Closing(_),
                _,
            ) => false,
        }
    }

    fn arm(&mut self, context: &mut Context) {
        if self.relays(context.resources) {
            return self.relay(context);
        }
        let trusted = self.probation == 0 && self.class == SizeClass::Small;
        let mode = match context.resources.parameters.receive_mode {
            ReceiveMode::Multishot if trusted => ReceiveMode::Multishot,
            ReceiveMode::Multishot | ReceiveMode::Once => ReceiveMode::Once,
        };
        self.receive = Receive::Armed(mode);
        context.ops.push(Op::Receive {
            connection: context.id,
            class: self.class,
            mode,
            expectation: self.expectation,
        });
    }

    fn fail(&mut self, context: &mut Context, error: ConnectionError) {
        context.resources.stats.count_connection_error(error);
        self.die(context, CloseReason::of(error));
    }

    /// Gives up on the peer. What was queued is dropped; what the kernel holds is made to come
    /// back.
    fn die(&mut self, context: &mut Context, reason: CloseReason) {
        if let Phase::Closing(_) = self.phase {
            return;
        }
        self.phase = Phase::Closing(reason);
        if let Receive::Starved | Receive::Retrying = self.receive {
            self.receive = Receive::Off;
        }
        while let Some((buffer, length)) = self.queue.pop(&mut context.resources.pool) {
            context.resources.stats.bytes_dropped += u64::from(length);
            context.recycle(buffer);
        }
        if self.receive.is_with_kernel() || self.send.is_with_kernel() {
            context.ops.push(Op::Shutdown { connection: context.id, how: Shutdown::Both });
        }
    }

    /// Closes if the kernel holds nothing any more.
    fn join(&mut self, context: &mut Context, reason: CloseReason) {
        if self.receive.is_with_kernel() || self.send.is_with_kernel() {
            return;
        }
        self.forget_backlog(context);
        assert_eq!(self.send, Send::Idle, "a dead connection keeps no bytes");
        assert_eq!(self.queue.count(), 0, "a dead connection keeps no buffers");
        let connection = context.id;
        context.ops.push(match reason {
            CloseReason::Finished
            | CloseReason::Idle
            | CloseReason::Lifetime
            | CloseReason::ByteLimit
            | CloseReason::Drained => Op::Close { connection },
            CloseReason::Reset
            | CloseReason::Unreachable
            | CloseReason::Stalled
            | CloseReason::Unexpected => Op::Abort { connection },
            CloseReason::HandedOver => unreachable!("it is not ours to close"),
        });
        context.resources.count_close(self.listener, reason);
        context.closed = true;
        *self = Self { generation: next_generation(self.generation), ..Self::free() };
    }
}

/// Whether something is left to be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    Nothing,
    Something,
}

fn next_generation(generation: u32) -> u32 {
    (generation + 1) & ConnectionId::GENERATION_MASK
}
