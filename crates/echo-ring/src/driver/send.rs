//! Sending: what a pooled buffer holds, tried at once, and what a slow peer did not take, when
//! there is room again.
//!
//! # Waiting for room
//! No send is left to wait in the kernel. io_uring would wait for it by a poll, but that one also
//! ends when the peer has shut down its side (POLLRDHUP, which every poll asks for) or an urgent
//! byte is unread (POLLPRI), room or not; a send that is woken so in vain, 128 times, is given to a
//! blocking thread of its own (`iou-wrk-…`; APOLL_MAX_RETRY, Linux 6.1 to 6.18). So:
//!
//! 1. A multishot poll for room is armed, if it is not; if it is, what waits is tried at once.
//! 2. The poll tells something: what waits is tried, by a system call that takes what fits. Nothing
//!    fits: it goes on waiting. The poll is edge-triggered, so what stays true (a peer that has
//!    shut down its side) is told once, and each further try has its own cause.
//! 3. The poll outlives the answer, for those who wait again. When it tells something that nobody
//!    waits for, it is canceled.
//!
//! # Tries without a completion
//! A try is over when the kernel has taken its entry: it never waits. So a try whose answer nobody
//! waits for asks for a completion only if it takes less than all (`MSG_WAITALL` makes that a
//! failure, `IOSQE_CQE_SKIP_SUCCESS` keeps silent about the rest), and what is not heard of after
//! the entries were handed over was sent. Where one message is under way at a time that makes one
//! turn of the loop of two: 0.13 of the 5.7 µs of an echo where nobody sleeps.

use std::io;
use std::os::fd::AsFd;

use io_uring::{cqueue, opcode, squeue};
use socket2::SockRef;

use super::{Driver, OPEN};
use crate::errno;
use crate::token::Token;
use echo_core::op::{BufferId, ConnectionId, Event, SendError, SizeClass};

/// A try of which no completion is expected.
#[derive(Clone, Copy)]
pub(super) struct SkipSuccessSend {
    connection: ConnectionId,
    length: u32,
}

/// What a connection waits for room for.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnWritable {
    /// To send spilled bytes.
    SendSpilled,
    /// To send these bytes of a pooled buffer.
    SendHeld { buffer: BufferId, offset: u32, length: u32 },
    /// To relay at most so many bytes.
    Relay { length_max: u32 },
}

/// Whether a poll tells when a socket may have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// None is armed.
    Unwatched,
    /// One is armed.
    Watched,
    /// One was armed and has been canceled, but has not ended yet. Another one could not be told
    /// from it.
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
        let bytes = match buffer.class {
            SizeClass::Small => self.small.lent_bytes(buffer.index, length),
            SizeClass::Large => self.large.lent_bytes(buffer.index, length),
        };
        let entry = opcode::Send::new(fd, bytes, length);
        let entry = if needs_completion {
            entry.flags(TRIES).build().user_data(Token::Send(connection).pack())
        } else {
            self.skip_success_sends.push(SkipSuccessSend { connection, length });
            self.socket_mut(connection).skips_success = true;
            let entry = entry.flags(TRIES | libc::MSG_WAITALL).build();
            let token = Token::SkipSuccessSend(connection);
            entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(token.pack())
        };
        self.in_flight += 1;
        // SAFETY: `bytes` are `length` bytes of the pool, which outlives the send, see `BufferRing`
        // and `Drop`. A core that recycled the buffer meanwhile would garble its own echo, but the
        // memory stays ours.
        unsafe { self.ring.push(entry) };
    }

    /// Answers the skip-success sends: all but those that `completions` tell of were sent whole.
    /// Not before the kernel has taken all entries and told all it has to tell.
    pub(super) fn answer_skip_success_sends(
        &mut self,
        completions: &[cqueue::Entry],
        events: &mut Vec<Event>,
    ) {
        if self.skip_success_sends.is_empty() {
            return;
        }
        // What the kernel has not taken, or tells of when its queue has room again, comes with one
        // of the next turns, which do not wait.
        self.flushes_sends = !self.ring.is_handed_over() || self.ring.has_overflowed();
        if self.flushes_sends {
            return;
        }
        for completion in completions {
            if let Some(connection) = Token::skip_success_send(completion.user_data()) {
                self.socket_mut(connection).skips_success = false;
            }
        }
        for SkipSuccessSend { connection, length } in self.skip_success_sends.drain(..) {
            let socket = self.sockets[connection.slot() as usize].as_mut().expect(OPEN);
            if std::mem::take(&mut socket.skips_success) {
                self.in_flight -= 1;
                events.push(Event::Sent { connection, length });
            }
        }
    }

    /// A skip-success send was not taken whole.
    pub(super) fn skip_success_send_failed(
        &mut self,
        connection: ConnectionId,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        // Still there if it was too early to answer.
        self.skip_success_sends.retain(|send| send.connection != connection);
        self.socket_mut(connection).skips_success = false;
        self.sent(connection, result, events);
    }

    /// A try has ended, and tells how.
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
            // What there was to tell may have been told.
            let event = self.try_waiting(connection);
            self.answers.extend(event);
        }
    }

    fn watch_room(&mut self, connection: ConnectionId) {
        let socket = self.sockets[connection.slot() as usize].as_mut().expect(OPEN);
        socket.room = Room::Watched;
        self.ring.poll_room(socket.fd.as_fd(), Token::Writable(connection));
    }

    /// Ends the wait for room, whatever for.
    pub(super) fn cancel_send(&mut self, connection: ConnectionId) {
        // The poll may stay: what it tells finds nobody waiting.
        if let Some(then) = self.on_writable.remove(&connection.slot()) {
            let event = self.ended(connection, then, libc::ECANCELED);
            self.answers.push(event);
        }
    }

    /// The poll for room tells something, or has ended.
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
            // With bytes spilled it will be waited for again.
            let wanted = self.spills.contains_key(&slot);
            if self.socket(connection).room == Room::Watched && !wanted {
                self.socket_mut(connection).room = Room::Canceled;
                self.ring.cancel(Token::Writable(connection));
            }
            return;
        }
        if result < 0 && was == Room::Watched {
            let then = self.on_writable.remove(&slot).expect("invariant: seen above");
            return events.push(self.ended(connection, then, -result));
        }
        events.extend(self.try_waiting(connection));
        if self.on_writable.contains_key(&slot) && self.socket(connection).room == Room::Unwatched {
            self.watch_room(connection);
        }
    }

    /// What becomes of a wait that ends with this errno.
    fn ended(&mut self, connection: ConnectionId, then: OnWritable, errno: i32) -> Event {
        match then {
            OnWritable::Relay { .. } => self.relay_ended(connection, errno),
            OnWritable::SendSpilled | OnWritable::SendHeld { .. } => {
                Event::SendFailed { connection, error: errno::of_send(errno) }
            }
        }
    }

    /// Tries what waits for room; nothing if there is none: then it goes on waiting.
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
        let bytes = match buffer.class {
            SizeClass::Small => self.small.part(buffer.index, offset, length),
            SizeClass::Large => self.large.part(buffer.index, offset, length),
        };
        match SockRef::from(&self.socket(connection).fd).send_with_flags(bytes, TRIES) {
            Ok(length) => Some(Event::Sent { connection, length: length as u32 }),
            Err(error) => send_failed(connection, &error),
        }
    }
}

/// Nothing if there is no room.
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
