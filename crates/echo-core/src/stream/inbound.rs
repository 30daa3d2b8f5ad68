//! The receiving half: at most one receive, relay or poll at a time, and the choice of the next
//! one.
//!
//! A *relay* is an echo that owns nothing. The driver peeks at the bytes in the receive queue,
//! sends what the socket takes of them, and consumes exactly that from the queue. Bytes that the
//! peer does not read stay in the kernel, where its window counts them. That costs one system call
//! more than a receive and a send. Therefore a relay is used only for connections that are likely
//! to need memory: one whose peer recently did not read fast enough (its *probation*), and all of
//! them while too many pooled buffers are held by others. A relay waits for its own peer alone, so
//! it needs no queue.
//!
//! *Records* are always relayed: the connection is on probation without end. Therefore a message is
//! either echoed whole or stays whole in the kernel. It never needs a buffer that is long enough
//! for it, nor a spill that preserves its boundaries, and a handover leaves it in the kernel to the
//! next process.
//!
//! Large buffers are few. A receive that waits for bulk may keep one only until another connection
//! needs it. Then the receive is revoked, and the connection waits by a poll. (With a large buffer
//! kept, messages of 16 KiB cost 1.05 of epoll's time instead of 1.07.)

use core::mem;

use super::estimate::Estimate;
use super::phase::Phase;
use super::resources::{Context, Resources};
use crate::id::{BufferId, SizeClass};
use crate::limits;
use crate::op::{Expectation, Op, ReceiveMode, When};

/// The kinds of request that bring bytes, or tell that there are some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A receive into small buffers, until it ends.
    Multishot,
    /// A receive into one small buffer.
    Once,
    /// A receive into a large buffer, which is reserved for it.
    Large,
    /// A poll for bytes.
    Poll,
    /// A relay, without a buffer of ours.
    Relay(When),
    /// The driver drops the bytes that arrive.
    Discard,
    /// The driver reads the header.
    Preface,
}

/// The state of the receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receive {
    /// Not armed.
    Off,
    /// Not armed: to be submitted in a turn, see `receive_policy`.
    Deferred,
    /// With the kernel or the driver.
    Armed(Request),
    /// As `Armed`, and canceled.
    Stopping(Request),
    /// A receive with a large buffer that is canceled to free the buffer: a poll follows.
    Revoked,
    /// Not armed: the bulk quantum of the turn is used up. Waits in the queue for a share of a
    /// later turn.
    BulkWaiting,
    /// Not armed: there was no small buffer. Waits in the queue for one.
    Starved,
    /// Not armed: the kernel was out of memory. Will be tried again.
    Retrying,
}

