//! The end: a deadline, a FIN for every connection, and a bound on how long that takes. A handover
//! visits every connection in the same way, and brings it to quiescence instead.

use core::ops::Range;

use super::connection::Connection;
use super::resources::Context;
use crate::id::Timestamp;
use crate::kernel::Wake;

/// What every connection is told to do.
pub(crate) type Act = fn(&mut Connection, &mut Context<'_>);

/// The progress of the drain or of the handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Neither was requested.
    No,
    /// Nothing is accepted except connections that wait at listeners that end. Echoing continues
    /// until the deadline.
    Waiting { deadline: Timestamp },
    /// Every connection is being ended; those in the slots below `swept` have been told. When all
    /// have been told, connections that are left at `end` are closed.
    Ending { end: Timestamp, swept: usize },
    /// The drain waits for nothing any more; the slots below `swept` have been told.
    Over { swept: usize },
    /// Every connection is to become quiescent, to be handed over. Those in the slots below `swept`
    /// have been told; those below `quiescent` are quiescent.
    Quiescing { deadline: Timestamp, swept: usize, quiescent: usize },
    /// Connections that are not quiescent are being ended; those below `swept` have been told.
    QuiesceOverdue { swept: usize, quiescent: usize },
    /// Every connection has been given away. If the handover fails they are imported again, and a
    /// drain is requested. Nothing is accepted in between.
    Released,
}

impl Drain {
    /// The latest moment for the next step, with `slots` slots.
    #[must_use]
    pub(crate) fn wake(self, slots: usize) -> Wake {
        match self {
            Self::Waiting { deadline } => Wake::At(deadline),
            Self::Ending { swept, .. }
            | Self::Over { swept }
            | Self::Quiescing { swept, .. }
            | Self::QuiesceOverdue { swept, .. }
                if swept < slots =>
            {
                Wake::Now
            }
            Self::Ending { end, .. } => Wake::At(end),
            Self::Quiescing { deadline, .. } => Wake::At(deadline),
            Self::No | Self::Over { .. } | Self::QuiesceOverdue { .. } | Self::Released => {
                Wake::Never
            }
        }
    }

    /// Takes the next step: which of `slots` slots are to be visited now, and what their
    /// connections are to do. At most `most` slots are visited at once, because a worker with a
    /// million connections would otherwise appear stalled. `linger` is how long a peer has to
    /// answer our FIN, in milliseconds.
    pub(crate) fn advance(
        &mut self,
        now: Timestamp,
        slots: usize,
        most: usize,
        linger: u64,
    ) -> Option<(Range<usize>, Act)> {
        match *self {
            Self::Waiting { deadline } if deadline <= now => {
                *self = Self::Ending { end: now.plus(linger), swept: 0 };
            }
            Self::Ending { end, swept } if end <= now && swept == slots => {
                *self = Self::Over { swept: 0 };
            }
            Self::Quiescing { deadline, swept, quiescent } if deadline <= now && swept == slots => {
                *self = Self::QuiesceOverdue { swept: 0, quiescent };
            }
            Self::No
            | Self::Waiting { .. }
            | Self::Ending { .. }
            | Self::Over { .. }
            | Self::Quiescing { .. }
            | Self::QuiesceOverdue { .. }
            | Self::Released => {}
        }
        let (swept, act): (&mut usize, Act) = match self {
            Self::No | Self::Waiting { .. } | Self::Released => return None,
            Self::Ending { end, swept } => {
                if *swept < slots {
                    // A million FINs take seconds, so the linger time begins with the last FIN.
                    *end = now.plus(linger);
                }
                (swept, Connection::on_drain_deadline)
            }
            Self::Over { swept } => (swept, Connection::on_drain_end),
            Self::Quiescing { swept, .. } => (swept, Connection::quiesce),
            Self::QuiesceOverdue { swept, .. } => (swept, Connection::on_quiesce_deadline),
        };
        let from = *swept;
        *swept = slots.min(from + most);
        Some((from..*swept, act))
    }

    /// In a handover whose sweep has visited all of `slots` slots: the slot below which all
    /// connections are quiescent, for the caller to advance.
    pub(crate) fn quiescent_below(&mut self, slots: usize) -> Option<&mut usize> {
        match self {
            Self::Quiescing { swept, quiescent, .. }
            | Self::QuiesceOverdue { swept, quiescent }
                if *swept == slots =>
            {
                Some(quiescent)
            }
            _ => None,
        }
    }

    /// Whether connections are opened beyond capacity: they are being ended, or given away.
    #[must_use]
    pub(crate) fn exceeds_capacity(self) -> bool {
        !matches!(self, Self::No | Self::Waiting { .. } | Self::Released)
    }

    /// Whether the drain waits for nothing any more.
    #[must_use]
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Over { .. } | Self::QuiesceOverdue { .. })
    }

    /// Whether this is a drain, which ends when nothing is left.
    #[must_use]
    pub(crate) fn is_drain(self) -> bool {
        matches!(self, Self::Waiting { .. } | Self::Ending { .. } | Self::Over { .. })
    }
}
