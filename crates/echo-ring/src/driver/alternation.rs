//! Alternation: receive, send, receive, send, instead of a receive that stays armed.
//!
//! An armed receive waits by a poll, so each message costs a wake-up: the peer's processor writes
//! to the request, ours fetches it from there, asks the socket, and receives. But where a worker
//! knows no rest, and few connections keep it from it, they have mostly sent again by the time it
//! comes back to them. There each receive is *tried*: submitted by itself, one turn after the echo
//! and behind the other echoes of that turn, it finds its bytes at once. (64 connections cost 0.91
//! of epoll's time instead of 0.96, and over Unix streams, whose end need not be watched for then,
//! 0.89 instead of 1.02: docs/benchmarks.md.)
//!
//! In a trickle the bytes would not be there yet, and with a crowd each turn would touch all of it
//! (1,000 connections: 0.96 instead of 0.94). There receives stay armed. All figures are from
//! Linux 6.18.

use super::Driver;
use super::receive::{Rdhup, Receiving};
use crate::token::Token;
use echo_core::op::{ConnectionId, Expectation, ReceiveMode};

/// Turns after which it is decided anew whether connections alternate: some ten milliseconds of a
/// busy worker.
const TURNS_PER_PERIOD: u32 = 256;

/// Pieces that an average turn brings where it is worth a try; with less than half of that it ends.
/// (A connection that alternates brings one piece in two turns, an armed receive may bring several
/// in one: so a few that talk without pause begin in vain.)
const PIECES_PER_TURN: u32 = 6;

/// More connections are a crowd.
const CONNECTIONS_MAX: u32 = 128;

/// Periods to let pass after it ended: the first time, and if each time it ends at once.
const REST_PERIODS_MIN: u32 = 16;
/// See [`REST_PERIODS_MIN`].
const REST_PERIODS_MAX: u32 = 1024;

/// Whether connections alternate, and what tells whether they should.
#[derive(Debug)]
pub(super) struct Alternation {
    on: bool,
    /// With more connections nobody alternates.
    connections_max: u32,
    period: Period,
    /// Periods to let pass.
    rest: u32,
    /// How many it will be next time.
    rest_next: u32,
}

/// What has been seen since it was last decided.
#[derive(Debug, Default)]
struct Period {
    turns: u32,
    /// Pieces received.
    pieces: u32,
    /// Receives tried.
    tries: u32,
    /// Those of them that were not answered at once.
    misses: u32,
}

impl Alternation {
    /// Nobody alternates yet. Half of `buffers` are enough for all who may.
    pub(super) fn new(buffers: u16) -> Self {
        Self {
            on: false,
            connections_max: CONNECTIONS_MAX.min(u32::from(buffers / 2)),
            period: Period::default(),
            rest: 0,
            rest_next: REST_PERIODS_MIN,
        }
    }

    /// Whether the next receives are to be tried rather than armed.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    pub(super) fn note_piece(&mut self) {
        self.period.pieces += 1;
    }

    fn note_tries(&mut self, tries: usize, misses: usize) {
        self.period.tries += tries as u32;
        self.period.misses += misses as u32;
    }

    /// A turn is over, and so many connections are open.
    fn end_turn(&mut self, connections: u32) {
        self.period.turns += 1;
        if self.period.turns == TURNS_PER_PERIOD {
            let period = std::mem::take(&mut self.period);
            self.decide(&period, connections <= self.connections_max);
        }
    }

    fn decide(&mut self, period: &Period, few: bool) {
        let busy = TURNS_PER_PERIOD * PIECES_PER_TURN;
        if !self.on {
            self.on = self.rest == 0 && few && period.pieces >= busy;
            self.rest = self.rest.saturating_sub(1);
        } else if few && period.pieces >= busy / 2 && period.misses <= period.tries / 2 {
            self.rest_next = REST_PERIODS_MIN;
        } else {
            self.on = false;
            self.rest = self.rest_next;
            self.rest_next = (2 * self.rest).min(REST_PERIODS_MAX);
        }
    }
}

/// Receives that have been asked for, and are not submitted yet.
#[derive(Default)]
pub(super) struct Tries {
    /// Asked for since the last turn.
    fresh: Vec<ConnectionId>,
    /// To be submitted with the next turn; or, while one goes on, submitted with it.
    due: Vec<ConnectionId>,
    /// Whether the present turn ends without waiting for bytes.
    brief: bool,
}

impl Driver {
    /// Tries to receive: with this turn if it waits, else with the next one.
    pub(super) fn try_receive_small(&mut self, connection: ConnectionId) {
        self.socket_mut(connection).receiving = Receiving::Small;
        self.tries.fresh.push(connection);
    }

