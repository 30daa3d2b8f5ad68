//! Alternation: receive, send, receive, send, instead of a receive that stays armed.
//!
//! An armed receive waits by a poll, so each message costs a wake-up: the peer's processor writes
//! to the request, ours fetches it from there, asks the socket, and receives. But where a worker
//! knows no rest, and few connections keep it from it, they have mostly sent again by the time it
//! comes back to them. There each receive is submitted by itself, one turn after the echo and
//! behind the other echoes of that turn, and finds its bytes at once. (64 connections cost 0.91 of
//! epoll's time instead of 0.96, and over Unix streams, whose end need not be watched for then,
//! 0.88 instead of 1.02.)
//!
//! In a trickle the bytes would not be there yet, and with a crowd each turn would touch all of it
//! (1,000 connections: 0.96 instead of 0.94). There receives stay armed.

use super::Driver;
use super::receive::{HangUp, Receiving, one_shot};
use crate::echo::op::{ConnectionId, Expectation};
use crate::uring::token::Token;

/// Turns after which it is decided anew whether connections alternate: some ten milliseconds of a
/// busy worker.
const TURNS_PER_PERIOD: u32 = 256;

/// What turns bring on average where it is worth trying; with less than half of it, it ends.
const PIECES_PER_TURN: u32 = 6;

/// More connections are a crowd.
const CONNECTIONS_MAX: u32 = 128;

/// After periods in which most receives found nothing: how many to let pass before it is tried
/// again, at first, and when that keeps happening.
const RESTS: [u32; 2] = [16, 1024];

/// Whether connections alternate, and what tells whether they should.
#[derive(Debug)]
pub(super) struct Alternation {
    on: bool,
    /// With more connections nobody alternates.
    connections_max: u32,
    /// Of the present period: turns to come, ...
    turns_left: u32,
    /// ... pieces received, ...
    pieces: u32,
    /// ... receives tried, ...
    tries: u32,
    /// ... and those of them that had to wait.
    misses: u32,
    /// Periods to let pass.
    rest: u32,
    /// How many it will be next time.
    rest_next: u32,
}

impl Alternation {
    /// Nobody alternates yet. Half of `buffers` are enough for all who may.
    pub(super) fn new(buffers: u16) -> Self {
        Self {
            on: false,
            connections_max: CONNECTIONS_MAX.min(u32::from(buffers / 2)),
            turns_left: TURNS_PER_PERIOD,
            pieces: 0,
            tries: 0,
            misses: 0,
            rest: 0,
            rest_next: RESTS[0],
        }
    }

    /// Whether the next receives are to be tried rather than armed.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    pub(super) fn note_piece(&mut self) {
        self.pieces += 1;
    }

    /// A turn is over, and so many connections are open.
    pub(super) fn end_turn(&mut self, connections: u32) {
        self.turns_left -= 1;
        if self.turns_left == 0 {
            self.decide(connections <= self.connections_max);
            self.turns_left = TURNS_PER_PERIOD;
            (self.pieces, self.tries, self.misses) = (0, 0, 0);
        }
    }

    fn decide(&mut self, few: bool) {
        let busy = TURNS_PER_PERIOD * PIECES_PER_TURN;
        if !self.on {
            self.on = self.rest == 0 && few && self.pieces >= busy;
            self.rest = self.rest.saturating_sub(1);
        } else if self.misses > self.tries / 2 {
            self.on = false;
            self.rest = self.rest_next;
            self.rest_next = (2 * self.rest).min(RESTS[1]);
        } else {
            self.on = few && self.pieces >= busy / 2;
            self.rest_next = RESTS[0];
        }
    }
}

/// Receives that have been asked for, and wait for their turn.
#[derive(Default)]
pub(super) struct Tries {
    /// Asked for since the last turn: they follow with the next but one.
    fresh: Vec<ConnectionId>,
    /// Submitted with the next turn, or, while one goes on, with this one.
    due: Vec<ConnectionId>,
    /// Whether the turn is to end as soon as the kernel has them.
    brief: bool,
}

impl Driver {
    /// Tries to receive, in its time.
    pub(super) fn try_receive_small(&mut self, connection: ConnectionId) {
        self.socket_mut(connection).receiving = Receiving::Small;
        self.tries.fresh.push(connection);
    }

