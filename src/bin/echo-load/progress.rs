//! What a user sees meanwhile: one line on standard error, on a terminal only.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arguments::Plan;
use crate::run::Point;
use crate::table::{bytes_per_second, count, time};

/// The line, if somebody can see it.
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
            let style = ProgressStyle::with_template("{elapsed_precise} [{bar:20}] {msg}");
            bar.set_style(style.expect("invariant: the template is valid").progress_chars("=> "));
            bar
        });
        Self { bar, connections: plan.connections }
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
            bar.set_message(format!(
                "{} messages/s, {}, p50 {}, p99 {}, errors {faults}",
                count(point.messages_per_second),
                bytes_per_second(point.bytes_per_second),
                time(Duration::from_nanos(point.p50_ns)),
                time(Duration::from_nanos(point.p99_ns)),
            ));
        }
    }

    /// While connections are ended.
    pub(crate) fn finishing(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message("waiting for the last echoes");
        }
    }

    /// Takes the line away: the result follows.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
