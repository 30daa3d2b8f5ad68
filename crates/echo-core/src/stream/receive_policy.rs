//! How small receives are submitted: armed, or deferred.
//!
//! An armed receive waits by a poll, so each message costs a wake-up: the peer's processor writes
//! to the request; ours fetches that cache line, asks the socket, and receives. If few connections
//! keep a worker busy all the time, most of them have sent again by the time the worker returns to
//! them. In that case each receive is *deferred*: it is submitted one turn after its echo and
//! behind the other echoes of that turn, and finds its bytes at once. (64 connections cost 0.91 of
//! epoll's time instead of 0.96. Over Unix streams, whose end then need not be watched for, the
//! figures are 0.89 instead of 1.02: docs/benchmarks.md.)
//!
//! With little traffic the bytes would not have arrived yet, and with many connections each turn
//! would touch all of them (1,000 connections: 0.96 instead of 0.94). In these cases receives are
//! armed. All figures are from Linux 6.18.
//!
//! How it works:
//!
//! 1. A connection that wants bytes is noted here ([`ReceivePolicy::defer`]).
//! 2. At the end of a turn the receives of the previous turn are submitted
//!    ([`ReceivePolicy::take_due`]). If the next turn will wait, because nothing that it submits is
//!    answered at once, the receives of this turn are submitted as well.
//! 3. One turn later those that were not answered are counted as missed.
//! 4. Every [`Deferral::turns_per_period`] turns the policy decides again whether receives are
//!    deferred.

use alloc::vec::Vec;
use core::mem;

use crate::id::ConnectionId;
use crate::parameters::Deferral;

/// With more connections than this no receive is deferred.
const CONNECTIONS_MAX: u32 = 128;

/// Periods to wait after deferring has ended: the first time, and the maximum if it ends at once
/// each time.
const REST_PERIODS_MIN: u32 = 16;
/// See [`REST_PERIODS_MIN`].
const REST_PERIODS_MAX: u32 = 1024;

/// Whether receives are deferred, the measurements that decide it, and the deferred receives.
#[derive(Debug)]
pub(crate) struct ReceivePolicy {
    deferring: bool,
    deferral: Deferral,
    connections_max: u32,
    period: Period,
    /// Periods still to wait.
    rest: u32,
    /// How many periods to wait next time.
    rest_next: u32,
    /// Deferred in the present turn.
    fresh: Vec<ConnectionId>,
    /// Deferred in the previous turn.
    due: Vec<ConnectionId>,
    /// Submitted at the end of the previous turn.
    submitted: Vec<ConnectionId>,
    /// How the turn after that was to end.
    turn: Turn,
}

/// How the next turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// At once: something is submitted with it that is answered at once.
    Answered,
    /// At once: it does not wait.
    Brief,
    /// At the next event. It is unknown which bytes had arrived before, so all receives that are
    /// submitted with it are counted as missed: turns that wait show a worker with time to spare.
    Waits,
}

/// Measurements since the last decision.
#[derive(Debug, Default)]
struct Period {
    turns: u32,
    /// Chunks received.
    chunks: u32,
    /// Deferred receives submitted.
    tries: u32,
    /// Deferred receives that were not answered at once.
    misses: u32,
}

impl ReceivePolicy {
    /// No receive is deferred yet. Receives are deferred with at most half as many connections as
    /// there are `small_buffers`.
    #[must_use]
    pub(crate) fn new(deferral: Deferral, small_buffers: u16) -> Self {
        Self {
            deferring: false,
            deferral,
            connections_max: CONNECTIONS_MAX.min(u32::from(small_buffers / 2)),
            period: Period::default(),
            rest: 0,
            rest_next: REST_PERIODS_MIN,
            fresh: Vec::new(),
            due: Vec::new(),
            submitted: Vec::new(),
            turn: Turn::Waits,
        }
    }

    /// Whether the next receives are to be deferred rather than armed.
    #[must_use]
    pub(crate) fn is_deferring(&self) -> bool {
        self.deferring
    }

    /// The connection wants to receive.
    pub(crate) fn defer(&mut self, connection: ConnectionId) {
        self.fresh.push(connection);
    }

    /// A chunk was received into a small buffer.
    pub(crate) fn note_chunk(&mut self) {
        self.period.chunks += 1;
    }

    /// Whether any receive is deferred.
    #[must_use]
    pub(crate) fn has_deferred(&self) -> bool {
        !self.due.is_empty() || !self.fresh.is_empty()
    }

    /// Whether the next turn must not wait, because receives are to be submitted after it and
    /// nothing else is certain to end it.
    #[must_use]
    pub(crate) fn must_not_wait(&self) -> bool {
        !self.due.is_empty() && self.turn != Turn::Answered
    }

    /// The turn is over except for its deferred receives. Returns those to be submitted now, if
    /// their connections still want them. The caller then calls [`ReceivePolicy::note_submitted`]
    /// with them.
    #[must_use]
    pub(crate) fn take_due(&mut self, turn: Turn) -> Vec<ConnectionId> {
        self.turn = turn;
        if turn == Turn::Waits {
            self.due.append(&mut self.fresh);
        }
        mem::swap(&mut self.submitted, &mut self.due);
        self.due.clear();
        mem::swap(&mut self.due, &mut self.fresh);
        mem::take(&mut self.submitted)
    }

    /// These have been submitted.
    pub(crate) fn note_submitted(&mut self, submitted: Vec<ConnectionId>) {
        self.submitted = submitted;
    }

