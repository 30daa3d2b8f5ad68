//! The actions of peers on the fake. Each call is one event on the network.

use echo_core::op::{ConnectionError, ListenerId, PeerAddr};

use super::peer::{Header, Peer, PeerId, Wire};
use super::records::Records;
use super::trace::Note;
use super::{FakeKernel, ListenerEnd};

impl FakeKernel {
    /// A new peer connects from `source` and waits in the backlog, or is refused.
    pub(crate) fn connect(&mut self, listener: ListenerId, wire: Wire, source: PeerAddr) -> PeerId {
        self.connect_with(listener, wire, source, None)
    }

    /// The same, for a peer that sends a header first.
    pub(crate) fn connect_with(
        &mut self,
        listener: ListenerId,
        wire: Wire,
        source: PeerAddr,
        header: Option<Header>,
    ) -> PeerId {
        let id = PeerId(self.peers.len());
        let records = (self.settings.records == Some(listener)).then(Records::default);
        self.peers.push(Peer { header, records, ..Peer::new(id, wire, source) });
        if self.ends[usize::from(listener.0)] != ListenerEnd::No {
            self.peers[id.0].broken = true;
            self.trace.note(self.now, Note::Peer(id, "is refused", usize::from(listener.0)));
            return id;
        }
        self.backlogs[usize::from(listener.0)].push_back(id);
        self.trace.note(self.now, Note::Peer(id, "connects to listener", usize::from(listener.0)));
        id
    }

    /// The peer writes up to `length` bytes, as far as there is room. Returns how many. With
    /// records it is one message, which fits if there is any room.
    pub(crate) fn peer_write(&mut self, id: PeerId, length: usize) -> usize {
        let peer = &mut self.peers[id.0];
        if !peer.may_write() {
            return 0;
        }
        let room = peer.wire.receive_space.saturating_sub(peer.inbound());
        match &mut peer.records {
            Some(_) if room == 0 => return 0,
            Some(records) => records.write(length),
            None if length.min(room) == 0 => return 0,
            None => {}
        }
        let length = if peer.records.is_some() { length } else { length.min(room) };
        let connection = peer.connection;
        peer.written += length;
        // Bytes for a socket that is closed, or that is shut down for reading, are answered by a
        // reset.
        let gone = peer.named.is_some() && connection.is_none();
        let unwanted = self.sockets.iter().any(|s| s.peer == id && s.read_shut);
        self.trace.note(self.now, Note::Peer(id, "writes", length));
        if gone || unwanted {
            let peer = &mut self.peers[id.0];
            peer.server_reset = true;
            peer.break_with(ConnectionError::Reset, true);
        }
        length
    }

    /// The peer reads up to `length` echoed bytes; with records, as many messages as needed for
    /// that length. Returns how many bytes.
    pub(crate) fn peer_read(&mut self, id: PeerId, length: usize) -> usize {
        if self.peers[id.0].records.is_some() {
            let mut read = 0;
            while read < length
                && let Some(message) = self.peer_read_message(id)
            {
                read += message;
            }
            return read;
        }
        let peer = &mut self.peers[id.0];
        let length = length.min(peer.outbound());
        if length > 0 {
            peer.read += length;
            self.trace.note(self.now, Note::Peer(id, "reads", length));
        }
        length
    }

    /// The peer reads one echoed message. Returns its length.
    pub(crate) fn peer_read_message(&mut self, id: PeerId) -> Option<usize> {
        let peer = &mut self.peers[id.0];
        let length = peer.records.as_mut()?.read()?;
        peer.read += length;
        self.trace.note(self.now, Note::Peer(id, "reads a message of", length));
        Some(length)
    }

    /// The peer sends FIN and continues to read.
    pub(crate) fn peer_finish(&mut self, id: PeerId) {
        let peer = &mut self.peers[id.0];
        if peer.may_write() {
            peer.finished = true;
            self.trace.note(self.now, Note::Peer(id, "finishes after", peer.written));
        }
    }

    /// The peer closes: a reset if echoed bytes were still unread, else a FIN, and a reset for
    /// bytes that arrive later.
    pub(crate) fn peer_close(&mut self, id: PeerId) {
        let peer = &mut self.peers[id.0];
        if peer.is_over() {
            return;
        }
        self.trace.note(self.now, Note::Peer(id, "closes after", peer.written));
        if peer.outbound() > 0 {
            return self.break_connection(id, ConnectionError::Reset);
        }
        peer.finished = true;
        peer.closed = true;
    }

    /// The peer resets, or the network gives up.
    pub(crate) fn break_connection(&mut self, id: PeerId, error: ConnectionError) {
        if self.peers[id.0].broken {
            return;
        }
        let input_lost = self.choice.below(2) == 1;
        self.peers[id.0].break_with(error, input_lost);
        self.trace.note(self.now, Note::Peer(id, "is broken after", self.peers[id.0].written));
    }
}
