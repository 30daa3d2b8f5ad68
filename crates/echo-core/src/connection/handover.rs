//! From one process to the next: how a connection is quiesced, what it hands on, and how it goes
//! on from there.
//!
//! A quiescent connection has nothing with the kernel: no receive, no send. All that is left of it
//! is its socket, the bytes that are spilled, and a [`TransferState`]. Chunks that were queued are
//! still sent, since a try-send never waits; what the socket does not take of them is spilled as
//! ever.

use super::{CloseReason, Connection, Context, Op, Phase, Receive, Send, Stamp, Step};
use super::{limits, next_generation};
use crate::op::{Expectation, TransferPhase, TransferState};

impl Connection {
    /// A hand-over begins: receive no more, and take back a send that waits.
    pub fn quiesce(&mut self, context: &mut Context) {
        if let Receive::Starved | Receive::Retrying = self.receive {
            // It would have moved if we or the kernel had had memory for it.
            self.receive = Receive::Off;
            self.progress = Stamp::at(context.now);
        }
        self.advance(context);
    }

    /// The deadline of the hand-over has passed: what is not quiescent is ended.
    pub fn on_quiesce_deadline(&mut self, context: &mut Context) {
        if !self.is_quiescent() {
            self.die(context, CloseReason::Drained);
            self.advance(context);
        }
    }

    /// Whether the kernel holds nothing of it.
    #[must_use]
    pub fn is_quiescent(&self) -> bool {
        !self.receive.is_with_kernel() && !self.send.is_with_kernel()
    }

    /// Takes back from the kernel what would wait there.
    pub(super) fn withdraw_operations(&mut self, context: &mut Context) {
        match self.phase {
            // A dying connection has made the kernel give everything back already.
            Phase::Free | Phase::Accepting | Phase::Parked | Phase::Closing(_) => return,
            Phase::Open | Phase::Finishing | Phase::Flushing(_) | Phase::Lingering(_) => {}
        }
        if let Receive::Armed(_) = self.receive {
            self.receive = Receive::Stopping;
            context.ops.push(Op::CancelReceive { connection: context.id });
        }
        self.stop_relay(context);
        if let Send::Spilled { step: step @ Step::InFlight, .. }
        | Send::Held { step: step @ Step::InFlight, .. } = &mut self.send
        {
            *step = Step::Stopping;
            context.ops.push(Op::CancelSend { connection: context.id });
        }
        self.spill_held(context);
    }

    /// Gives the connection away; the slot is free at once. None if it is nobody's.
    pub fn export(&mut self, context: &mut Context) -> Option<TransferState> {
        let phase = match self.phase {
            Phase::Free | Phase::Accepting => return None,
            Phase::Parked | Phase::Closing(_) => unreachable!("{:?} is not quiescent", self.phase),
            Phase::Open => TransferPhase::Open,
            Phase::Finishing => TransferPhase::Finishing,
            Phase::Flushing(reason) => TransferPhase::Flushing(reason),
            Phase::Lingering(reason) => TransferPhase::Lingering(reason),
        };
        assert!(self.is_quiescent(), "the kernel holds {:?}, {:?}", self.receive, self.send);
        assert_eq!(self.queue.count(), 0, "queued bytes are not being sent");
        let unsent = match self.send {
            Send::Idle => 0,
            Send::Spilled { unsent, begin, .. } => {
                context.resources.stats.stalled -= 1;
                context.resources.stats.bytes_handed_over += u64::from(unsent);
                context.resources.stalled_since.remove(&context.id.slot());
                context.resources.refund_spill(begin, unsent, unsent);
                unsent
            }
            Send::Trying { .. } => unreachable!("the kernel holds a send"),
            Send::Held { .. } => unreachable!("held bytes are spilled for a hand-over"),
        };
        let quiet_ms = self.progress.elapsed(context.now);
        let listener = self.listener;
        context.resources.count_close(listener, CloseReason::HandedOver);
        let age_ms = self.age_ms(context.now);
        let received = context.resources.received_by(context.id);
        context.closed = true;
        *self = Self { generation: next_generation(self.generation), ..Self::free() };
        Some(TransferState { listener, phase, unsent, quiet_ms, age_ms, received })
    }

    /// Goes on where the process before us stopped.
    pub fn import(&mut self, context: &mut Context, transfer: TransferState) {
        assert_eq!(self.phase, Phase::Free, "an imported connection takes a slot of its own");
        let TransferState { listener, phase, unsent, quiet_ms, age_ms, received } = transfer;
        context.resources.resume_received(context.id, received);
        self.opened = Stamp::before(context.now, age_ms);
        self.listener = listener;
        self.phase = match phase {
            TransferPhase::Open => Phase::Open,
            TransferPhase::Finishing => Phase::Finishing,
            TransferPhase::Flushing(reason) => Phase::Flushing(reason),
            TransferPhase::Lingering(reason) => {
                assert_eq!(unsent, 0, "no byte follows our FIN");
                Phase::Lingering(reason)
            }
        };
        self.progress = Stamp::before(context.now, quiet_ms);
        // Waiting for readiness misses nothing: it finds what is there already.
        self.expectation = Expectation::Silence;
        if unsent > 0 {
            context.resources.count_imported(unsent);
            context.resources.stats.stalled += 1;
            // When they came is not known any more.
            context.resources.stalled_since.insert(context.id.slot(), None);
            self.probation = limits::PROBATION_RELAYS;
            self.send = Send::Spilled { unsent, begin: 0, step: Step::Ready };
        }
        self.advance(context);
    }
}
