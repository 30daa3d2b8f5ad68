//! The promise about identities: a peer is told that of its listener once, when it is known who it
//! is, and before anything else goes either way.

use std::sync::Arc;

use echo_core::op::{ConnectionId, ListenerId, Op, Shutdown};
use echo_core::parameters::AfterIdentity;

use super::{Audit, Open};

/// Whether the peer of a connection is told an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Its listener has none.
    None,
    /// Not yet.
    Owed(ListenerId, AfterIdentity),
    /// It has been told.
    Told(AfterIdentity),
}

impl Open {
    /// Where nothing follows the identity, the end follows at once.
    pub(super) fn check_ended_behind_identity(&self, connection: ConnectionId) {
        let ends = self.identity == Identity::Told(AfterIdentity::End);
        let ended = self.write_shut_at.is_some() || self.both_shut || self.dead;
        assert!(!ends || ended, "promise: {connection:?} is told and not ended");
    }
}

impl Audit {
    /// The same, with listeners that have identities.
    pub(crate) fn with_identities(self, identities: Arc<[Option<AfterIdentity>]>) -> Self {
        Self { identities, ..self }
    }

    pub(super) fn identity_of(&self, listener: ListenerId) -> Identity {
        let after = self.identities.get(usize::from(listener.0)).copied().flatten();
        after.map_or(Identity::None, |after| Identity::Owed(listener, after))
    }

    pub(super) fn identify(&mut self, connection: ConnectionId, listener: ListenerId) {
        let open = self.open(connection);
        let Identity::Owed(owed, after) = open.identity else {
            panic!("promise: {connection:?} is told an identity: {:?}", open.identity)
        };
        assert_eq!(owed, listener, "contract: {connection:?} is told that of another listener");
        assert!(open.preface.is_none(), "promise: {connection:?} is told before it is known");
        assert!(open.receive.is_none(), "promise: {connection:?} is received from before");
        assert_eq!((open.received, open.sent), (0, 0), "promise: {connection:?} is told late");
        assert!(open.write_shut_at.is_none(), "contract: {connection:?} is told after its FIN");
        open.identity = Identity::Told(after);
        if after == AfterIdentity::End {
            // Nothing is owed to it any more.
            open.decided.insert(0, 0);
        }
        self.identified += 1;
    }

    /// The connection may have been closed since.
    pub(super) fn identify_failed(&mut self, connection: ConnectionId) {
        if self.tenant(connection).is_some() {
            self.open(connection).dead = true;
        }
    }

    /// Nothing is asked for a connection whose peer is known and has not been told.
    pub(super) fn check_told(&mut self, op: &Op) {
        let (Op::Receive { connection, .. }
        | Op::AwaitReadable { connection }
        | Op::Relay { connection, .. }
        | Op::Discard { connection, .. }
        | Op::Send { connection, .. }
        | Op::Shutdown { connection, how: Shutdown::Write }) = *op
        else {
            return;
        };
        let open = self.open(connection);
        let owed = matches!(open.identity, Identity::Owed(..)) && open.preface.is_none();
        assert!(!owed, "promise: {connection:?} is not told where it is");
    }
}
