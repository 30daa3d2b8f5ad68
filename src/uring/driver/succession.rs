//! Connections that come from the process before us, or go to the next one.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};

use socket2::{Domain, SockRef};

use super::receive::HangUp;
use super::{Driver, OPEN, Socket, Transport, source};
use crate::echo::op::{ConnectionId, Source};
use crate::uring::aside::Aside;
use crate::uring::token::Token;

impl Driver {
    /// Takes over a connection of the process before us, with the bytes that are still to be sent
    /// on it, if any. Returns where it came from.
    ///
    /// # Panics
    /// If the slot is in use.
    pub fn adopt(&mut self, connection: ConnectionId, fd: OwnedFd, unsent: &[u8]) -> Source {
        let unix = SockRef::from(&fd).domain().is_ok_and(|domain| domain == Domain::UNIX);
        let transport = if unix { Transport::Unix } else { Transport::Tcp };
        let source = source::of(fd.as_fd(), transport).unwrap_or(Source::Untold);
        self.install(connection, Socket::new(fd, transport));
        if !unsent.is_empty() {
            let piece = self.vault.keep(unsent);
            self.asides.entry(connection.slot()).or_default().push(piece);
        }
        source
    }

    /// Gives a connection away: its socket, and the bytes that are still to be sent on it.
    ///
    /// # Panics
    /// If there is none of this name, or a send of those bytes is under way.
    pub fn release(&mut self, connection: ConnectionId) -> (OwnedFd, Box<[u8]>) {
        let aside = self.asides.remove(&connection.slot()).map(ManuallyDrop::into_inner);
        let unsent = aside.map_or_else(Box::default, Aside::into_unsent);
        let socket = self.sockets[connection.slot() as usize].take().expect(OPEN);
        self.open -= 1;
        if socket.hang_up == HangUp::Watched {
            // As in `close`; without it the poll would go with the ring, a moment later.
            self.ring.cancel(Token::HungUp(connection));
        }
        (socket.fd, unsent)
    }
}
