//! What a peer is slow to take: its bytes are kept, and nothing more is received until they are
//! sent.
//!
//! 1. A send comes back short. The rest of its buffer is *spilled*: copied into memory of the
//!    connection's own, if the budget grants it, so that the pooled buffer goes home. So are the
//!    chunks that are queued behind it, and those that a receive brings which was armed before.
//! 2. What the budget does not grant is *held*: it stays in its pooled buffers. Spilled bytes are
//!    always older than held ones. Whenever some are sent, the budget is asked again.
//! 3. When all is sent, the connection is on probation: what comes next is relayed (see `relay`),
//!    which needs no memory at all.
//!
//! So want of memory ends no connection. What it costs is pooled buffers; where too many of them
//! are held ([`Pool::is_withheld`](crate::pool::Pool::is_withheld)), everybody is relayed.

use super::limits;
use super::{BufferId, Connection, ConnectionError, Context, Op, Phase, Send, Stamp, Step};
use crate::resources::Resources;

/// What the loss of bytes for want of the system's memory is counted as, see errno(3).
const ENOMEM: i32 = 12;

impl Connection {
    /// The socket did not take all of `buffer`, whose residence time is taken if `since_us` tells
    /// when it was filled.
    pub(super) fn stall(&mut self, context: &mut Context, buffer: BufferId, since_us: Option<u32>) {
        context.resources.stats.short_sends += 1;
        context.resources.stats.stalled += 1;
        context.resources.stalled_since.insert(context.id.slot(), since_us);
        context.timer_changed = true;
        self.progress = Stamp::at(context.now);
        self.shrink();
        self.probation = limits::PROBATION_RELAYS;
        self.keep(context, buffer);
    }

    /// Keeps what is unsent of `buffer`, and of those that are queued behind it.
    fn keep(&mut self, context: &mut Context, buffer: BufferId) {
        let (_, length) = context.resources.pool.unsent(buffer);
        self.send = Send::Spilled { unsent: 0, begin: 0, step: Step::Ready };
        if self.grant(context.resources, length) {
            self.spill(context, buffer);
            self.spill_queue(context);
        } else {
            self.send = Send::Held { buffer, step: Step::Ready };
            context.resources.pool.hold(buffer);
            self.queue.hold(&mut context.resources.pool);
        }
    }

    /// Takes in a chunk of a connection that has a backlog.
    pub(super) fn keep_next(&mut self, context: &mut Context, buffer: BufferId, length: u32) {
        let first_in_line = self.queue.count() == 0 && matches!(self.send, Send::Spilled { .. });
        if first_in_line && self.grant(context.resources, length) {
            self.spill(context, buffer);
        } else {
            self.queue.push(&mut context.resources.pool, buffer);
            context.resources.pool.hold(buffer);
        }
    }

    /// Spills what is queued, as far as memory is granted.
    fn spill_queue(&mut self, context: &mut Context) {
        while let Some((buffer, length)) = self.queue.first(&context.resources.pool)
            && self.grant(context.resources, length)
        {
            self.queue.pop(&mut context.resources.pool);
            self.spill(context, buffer);
        }
        self.queue.hold(&mut context.resources.pool);
    }

    /// Asks for the memory that so many further spilled bytes take.
    fn grant(&mut self, resources: &mut Resources, length: u32) -> bool {
        let Send::Spilled { unsent, begin, .. } = self.send else {
            unreachable!("nothing is spilled: {:?}", self.send)
        };
        resources.charge_spill(begin, unsent, length)
    }

    /// Moves the unsent bytes of a pooled buffer to memory that has been granted.
    fn spill(&mut self, context: &mut Context, buffer: BufferId) {
        let Send::Spilled { unsent, .. } = &mut self.send else {
            unreachable!("memory was granted for nothing: {:?}", self.send)
        };
        let (offset, length) = context.resources.pool.unsent(buffer);
        *unsent += length;
        context.ops.push(Op::Spill { connection: context.id, buffer, offset, length });
        context.recycle(buffer);
    }

