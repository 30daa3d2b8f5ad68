//! Connections of proxies: which of two addresses counts, and when.
//!
//! A listener that takes connections of proxies judges twice. At the accept, by the address of the
//! socket: it must be that of a trusted proxy, and that is all that is asked of it, since a proxy
//! has as many connections as all its clients together. With the complete header, by the address
//! that the connection has from then on: access lists and source limits are for that one.

use alloc::vec::Vec;

use super::Server;
use crate::id::{ConnectionId, ListenerId, Timestamp};
use crate::op::{Op, PeerOrigin};
use crate::peer::PeerAddr;
use crate::reason::RefuseReason;
use crate::stream::phase::Phase;

impl Server {
    /// Judges a connection that was just accepted.
    pub(super) fn judge_accepted(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        listener: ListenerId,
        peer: PeerAddr,
    ) -> Result<(), RefuseReason> {
        match self.resources.parameters.proxies_of(listener) {
            None => self.admission.judge(now, id, peer),
            // Only who may open the socket file gets here.
            Some(_) if peer == PeerAddr::Local => Ok(()),
            Some(trusted) if trusted.contains(peer) => Ok(()),
            Some(_) => Err(RefuseReason::Untrusted),
        }
    }

    /// The header of a connection is complete: from here on, `peer` is where it comes from.
    pub(super) fn on_preface_complete(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        peer: PeerAddr,
        origin: PeerOrigin,
        ops: &mut Vec<Op>,
    ) {
        // One that is being ended meanwhile is not judged any more.
        let verdict = if let Phase::Preface(_) = self.connection(id).phase() {
            self.admission.judge(now, id, peer)
        } else {
            Ok(())
        };
        self.with(now, id, ops, |connection, context| {
            connection.on_preface_complete(context, origin, verdict);
        });
    }

    /// Whether there is a connection in the slot that was judged by the address it counts under.
    pub(super) fn has_been_judged(&self, slot: usize) -> bool {
        let connection = &self.slots[slot];
        match connection.phase() {
            Phase::WaitingForCapacity => {
                self.resources.parameters.proxies_of(connection.listener()).is_none()
            }
            Phase::Preface(_) => false,
            phase => phase.is_connection(),
        }
    }
}
