//! The end: a deadline, a FIN for everybody, and a bound on how long that takes. A hand-over visits
//! everybody in the same way, and brings them to quiescence instead.

use super::{Act, Connection, Server};
use crate::limits;
use crate::op::{ConnectionId, Op, Timestamp};

/// How far the drain has come, or the hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain {
    /// Not asked for.
    No,
    /// No more accepts, but of those who wait at listeners that end; echoing goes on until the
    /// deadline.
    Waiting { deadline: Timestamp },
    /// Every connection is being ended, those in the slots below `swept` already; when that has
    /// been all of them, what is left at `end` is closed.
    Ending { end: Timestamp, swept: usize },
    /// Nothing is waited for any more; the slots below `swept` have been told.
    Over { swept: usize },
    /// Every connection is to become quiescent, to be handed over; those in the slots below `swept`
    /// have been told, those below `rested` are quiescent.
    Freezing { deadline: Timestamp, swept: usize, rested: usize },
    /// What is not quiescent is being ended, below `swept` already.
    Overdue { swept: usize, rested: usize },
    /// Every connection has been given away. If the hand-over fails they come back, and a drain is
    /// asked for; nobody is accepted in between.
    Released,
}

impl Server {
    /// Whether a drain has been asked for and nothing is left: no connection, no accept with the
    /// kernel.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        matches!(self.drain, Drain::Waiting { .. } | Drain::Ending { .. } | Drain::Over { .. })
            && self.resources.stats.connections == 0
            && self.parked.is_empty()
            && !self.admission.has_unfinished()
            && !self.listeners.iter().any(|listener| listener.is_with_kernel())
            && self.has_ended_listeners()
    }

    /// When the drain goes on at the latest.
    pub(super) fn drain_deadline(&self) -> Option<Timestamp> {
        match self.drain {
            Drain::Waiting { deadline } => Some(deadline),
            Drain::Ending { swept, .. }
            | Drain::Over { swept }
            | Drain::Freezing { swept, .. }
            | Drain::Overdue { swept, .. }
                if swept < self.slots.len() =>
            {
                Some(Timestamp(0))
            }
            Drain::Ending { end, .. } => Some(end),
            Drain::Freezing { deadline, .. } => Some(deadline),
            Drain::No | Drain::Over { .. } | Drain::Overdue { .. } | Drain::Released => None,
        }
    }

    pub(super) fn advance_drain(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        match self.drain {
            Drain::Waiting { deadline } if deadline <= now => {
                let end = now.plus(self.resources.parameters.linger_timeout);
                self.drain = Drain::Ending { end, swept: 0 };
            }
            Drain::Ending { end, swept } if end <= now && swept == self.slots.len() => {
                self.drain = Drain::Over { swept: 0 };
            }
            Drain::Freezing { deadline, swept, rested }
                if deadline <= now && swept == self.slots.len() =>
            {
                self.drain = Drain::Overdue { swept: 0, rested };
            }
            Drain::No
            | Drain::Waiting { .. }
            | Drain::Ending { .. }
            | Drain::Over { .. }
            | Drain::Freezing { .. }
            | Drain::Overdue { .. }
            | Drain::Released => {}
        }
        match self.drain {
            Drain::No | Drain::Waiting { .. } | Drain::Released => {}
            Drain::Ending { end, swept } => {
                // A million FINs take seconds: the last one's time begins with it.
                let sweeping = swept < self.slots.len();
                let swept = self.sweep(now, ops, swept, Connection::on_drain_deadline);
                let end =
                    if sweeping { now.plus(self.resources.parameters.linger_timeout) } else { end };
                self.drain = Drain::Ending { end, swept };
            }
            Drain::Over { swept } => {
                let swept = self.sweep(now, ops, swept, Connection::on_drain_end);
                self.drain = Drain::Over { swept };
            }
            Drain::Freezing { deadline, swept, rested } => {
                let swept = self.sweep(now, ops, swept, Connection::quiesce);
                self.drain = Drain::Freezing { deadline, swept, rested };
            }
            Drain::Overdue { swept, rested } => {
                let swept = self.sweep(now, ops, swept, Connection::on_quiesce_deadline);
                self.drain = Drain::Overdue { swept, rested };
            }
        }
    }

    /// Lets the next connections from slot `from` on act: not all in one turn, or a worker with a
    /// million of them would look hung. Returns where to go on.
    fn sweep(&mut self, now: Timestamp, ops: &mut Vec<Op>, from: usize, act: Act) -> usize {
        let to = self.slots.len().min(from + limits::SWEEP_SLOTS_MAX);
        for slot in from..to {
            let id = ConnectionId::new(slot as u32, self.slots[slot].generation());
            self.with(now, id, ops, act);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Event, Shutdown, Source};
    use crate::server::Parameters;

    const CONNECTIONS: usize = 2 * limits::SWEEP_SLOTS_MAX + 1;
    const LINGER: u64 = 100;

    /// A server with [`CONNECTIONS`] open ones that has just been asked to drain at once.
    fn draining(now: Timestamp) -> Server {
        let parameters = Parameters::small(1, CONNECTIONS as u32);
        let mut server = Server::new(Parameters { linger_timeout: LINGER, ..parameters });
        let mut ops = Vec::new();
        server.handle(now, Event::Started, &mut ops);
        for _ in 0..CONNECTIONS {
            let Some(&Op::Accept { connection, .. }) = ops.last() else {
                panic!("there is a place: {ops:?}")
            };
            ops.clear();
            let source = Source::Untold;
            server.handle(now, Event::Accepted { connection, source }, &mut ops);
        }
        server.handle(now, Event::DrainStarted { deadline: now }, &mut ops);
        server
    }

    /// How many connections get a FIN in the next turn, and how many are given up.
    fn turn(server: &mut Server, now: Timestamp) -> (usize, usize) {
        let mut ops = Vec::new();
        server.handle(now, Event::TimePassed, &mut ops);
        let count = |wanted| {
            ops.iter().filter(|op| matches!(op, Op::Shutdown { how, .. } if *how == wanted)).count()
        };
        (count(Shutdown::Write), count(Shutdown::Both))
    }

    /// Goal: a worker with many connections ends them in several short turns, each at once after
    /// the other, so that it does not look hung. Method: count the FINs of each turn.
    #[test]
    fn the_end_of_a_drain_is_spread_over_turns() {
        let now = Timestamp(1);
        let mut server = draining(now);
        let mut turns = Vec::new();
        while server.deadline().is_some_and(|deadline| deadline <= now) {
            turns.push(turn(&mut server, now));
        }
        let sweep = limits::SWEEP_SLOTS_MAX;
        assert_eq!(turns, [(sweep, 0), (sweep, 0), (1, 0)]);
        assert_eq!(server.deadline(), Some(now.plus(LINGER)));
        server.check_invariants();
    }

    /// Goal: the last to get its FIN has as long to answer as the first. Method: each turn takes
    /// as long as a peer may linger, as with a million connections on a slow machine.
    #[test]
    fn a_drain_of_many_gives_up_nobody_before_its_time() {
        let mut now = Timestamp(1);
        let mut server = draining(now);
        let mut turns = Vec::new();
        for _ in 0..3 {
            turns.push(turn(&mut server, now));
            now = now.plus(LINGER);
        }
        let sweep = limits::SWEEP_SLOTS_MAX;
        let fins: Vec<usize> = turns.iter().map(|&(fins, _)| fins).collect();
        assert_eq!(fins, [sweep, sweep, 1], "everybody gets a FIN");
        let given_up: usize = turns.iter().map(|&(_, given_up)| given_up).sum();
        assert!(given_up <= sweep, "{given_up} given up, when the time of {sweep} is over");
        server.check_invariants();
    }
}
