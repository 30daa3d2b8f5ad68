//! The accounting of datagrams: each message that was started or scheduled is resolved exactly
//! once, when its echo arrives, when it is refused, when it times out, or at the end of the run.
//! See also `ledger`.
//!
//! The latency of a failed message counts as at least the timeout: a wrong echo must not make the
//! server look fast.

use super::{Fate, Wait, Worker, udp};
use crate::flow::{Flow, Message};
use crate::orders::Slowest;

impl Worker {
    /// Begins the measured time.
    pub(super) fn begin_window(&mut self) {
        self.ledger.begin_window();
        for flow in &mut self.flows {
            (flow.echoes, flow.echo_time) = (0, 0);
            // Late echoes are counted only for what was lost in the measured time.
            flow.forget_lost();
        }
    }

    /// Ends the measured time, and evaluates how flows were served.
    pub(super) fn end_window(&mut self) {
        self.ledger.end_window();
        self.last_at = self.ledger.now;
        let (begin, end) = self.ledger.window;
        self.silence = self.silence();
        let tolerated = (end - begin) as f64 * self.ledger.plan.tolerance;
        for index in 0..self.flows.len() {
            let waits = self.waits_since(index).map(|since| end.saturating_sub(since));
            let flow = &self.flows[index];
            let waited = waits.map_or(0, |wait| wait.min(end - begin));
            if flow.echoes == 0 && waited as f64 > tolerated {
                self.ledger.outcome.without_echo += 1;
            }
            if flow.echoes > 0 || waits.is_some() {
                let time = flow.echo_time + waits.unwrap_or(0);
                let mean = time as f64 / flow.echoes.max(1) as f64;
                let slowest = Slowest { connection: flow.number, echoes: flow.echoes, mean };
                self.ledger.outcome.note_slow(slowest);
            }
        }
    }

    /// How long the server has been silent, in nanoseconds; zero if it has not.
    ///
    /// In a closed loop all messages in flight may be lost, one after another, and then nothing
    /// more is sent. A message that was lost alone is older than one that was echoed. If most are
    /// younger than all that were echoed, the server has stopped. Of a single message this is known
    /// only after the timeout.
    fn silence(&self) -> u64 {
        let since = self.oldest().unwrap_or(self.ledger.now);
        let since = since.max(self.last_echo_at).max(self.ledger.window.0);
        let silence = self.ledger.now.saturating_sub(since);
        let young = |flow: &Flow| flow.in_flight_since(self.newest_echoed) as u64;
        let young: u64 = self.flows.iter().map(young).sum();
        let is_silent = 2 * young > self.in_flight && young > 1 || silence > self.ledger.timeout();
        if is_silent { silence } else { 0 }
    }

    /// Since when the oldest outstanding message waits.
    pub(super) fn oldest(&self) -> Option<u64> {
        (0..self.flows.len()).filter_map(|index| self.waits_since(index)).min()
    }

    /// Since when the oldest outstanding message of a flow has been scheduled or in flight.
    pub(super) fn waits_since(&self, index: usize) -> Option<u64> {
        let flow = &self.flows[index];
        let oldest = flow.oldest();
        let Some(schedule) = &self.ledger.schedule else {
            return oldest.map(|message| message.started);
        };
        let waits = oldest.is_some() || schedule.due_of(flow.rank) > flow.started;
        let sequence = oldest.map_or(flow.started, |message| message.sequence);
        waits.then(|| schedule.moment(flow.rank, sequence))
    }

    /// The waiting time until now of a message of a flow.
    fn wait_of(&self, index: usize, message: Message) -> Wait {
        let (now, rank) = (self.ledger.now, self.flows[index].rank);
        let due = self.ledger.schedule.as_ref().map(|it| it.moment(rank, message.sequence));
        Wait {
            scheduled: due.map(|moment| now.saturating_sub(moment)),
            sent: Some(now.saturating_sub(message.started)),
        }
    }

    /// The echo of a message is complete and correct.
    pub(super) fn answered(&mut self, index: usize, message: Message) {
        let wait = self.wait_of(index, message);
        let time = self.ledger.now.saturating_sub(message.started);
        let fate = if self.ledger.phase.sends() { Fate::Answered } else { Fate::Late };
        self.in_flight -= 1;
        self.last_echo_at = self.ledger.now;
        self.newest_echoed = self.newest_echoed.max(message.started);
        let flow = &mut self.flows[index];
        if let Some(last) = flow.last_time.replace(time) {
            self.ledger.measured.datagrams.jitter.record(last.abs_diff(time));
        }
        match fate {
            Fate::Answered => {
                flow.echoes += 1;
                flow.echo_time += wait.scheduled.unwrap_or(time);
            }
            Fate::Late | Fate::Unanswered | Fate::Unsent => {
                flow.freed.get_or_insert(self.ledger.now);
            }
        }
        self.ledger.resolve(fate, wait);
    }

    /// A message has failed; it counts as at least `least` nanoseconds.
    pub(super) fn failed(&mut self, index: usize, message: Message, least: u64) {
        let wait = self.wait_of(index, message).at_least(least);
        self.in_flight -= 1;
        self.last_at = self.ledger.now;
        self.ledger.resolve(Fate::Unanswered, wait);
    }

    /// Gives up the messages of a flow that have timed out.
    pub(super) fn expire(&mut self, index: usize) {
        let Some(before) = self.ledger.now.checked_sub(self.ledger.timeout()) else { return };
        while let Some(message) = self.flows[index].expire(before) {
            self.ledger.measured.datagrams.expired += 1;
            self.failed(index, message, 0);
        }
    }

    /// Checks all flows for messages that have timed out, and continues with the next ones.
    pub(super) fn sweep(&mut self) {
        for index in 0..self.flows.len() {
            self.ledger.read_clock();
            self.expire(index);
            self.start_messages(index);
        }
    }

    /// Resolves all remaining messages at the end of the run.
    pub(super) fn give_up_the_rest(&mut self) {
        // If the user interrupted the wait, this is not a fault of the server.
        let waited = self.ledger.now.saturating_sub(self.ledger.window.1);
        let was_interrupted = self.in_flight > 0 && waited < self.ledger.timeout();
        self.ledger.outcome.split_bursts = self.exchange.split_bursts;
        self.ledger.outcome.client_drops = udp::drops(&self.sockets);
        for index in 0..self.flows.len() {
            while let Some(message) = self.flows[index].expire(u64::MAX) {
                self.ledger.measured.datagrams.expired += u64::from(!was_interrupted);
                self.failed(index, message, 0);
            }
            let flow = &self.flows[index];
            let until = flow.freed.unwrap_or(self.ledger.now);
            self.ledger.resolve_unsent(flow.rank, flow.started, until);
        }
        // If an echo arrived after the measured time, the server was only slow.
        let is_silent = !was_interrupted && self.last_echo_at <= self.ledger.window.1;
        self.ledger.outcome.silence = Some(if is_silent { self.silence } else { 0 });
    }
}
