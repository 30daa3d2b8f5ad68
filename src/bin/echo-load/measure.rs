//! What is measured: counters and latency histograms, of a thread for an interval, of all threads
//! for the run.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told apart: an hour, in nanoseconds.
const LATENCY_MAX: u64 = 3_600_000_000_000;
/// Decimal digits that are right.
const DIGITS: u8 = 3;

/// What happened in a stretch of time.
#[derive(Clone)]
pub(crate) struct Measured {
    /// How long it was.
    pub(crate) elapsed: Duration,
    /// Messages whose echo is complete (and, with verification, right).
    pub(crate) messages: u64,
    /// Bytes of echoes received.
    pub(crate) bytes: u64,
    /// Connections made.
    pub(crate) connected: u64,
    /// Nanoseconds from sending (churn: from connecting) to the last byte of the echo.
    pub(crate) uncorrected: Histogram<u64>,
    /// Nanoseconds from the moment on the schedule; None in a closed loop.
    pub(crate) corrected: Option<Histogram<u64>>,
}

impl Measured {
    pub(crate) fn new(with_schedule: bool) -> Self {
        Self {
            elapsed: Duration::ZERO,
            messages: 0,
            bytes: 0,
            connected: 0,
            uncorrected: histogram(),
            corrected: with_schedule.then(histogram),
        }
    }

    /// Counts a message.
    pub(crate) fn record(&mut self, latency_ns: u64, scheduled_latency_ns: Option<u64>) {
        self.messages += 1;
        self.uncorrected.saturating_record(latency_ns);
        if let (Some(histogram), Some(latency)) = (&mut self.corrected, scheduled_latency_ns) {
            histogram.saturating_record(latency);
        }
    }

    /// Hands out what was measured, and begins anew.
    pub(crate) fn take(&mut self, elapsed: Duration) -> Self {
        let taken = Self { elapsed, ..self.clone() };
        (self.messages, self.bytes, self.connected) = (0, 0, 0);
        self.uncorrected.reset();
        if let Some(histogram) = &mut self.corrected {
            histogram.reset();
        }
        taken
    }

    /// Adds what another thread measured in the same time.
    pub(crate) fn add_parallel(&mut self, other: &Self) {
        self.elapsed = self.elapsed.max(other.elapsed);
        self.add_counts(other);
    }

    /// Adds what was measured afterwards.
    pub(crate) fn add_later(&mut self, other: &Self) {
        self.elapsed += other.elapsed;
        self.add_counts(other);
    }

    fn add_counts(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.connected += other.connected;
        let same = "invariant: all histograms have the same bounds";
        self.uncorrected.add(&other.uncorrected).expect(same);
        if let (Some(mine), Some(theirs)) = (&mut self.corrected, &other.corrected) {
            mine.add(theirs).expect(same);
        }
    }

    /// The latencies that answer how the service felt: corrected, if there was a schedule.
    pub(crate) fn felt(&self) -> &Histogram<u64> {
        self.corrected.as_ref().unwrap_or(&self.uncorrected)
    }

    pub(crate) fn messages_per_second(&self) -> f64 {
        per_second(self.messages, self.elapsed)
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.elapsed)
    }
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, DIGITS).expect("invariant: the bounds are valid")
}
