//! Waiting for what the worker or the kernel is short of: buffers and memory.

use super::{Connection, Context, Op, Receive, Send, Stamp, Step};

impl Connection {
    /// A buffer may be at home again: leave the line and arm. Nothing happens if the connection no
    /// longer waits.
    pub fn serve(&mut self, context: &mut Context) {
        if self.receive == Receive::Starved {
            self.receive = Receive::Off;
            self.end_wait(context);
            if self.wants_bytes(context.resources) {
                self.arm(context);
            }
        }
    }

    /// The kernel may have memory again.
    pub fn retry(&mut self, context: &mut Context) {
        if self.receive == Receive::Retrying {
            self.receive = Receive::Off;
            self.end_wait(context);
        }
        if let Send::Spilled { step: step @ Step::Retrying, .. }
        | Send::Held { step: step @ Step::Retrying, .. } = &mut self.send
        {
            *step = Step::Ready;
            self.end_wait(context);
        }
        self.advance(context);
    }

    /// That nothing moved while it waited was not the peer's doing.
    fn end_wait(&mut self, context: &mut Context) {
        self.progress = Stamp::at(context.now);
        context.timer_changed = true;
    }

    pub(super) fn stand_in_line(&mut self, context: &mut Context) {
        self.receive = Receive::Starved;
        context.resources.waiting.push_back(context.id);
        // The buffers of the sends under way are wanted back.
        context.ops.push(Op::FlushSends);
    }
}
