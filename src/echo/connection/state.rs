//! What is known of a connection: its phase, and where its receive and its send stand.

use crate::echo::op::{BufferId, ReceiveMode};
use crate::echo::stats::CloseReason;

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
    /// Not armed: the pool was empty. Stands in line for a buffer.
    Starved,
    /// Not armed: the kernel was short of memory. Will be tried again.
    Retrying,
}

impl Receive {
    pub(super) fn is_with_kernel(self) -> bool {
        match self {
            Self::Armed(_) | Self::Stopping => true,
            Self::Off | Self::Starved | Self::Retrying => false,
        }
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
        awaited: bool,
        /// Whether it is one of those whose residence time is taken.
        timed: bool,
    },
    /// The peer does not keep up: what it did not take is set aside.
    Aside {
        /// Bytes still to be sent.
        unsent: u32,
        /// Bytes charged for them; given back when all is sent.
        charged: u32,
        /// Whether a send of them is under way.
        step: AsideStep,
    },
}

impl Send {
    pub(super) fn is_with_kernel(self) -> bool {
        match self {
            Self::Trying { .. }
            | Self::Aside { step: AsideStep::InFlight | AsideStep::Stopping, .. } => true,
            Self::Idle | Self::Aside { .. } => false,
        }
    }
}

/// Where the send of set-aside bytes stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsideStep {
    /// To be submitted.
    Ready,
    /// With the kernel.
    InFlight,
    /// With the kernel, and canceled.
    Stopping,
    /// The kernel was short of memory; will be tried again.
    Retrying,
}
