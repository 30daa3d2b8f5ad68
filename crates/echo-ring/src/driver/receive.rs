//! Receiving: from the core's one operation to the way that costs least, and back.
//!
//! Bytes that fit a small buffer are received by one multishot receive that stays armed; or by one
//! receive after the other, where that costs less (see `alternation`). Bulk goes into a large
//! buffer. There are few of them, so a connection that waits for bulk may keep one only as long as
//! nobody else needs it: its receive is revoked then, and it waits by a poll.

use std::os::fd::AsFd;

use io_uring::{cqueue, opcode, squeue};

use super::{Driver, MULTISHOT_BYTES_MAX, OPEN, SMALL_GROUP, Socket, Transport};
use crate::token::Token;
use crate::{errno, probe};
use echo_core::op::{
    BufferId, ConnectionId, Event, Expectation, ReceiveEnd, ReceiveMode, SizeClass,
};

/// What is armed to receive from a socket, or about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing.
    No,
    /// A receive into small buffers.
    Small,
    /// A poll; when the socket is readable, a large buffer is asked for.
    Readable,
    /// A receive into a large buffer that does not wait.
    Trying,
    /// A receive that waits, with a large buffer.
    Waiting,
    /// As `Waiting`, but canceled by us, for its buffer: a poll takes its place.
    Revoked,
    /// A poll for bytes; when there are some, they are relayed: at most so many, or discarded.
    Relaying,
    /// A poll for room; when there is some, bytes are relayed.
    Blocked,
}

/// Whether the end of a Unix stream is watched for: see [`Transport::Unix`]. So its connections may
/// be received from multishot: 0.985 of epoll's cost instead of 1.066 with one-shot receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rdhup {
    /// It need not be: this is TCP.
    Unneeded,
    /// Not yet.
    Unwatched,
    /// A poll for it is armed.
    Watched,
    /// A poll for it was armed and has been canceled, but has not ended yet. Another one could not
    /// be told from it.
    Canceled,
    /// The peer sends no more; what is left to receive is received one-shot.
    Seen,
}

impl Rdhup {
    pub(super) fn of(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Unneeded,
            Transport::Unix => Self::Unwatched,
        }
    }
}

impl Driver {
    pub(super) fn receive(
        &mut self,
        connection: ConnectionId,
        class: SizeClass,
        mode: ReceiveMode,
        expectation: Expectation,
    ) {
        match (class, expectation) {
            (SizeClass::Small, _) => self.receive_small(connection, mode, expectation),
            (SizeClass::Large, Expectation::Data) => {
                let answer = self.try_receive_large(connection);
                self.answers.extend(answer);
            }
            (SizeClass::Large, Expectation::Silence) => self.await_large(connection),
        }
    }

    fn receive_small(
        &mut self,
        connection: ConnectionId,
        mode: ReceiveMode,
        expectation: Expectation,
    ) {
        if self.alternation.is_on() {
            self.try_receive_small(connection);
        } else {
            self.arm_small(connection, mode, expectation);
        }
    }

