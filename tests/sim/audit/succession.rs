//! The promises about a hand-over: from its beginning nothing is asked that could wait, and what is
//! handed on is what the model knows.

use echo_uring::echo::op::{Bequest, ConnectionId, Standing};
use echo_uring::echo::server::Parameters;

use super::{Audit, Tenant};

impl Audit {
    pub(super) fn begin_hand_over(&mut self, deadline: u64) {
        if !self.draining {
            self.rest_deadline.get_or_insert(deadline);
        }
    }

    /// Nothing that could wait is asked for while connections come to rest.
    pub(super) fn check_thawed(&self, connection: ConnectionId) {
        let frozen = self.rest_deadline.is_some();
        assert!(!frozen, "promise: {connection:?} is not left to come to rest");
    }

    /// What was given away comes back, and a drain follows: nobody may be accepted any more, not
    /// even before the drain is told.
    pub(crate) fn begin_to_take_back(&mut self) {
        self.draining = true;
    }

    /// The old process ends, or cannot: what it gives away must be what there is. From now on each connection
    /// has the name its heir gave it.
    pub(crate) fn succeed(
        &mut self,
        heirs: &[(ConnectionId, ConnectionId)],
        parameters: &Parameters,
    ) {
        assert!(self.lent.is_empty(), "hand-over: {:?} never came home", self.lent);
        self.line.clear();
        self.retired.clear();
        self.aborts.fill(0);
        self.era += 1;
        self.rest_deadline = None;
        self.pauses.fill(0);
        self.limits.connections_max = parameters.tuning.connections_max as usize;
        assert_eq!(self.tenants.len(), heirs.len(), "hand-over: {:?}", self.tenants);
        for (name, tenant) in &mut self.tenants {
            let heir = heirs.iter().find(|(old, _)| old == name);
            *name = heir.unwrap_or_else(|| panic!("hand-over: {name:?} was forgotten")).1;
            let Tenant::Open(open) = tenant else {
                panic!("hand-over: {name:?} is being accepted")
            };
            assert!(open.receive.is_none(), "hand-over: {name:?} is receiving");
            assert!(open.send.is_none(), "hand-over: {name:?} is sending");
            assert!(!open.dead && !open.both_shut, "hand-over: {name:?} is dead");
            open.blocked = false;
            open.asked_at = None;
        }
        self.adopted = self.tenants.len();
    }

    /// How many slots for connections the present server has needed at most.
    pub(crate) fn slots(&self) -> usize {
        self.limits.connections_max.max(self.adopted)
    }

    /// The same server goes on: slots that were needed once may be used again.
    pub(crate) fn keep_slots(&mut self, slots: usize) {
        self.limits.connections_max = self.limits.connections_max.max(slots);
    }

    /// The heir is told where a connection stood.
    pub(super) fn adopted(&mut self, connection: ConnectionId, bequest: Bequest) {
        let open = self.open(connection);
        let Bequest { standing, unsent, .. } = bequest;
        assert_eq!(u64::from(unsent), open.aside, "hand-over: bytes of {connection:?}");
        let (ended, fin) = match standing {
            Standing::Open | Standing::Flushing(_) => (false, false),
            Standing::Finishing => (true, false),
            Standing::Lingering(_) => (false, true),
        };
        assert_eq!(ended, open.ended, "hand-over: the end of {connection:?}");
        assert_eq!(fin, open.write_shut_at.is_some(), "hand-over: the FIN of {connection:?}");
    }
}
