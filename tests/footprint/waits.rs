//! How the kernel accounts time in which no thread runs: idle, or waiting for I/O (proc_stat(5)).

use std::fs;
use std::ops::Sub;
use std::thread;
use std::time::Duration;

/// Time of all processors since the machine started, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unused {
    idle: u64,
    waiting: u64,
}

impl Unused {
    /// The time that accumulates during `span`.
    pub(crate) fn during(span: Duration) -> Self {
        let before = Self::now();
        thread::sleep(span);
        Self::now() - before
    }

    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let all = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap();
        // user, nice, system, idle, iowait, …
        let field = |index| all.split_whitespace().nth(index).unwrap().parse().unwrap();
        Self { idle: field(3), waiting: field(4) }
    }

    /// The fraction of it in which a thread of that processor waited for I/O.
    pub(crate) fn waiting(self) -> f64 {
        self.waiting as f64 / (self.idle + self.waiting).max(1) as f64
    }
}

impl Sub for Unused {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        // The kernel's iowait sometimes decreases.
        let since = |now: u64, then| now.saturating_sub(then);
        Self { idle: since(self.idle, before.idle), waiting: since(self.waiting, before.waiting) }
    }
}
