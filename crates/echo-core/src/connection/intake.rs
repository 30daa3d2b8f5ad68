//! Bytes come in: what is queued, what is spilled, and what is beyond the byte limit.

use super::{CloseReason, Connection, Context, Phase, Send, Stamp};
use crate::op::BufferId;

impl Connection {
    /// Takes in the bytes of an open connection. Those beyond the byte limit come too late, as if
    /// they had come after the end that the limit brings.
    pub(super) fn take_in(
        &mut self,
        context: &mut Context,
        buffer: BufferId,
        length: u32,
        more: bool,
    ) {
        let resources = &mut *context.resources;
        self.progress = Stamp::at(context.now);
        self.classify(resources, length, more);
        let left = resources.count_against_limit(context.id, length);
        let mut kept = length;
        if left <= u64::from(length) {
            kept = left as u32;
            self.phase = Phase::Flushing(CloseReason::ByteLimit);
            resources.stats.bytes_dropped += u64::from(length - kept);
            if kept == 0 {
                return context.recycle(buffer);
            }
            resources.pool.shorten(buffer, kept);
        }
        match self.send {
            Send::Idle | Send::Trying { .. } => self.queue.push(&mut resources.pool, buffer),
            Send::Spilled { .. } | Send::Held { .. } => self.keep_next(context, buffer, kept),
        }
    }
}
