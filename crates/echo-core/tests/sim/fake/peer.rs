//! The far end of a connection, and the wire between: counters only, since every byte is a function
//! of its position.
//!
//! Knows nothing of rings or buffers. The most important check is here: [`Peer::accept_echo`].

use echo_core::op::{ConnectionError, ConnectionId, PeerAddr};

use super::choice::mix;
use super::records::Records;

/// Names a peer: its position in the order of connecting, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerId(pub(crate) usize);

/// The byte that `peer` sends at `offset`: loss, reordering, repetition and mixing of streams all
/// show as a wrong byte.
pub(crate) fn stream(peer: PeerId, offset: usize) -> u8 {
    (mix(((peer.0 as u64) << 40) ^ offset as u64) >> 32) as u8
}

/// The capacity of the wire in each direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    /// The maximum number of bytes that wait for the server to receive them.
    pub(crate) receive_space: usize,
    /// The maximum number of bytes that wait for the peer to read them.
    pub(crate) send_space: usize,
}

/// The header that a proxy sends before the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Its length in bytes.
    pub(crate) length: usize,
    pub(crate) says: Saying,
}

/// The content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saying {
    /// It announces this address of the peer.
    Announces(PeerAddr),
    /// It announces no address.
    Nothing,
    /// Its last byte makes it invalid.
    Nonsense,
}

/// One peer with both socket queues of its connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) wire: Wire,
    pub(crate) source: PeerAddr,
    /// The header at the beginning of its bytes, if its connection is from a proxy.
    pub(crate) header: Option<Header>,
    /// The address that its header has announced, once the server has it.
    pub(crate) announced: Option<PeerAddr>,
    /// The id of the connection while the server has it open.
    pub(crate) connection: Option<ConnectionId>,
    /// Its last connection id, if it was ever accepted, and the era of it.
    pub(crate) named: Option<(u32, ConnectionId)>,
    /// Bytes the peer wrote, with its header.
    pub(crate) written: usize,
    /// How many of them the server received, or were lost unread.
    pub(crate) taken: usize,
    /// Bytes that the server's socket took for the peer.
    pub(crate) echoed: usize,
    /// How many of them the peer read.
    pub(crate) read: usize,
    /// The server's socket took the identity for the peer, before all else.
    pub(crate) identified: bool,
    /// The peer sent FIN.
    pub(crate) finished: bool,
    /// The peer closed both directions: further bytes for it are answered by a reset.
    pub(crate) closed: bool,
    /// The peer reset the connection, or the network broke it.
    pub(crate) broken: bool,
    /// The server sent FIN, after all echoed bytes.
    pub(crate) server_finished: bool,
    /// The server reset the connection.
    pub(crate) server_reset: bool,
    /// The error that the server's socket will report once.
    pub(crate) error: Option<ConnectionError>,
    /// The boundaries of its messages, if the connection has records.
    pub(crate) records: Option<Records>,
}

impl Peer {
    pub(crate) fn new(id: PeerId, wire: Wire, source: PeerAddr) -> Self {
        Self {
            id,
            wire,
            source,
            header: None,
            announced: None,
            connection: None,
            named: None,
            written: 0,
            taken: 0,
            echoed: 0,
            read: 0,
            identified: false,
            finished: false,
            closed: false,
            broken: false,
            server_finished: false,
            server_reset: false,
            error: None,
            records: None,
        }
    }

    /// Whether a byte, or a message that may be empty, waits for the server.
    pub(crate) fn has_inbound(&self) -> bool {
        self.inbound() > 0 || self.records.as_ref().is_some_and(Records::is_any_waiting)
    }

    /// Bytes of its header.
    fn header_length(&self) -> usize {
        self.header.map_or(0, |header| header.length)
    }

    /// Bytes the peer wrote after its header: those that are to be echoed.
    pub(crate) fn written_behind_header(&self) -> usize {
        self.written.saturating_sub(self.header_length())
    }

    /// Bytes that wait for the server to receive them.
    pub(crate) fn inbound(&self) -> usize {
        self.written - self.taken
    }

    /// Bytes that wait for the peer to read them.
    pub(crate) fn outbound(&self) -> usize {
        self.echoed - self.read
    }

    /// How many bytes the server's socket has room for.
    pub(crate) fn room(&self) -> usize {
        self.wire.send_space.saturating_sub(self.outbound())
    }

    /// Whether the peer can still write and its bytes arrive.
    pub(crate) fn may_write(&self) -> bool {
        !self.finished && !self.closed && !self.broken && !self.server_reset
    }

    /// Whether nothing more can happen on the peer's side.
    pub(crate) fn is_over(&self) -> bool {
        self.closed || self.broken || self.server_reset
    }

    /// The peer has seen the server's FIN and everything before it.
    pub(crate) fn sees_end(&self) -> bool {
        self.server_finished && self.outbound() == 0
    }

    /// The connection breaks. Bytes in flight in either direction are lost, except that unread
    /// input may survive.
    pub(crate) fn break_with(&mut self, error: ConnectionError, input_lost: bool) {
        self.broken = true;
        self.error = Some(error);
        self.echoed = self.read;
        self.records.iter_mut().for_each(Records::forget_unread);
        if input_lost {
            self.taken = self.written;
            self.records.iter_mut().for_each(Records::forget_inbound);
        }
    }

    /// The server's socket takes bytes for the peer. They must be the bytes that the peer sent at
    /// this position.
    pub(crate) fn accept_echo(&mut self, bytes: &[u8], peers: usize) {
        for (index, byte) in bytes.iter().enumerate() {
            let offset = self.header_length() + self.echoed + index;
            if offset >= self.taken || *byte != stream(self.id, offset) {
                panic!("echo: {:?} at {offset}: {}", self.id, self.explain(&bytes[index..], peers));
            }
        }
        self.echoed += bytes.len();
    }

    /// Describes where wrong bytes come from: another position in the stream, another peer, or
    /// neither.
    fn explain(&self, found: &[u8], peers: usize) -> String {
        let length = found.len().min(8);
        let lengths = format!("of {} received, {} wrong bytes", self.taken, found.len());
        for peer in std::iter::once(self.id).chain((0..peers).map(PeerId)) {
            for offset in 0..4096 {
                if (0..length).all(|index| stream(peer, offset + index) == found[index]) {
                    return format!("{lengths}, which are those of {peer:?} from {offset} on");
                }
            }
        }
        format!("{lengths}, which no peer sent (first: {:02x?})", &found[..length])
    }
}
