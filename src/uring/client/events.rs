//! Completions to events, for the client.

use std::io;

use io_uring::cqueue;

use super::slot::Sending;
use super::{Client, Token, errno};
use crate::echo::op::{ConnectionId, ReceiveEnd};

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The connection stands; nothing is received yet.
    Connected {
        /// Which.
        connection: ConnectionId,
    },
    /// There is no connection, and the slot is free again.
    ConnectFailed {
        /// Which.
        connection: ConnectionId,
        /// Why.
        error: io::Error,
    },
    /// Bytes came: [`Client::bytes`] shows them, [`Client::recycle`] must follow.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// The buffer they are in.
        buffer: u16,
        /// How many.
        length: u32,
        /// Whether more will come without another [`Client::receive`].
        armed: bool,
    },
    /// The receive ended without bytes.
    ReceiveEnded {
        /// On which connection.
        connection: ConnectionId,
        /// Why.
        reason: ReceiveEnd,
    },
    /// A message that had to wait for room in the network was handed to it; its memory is free
    /// again. Of one that did not have to wait nothing is told.
    Sent {
        /// On which connection.
        connection: ConnectionId,
    },
    /// The message could not be sent; its memory is free again.
    SendFailed {
        /// On which connection.
        connection: ConnectionId,
        /// Why.
        error: io::Error,
    },
    /// A connection whose close had to wait for the kernel is closed, its slot free.
    Closed {
        /// Which.
        connection: ConnectionId,
    },
    /// Somebody wrote to [`Settings::wake`].
    Woken,
}

impl Client {
    /// The next of the things that happened before the last wait ended.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let Some(completion) = self.reaped.get(self.told).cloned() else {
                return self.next_lingering();
            };
            self.told += 1;
            if let Some(event) = self.event(&completion) {
                return Some(event);
            }
        }
    }

    /// Of the connections that were closed while their message was tried, one that is closed now.
    fn next_lingering(&mut self) -> Option<Event> {
        let turn = self.turn;
        let mut position = 0;
        while let Some(&connection) = self.lingering.get(position) {
            let is_sending = self.slot(connection).is_sending(turn);
            if is_sending {
                position += 1;
                continue;
            }
            self.lingering.swap_remove(position);
            // If something else is left on it, that will find it at rest.
            if let Some(event) = self.closed_if_at_rest(connection) {
                return Some(event);
            }
        }
        None
    }

    /// What a completion tells, if anything.
    fn event(&mut self, completion: &cqueue::Entry) -> Option<Event> {
        let (result, flags) = (completion.result(), completion.flags());
        match Token::unpack(completion.user_data()) {
            Token::Connect(connection) => self.connected(connection, result),
            Token::Receive(connection, _) => self.received(connection, result, flags),
            Token::Send(connection) => self.sent(connection, result),
            Token::Wake => {
                self.wake_armed = false;
                // It does not block; nothing to read means that it was emptied before.
                let _ = self.wake.read();
                Some(Event::Woken)
            }
            Token::Unanswered => None,
            other @ (Token::Accept(_) | Token::Readable(_) | Token::SendAside(_)) => {
                unreachable!("a client never asks for {other:?}")
            }
        }
    }

    fn connected(&mut self, connection: ConnectionId, result: i32) -> Option<Event> {
        self.in_flight -= 1;
        let slot = self.slot(connection);
        slot.connecting = false;
        if slot.closing {
            return self.closed_if_at_rest(connection);
        }
        if result < 0 {
            self.release(connection);
            let error = io::Error::from_raw_os_error(-result);
            return Some(Event::ConnectFailed { connection, error });
        }
        if connection.slot() < self.registered {
            let fd = self.slot(connection).fd().0;
            let done =
                self.ring.inner().submitter().register_files_update(connection.slot(), &[fd]);
            self.slot(connection).registered = matches!(done, Ok(1));
        }
        Some(Event::Connected { connection })
    }

    fn received(&mut self, connection: ConnectionId, result: i32, flags: u32) -> Option<Event> {
        let armed = cqueue::more(flags);
        self.in_flight -= u64::from(!armed);
        let buffer = cqueue::buffer_select(flags);
        if let Some(index) = buffer {
            self.pool_mut().lend(index);
        }
        let slot = self.slot(connection);
        slot.receiving = armed;
        let closing = slot.closing;
        match buffer {
            Some(buffer) if result > 0 && !closing => {
                return Some(Event::Received { connection, buffer, length: result as u32, armed });
            }
            Some(buffer) => self.recycle(buffer),
            None => assert!(result <= 0, "{result} bytes of {connection:?} came in no buffer"),
        }
        if closing {
            return self.closed_if_at_rest(connection);
        }
        assert!(!armed, "a multishot receive goes on after result {result}");
        let reason = match result {
            0 => ReceiveEnd::EndOfStream,
            _ => errno::of_receive(-result),
        };
        Some(Event::ReceiveEnded { connection, reason })
    }

    fn sent(&mut self, connection: ConnectionId, result: i32) -> Option<Event> {
        let slot = self.slot(connection);
        let closing = slot.closing;
        match slot.sending {
            // A part of it went, or nothing for want of room: the rest can wait.
            Sending::Refused if !closing && (result >= 0 || result == -libc::EAGAIN) => {
                self.send_rest(connection, result.max(0) as usize);
                return None;
            }
            Sending::Refused => slot.sending = Sending::No,
            Sending::Parked => {
                slot.sending = Sending::No;
                self.in_flight -= 1;
            }
            Sending::No | Sending::Tried { .. } => {
                unreachable!("{connection:?} sends nothing, and {result} bytes were sent")
            }
        }
        if closing {
            return self.closed_if_at_rest(connection);
        }
        Some(match result {
            0.. => Event::Sent { connection },
            _ => Event::SendFailed { connection, error: io::Error::from_raw_os_error(-result) },
        })
    }

    /// To be called for connections that are closing, when something on them has ended.
    pub(super) fn closed_if_at_rest(&mut self, connection: ConnectionId) -> Option<Event> {
        let turn = self.turn;
        if !self.slot(connection).is_at_rest(turn) {
            return None;
        }
        self.lingering.retain(|&lingering| lingering != connection);
        self.release(connection);
        Some(Event::Closed { connection })
    }
}