    /// Spilled bytes were sent.
    pub fn on_spilled_sent(&mut self, context: &mut Context, length: u32) {
        let Send::Spilled { unsent, begin, step: Step::InFlight | Step::Stopping } = self.send
        else {
            unreachable!("spilled bytes came back unasked: {:?}", self.send)
        };
        assert!(length >= 1 && length <= unsent, "sent {length} of {unsent} bytes");
        context.resources.count_sent(self.listener, length);
        self.progress = Stamp::at(context.now);
        context.ops.push(Op::ReleaseSpilled { connection: context.id, length });
        let begin = context.resources.refund_spill(begin, unsent, length);
        if length == unsent {
            context.resources.count_echo_of_backlog(self.listener, context.id);
            self.end_stall(context);
        } else {
            self.send = Send::Spilled { unsent: unsent - length, begin, step: Step::Ready };
            self.spill_queue(context);
        }
        self.advance(context);
    }

    /// Held bytes were sent, or there was no room after all.
    pub(super) fn on_held_sent(&mut self, context: &mut Context, length: u32) {
        let Send::Held { buffer, step: Step::InFlight | Step::Stopping } = self.send else {
            unreachable!("a send came back that was not under way: {:?}", self.send)
        };
        context.resources.count_sent(self.listener, length);
        let is_sent = context.resources.pool.advance(buffer, length);
        if is_sent {
            self.progress = Stamp::at(context.now);
            context.resources.count_echo_of_backlog(self.listener, context.id);
            context.recycle(buffer);
            self.end_stall(context);
        } else if let Phase::Closing(_) = self.phase {
            self.send = Send::Held { buffer, step: Step::Ready };
        } else if length == 0 {
            // The socket has room but takes nothing: the kernel is short of memory.
            self.send = Send::Held { buffer, step: Step::Retrying };
            context.retry_later();
        } else {
            self.progress = Stamp::at(context.now);
            self.keep(context, buffer);
        }
        self.advance(context);
    }

    /// For a hand-over: spills all that is held, whatever the limit says. Where even the system
    /// has no memory, the connection cannot be handed over.
    pub(super) fn spill_held(&mut self, context: &mut Context) {
        let held = match self.send {
            Send::Held { buffer, step: Step::Ready | Step::Retrying } => {
                self.send = Send::Spilled { unsent: 0, begin: 0, step: Step::Ready };
                Some(buffer)
            }
            Send::Spilled { .. } => None,
            Send::Idle | Send::Trying { .. } | Send::Held { .. } => return,
        };
        let mut next = held.or_else(|| self.pop_queue(context));
        while let Some(buffer) = next {
            let Send::Spilled { unsent, begin, .. } = self.send else {
                unreachable!("it was set above")
            };
            let (_, length) = context.resources.pool.unsent(buffer);
            if !context.resources.charge_spill_beyond(begin, unsent, length) {
                context.resources.stats.bytes_dropped += u64::from(length);
                context.recycle(buffer);
                self.fail(context, ConnectionError::Unexpected(ENOMEM));
                return self.advance(context);
            }
            self.spill(context, buffer);
            next = self.pop_queue(context);
        }
    }

    fn pop_queue(&mut self, context: &mut Context) -> Option<BufferId> {
        self.queue.pop(&mut context.resources.pool).map(|(buffer, _)| buffer)
    }

    /// Forgets what will never be sent. Spilled bytes take up memory until the close that
    /// follows, not a turn less.
    pub(super) fn forget_backlog(&mut self, context: &mut Context) {
        match self.send {
            Send::Idle | Send::Trying { .. } => return,
            Send::Spilled { unsent, begin, .. } => {
                context.resources.stats.bytes_dropped += u64::from(unsent);
                context.resources.refund_spill(begin, unsent, unsent);
            }
            Send::Held { buffer, .. } => {
                let (_, unsent) = context.resources.pool.unsent(buffer);
                context.resources.stats.bytes_dropped += u64::from(unsent);
                context.recycle(buffer);
            }
        }
        self.end_stall(context);
    }

    /// Nothing is spilled or held at the front any more.
    fn end_stall(&mut self, context: &mut Context) {
        self.send = Send::Idle;
        context.resources.stats.stalled -= 1;
        context.resources.stalled_since.remove(&context.id.slot());
        context.timer_changed = true;
    }
}
