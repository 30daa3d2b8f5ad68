//! Connections that come from the process before us, or go to the next one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use socket2::{Domain, SockRef, Type};

use super::{Driver, Socket, Transport, peer};
use crate::spill::{BLOCK, SpillQueue};
use echo_core::op::Budget;
use echo_core::op::{ConnectionId, PeerAddr};

impl Driver {
    /// Takes the memory for bytes of a connection that is to be imported, whatever the limit says.
    /// False if the system has none.
    #[must_use]
    pub fn take_memory_for(&self, unsent: &[u8]) -> bool {
        self.memory.take_beyond(unsent.len().div_ceil(BLOCK) as u32)
    }

    /// Takes over a connection of the process before us, with the bytes that are still to be sent
    /// on it, if any: [`Driver::take_memory_for`] has taken the memory for them. Returns where it
    /// came from.
    ///
    /// # Panics
    /// If the slot is in use.
    pub fn import(&mut self, connection: ConnectionId, fd: OwnedFd, unsent: &[u8]) -> PeerAddr {
        let socket = SockRef::from(&fd);
        let transport = match (socket.domain(), socket.r#type()) {
            (Ok(Domain::UNIX), Ok(Type::SEQPACKET)) => Transport::UnixSeqpacket,
            (Ok(Domain::UNIX), _) => Transport::Unix,
            _ => Transport::Tcp,
        };
        let peer = peer::of(fd.as_fd(), transport).unwrap_or(PeerAddr::Unknown);
        if transport == Transport::Tcp {
            self.hold_imported(fd.as_fd());
        }
        self.install(connection, Socket::new(fd, transport));
        if !unsent.is_empty() {
            let mut spill = SpillQueue::new(Arc::clone(&self.memory));
            spill.push(unsent);
            self.spills.insert(connection.slot(), spill);
        }
        peer
    }

    /// Gives a connection away: its socket, and the bytes that are still to be sent on it.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn release(&mut self, connection: ConnectionId) -> (OwnedFd, Box<[u8]>) {
        let spill = self.spills.remove(&connection.slot());
        let unsent = spill.map_or_else(Box::default, |spill| spill.to_vec().into_boxed_slice());
        (self.take_socket(connection), unsent)
    }
}
