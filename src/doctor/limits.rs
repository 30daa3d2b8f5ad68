//! What the process may have: files above all, since each connection is one.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::finding::{Finding, Topic};
use crate::config::{Config, Workers};

/// What the daemon keeps free besides connections: see `daemon::service`.
const FILES_SPARE: u64 = 64;
const FILES_PER_WORKER: u64 = 2;

pub(super) fn findings(config: &Config, findings: &mut Vec<Finding>) {
    findings.push(files(config));
    findings.push(locked_memory());
}

fn files(config: &Config) -> Finding {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(errno) => {
            let what = format!("the limit on open files cannot be read: {errno}");
            return Finding::note(Topic::Limits, what, "none known");
        }
    };
    let workers = match config.server.workers {
        Workers::Auto => std::thread::available_parallelism().map_or(1, |it| it.get() as u64),
        Workers::Count(count) => u64::from(count),
    };
    let wanted = u64::from(config.limits.max_connections);
    let spare = FILES_SPARE + FILES_PER_WORKER * workers;
    if hard.saturating_sub(spare) < wanted {
        return Finding::problem(
            Topic::Limits,
            format!(
                "open files: at most {hard} (soft {soft}), too few for \
                 limits.max-connections = {wanted}"
            ),
            &format!(
                "raise LimitNOFILE= of the service to {} or more, or lower limits.max-connections",
                wanted + spare
            ),
        );
    }
    Finding::ok(
        Topic::Limits,
        format!(
            "open files: {} (soft {soft}, raised at start), enough for \
             limits.max-connections = {wanted}",
            bound(hard)
        ),
    )
}

/// Rings have not counted since Linux 5.12, and no buffer is registered for good; it is shown
/// because operators of other io_uring programs look for it.
fn locked_memory() -> Finding {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK);
    let limit = limit.map_or_else(|errno| errno.to_string(), |(_, hard)| bound(hard));
    Finding::ok(Topic::Limits, format!("locked memory: {limit} bytes; none is needed"))
}

fn bound(limit: u64) -> String {
    if limit == RLIM_INFINITY { "unlimited".to_owned() } else { limit.to_string() }
}
