//! The latency of echoes on connections with one message in flight.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// From a message written to the same message back, over all connections of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Latency {
    /// Half of the echoes took longer, in seconds.
    pub(crate) p50_seconds: f64,
    /// One echo of a hundred took longer, in seconds.
    #[serde(default)]
    pub(crate) p99_seconds: f64,
    /// One echo of a thousand took longer, in seconds.
    pub(crate) p99_9_seconds: f64,
}

impl Latency {
    /// For tables in plain text.
    pub(crate) fn text(&self) -> String {
        let milliseconds = |seconds: f64| format!("{:.3} ms", seconds * 1e3);
        let [p50, p99, p99_9] =
            [self.p50_seconds, self.p99_seconds, self.p99_9_seconds].map(milliseconds);
        format!("  {p50:>9} {p99:>9} {p99_9:>9}")
    }
}

/// Takes the time of each connection's echoes.
pub(crate) struct Stopwatch {
    started: Vec<Instant>,
    /// In nanoseconds; what takes longer than four seconds counts as four.
    laps: Vec<u32>,
}

impl Stopwatch {
    /// For this number of connections.
    pub(crate) fn new(connections: usize) -> Self {
        Self { started: vec![Instant::now(); connections], laps: Vec::new() }
    }

    /// A message is about to be written.
    pub(crate) fn start(&mut self, connection: usize) {
        self.started[connection] = Instant::now();
    }

    /// A message is back, and the next is about to be written.
    pub(crate) fn lap(&mut self, connection: usize) {
        let now = Instant::now();
        let nanoseconds = now.duration_since(self.started[connection]).as_nanos();
        self.laps.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
        self.started[connection] = now;
    }

    /// Concludes, and forgets what was taken. Nothing, if nothing was.
    pub(crate) fn reset(&mut self) -> Option<Latency> {
        self.laps.sort_unstable();
        let at = |per_mille: usize| {
            let index = (self.laps.len() * per_mille / 1_000).min(self.laps.len().checked_sub(1)?);
            Some(f64::from(self.laps[index]) / 1e9)
        };
        let latency =
            Some(Latency { p50_seconds: at(500)?, p99_seconds: at(990)?, p99_9_seconds: at(999)? });
        self.laps.clear();
        latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half above, half below; one of a hundred, one of a thousand above.
    #[test]
    fn percentiles_are_taken_of_all_laps() {
        let mut stopwatch = Stopwatch::new(1);
        stopwatch.laps = (0..2_000).rev().collect();
        let latency = stopwatch.reset().unwrap();
        let expected =
            Latency { p50_seconds: 1_000e-9, p99_seconds: 1_980e-9, p99_9_seconds: 1_998e-9 };
        assert_eq!(latency, expected);
        assert_eq!(stopwatch.reset(), None, "what was taken is forgotten");
    }
}