    /// Submits the receives whose time has come: all of them, unless answers to sends will bring us
    /// back at once. To be called as the last thing before the kernel is entered, once a turn.
    pub(super) fn submit_tries(&mut self) {
        self.tries.brief = std::mem::take(&mut self.answers_due) > 0;
        if !self.tries.brief {
            self.tries.due.append(&mut self.tries.fresh);
        }
        // Before those take the buffers that others need.
        self.small.fill_up(self.tries.due.len());
        let due = std::mem::take(&mut self.tries.due);
        due.iter().for_each(|&connection| self.submit_try(connection));
        self.tries.due = due;
    }

    /// Notes which of the receives of this turn brought nothing. To be called once its completions
    /// have been taken, before anybody asks for more receives.
    pub(super) fn settle_tries(&mut self) {
        let mut due = std::mem::take(&mut self.tries.due);
        // Whoever may have waited counts as a miss.
        let waits = |connection: &ConnectionId| {
            !self.tries.brief || self.socket(*connection).receiving != Receiving::No
        };
        let misses = due.iter().filter(|connection| waits(connection)).count();
        self.alternation.tries += due.len() as u32;
        self.alternation.misses += misses as u32;
        due.clear();
        self.tries.due = std::mem::replace(&mut self.tries.fresh, due);
        self.alternation.end_turn(self.open);
    }

    /// Submits all that wait, so that whoever is next named to the kernel is known there.
    pub(super) fn hurry_tries(&mut self) {
        for connection in std::mem::take(&mut self.tries.due) {
            self.submit_try(connection);
        }
        for connection in std::mem::take(&mut self.tries.fresh) {
            self.submit_try(connection);
        }
    }

    fn submit_try(&mut self, connection: ConnectionId) {
        let socket = self.socket_mut(connection);
        if socket.hang_up == HangUp::Watched {
            // A one-shot receive sees the end by itself.
            socket.hang_up = HangUp::Unwatched;
            self.ring.cancel(Token::HungUp(connection));
        }
        let fd = self.fd(connection);
        self.push_receive(connection, one_shot(fd, Expectation::Data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a period pass in which each turn brings `pieces` by as many tries, of which `misses` in
    /// all find nothing, with so many connections. Returns whether they alternate then.
    fn period(alternation: &mut Alternation, pieces: u32, misses: u32, connections: u32) -> bool {
        for _ in 0..TURNS_PER_PERIOD {
            (0..pieces).for_each(|_| alternation.note_piece());
            if alternation.is_on() {
                alternation.tries += pieces;
                alternation.misses += misses;
            }
            alternation.end_turn(connections);
        }
        alternation.is_on()
    }

    #[test]
    fn few_busy_connections_alternate() {
        let mut alternation = Alternation::new(256);
        assert!(!period(&mut alternation, 5, 0, 64), "a trickle");
        assert!(!period(&mut alternation, 20, 0, 129), "a crowd");
        assert!(period(&mut alternation, 6, 0, 128));
        assert!(period(&mut alternation, 3, 0, 64), "somewhat less is no reason to stop");
        assert!(!period(&mut alternation, 2, 0, 64), "a trickle");
        assert!(period(&mut alternation, 30, 0, 64));
        assert!(!period(&mut alternation, 30, 0, 129), "a crowd");
    }

    #[test]
    fn few_buffers_are_for_fewer_connections() {
        assert!(!period(&mut Alternation::new(16), 6, 0, 9));
        assert!(period(&mut Alternation::new(16), 6, 0, 8));
    }

    /// Goal: where peers are slow to send again, trying costs little in the long run. Method: count
    /// the periods in which it is tried in vain.
    #[test]
    fn vain_tries_become_rare() {
        let mut alternation = Alternation::new(256);
        let mut tried = 0;
        for _ in 0..4096 {
            tried += u32::from(period(&mut alternation, 10, 6, 64));
        }
        assert!((6..=10).contains(&tried), "{tried} periods of 4,096");
        // Once it pays, it goes on, and one bad period does not end it for long.
        while !period(&mut alternation, 10, 1, 64) {}
        assert!(period(&mut alternation, 10, 5, 64), "half are found");
        assert!(!period(&mut alternation, 10, 6, 64));
        let rest = (1..).find(|_| period(&mut alternation, 10, 1, 64)).expect("it begins again");
        assert_eq!(rest, RESTS[0] + 1);
    }
}
