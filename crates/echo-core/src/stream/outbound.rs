//! The sending half: one send at a time, and the chunks that wait behind it.
//!
//! Bytes that a peer is slow to take are kept, and nothing more is received until they are sent:
//!
//! 1. A send completes short. The rest of its buffer is *spilled*: copied into memory of the
//!    connection, if the budget grants it, so that the pooled buffer is free. The chunks queued
//!    behind it are spilled too, and those of a receive that was armed before.
//! 2. Bytes for which the budget grants no memory are *held*: they stay in their pooled buffers.
//!    Spilled bytes are always older than held ones. Whenever some are sent, the budget is asked
//!    again.
//! 3. When all are sent, the connection is on probation: its next bytes are relayed (see
//!    `inbound`), which needs no memory at all.
//!
//! Therefore lack of memory ends no connection. It costs pooled buffers; if too many of them are
//! held ([`Pool::is_withheld`](crate::buffer_pool::Pool::is_withheld)), all connections are
//! relayed.

use super::resources::{Context, Resources};
use super::spill::Spill;
use crate::buffer_pool::Queue;
use crate::id::BufferId;
use crate::op::Op;
use crate::reason::{ConnectionError, SendError};

/// Whether anything waits for the completion of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// Nothing does.
    Unneeded,
    /// Something does.
    Needed,
    /// The residence time of this send is measured.
    Timed,
}

/// The state of the send. There is never more than one, which keeps the bytes in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Send {
    /// Nothing is being sent.
    Idle,
    /// The kernel tries to send this buffer.
    Trying {
        /// Lent to this connection.
        buffer: BufferId,
        /// Bytes in it.
        length: u32,
        /// Whether anything waits for the completion.
        completion: Completion,
    },
    /// The peer does not keep up: the bytes that it did not take are spilled, and sent before the
    /// queued chunks.
    Spilled {
        /// At least one byte.
        spill: Spill,
        /// Whether a send of them is in flight.
        step: Step,
    },
    /// The peer does not keep up, and no memory was granted for the bytes that it did not take.
    /// They stay in this buffer and in those queued behind it.
    Held {
        /// Lent to this connection.
        buffer: BufferId,
        /// Whether a send of it is in flight.
        step: Step,
    },
}

/// The state of a send that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// To be submitted.
    Ready,
    /// With the kernel.
    InFlight,
    /// With the kernel, and canceled.
    Stopping,
    /// The kernel was out of memory. The send will be tried again.
    Retrying,
}

/// What is left to be sent after [`Outbound::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing.
    Nothing,
    /// Bytes, and a try-send of them has just been submitted.
    Begun,
    /// Bytes.
    Something,
}

/// What the completion of a send has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Progress {
    /// Nothing that a timeout counts.
    Unchanged,
    /// The peer took bytes that had waited for it.
    Moved,
    /// The peer does not keep up: the bytes that it did not take are kept.
    Stalled,
}

/// The sending half of a connection.
#[derive(Debug)]
pub(crate) struct Outbound {
    send: Send,
    queue: Queue,
}

impl Default for Outbound {
    fn default() -> Self {
        Self { send: Send::Idle, queue: Queue::default() }
    }
}

impl Outbound {
    /// Where the send stands.
    #[must_use]
    pub(crate) fn send(&self) -> Send {
        self.send
    }

    /// Chunks that wait behind the send.
    #[must_use]
    pub(crate) fn queued(&self) -> u8 {
        self.queue.count()
    }

    /// Whether the kernel has a send.
    #[must_use]
    pub(crate) fn is_with_kernel(&self) -> bool {
        match self.send {
            Send::Trying { .. }
            | Send::Spilled { step: Step::InFlight | Step::Stopping, .. }
            | Send::Held { step: Step::InFlight | Step::Stopping, .. } => true,
            Send::Idle | Send::Spilled { .. } | Send::Held { .. } => false,
        }
    }

    /// Whether bytes are spilled or held: the peer does not keep up.
    #[must_use]
    pub(crate) fn has_backlog(&self) -> bool {
        matches!(self.send, Send::Spilled { .. } | Send::Held { .. })
    }

    /// Whether a send waits for the kernel's memory.
    #[must_use]
    pub(crate) fn is_short(&self) -> bool {
        matches!(
            self.send,
            Send::Spilled { step: Step::Retrying, .. } | Send::Held { step: Step::Retrying, .. }
        )
    }

