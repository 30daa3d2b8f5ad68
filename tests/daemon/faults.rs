//! A kernel that refuses io_uring, or whose calls fail now and then. strace(1) injects the faults.
//! Without strace, or where tracing is forbidden, these tests are skipped with a note.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::daemon::Launch;
use crate::flow::{self, Ending, Flow, Plan};
use crate::machine::{in_company, time_limit, wait_until};

/// A wrapper that traces `call` of the daemon and applies `what` to it, or none with a note why
/// not.
pub(crate) fn strace(call: &str, what: &str) -> Option<Vec<String>> {
    let trial = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !trial.is_ok_and(|output| output.status.success()) {
        println!("skipped: strace is missing or may not trace");
        return None;
    }
    // -D: the tracer is a grandchild, so that the process started is the daemon.
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:{what}");
    let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    Some(words.iter().map(ToString::to_string).collect())
}

fn refused(error: &str, words: &[&str]) {
    let _quiet = in_company();
    let Some(wrapper) = strace("io_uring_setup", &format!("error={error}")) else { return };
    let launch = Launch::with_config("");
    Launch { wrapper, ..launch }.fail().assert(78, words);
}

/// A sysctl, a seccomp filter or a security module returns EPERM. `refused` distinguishes them.
#[test]
fn forbidden_io_uring_is_refused_with_its_cause() {
    refused("EPERM", &["io_uring", "kernel.io_uring_disabled", "seccomp"]);
}

/// ENOSYS from a kernel that has io_uring, as its other calls show, does not come from the kernel.
#[test]
fn absent_io_uring_is_refused_with_its_cause() {
    refused("ENOSYS", &["io_uring", "ENOSYS", "seccomp", "io_uring_enter", "io_uring_register"]);
}

#[test]
fn too_little_memory_for_a_ring_is_refused() {
    let _quiet = in_company();
    let Some(wrapper) = strace("io_uring_setup", "error=ENOMEM") else { return };
    let launch = Launch::with_config("");
    let refusal = Launch { wrapper, ..launch }.fail();
    // The error may be temporary, so systemd tries again.
    refusal.assert(71, &["Cannot allocate memory", "MemoryMax="]);
}

/// Every ninth call fails; nothing is lost, and the daemon neither ends nor spins.
fn failing_turns(error: &str) {
    let _quiet = in_company();
    let what = format!("error={error}:when=20+9");
    let Some(wrapper) = strace("io_uring_enter", &what) else { return };
    let launch = Launch::with_config("[server]\nworkers = 2\n");
    let daemon = Launch { wrapper, ..launch }.start();
    let plan = |seed| {
        let ending = if seed % 2 == 0 { Ending::WithLastByte } else { Ending::AfterEcho };
        Plan { seed, total: 200_000, largest_piece: 64 * 1024, ending, urgent: false }
    };
    let flows = (0..30).map(|seed| Flow::new(daemon.place().connect(), plan(seed))).collect();
    assert_eq!(flow::run(flows, time_limit(60.0)), 30 * 200_000);
    daemon.stop();
}

#[test]
fn interrupted_turns_lose_nothing() {
    failing_turns("EINTR");
}

#[test]
fn turns_with_eagain_lose_nothing() {
    failing_turns("EAGAIN");
}

#[test]
fn turns_that_find_the_ring_busy_lose_nothing() {
    failing_turns("EBUSY");
}

#[test]
fn turns_without_memory_lose_nothing() {
    failing_turns("ENOMEM");
}

/// If one worker hangs in the kernel, the watchdog is no longer notified, although others work.
#[test]
fn a_hanging_worker_starves_the_watchdog() {
    let _quiet = in_company();
    let Some(wrapper) = strace("io_uring_enter", "delay_enter=4s:when=20+") else { return };
    let interval = std::time::Duration::from_secs(1);
    let launch = Launch::with_config("[server]\nworkers = 2\n");
    let mut daemon = Launch { wrapper, watchdog: Some(interval), ..launch }.start();
    // From now on each call takes four seconds, so sooner or later a ping is missing.
    let starved = || {
        let last = daemon.manager.values("WATCHDOG").pop();
        last.is_some_and(|(at, _)| at.elapsed() > 2 * interval)
    };
    wait_until("the watchdog to starve", time_limit(30.0), starved);
    daemon.lines.wait_for("is stalled: no iteration", time_limit(10.0));
    daemon.signal(Signal::SIGKILL);
    let status = daemon.wait(time_limit(30.0));
    assert!(!status.success());
}
