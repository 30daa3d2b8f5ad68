//! Which connections are admitted: the access lists, and how much one source may take.
//!
//! A connection is judged once, when its peer is known and before it has a receive: when its accept
//! completes, or with its header (PROXY protocol). A refused connection is closed at once. That
//! costs other connections nothing, whereas a connection left in the backlog would block others.
//! Unix peers are always admitted.

mod access_list;
mod limiter;
mod record;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

pub use access_list::{AccessList, IpSet};
pub use limiter::{Limiter, SourceKey, SourceLimits, SourceTable, Unlimited};
pub use record::{ACCEPTS_MAX, Accept, AcceptLog, RefusedSource, RefusedSources, SOURCES_MAX};

use crate::id::{ConnectionId, ListenerId, Timestamp};
use crate::op::Op;
use crate::peer::PeerAddr;
use crate::reason::RefuseReason;

/// Which connections the operator admits. The same for all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmissionPolicy {
    /// The permitted addresses.
    pub access: AccessList,
    /// Number and rate of connections of each source.
    pub source_limits: SourceLimits,
    /// Whether each accept is recorded in the [`AcceptLog`]. That costs a system call for each.
    pub logs_accepts: bool,
}

impl AdmissionPolicy {
    /// Whether the addresses of peers are needed.
    #[must_use]
    pub fn needs_peers(&self) -> bool {
        !self.access.is_open() || self.source_limits.count() || self.logs_accepts
    }
}

/// The admission of one worker.
pub(crate) struct Admission {
    policy: Arc<AdmissionPolicy>,
    /// Whether the addresses of peers are needed under any policy, because a listener accepts
    /// connections from proxies only.
    always_reports: bool,
    /// True exactly when the driver reports the addresses of peers.
    reports: bool,
    limiter: Arc<dyn Limiter>,
    /// The source under which the connection of each slot is counted. Empty as long as none is
    /// counted.
    counted: Vec<Option<SourceKey>>,
    /// After counting begins: the slot below which older connections have been counted. None if all
    /// have been.
    recounted: Option<usize>,
    refused: RefusedSources,
    accepts: AcceptLog,
}

impl Admission {
    /// No connection has been accepted yet.
    pub(crate) fn new(
        policy: Arc<AdmissionPolicy>,
        limiter: Arc<dyn Limiter>,
        always_reports: bool,
    ) -> Self {
        Self {
            policy,
            always_reports,
            reports: false,
            limiter,
            counted: Vec::new(),
            recounted: None,
            refused: RefusedSources::default(),
            accepts: AcceptLog::default(),
        }
    }

    /// The sources that were refused.
    pub(crate) fn refused_sources(&self) -> &RefusedSources {
        &self.refused
    }

    /// The last accepts, if they are logged.
    pub(crate) fn accept_log(&self) -> &AcceptLog {
        &self.accepts
    }

    /// Sets the policy. If it counts sources and the old one did not, open connections have to be
    /// counted as well.
    pub(crate) fn change(&mut self, policy: Arc<AdmissionPolicy>) {
        if !policy.source_limits.count() {
            self.recounted = None;
        } else if !self.policy.source_limits.count() {
            self.recounted = Some(0);
        }
        self.policy = policy;
    }

    /// Whether open connections remain to be counted.
    pub(crate) fn is_recounting(&self) -> bool {
        self.recounted.is_some()
    }

    /// Requests the addresses of peers from now on, or no longer, if the policy has changed in that
    /// respect.
    pub(crate) fn announce(&mut self, ops: &mut Vec<Op>) {
        let needs_peers = self.always_reports || self.policy.needs_peers();
        if needs_peers != self.reports {
            self.reports = needs_peers;
            ops.push(if needs_peers { Op::ReportPeers } else { Op::OmitPeers });
        }
    }

    /// Judges a connection by the address of its peer, and counts it if it is admitted. If it is
    /// refused, its source is recorded. To be called once for each connection.
    pub(crate) fn judge(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        listener: ListenerId,
        peer: PeerAddr,
    ) -> Result<(), RefuseReason> {
        let verdict = self.admit(now, id, peer);
        self.note(listener, peer, verdict.err());
        verdict
    }

    /// Records a connection that was admitted, or `refused` for this reason.
    pub(crate) fn note(
        &mut self,
        listener: ListenerId,
        peer: PeerAddr,
        refused: Option<RefuseReason>,
    ) {
        if let Some(reason) = refused
            && let Some(source) = self.policy.source_limits.key(peer)
        {
            self.refused.note(source, reason);
        }
        if self.policy.logs_accepts {
            self.accepts.note(Accept { listener, peer, refused });
        }
    }

