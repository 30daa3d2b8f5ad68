//! The promise about buffers: who finds none waits in line, is served in turn, and never spins.
//!
//! The auditor cannot see the core's line, only who found no buffer and who is armed. So it checks
//! what must follow: no arm without a buffer at home, no more arms than buffers, and nobody armed
//! twice while another waits with empty hands.

use echo_core::op::{ConnectionId, SizeClass};

use super::{Audit, Tenant};

/// One that waits for a buffer, and those who were armed since.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) connection: ConnectionId,
    pub(super) overtakers: Vec<ConnectionId>,
}

impl Audit {
    /// Who finds no buffer waits until one is home, and nobody is armed twice while another waits.
    pub(super) fn check_line(&mut self, connection: ConnectionId, class: SizeClass) {
        let waits = self.line.iter().position(|waiter| waiter.connection == connection);
        if let Some(index) = waits {
            let lent = self.lent.iter().filter(|lent| lent.buffer.class == SizeClass::Small);
            let home = usize::from(self.limits.buffers.small.count) - lent.count();
            self.line.remove(index);
            self.served += usize::from(home > 0);
            assert!(self.served <= home.max(1), "promise: more are armed than buffers are home");
            assert!(home > 0 || class == SizeClass::Large, "promise: {connection:?} spins");
        }
        for waiter in &mut self.line {
            let again = waiter.overtakers.contains(&connection);
            assert!(!again, "promise: {connection:?} jumps the line twice: {waiter:?}");
            waiter.overtakers.push(connection);
        }
    }

    /// Those who have bytes of their own to send first, or nothing more to do, stand in no line.
    pub(super) fn leave_line(&mut self) {
        let (tenants, lent) = (&self.tenants, &self.lent);
        self.line.retain(|waiter| {
            let holds = lent.iter().any(|lent| lent.connection == waiter.connection);
            let tenant = tenants.iter().find(|(name, _)| *name == waiter.connection);
            let Some((_, Tenant::Open(open))) = tenant else { return false };
            let ending = open.dead || open.both_shut || !open.decided.is_empty();
            !holds && open.spilled == 0 && !ending
        });
    }
}
