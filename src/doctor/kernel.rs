//! The kernel and its io_uring features, determined by use, and what the daemon makes of them.

use super::finding::{Finding, Topic};
use crate::systemd::account::Account;
use echo_ring::{self, Survey};

/// Findings for a service that runs as `account`, or for this process. The rings of a daemon that
/// serves datagrams permit two more operations.
pub(super) fn findings(account: Option<&Account>, with_datagrams: bool) -> Vec<Finding> {
    let mut findings = vec![release()];
    findings.extend(switches(account));
    match echo_ring::survey(with_datagrams) {
        Err(unusable) => {
            let remedy = "run Linux 6.1 or later";
            findings.push(Finding::from_error(Topic::IoUring, &unusable.to_string(), remedy));
        }
        Ok(survey) => findings.extend(features(&survey)),
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
        Err(errno) => Finding::note(
            Topic::Kernel,
            format!("uname(2) fails: {errno}"),
            "see the other findings",
        ),
    }
}

/// The sysctls that can disable io_uring, if they can be read. Whether they do is tested by use.
/// The exception is the value 1, which permits root but not the service.
fn switches(account: Option<&Account>) -> Option<Finding> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
    let disabled = read("io_uring_disabled")?;
    let group = read("io_uring_group").unwrap_or_default();
    let (disabled, group) = (disabled.trim(), group.trim());
    let what =
        format!("sysctl kernel.io_uring_disabled is {disabled}, kernel.io_uring_group {group}");
    let denied = account.filter(|account| {
        disabled == "1" && !group.parse().is_ok_and(|group| account.is_in(group))
    });
    Some(match denied {
        None => Finding::ok(Topic::IoUring, what),
        Some(account) => Finding::problem(
            Topic::IoUring,
            format!("{what}: user {} of the service is not in that group", account.name),
            "set kernel.io_uring_disabled to 0, or add the group to SupplementaryGroups= of the \
             unit",
        ),
    })
}

/// The kernel features that change how the daemon works.
fn features(survey: &Survey) -> Vec<Finding> {
    let operations = &survey.operations;
    vec![
        Finding::ok(
            Topic::IoUring,
            format!("operations: {operations}; a restricted ring refuses all others"),
        ),
        feature(
            survey.features.bounded_multishot_receive,
            "receives: multishot, bounded (Linux 6.17)",
            "receives: one-shot, because this kernel cannot bound a multishot receive",
            "none needed; Linux 6.17 saves an operation for each message",
        ),
        feature(
            survey.without_index_array,
            "submissions: without an index array (Linux 6.6)",
            "submissions: through an index array",
            "none needed; Linux 6.6 saves a cache line for each operation",
        ),
        feature(
            survey.idle_waits,
            "waits: accounted as idle time (Linux 6.15)",
            "waits: accounted as iowait, so an idle worker shows in top and /proc/pressure/io",
            "none needed, as no disk is involved; Linux 6.15 accounts them as idle time",
        ),
    ]
}

/// Whether the kernel has a feature, and what its absence means.
fn feature(is_there: bool, with: &str, without: &str, remedy: &str) -> Finding {
    if is_there {
        Finding::ok(Topic::IoUring, with)
    } else {
        Finding::note(Topic::IoUring, without, remedy)
    }
}
