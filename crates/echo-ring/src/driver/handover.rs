//! Connections that come from the previous process, or go to the next one.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use socket2::{Domain, SockRef, Type};

use super::preface::Preface;
use super::{Driver, Socket, Transport};
use crate::spill::{BLOCK, SpillQueue};
use echo_core::kernel::Kernel;
use echo_core::op::{Budget, ConnectionId, PeerAddr};

/// The driver's state of a connection that is handed over from one process to the next.
#[derive(Debug)]
pub struct ConnectionParts {
    /// Its socket.
    pub socket: OwnedFd,
    /// The bytes that are still to be sent on it.
    pub unsent: Box<[u8]>,
    /// The address that its header (PROXY protocol) has announced.
    pub announced: Option<SocketAddr>,
    /// The state of the parser, if a part of the header has arrived
    /// ([`echo_proxy_header::Parser::to_bytes`]); else empty.
    pub preface: Box<[u8]>,
}

impl ConnectionParts {
    /// The state of a connection without a header and without unsent bytes.
    #[must_use]
    pub fn of(socket: OwnedFd) -> Self {
        Self { socket, unsent: Box::default(), announced: None, preface: Box::default() }
    }
}

impl Driver {
    /// Takes the memory for bytes of a connection that is to be imported, even beyond the limit.
    /// False if the system has none.
    #[must_use]
    pub fn take_memory_for(&self, unsent: &[u8]) -> bool {
        self.memory.take_beyond(unsent.len().div_ceil(BLOCK) as u32)
    }

    /// Takes over a connection of the previous process. If bytes are still to be sent on it,
    /// [`Driver::take_memory_for`] has taken the memory for them. Returns the address of its peer,
    /// as [`Kernel::peer_of`] does from now on.
    ///
    /// # Panics
    /// If the slot is in use.
    pub fn import(&mut self, connection: ConnectionId, parts: ConnectionParts) -> PeerAddr {
        let ConnectionParts { socket: fd, unsent, announced, preface } = parts;
        let socket = SockRef::from(&fd);
        let transport = match (socket.domain(), socket.r#type()) {
            (Ok(Domain::UNIX), Ok(Type::SEQPACKET)) => Transport::UnixSeqpacket,
            (Ok(Domain::UNIX), _) => Transport::Unix,
            _ => Transport::Tcp,
        };
        if transport == Transport::Tcp {
            self.hold_imported(fd.as_fd());
        }
        self.install(connection, Socket::new(fd, transport));
        if !unsent.is_empty() {
            let mut spill = SpillQueue::new(Arc::clone(&self.memory));
            spill.push(&unsent);
            self.spills.insert(connection.slot(), spill);
        }
        let preface = (!preface.is_empty()).then(|| Preface::begun(&preface));
        if let Some(preface) = announced.map(Preface::Announced).or(preface) {
            self.prefaces.insert(connection.slot(), preface);
        }
        self.peer_of(connection)
    }

    /// Gives a connection away.
    ///
    /// # Panics
    /// If there is no connection with this id.
    pub fn release(&mut self, connection: ConnectionId) -> ConnectionParts {
        let spill = self.spills.remove(&connection.slot());
        let unsent = spill.map_or_else(Box::default, |spill| spill.to_vec().into_boxed_slice());
        let (announced, preface) = match self.prefaces.get(&connection.slot()) {
            Some(Preface::Announced(address)) => (Some(*address), Box::default()),
            Some(Preface::Reading(parser, _)) if parser.consumed() > 0 => {
                (None, Box::from(parser.to_bytes()))
            }
            Some(Preface::Reading(..)) | None => (None, Box::default()),
        };
        ConnectionParts { socket: self.take_socket(connection), unsent, announced, preface }
    }
}