    /// Takes in a chunk of `length` bytes.
    pub(crate) fn push(&mut self, context: &mut Context, buffer: BufferId, length: u32) {
        let pool = &mut context.resources.pool;
        match self.send {
            Send::Idle | Send::Trying { .. } => self.queue.push(pool, buffer),
            Send::Spilled { .. } | Send::Held { .. } => {
                if self.queue.count() == 0 && self.grant(context.resources, length) {
                    self.spill(context, buffer);
                } else {
                    self.queue.push(&mut context.resources.pool, buffer);
                    context.resources.pool.hold(buffer);
                }
            }
        }
    }

    /// Begins the next send if none is in flight. `needs_completion` is whether anything besides
    /// the send after it will wait for the completion.
    pub(crate) fn advance(&mut self, context: &mut Context, needs_completion: bool) -> Pending {
        let connection = context.id;
        match &mut self.send {
            Send::Idle => {
                let Some((buffer, length)) = self.queue.pop(&mut context.resources.pool) else {
                    return Pending::Nothing;
                };
                let completion = match needs_completion || self.queue.count() > 0 {
                    _ if context.resources.is_next_send_timed() => Completion::Timed,
                    true => Completion::Needed,
                    false => Completion::Unneeded,
                };
                self.send = Send::Trying { buffer, length, completion };
                let needs_completion = completion != Completion::Unneeded;
                context.ops.push(Op::Send { connection, buffer, length, needs_completion });
                return Pending::Begun;
            }
            Send::Spilled { step: step @ Step::Ready, .. } if !context.resources.quiescing => {
                *step = Step::InFlight;
                context.ops.push(Op::SendSpilled { connection });
            }
            &mut Send::Held { buffer, step: ref mut step @ Step::Ready }
                if !context.resources.quiescing =>
            {
                *step = Step::InFlight;
                let (offset, length) = context.resources.pool.unsent(buffer);
                context.ops.push(Op::SendHeld { connection, buffer, offset, length });
            }
            Send::Trying { .. } | Send::Spilled { .. } | Send::Held { .. } => {}
        }
        Pending::Something
    }

    /// Whether there is a try-send for whose completion nothing waits so far.
    #[must_use]
    pub(crate) fn is_unawaited(&self) -> bool {
        matches!(self.send, Send::Trying { completion: Completion::Unneeded, .. })
    }

    /// Something now waits for the completion of the present try-send: requests it if that has not
    /// been done.
    pub(crate) fn request_completion(&mut self, context: &mut Context) {
        if let Send::Trying { completion: completion @ Completion::Unneeded, .. } = &mut self.send {
            *completion = Completion::Needed;
            context.ops.push(Op::FlushSends);
        }
    }

    /// The socket took the first `length` bytes of a try-send or of held bytes. `dying` is whether
    /// the rest will not be sent.
    pub(crate) fn on_sent(&mut self, context: &mut Context, length: u32, dying: bool) -> Progress {
        let Send::Trying { buffer, length: asked, completion } = self.send else {
            return self.on_held_sent(context, length, dying);
        };
        assert!(length <= asked, "sent {length} of {asked} bytes");
        context.resources.count_sent(context.listener, length);
        self.send = Send::Idle;
        let filled_us = context.resources.pool.filled_us(buffer);
        let since_us = (completion == Completion::Timed).then_some(filled_us);
        if length == asked {
            if !dying {
                context.resources.count_echo(context.listener, since_us);
            }
            context.recycle(buffer);
            return Progress::Unchanged;
        }
        context.resources.pool.advance(buffer, length);
        if dying {
            context.drop_chunk(buffer);
            return Progress::Unchanged;
        }
        context.resources.stats.short_sends += 1;
        context.resources.stats.stalled += 1;
        context.resources.stalled_since.insert(context.id.slot(), since_us);
        self.keep(context, buffer);
        Progress::Stalled
    }

    /// Keeps the unsent bytes of `buffer` and of the chunks that are queued behind it.
    fn keep(&mut self, context: &mut Context, buffer: BufferId) {
        let (_, length) = context.resources.pool.unsent(buffer);
        self.send = Send::Spilled { spill: Spill::default(), step: Step::Ready };
        if self.grant(context.resources, length) {
            self.spill(context, buffer);
            self.spill_queue(context);
        } else {
            self.send = Send::Held { buffer, step: Step::Ready };
            context.resources.pool.hold(buffer);
            self.queue.hold(&mut context.resources.pool);
        }
    }

