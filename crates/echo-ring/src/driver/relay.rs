//! Relaying: an echo that takes bytes out of the receive queue only when they have been sent.
//!
//! 1. A poll waits for bytes, or for room.
//! 2. A receive peeks at the bytes (`MSG_PEEK`).
//! 3. A send takes the bytes that there is room for.
//! 4. A receive consumes as many as were sent: on TCP without copying them (`MSG_TRUNC`, tcp(7)).
//!    Unix streams do not support that flag, so there they are copied once more, over the peeked
//!    bytes.
//!
//! The last three are system calls in a row, so the kernel never holds memory of ours. Messages of
//! a seqpacket connection keep their boundaries, see `messages`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::messages;
use super::receive::{Rdhup, Receiving};
use super::send::OnWritable;
use super::{Driver, OPEN};
use crate::buffers::Mapping;
use crate::errno;
use echo_core::op::{ConnectionError, ConnectionId, Event, ReceiveEnd, When};

/// Bytes that one peek reads: as many as fit into a TCP segment of the loopback device.
const LENGTH_MAX: usize = 64 << 10;

/// Memory for the bytes of one relay at a time. As long as the longest message; unused parts take
/// no memory.
pub(super) struct Scratch(Mapping);

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        Mapping::new(messages::LENGTH_MAX).map(Self)
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let start = self.0.start().as_ptr();
        // SAFETY: the mapping has this length and is initialised (zeroed, then written by the
        // kernel), and nothing else points into it.
        unsafe { std::slice::from_raw_parts_mut(start, messages::LENGTH_MAX) }
    }
}

const _: () = assert!(LENGTH_MAX <= messages::LENGTH_MAX);

/// What one relay has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) length: usize,
    /// See [`Event::Relayed`].
    pub(super) chunks: u32,
    pub(super) next: When,
}

impl Moved {
    pub(super) fn nothing(next: When) -> Self {
        Self { length: 0, chunks: 0, next }
    }

    /// `length` bytes of a stream.
    fn bytes(length: usize, next: When) -> Self {
        Self { length, chunks: u32::from(length > 0), next }
    }
}

impl Driver {
    /// Relays at most `length_max` bytes, or discards the bytes that arrive.
    pub(super) fn relay(&mut self, connection: ConnectionId, when: When, length_max: Option<u32>) {
        match (when, length_max) {
            (When::Now, _) => {
                let event = self.relay_now(connection, length_max);
                self.answers.push(event);
            }
            (When::Writable, Some(length_max)) => {
                self.await_room(connection, OnWritable::Relay { length_max });
            }
            (When::Writable, None) => unreachable!("a discard never waits for room"),
            (When::Readable, _) => {
                if let Some(length_max) = length_max {
                    self.relay_limits.insert(connection.slot(), length_max);
                }
                self.await_readable(connection, Receiving::Relaying);
            }
        }
    }

    /// The socket may be writable: relays at most `length_max` bytes. `None` if it is not.
    pub(super) fn relay_writable(
        &mut self,
        connection: ConnectionId,
        length_max: u32,
    ) -> Option<Event> {
        match self.relay_now(connection, Some(length_max)) {
            Event::Relayed { chunks: 0, next: When::Writable, .. } => None,
            event => Some(event),
        }
    }

    /// Relays at most `length_max` bytes of those that are there, or discards them.
    pub(super) fn relay_now(&mut self, connection: ConnectionId, length_max: Option<u32>) -> Event {
        let socket = self.sockets[connection.slot() as usize].as_ref().expect(OPEN);
        let (fd, scratch) = (socket.fd.as_fd(), self.scratch.bytes());
        let asked = length_max.map_or(LENGTH_MAX, |most| LENGTH_MAX.min(most as usize));
        let moved = match (socket.rdhup, length_max) {
            (Rdhup::Messages, Some(_)) => messages::echo(fd, scratch),
            (Rdhup::Messages, None) => messages::forget(fd),
            (_, Some(_)) => echo(fd, &mut scratch[..asked]),
            (_, None) => forget(fd, &mut scratch[..LENGTH_MAX]),
        };
        match moved {
            Ok(Moved { length, chunks, next }) => {
                Event::Relayed { connection, length: length as u32, chunks, next }
            }
            Err(reason) => Event::ReceiveEnded { connection, reason },
        }
    }
}

/// Echoes what fits into `scratch`.
fn echo(socket: BorrowedFd<'_>, scratch: &mut [u8]) -> Result<Moved, ReceiveEnd> {
    let bytes = match peek(socket, scratch) {
        Ok([]) => return Err(ReceiveEnd::EndOfStream),
        Ok(bytes) => bytes,
        Err(error) => return nothing(error),
    };
    let seen = bytes.len();
    let sent = match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(sent) => sent,
        Err(Errno::AGAIN) => 0,
        Err(error) => return Err(errno::of_relayed_send(error.raw_os_error())),
    };
    take(socket, &mut scratch[..sent])?;
    let whole = seen == scratch.len();
    let next = match sent < seen {
        true => When::Writable,
        false if whole => When::Now,
        false => When::Readable,
    };
    Ok(Moved::bytes(sent, next))
}

/// Peeks at the receive queue, as far as `scratch` has room. No bytes mean the end of the stream.
pub(super) fn peek<'a>(socket: BorrowedFd<'_>, scratch: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let (_, seen) = recv(socket, &mut *scratch, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(&scratch[..seen])
}

/// Consumes as many bytes from the receive queue as `scratch` has room for. The bytes are known to
/// be there, but they may come in several pieces: a receive ends before urgent data (tcp(7)).
pub(super) fn take(socket: BorrowedFd<'_>, scratch: &mut [u8]) -> Result<(), ReceiveEnd> {
    /// Consecutive receives that may bring nothing although the bytes are there. Each lets a
    /// pending signal be handled, so one would be enough.
    const FRUITLESS_MAX: u32 = 64;
    let (mut taken, mut fruitless) = (0, 0);
    while taken < scratch.len() {
        match recv(socket, &mut scratch[taken..], RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
            // recv(2) reports a reset once, and 0 afterwards.
            Ok((_, 0)) => return Err(ReceiveEnd::Failed(ConnectionError::Reset)),
            Ok((_, length)) => (taken, fruitless) = (taken + length, 0),
            Err(Errno::INTR) => {}
            // At urgent data a receive finds nothing while a signal is pending (SIGSTOP, the
            // cgroup freezer; `tcp_recvmsg_locked` of Linux 6.18).
            Err(Errno::AGAIN) if fruitless < FRUITLESS_MAX => fruitless += 1,
            Err(error) => {
                let error = errno::of_connection(error.raw_os_error());
                return Err(ReceiveEnd::Failed(error));
            }
        }
    }
    Ok(())
}

/// Drops the bytes that are there.
fn forget(socket: BorrowedFd<'_>, scratch: &mut [u8]) -> Result<Moved, ReceiveEnd> {
    let room = scratch.len();
    match recv(socket, scratch, RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Err(ReceiveEnd::EndOfStream),
        Ok((_, length)) if length == room => Ok(Moved::bytes(length, When::Now)),
        Ok((_, length)) => Ok(Moved::bytes(length, When::Readable)),
        Err(error) => nothing(error),
    }
}

/// The event for a receive or peek that returned an error.
pub(super) fn nothing(error: Errno) -> Result<Moved, ReceiveEnd> {
    match error {
        Errno::AGAIN | Errno::INTR => Ok(Moved::nothing(When::Readable)),
        Errno::NOBUFS => Err(ReceiveEnd::Memory),
        error => Err(errno::of_receive(error.raw_os_error())),
    }
}