impl Receive {
    /// What the kernel or the driver has.
    fn request(self) -> Option<Request> {
        match self {
            Self::Armed(request) | Self::Stopping(request) => Some(request),
            Self::Revoked => Some(Request::Large),
            Self::Off | Self::Deferred | Self::BulkWaiting | Self::Starved | Self::Retrying => None,
        }
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Inbound {
    receive: Receive,
    estimate: Estimate,
    probation: Probation,
}

/// Relays that must still succeed before the connection is received from again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probation(u8);

impl Probation {
    /// It is not relayed.
    const OVER: Self = Self(0);
    /// The header of the connection has not been completed, so its peer has not been judged.
    const UNJUDGED: Self = Self(u8::MAX - 2);
    /// The connection has brought only a header without an address. Its first bytes are relayed, so
    /// that no other kind of receive has to check whether they are the first.
    const UNTRIED: Self = Self(u8::MAX - 1);
    /// It is always relayed: it has records.
    const ENDLESS: Self = Self(u8::MAX);

    fn is_over(self) -> bool {
        self == Self::OVER
    }

    /// The peer did not read fast enough.
    fn begin(&mut self) {
        if *self != Self::ENDLESS {
            *self = Self(limits::PROBATION_RELAYS);
        }
    }

    /// The peer took all of a chunk.
    fn pass(&mut self) {
        *self = match *self {
            Self::ENDLESS => Self::ENDLESS,
            Self::UNTRIED => Self::OVER,
            Self(relays) => Self(relays.saturating_sub(1)),
        };
    }
}

const _: () = assert!(limits::PROBATION_RELAYS < Probation::UNJUDGED.0);

impl Default for Inbound {
    fn default() -> Self {
        let (estimate, probation) = (Estimate::new(Expectation::Data), Probation::OVER);
        Self { receive: Receive::Off, estimate, probation }
    }
}

impl Inbound {
    /// The receiving half of a connection of the previous process, which may have left bytes
    /// unsent.
    #[must_use]
    pub(crate) fn imported(unsent: u32) -> Self {
        let mut probation = Probation::OVER;
        if unsent > 0 {
            probation.begin();
        }
        // Waiting for readiness loses nothing: it finds bytes that are already there.
        Self { probation, estimate: Estimate::new(Expectation::Silence), ..Self::default() }
    }

    /// The receiving half of a connection with records, new or of the previous process.
    #[must_use]
    pub(crate) fn with_records() -> Self {
        let estimate = Estimate::new(Expectation::Silence);
        Self { probation: Probation::ENDLESS, estimate, ..Self::default() }
    }

    /// Whether the connection has records.
    #[must_use]
    pub(crate) fn has_records(&self) -> bool {
        self.probation == Probation::ENDLESS
    }

    /// Its header is expected.
    pub(crate) fn begin_unjudged(&mut self) {
        self.probation = Probation::UNJUDGED;
    }

    /// Whether its header has not been completed.
    #[must_use]
    pub(crate) fn is_unjudged(&self) -> bool {
        self.probation == Probation::UNJUDGED
    }

    /// Its header has announced its peer.
    pub(crate) fn end_unjudged(&mut self) {
        self.probation = Probation::OVER;
    }

    /// Only a header without an address has arrived so far, and often nothing follows.
    pub(crate) fn begin_untried(&mut self) {
        self.probation = Probation::UNTRIED;
        self.estimate.expect(Expectation::Silence);
    }

    /// Whether nothing has arrived since [`Inbound::begin_untried`].
    #[must_use]
    pub(crate) fn is_untried(&self) -> bool {
        self.probation == Probation::UNTRIED
    }

    /// The read of the header has completed.
    pub(crate) fn end_preface(&mut self) {
        let reads = self.receive.request() == Some(Request::Preface);
        assert!(reads, "no read of a header was in flight: {:?}", self.receive);
        self.receive = Receive::Off;
    }

    /// The state of the receive.
    #[must_use]
    pub(crate) fn receive(&self) -> Receive {
        self.receive
    }

    /// The size of buffers that suits the connection.
    #[must_use]
    pub(crate) fn class(&self) -> SizeClass {
        self.estimate.class()
    }

    /// Whether the kernel has a receive, a relay or a poll.
    #[must_use]
    pub(crate) fn is_with_kernel(&self) -> bool {
        self.receive.request().is_some()
    }

    /// Whether a relay may still send.
    #[must_use]
    pub(crate) fn is_relay(&self) -> bool {
        matches!(self.receive.request(), Some(Request::Relay(_)))
    }

    /// Whether a relay waits for its peer to read.
    #[must_use]
    pub(crate) fn is_relay_blocked(&self) -> bool {
        self.receive == Receive::Armed(Request::Relay(When::Writable))
    }

    /// Whether it waits for a buffer or for the kernel's memory, so that the silence is not caused
    /// by the peer.
    #[must_use]
    pub(crate) fn is_short(&self) -> bool {
        matches!(self.receive, Receive::BulkWaiting | Receive::Starved | Receive::Retrying)
    }

    /// Whether the next bytes of an open connection are to be relayed rather than received, or of a
    /// lingering one discarded by the driver.
    #[must_use]
    pub(crate) fn relays(&self, phase: Phase, resources: &Resources) -> bool {
        let pool = &resources.pool;
        let must_relay =
            if phase == Phase::Open { !self.probation.is_over() } else { self.has_records() };
        must_relay
            || pool.is_withheld()
            || self.class() == SizeClass::Large && pool.are_large_withheld()
    }

    /// Bytes were received into `buffer`. `armed` is whether the receive continues.
    pub(crate) fn on_received(&mut self, context: &mut Context, buffer: BufferId, armed: bool) {
        let resources = &mut *context.resources;
        match (self.receive.request(), buffer.class) {
            (Some(how @ (Request::Multishot | Request::Once)), SizeClass::Small) => {
                assert!(how == Request::Multishot || !armed, "a one-shot receive continues");
                resources.buffer_offer.note_taken();
                resources.receive_policy.note_chunk();
            }
            (Some(Request::Large), SizeClass::Large) => {
                assert!(!armed, "a one-shot receive continues");
                self.end_large(context);
            }
            (_, class) => unreachable!("bytes in a {class:?} buffer: {:?}", self.receive),
        }
        if !armed {
            self.receive = Receive::Off;
        }
    }

    /// Updates the estimate of the next receive by the `length` bytes of this one.
    pub(crate) fn learn(&mut self, resources: &Resources, length: u32, rest: Expectation) {
        let large = self.probation.is_over() && resources.pool.has_large();
        let largest = if large { SizeClass::Large } else { SizeClass::Small };
        self.estimate.note(length, rest, resources.pool.small_size(), largest);
    }

    /// The poll has found bytes, or the end.
    pub(crate) fn on_readable(&mut self) {
        let polls = self.receive.request() == Some(Request::Poll);
        assert!(polls, "no poll was in flight: {:?}", self.receive);
        self.receive = Receive::Off;
        self.estimate.expect(Expectation::Data);
    }

    /// What was in flight has ended. Returns the previous state of the receive.
    pub(crate) fn end(&mut self, context: &mut Context) -> Receive {
        assert!(self.is_with_kernel(), "nothing was in flight: {:?}", self.receive);
        let ended = self.set(context.resources, Receive::Off);
        if ended.request() == Some(Request::Large) {
            self.end_large(context);
        }
        ended
    }

    /// The receive was stopped. `wanted` is whether bytes are still wanted.
    pub(crate) fn on_stopped(&mut self, context: &mut Context, ended: Receive, wanted: bool) {
        // Waiting for readiness loses nothing: it finds bytes that are already there.
        self.estimate.expect(Expectation::Silence);
        if ended == Receive::Revoked && wanted {
            self.poll(context);
        }
    }

    /// There was no small buffer. Waits for one unless the connection is `closing`. If the small
    /// buffers may be held for long, it is relayed instead. If its next receive gets a large
    /// buffer, it does not wait either.
    pub(crate) fn on_no_buffer(&mut self, context: &mut Context, ended: Receive, closing: bool) {
        let small = matches!(ended.request(), Some(Request::Multishot | Request::Once));
        assert!(small, "{ended:?} needs no small buffer");
        context.resources.stats.starved += 1;
        context.resources.buffer_offer.note_dry();
        self.estimate.expect(Expectation::Data);
        let waits = self.class() == SizeClass::Small && !context.resources.pool.is_withheld();
        if waits && !closing {
            self.join_queue(context);
        }
    }

    /// The kernel is out of memory: to be tried again.
    pub(crate) fn retry_later(&mut self, context: &mut Context) {
        self.receive = Receive::Retrying;
        context.retry_later();
    }

    fn join_queue(&mut self, context: &mut Context) {
        self.receive = Receive::Starved;
        context.resources.waiting.push_back(context.id);
        // The buffers of the sends in flight are needed again.
        context.ops.push(Op::FlushSends);
    }

    /// The end of a wait, if the receive is in this state: nothing is armed.
    pub(crate) fn end_wait(&mut self, wait: Receive) -> bool {
        let waited = self.receive == wait;
        if waited {
            self.receive = Receive::Off;
        }
        waited
    }

    /// Gives up a receive that is not in the kernel. Returns whether it waited for a buffer or
    /// memory.
    pub(crate) fn give_up(&mut self) -> bool {
        let short = self.is_short();
        if !self.is_with_kernel() {
            self.receive = Receive::Off;
        }
        short
    }

    /// A peer did not read fast enough.
    pub(crate) fn on_stall(&mut self) {
        self.estimate.forget_bulk();
        self.probation.begin();
    }

    /// Arms a receive if bytes are `wanted`. Cancels an armed one if they are not, or if another
    /// kind of receive suits the connection by now.
    pub(crate) fn advance(&mut self, context: &mut Context, phase: Phase, wanted: bool) {
        let resources = &*context.resources;
        match self.receive {
            Receive::Off if wanted && matches!(phase, Phase::Preface(_)) => {
                self.receive = Receive::Armed(Request::Preface);
                let (connection, length_max) = (context.id, limits::PREFACE_BYTES_MAX);
                context.ops.push(Op::ReadPreface { connection, length_max });
            }
            Receive::Off if wanted => {
                if resources.waiting.is_empty() || self.relays(phase, resources) {
                    let defers = resources.receive_policy.is_deferring();
                    self.arm(context, phase, defers);
                } else {
                    self.join_queue(context);
                }
            }
            Receive::Deferred | Receive::BulkWaiting if !wanted => self.receive = Receive::Off,
            Receive::Armed(Request::Multishot)
                if !wanted
                    || self.class() == SizeClass::Large
                    || resources.receive_policy.is_deferring() =>
            {
                self.stop(context);
            }
            Receive::Off
            | Receive::Deferred
            | Receive::Armed(_)
            | Receive::Stopping(_)
            | Receive::Revoked
            | Receive::BulkWaiting
            | Receive::Starved
            | Receive::Retrying => {}
        }
    }

    /// Arms the next receive, or relays. Into a small buffer, the receive may be deferred.
    pub(crate) fn arm(&mut self, context: &mut Context, phase: Phase, defers: bool) {
        if self.relays(phase, context.resources) {
            return self.relay(context, phase);
        }
        match (self.class(), self.estimate.expectation()) {
            (SizeClass::Small, _) => self.arm_small(context, defers),
            (SizeClass::Large, Expectation::Data) => {
                if !context.resources.bulk_waiting.is_empty() || !self.receive_bulk(context) {
                    self.receive = Receive::BulkWaiting;
                    context.resources.bulk_waiting.push_back(context.id);
                }
            }
            (SizeClass::Large, Expectation::Silence) => {
                let expected = self.bulk_bytes(context.resources);
                if context.resources.pool.reserve_large(expected) {
                    context.resources.idle_large.push_back(context.id);
                    self.receive_large(context, ReceiveMode::WhenReadable);
                } else {
                    self.poll(context);
                }
            }
        }
    }

    /// The expected size of the next receive into a large buffer.
    pub(crate) fn bulk_bytes(&self, resources: &Resources) -> u32 {
        self.estimate.bytes(resources.pool.small_size())
    }

    /// Receives waiting bulk, if this turn has a share for it. Returns whether it does.
    fn receive_bulk(&mut self, context: &mut Context) -> bool {
        let expected = self.bulk_bytes(context.resources);
        let reserved = context.resources.pool.reserve_large(expected);
        if reserved {
            self.receive_large(context, ReceiveMode::Now);
        }
        reserved
    }

    /// It has waited for its share of a turn's bulk, and is the first in the queue. Returns whether
    /// it got its share, or waits for none any more.
    pub(crate) fn serve_bulk(&mut self, context: &mut Context, phase: Phase, wanted: bool) -> bool {
        if !wanted {
            self.receive = Receive::Off;
            return true;
        }
        if self.relays(phase, context.resources) {
            // Peers that do not read may hold the large buffers for long.
            self.receive = Receive::Off;
            self.relay(context, phase);
            return true;
        }
        self.receive_bulk(context)
    }

    fn arm_small(&mut self, context: &mut Context, defers: bool) {
        if defers {
            self.receive = Receive::Deferred;
            return context.resources.receive_policy.defer(context.id);
        }
        let (request, mode) = if context.resources.parameters.multishot && self.probation.is_over()
        {
            (Request::Multishot, ReceiveMode::Multishot)
        } else {
            match self.estimate.expectation() {
                Expectation::Data => (Request::Once, ReceiveMode::Now),
                Expectation::Silence => (Request::Once, ReceiveMode::WhenReadable),
            }
        };
        self.receive = Receive::Armed(request);
        context.ops.push(Op::Receive { connection: context.id, class: SizeClass::Small, mode });
    }

    fn receive_large(&mut self, context: &mut Context, mode: ReceiveMode) {
        self.receive = Receive::Armed(Request::Large);
        context.ops.push(Op::Receive { connection: context.id, class: SizeClass::Large, mode });
    }

    fn poll(&mut self, context: &mut Context) {
        self.receive = Receive::Armed(Request::Poll);
        context.ops.push(Op::AwaitReadable { connection: context.id });
    }

    /// Submits a deferred receive if bytes are still `wanted`. Returns whether it did.
    pub(crate) fn submit_deferred(&mut self, context: &mut Context, wanted: bool) -> bool {
        if !self.end_wait(Receive::Deferred) || !wanted {
            return false;
        }
        self.receive = Receive::Armed(Request::Once);
        let (class, mode) = (SizeClass::Small, ReceiveMode::Now);
        context.ops.push(Op::Receive { connection: context.id, class, mode });
        true
    }

    /// A receive that had a large buffer is over.
    fn end_large(&mut self, context: &mut Context) {
        let expected = self.bulk_bytes(context.resources);
        context.resources.pool.end_reservation(expected);
        context.resources.idle_large.retain(|&idle| idle != context.id);
    }

    /// Returns the large buffer of a receive that waits for bulk.
    pub(crate) fn revoke(&mut self, context: &mut Context) {
        if self.receive == Receive::Armed(Request::Large) {
            self.receive = Receive::Revoked;
            context.ops.push(Op::CancelReceive { connection: context.id });
        }
    }

    /// Cancels what the kernel or the driver has, if it is not canceled already. Returns whether a
    /// relay waited for its peer to read.
    pub(crate) fn stop(&mut self, context: &mut Context) -> bool {
        let blocked = self.is_relay_blocked();
        match self.receive {
            Receive::Armed(request) => {
                self.set(context.resources, Receive::Stopping(request));
                context.ops.push(Op::CancelReceive { connection: context.id });
            }
            Receive::Revoked => self.receive = Receive::Stopping(Request::Large),
            Receive::Off
            | Receive::Deferred
            | Receive::Stopping(_)
            | Receive::BulkWaiting
            | Receive::Starved
            | Receive::Retrying => {}
        }
        blocked
    }

    /// Relays the next bytes, or discards them after our FIN.
    fn relay(&mut self, context: &mut Context, phase: Phase) {
        let when = match self.estimate.expectation() {
            Expectation::Data => When::Now,
            Expectation::Silence => When::Readable,
        };
        self.relay_after(context, phase, when);
    }

    fn relay_after(&mut self, context: &mut Context, phase: Phase, when: When) {
        let connection = context.id;
        if let Phase::Lingering(_) = phase {
            self.receive = Receive::Armed(Request::Discard);
            context.ops.push(Op::Discard { connection, when });
        } else {
            let left = context.resources.left_of_limit(connection);
            let length_max = left.min(u64::from(u32::MAX)) as u32;
            self.set(context.resources, Receive::Armed(Request::Relay(when)));
            context.ops.push(Op::Relay { connection, when, length_max });
        }
    }

    /// A relay that had waited for `waited` has echoed `chunks` chunks, and the next one should
    /// wait for `next`.
    pub(crate) fn on_echoed(
        &mut self,
        context: &mut Context,
        phase: Phase,
        chunks: u32,
        waited: When,
        next: When,
    ) {
        self.expect(next);
        if next != When::Writable {
            if chunks > 0 {
                self.probation.pass();
            }
            return;
        }
        context.resources.stats.short_sends += 1;
        self.probation.begin();
        if phase != Phase::Open || context.resources.quiescing {
            // It will not be relayed again.
        } else if chunks == 0 && waited == When::Writable {
            // The socket has room but takes nothing: the kernel is out of memory.
            self.retry_later(context);
        } else {
            self.relay_after(context, phase, When::Writable);
        }
    }

    /// Notes what the socket probably holds after a relay.
    pub(crate) fn expect(&mut self, next: When) {
        self.estimate.expect(match next {
            When::Now => Expectation::Data,
            When::Readable | When::Writable => Expectation::Silence,
        });
    }

    /// Changes the state of the receive, and counts whether the peer does not read. Returns the
    /// previous state.
    fn set(&mut self, resources: &mut Resources, receive: Receive) -> Receive {
        let was_blocked = self.is_relay_blocked();
        let was = mem::replace(&mut self.receive, receive);
        let stalled = &mut resources.stats.stalled;
        *stalled = *stalled + u64::from(self.is_relay_blocked()) - u64::from(was_blocked);
        was
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_bytes_unsent_is_on_probation_after_a_handover() {
        assert!(Inbound::imported(0).probation.is_over());
        assert!(!Inbound::imported(1).probation.is_over());
    }
}
