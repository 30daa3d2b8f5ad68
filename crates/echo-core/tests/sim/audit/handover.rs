//! The promises about a handover: from its beginning no operation that could wait is submitted, and
//! the state that is handed over is that of the model.

use echo_core::op::{ConnectionId, PrefaceProgress, TransferPhase, TransferState};
use echo_core::parameters::Parameters;

use super::{Audit, Tenant};

impl Audit {
    pub(super) fn begin_hand_over(&mut self, deadline: u64) {
        if !self.draining {
            self.quiesce_deadline.get_or_insert(deadline);
        }
    }

    /// No operation that could wait is submitted while connections are quiesced.
    pub(super) fn check_thawed(&self, connection: ConnectionId) {
        let quiescing = self.quiesce_deadline.is_some();
        assert!(!quiescing, "promise: {connection:?} is not left to become quiescent");
    }

    /// Connections that were given away come back, and a drain follows. No connection may be
    /// accepted any more, not even before the command to drain.
    pub(crate) fn begin_to_take_back(&mut self) {
        self.draining = true;
    }

    /// The old process ends, or the handover fails. It must give away exactly the connections that
    /// exist. From now on each connection has its next id.
    pub(crate) fn hand_over(
        &mut self,
        renamed: &[(ConnectionId, ConnectionId)],
        parameters: &Parameters,
    ) {
        assert!(self.lent.is_empty(), "handover: {:?} was never given back", self.lent);
        self.line.clear();
        self.retired.clear();
        self.aborts.fill(0);
        self.era += 1;
        self.quiesce_deadline = None;
        self.pauses.fill(0);
        self.limits.connections_max = parameters.runtime_limits.connections_max as usize;
        assert_eq!(self.tenants.len(), renamed.len(), "handover: {:?}", self.tenants);
        for (name, tenant) in &mut self.tenants {
            let next = renamed.iter().find(|(old, _)| old == name);
            *name = next.unwrap_or_else(|| panic!("handover: {name:?} was forgotten")).1;
            let Tenant::Open(open) = tenant else { panic!("handover: {name:?} is being accepted") };
            assert!(open.receive.is_none(), "handover: {name:?} is receiving");
            assert!(open.send.is_none(), "handover: {name:?} is sending");
            assert!(!open.dead && !open.both_shut, "handover: {name:?} is dead");
            open.blocked = false;
            open.asked_at = None;
        }
        self.imported = self.tenants.len();
    }

    /// The largest number of slots that the present server has needed.
    pub(crate) fn slots(&self) -> usize {
        self.limits.connections_max.max(self.imported)
    }

    /// The same server continues: slots that were needed once may be used again.
    pub(crate) fn keep_slots(&mut self, slots: usize) {
        self.limits.connections_max = self.limits.connections_max.max(slots);
    }

    /// Checks the transfer state that the next process gets.
    pub(crate) fn imported(&mut self, connection: ConnectionId, transfer: TransferState) {
        let TransferState { phase, unsent, .. } = transfer;
        let received = self.take_over_preface(connection);
        let progress = received.map(|received| match received {
            0 => PrefaceProgress::Awaited,
            _ => PrefaceProgress::Begun,
        });
        let open = self.open(connection);
        assert_eq!(u64::from(unsent), open.spilled, "handover: bytes of {connection:?}");
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
        assert_eq!(told, progress.filter(|_| !fin), "handover: the header of {connection:?}");
        assert_eq!(ended, open.ended, "handover: the end of {connection:?}");
        assert_eq!(fin, open.write_shut_at.is_some(), "handover: the FIN of {connection:?}");
    }
}
