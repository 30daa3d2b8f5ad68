//! Telling a peer where it has arrived: what the kernel knows of the connection, as one line that
//! is sent by a system call.

use std::os::fd::AsFd;

use socket2::SockRef;

use super::Driver;
use super::preface::Preface;
use super::send::TRIES;
use crate::errno;
use crate::identity::{Address, Facts};
use echo_core::op::{ConnectionId, Event, ListenerId};

impl Driver {
    /// See [`echo_core::op::Op::Identify`].
    pub(super) fn identify(&mut self, connection: ConnectionId, listener: ListenerId) {
        let identity = self.listeners[usize::from(listener.0)].identity.as_ref();
        let identity = identity.expect("invariant: the core knows which listeners have one");
        let announced = match self.prefaces.get(&connection.slot()) {
            Some(Preface::Announced(address)) => Some(*address),
            Some(Preface::Reading(..)) | None => None,
        };
        let fd = self.socket(connection).fd.as_fd();
        let socket = SockRef::from(&fd);
        // A peer that has gone has no address any more; that is told by the send.
        let peer = socket.peer_addr().map_or(Address::Unknown, |address| Address::of(&address));
        let local = socket.local_addr().map_or(Address::Unknown, |address| Address::of(&address));
        let line = identity.line(self.worker, &Facts { peer, announced, local });
        let errno = match socket.send_with_flags(line.as_bytes(), TRIES) {
            Ok(length) if length == line.len() => return,
            // Part of a line is of no use.
            Ok(_) => libc::ENOBUFS,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        let error = errno::of_connection(errno);
        self.answers.push(Event::IdentifyFailed { connection, error });
    }
}
