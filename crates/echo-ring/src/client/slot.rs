//! A slot for a connection, and the state of its message in the kernel.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;

/// One slot, used by successive connections.
#[derive(Default)]
pub(super) struct Slot {
    /// Present exactly while the slot has a connection: from its connect to its close.
    pub(super) socket: Option<OwnedFd>,
    /// That of the connection; without one, that of the next.
    pub(super) generation: u32,
    /// True exactly while the kernel has the connect.
    pub(super) connecting: bool,
    /// True exactly while the kernel has a receive, or the receive waits for a buffer.
    pub(super) receiving: bool,
    /// True exactly while the connection is closed as soon as no operation is left on it.
    pub(super) closing: bool,
    /// True exactly while the kernel has the send of the message.
    pub(super) sending: bool,
    /// The message. Not accessed while `sending`, because the kernel reads it.
    pub(super) message: Vec<u8>,
}

impl Slot {
    /// Whether no operation is left on the connection.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.connecting && !self.receiving && !self.sending
    }

    /// The socket, for an entry.
    pub(super) fn fd(&self) -> types::Fd {
        types::Fd(self.socket.as_ref().expect("invariant: the connection is open").as_raw_fd())
    }
}
