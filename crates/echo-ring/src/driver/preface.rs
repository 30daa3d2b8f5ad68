//! Headers of the PROXY protocol, read from the front of a stream, and the addresses that they
//! announce.
//!
//! 1. A poll waits for bytes.
//! 2. A receive peeks at them (`MSG_PEEK`), and the parser reads them.
//! 3. A receive consumes those that belong to the header (as in `relay`).
//!
//! Therefore the bytes behind the header stay in the receive queue, and the stream continues like
//! one without a header.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use echo_proxy_header::{Parser, Peer, Progress};

use super::receive::Receiving;
use super::relay::{nothing, peek, take};
use super::{Driver, OPEN};
use crate::peer;
use echo_core::op::{ConnectionId, Event, PeerAddr, PeerOrigin, ReceiveEnd};

/// The state of the header of a connection.
pub(super) enum Preface {
    /// It is being read, and may have `length_max` bytes in all.
    Reading(Box<Parser>, u16),
    /// It has announced this address, which is the peer's address from then on.
    Announced(SocketAddr),
}

impl Preface {
    /// A header that another process has begun to read, restored from the state of its parser. If
    /// no parser can have written that state, the bytes that follow are treated as an invalid
    /// header.
    pub(super) fn begun(state: &[u8]) -> Self {
        let parser = state.try_into().ok().and_then(Parser::from_bytes);
        Self::Reading(Box::new(parser.unwrap_or_default()), 0)
    }
}

impl Driver {
    /// See [`echo_core::op::Op::ReadPreface`].
    pub(super) fn await_preface(&mut self, connection: ConnectionId, length_max: u16) {
        let new = || Preface::Reading(Box::default(), length_max);
        match self.prefaces.entry(connection.slot()).or_insert_with(new) {
            Preface::Reading(_, most) => *most = length_max,
            Preface::Announced(address) => unreachable!("{connection:?} is from {address}"),
        }
        self.await_readable(connection, Receiving::Preface);
    }

    /// Reads what there is of the header.
    pub(super) fn read_preface(&mut self, connection: ConnectionId) -> Result<Event, ReceiveEnd> {
        let socket = self.sockets[connection.slot() as usize].as_ref().expect(OPEN);
        let (transport, socket) = (socket.transport(), socket.fd.as_fd());
        let Some(Preface::Reading(parser, length_max)) = self.prefaces.get_mut(&connection.slot())
        else {
            unreachable!("the header of {connection:?} is not being read")
        };
        let left = usize::from(*length_max).saturating_sub(parser.consumed());
        assert!(left > 0, "{connection:?}: the maximum length of the header is out of range");
        let scratch = &mut self.scratch.bytes()[..left];
        let bytes = match peek(socket, scratch) {
            Ok([]) => return Err(ReceiveEnd::EndOfStream),
            Ok(bytes) => bytes,
            // There was nothing: the poll is to be armed again.
            Err(error) => return nothing(error).and(Err(ReceiveEnd::Stopped)),
        };
        let (seen, progress) = (bytes.len(), parser.push(bytes));
        let (length, peer) = match progress {
            Progress::Partial => (seen, None),
            Progress::Complete { consumed, peer } => (consumed, Some(peer)),
            Progress::Invalid(_) => {
                self.prefaces.remove(&connection.slot());
                return Ok(Event::PrefaceInvalid { connection });
            }
        };
        take(socket, &mut scratch[..length])?;
        let Some(told) = peer else {
            let received = parser.consumed() as u16;
            return Ok(Event::PrefacePartial { connection, received });
        };
        let (peer, origin) = match told {
            Peer::Announced(address) => {
                self.prefaces.insert(connection.slot(), Preface::Announced(address));
                (peer::of_address(address), PeerOrigin::Announced)
            }
            Peer::Real => {
                self.prefaces.remove(&connection.slot());
                let peer = peer::of(socket, transport).unwrap_or(PeerAddr::Unknown);
                (peer, PeerOrigin::Socket)
            }
        };
        Ok(Event::PrefaceComplete { connection, peer, origin })
    }
}