    /// Spills the queued chunks, as far as memory is granted.
    fn spill_queue(&mut self, context: &mut Context) {
        while let Some((buffer, length)) = self.queue.first(&context.resources.pool)
            && self.grant(context.resources, length)
        {
            self.queue.pop(&mut context.resources.pool);
            self.spill(context, buffer);
        }
        self.queue.hold(&mut context.resources.pool);
    }

    /// Takes the memory for `length` further spilled bytes. False if bytes are held, since these
    /// are older, or if the memory is not granted.
    fn grant(&mut self, resources: &mut Resources, length: u32) -> bool {
        let Send::Spilled { spill, .. } = &mut self.send else { return false };
        let grown = resources.charge_spill(*spill, length, |budget, blocks| budget.take(blocks));
        *spill = grown.unwrap_or(*spill);
        grown.is_some()
    }

    /// Moves the unsent bytes of a pooled buffer to memory that has been granted.
    fn spill(&mut self, context: &mut Context, buffer: BufferId) {
        let (offset, length) = context.resources.pool.unsent(buffer);
        context.ops.push(Op::Spill { connection: context.id, buffer, offset, length });
        context.recycle(buffer);
    }

    /// Spilled bytes were sent.
    pub(crate) fn on_spilled_sent(&mut self, context: &mut Context, length: u32) {
        let Send::Spilled { spill, step: Step::InFlight | Step::Stopping } = self.send else {
            unreachable!("no send of spilled bytes was in flight: {:?}", self.send)
        };
        assert!(length >= 1, "nothing was sent");
        context.resources.count_sent(context.listener, length);
        context.ops.push(Op::ReleaseSpilled { connection: context.id, length });
        let spill = context.resources.refund_spill(spill, length);
        if spill.unsent() == 0 {
            context.resources.count_echo_of_backlog(context.listener, context.id);
            self.end_stall(context);
        } else {
            self.send = Send::Spilled { spill, step: Step::Ready };
            self.spill_queue(context);
        }
    }

    /// Held bytes were sent, or there was no room after all.
    fn on_held_sent(&mut self, context: &mut Context, length: u32, dying: bool) -> Progress {
        let Send::Held { buffer, step: Step::InFlight | Step::Stopping } = self.send else {
            unreachable!("no send of held bytes was in flight: {:?}", self.send)
        };
        context.resources.count_sent(context.listener, length);
        if context.resources.pool.advance(buffer, length) {
            context.resources.count_echo_of_backlog(context.listener, context.id);
            context.recycle(buffer);
            self.end_stall(context);
            return Progress::Moved;
        }
        if dying {
            self.send = Send::Held { buffer, step: Step::Ready };
            return Progress::Unchanged;
        }
        if length == 0 {
            // The socket has room but takes nothing: the kernel is out of memory.
            self.send = Send::Held { buffer, step: Step::Retrying };
            context.retry_later();
            return Progress::Unchanged;
        }
        self.keep(context, buffer);
        Progress::Moved
    }

    /// The send failed with `error`, without taking a byte.
    ///
    /// # Errors
    /// If the connection is dead.
    pub(crate) fn on_failed(
        &mut self,
        context: &mut Context,
        error: SendError,
        dying: bool,
    ) -> Result<Progress, ConnectionError> {
        assert!(self.is_with_kernel(), "no send was in flight: {:?}", self.send);
        match (error, &mut self.send) {
            (_, Send::Idle) => unreachable!("the kernel has a send"),
            (SendError::Memory, Send::Trying { .. }) => {
                context.resources.stats.memory_retries += 1;
                return Ok(self.on_sent(context, 0, dying));
            }
            (SendError::Stopped, Send::Trying { .. }) => return Ok(self.on_sent(context, 0, dying)),
            (SendError::Memory, Send::Spilled { step, .. } | Send::Held { step, .. }) => {
                *step = Step::Retrying;
                context.retry_later();
            }
            (SendError::Stopped, Send::Spilled { step, .. } | Send::Held { step, .. }) => {
                *step = Step::Ready;
            }
            (SendError::Failed(error), &mut Send::Trying { buffer, .. }) => {
                self.send = Send::Idle;
                context.drop_chunk(buffer);
                return Err(error);
            }
            (SendError::Failed(error), Send::Spilled { step, .. } | Send::Held { step, .. }) => {
                *step = Step::Ready;
                return Err(error);
            }
        }
        Ok(Progress::Unchanged)
    }

