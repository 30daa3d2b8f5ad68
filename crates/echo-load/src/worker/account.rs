//! The accounting of messages: each message that was started or scheduled is resolved exactly once.
//!
//! 1. A message becomes known when it is started (closed loop; churn: with its connect), or at its
//!    scheduled time.
//! 2. It is resolved when its echo is complete, when its connection fails, when it times out, or at
//!    the end of the run.
//! 3. Messages that are known and not resolved are outstanding. At the end therefore
//!    `known == resolved`, and `scheduled = answered + late + unanswered + unsent`.
//!
//! The latency of a failed message counts as at least the timeout: an early failure must not make
//! the server look fast.

use std::time::Duration;

use super::{Fate, Kind, Measured, Mode, SWEEP_MAX, State, Wait, Worker};
use crate::orders::Slowest;

/// The maximum number of steps into which the waiting times of unsent messages are divided, over
/// all connections of a thread: some 10 ms of work.
const UNSENT_STEPS: u64 = 1 << 20;
/// The minimum number of steps of a single connection.
const UNSENT_STEPS_MIN: u64 = 64;

impl Worker {
    /// Messages that were started or scheduled.
    fn known(&self) -> u64 {
        self.schedule.as_ref().map_or(self.started, |schedule| schedule.due())
    }

    /// The measurements since the last report.
    pub(super) fn take_measured(&mut self) -> Measured {
        let known = self.known();
        self.measured.counts.scheduled = known - self.told;
        self.told = known;
        self.measured.outstanding = known - self.resolved;
        self.measured.longest_wait = match self.oldest() {
            Some(since) if known > self.resolved => self.now.saturating_sub(since),
            _ => 0,
        };
        let elapsed = Duration::from_nanos(self.now.saturating_sub(self.measured_since));
        self.measured_since = self.now;
        self.measured.take(elapsed)
    }

    /// Begins the measured time. Messages that are already waiting belong to it.
    pub(super) fn begin_window(&mut self) {
        drop(self.measured.take(Duration::ZERO));
        self.told = self.resolved;
        for connection in &mut self.connections {
            (connection.echoes, connection.echo_time) = (0, 0);
        }
        // Even if this order arrives late, all messages since the load began are measured.
        let whole = self.schedule.is_some() && self.plan.warmup.is_zero();
        self.measured_since = if whole { self.orders.start() } else { self.now };
        self.window = (self.measured_since, self.now);
    }

    /// Ends the measured time, and evaluates how connections were served.
    pub(super) fn end_window(&mut self) {
        self.window.1 = self.now;
        self.prompt.clear();
        if self.plan.mode == Mode::Churn {
            return;
        }
        let (begin, end) = self.window;
        let tolerated = (end - begin) as f64 * self.plan.tolerance;
        for index in 0..self.connections.len() {
            let waits = self.waits_since(index).map(|since| end.saturating_sub(since));
            let connection = &self.connections[index];
            let echoes = connection.echoes;
            let is_lost = !matches!(connection.state, State::Open);
            let waited = waits.map_or(0, |wait| wait.min(end - begin));
            let starves = waited as f64 > tolerated;
            if echoes == 0 && (starves || is_lost) {
                self.outcome.without_echo += 1;
            }
            if echoes > 0 || waits.is_some() {
                let time = connection.echo_time + waits.unwrap_or(0);
                let mean = time as f64 / echoes.max(1) as f64;
                let number = connection.number;
                self.outcome.note_slow(Slowest { connection: number, echoes, mean });
            }
        }
    }

    /// Since when the oldest outstanding message of a connection has been scheduled or in flight.
    fn waits_since(&self, index: usize) -> Option<u64> {
        let connection = &self.connections[index];
        let Some(schedule) = &self.schedule else {
            return connection.in_flight.front().map(|message| message.started);
        };
        let waits = schedule.due_of(connection.rank) > connection.completed();
        waits.then(|| schedule.moment(connection.rank, connection.completed()))
    }

    /// Since when the oldest outstanding message waits. With many connections this is from the last
    /// sweep.
    fn oldest(&self) -> Option<u64> {
        if self.connections.len() > SWEEP_MAX {
            return self.sweep_oldest;
        }
        (0..self.connections.len()).filter_map(|index| self.waits_since(index)).min()
    }

    /// The waiting time until now of the oldest message in flight on a connection.
    fn wait_of(&self, index: usize, started: u64) -> Wait {
        let connection = &self.connections[index];
        let due = self.schedule.as_ref();
        let due = due.map(|it| it.moment(connection.rank, connection.completed()));
        Wait {
            scheduled: due.map(|moment| self.now.saturating_sub(moment)),
            sent: Some(self.now.saturating_sub(started)),
        }
    }

