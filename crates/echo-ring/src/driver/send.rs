//! Sending: the bytes of a pooled buffer are tried at once; bytes that a slow peer did not take are
//! sent when there is room again.
//!
//! # Waiting for room
//! No send waits in the kernel. io_uring would wait for room by a poll, but that poll also ends
//! when the peer has shut down its side (POLLRDHUP, which every poll requests) or an urgent byte is
//! unread (POLLPRI), even if there is no room. A send that was woken 128 times in vain is moved to
//! a blocking thread of its own (`iou-wrk-…`; APOLL_MAX_RETRY, Linux 6.1 to 6.18). Therefore:
//!
//! 1. A multishot poll for room is armed, unless one is armed already. In that case the waiting
//!    bytes are tried at once.
//! 2. When the poll reports an event, a system call sends as many of the waiting bytes as fit. If
//!    none fit, they continue to wait. The poll is edge-triggered, so a permanent condition (a peer
//!    that has shut down its side) is reported once, and each further try has its own cause.
//! 3. The poll stays armed after the send, in case the connection waits again. When it reports an
//!    event that nothing waits for, it is canceled.
//!
//! # Skip-success sends
//! A try-send never waits, so it has completed when the kernel has taken its entry. If nothing
//! waits for its answer, it requests a completion only if it takes fewer bytes than all:
//! `MSG_WAITALL` makes a short send a failure, and `IOSQE_CQE_SKIP_SUCCESS` omits the completion of
//! a success. A send without a completion after the entries were handed over was successful. If one
//! message is in flight at a time, that reduces two turns of the loop to one: 0.13 of the 5.7 µs of
//! an echo in which neither side sleeps.

use std::io;
use std::os::fd::AsFd;

use io_uring::{cqueue, opcode, squeue};
use socket2::SockRef;

use super::{Driver, OPEN};
use crate::errno;
use crate::token::Token;
use echo_core::op::{BufferId, ConnectionId, Event, SendError};

/// A try-send for which no completion is expected.
#[derive(Clone, Copy)]
pub(super) struct SkipSuccessSend {
    connection: ConnectionId,
    length: u32,
}

/// What a connection sends when there is room.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnWritable {
    /// Spilled bytes.
    SendSpilled,
    /// These bytes of a pooled buffer.
    SendHeld { buffer: BufferId, offset: u32, length: u32 },
    /// At most this many bytes, by a relay.
    Relay { length_max: u32 },
}

/// Whether a poll reports when a socket may have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// None is armed.
    Unwatched,
    /// One is armed.
    Watched,
    /// One was armed and has been canceled, but has not ended yet. Another poll could not be
    /// distinguished from it.
    Canceled,
}

impl Driver {
    pub(super) fn send(
        &mut self,
        connection: ConnectionId,
        buffer: BufferId,
        length: u32,
        needs_completion: bool,
    ) {
        let fd = self.fd(connection);
        let bytes = self.pools.of(buffer.class).lent_bytes(buffer.index, length);
        let entry = opcode::Send::new(fd, bytes, length);
        let entry = if needs_completion {
            entry.flags(TRIES).build().user_data(Token::Send(connection).pack())
        } else {
            self.skip_success_sends.push(SkipSuccessSend { connection, length });
            let entry = entry.flags(TRIES | libc::MSG_WAITALL).build();
            let token = Token::SkipSuccessSend(connection);
            entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(token.pack())
        };
        self.in_flight += 1;
        // SAFETY: `bytes` are `length` bytes of the pool, which outlives the send, see `Buffers`
        // and `Drop`. A core that recycled the buffer meanwhile would corrupt its own echo, but the
        // memory stays ours.
        unsafe { self.ring.push(entry) };
    }

    /// Forgets the skip-success sends with a failure in `completions`, which answers them.
    pub(super) fn forget_failed_sends(&mut self, completions: &[cqueue::Entry]) {
        if self.skip_success_sends.is_empty() {
            return;
        }
        for completion in completions {
            if let Some(failed) = Token::skip_success_send(completion.user_data()) {
                self.skip_success_sends.retain(|send| send.connection != failed);
            }
        }
    }

    /// Answers the skip-success sends that have not failed: they were sent whole. To be called when
    /// a turn is settled.
    pub(super) fn answer_skip_success_sends(&mut self, events: &mut Vec<Event>) {
        self.in_flight -= self.skip_success_sends.len() as u64;
        let sent = |SkipSuccessSend { connection, length }| Event::Sent { connection, length };
        events.extend(self.skip_success_sends.drain(..).map(sent));
    }

    /// A try-send has completed with `result`.
    pub(super) fn sent(&mut self, connection: ConnectionId, result: i32, events: &mut Vec<Event>) {
        self.in_flight -= 1;
        if result >= 0 {
            events.push(Event::Sent { connection, length: result as u32 });
        } else if result == -libc::EAGAIN {
            events.push(Event::Sent { connection, length: 0 });
        } else {
            events.push(Event::SendFailed { connection, error: errno::of_send(-result) });
        }
    }

