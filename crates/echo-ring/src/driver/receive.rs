//! Receiving: into small buffers, which the kernel picks when bytes arrive; into a large buffer,
//! which is assigned to the receive; or waiting for bytes by a poll.

use std::os::fd::AsFd;

use io_uring::{cqueue, opcode};

use super::send::OnWritable;
use super::{Driver, MULTISHOT_BYTES_MAX, OPEN, SMALL_GROUP, Socket, Transport};
use crate::token::Token;
use crate::{entry, errno};
use echo_core::op::{
    BufferId, ConnectionId, Event, Expectation, ReceiveEnd, ReceiveMode, SizeClass,
};

/// The operation in the kernel that receives from a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// Nothing. That includes a relay that waits for room: see [`OnWritable::Relay`].
    No,
    /// A receive into small buffers.
    Small,
    /// A receive with a large buffer.
    Large,
    /// A poll for bytes.
    Readable,
    /// A poll for bytes. When there are some, at most this many are relayed, or they are discarded.
    Relaying,
    /// A poll for bytes. When there are some, the header is read.
    Preface,
}

/// Whether the end of a Unix stream is watched for: see [`Transport::Unix`]. That permits multishot
/// receives for such connections: 0.985 of epoll's cost instead of 1.066 with one-shot receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rdhup {
    /// It need not be: this is TCP.
    Unneeded,
    /// It need not be: these are messages, which are relayed, see [`Transport::UnixSeqpacket`].
    Messages,
    /// Not yet.
    Unwatched,
    /// A poll for it is armed.
    Watched,
    /// A poll for it was armed and has been canceled, but has not ended yet. Another poll could not
    /// be distinguished from it.
    Canceled,
    /// The peer sends no more; the remaining bytes are received one-shot.
    Seen,
}

impl Rdhup {
    pub(super) fn of(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Unneeded,
            Transport::Unix => Self::Unwatched,
            Transport::UnixSeqpacket => Self::Messages,
        }
    }
}

impl Driver {
    pub(super) fn receive_small(&mut self, connection: ConnectionId, mode: ReceiveMode) {
        let fd = self.fd(connection);
        let socket = self.socket_mut(connection);
        socket.receiving = Receiving::Small;
        let rdhup = match mode {
            ReceiveMode::Multishot => socket.watch_rdhup(),
            ReceiveMode::Now | ReceiveMode::WhenReadable => socket.unwatch_rdhup(),
        };
        let goes_on = mode == ReceiveMode::Multishot && socket.rdhup.allows_multishot();
        let entry = if goes_on {
            entry::multishot_receive(fd, SMALL_GROUP, MULTISHOT_BYTES_MAX)
        } else {
            let ioprio = match mode {
                ReceiveMode::Now | ReceiveMode::Multishot => 0,
                ReceiveMode::WhenReadable => entry::POLL_FIRST,
            };
            entry::receive(fd, SMALL_GROUP, ioprio)
        };
        self.in_flight += 1;
        let entry = entry.user_data(Token::Receive(connection, SizeClass::Small).pack());
        // SAFETY: it points to no memory of its own; the buffers it may pick from outlive it, see
        // `Buffers` and `Drop`.
        unsafe { self.ring.push(entry) };
        match rdhup {
            Watch::Unchanged => {}
            Watch::Begins => {
                let socket = self.sockets[connection.slot() as usize].as_ref().expect(OPEN);
                self.ring.poll_rdhup(socket.fd.as_fd(), Token::Rdhup(connection));
            }
            Watch::Ends => self.ring.cancel(Token::Rdhup(connection)),
        }
    }

    /// Receives into a large buffer: bytes that are there, or the next ones that arrive.
    ///
    /// # Panics
    /// If there is no free large buffer.
    pub(super) fn receive_large(&mut self, connection: ConnectionId, mode: ReceiveMode) {
        let fd = self.fd(connection);
        let buffer = self.pools.large.fill(connection.slot());
        let (start, length) = buffer.expect("invariant: the core knows which buffers are free");
        let receive = opcode::Recv::new(fd, start, length);
        let receive = match mode {
            ReceiveMode::Now => receive.flags(libc::MSG_DONTWAIT),
            ReceiveMode::WhenReadable => receive.ioprio(entry::POLL_FIRST),
            ReceiveMode::Multishot => unreachable!("a large buffer is filled once"),
        };
        self.socket_mut(connection).receiving = Receiving::Large;
        self.in_flight += 1;
        let token = Token::Receive(connection, SizeClass::Large);
        // SAFETY: `start` are `length` bytes that `BufferStack::fill` gives to no other receive
        // before the completion, and that outlive the receive, see `Buffers` and `Drop`.
        unsafe { self.ring.push(receive.build().user_data(token.pack())) };
    }