    /// Submits the receives whose time has come. To be called as the last thing before the kernel
    /// is entered, once a turn. A turn that brings the answers to sends is over at once, wait or
    /// not.
    pub(super) fn submit_tries(&mut self, may_wait: bool) {
        self.tries.brief = std::mem::take(&mut self.sends_answer) || !may_wait;
        if !self.tries.brief {
            self.tries.due.append(&mut self.tries.fresh);
        }
        self.small.fill_up(self.tries.due.len());
        let due = std::mem::take(&mut self.tries.due);
        due.iter().for_each(|&connection| self.submit_try(connection));
        self.tries.due = due;
    }

    /// Notes how many of the receives that were submitted with this turn have been answered. To be
    /// called once its completions have been taken, before more receives are asked for.
    pub(super) fn settle_tries(&mut self) {
        let mut due = std::mem::take(&mut self.tries.due);
        // In a turn that waits nobody knows which bytes came only then, so none is taken for found:
        // where turns have to wait there is no hurry.
        let is_miss = |connection: &&ConnectionId| {
            !self.tries.brief || self.socket(**connection).receiving != Receiving::No
        };
        let misses = due.iter().filter(is_miss).count();
        self.alternation.note_tries(due.len(), misses);
        due.clear();
        self.tries.due = std::mem::replace(&mut self.tries.fresh, due);
        self.alternation.end_turn(self.open);
    }

    /// Submits all at once, so that the kernel knows of each: one is about to be canceled.
    pub(super) fn hurry_tries(&mut self) {
        let Tries { fresh, due, .. } = std::mem::take(&mut self.tries);
        due.into_iter().chain(fresh).for_each(|connection| self.submit_try(connection));
    }

    fn submit_try(&mut self, connection: ConnectionId) {
        let socket = self.socket_mut(connection);
        if socket.rdhup == Rdhup::Watched {
            // A one-shot receive sees the end by itself.
            socket.rdhup = Rdhup::Canceled;
            self.ring.cancel(Token::Rdhup(connection));
        }
        self.arm_small(connection, ReceiveMode::Once, Expectation::Data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a period pass in which each turn brings `pieces` by as many tries, of which `misses`
    /// find nothing, with so many connections. Returns whether they alternate then.
    fn period(alternation: &mut Alternation, pieces: u32, misses: u32, connections: u32) -> bool {
        for _ in 0..TURNS_PER_PERIOD {
            (0..pieces).for_each(|_| alternation.note_piece());
            if alternation.is_on() {
                alternation.note_tries(pieces as usize, misses as usize);
            }
            alternation.end_turn(connections);
        }
        alternation.is_on()
    }

    /// Periods that pass until they alternate.
    fn periods_until_on(alternation: &mut Alternation) -> u32 {
        (1..).find(|_| period(alternation, 10, 0, 64)).expect("it begins at last")
    }

    #[test]
    fn few_busy_connections_alternate() {
        let mut alternation = Alternation::new(256);
        assert!(!period(&mut alternation, 5, 0, 64), "a trickle");
        assert!(!period(&mut alternation, 20, 0, 129), "a crowd");
        assert!(period(&mut alternation, 6, 0, 128));
        assert!(period(&mut alternation, 3, 0, 64), "somewhat less is no reason to stop");
        assert!(!period(&mut alternation, 2, 0, 64), "a trickle");
        assert_eq!(periods_until_on(&mut alternation), REST_PERIODS_MIN + 1);
        assert!(!period(&mut alternation, 30, 0, 129), "a crowd");
    }

    #[test]
    fn few_buffers_are_for_fewer_connections() {
        assert!(!period(&mut Alternation::new(16), 6, 0, 9));
        assert!(period(&mut Alternation::new(16), 6, 0, 8));
    }

    /// Goal: where it does not pay, it costs little in the long run. Method: count the periods in
    /// which it is tried in vain, because peers are slow to send again, or since few talk much.
    #[test]
    fn vain_tries_become_rare() {
        for vain in [[10, 6], [2, 0]] {
            let mut alternation = Alternation::new(256);
            let mut tried = 0;
            for _ in 0..4096 {
                let [pieces, misses] = if alternation.is_on() { vain } else { [10, 0] };
                tried += u32::from(period(&mut alternation, pieces, misses, 64));
            }
            assert!((6..=10).contains(&tried), "{tried} periods of 4,096");
            // Once it pays, it goes on, and one bad period does not end it for long.
            periods_until_on(&mut alternation);
            assert!(period(&mut alternation, 10, 5, 64), "half are found");
            assert!(!period(&mut alternation, 10, 6, 64));
            assert_eq!(periods_until_on(&mut alternation), REST_PERIODS_MIN + 1);
        }
    }
}
