//! The kernel, and io_uring by trying: what there is of it, and what the daemon does with it.

use super::finding::{Finding, Topic};
use crate::systemd::account::Account;
use echo_ring::{self, Survey};

/// Of a service that runs as `account`, or of this process.
pub(super) fn findings(account: Option<&Account>) -> Vec<Finding> {
    let mut findings = vec![release()];
    findings.extend(switches(account));
    match echo_ring::survey() {
        Err(unusable) => {
            let cure = "run Linux 6.1 or later";
            findings.push(Finding::from_error(Topic::IoUring, &unusable.to_string(), cure));
        }
        Ok(survey) => findings.extend(rungs(&survey)),
    }
    findings
}

fn release() -> Finding {
    match nix::sys::utsname::uname() {
        Ok(name) => Finding::ok(
            Topic::Kernel,
            format!(
                "Linux {} on {}",
                name.release().to_string_lossy(),
                name.machine().to_string_lossy()
            ),
        ),
        Err(errno) => {
            Finding::note(Topic::Kernel, format!("uname(2) fails: {errno}"), "see the rest")
        }
    }
}

/// The sysctls that can switch it off, where they can be read. Whether they do is tried below; but
/// root is let through by the value 1, and a service is not.
fn switches(account: Option<&Account>) -> Option<Finding> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
    let disabled = read("io_uring_disabled")?;
    let group = read("io_uring_group").unwrap_or_default();
    let (disabled, group) = (disabled.trim(), group.trim());
    let what =
        format!("sysctl kernel.io_uring_disabled is {disabled}, kernel.io_uring_group {group}");
    let shut_out = account.filter(|account| {
        disabled == "1" && !group.parse().is_ok_and(|group| account.is_in(group))
    });
    Some(match shut_out {
        None => Finding::ok(Topic::IoUring, what),
        Some(account) => Finding::problem(
            Topic::IoUring,
            format!("{what}: user {} of the service is not in that group", account.name),
            "set kernel.io_uring_disabled to 0, or name the group in SupplementaryGroups= of the \
             unit",
        ),
    })
}

/// Which way the daemon goes where there are several, best first.
fn rungs(survey: &Survey) -> Vec<Finding> {
    let operations = &survey.operations;
    vec![
        Finding::ok(
            Topic::IoUring,
            format!("operations: {operations}; a restricted ring refuses all others"),
        ),
        rung(
            survey.features.bounded_multishot_receive,
            "receives: multishot, bounded (Linux 6.17)",
            "receives: one at a time, as this kernel cannot bound a multishot receive",
            "none needed; Linux 6.17 saves an operation for each message",
        ),
        rung(
            survey.without_index_array,
            "submissions: without an index array (Linux 6.6)",
            "submissions: through an index array",
            "none needed; Linux 6.6 saves a cache line for each operation",
        ),
        rung(
            survey.idle_waits,
            "waits: booked as idle time (Linux 6.15)",
            "waits: booked as iowait, so an idle worker shows in top and /proc/pressure/io",
            "none needed, as nothing waits for a disk; Linux 6.15 books them as idle time",
        ),
    ]
}

/// That the kernel has the better way, or that it has not, and what that means.
fn rung(better: bool, with: &str, without: &str, cure: &str) -> Finding {
    if better {
        Finding::ok(Topic::IoUring, with)
    } else {
        Finding::note(Topic::IoUring, without, cure)
    }
}
