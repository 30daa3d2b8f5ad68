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
            phase => phase.is_connection() && !connection.is_unjudged(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec;
    use core::sync::atomic::{AtomicI32, Ordering};

    use super::*;
    use crate::admission::{AdmissionPolicy, IpSet, Limiter, SourceKey, SourceLimits};
    use crate::kernel::{Kernel, Wake};
    use crate::op::Event;
    use crate::parameters::{Parameters, RuntimeLimits};
    use crate::stream::resources::tests::small;

    const PROXY: PeerAddr = PeerAddr::Ipv4([10, 0, 0, 1]);
    const CLIENT: PeerAddr = PeerAddr::Ipv4([192, 0, 2, 1]);

    /// Counts connections, of whatever source.
    #[derive(Debug, Default)]
    struct Counting(AtomicI32);

    impl Limiter for Counting {
        fn enter(&self, _: Timestamp, _: SourceKey, _: &SourceLimits) -> Result<(), RefuseReason> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn leave(&self, _: Timestamp, _: SourceKey, _: &SourceLimits) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A kernel that is asked for addresses alone.
    struct Addresses;

    impl Kernel for Addresses {
        type Error = ();

        fn now_us(&self) -> u64 {
            0
        }

        fn peer_of(&self, _: ConnectionId) -> PeerAddr {
            PROXY
        }

        fn submit(&mut self, _: &mut Vec<Op>) {}

        fn turn(&mut self, _: Wake, _: &mut Vec<Event>) -> Result<(), ()> {
            Ok(())
        }
    }

    fn counting_policy() -> RuntimeLimits {
        let source_limits = SourceLimits { connections: Some(9), ..SourceLimits::default() };
        let policy = AdmissionPolicy { source_limits, ..AdmissionPolicy::default() };
        RuntimeLimits { admission: Arc::new(policy), ..RuntimeLimits::unlimited(4) }
    }

    fn server(limits: RuntimeLimits) -> (Server, Arc<Counting>) {
        let limiter = Arc::new(Counting::default());
        let trusted = IpSet::new(vec![([10, 0, 0, 1], [10, 0, 0, 1])], Vec::new());
        let mut server = Server::new(Parameters {
            proxies: Arc::new([Some(trusted)]),
            limiter: limiter.clone(),
            runtime_limits: limits,
            ..small(1, 4)
        });
        server.start(Timestamp(1), &mut Vec::new());
        (server, limiter)
    }

    /// A connection from `peer`, whether it stays or not.
    fn accept(server: &mut Server, peer: PeerAddr) -> ConnectionId {
        let connection = server.listeners.armed(ListenerId(0)).expect("an accept is armed");
        server.handle(Timestamp(1), Event::Accepted { connection, peer }, &mut Vec::new());
        connection
    }

    #[test]
    fn a_connection_counts_for_its_client_and_not_before_that_is_known() {
        let (mut server, limiter) = server(counting_policy());
        let counted = || limiter.0.load(Ordering::Relaxed);
        accept(&mut server, CLIENT);
        let refused = server.stats().traffic.refused;
        assert_eq!(refused[RefuseReason::Untrusted as usize], 1, "it is no proxy");
        let connection = accept(&mut server, PROXY);
        assert_eq!((server.stats().connections, counted()), (1, 0));
        let origin = PeerOrigin::Announced;
        let complete = Event::PrefaceComplete { connection, peer: CLIENT, origin };
        server.handle(Timestamp(2), complete, &mut Vec::new());
        assert_eq!((server.stats().traffic.announced, counted()), (1, 1));
    }

    /// Goal: a connection whose header never came counts for nobody, also when sources begin to be
    /// counted while it is being refused. Found by the simulator (seed 5399).
    #[test]
    fn who_is_unknown_is_not_counted_when_counting_begins() {
        let (mut server, limiter) = server(RuntimeLimits::unlimited(4));
        let connection = accept(&mut server, PROXY);
        server.with(Timestamp(500), connection, &mut Vec::new(), |it, context| {
            it.on_deadline(context);
        });
        assert!(server.connection(connection).phase().is_closing());
        server.reconfigure(Timestamp(500), counting_policy());
        server.recount(Timestamp(500), &Addresses);
        assert_eq!(limiter.0.load(Ordering::Relaxed), 0);
    }
}
