//! Headers of the fake: it takes them from the front of the peer's bytes, in any number of pieces,
//! and knows their content.

use echo_core::op::{ConnectionId, Event, PeerOrigin, ReceiveEnd};

use super::FakeKernel;
use super::peer::{Header, Saying};

/// A read of a header that waits for bytes.
pub(super) struct ArmedPreface {
    length_max: u16,
    pub(super) canceled: bool,
}

impl FakeKernel {
    pub(super) fn arm_preface(&mut self, connection: ConnectionId, length_max: u16) {
        let socket = self.socket(connection);
        assert!(!socket.is_receiving(), "contract: {connection:?} has two receives");
        assert!(length_max > 0, "contract: no byte of a header is requested");
        socket.preface = Some(ArmedPreface { length_max, canceled: false });
    }

    /// Bytes are there, or the end, or the read was canceled.
    pub(super) fn read_preface(&mut self, connection: ConnectionId) {
        let faults = self.settings.faults;
        let index = self.position(connection);
        let readable = self.is_readable(&self.sockets[index]);
        let peer = self.sockets[index].peer;
        let armed = self.sockets[index].preface.take().expect("a possible read is armed");
        let end = if armed.canceled && !(readable && self.choice.strikes(faults.cancel_loses)) {
            Some(ReceiveEnd::Stopped)
        } else if self.choice.strikes(faults.receive_memory) {
            Some(ReceiveEnd::Memory)
        } else if self.choice.strikes(faults.stopped) {
            Some(ReceiveEnd::Stopped)
        } else if self.peers[peer.0].inbound() == 0 {
            Some(self.end_of(index))
        } else {
            None
        };
        let event = match end {
            Some(reason) => Event::ReceiveEnded { connection, reason },
            None => self.take_header(connection, armed.length_max.into()),
        };
        self.tell(connection, event);
    }

    fn take_header(&mut self, connection: ConnectionId, length_max: usize) -> Event {
        let short_receive = self.settings.faults.short_receive;
        let peer = self.socket(connection).peer;
        let peer = &mut self.peers[peer.0];
        let Header { length, says } = peer.header.expect("contract: {connection:?} has no header");
        let left = length.min(length_max).saturating_sub(peer.taken);
        assert!(left > 0, "contract: a header of {connection:?} is read again");
        let mut seen = peer.inbound().min(left);
        if seen > 1 && self.choice.strikes(short_receive) {
            seen = 1 + self.choice.below(seen - 1);
        }
        peer.taken += seen;
        if peer.taken < length {
            return Event::PrefacePartial { connection, received: peer.taken as u16 };
        }
        let (peer, origin) = match says {
            Saying::Announces(address) => {
                peer.announced = Some(address);
                (address, PeerOrigin::Announced)
            }
            Saying::Nothing => (peer.source, PeerOrigin::Socket),
            Saying::Nonsense => return Event::PrefaceInvalid { connection },
        };
        Event::PrefaceComplete { connection, peer, origin }
    }
}
