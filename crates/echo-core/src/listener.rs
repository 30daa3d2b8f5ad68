//! One listening socket, as one worker sees it: whether an accept is armed, and if not, why.
//!
//! Accepts are one-shot on purpose: a one-shot accept goes to the end of the socket's wait queue
//! each time, so workers that share a listener take turns exactly; a multishot stays at the head
//! and takes every connection (Linux 6.18, measured).

use super::op::{ConnectionId, Timestamp};

/// Whether an accept is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// No: all places are taken, or the worker drains, or it is about to be.
    Off,
    /// Yes, under this name.
    Armed(ConnectionId),
    /// Yes, but it has been canceled.
    Canceling(ConnectionId),
    /// No: files or memory ran out. Tried again then, or when a connection closes.
    BackingOff(Timestamp),
    /// Yes, one that waits for nobody, under this name: the listener ends.
    Emptying(ConnectionId),
    /// No, and none ever will be: the listener has ended.
    Ended,
}

impl Listener {
    /// Whether an accept is with the kernel.
    #[must_use]
    pub fn is_with_kernel(self) -> bool {
        match self {
            Self::Armed(_) | Self::Canceling(_) | Self::Emptying(_) => true,
            Self::Off | Self::BackingOff(_) | Self::Ended => false,
        }
    }
}
