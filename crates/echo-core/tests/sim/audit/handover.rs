//! The promises about a hand-over: from its beginning nothing is asked that could wait, and what is
//! handed on is what the model knows.

use echo_core::op::{ConnectionId, PrefaceProgress, TransferPhase, TransferState};
use echo_core::parameters::Parameters;

use super::{Audit, Tenant};

impl Audit {
    pub(super) fn begin_hand_over(&mut self, deadline: u64) {
        if !self.draining {
            self.quiesce_deadline.get_or_insert(deadline);
        }
    }

    /// Nothing that could wait is asked for while connections are quiesced.
    pub(super) fn check_thawed(&self, connection: ConnectionId) {
        let quiescing = self.quiesce_deadline.is_some();
        assert!(!quiescing, "promise: {connection:?} is not left to become quiescent");
    }

    /// What was given away comes back, and a drain follows: nobody may be accepted any more, not
    /// even before the drain is told.
    pub(crate) fn begin_to_take_back(&mut self) {
        self.draining = true;
    }

    /// The old process ends, or cannot: what it gives away must be what there is. From now on each connection
    /// has its next name.
    pub(crate) fn hand_over(
        &mut self,
        renamed: &[(ConnectionId, ConnectionId)],
        parameters: &Parameters,
    ) {
        assert!(self.lent.is_empty(), "hand-over: {:?} never came home", self.lent);
        self.line.clear();
        self.retired.clear();
        self.aborts.fill(0);
        self.era += 1;
        self.quiesce_deadline = None;
        self.pauses.fill(0);
        self.limits.connections_max = parameters.runtime_limits.connections_max as usize;
        assert_eq!(self.tenants.len(), renamed.len(), "hand-over: {:?}", self.tenants);
        for (name, tenant) in &mut self.tenants {
            let next = renamed.iter().find(|(old, _)| old == name);
            *name = next.unwrap_or_else(|| panic!("hand-over: {name:?} was forgotten")).1;
            let Tenant::Open(open) = tenant else {
                panic!("hand-over: {name:?} is being accepted")
            };
            assert!(open.receive.is_none(), "hand-over: {name:?} is receiving");
            assert!(open.send.is_none(), "hand-over: {name:?} is sending");
            assert!(!open.dead && !open.both_shut, "hand-over: {name:?} is dead");
            open.blocked = false;
            open.asked_at = None;
        }
        self.imported = self.tenants.len();
    }

    /// How many slots for connections the present server has needed at most.
    pub(crate) fn slots(&self) -> usize {
        self.limits.connections_max.max(self.imported)
    }

    /// The same server goes on: slots that were needed once may be used again.
    pub(crate) fn keep_slots(&mut self, slots: usize) {
        self.limits.connections_max = self.limits.connections_max.max(slots);
    }

    /// The next process is told where a connection stood.
    pub(crate) fn imported(&mut self, connection: ConnectionId, transfer: TransferState) {
        let TransferState { phase, unsent, .. } = transfer;
        let received = self.take_over_preface(connection);
        let progress = received.map(|received| match received {
            0 => PrefaceProgress::Awaited,
            _ => PrefaceProgress::Begun,
        });
        let open = self.open(connection);
        assert_eq!(u64::from(unsent), open.spilled, "hand-over: bytes of {connection:?}");
        let (ended, fin) = match phase {
            TransferPhase::Preface(_) | TransferPhase::Open | TransferPhase::Flushing(_) => {
                (false, false)
            }
            TransferPhase::HalfClosed => (true, false),
            TransferPhase::Lingering(_) => (false, true),
        };
        let told = match phase {
            TransferPhase::Preface(progress) => Some(progress),
            _ => None,
        };
        assert_eq!(told, progress.filter(|_| !fin), "hand-over: the header of {connection:?}");
        assert_eq!(ended, open.ended, "hand-over: the end of {connection:?}");
        assert_eq!(fin, open.write_shut_at.is_some(), "hand-over: the FIN of {connection:?}");
    }
}
