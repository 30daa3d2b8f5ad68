//! What the tests need from the machine: time limits, exclusive runs, open files, and figures of a
//! process.
//!
//! Deadlines are generous and use the monotonic clock. On a slow machine, such as an emulator, the
//! environment variable `ECHO_URING_TEST_SLOWNESS` (a factor, default 1) extends them. This module
//! must not know anything about echo.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How much slower than a usual machine this one is, at least 1.
pub(crate) fn slowness() -> f64 {
    std::env::var("ECHO_URING_TEST_SLOWNESS")
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .map_or(1.0, |factor| factor.max(1.0))
}

/// `seconds`, extended on a slow machine. For upper limits only, never for lower ones.
pub(crate) fn time_limit(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * slowness())
}

static QUIET: RwLock<()> = RwLock::new(());

/// Held by a test that can run with others in parallel.
pub(crate) fn in_company() -> RwLockReadGuard<'static, ()> {
    raise_open_files();
    QUIET.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that measures time or needs many files: no other test runs meanwhile.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    raise_open_files();
    QUIET.write().unwrap_or_else(PoisonError::into_inner)
}

/// A thousand peers need more files than the usual soft limit of 1024 permits.
fn raise_open_files() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard).unwrap();
    });
}

/// Waits until `condition` holds, or panics with `what` was waited for after `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A directory of one test, removed with all that is in it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty directory with a short path: socket names may have 107 bytes at most.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("echo-uring-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The path of `name` in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that cannot be removed stays in the temporary directory; the test does not fail.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A running process, examined through /proc.
#[derive(Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    fn directory(self) -> PathBuf {
        Path::new("/proc").join(self.0.to_string())
    }

    /// Whether all its threads are stopped by a signal.
    pub(crate) fn is_stopped(self) -> bool {
        let tasks = fs::read_dir(self.directory().join("task")).unwrap();
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }

    /// How many file descriptors it has open.
    pub(crate) fn open_files(self) -> usize {
        fs::read_dir(self.directory().join("fd")).map_or(0, Iterator::count)
    }

    /// What its file descriptors are, one a line, for a message.
    pub(crate) fn describe_files(self) -> String {
        let mut text = String::new();
        let entries = fs::read_dir(self.directory().join("fd")).into_iter().flatten().flatten();
        for entry in entries {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let name = entry.file_name();
            writeln!(text, "{} -> {}", name.to_string_lossy(), target.display()).unwrap();
        }
        text
    }

    /// Time that all its threads spent on a CPU so far, in the kernel or not; in steps of 10 ms.
    pub(crate) fn cpu_time(self) -> Duration {
        cpu_time(&self.directory())
    }

    /// The same for each of its threads.
    pub(crate) fn cpu_times_of_threads(self) -> Vec<Duration> {
        let threads = fs::read_dir(self.directory().join("task")).unwrap();
        threads.map(|thread| cpu_time(&thread.unwrap().path())).collect()
    }

    /// The names of all its threads, also of those that the kernel made for it.
    pub(crate) fn names_of_threads(self) -> Vec<String> {
        let threads = fs::read_dir(self.directory().join("task")).into_iter().flatten().flatten();
        // One may end while it is looked at.
        let names =
            threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// Its anonymous resident memory in bytes.
    pub(crate) fn anonymous_memory(self) -> u64 {
        let status = fs::read_to_string(self.directory().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
        kib * 1024
    }

    /// Limits its address space to little more than its present size; false if there is no
    /// prlimit(1).
    pub(crate) fn limit_address_space(self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let limit = kib * 1024 + (256 << 10);
        let mut command = std::process::Command::new("prlimit");
        let limit = format!("--as={limit}:{limit}");
        let status = command.args([format!("--pid={}", self.0), limit]).status();
        status.is_ok_and(|status| status.success())
    }

    /// Lowers its limit on open files with prlimit(1); false where there is no such program.
    pub(crate) fn limit_open_files(self, limit: usize) -> bool {
        let mut command = std::process::Command::new("prlimit");
        command.arg(format!("--pid={}", self.0)).arg(format!("--nofile={limit}:{limit}"));
        command.status().is_ok_and(|status| status.success())
    }

    /// Asserts that it uses almost no CPU time over `span`: less than 5 % of one CPU, the best of
    /// three measurements, since earlier work may need a moment to finish.
    pub(crate) fn assert_at_rest(self, span: Duration, when: &str) {
        let mut spent = Vec::new();
        for _ in 0..3 {
            let before = self.cpu_time();
            thread::sleep(span);
            let used = self.cpu_time() - before;
            // Twice the resolution of the clock is no evidence of work.
            if used <= (span / 20).max(Duration::from_millis(20)) {
                return;
            }
            spent.push(used);
        }
        panic!("{when}: {spent:?} of CPU time in three looks of {span:?} each");
    }
}

/// The time spent by the process or thread of this directory of /proc.
fn cpu_time(directory: &Path) -> Duration {
    let stat = fs::read_to_string(directory.join("stat")).unwrap();
    // The second field, the name, may contain blanks; the fields after its closing bracket do not.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |index: usize| -> u64 {
        fields.split(' ').nth(index).and_then(|field| field.parse().ok()).unwrap()
    };
    // proc_pid_stat(5): utime and stime are fields 14 and 15 of the whole line, in ticks of 1/100
    // s.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

#[test]
fn a_busy_process_is_not_at_rest() {
    let mut child =
        std::process::Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let process = Process(child.id());
    // On a machine with little memory a shell may take a while until it spins.
    wait_until("a spinning shell", time_limit(10.0), || {
        process.cpu_time() >= Duration::from_millis(50)
    });
    let verdict = std::panic::catch_unwind(|| {
        // On a busy machine it gets a small part of a CPU.
        process.assert_at_rest(Duration::from_secs(2), "spinning");
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(verdict.is_err(), "a spinning shell passed as an idle process");
}
