//! Measurements: the outcome of messages and latency histograms, for one thread and interval or for
//! all threads and the run.
//!
//! Every message of a run is counted once, when its outcome is known, together with its latency or
//! waiting time. A message belongs to the run if it waited for its echo at any time between the
//! beginning and the end of the run.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The maximum latency that is recorded exactly: an hour, in nanoseconds.
const LATENCY_MAX: u64 = 3_600_000_000_000;
/// The number of significant decimal digits.
const DIGITS: u8 = 3;

/// The outcome of the messages of a period. For a whole run
/// `scheduled = answered + late + unanswered + unsent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages whose scheduled time came; in a closed loop, messages that were started. Messages
    /// that were already waiting when the measured time began are included.
    pub(crate) scheduled: u64,
    /// Messages whose echo was complete (and, with verification, correct) within the measured time.
    pub(crate) answered: u64,
    /// Messages whose echo was complete afterwards, within the timeout.
    pub(crate) late: u64,
    /// Messages that were sent, but whose echo was never complete.
    pub(crate) unanswered: u64,
    /// Messages whose scheduled time came, but which were never sent.
    pub(crate) unsent: u64,
}

impl Counts {
    /// Messages that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.answered + self.late + self.unanswered
    }

    fn add(&mut self, other: &Self) {
        self.scheduled += other.scheduled;
        self.answered += other.answered;
        self.late += other.late;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
    }
}

/// What happened to datagrams in a period. All are zero over streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Datagrams {
    /// Datagrams that were not echoed within the timeout.
    pub(crate) expired: u64,
    /// Those of them that were echoed later.
    pub(crate) late: u64,
    /// Echoes that arrived after that of a later datagram of their flow.
    pub(crate) reordered: u64,
    pub(crate) jitter: Jitter,
}

impl Datagrams {
    /// Datagrams that were not echoed at all.
    pub(crate) fn lost(&self) -> u64 {
        self.expired.saturating_sub(self.late)
    }

    fn add(&mut self, other: &Self) {
        self.expired += other.expired;
        self.late += other.late;
        self.reordered += other.reordered;
        self.jitter.count += other.jitter.count;
        self.jitter.sum += other.jitter.sum;
        self.jitter.max = self.jitter.max.max(other.jitter.max);
    }
}

/// Absolute differences between the round-trip times of consecutive echoes of a flow, in
/// nanoseconds: |D| of RFC 3550, section 6.4.1. They are averaged, not smoothed, because the
/// smoothed value of that section describes only the last echoes of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Jitter {
    count: u64,
    sum: u64,
    max: u64,
}

impl Jitter {
    pub(crate) fn record(&mut self, difference: u64) {
        self.count += 1;
        self.sum += difference;
        self.max = self.max.max(difference);
    }

    /// The mean and the maximum; None if no flow had two echoes.
    pub(crate) fn mean_and_max(&self) -> Option<(f64, u64)> {
        (self.count > 0).then(|| (self.sum as f64 / self.count as f64, self.max))
    }
}

/// The outcome of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    Late,
    Unanswered,
    Unsent,
}

/// The latency or waiting time of a message, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// From its scheduled time; None in a closed loop.
    pub(crate) scheduled: Option<u64>,
    /// From the send (churn: from the connect); None if it was never sent.
    pub(crate) sent: Option<u64>,
}

impl Wait {
    /// Raises the times to at least `least`, for messages that failed before the timeout.
    pub(crate) fn at_least(self, least: u64) -> Self {
        Self {
            scheduled: self.scheduled.map(|wait| wait.max(least)),
            sent: self.sent.map(|wait| wait.max(least)),
        }
    }
}

/// The measurements of a period.
#[derive(Clone)]
pub(crate) struct Measured {
    /// Its duration.
    pub(crate) elapsed: Duration,
    /// The outcome of messages.
    pub(crate) counts: Counts,
    pub(crate) datagrams: Datagrams,
    /// Bytes of echoes received.
    pub(crate) bytes: u64,
    /// Connections made.
    pub(crate) connected: u64,
    /// Nanoseconds from the send (churn: from the connect) to the last byte of the echo.
    pub(crate) uncorrected: Histogram<u64>,
    /// Nanoseconds from the scheduled time; None in a closed loop.
    pub(crate) corrected: Option<Histogram<u64>>,
    /// Nanoseconds from the scheduled time to the submission to the kernel, for messages that only
    /// this client delayed; None in a closed loop.
    pub(crate) lateness: Option<Histogram<u64>>,
    /// Messages that waited for their echo at its end.
    pub(crate) outstanding: u64,
    /// How long the oldest of them had waited, in nanoseconds.
    pub(crate) longest_wait: u64,
}

impl Measured {
    pub(crate) fn new(with_schedule: bool) -> Self {
        Self {
            elapsed: Duration::ZERO,
            counts: Counts::default(),
            datagrams: Datagrams::default(),
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

    /// Returns the measurements and resets them.
    pub(crate) fn take(&mut self, elapsed: Duration) -> Self {
        let taken = Self { elapsed, ..self.clone() };
        (self.counts, self.datagrams) = (Counts::default(), Datagrams::default());
        (self.bytes, self.connected) = (0, 0);
        self.uncorrected.reset();
        for histogram in [&mut self.corrected, &mut self.lateness].into_iter().flatten() {
            histogram.reset();
        }
        taken
    }

    /// Adds the measurements of another thread for the same period.
    pub(crate) fn add_parallel(&mut self, other: &Self) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.outstanding += other.outstanding;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.add_counts(other);
    }

    /// Adds the measurements of the following period.
    pub(crate) fn add_later(&mut self, other: &Self) {
        self.elapsed += other.elapsed;
        (self.outstanding, self.longest_wait) = (other.outstanding, other.longest_wait);
        self.add_counts(other);
    }

    /// Adds the outcome of messages after the measured time, without extending it.
    pub(crate) fn add_end(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.datagrams.add(&other.datagrams);
        self.add_histograms(other);
    }

    fn add_counts(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.datagrams.add(&other.datagrams);
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

    /// The latencies as a user experiences them: corrected in an open loop, else uncorrected.
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
