//! The progress display: one line on standard error, on a terminal only.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arguments::Plan;
use crate::result::Point;
use crate::units::{bytes_per_second, count, counted, time};

/// The progress line, if standard error is a terminal.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    connections: u32,
}

impl Progress {
    pub(crate) fn new(plan: &Plan) -> Self {
        let visible = io::stderr().is_terminal() && !plan.output.no_progress;
        let bar = visible.then(|| {
            let length = plan.duration.as_millis() as u64;
            let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{elapsed_precise} [{bar:10}] {msg}");
            bar.set_style(style.expect("invariant: the template is valid").progress_chars("=> "));
            bar
        });
        Self { bar, connections: plan.connections }
    }

    /// The warm-up begins.
    pub(crate) fn warming_up(&self, warmup: Duration) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("warming up for {}", time(warmup)));
        }
    }

    /// The measured time begins.
    pub(crate) fn begin(&self) {
        if let Some(bar) = &self.bar {
            bar.reset_elapsed();
            bar.set_message("measuring");
        }
    }

    /// While connections are made.
    pub(crate) fn connecting(&self, connected: u64) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("connecting: {connected} of {}", self.connections));
        }
    }

    /// After each interval.
    pub(crate) fn running(&self, point: &Point, faults: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(point.at.as_millis() as u64);
            bar.set_message(line(point, faults));
        }
    }

    /// While connections are ended.
    pub(crate) fn finishing(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message("waiting for the last echoes");
        }
    }

    /// Removes the line before the result.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// An interval, in the space that 80 columns leave beside time and bar.
fn line(point: &Point, faults: u64) -> String {
    let rate = count(point.messages_per_second);
    let mut line = match (point.p50_ns, point.p99_ns) {
        (Some(p50), Some(p99)) => {
            let [p50, p99] = [p50, p99].map(|it| time(Duration::from_nanos(it)));
            format!("{rate}/s, p50 {p50}, p99 {p99}")
        }
        _ => {
            let wait = time(Duration::from_nanos(point.longest_wait_ns));
            match point.outstanding {
                0 => format!("{rate}/s, no message scheduled"),
                waiting => format!("no echo: {waiting} waiting, oldest {wait}"),
            }
        }
    };
    if point.p50_ns.is_some() {
        line += &format!(", {}", bytes_per_second(point.bytes_per_second));
    }
    if faults > 0 {
        line += &format!(", {}", counted(faults, "error"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighty_columns_suffice() {
        let point = |p50_ns, outstanding| Point {
            at: Duration::from_secs(3600),
            messages_per_second: 12_345_678.0,
            bytes_per_second: 123e9,
            p50_ns,
            p99_ns: p50_ns,
            outstanding,
            longest_wait_ns: 123_456_789_000,
        };
        // "00:00:00 [==========] " and the cursor.
        let room = 80 - 22 - 1;
        for point in [point(Some(999_940_000), 1_000_000), point(None, 10_000_000), point(None, 0)]
        {
            let line = line(&point, 0);
            assert!(line.chars().count() <= room, "{line}");
        }
    }

    #[test]
    fn a_stall_is_shown_as_one() {
        let point = Point {
            at: Duration::from_secs(1),
            messages_per_second: 0.0,
            bytes_per_second: 0.0,
            p50_ns: None,
            p99_ns: None,
            outstanding: 8,
            longest_wait_ns: 1_500_000_000,
        };
        assert_eq!(line(&point, 1), "no echo: 8 waiting, oldest 1.50 s, 1 error");
    }
}
