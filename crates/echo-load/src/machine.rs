//! Resources of the machine: file descriptors and CPU time.

use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};

use crate::arguments::Plan;

/// Descriptors besides those of connections: the standard ones, result files, signals, and the ring
/// (over UDP, the epoll instance) and the eventfd of each thread.
const FILES_OWN: u64 = 16;
const FILES_THREAD: u64 = 2;

/// Raises the soft limit on open files to the hard limit. Every connection is an open file.
///
/// # Errors
/// When the limit is too low for the plan.
pub(crate) fn prepare(plan: &Plan) -> Result<(), String> {
    let needed = FILES_OWN + FILES_THREAD * u64::from(plan.threads) + u64::from(plan.connections);
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    if soft < hard {
        // If this fails, the soft limit applies.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    if limit < needed {
        return Err(format!(
            "{0} {1}s need {needed} open files, the limit is {limit}: raise it \
             (ulimit -Hn, LimitNOFILE=, /proc/sys/fs/nr_open), or use fewer {1}s",
            plan.connections,
            plan.noun()
        ));
    }
    Ok(())
}

/// CPU time of this process so far.
pub(crate) fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            Duration::from_secs(time.tv_sec().unsigned_abs())
                + Duration::from_micros(time.tv_usec().unsigned_abs())
        })
        .sum()
}