    /// The kernel may have memory again. False if the send did not wait for that.
    pub(crate) fn end_retry(&mut self) -> bool {
        match &mut self.send {
            Send::Spilled { step: step @ Step::Retrying, .. }
            | Send::Held { step: step @ Step::Retrying, .. } => {
                *step = Step::Ready;
                true
            }
            Send::Idle | Send::Trying { .. } | Send::Spilled { .. } | Send::Held { .. } => false,
        }
    }

    /// Stops a send that waits for room, for a handover.
    pub(crate) fn stop(&mut self, context: &mut Context) {
        if let Send::Spilled { step: step @ Step::InFlight, .. }
        | Send::Held { step: step @ Step::InFlight, .. } = &mut self.send
        {
            *step = Step::Stopping;
            context.ops.push(Op::CancelSend { connection: context.id });
        }
    }

    /// For a handover: spills all held bytes, even beyond the limit. False if the system has no
    /// memory for some of them, which are then dropped.
    pub(crate) fn spill_held(&mut self, context: &mut Context) -> bool {
        let held = match self.send {
            Send::Held { buffer, step: Step::Ready | Step::Retrying } => {
                self.send = Send::Spilled { spill: Spill::default(), step: Step::Ready };
                Some(buffer)
            }
            Send::Spilled { .. } => None,
            Send::Idle | Send::Trying { .. } | Send::Held { .. } => return true,
        };
        let mut next = held.or_else(|| self.pop(context));
        while let Some(buffer) = next {
            let Send::Spilled { spill, .. } = &mut self.send else {
                unreachable!("it was set above")
            };
            let (_, length) = context.resources.pool.unsent(buffer);
            let grown = context
                .resources
                .charge_spill(*spill, length, |budget, blocks| budget.take_beyond(blocks));
            let Some(grown) = grown else {
                context.drop_chunk(buffer);
                return false;
            };
            *spill = grown;
            self.spill(context, buffer);
            next = self.pop(context);
        }
        true
    }

    fn pop(&mut self, context: &mut Context) -> Option<BufferId> {
        self.queue.pop(&mut context.resources.pool).map(|(buffer, _)| buffer)
    }

    /// Drops the queued chunks.
    pub(crate) fn drop_queue(&mut self, context: &mut Context) {
        while let Some(buffer) = self.pop(context) {
            context.drop_chunk(buffer);
        }
    }

    /// Drops spilled and held bytes. Spilled bytes occupy memory until the close that follows.
    pub(crate) fn drop_backlog(&mut self, context: &mut Context) {
        match self.send {
            Send::Idle | Send::Trying { .. } => return,
            Send::Spilled { spill, .. } => {
                context.resources.stats.bytes_dropped += u64::from(spill.unsent());
                let _ = context.resources.refund_spill(spill, spill.unsent());
            }
            Send::Held { buffer, .. } => context.drop_chunk(buffer),
        }
        self.end_stall(context);
    }

    /// No bytes are spilled or held at the front any more.
    fn end_stall(&mut self, context: &mut Context) {
        self.send = Send::Idle;
        context.resources.stats.stalled -= 1;
        context.resources.stalled_since.remove(&context.id.slot());
    }

    /// Gives the spilled bytes away. Returns how many there are.
    pub(crate) fn export(&mut self, context: &mut Context) -> u32 {
        assert!(!self.is_with_kernel(), "the kernel has {:?}", self.send);
        assert_eq!(self.queue.count(), 0, "queued bytes are not being sent");
        match self.send {
            Send::Idle => 0,
            Send::Spilled { spill, .. } => {
                let unsent = spill.unsent();
                context.resources.stats.bytes_handed_over += u64::from(unsent);
                let _ = context.resources.refund_spill(spill, unsent);
                self.end_stall(context);
                unsent
            }
            Send::Trying { .. } => unreachable!("the kernel has a send"),
            Send::Held { .. } => unreachable!("held bytes are spilled for a handover"),
        }
    }

    /// The sending half of a connection of the previous process, which left `unsent` bytes unsent.
    #[must_use]
    pub(crate) fn imported(context: &mut Context, unsent: u32) -> Self {
        let mut outbound = Self::default();
        if unsent > 0 {
            let spill = Spill::of(unsent);
            context.resources.count_imported(spill);
            context.resources.stats.stalled += 1;
            // The time at which they were received is not known any more.
            context.resources.stalled_since.insert(context.id.slot(), None);
            outbound.send = Send::Spilled { spill, step: Step::Ready };
        }
        outbound
    }
}
