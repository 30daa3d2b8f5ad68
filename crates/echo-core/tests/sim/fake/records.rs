//! Records of the fake: messages with boundaries, which are relayed one by one.
//!
//! The bytes of a message are those of the stream at its position, so that wrong ones are detected
//! as usual; its boundaries are kept separately. The important check is here:
//! [`Records::accept_echo`].

use std::collections::VecDeque;

use echo_core::op::{ConnectionError, ConnectionId, Event, ReceiveEnd, When};

use super::FakeKernel;
use super::peer::{PeerId, stream};

/// The length of the longest message that can be echoed.
pub(crate) const LENGTH_MAX: usize = 48;

/// The maximum number of messages in one relay.
const RELAYED_MAX: usize = 3;

/// The messages of one peer, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// The lengths of messages that wait for the server.
    inbound: VecDeque<usize>,
    /// The lengths of messages that the server took and has not sent back.
    owed: VecDeque<usize>,
    /// The lengths of messages that were sent back and that the peer has not read.
    unread: VecDeque<usize>,
}

impl Records {
    /// The peer writes a message.
    pub(crate) fn write(&mut self, length: usize) {
        self.inbound.push_back(length);
    }

    /// Whether a message waits for the server.
    pub(crate) fn is_any_waiting(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// Whether every message was sent back.
    pub(crate) fn are_all_back(&self) -> bool {
        self.inbound.is_empty() && self.owed.is_empty()
    }

    /// The peer reads the next message. Returns its length.
    pub(crate) fn read(&mut self) -> Option<usize> {
        self.unread.pop_front()
    }

    /// The messages that wait for the server are lost.
    pub(crate) fn forget_inbound(&mut self) {
        self.inbound.clear();
    }

    /// The messages that wait for the peer are lost.
    pub(crate) fn forget_unread(&mut self) {
        self.unread.clear();
    }

    /// The server's socket takes a message for the peer. It must be as long as the oldest one that
    /// is owed.
    fn accept_echo(&mut self, length: usize) {
        let owed = self.owed.pop_front();
        assert_eq!(owed, Some(length), "echo: the boundaries of a message");
        self.unread.push_back(length);
    }
}

/// Planted bugs: how a kernel, or a driver, could violate the boundaries of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// Two messages are sent as one.
    Merge,
    /// A message is sent in two pieces.
    Split,
    /// An empty message is taken and not sent.
    SkipEmpty,
}

impl FakeKernel {
    pub(super) fn check_no_records(&mut self, connection: ConnectionId) {
        let peer = self.socket(connection).peer;
        let has_records = self.peers[peer.0].records.is_some();
        assert!(!has_records, "contract: messages of {connection:?} are relayed and never owned");
    }

    /// Relays, or discards, some of the messages that wait: at least one, if there is room for it.
    pub(super) fn relay_records(&mut self, connection: ConnectionId, echoes: bool) -> Event {
        let most = 1 + self.choice.below(RELAYED_MAX);
        let (mut length, mut chunks) = (0, 0);
        let mut next = When::Now;
        while chunks < most {
            let peer = self.socket(connection).peer;
            let Some(records) = &mut self.peers[peer.0].records else { break };
            let Some(&front) = records.inbound.front() else {
                next = When::Readable;
                break;
            };
            if echoes {
                match self.echo_record(connection, front) {
                    Ok(true) => {}
                    Ok(false) => {
                        next = When::Writable;
                        break;
                    }
                    // Messages that were relayed before are reported first. The error comes with
                    // the next try.
                    Err(_) if chunks > 0 => break,
                    Err(error) => {
                        let reason = ReceiveEnd::Failed(error);
                        return Event::ReceiveEnded { connection, reason };
                    }
                }
            } else {
                self.take_record(connection);
            }
            length += front as u32;
            chunks += 1;
        }
        if next == When::Now && self.choice.strikes(self.settings.faults.no_hint) {
            next = When::Readable;
        }
        Event::Relayed { connection, length, chunks: chunks as u32, next }
    }

    /// Sends a message back whole. False if there is no room for it.
    fn echo_record(
        &mut self,
        connection: ConnectionId,
        length: usize,
    ) -> Result<bool, ConnectionError> {
        let peer = self.socket(connection).peer;
        if length > LENGTH_MAX {
            return Err(ConnectionError::MessageSize);
        }
        if self.peers[peer.0].error.is_some() || self.is_broken(connection) {
            return Err(self.send_error(connection).expect("it is broken"));
        }
        let would_block = self.choice.strikes(self.settings.faults.would_block);
        if self.peers[peer.0].room() == 0 || would_block {
            return Ok(false);
        }
        let from = self.peers[peer.0].taken;
        self.take_record(connection);
        let mut taken = vec![length];
        let mut sent = match self.breaks_records {
            Some(Breach::Split) if length > 1 => vec![1, length - 1],
            Some(Breach::SkipEmpty) if length == 0 => vec![],
            Some(Breach::Split | Breach::SkipEmpty | Breach::Merge) | None => vec![length],
        };
        let second = self.records_of(peer).inbound.front().copied();
        if let (Some(Breach::Merge), Some(second)) = (self.breaks_records, second) {
            self.take_record(connection);
            taken.push(second);
            sent = vec![length + second];
        }
        let until = from + taken.iter().sum::<usize>();
        let bytes: Vec<u8> = (from..until).map(|offset| stream(peer, offset)).collect();
        let records = self.records_of(peer);
        records.owed.extend(taken);
        sent.into_iter().for_each(|length| records.accept_echo(length));
        self.deliver_to_peer(connection, &bytes);
        Ok(true)
    }

    fn records_of(&mut self, peer: PeerId) -> &mut Records {
        self.peers[peer.0].records.as_mut().expect("it has records")
    }

    fn take_record(&mut self, connection: ConnectionId) {
        let peer = self.socket(connection).peer;
        let peer = &mut self.peers[peer.0];
        let records = peer.records.as_mut().expect("it has records");
        peer.taken += records.inbound.pop_front().expect("a message waits");
    }

    fn is_broken(&mut self, connection: ConnectionId) -> bool {
        let socket = self.socket(connection);
        socket.dead || socket.write_shut
    }
}