    /// The echo of the oldest message in flight is complete.
    pub(super) fn answered(&mut self, index: usize) {
        let Some(message) = self.connections[index].in_flight.front() else { return };
        let wait = self.wait_of(index, message.started);
        let fate = if self.phase.sends() { Fate::Answered } else { Fate::Late };
        let connection = &mut self.connections[index];
        connection.in_flight.pop_front();
        match fate {
            Fate::Answered => {
                connection.echoes += 1;
                connection.echo_time += wait.scheduled.or(wait.sent).unwrap_or(0);
            }
            Fate::Late | Fate::Unanswered | Fate::Unsent => {
                connection.freed.get_or_insert(self.now);
            }
        }
        self.resolved += 1;
        self.measured.record(fate, wait);
    }

    /// Resolves all messages in flight on a connection as failed; each counts as at least `least`
    /// nanoseconds.
    pub(super) fn fail_messages(&mut self, index: usize, least: u64) {
        while let Some(message) = self.connections[index].in_flight.front() {
            let wait = self.wait_of(index, message.started).at_least(least);
            let connection = &mut self.connections[index];
            connection.in_flight.pop_front();
            // In churn mode a message is in flight before it is sent.
            let fate = if connection.sent > 0 { Fate::Unanswered } else { Fate::Unsent };
            self.resolved += 1;
            self.measured.record(fate, wait);
        }
    }

    /// Checks the next slots of the sweep for messages that have timed out.
    pub(super) fn sweep_some(&mut self) {
        let end = self.connections.len().min(self.sweep + SWEEP_MAX);
        let timeout = self.timeout();
        for index in self.sweep..end {
            if let Some(since) = self.waits_since(index) {
                self.sweep_oldest = Some(self.sweep_oldest.map_or(since, |it| it.min(since)));
            }
            let connection = &self.connections[index];
            let Some(message) = connection.in_flight.front() else { continue };
            if self.now.saturating_sub(message.started) <= timeout {
                continue;
            }
            match connection.state {
                State::Open | State::Finishing => self.lose(index, Kind::Unanswered),
                State::Connecting => self.give_up_connecting(index),
                // Connections with a wrong echo have their own timeout.
                State::Suspect(_) | State::Closed | State::Closing => {}
            }
        }
        self.sweep = end;
    }

    /// Resolves all remaining messages at the end of the run.
    pub(super) fn give_up_the_rest(&mut self) {
        // If the user interrupted the wait, this is not a fault of the server.
        let was_in_time = self.now.saturating_sub(self.window.1) < self.timeout();
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            match connection.state {
                State::Suspect(_) => self.conclude(index),
                State::Open | State::Finishing if connection.missing() > 0 => {
                    if !was_in_time {
                        self.report_missing(index, Kind::Unanswered);
                    }
                }
                State::Finishing if was_in_time => {}
                State::Finishing => self.outcome.left_open += 1,
                State::Open | State::Closed | State::Connecting | State::Closing => {}
            }
            self.fail_messages(index, 0);
            self.count_unsent(index);
        }
        assert_eq!(self.known(), self.resolved, "a message was counted twice or not at all");
    }

    /// Counts messages that were scheduled on a connection and never sent. Each waited from its
    /// scheduled time, at least until an earlier message ended. The scheduled times are evenly
    /// spaced, so if there are very many, neighbours are grouped.
    fn count_unsent(&mut self, index: usize) {
        let Some(schedule) = &self.schedule else { return };
        let connection = &self.connections[index];
        let (first, end) = (connection.started, schedule.due_of(connection.rank));
        let until = connection.freed.unwrap_or(self.now) as f64;
        let longest = until - schedule.moment(connection.rank, first) as f64;
        let step = schedule.step();
        let count = end - first;
        let steps = (UNSENT_STEPS / self.connections.len() as u64).max(UNSENT_STEPS_MIN);
        let group = count.div_ceil(steps).max(1);
        let mut at = 0;
        while at < count {
            let members = group.min(count - at);
            let middle = at as f64 + (members - 1) as f64 / 2.0;
            let wait = (longest - middle * step).max(0.0);
            self.measured.record_unsent(wait as u64, members);
            at += members;
        }
        self.resolved += count;
    }

    /// The timeout in nanoseconds.
    pub(super) fn timeout(&self) -> u64 {
        self.plan.timeout.as_nanos() as u64
    }
}
