//! Cores and CPU time: binding to cores, and the CPU time of processes.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;

/// How long nothing may change before a process counts as at rest.
const REST: Duration = Duration::from_millis(2);

/// The unit of times in /proc/PID/stat (`getconf CLK_TCK`), the same on all of Linux that a user
/// sees.
const TICK: Duration = Duration::from_millis(10);

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

/// Whose CPU time counts for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crew {
    /// Its own threads.
    Threads,
    /// Processes that it forks as well.
    Children,
}

/// CPU time of a server, read when it no longer grows: it may still be at its last event when the
/// last byte is back.
pub(crate) fn settled_time(process: u32, crew: Crew) -> io::Result<Duration> {
    let mut last = time(process, crew)?;
    for _ in 0..READINGS_MAX {
        thread::sleep(REST);
        let now = time(process, crew)?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// The process's own clock has the time of all its threads to the nanosecond, ended ones and those
/// that the kernel runs on its behalf (io_uring's workers) included; it is the sum of what their
/// `schedstat` says, without the ticks that a running thread's lags behind. Living children have
/// clocks of their own; of those that were waited for the kernel keeps the sum, in ticks.
fn time(process: u32, crew: Crew) -> io::Result<Duration> {
    let mut total = clock(process)?;
    if crew == Crew::Children {
        total += time_of_ended_children(process)?;
        // A child that has just ended is counted as such the next time.
        let living = children(process)?.into_iter().filter_map(|child| clock(child).ok());
        total += living.sum::<Duration>();
    }
    Ok(total)
}

fn clock(process: u32) -> io::Result<Duration> {
    Ok(ClockId::pid_cpu_clock_id(Pid::from_raw(process.cast_signed()))?.now()?.into())
}

/// The parent of a process is the second field after its name. The list of children would be
/// shorter, but not every kernel has it (`CONFIG_PROC_CHILDREN`).
fn children(process: u32) -> io::Result<Vec<u32>> {
    let parent = process.to_string();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(child) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if fields(&text).nth(1) == Some(&parent) {
            children.push(child);
        }
    }
    Ok(children)
}

/// The fields of /proc/PID/stat from the third one on: the second, the name, may hold blanks.
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ')
}

/// See proc_pid_stat(5): cutime and cstime are fields 16 and 17.
fn time_of_ended_children(process: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let ticks = |index| fields(&text).nth(index).and_then(|field| field.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(13), ticks(14)) else {
        return Err(io::Error::other(format!("stat is not what it was: {text:?}")));
    };
    Ok(TICK * u32::try_from(user + system).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// The CPU time of a forking server must include that of its children, whether they have ended
    /// or not.
    #[test]
    fn the_time_of_children_counts() {
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        for script in [format!("({work}); read x"), format!("({work}; sleep 5) & read x")] {
            let mut shell = Command::new("/bin/sh")
                .args(["-c", &script])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            thread::sleep(Duration::from_millis(1_500));
            let alone = settled_time(shell.id(), Crew::Threads).unwrap();
            let all = settled_time(shell.id(), Crew::Children).unwrap();
            shell.kill().unwrap();
            shell.wait().unwrap();
            assert!(all >= alone + Duration::from_millis(20), "{script}: {alone:?}, {all:?}");
        }
    }
}
