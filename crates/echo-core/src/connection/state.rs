//! What is known of a connection: its phase, and where its receive and its send stand.

use crate::op::{BufferId, ReceiveMode, When};
use crate::stats::CloseReason;

/// What a slot is used for. Data valid in one phase only lives in that phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has the slot.
    Free,
    /// Its name has been given to an armed accept.
    Accepting,
    /// Accepted in a race for the last place: waits for one, as it would in the backlog. Or waits
    /// for the next turn, to be let in or refused.
    Parked,
    /// Receiving and echoing.
    Open,
    /// The peer has sent its FIN: echo what is left, then close.
    Finishing,
    /// We want to end it: echo what was received until now, then send FIN.
    Flushing(CloseReason),
    /// We have sent FIN. Read on to the peer's FIN: close(2) with unread bytes would reset the
    /// connection and destroy echoed bytes that are still under way.
    Lingering(CloseReason),
    /// Nothing more will be echoed. Waits until the kernel holds nothing of it.
    Closing(CloseReason),
}

/// Where the receive stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receive {
    /// Not armed.
    Off,
    /// With the kernel.
    Armed(ReceiveMode),
    /// With the kernel, and canceled.
    Stopping,
    /// With the kernel, which echoes without anything in our hands.
    Relaying(When),
    /// As `Relaying`, and canceled.
    RelayStopping,
    /// With the kernel, which forgets what comes.
    Discarding(When),
    /// As `Discarding`, and canceled.
    DiscardStopping,
    /// Not armed: the pool was empty. Stands in line for a buffer.
    Starved,
    /// Not armed: the kernel was short of memory. Will be tried again.
    Retrying,
}

impl Receive {
    pub(super) fn is_with_kernel(self) -> bool {
        match self {
            Self::Armed(_)
            | Self::Stopping
            | Self::Relaying(_)
            | Self::RelayStopping
            | Self::Discarding(_)
            | Self::DiscardStopping => true,
            Self::Off | Self::Starved | Self::Retrying => false,
        }
    }

    /// Whether it may still send.
    pub(super) fn is_relay(self) -> bool {
        matches!(self, Self::Relaying(_) | Self::RelayStopping)
    }
}

/// Where the send stands. There is never more than one, so order needs no further care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// Nothing is being sent.
    Idle,
    /// The kernel tries to send this buffer.
    Trying {
        /// Lent to this connection.
        buffer: BufferId,
        /// Bytes in it.
        length: u32,
        /// Whether anything waits for the answer.
        needs_completion: bool,
        /// Whether it is one of those whose residence time is taken.
        timed: bool,
    },
    /// The peer does not keep up: what it did not take is spilled, and sent before what is
    /// queued.
    Spilled {
        /// Bytes still to be sent, at least 1.
        unsent: u32,
        /// Where they begin in the first of their blocks of memory.
        begin: u32,
        /// Whether a send of them is under way.
        step: Step,
    },
    /// The peer does not keep up, and no memory was granted for what it did not take: it stays in
    /// this buffer, and in those that are queued behind it.
    Held {
        /// Lent to this connection.
        buffer: BufferId,
        /// Whether a send of it is under way.
        step: Step,
    },
}

impl Send {
    pub(super) fn is_with_kernel(self) -> bool {
        match self {
            Self::Trying { .. }
            | Self::Spilled { step: Step::InFlight | Step::Stopping, .. }
            | Self::Held { step: Step::InFlight | Step::Stopping, .. } => true,
            Self::Idle | Self::Spilled { .. } | Self::Held { .. } => false,
        }
    }
}

/// Where a send that waits for room stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To be submitted.
    Ready,
    /// With the kernel.
    InFlight,
    /// With the kernel, and canceled.
    Stopping,
    /// The kernel was short of memory; will be tried again.
    Retrying,
}
