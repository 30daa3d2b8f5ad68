//! `user_data`: identifies the operation and the connection (slot and generation) that a completion
//! belongs to. Packed and unpacked only here.
//!
//! ```text
//! 63      56 55            32 31             0
//! | kind    | generation     | slot           |
//! ```

use echo_core::datagram::op::{BufferId, SocketId};
use echo_core::op::{ConnectionId, SizeClass};

/// The kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Accept(ConnectionId),
    Connect(ConnectionId),
    Receive(ConnectionId, SizeClass),
    /// The socket of a receive into a large buffer, or of a relay, became readable.
    Readable(ConnectionId),
    /// The socket of a send or a relay that waits for room has some.
    Writable(ConnectionId),
    /// The peer of a Unix stream sends no more.
    Rdhup(ConnectionId),
    Send(ConnectionId),
    /// A send that has a completion only if it fails or is short.
    SkipSuccessSend(ConnectionId),
    /// A multishot receive of a datagram socket.
    ReceiveDatagrams(SocketId),
    /// A reply from a datagram buffer, which has a completion only if it fails.
    Reply(BufferId),
    /// The eventfd of the worker became readable.
    Wake,
    /// An alarm has fired.
    Alarm,
    /// An operation whose completion is not needed: a cancel or a close.
    Unanswered,
}

const ACCEPT: u64 = 1;
const RECEIVE_SMALL: u64 = 2;
const RECEIVE_LARGE: u64 = 3;
const SEND: u64 = 4;
const WRITABLE: u64 = 5;
const WAKE: u64 = 6;
const UNANSWERED: u64 = 7;
const CONNECT: u64 = 8;
const READABLE: u64 = 9;
const RDHUP: u64 = 10;
const ALARM: u64 = 11;
const SKIP_SUCCESS_SEND: u64 = 12;
const RECEIVE_DATAGRAMS: u64 = 13;
const REPLY: u64 = 14;

impl Token {
    /// The value for the submission entry.
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Accept(id) => with_id(ACCEPT, id),
            Self::Connect(id) => with_id(CONNECT, id),
            Self::Receive(id, SizeClass::Small) => with_id(RECEIVE_SMALL, id),
            Self::Receive(id, SizeClass::Large) => with_id(RECEIVE_LARGE, id),
            Self::Readable(id) => with_id(READABLE, id),
            Self::Rdhup(id) => with_id(RDHUP, id),
            Self::Send(id) => with_id(SEND, id),
            Self::SkipSuccessSend(id) => with_id(SKIP_SUCCESS_SEND, id),
            Self::Writable(id) => with_id(WRITABLE, id),
            Self::ReceiveDatagrams(socket) => RECEIVE_DATAGRAMS << 56 | u64::from(socket.0),
            Self::Reply(buffer) => REPLY << 56 | u64::from(buffer.0),
            Self::Wake => WAKE << 56,
            Self::Alarm => ALARM << 56,
            Self::Unanswered => UNANSWERED << 56,
        }
    }

    /// The connection of a skip-success send, if the value belongs to one.
    pub(super) fn skip_success_send(user_data: u64) -> Option<ConnectionId> {
        (user_data >> 56 == SKIP_SUCCESS_SEND).then(|| id_of(user_data))
    }

    /// The meaning of a completion's value.
    ///
    /// # Panics
    /// If this module did not make it.
    pub(super) fn unpack(user_data: u64) -> Self {
        let id = id_of(user_data);
        match user_data >> 56 {
            ACCEPT => Self::Accept(id),
            CONNECT => Self::Connect(id),
            RECEIVE_SMALL => Self::Receive(id, SizeClass::Small),
            RECEIVE_LARGE => Self::Receive(id, SizeClass::Large),
            READABLE => Self::Readable(id),
            RDHUP => Self::Rdhup(id),
            SEND => Self::Send(id),
            SKIP_SUCCESS_SEND => Self::SkipSuccessSend(id),
            WRITABLE => Self::Writable(id),
            RECEIVE_DATAGRAMS => Self::ReceiveDatagrams(SocketId(user_data as u16)),
            REPLY => Self::Reply(BufferId(user_data as u16)),
            WAKE => Self::Wake,
            ALARM => Self::Alarm,
            UNANSWERED => Self::Unanswered,
            _ => unreachable!("the kernel returned user_data {user_data:#x}, which we never set"),
        }
    }
}

fn id_of(user_data: u64) -> ConnectionId {
    ConnectionId::new(user_data as u32, (user_data >> 32) as u32)
}

fn with_id(kind: u64, id: ConnectionId) -> u64 {
    kind << 56 | u64::from(id.generation()) << 32 | u64::from(id.slot())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_kernel() {
        for id in [
            ConnectionId::new(0, 0),
            ConnectionId::new(u32::MAX, ConnectionId::GENERATION_MASK),
            ConnectionId::new(7, 1),
        ] {
            for token in [
                Token::Accept(id),
                Token::Connect(id),
                Token::Receive(id, SizeClass::Small),
                Token::Receive(id, SizeClass::Large),
                Token::Readable(id),
                Token::Rdhup(id),
                Token::Send(id),
                Token::SkipSuccessSend(id),
                Token::Writable(id),
                Token::ReceiveDatagrams(SocketId(7)),
                Token::Reply(BufferId(31)),
                Token::Wake,
                Token::Alarm,
                Token::Unanswered,
            ] {
                assert_eq!(Token::unpack(token.pack()), token);
            }
        }
    }
}
