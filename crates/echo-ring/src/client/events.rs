//! Translates completions to events of the client.

use std::io;

use io_uring::cqueue;

use super::{Client, Token, errno};
use echo_core::op::{ConnectionId, ReceiveEnd};

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The connection is established. No receive is armed yet.
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
    /// Bytes were received: [`Client::bytes`] returns them, and [`Client::recycle`] must follow.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// The buffer they are in.
        buffer: u16,
        /// How many.
        length: u32,
        /// Whether the receive continues without another [`Client::receive`].
        armed: bool,
    },
    /// The receive ended without bytes, and not for lack of a buffer.
    ReceiveEnded {
        /// On which connection.
        connection: ConnectionId,
        /// Why.
        reason: ReceiveEnd,
    },
    /// The message was handed to the network; its memory is free again.
    Sent {
        /// On which connection.
        connection: ConnectionId,
        /// How many bytes of it: fewer than all only if the connection failed meanwhile.
        length: u32,
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
    /// The wake of the settings was written to.
    Woken,
}

impl Client {
    /// The next event of the last wait.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let completion = self.reaped.get(self.told)?.clone();
            self.told += 1;
            if let Some(event) = self.event(&completion) {
                return Some(event);
            }
        }
    }

    /// The event of a completion, if it has one.
    fn event(&mut self, completion: &cqueue::Entry) -> Option<Event> {
        let (result, flags) = (completion.result(), completion.flags());
        match Token::unpack(completion.user_data()) {
            Token::Connect(connection) => self.connected(connection, result),
            Token::Receive(connection, _) => self.received(connection, result, flags),
            Token::Send(connection) => self.sent(connection, result),
            Token::Wake => {
                self.ring.on_wake(&self.wake);
                Some(Event::Woken)
            }
            Token::Alarm => {
                self.ring.on_alarm();
                None
            }
            Token::Unanswered => None,
            other @ (Token::Accept(_)
            | Token::Readable(_)
            | Token::Rdhup(_)
            | Token::SkipSuccessSend(_)
            | Token::ReceiveDatagrams(_)
            | Token::Reply(_)
            | Token::Writable(_)) => {
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
        Some(Event::Connected { connection })
    }

    fn received(&mut self, connection: ConnectionId, result: i32, flags: u32) -> Option<Event> {
        let armed = cqueue::more(flags);
        self.in_flight -= u64::from(!armed);
        let buffer = self.pool_mut().note_receive(flags);
        if buffer.is_some() {
            self.offer.note_taken();
        }
        let slot = self.slot(connection);
        let closing = slot.closing;
        if result == -libc::ENOBUFS && !closing {
            self.offer.note_dry();
            self.waiting.push_back(connection);
            return None;
        }
        slot.receiving = armed;
        match buffer {
            Some(buffer) if result > 0 && !closing => {
                return Some(Event::Received { connection, buffer, length: result as u32, armed });
            }
            Some(buffer) => self.recycle(buffer),
            None => assert!(result <= 0, "{result} bytes of {connection:?} without a buffer"),
        }
        if closing {
            return self.closed_if_at_rest(connection);
        }
        assert!(!armed, "a multishot receive continues after result {result}");
        let reason = match result {
            0 => ReceiveEnd::EndOfStream,
            _ => errno::of_receive(-result),
        };
        Some(Event::ReceiveEnded { connection, reason })
    }

    fn sent(&mut self, connection: ConnectionId, result: i32) -> Option<Event> {
        self.in_flight -= 1;
        let slot = self.slot(connection);
        slot.sending = false;
        if slot.closing {
            return self.closed_if_at_rest(connection);
        }
        Some(match u32::try_from(result) {
            Ok(length) => Event::Sent { connection, length },
            Err(_) => {
                Event::SendFailed { connection, error: io::Error::from_raw_os_error(-result) }
            }
        })
    }

    /// To be called for connections that are closing, when one of their operations has ended.
    fn closed_if_at_rest(&mut self, connection: ConnectionId) -> Option<Event> {
        if !self.slot(connection).is_at_rest() {
            return None;
        }
        self.release(connection);
        Some(Event::Closed { connection })
    }
}
