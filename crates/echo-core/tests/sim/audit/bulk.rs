//! The promise about bulk, which is fairness: the bytes in large buffers and the bytes that they
//! are expected to receive do not exceed the quantum, so that a small echo waits for a bounded
//! number of bytes.
//!
//! The size of a future receive is unknown. It is counted as the size of the last receive of its
//! connection, in small buffers, rounded up to a power of two; so a connection that brings more
//! than before exceeds the quantum once. One connection may always transfer bulk.

use echo_core::op::{BufferPlan, ConnectionId, Op, SizeClass};

use super::{Audit, Open, Sending, Tenant};

/// The state of the bulk of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bulk {
    /// The bytes of its last receive.
    pub(super) last: u32,
    /// Whether its receive, if it has one, has a large buffer.
    reserved: bool,
}

impl Bulk {
    /// Bytes that its next receive is expected to bring.
    fn expected(self, plan: BufferPlan) -> u64 {
        let small = u64::from(plan.small.size);
        small * u64::from(self.last).div_ceil(small).next_power_of_two()
    }
}

impl Audit {
    /// Checks this operation of the core.
    pub(super) fn check_bulk(&mut self, op: &Op) {
        if let Op::Receive { connection, class: SizeClass::Large, .. } = *op {
            self.check_quantum(connection);
            self.open(connection).bulk.reserved = true;
        }
        if let Op::Receive { connection, class: SizeClass::Small, .. }
        | Op::AwaitReadable { connection }
        | Op::Relay { connection, .. }
        | Op::Discard { connection, .. }
        | Op::ReadPreface { connection, .. } = *op
        {
            self.open(connection).bulk.reserved = false;
        }
    }

    fn check_quantum(&self, connection: ConnectionId) {
        let plan = self.limits.buffers;
        let (mut others, mut expected) = (0, 0);
        for (name, tenant) in &self.tenants {
            let Tenant::Open(open) = tenant else { continue };
            if *name == connection {
                expected = open.bulk.expected(plan);
            }
            if open.receive.is_some() && open.bulk.reserved {
                others += open.bulk.expected(plan);
            }
            others += self.bulk_lent_to(*name, open);
        }
        let (all, quantum) = (others + expected, u64::from(plan.bulk_quantum));
        assert!(
            others == 0 || all <= quantum,
            "promise: {all} bytes of bulk, and {quantum} may be"
        );
    }

    /// Bytes in large buffers that were lent to a connection and are being sent to its peer. Bytes
    /// that a peer does not take are not counted, nor are bytes beyond the byte limit, whose number
    /// the auditor does not know.
    fn bulk_lent_to(&self, connection: ConnectionId, open: &Open) -> u64 {
        let stalled = matches!(open.send, Some(Sending::Held(..) | Sending::Spilled));
        if stalled || open.spilled > 0 || open.echoed_max.is_some() {
            return 0;
        }
        let lent = self.lent.iter().filter(|lent| lent.connection == connection);
        let large = lent.filter(|lent| lent.buffer.class == SizeClass::Large);
        large.map(|lent| u64::from(lent.length)).sum()
    }
}
