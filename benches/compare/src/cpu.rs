//! Cores and CPU time: who runs where, and how long a process has run.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// How long nothing may change before a process counts as at rest.
const REST: Duration = Duration::from_millis(2);

/// Readings before a process that never rests is taken as it is.
const READINGS_MAX: usize = 100;

/// Binds this thread, and what it starts from now on, to one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)?;
    Ok(())
}

/// Does something bound to `core`, then goes back to where this thread was. A process started by it
/// stays there.
pub(crate) fn on_core<T>(core: usize, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread)?;
    pin(core)?;
    let outcome = action();
    sched_setaffinity(this_thread, &before)?;
    outcome
}

/// CPU time of all threads of a process, read when it no longer grows.
///
/// The kernel brings the figure of a running thread up to date only when that thread is switched or
/// a tick comes, so that it is exact only for a thread that sleeps.
pub(crate) fn settled_time(process: u32) -> io::Result<Duration> {
    let mut last = time(process)?;
    for _ in 0..READINGS_MAX {
        thread::sleep(REST);
        let now = time(process)?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// Threads that have ended take their time with them; the servers compared keep theirs. Threads
/// that the kernel runs on behalf of the process (io_uring's workers) are in the same directory and
/// count.
fn time(process: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok());
        let invalid = || io::Error::other(format!("schedstat is not what it was: {text:?}"));
        total += Duration::from_nanos(nanoseconds.ok_or_else(invalid)?);
    }
    Ok(total)
}