    /// The events of a turn have been handled, and `connections` connections are open.
    /// `is_answered` tells whether a receive that was submitted before the turn has been answered.
    pub(crate) fn end_turn(
        &mut self,
        connections: u64,
        is_answered: impl Fn(ConnectionId) -> bool,
    ) {
        let waited = self.turn == Turn::Waits;
        let is_miss = |connection: &&ConnectionId| waited || !is_answered(**connection);
        self.period.misses += self.submitted.iter().filter(is_miss).count() as u32;
        self.period.tries += self.submitted.len() as u32;
        self.submitted.clear();
        self.period.turns += 1;
        if self.period.turns == self.deferral.turns_per_period {
            let period = mem::take(&mut self.period);
            self.decide(&period, connections <= u64::from(self.connections_max));
        }
    }

    fn decide(&mut self, period: &Period, few: bool) {
        let busy = self.deferral.turns_per_period * self.deferral.chunks_per_turn;
        if !self.deferring {
            self.deferring = self.rest == 0 && few && period.chunks >= busy;
            self.rest = self.rest.saturating_sub(1);
        } else if few && period.chunks >= busy / 2 && period.misses <= period.tries / 2 {
            self.rest_next = REST_PERIODS_MIN;
        } else {
            self.deferring = false;
            self.rest = self.rest_next;
            self.rest_next = (2 * self.rest).min(REST_PERIODS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(small_buffers: u16) -> ReceivePolicy {
        ReceivePolicy::new(Deferral::default(), small_buffers)
    }

    /// Simulates a period with `connections` connections in which each turn brings `chunks` chunks
    /// by as many deferred receives, of which `misses` find nothing. Returns whether receives are
    /// deferred afterwards.
    fn period(policy: &mut ReceivePolicy, chunks: u32, misses: u32, connections: u64) -> bool {
        for _ in 0..Deferral::default().turns_per_period {
            (0..chunks).for_each(|_| policy.note_chunk());
            if policy.is_deferring() {
                (0..chunks).for_each(|slot| policy.defer(ConnectionId::new(slot, 0)));
                let due = policy.take_due(Turn::Brief);
                policy.note_submitted(due);
            }
            policy.end_turn(connections, |connection| connection.slot() >= misses);
        }
        policy.is_deferring()
    }

    /// Periods that pass until receives are deferred.
    fn periods_until_deferring(policy: &mut ReceivePolicy) -> u32 {
        (1..).find(|_| period(policy, 10, 0, 64)).expect("deferring begins")
    }

    #[test]
    fn receives_of_few_busy_connections_are_deferred() {
        let mut policy = policy(256);
        assert!(!period(&mut policy, 5, 0, 64), "little traffic");
        assert!(!period(&mut policy, 20, 0, 129), "many connections");
        assert!(period(&mut policy, 6, 0, 128));
        assert!(period(&mut policy, 3, 0, 64), "somewhat less is no reason to stop");
        assert!(!period(&mut policy, 2, 0, 64), "little traffic");
        assert_eq!(periods_until_deferring(&mut policy), REST_PERIODS_MIN + 1);
        assert!(!period(&mut policy, 30, 0, 129), "many connections");
    }

    #[test]
    fn few_buffers_are_for_fewer_connections() {
        assert!(!period(&mut policy(16), 6, 0, 9));
        assert!(period(&mut policy(16), 6, 0, 8));
    }

    /// Goal: where deferring does not pay, it costs little in the long run. Method: count the
    /// periods in which it is tried in vain, because peers are slow to send again, or because few
    /// of them send much.
    #[test]
    fn vain_tries_become_rare() {
        for vain in [[10, 6], [2, 0]] {
            let mut policy = policy(256);
            let mut tried = 0;
            for _ in 0..4096 {
                let [chunks, misses] = if policy.is_deferring() { vain } else { [10, 0] };
                tried += u32::from(period(&mut policy, chunks, misses, 64));
            }
            assert!((6..=10).contains(&tried), "{tried} periods of 4,096");
            // Once it pays it continues, and one bad period does not end it for long.
            periods_until_deferring(&mut policy);
            assert!(period(&mut policy, 10, 4, 64), "most are found");
            assert!(!period(&mut policy, 10, 6, 64));
            assert_eq!(periods_until_deferring(&mut policy), REST_PERIODS_MIN + 1);
        }
    }

    /// Goal: a receive is submitted one turn after its echo, or at once if the turn waits. Method:
    /// check what is submitted in which turn.
    #[test]
    fn a_receive_is_submitted_one_turn_after_its_echo() {
        let name = |slot| ConnectionId::new(slot, 0);
        let mut policy = policy(256);
        let submitted = |policy: &mut ReceivePolicy, turn| {
            let due = policy.take_due(turn);
            policy.note_submitted(due.clone());
            due
        };
        policy.defer(name(0));
        assert_eq!(submitted(&mut policy, Turn::Answered), []);
        assert!(!policy.must_not_wait());
        policy.end_turn(1, |_| true);
        policy.defer(name(1));
        assert!(policy.has_deferred());
        assert_eq!(submitted(&mut policy, Turn::Brief), [name(0)]);
        assert!(policy.must_not_wait(), "there is one more, and nothing ends the turn");
        policy.end_turn(1, |_| true);
        policy.defer(name(2));
        assert_eq!(submitted(&mut policy, Turn::Waits), [name(1), name(2)]);
        policy.end_turn(1, |_| true);
        assert!(!policy.has_deferred());
        assert_eq!(policy.period.tries, 3);
        assert_eq!(policy.period.misses, 2, "what a turn that waits has found is unknown");
    }
}
