//! Connections of proxies: which of the two addresses is checked, and when.
//!
//! A listener that takes connections of proxies judges twice. At the accept it judges the address
//! of the socket, which must be that of a trusted proxy. Nothing else is checked there, since a
//! proxy has as many connections as all its clients together. When the header is complete it judges
//! the address that the connection has from then on: access lists and source limits apply to that
//! address.

use alloc::vec::Vec;

use super::Server;
use crate::id::{ConnectionId, ListenerId, Timestamp};
use crate::kernel::Kernel;
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
            None => self.admission.judge(now, id, listener, peer),
            // Only processes that may open the socket file can connect.
            Some(_) if peer == PeerAddr::Local => Ok(()),
            Some(trusted) if trusted.contains(peer) => Ok(()),
            Some(_) => {
                self.admission.note(listener, peer, Some(RefuseReason::Untrusted));
                Err(RefuseReason::Untrusted)
            }
        }
    }

    /// The header of a connection is complete: from here on, `peer` is its source.
    pub(super) fn on_preface_complete(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        peer: PeerAddr,
        origin: PeerOrigin,
        ops: &mut Vec<Op>,
    ) {
        // A connection that is being ended by now is not judged any more.
        let verdict = if let Phase::Preface(_) = self.connection(id).phase() {
            let listener = self.connection(id).listener();
            self.admission.judge(now, id, listener, peer)
        } else {
            Ok(())
        };
        self.with(now, id, ops, |connection, context| {
            connection.on_preface_complete(context, origin, verdict);
        });
    }

    /// Records the sources of connections that this turn refuses because of their headers. To be
    /// called before the operations of the turn are submitted: the kernel forgets the peer of a
    /// socket that is shut down.
    pub(crate) fn note_refused_headers<K: Kernel>(&mut self, kernel: &K) {
        for (id, listener, reason) in self.resources.refused_headers.drain(..) {
            self.admission.note(listener, kernel.peer_of(id), Some(reason));
        }
    }

    /// Whether the slot has a connection that was judged by the address under which it is counted.
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
    use crate::kernel::Wake;
    use crate::op::Event;
    use crate::parameters::{Parameters, RuntimeLimits};
    use crate::reason::ReceiveEnd;
    use crate::stream::resources::tests::{accepted, small};

    const PROXY: PeerAddr = PeerAddr::Ipv4([10, 0, 0, 1]);
    const CLIENT: PeerAddr = PeerAddr::Ipv4([192, 0, 2, 1]);

    /// Counts connections, regardless of their source.
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

    /// A kernel that only reports addresses.
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

    /// A connection from `peer`, which may be refused.
    fn accept(server: &mut Server, peer: PeerAddr) -> ConnectionId {
        let connection = server.listeners.armed(ListenerId(0)).expect("an accept is armed");
        server.handle(Timestamp(1), accepted(connection, peer), &mut Vec::new());
        connection
    }

    #[test]
    fn a_connection_counts_for_its_client_and_not_before_that_is_known() {
        let (mut server, limiter) = server(counting_policy());
        let counted = || limiter.0.load(Ordering::Relaxed);
        accept(&mut server, CLIENT);
        let refused = server.stats().traffic.refused;
        assert_eq!(refused[RefuseReason::Untrusted as usize], 1, "it is not a proxy");
        let connection = accept(&mut server, PROXY);
        assert_eq!((server.stats().connections, counted()), (1, 0));
        let origin = PeerOrigin::Announced;
        let complete = Event::PrefaceComplete { connection, peer: CLIENT, origin };
        server.handle(Timestamp(2), complete, &mut Vec::new());
        assert_eq!((server.stats().traffic.announced, counted()), (1, 1));
    }

    /// Whatever is wrong with a header, the proxy that sent it, or sent none, is recorded.
    #[test]
    fn who_sends_no_valid_header_is_known() {
        let (mut server, _) = server(RuntimeLimits::unlimited(4));
        let [invalid, late, short] = [(); 3].map(|()| accept(&mut server, PROXY));
        let mut handle = |event| server.handle(Timestamp(2), event, &mut Vec::new());
        handle(Event::PrefaceInvalid { connection: invalid });
        handle(Event::PrefacePartial { connection: short, received: 5 });
        handle(Event::ReceiveEnded { connection: short, reason: ReceiveEnd::EndOfStream });
        server.with(Timestamp(500), late, &mut Vec::new(), |it, context| it.on_deadline(context));
        assert_eq!(server.admission.refused_sources().total(), 0, "who it was is not known yet");
        server.note_refused_headers(&Addresses);
        let refused = server.admission.refused_sources();
        let source = SourceLimits::default().key(PROXY);
        assert_eq!(refused.last(RefuseReason::InvalidHeader), source);
        assert_eq!(refused.last(RefuseReason::HeaderTimeout), source);
        assert_eq!((refused.top(9).len(), refused.total()), (1, 3));
        server.note_refused_headers(&Addresses);
        assert_eq!(server.admission.refused_sources().total(), 3, "each is recorded once");
    }

    /// Goal: a connection whose header never arrived is not counted for any source, even if the
    /// counting of sources begins while it is being refused. Found by the simulator (seed 5399).
    #[test]
    fn a_connection_of_unknown_source_is_not_counted_later() {
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
