//! How often the threads of a process wake: each time a thread sleeps, the kernel counts a
//! voluntary switch (proc_pid_status(5)).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::Process;

/// The wake-ups of a process.
#[derive(Debug)]
pub(crate) struct Wakes {
    /// How long they were counted.
    span: Duration,
    /// Wake-ups of each thread, by its number and name.
    counts: BTreeMap<String, u64>,
}

impl Wakes {
    /// Counts the wake-ups of a process during `span`.
    pub(crate) fn during(process: Process, span: Duration) -> Self {
        let before = switches(process);
        let start = Instant::now();
        thread::sleep(span);
        let mut counts = switches(process);
        for (name, count) in &mut counts {
            // A new thread has been awake at least once.
            *count -= before.get(name).copied().unwrap_or(0);
        }
        Self { span: start.elapsed(), counts }
    }

    /// Asserts that no thread woke more than `per_second` times a second. The interval may contain
    /// one more.
    pub(crate) fn assert_at_most(&self, per_second: f64) {
        assert!(!self.counts.is_empty(), "it has no thread, so it is gone");
        let most = (per_second * self.span.as_secs_f64()).floor() + 1.0;
        for (name, &count) in &self.counts {
            assert!(count as f64 <= most, "{name} woke {count} times: {self:?}");
        }
    }
}

/// Wake-ups of all threads of a process so far.
pub(crate) fn switches_of_all_threads(process: Process) -> u64 {
    switches(process).values().sum()
}

fn switches(process: Process) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(Path::new("/proc").join(process.0.to_string()).join("task"));
    let status = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        let name = format!("{} {}", task.file_name().to_string_lossy(), field("Name:"));
        (name, field("voluntary_ctxt_switches:").parse().unwrap())
    };
    tasks.unwrap().map(|task| status(task.unwrap())).collect()
}

/// A count that missed wake-ups would pass any daemon.
#[test]
fn a_process_that_wakes_is_seen() {
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", "while :; do sleep 0.05; done"])
        .spawn()
        .unwrap();
    let wakes = Wakes::during(Process(child.id()), Duration::from_secs(1));
    child.kill().unwrap();
    child.wait().unwrap();
    let verdict = std::panic::catch_unwind(|| wakes.assert_at_most(1.0));
    assert!(verdict.is_err(), "a busy shell passed as a sleeping process: {wakes:?}");
}
