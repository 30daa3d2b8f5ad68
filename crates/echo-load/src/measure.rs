//! What is measured: how messages ended, and latency histograms, of a thread for an interval, of
//! all threads for the run.
//!
//! Every message that belongs to a run is counted once, when its end is known, and so is the time
//! that it took or waited. A message belongs to the run if it waited for its echo at any time
//! between the run's beginning and its end.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told apart: an hour, in nanoseconds.
const LATENCY_MAX: u64 = 3_600_000_000_000;
/// Decimal digits that are right.
const DIGITS: u8 = 3;

/// What became of the messages of a stretch of time. For a whole run
/// `scheduled = answered + late + unanswered + unsent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages that became due; in a closed loop: that were started. Those that waited already
    /// when the measured time began are among them.
    pub(crate) scheduled: u64,
    /// Those whose echo was complete (and, with verification, right) before the measured time was
    /// over.
    pub(crate) answered: u64,
    /// Those whose echo was complete afterwards, within the timeout.
    pub(crate) late: u64,
    /// Those that were sent and whose echo never was complete.
    pub(crate) unanswered: u64,
    /// Those that were due and never sent.
    pub(crate) unsent: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.scheduled += other.scheduled;
        self.answered += other.answered;
        self.late += other.late;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
    }
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    Late,
    Unanswered,
    Unsent,
}

/// How long a message took or waited, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// From the moment on the schedule; None in a closed loop.
    pub(crate) scheduled: Option<u64>,
    /// From sending (churn: from connecting); None if it was never sent.
    pub(crate) sent: Option<u64>,
}

impl Wait {
    /// At least `least`: what never came did not come within the timeout.
    pub(crate) fn at_least(self, least: u64) -> Self {
        Self {
            scheduled: self.scheduled.map(|wait| wait.max(least)),
            sent: self.sent.map(|wait| wait.max(least)),
        }
    }
}

/// What happened in a stretch of time.
#[derive(Clone)]
pub(crate) struct Measured {
    /// How long it was.
    pub(crate) elapsed: Duration,
    /// What became of messages.
    pub(crate) counts: Counts,
    /// Bytes of echoes received.
    pub(crate) bytes: u64,
    /// Connections made.
    pub(crate) connected: u64,
    /// Nanoseconds from sending (churn: from connecting) to the last byte of the echo.
    pub(crate) uncorrected: Histogram<u64>,
    /// Nanoseconds from the moment on the schedule; None in a closed loop.
    pub(crate) corrected: Option<Histogram<u64>>,
    /// Nanoseconds from the moment on the schedule to the kernel, of messages that nothing but this
    /// client held up; None in a closed loop.
    pub(crate) lateness: Option<Histogram<u64>>,
    /// Messages that waited for their echo when it was over.
    pub(crate) outstanding: u64,
    /// How long the first of them had waited, in nanoseconds.
    pub(crate) longest_wait: u64,
}

impl Measured {
    pub(crate) fn new(with_schedule: bool) -> Self {
        Self {
            elapsed: Duration::ZERO,
            counts: Counts::default(),
            bytes: 0,
            connected: 0,
            uncorrected: histogram(),
            corrected: with_schedule.then(histogram),
            lateness: with_schedule.then(histogram),
            outstanding: 0,
            longest_wait: 0,
        }
    }

    /// Counts a message.
    pub(crate) fn record(&mut self, fate: Fate, wait: Wait) {
        match fate {
            Fate::Answered => self.counts.answered += 1,
            Fate::Late => self.counts.late += 1,
            Fate::Unanswered => self.counts.unanswered += 1,
            Fate::Unsent => self.counts.unsent += 1,
        }
        if let Some(wait) = wait.sent {
            self.uncorrected.saturating_record(wait);
        }
        if let (Some(histogram), Some(wait)) = (&mut self.corrected, wait.scheduled) {
            histogram.saturating_record(wait);
        }
    }

    /// Counts `count` messages that were never sent, each of which waited for `wait` nanoseconds.
    pub(crate) fn record_unsent(&mut self, wait: u64, count: u64) {
        self.counts.unsent += count;
        if let Some(histogram) = &mut self.corrected {
            histogram.saturating_record_n(wait, count);
        }
    }

    /// Records how late the client itself was with a message.
    pub(crate) fn record_lateness(&mut self, lateness: u64) {
        if let Some(histogram) = &mut self.lateness {
            histogram.saturating_record(lateness);
        }
    }

    /// Hands out what was measured, and begins anew.
    pub(crate) fn take(&mut self, elapsed: Duration) -> Self {
        let taken = Self { elapsed, ..self.clone() };
        self.counts = Counts::default();
        (self.bytes, self.connected) = (0, 0);
        self.uncorrected.reset();
        for histogram in [&mut self.corrected, &mut self.lateness].into_iter().flatten() {
            histogram.reset();
        }
        taken
    }

    /// Adds what another thread measured in the same time.
    pub(crate) fn add_parallel(&mut self, other: &Self) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.outstanding += other.outstanding;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.add_counts(other);
    }

    /// Adds what was measured afterwards.
    pub(crate) fn add_later(&mut self, other: &Self) {
        self.elapsed += other.elapsed;
        (self.outstanding, self.longest_wait) = (other.outstanding, other.longest_wait);
        self.add_counts(other);
    }

    /// Adds what became of messages after the measured time was over: it is no part of that.
    pub(crate) fn add_end(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.add_histograms(other);
    }

    fn add_counts(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.bytes += other.bytes;
        self.connected += other.connected;
        self.add_histograms(other);
    }

    fn add_histograms(&mut self, other: &Self) {
        let same = "invariant: all histograms have the same bounds";
        self.uncorrected.add(&other.uncorrected).expect(same);
        if let (Some(mine), Some(theirs)) = (&mut self.corrected, &other.corrected) {
            mine.add(theirs).expect(same);
        }
        if let (Some(mine), Some(theirs)) = (&mut self.lateness, &other.lateness) {
            mine.add(theirs).expect(same);
        }
    }

    /// The latencies that answer how the service felt: corrected, if there was a schedule.
    pub(crate) fn felt(&self) -> &Histogram<u64> {
        self.corrected.as_ref().unwrap_or(&self.uncorrected)
    }

    pub(crate) fn messages_per_second(&self) -> f64 {
        per_second(self.counts.answered, self.elapsed)
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.elapsed)
    }
}

/// A quantile in nanoseconds; None if nothing was measured.
pub(crate) fn quantile(histogram: &Histogram<u64>, quantile: f64) -> Option<u64> {
    (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile))
}

pub(crate) fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, DIGITS).expect("invariant: the bounds are valid")
}
