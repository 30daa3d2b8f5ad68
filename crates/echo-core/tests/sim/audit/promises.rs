//! The promise about ends: no connection is ended without a cause, and none before its peer got all
//! bytes that it is owed.

use echo_core::op::ConnectionId;

use super::{Audit, Limits, Sending, Tenant};

impl Audit {
    /// Time passed: here the core may decide to end a connection with a FIN.
    pub(super) fn note_decisions(&mut self, now: u64) {
        let drained = self.is_drained(now);
        let Limits { idle_timeout, lifetime, .. } = self.limits;
        for (_, tenant) in &mut self.tenants {
            let Tenant::Open(open) = tenant else { continue };
            let idle = idle_timeout.is_some_and(|timeout| now >= open.active_at + timeout);
            let idle = idle && !(open.blocked && open.relay.is_some());
            let old = lifetime.is_some_and(|timeout| now >= open.accepted_at + timeout);
            if (idle || old || drained) && open.decided.last() != Some(&open.received) {
                open.decided.push(open.received);
            }
        }
    }

    pub(super) fn is_drained(&self, now: u64) -> bool {
        self.drain_deadline.is_some_and(|deadline| now >= deadline)
    }

    /// A FIN by our decision: after the idle timeout, the lifetime or the byte limit, or at the end
    /// of a drain, and never before the last byte that is owed.
    pub(super) fn check_write_shutdown(&mut self, connection: ConnectionId) {
        let open = self.open(connection);
        assert!(open.send.is_none(), "promise: {connection:?} is finished while it sends");
        let owed = open.decided.first().copied();
        let owed =
            owed.unwrap_or_else(|| panic!("promise: {connection:?} is finished for nothing"));
        assert!(open.sent >= owed, "promise: {connection:?} is finished with bytes unsent");
    }

    /// An end by force needs a cause.
    pub(super) fn check_cause(&mut self, now: u64, connection: ConnectionId) {
        let limits = self.limits;
        let drain_is_over =
            now >= limits.linger_timeout && self.is_drained(now - limits.linger_timeout);
        let drain_deadline = self.drain_deadline;
        let overdue = self.quiesce_deadline.is_some_and(|deadline| now >= deadline);
        let open = self.open(connection);
        // All operations that could wait were canceled before.
        let asked_back = (open.receive.is_none() || open.receive_canceled)
            && (!matches!(open.send, Some(Sending::Spilled | Sending::Held(..)))
                || open.send_canceled);
        let overdue = overdue && asked_back;
        let unsent = open.received - open.sent;
        // The deadline comes first and causes a FIN, unless there was no time or bytes are still in
        // flight.
        let too_late =
            drain_deadline.is_some_and(|at| open.accepted_at >= at + limits.linger_timeout);
        let stopping = open.relay.is_some() && open.receive_canceled;
        let asked_to_end = open.write_shut_at.is_some() || unsent > 0 || stopping || too_late;
        let stalled = limits.stall_timeout.is_some_and(|timeout| now >= open.progress_at + timeout);
        let lingered = open.write_shut_at.is_some_and(|at| now >= at + limits.linger_timeout);
        let cause = open.dead
            || overdue
            || open.both_shut
            || lingered
            || (drain_is_over && asked_to_end)
            || ((unsent > 0 || open.blocked || stopping) && stalled);
        assert!(cause, "promise: {connection:?} is ended for nothing: {open:?}");
    }

    pub(super) fn close(&mut self, now: u64, connection: ConnectionId) {
        let open = self.open(connection);
        assert!(open.receive.is_none(), "contract: {connection:?} is closed while receiving");
        assert!(open.send.is_none(), "contract: {connection:?} is closed while sending");
        if self.admission.closed(connection) {
            let open = self.open(connection);
            assert_eq!(open.received, 0, "promise: {connection:?} was admitted");
            if open.was_asked {
                // As below.
                self.pauses.fill(0);
            }
            return self.forget(connection);
        }
        if self.close_late(now, connection) {
            self.pauses.fill(0);
            return self.forget(connection);
        }
        let open = self.open(connection);
        let complete = open.ended && open.sent == open.received;
        let excused = open.ended && open.decided.first().is_some_and(|owed| open.sent >= *owed);
        if complete && !open.dead && !open.both_shut {
            self.complete.push((self.era, connection));
        } else if !excused {
            self.check_cause(now, connection);
        }
        self.forget(connection);
        self.closed += 1;
        // A descriptor and some memory became free: an accept may be tried at once.
        self.pauses.fill(0);
    }

    fn forget(&mut self, connection: ConnectionId) {
        self.tenants.retain(|(name, _)| *name != connection);
        self.retired.push(connection);
    }

    /// Whether this connection, now closed, got back everything that it sent.
    pub(crate) fn is_complete(&self, name: (u32, ConnectionId)) -> bool {
        self.complete.contains(&name)
    }
}
