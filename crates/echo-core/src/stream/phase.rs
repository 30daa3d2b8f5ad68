//! The phases of a connection.

use crate::op::{PrefaceProgress, TransferPhase};
use crate::reason::{CloseReason, RefuseReason};

/// What a slot is used for. Data valid in one phase only lives in that phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The slot is free.
    Free,
    /// Its id has been given to an armed accept.
    Accepting,
    /// Accepted in a race for the last capacity: waits for some, as it would in the backlog.
    WaitingForCapacity,
    /// Its header (PROXY protocol) is being read. It announces who the peer is.
    Preface(PrefaceProgress),
    /// Receiving and echoing.
    Open,
    /// The peer has sent its FIN: echo the remaining bytes, then close.
    HalfClosed,
    /// The connection is being ended: echo the bytes received until now, then send FIN.
    Flushing(CloseReason),
    /// We have sent FIN, and read until the peer's FIN. close(2) with unread bytes would reset the
    /// connection and destroy echoed bytes in transit.
    Lingering(CloseReason),
    /// Nothing more will be echoed. Waits until the kernel holds no operation of it.
    Closing(CloseReason),
    /// As `Closing`, for a connection that is refused after its accept.
    Refusing(RefuseReason),
}

impl Phase {
    /// Whether the slot is a connection that was opened and not closed yet.
    #[must_use]
    pub(crate) fn is_connection(self) -> bool {
        !matches!(self, Self::Free | Self::Accepting | Self::WaitingForCapacity)
    }

    /// Whether the peer is received from: its header, bytes to echo, or bytes behind our FIN.
    #[must_use]
    pub(crate) fn receives(self) -> bool {
        matches!(self, Self::Preface(_) | Self::Open | Self::Lingering(_))
    }

    /// Whether the connection waits only for the kernel to give back what it holds.
    #[must_use]
    pub(crate) fn is_closing(self) -> bool {
        matches!(self, Self::Closing(_) | Self::Refusing(_))
    }
    /// What the next process is told about a quiescent connection. None if there is no connection.
    #[must_use]
    pub(crate) fn exported(self) -> Option<TransferPhase> {
        match self {
            Self::Free | Self::Accepting => None,
            Self::WaitingForCapacity | Self::Closing(_) | Self::Refusing(_) => {
                unreachable!("{self:?} is not quiescent")
            }
            Self::Preface(progress) => Some(TransferPhase::Preface(progress)),
            Self::Open => Some(TransferPhase::Open),
            Self::HalfClosed => Some(TransferPhase::HalfClosed),
            Self::Flushing(reason) => Some(TransferPhase::Flushing(reason)),
            Self::Lingering(reason) => Some(TransferPhase::Lingering(reason)),
        }
    }

    /// The phase of a connection of the previous process.
    #[must_use]
    pub(crate) fn imported(phase: TransferPhase) -> Self {
        match phase {
            TransferPhase::Preface(progress) => Self::Preface(progress),
            TransferPhase::Open => Self::Open,
            TransferPhase::HalfClosed => Self::HalfClosed,
            TransferPhase::Flushing(reason) => Self::Flushing(reason),
            TransferPhase::Lingering(reason) => Self::Lingering(reason),
        }
    }
}