    pub(super) fn arm_small(
        &mut self,
        connection: ConnectionId,
        mode: ReceiveMode,
        expectation: Expectation,
    ) {
        let fd = self.fd(connection);
        let socket = self.socket_mut(connection);
        socket.receiving = Receiving::Small;
        let watch = mode == ReceiveMode::Multishot && socket.start_watching_rdhup();
        let entry = match (mode, socket.rdhup) {
            (ReceiveMode::Multishot, Rdhup::Unneeded | Rdhup::Unwatched | Rdhup::Watched) => {
                probe::multishot_receive(fd, SMALL_GROUP, MULTISHOT_BYTES_MAX)
            }
            (ReceiveMode::Multishot, Rdhup::Canceled | Rdhup::Seen) | (ReceiveMode::Once, _) => {
                opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                    .ioprio(match expectation {
                        Expectation::Data => 0,
                        Expectation::Silence => probe::POLL_FIRST,
                    })
                    .buf_group(SMALL_GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            }
        };
        self.in_flight += 1;
        let entry = entry.user_data(Token::Receive(connection, SizeClass::Small).pack());
        // SAFETY: it points to no memory of its own; the buffers it may pick from outlive it, see
        // `BufferRing` and `Drop`.
        unsafe { self.ring.push(entry) };
        if watch {
            let socket = self.sockets[connection.slot() as usize].as_ref().expect(OPEN);
            self.ring.poll_rdhup(socket.fd.as_fd(), Token::Rdhup(connection));
        }
    }

    /// Receives into a large buffer what is there. If there is no buffer, answers so at once, and
    /// takes one back from a receive that waits, for the next time.
    fn try_receive_large(&mut self, connection: ConnectionId) -> Option<Event> {
        if self.submit_large(connection, Receiving::Trying) {
            return None;
        }
        self.socket_mut(connection).receiving = Receiving::No;
        if let Some(victim) = self.waiting.pop_front() {
            self.socket_mut(victim).receiving = Receiving::Revoked;
            self.ring.cancel(Token::Receive(victim, SizeClass::Large));
        }
        Some(Event::ReceiveEnded { connection, reason: ReceiveEnd::NoBuffer })
    }

    /// Receives bulk when it comes: with a large buffer in hand if one is free, which saves a poll
    /// for each message (16 KiB messages cost 1.05 of epoll's
    /// instead of 1.07).
    fn await_large(&mut self, connection: ConnectionId) {
        if self.submit_large(connection, Receiving::Waiting) {
            self.waiting.push_back(connection);
        } else {
            self.await_readable(connection);
        }
    }

    fn await_readable(&mut self, connection: ConnectionId) {
        let socket = self.sockets[connection.slot() as usize].as_mut().expect(OPEN);
        socket.receiving = Receiving::Readable;
        self.ring.poll(socket.fd.as_fd(), Token::Readable(connection));
    }

    /// Whether there was a large buffer to receive into.
    fn submit_large(&mut self, connection: ConnectionId, receiving: Receiving) -> bool {
        let fd = self.fd(connection);
        let Some((start, length)) = self.large.fill(connection.slot()) else { return false };
        let receive = opcode::Recv::new(fd, start, length);
        let receive = match receiving {
            Receiving::Waiting => receive.ioprio(probe::POLL_FIRST),
            _ => receive.flags(libc::MSG_DONTWAIT),
        };
        self.socket_mut(connection).receiving = receiving;
        self.in_flight += 1;
        let token = Token::Receive(connection, SizeClass::Large);
        // SAFETY: `start` are `length` bytes that `BufferStack::fill` gives to nobody else before
        // the completion, and that outlive the receive, see `BufferRing` and `Drop`.
        unsafe { self.ring.push(receive.build().user_data(token.pack())) };
        true
    }

    pub(super) fn cancel_receive(&mut self, connection: ConnectionId) {
        match self.socket(connection).receiving {
            // What does not wait answers by itself.
            Receiving::No | Receiving::Trying => {}
            Receiving::Small => {
                self.hurry_tries();
                self.ring.cancel(Token::Receive(connection, SizeClass::Small));
            }
            Receiving::Readable | Receiving::Relaying => {
                self.ring.cancel(Token::Readable(connection));
            }
            Receiving::Blocked => self.cancel_send(connection),
            Receiving::Waiting => self.ring.cancel(Token::Receive(connection, SizeClass::Large)),
            // Canceled already; now its end is the core's business.
            Receiving::Revoked => self.socket_mut(connection).receiving = Receiving::Waiting,
        }
    }

    /// The poll before a receive into a large buffer, or before a relay, has ended.
    pub(super) fn readable(
        &mut self,
        connection: ConnectionId,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        if self.socket(connection).receiving == Receiving::Relaying {
            return self.relay_readable(connection, result, events);
        }
        if result >= 0 {
            events.extend(self.try_receive_large(connection));
        } else {
            self.socket_mut(connection).receiving = Receiving::No;
            events.push(Event::ReceiveEnded { connection, reason: errno::of_receive(-result) });
        }
    }

    /// The poll for the end of a Unix stream has ended: the peer sends no more, and from here on a
    /// multishot receive might not tell the end; or the poll was canceled.
    pub(super) fn on_rdhup(&mut self, connection: ConnectionId, result: i32) {
        let socket = self.socket_mut(connection);
        if socket.rdhup == Rdhup::Canceled && result < 0 {
            socket.rdhup = Rdhup::Unwatched;
        } else {
            socket.rdhup = Rdhup::Seen;
            self.ring.cancel(Token::Receive(connection, SizeClass::Small));
        }
    }

    pub(super) fn received_large(
        &mut self,
        connection: ConnectionId,
        result: i32,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        self.in_flight -= 1;
        let was = std::mem::replace(&mut self.socket_mut(connection).receiving, Receiving::No);
        if was == Receiving::Waiting {
            self.waiting.retain(|&waiting| waiting != connection);
        }
        if result > 0 {
            let index = self.large.filled(connection.slot());
            return events.push(Event::Received {
                connection,
                buffer: BufferId { class: SizeClass::Large, index },
                length: result as u32,
                armed: false,
                more: cqueue::sock_nonempty(flags),
            });
        }
        self.large.not_filled(connection.slot());
        if was == Receiving::Revoked && result == -libc::ECANCELED {
            self.await_readable(connection);
        } else {
            events.push(Event::ReceiveEnded { connection, reason: end_of_receive(result) });
        }
    }

    pub(super) fn received_small(
        &mut self,
        connection: ConnectionId,
        result: i32,
        flags: u32,
        events: &mut Vec<Event>,
    ) {
        let armed = cqueue::more(flags);
        if !armed {
            self.in_flight -= 1;
            self.socket_mut(connection).receiving = Receiving::No;
        } else if self.alternation.is_on() {
            // The core asks again when it hears of the end.
            self.ring.cancel(Token::Receive(connection, SizeClass::Small));
        }
        let buffer = self.small.note_receive(result, flags);
        match (result, buffer) {
            (1.., Some(index)) => {
                self.alternation.note_piece();
                events.push(Event::Received {
                    connection,
                    buffer: BufferId { class: SizeClass::Small, index },
                    length: result as u32,
                    armed,
                    more: cqueue::sock_nonempty(flags),
                });
            }
            (1.., None) => unreachable!("{result} bytes of {connection:?} came in no buffer"),
            (..=0, _) => {
                // A kernel may hand out a buffer and then find nothing to put into it.
                if let Some(index) = buffer {
                    self.small.recycle(index);
                }
                assert!(!armed, "a multishot receive goes on after result {result}");
                events.push(Event::ReceiveEnded { connection, reason: end_of_receive(result) });
            }
        }
    }

    pub(super) fn socket_mut(&mut self, connection: ConnectionId) -> &mut Socket {
        self.sockets[connection.slot() as usize].as_mut().expect(OPEN)
    }
}

impl Socket {
    /// Whether the end of this stream has to be watched for from now on.
    fn start_watching_rdhup(&mut self) -> bool {
        let start = self.rdhup == Rdhup::Unwatched;
        if start {
            self.rdhup = Rdhup::Watched;
        }
        start
    }
}

/// Why a receive that brought `result` has ended.
fn end_of_receive(result: i32) -> ReceiveEnd {
    match result {
        0 => ReceiveEnd::EndOfStream,
        _ => errno::of_receive(-result),
    }
}