    /// Waits for room in the socket's send buffer, to do `then`.
    pub(super) fn await_room(&mut self, connection: ConnectionId, then: OnWritable) {
        let former = self.on_writable.insert(connection.slot(), then);
        assert!(former.is_none(), "{connection:?} waits for room already");
        if self.socket(connection).room == Room::Unwatched {
            self.watch_room(connection);
        } else {
            // The poll may already have reported the present room.
            let event = self.try_waiting(connection);
            self.answers.extend(event);
        }
    }

    fn watch_room(&mut self, connection: ConnectionId) {
        let socket = self.sockets[connection.slot() as usize].as_mut().expect(OPEN);
        socket.room = Room::Watched;
        self.ring.poll_room(socket.fd.as_fd(), Token::Writable(connection));
    }

    /// Ends the wait for room.
    pub(super) fn cancel_send(&mut self, connection: ConnectionId) {
        // The poll may stay armed: nothing waits for its events.
        if let Some(then) = self.on_writable.remove(&connection.slot()) {
            self.answers.push(Self::ended(connection, then, libc::ECANCELED));
        }
    }

    /// The poll for room reports an event, or has ended.
    pub(super) fn writable(
        &mut self,
        connection: ConnectionId,
        result: i32,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        let socket = self.socket_mut(connection);
        let was = socket.room;
        if !cqueue::more(flags) {
            socket.room = Room::Unwatched;
        }
        let slot = connection.slot();
        if !self.on_writable.contains_key(&slot) {
            // A connection with spilled bytes will wait for room again.
            let wanted = self.spills.contains_key(&slot);
            if self.socket(connection).room == Room::Watched && !wanted {
                self.socket_mut(connection).room = Room::Canceled;
                self.ring.cancel(Token::Writable(connection));
            }
            return;
        }
        if result < 0 && was == Room::Watched {
            let then = self.on_writable.remove(&slot).expect("invariant: seen above");
            return events.push(Self::ended(connection, then, -result));
        }
        events.extend(self.try_waiting(connection));
        if self.on_writable.contains_key(&slot) && self.socket(connection).room == Room::Unwatched {
            self.watch_room(connection);
        }
    }

    /// The event for a wait that ends with this errno.
    fn ended(connection: ConnectionId, then: OnWritable, errno: i32) -> Event {
        match then {
            OnWritable::Relay { .. } => {
                Event::ReceiveEnded { connection, reason: errno::of_receive(errno) }
            }
            OnWritable::SendSpilled | OnWritable::SendHeld { .. } => {
                Event::SendFailed { connection, error: errno::of_send(errno) }
            }
        }
    }

    /// Tries to send the waiting bytes. None if there is no room: then they continue to wait.
    fn try_waiting(&mut self, connection: ConnectionId) -> Option<Event> {
        let then = *self.on_writable.get(&connection.slot())?;
        let event = match then {
            OnWritable::Relay { length_max } => self.relay_writable(connection, length_max),
            OnWritable::SendSpilled => self.send_spilled(connection),
            OnWritable::SendHeld { buffer, offset, length } => {
                self.send_held(connection, buffer, offset, length)
            }
        }?;
        self.on_writable.remove(&connection.slot());
        Some(event)
    }

    fn send_spilled(&mut self, connection: ConnectionId) -> Option<Event> {
        let spill = self.spills.get(&connection.slot());
        let spill = spill.expect("invariant: the core sends what it spilled");
        let socket = self.sockets[connection.slot() as usize].as_ref().expect(OPEN);
        match SockRef::from(&socket.fd).send_vectored_with_flags(&spill.slices(), TRIES) {
            Ok(length @ 1..) => Some(Event::SentSpilled { connection, length: length as u32 }),
            Ok(0) => Some(Event::SendFailed { connection, error: SendError::Memory }),
            Err(error) => send_failed(connection, &error),
        }
    }

    pub(super) fn release_spilled(&mut self, connection: ConnectionId, length: u32) {
        let spill = self.spills.get_mut(&connection.slot());
        let spill = spill.expect("invariant: the core forgets what it spilled");
        if spill.consume(length as usize) {
            self.spills.remove(&connection.slot());
        }
    }

    fn send_held(
        &mut self,
        connection: ConnectionId,
        buffer: BufferId,
        offset: u32,
        length: u32,
    ) -> Option<Event> {
        let bytes = self.pools.of(buffer.class).part(buffer.index, offset, length);
        match SockRef::from(&self.socket(connection).fd).send_with_flags(bytes, TRIES) {
            Ok(length) => Some(Event::Sent { connection, length: length as u32 }),
            Err(error) => send_failed(connection, &error),
        }
    }
}

/// None if there is no room.
fn send_failed(connection: ConnectionId, error: &io::Error) -> Option<Event> {
    let failed = Event::SendFailed { connection, error: send_error(error) };
    (error.kind() != io::ErrorKind::WouldBlock).then_some(failed)
}

/// The flags of every send.
pub(super) const TRIES: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Why a system call has sent nothing.
pub(super) fn send_error(error: &io::Error) -> SendError {
    errno::of_send(error.raw_os_error().unwrap_or(libc::EIO))
}
