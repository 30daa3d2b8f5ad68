//! The promise about buffers: a connection that finds none waits in a queue, is served in order,
//! and never spins.
//!
//! The auditor cannot see the core's queue, only which connections found no buffer and which are
//! armed. Therefore it checks the consequences: no receive is armed without a free buffer, no more
//! receives are armed than there are free buffers, and no connection is armed twice while another
//! one waits.

use echo_core::op::{ConnectionId, SizeClass};

use super::{Audit, Tenant};

/// A connection that waits for a buffer, and the connections that were armed since.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) connection: ConnectionId,
    pub(super) overtakers: Vec<ConnectionId>,
}

impl Audit {
    /// A connection without a buffer waits until one is free, and none is armed twice while another
    /// waits.
    pub(super) fn check_line(&mut self, connection: ConnectionId, class: SizeClass) {
        let waits = self.line.iter().position(|waiter| waiter.connection == connection);
        if let Some(index) = waits {
            let lent = self.lent.iter().filter(|lent| lent.buffer.class == SizeClass::Small);
            let home = usize::from(self.limits.buffers.small.count) - lent.count();
            self.line.remove(index);
            self.served += usize::from(home > 0);
            assert!(self.served <= home.max(1), "promise: more are armed than buffers are free");
            assert!(home > 0 || class == SizeClass::Large, "promise: {connection:?} spins");
        }
        for waiter in &mut self.line {
            let again = waiter.overtakers.contains(&connection);
            assert!(!again, "promise: {connection:?} overtakes twice: {waiter:?}");
            waiter.overtakers.push(connection);
        }
    }

    /// Connections that have bytes to send first, or nothing more to do, do not wait in the queue.
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
