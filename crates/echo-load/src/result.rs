//! The result of a run, on which all output formats are based, and its problems.

use std::time::{Duration, SystemTime};

use crate::arguments::Plan;
use crate::measure::{Measured, quantile};
use crate::orders::Outcome;
use crate::status::Status;
use crate::units::counted;

/// The complete result of a run.
pub(crate) struct Result {
    /// The address that was used, if any.
    pub(crate) address: Option<String>,
    /// When the measured time began.
    pub(crate) started_at: SystemTime,
    /// From the warm-up until the last report, and the outcome of messages afterwards.
    pub(crate) total: Measured,
    /// The reports, in order.
    pub(crate) intervals: Vec<Point>,
    pub(crate) outcome: Outcome,
    /// Connections that took part in the measured time.
    pub(crate) connections_made: u64,
    /// CPU time of this process in the measured time.
    pub(crate) cpu: Duration,
    pub(crate) ended: Ended,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// After its full duration.
    OnTime,
    /// By a signal.
    Interrupted,
    /// All connections were lost.
    Lost,
    /// Its output was closed or cannot be written.
    Unread,
}

impl Ended {
    /// The word for it in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::OnTime => "on_time",
            Self::Interrupted => "interrupted",
            Self::Lost => "connections_lost",
            Self::Unread => "output_closed",
        }
    }

    /// The text for it in the table.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::OnTime => "complete",
            Self::Interrupted => "interrupted",
            Self::Lost => "all connections were lost",
            Self::Unread => "its output was closed",
        }
    }
}

/// A report, without its histograms.
pub(crate) struct Point {
    /// The end of the interval, since the beginning of the measured time.
    pub(crate) at: Duration,
    pub(crate) messages_per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// None if no message ended in the interval.
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    /// Messages that waited for their echo at its end.
    pub(crate) outstanding: u64,
    /// How long the oldest of them had waited.
    pub(crate) longest_wait_ns: u64,
}

impl Point {
    pub(crate) fn new(at: Duration, measured: &Measured) -> Self {
        Self {
            at,
            messages_per_second: measured.messages_per_second(),
            bytes_per_second: measured.bytes_per_second(),
            p50_ns: quantile(measured.felt(), 0.5),
            p99_ns: quantile(measured.felt(), 0.99),
            outstanding: measured.outstanding,
            longest_wait_ns: measured.longest_wait,
        }
    }
}

/// A reason why the result is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: Status,
    pub(crate) text: String,
}

impl Result {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            address: None,
            started_at: SystemTime::now(),
            total: Measured::new(plan.rate_per_second.is_some()),
            intervals: Vec::new(),
            outcome: Outcome::default(),
            connections_made: 0,
            cpu: Duration::ZERO,
            ended: Ended::OnTime,
        }
    }

    /// The share of the datagrams sent that were lost, late or reordered. None if none were sent.
    pub(crate) fn impaired(&self) -> Option<f64> {
        let (datagrams, sent) = (&self.total.datagrams, self.total.counts.sent());
        let impaired = datagrams.expired + datagrams.reordered;
        (sent > 0).then(|| impaired as f64 / sent as f64)
    }

    /// If the server fell silent over UDP for longer than tolerated: how long.
    fn silence(&self, plan: &Plan) -> Option<String> {
        let silence = self.outcome.silence.unwrap_or(0) as f64 / 1e9;
        (silence > self.total.elapsed.as_secs_f64() * plan.tolerance)
            .then(|| format!("the server fell silent: no echo in the last {silence:.3} s"))
    }

    /// If more datagrams than tolerated were lost, late or reordered: how many.
    fn excess(&self, plan: &Plan) -> Option<String> {
        let share = self.impaired().filter(|share| *share > plan.tolerance)?;
        let datagrams = &self.total.datagrams;
        let mut text = format!(
            "{:.3} % of the datagrams were lost ({}), late ({}) or reordered ({})",
            share * 100.0,
            datagrams.lost(),
            datagrams.late,
            datagrams.reordered
        );
        if self.outcome.client_drops > 0 {
            let drops = self.outcome.client_drops;
            text += &format!(
                "; {drops} of these echoes were dropped at the receive buffers of this client"
            );
        }
        Some(text)
    }

    /// The losses over UDP that are more than tolerated.
    pub(crate) fn losses(&self, plan: &Plan) -> Vec<String> {
        self.excess(plan).into_iter().chain(self.silence(plan)).collect()
    }

    /// The problems, in the order of the exit statuses.
    pub(crate) fn problems(&self, plan: &Plan) -> Vec<Problem> {
        let (outcome, counts) = (&self.outcome, &self.total.counts);
        let mut problems = Vec::new();
        let mut note = |status, text| problems.push(Problem { status, text });
        if outcome.faults_total() > 0 {
            note(Status::Faults, counted(outcome.faults_total(), "error"));
        }
        for text in self.losses(plan) {
            note(Status::Faults, text);
        }
        if let Some(error) = &outcome.connect_error {
            let failed = counted(outcome.connect_failures, "connect");
            note(Status::Unconnected, format!("{failed} failed, the first with: {error}"));
        }
        if self.ended == Ended::Lost {
            let elapsed = self.total.elapsed.as_secs_f64();
            let text = format!("the run ended after {elapsed:.3} s: all connections were lost");
            note(Status::Incomplete, text);
        }
        if counts.answered == 0 {
            note(Status::Incomplete, "no message was answered in the measured time".to_owned());
        }
        // Datagrams that expired are in `excess`.
        let unanswered = counts.unanswered - self.total.datagrams.expired.min(counts.unanswered);
        if unanswered > 0 && outcome.faults_total() == 0 {
            let text = format!("{} not answered", counted(unanswered, "message"));
            note(Status::Incomplete, text);
        }
        // In a closed loop only failed connects leave messages unsent.
        let has_rate = plan.rate_per_second.is_some();
        if has_rate && counts.unsent as f64 > counts.scheduled as f64 * plan.tolerance {
            let share = counts.unsent as f64 / counts.scheduled as f64 * 100.0;
            let text = format!(
                "the rate was missed: {} of {} messages ({share:.1} %) were never sent",
                counts.unsent, counts.scheduled
            );
            note(Status::Incomplete, text);
        }
        if let Some(error) = &outcome.send_error {
            let failed = counted(outcome.send_failures, "datagram");
            note(Status::Incomplete, format!("{failed} not sent, the first with: {error}"));
        }
        if outcome.without_echo > 0 {
            let connections = counted(outcome.without_echo, plan.noun());
            let text = format!("{connections} of {} got no echo", plan.connections);
            note(Status::Incomplete, text);
        }
        if plan.require_close && outcome.left_open > 0 {
            let connections = counted(outcome.left_open, "connection");
            note(Status::Incomplete, format!("{connections} left open by the server"));
        }
        problems
    }
}
