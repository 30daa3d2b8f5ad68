//! The end: a deadline, a FIN for every connection, and a bound on how long that takes. A handover
//! visits every connection in the same way, and brings it to quiescence instead.

use core::ops::Range;

use super::connection::Connection;
use super::resources::Context;
use crate::id::Timestamp;
use crate::kernel::Wake;

/// What every connection is made to do.
pub(crate) type Act = fn(&mut Connection, &mut Context<'_>);

/// How far the drain has come, or the handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Not asked for.
    No,
    /// No more accepts, but of what waits at listeners that end; echoing goes on until the
    /// deadline.
    Waiting { deadline: Timestamp },
    /// Every connection is being ended, those in the slots below `swept` already; when that has
    /// been all of them, what is left at `end` is closed.
    Ending { end: Timestamp, swept: usize },
    /// Nothing is waited for any more; the slots below `swept` have been told.
    Over { swept: usize },
    /// Every connection is to become quiescent, to be handed over; those in the slots below `swept`
    /// have been told, those below `quiescent` are so.
    Quiescing { deadline: Timestamp, swept: usize, quiescent: usize },
    /// What is not quiescent is being ended, below `swept` already.
    QuiesceOverdue { swept: usize, quiescent: usize },
    /// Every connection has been given away. If the handover fails they come back, and a drain is
    /// asked for; nothing is accepted in between.
    Released,
}

impl Drain {
    /// When it goes on at the latest, with so many slots.
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

    /// Goes on: which of so many slots are to be visited now, and what their connections are to do.
    /// At most `most` of them, or a worker with a million connections would look hung.
    /// `linger` is how long a peer has to answer our FIN, in milliseconds.
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
                    // A million FINs take seconds: the last one's time begins with it.
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

    /// In a handover whose sweep has visited all of so many slots: up to which of them connections
    /// are quiescent, for the caller to advance.
    pub(crate) fn quiescent_below(&mut self, slots: usize) -> Option<&mut usize> {
        match self {
            Self::Quiescing { swept, quiescent, .. }
            | Self::QuiesceOverdue { swept, quiescent }
                if *swept == slots =>
            {
                Some(quiescent)
            }
            Self::No
            | Self::Waiting { .. }
            | Self::Ending { .. }
            | Self::Over { .. }
            | Self::Quiescing { .. }
            | Self::QuiesceOverdue { .. }
            | Self::Released => None,
        }
    }

    /// Whether connections are being ended, or have been: they need no capacity any more.
    #[must_use]
    pub(crate) fn is_ending(self) -> bool {
        matches!(self, Self::Ending { .. } | Self::Over { .. })
    }

    /// Whether nothing is waited for any more.
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
