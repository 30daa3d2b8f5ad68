//! A slot for a connection, and the state of its message in the kernel.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;

/// One slot, used by successive connections.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) socket: Option<OwnedFd>,
    pub(super) generation: u32,
    pub(super) connecting: bool,
    pub(super) receiving: bool,
    pub(super) closing: bool,
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
