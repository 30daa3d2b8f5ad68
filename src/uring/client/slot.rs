//! A place for a connection, and what the kernel does with its message.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;

/// How far a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has gone, or there has been none: its memory is free.
    Free,
    /// It goes with the next wait; ask again after that.
    Queued,
    /// It waits for room in the network; an event will tell that it was sent, or failed.
    Waiting,
}

/// What becomes of the message of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sending {
    /// Nothing: its memory is free.
    #[default]
    No,
    /// It is to be sent without waiting. That is over as soon as the kernel has taken the entry:
    /// if all of it went there is no completion, and this is as good as `No`.
    Tried {
        /// When it was queued.
        turn: u64,
    },
    /// Not all of it went; the completion that says so is reaped and not yet told.
    Refused,
    /// The kernel sends the rest as there is room.
    Parked,
}

/// One place for a connection, used by one tenant after another.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) socket: Option<OwnedFd>,
    pub(super) generation: u32,
    /// Whether the ring knows the socket by the number of the slot.
    pub(super) registered: bool,
    pub(super) connecting: bool,
    pub(super) receiving: bool,
    pub(super) closing: bool,
    pub(super) sending: Sending,
    /// What is sent. Untouched while `is_sending`: the kernel reads it.
    pub(super) message: Vec<u8>,
}

impl Slot {
    /// Whether the kernel may still read the message; `turn` is the driver's.
    pub(super) fn is_sending(&self, turn: u64) -> bool {
        match self.sending {
            Sending::No => false,
            Sending::Tried { turn: queued } => queued == turn,
            Sending::Refused | Sending::Parked => true,
        }
    }

    /// Whether no operation is left on the connection.
    pub(super) fn is_at_rest(&self, turn: u64) -> bool {
        !self.connecting && !self.receiving && !self.is_sending(turn)
    }

    /// How far the message is.
    pub(super) fn progress(&self, turn: u64) -> Progress {
        match self.sending {
            Sending::Refused | Sending::Parked => Progress::Waiting,
            Sending::Tried { .. } if self.is_sending(turn) => Progress::Queued,
            Sending::No | Sending::Tried { .. } => Progress::Free,
        }
    }

    /// The socket, for an entry.
    pub(super) fn fd(&self) -> types::Fd {
        types::Fd(self.socket.as_ref().expect("invariant: the connection is open").as_raw_fd())
    }
}
