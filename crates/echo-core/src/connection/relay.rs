//! Relaying: an echo that owns nothing.
//!
//! The kernel is asked to look at the bytes in the receive queue, to send what the socket takes of
//! them, and to take no more than that out of the queue. What the peer does not read stays where
//! its window counts it. That costs a system call more than a receive and a send, so it is for
//! those who are likely to be short of room: a connection whose peer was behind with reading lately
//! (its *probation*), and everybody while too many pooled buffers are held by others.
//!
//! Nothing waits for memory here, so nobody is woken, and no order is to be kept among those who
//! wait: a relay waits for its own peer alone.

use super::limits;
use super::{CloseReason, Connection, Context, Expectation, Op, Phase, Receive, Stamp};
use crate::op::When;
use crate::resources::Resources;

impl Connection {
    /// Whether the next bytes are to be relayed, or discarded, rather than received.
    pub(super) fn relays(&self, resources: &Resources) -> bool {
        let scarce = resources.pool.is_withheld();
        match self.phase {
            Phase::Open => scarce || self.probation > 0,
            Phase::Lingering(_) => scarce,
            Phase::Free
            | Phase::Accepting
            | Phase::Parked
            | Phase::Finishing
            | Phase::Flushing(_)
            | Phase::Closing(_) => false,
        }
    }

    /// Lets the kernel echo the next bytes, or forget them after our FIN.
    pub(super) fn relay(&mut self, context: &mut Context) {
        let when = match self.expectation {
            Expectation::Data => When::Now,
            Expectation::Silence => When::Readable,
        };
        self.relay_after(context, when);
    }

    fn relay_after(&mut self, context: &mut Context, when: When) {
        let connection = context.id;
        if let Phase::Lingering(_) = self.phase {
            self.receive = Receive::Discarding(when);
            context.ops.push(Op::Discard { connection, when });
        } else {
            let left = context.resources.left_of_limit(connection);
            let length_max = left.min(u64::from(u32::MAX)) as u32;
            self.receive_becomes(context, Receive::Relaying(when));
            context.ops.push(Op::Relay { connection, when, length_max });
        }
    }

    /// `length` bytes were echoed, or forgotten, without ever being ours.
    pub fn on_relayed(&mut self, context: &mut Context, length: u32, next: When) {
        let was = self.receive_becomes(context, Receive::Off);
        if length > 0 {
            context.resources.count_received(self.listener, length);
            self.progress = Stamp::at(context.now);
        }
        match was {
            Receive::Relaying(waited) => self.on_echoed(context, length, waited, next),
            Receive::RelayStopping => self.on_echoed(context, length, When::Now, next),
            Receive::Discarding(_) | Receive::DiscardStopping => {
                context.resources.stats.bytes_dropped += u64::from(length);
                self.expect(next);
            }
            Receive::Off
            | Receive::Armed(_)
            | Receive::Stopping
            | Receive::Starved
            | Receive::Retrying => unreachable!("bytes were relayed unasked: {was:?}"),
        }
        self.advance(context);
    }

    fn on_echoed(&mut self, context: &mut Context, length: u32, waited: When, next: When) {
        let resources = &mut *context.resources;
        if length > 0 {
            resources.count_sent(self.listener, length);
            resources.count_echo(self.listener, None);
            let left = resources.count_against_limit(context.id, length);
            if self.phase == Phase::Open && left <= u64::from(length) {
                self.phase = Phase::Flushing(CloseReason::ByteLimit);
            }
        }
        self.expect(next);
        match next {
            When::Writable => {
                resources.stats.short_sends += 1;
                self.probation = limits::PROBATION_RELAYS;
                if waited != When::Writable {
                    // From here on it is the peer's turn.
                    self.progress = Stamp::at(context.now);
                }
                if self.phase != Phase::Open || resources.quiescing {
                    // It will not be relayed again.
                } else if length == 0 && waited == When::Writable {
                    // The socket has room but takes nothing: the kernel is short of memory.
                    self.receive = Receive::Retrying;
                    context.retry_later();
                } else {
                    self.relay_after(context, When::Writable);
                }
            }
            When::Now | When::Readable => {
                self.probation = self.probation.saturating_sub(u8::from(length > 0));
            }
        }
    }

    fn expect(&mut self, next: When) {
        self.expectation = match next {
            When::Now => Expectation::Data,
            When::Readable | When::Writable => Expectation::Silence,
        };
    }

    /// Stops a relay that is under way.
    pub(super) fn stop_relay(&mut self, context: &mut Context) {
        let stopping = match self.receive {
            Receive::Relaying(_) => Receive::RelayStopping,
            Receive::Discarding(_) => Receive::DiscardStopping,
            Receive::Off
            | Receive::Armed(_)
            | Receive::Stopping
            | Receive::RelayStopping
            | Receive::DiscardStopping
            | Receive::Starved
            | Receive::Retrying => return,
        };
        if self.is_relay_blocked() {
            // Until now it was behind with reading, and not idle.
            self.progress = Stamp::at(context.now);
        }
        self.receive_becomes(context, stopping);
        context.ops.push(Op::CancelReceive { connection: context.id });
    }

    /// Whether a relay waits for its peer to read.
    pub(super) fn is_relay_blocked(&self) -> bool {
        self.receive == Receive::Relaying(When::Writable)
    }

    /// Changes where the receive stands, and counts whether the peer is behind with reading.
    /// Returns where it stood.
    pub(super) fn receive_becomes(&mut self, context: &mut Context, receive: Receive) -> Receive {
        let was_blocked = self.is_relay_blocked();
        let was = std::mem::replace(&mut self.receive, receive);
        let stalled = &mut context.resources.stats.stalled;
        *stalled = *stalled + u64::from(self.is_relay_blocked()) - u64::from(was_blocked);
        context.timer_changed |= was_blocked || self.is_relay_blocked();
        was
    }
}
