//! Relays of the fake: bytes go from one queue of a connection to the other, and are in no buffer
//! in between.

use echo_core::op::{ConnectionId, Event, ReceiveEnd, When};

use super::FakeKernel;
use super::peer::stream;

/// The maximum number of bytes of one relay.
const LENGTH_MAX: usize = 24;

/// A relay that waits.
pub(super) struct ArmedRelay {
    pub(super) when: When,
    /// None if the bytes are discarded.
    pub(super) length_max: Option<u32>,
    pub(super) canceled: bool,
}

impl FakeKernel {
    pub(super) fn arm_relay(
        &mut self,
        connection: ConnectionId,
        when: When,
        length_max: Option<u32>,
    ) {
        let socket = self.socket(connection);
        assert!(!socket.is_receiving(), "contract: {connection:?} has two receives");
        assert!(socket.sending.is_none(), "contract: {connection:?} relays while it sends");
        assert!(socket.spilled.is_empty(), "contract: {connection:?} relays before older bytes");
        assert!(length_max != Some(0), "contract: nothing of {connection:?} is to be relayed");
        match when {
            When::Now => {
                let event = self.relay_now(connection, length_max);
                self.tell(connection, event);
            }
            When::Readable | When::Writable => {
                socket.relay = Some(ArmedRelay { when, length_max, canceled: false });
            }
        }
    }

    /// The condition that a relay waits for has occurred, or the relay was canceled.
    pub(super) fn relay(&mut self, connection: ConnectionId) {
        let faults = self.settings.faults;
        let relay = self.socket(connection).relay.take().expect("a possible relay is armed");
        let ready = self.is_relay_ready(connection, relay.when);
        let event = if relay.canceled && !(ready && self.choice.strikes(faults.cancel_loses)) {
            Event::ReceiveEnded { connection, reason: ReceiveEnd::Stopped }
        } else {
            self.relay_now(connection, relay.length_max)
        };
        self.tell(connection, event);
    }

    pub(super) fn is_relay_ready(&self, connection: ConnectionId, when: When) -> bool {
        let socket = &self.sockets[self.position(connection)];
        let peer = &self.peers[socket.peer.0];
        let broken = peer.error.is_some() || socket.dead || socket.write_shut;
        match when {
            When::Now => true,
            When::Readable => self.is_readable(socket),
            When::Writable => broken || peer.room() > 0,
        }
    }

    fn relay_now(&mut self, connection: ConnectionId, length_max: Option<u32>) -> Event {
        let faults = self.settings.faults;
        let index = self.position(connection);
        let readable = self.is_readable(&self.sockets[index]);
        let peer = self.sockets[index].peer;
        let inbound = self.peers[peer.0].inbound();
        let ended = |reason| Event::ReceiveEnded { connection, reason };
        if self.choice.strikes(faults.receive_memory) {
            return ended(ReceiveEnd::Memory);
        }
        if self.choice.strikes(faults.stopped) {
            return ended(ReceiveEnd::Stopped);
        }
        if !self.peers[peer.0].has_inbound() {
            let next = When::Readable;
            return match readable {
                true => ended(self.end_of(index)),
                false => Event::Relayed { connection, length: 0, chunks: 0, next },
            };
        }
        if self.peers[peer.0].records.is_some() {
            return self.relay_records(connection, length_max.is_some());
        }
        let most = length_max.map_or(LENGTH_MAX, |most| LENGTH_MAX.min(most as usize));
        let mut seen = inbound.min(most);
        if seen > 1 && self.choice.strikes(faults.short_receive) {
            seen = 1 + self.choice.below(seen - 1);
        }
        let moved = match length_max {
            None => {
                self.peers[peer.0].taken += seen;
                seen
            }
            Some(_) => {
                if let Some(error) = self.send_error(connection) {
                    return ended(ReceiveEnd::Failed(error));
                }
                let fits = self.fit(connection, seen);
                let fits = if self.choice.strikes(faults.would_block) { 0 } else { fits };
                let from = self.peers[peer.0].taken;
                let bytes: Vec<u8> =
                    (from..from + fits).map(|offset| stream(peer, offset)).collect();
                self.peers[peer.0].taken += fits;
                self.deliver_to_peer(connection, &bytes);
                fits
            }
        };
        let next = match moved < seen {
            true => When::Writable,
            false if seen < inbound && !self.choice.strikes(faults.no_hint) => When::Now,
            false => When::Readable,
        };
        let length = moved as u32;
        Event::Relayed { connection, length, chunks: length.min(1), next }
    }
}
