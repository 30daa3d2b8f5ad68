//! Relaying: an echo that takes bytes out of the receive queue only when they have been sent.
//!
//! 1. A poll waits for bytes, or for room.
//! 2. A receive looks at the bytes without taking them (`MSG_PEEK`).
//! 3. A send takes what there is room for.
//! 4. A receive takes as many as were sent: on TCP without copying them (`MSG_TRUNC`, tcp(7)); on
//!    Unix streams, which do not know that flag, it copies them over those that were looked at.
//!
//! The last three are system calls in a row, so the kernel never holds memory of ours.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use socket2::SockRef;

use super::receive::Receiving;
use super::send::{OnWritable, TRIES, send_error};
use super::{Driver, OPEN};
use crate::buffers::Mapping;
use crate::errno;
use crate::token::Token;
use echo_core::op::{ConnectionError, ConnectionId, Event, ReceiveEnd, SendError, When};

/// Bytes that are looked at in one go: as many as fit into a TCP segment of the loopback device.
const LENGTH_MAX: usize = 64 << 10;

/// Where relayed bytes are while they are looked at: of one relay at a time.
pub(super) struct Scratch(Mapping);

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        Mapping::new(LENGTH_MAX).map(Self)
    }

    pub(super) fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the mapping is so long, and nothing else points into it.
        unsafe { std::slice::from_raw_parts_mut(self.0.start().as_ptr().cast(), LENGTH_MAX) }
    }
}

impl Driver {
    /// Relays at most `length_max` bytes, or discards what comes.
    pub(super) fn relay(&mut self, connection: ConnectionId, when: When, length_max: Option<u32>) {
        match (when, length_max) {
            (When::Now, _) => {
                let event = self.relay_now(connection, length_max);
                self.answers.push(event);
            }
            (When::Writable, Some(length_max)) => {
                self.socket_mut(connection).receiving = Receiving::Blocked;
                self.await_room(connection, OnWritable::Relay { length_max });
            }
            (When::Readable, _) | (When::Writable, None) => {
                if let Some(length_max) = length_max {
                    self.relay_limits.insert(connection.slot(), length_max);
                }
                let socket = self.sockets[connection.slot() as usize].as_mut().expect(OPEN);
                socket.receiving = Receiving::Relaying;
                self.ring.poll(socket.fd.as_fd(), Token::Readable(connection));
            }
        }
    }

    /// The poll for bytes has ended.
    pub(super) fn relay_readable(
        &mut self,
        connection: ConnectionId,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        let length_max = self.relay_limits.remove(&connection.slot());
        let event = self.relay_polled(connection, result, length_max);
        events.push(event);
    }

    /// There may be room: relays at most so many bytes. Nothing if there is none after all.
    pub(super) fn relay_writable(
        &mut self,
        connection: ConnectionId,
        length_max: u32,
    ) -> Option<Event> {
        let event = self.relay_now(connection, Some(length_max));
        if let Event::Relayed { length: 0, next: When::Writable, .. } = event {
            return None;
        }
        self.socket_mut(connection).receiving = Receiving::No;
        Some(event)
    }

    /// The wait for room has ended with this errno.
    pub(super) fn relay_ended(&mut self, connection: ConnectionId, errno: i32) -> Event {
        self.relay_polled(connection, -errno, None)
    }

    fn relay_polled(
        &mut self,
        connection: ConnectionId,
        result: i32,
        length_max: Option<u32>,
    ) -> Event {
        self.socket_mut(connection).receiving = Receiving::No;
        if result < 0 {
            return Event::ReceiveEnded { connection, reason: errno::of_receive(-result) };
        }
        self.relay_now(connection, length_max)
    }

    fn relay_now(&mut self, connection: ConnectionId, length_max: Option<u32>) -> Event {
        let socket = self.sockets[connection.slot() as usize].as_ref().expect(OPEN);
        let socket = SockRef::from(&socket.fd);
        let scratch = self.scratch.bytes();
        let asked = length_max.map_or(LENGTH_MAX, |most| LENGTH_MAX.min(most as usize));
        let relayed = match length_max {
            Some(_) => echo(&socket, &mut scratch[..asked]),
            None => forget(&socket, scratch),
        };
        match relayed {
            Ok((length, next)) => Event::Relayed { connection, length: length as u32, next },
            Err(reason) => Event::ReceiveEnded { connection, reason },
        }
    }
}

/// Echoes what fits into `scratch`: how many bytes, and what to wait for next.
fn echo(
    socket: &SockRef<'_>,
    scratch: &mut [MaybeUninit<u8>],
) -> Result<(usize, When), ReceiveEnd> {
    let bytes = match peek(socket, scratch) {
        Ok([]) => return Err(ReceiveEnd::EndOfStream),
        Ok(bytes) => bytes,
        Err(error) => return nothing(&error),
    };
    let seen = bytes.len();
    let sent = match socket.send_with_flags(bytes, TRIES) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => {
            return match send_error(&error) {
                SendError::Memory => Err(ReceiveEnd::Memory),
                SendError::Stopped => Err(ReceiveEnd::Stopped),
                SendError::Failed(error) => Err(ReceiveEnd::Failed(error)),
            };
        }
    };
    take(socket, &mut scratch[..sent])?;
    let whole = seen == scratch.len();
    let next = match sent < seen {
        true => When::Writable,
        false if whole => When::Now,
        false => When::Readable,
    };
    Ok((sent, next))
}

/// Looks at what is in the receive queue, as far as `scratch` has room, and leaves it there.
/// Nothing is the end of the stream.
pub(super) fn peek<'a>(
    socket: &SockRef<'_>,
    scratch: &'a mut [MaybeUninit<u8>],
) -> io::Result<&'a [u8]> {
    let seen = socket.recv_with_flags(scratch, libc::MSG_PEEK | libc::MSG_DONTWAIT)?;
    let start = scratch.as_ptr().cast();
    // SAFETY: the kernel has just written so many bytes there.
    Ok(unsafe { std::slice::from_raw_parts(start, seen) })
}

/// Takes as many bytes as `scratch` has room for out of the receive queue, in which they are. They
/// may come in several pieces: a receive ends before urgent data (tcp(7)).
pub(super) fn take(
    socket: &SockRef<'_>,
    scratch: &mut [MaybeUninit<u8>],
) -> Result<(), ReceiveEnd> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    let mut taken = 0;
    while taken < scratch.len() {
        match socket.recv_with_flags(&mut scratch[taken..], flags) {
            // A reset empties the queue; what it says is said once.
            Ok(0) => return Err(ReceiveEnd::Failed(ConnectionError::Reset)),
            Ok(length) => taken += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                return Err(ReceiveEnd::Failed(errno::of_connection(errno)));
            }
        }
    }
    Ok(())
}

/// Forgets what is there.
fn forget(
    socket: &SockRef<'_>,
    scratch: &mut [MaybeUninit<u8>],
) -> Result<(usize, When), ReceiveEnd> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    match socket.recv_with_flags(scratch, flags) {
        Ok(0) => Err(ReceiveEnd::EndOfStream),
        Ok(length) if length == scratch.len() => Ok((length, When::Now)),
        Ok(length) => Ok((length, When::Readable)),
        Err(error) => nothing(&error),
    }
}

/// What it means that a look at the receive queue has found nothing.
pub(super) fn nothing(error: &io::Error) -> Result<(usize, When), ReceiveEnd> {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::EAGAIN | libc::EINTR => Ok((0, When::Readable)),
        libc::ENOBUFS => Err(ReceiveEnd::Memory),
        errno => Err(errno::of_receive(errno)),
    }
}