    fn admit(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        peer: PeerAddr,
    ) -> Result<(), RefuseReason> {
        if self.policy.access.denies(peer) {
            return Err(RefuseReason::Denied);
        }
        let source_limits = &self.policy.source_limits;
        if source_limits.count()
            && let Some(key) = source_limits.key(peer)
        {
            self.limiter.enter(now, key, source_limits)?;
            self.note_counted(id, key);
        }
        Ok(())
    }

    /// The next slots, below `slots` and at most `most` of them, whose connections may have to be
    /// counted after a change of the policy.
    pub(crate) fn next_to_recount(&mut self, slots: usize, most: usize) -> Range<usize> {
        let Some(from) = self.recounted else { return 0..0 };
        let to = slots.min(from + most);
        self.recounted = (to < slots).then_some(to);
        from..to
    }

    /// Whether the connection of this slot is counted under no source.
    pub(crate) fn is_uncounted(&self, slot: u32) -> bool {
        !self.counted.get(slot as usize).is_some_and(Option::is_some)
    }

    /// Counts a connection that is already open. It stays open even if it exceeds the limits, and
    /// its bucket is not changed.
    pub(crate) fn count_open(&mut self, now: Timestamp, id: ConnectionId, peer: PeerAddr) {
        let source_limits = &self.policy.source_limits;
        let Some(key) = source_limits.key(peer).filter(|_| source_limits.count()) else { return };
        if self.limiter.enter(now, key, &source_limits.boundless()).is_ok() {
            self.note_counted(id, key);
        }
    }

    fn note_counted(&mut self, id: ConnectionId, key: SourceKey) {
        let slot = id.slot() as usize;
        if slot >= self.counted.len() {
            self.counted.resize(slot + 1, None);
        }
        self.counted[slot] = Some(key);
    }

    /// The connection of `slot` is closed.
    pub(crate) fn leave(&mut self, now: Timestamp, slot: u32) {
        if let Some(key) = self.counted.get_mut(slot as usize).and_then(Option::take) {
            self.limiter.leave(now, key, &self.policy.source_limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn admission(policy: &AdmissionPolicy, always_reports: bool) -> Admission {
        Admission::new(Arc::new(policy.clone()), Arc::new(Unlimited), always_reports)
    }

    fn counting() -> AdmissionPolicy {
        let source_limits = SourceLimits { connections: Some(1), ..SourceLimits::default() };
        AdmissionPolicy { source_limits, ..AdmissionPolicy::default() }
    }

    /// Goal: addresses cost a system call each, so they are requested once, and only if an access
    /// list, a limit, the log of accepts or a header needs them.
    #[test]
    fn addresses_are_requested_only_if_they_are_needed() {
        let none = AdmissionPolicy::default();
        let deny = IpSet::new(vec![([10, 0, 0, 1], [10, 0, 0, 1])], Vec::new());
        let access = AccessList { deny, ..AccessList::default() };
        let policies = [
            (none.clone(), false),
            (AdmissionPolicy { access, ..none.clone() }, true),
            (counting(), true),
            (AdmissionPolicy { logs_accepts: true, ..none }, true),
        ];
        for (policy, needs_peers) in policies {
            assert_eq!(policy.needs_peers(), needs_peers, "{policy:?}");
            for always in [false, true] {
                let mut ops = Vec::new();
                let mut admission = admission(&policy, always);
                admission.announce(&mut ops);
                admission.announce(&mut ops);
                let requested: &[Op] = if needs_peers || always { &[Op::ReportPeers] } else { &[] };
                assert_eq!(ops, requested, "{policy:?}");
            }
        }
    }

    #[test]
    fn addresses_are_omitted_again() {
        let (mut admission, mut ops) = (admission(&counting(), false), Vec::new());
        admission.announce(&mut ops);
        admission.change(Arc::default());
        admission.announce(&mut ops);
        assert_eq!(ops, [Op::ReportPeers, Op::OmitPeers]);
    }

    /// Goal: after a reload that begins to count, each open connection is counted, some in each
    /// turn.
    #[test]
    fn open_connections_are_counted_some_in_each_turn() {
        let mut admission = admission(&AdmissionPolicy::default(), false);
        assert!(!admission.is_recounting());
        assert_eq!(admission.next_to_recount(5, 2), 0..0);
        admission.change(Arc::new(counting()));
        for slots in [0..2, 2..4, 4..5] {
            assert!(admission.is_recounting());
            assert_eq!(admission.next_to_recount(5, 2), slots);
        }
        assert!(!admission.is_recounting());
        let id = ConnectionId::new(1, 0);
        assert!(admission.is_uncounted(1));
        admission.count_open(Timestamp(0), id, PeerAddr::Ipv4([10, 0, 0, 1]));
        assert_eq!((admission.is_uncounted(1), admission.is_uncounted(2)), (false, true));
        admission.leave(Timestamp(0), 1);
        assert!(admission.is_uncounted(1));
        // A change from one count to another counts nobody twice.
        admission.change(Arc::new(counting()));
        assert!(!admission.is_recounting());
    }
}