    /// Polls for bytes, to do `then`.
    pub(super) fn await_readable(&mut self, connection: ConnectionId, then: Receiving) {
        let socket = self.sockets[connection.slot() as usize].as_mut().expect(OPEN);
        socket.receiving = then;
        self.ring.poll(socket.fd.as_fd(), Token::Readable(connection));
    }

    pub(super) fn cancel_receive(&mut self, connection: ConnectionId) {
        match self.socket(connection).receiving {
            Receiving::No => match self.on_writable.get(&connection.slot()) {
                Some(OnWritable::Relay { .. }) => self.cancel_send(connection),
                // It completes by itself.
                Some(OnWritable::SendSpilled | OnWritable::SendHeld { .. }) | None => {}
            },
            Receiving::Small => self.ring.cancel(Token::Receive(connection, SizeClass::Small)),
            Receiving::Large => self.ring.cancel(Token::Receive(connection, SizeClass::Large)),
            Receiving::Readable | Receiving::Relaying | Receiving::Preface => {
                self.ring.cancel(Token::Readable(connection));
            }
        }
    }

    /// The poll for bytes has ended.
    pub(super) fn readable(
        &mut self,
        connection: ConnectionId,
        result: i32,
        events: &mut Vec<Event>,
    ) {
        let socket = self.socket_mut(connection);
        let was = std::mem::replace(&mut socket.receiving, Receiving::No);
        let relays = was == Receiving::Relaying;
        let length_max = if relays { self.relay_limits.remove(&connection.slot()) } else { None };
        let told = match was {
            _ if result < 0 => Err(errno::of_receive(-result)),
            Receiving::Relaying => Ok(self.relay_now(connection, length_max)),
            Receiving::Preface => self.read_preface(connection),
            Receiving::No | Receiving::Small | Receiving::Large | Receiving::Readable => {
                Ok(Event::Readable { connection })
            }
        };
        events.push(told.unwrap_or_else(|reason| Event::ReceiveEnded { connection, reason }));
    }

    /// The poll for the end of a Unix stream has ended: the peer sends no more, and from here on a
    /// multishot receive might not report the end; or the poll was canceled.
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
        self.socket_mut(connection).receiving = Receiving::No;
        if result > 0 {
            let index = self.pools.large.filled(connection.slot());
            events.push(Event::Received {
                connection,
                buffer: BufferId { class: SizeClass::Large, index },
                length: result as u32,
                armed: false,
                rest: rest(flags),
            });
        } else {
            self.pools.large.not_filled(connection.slot());
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
        }
        let buffer = self.pools.small.note_receive(flags);
        match (result, buffer) {
            (1.., Some(index)) => {
                events.push(Event::Received {
                    connection,
                    buffer: BufferId { class: SizeClass::Small, index },
                    length: result as u32,
                    armed,
                    rest: rest(flags),
                });
            }
            (1.., None) => unreachable!("{result} bytes of {connection:?} without a buffer"),
            (..=0, _) => {
                // A kernel may hand out a buffer and then find nothing to put into it.
                if let Some(index) = buffer {
                    self.pools.small.buffers.recycle(index);
                }
                assert!(!armed, "a multishot receive continues after result {result}");
                events.push(Event::ReceiveEnded { connection, reason: end_of_receive(result) });
            }
        }
    }

    pub(super) fn socket_mut(&mut self, connection: ConnectionId) -> &mut Socket {
        self.sockets[connection.slot() as usize].as_mut().expect(OPEN)
    }
}

/// Updates the state of the poll for the end of a Unix stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Unchanged,
    Begins,
    Ends,
}

impl Rdhup {
    /// Whether a multishot receive would report the end, or the poll for it does.
    fn allows_multishot(self) -> bool {
        match self {
            Self::Unneeded | Self::Unwatched | Self::Watched => true,
            Self::Canceled | Self::Seen | Self::Messages => false,
        }
    }
}

impl Socket {
    /// A receive is armed that may not report the end of the stream.
    fn watch_rdhup(&mut self) -> Watch {
        if self.rdhup != Rdhup::Unwatched {
            return Watch::Unchanged;
        }
        self.rdhup = Rdhup::Watched;
        Watch::Begins
    }

    /// A receive is armed that reports the end by itself.
    fn unwatch_rdhup(&mut self) -> Watch {
        if self.rdhup != Rdhup::Watched {
            return Watch::Unchanged;
        }
        self.rdhup = Rdhup::Canceled;
        Watch::Ends
    }
}

/// What a socket is known to hold after a receive.
fn rest(flags: u32) -> Expectation {
    if cqueue::sock_nonempty(flags) { Expectation::Data } else { Expectation::Silence }
}

/// Why a receive that brought `result` has ended.
fn end_of_receive(result: i32) -> ReceiveEnd {
    match result {
        0 => ReceiveEnd::EndOfStream,
        _ => errno::of_receive(-result),
    }
}
