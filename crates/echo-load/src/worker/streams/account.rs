//! The accounting of messages: each message that was started or scheduled is resolved exactly once,
//! when its echo is complete, when its connection fails, when it times out, or at the end of the
//! run. In churn mode a message is started with its connect. See also `ledger`.
//!
//! The latency of a failed message counts as at least the timeout: an early failure must not make
//! the server look fast.

use super::{Fate, Kind, Mode, SWEEP_MAX, State, Wait, Worker};
use crate::orders::Slowest;

impl Worker {
    /// Begins the measured time.
    pub(super) fn begin_window(&mut self) {
        self.ledger.begin_window();
        for connection in &mut self.connections {
            (connection.echoes, connection.echo_time) = (0, 0);
        }
    }

    /// Ends the measured time, and evaluates how connections were served.
    pub(super) fn end_window(&mut self) {
        self.ledger.end_window();
        if self.ledger.plan.mode == Mode::Churn {
            return;
        }
        let (begin, end) = self.ledger.window;
        let tolerated = (end - begin) as f64 * self.ledger.plan.tolerance;
        for index in 0..self.connections.len() {
            let waits = self.waits_since(index).map(|since| end.saturating_sub(since));
            let connection = &self.connections[index];
            let echoes = connection.echoes;
            let is_lost = !matches!(connection.state, State::Open);
            let waited = waits.map_or(0, |wait| wait.min(end - begin));
            let starves = waited as f64 > tolerated;
            if echoes == 0 && (starves || is_lost) {
                self.ledger.outcome.without_echo += 1;
            }
            if echoes > 0 || waits.is_some() {
                let time = connection.echo_time + waits.unwrap_or(0);
                let mean = time as f64 / echoes.max(1) as f64;
                let number = connection.number;
                self.ledger.outcome.note_slow(Slowest { connection: number, echoes, mean });
            }
        }
    }

    /// Since when the oldest outstanding message of a connection has been scheduled or in flight.
    fn waits_since(&self, index: usize) -> Option<u64> {
        let connection = &self.connections[index];
        let Some(schedule) = &self.ledger.schedule else {
            return connection.in_flight.front().map(|message| message.started);
        };
        let waits = schedule.due_of(connection.rank) > connection.completed();
        waits.then(|| schedule.moment(connection.rank, connection.completed()))
    }

    /// Since when the oldest outstanding message waits. With many connections this is from the last
    /// sweep.
    pub(super) fn oldest(&self) -> Option<u64> {
        if self.connections.len() > SWEEP_MAX {
            return self.sweep_oldest;
        }
        (0..self.connections.len()).filter_map(|index| self.waits_since(index)).min()
    }

    /// The waiting time until now of the oldest message in flight on a connection.
    fn wait_of(&self, index: usize, started: u64) -> Wait {
        let connection = &self.connections[index];
        let due = self.ledger.schedule.as_ref();
        let due = due.map(|it| it.moment(connection.rank, connection.completed()));
        Wait {
            scheduled: due.map(|moment| self.ledger.now.saturating_sub(moment)),
            sent: Some(self.ledger.now.saturating_sub(started)),
        }
    }

    /// The echo of the oldest message in flight is complete.
    pub(super) fn answered(&mut self, index: usize) {
        let Some(message) = self.connections[index].in_flight.front() else { return };
        let wait = self.wait_of(index, message.started);
        let fate = if self.ledger.phase.sends() { Fate::Answered } else { Fate::Late };
        let connection = &mut self.connections[index];
        connection.in_flight.pop_front();
        match fate {
            Fate::Answered => {
                connection.echoes += 1;
                connection.echo_time += wait.scheduled.or(wait.sent).unwrap_or(0);
            }
            Fate::Late | Fate::Unanswered | Fate::Unsent => {
                connection.freed.get_or_insert(self.ledger.now);
            }
        }
        self.ledger.resolve(fate, wait);
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
            self.ledger.resolve(fate, wait);
        }
    }

    /// Checks the next slots of the sweep for messages that have timed out.
    pub(super) fn sweep_some(&mut self) {
        let end = self.connections.len().min(self.sweep + SWEEP_MAX);
        let timeout = self.ledger.timeout();
        for index in self.sweep..end {
            if let Some(since) = self.waits_since(index) {
                self.sweep_oldest = Some(self.sweep_oldest.map_or(since, |it| it.min(since)));
            }
            let connection = &self.connections[index];
            let Some(message) = connection.in_flight.front() else { continue };
            if self.ledger.now.saturating_sub(message.started) <= timeout {
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
        let was_in_time =
            self.ledger.now.saturating_sub(self.ledger.window.1) < self.ledger.timeout();
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
                State::Finishing => self.ledger.outcome.left_open += 1,
                State::Open | State::Closed | State::Connecting | State::Closing => {}
            }
            self.fail_messages(index, 0);
            let connection = &self.connections[index];
            let until = connection.freed.unwrap_or(self.ledger.now);
            self.ledger.resolve_unsent(connection.rank, connection.started, until);
        }
    }
}
