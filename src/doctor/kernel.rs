//! The kernel, and io_uring by trying: what there is of it, and what the daemon does with it.

use super::finding::{Finding, Topic};
use crate::uring::{self, Survey};

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![release()];
    findings.extend(switches());
    match uring::survey() {
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

/// The sysctls that can switch it off, where they can be read. Whether they do is tried below.
fn switches() -> Option<Finding> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
    let disabled = read("io_uring_disabled")?;
    let group = read("io_uring_group").unwrap_or_default();
    let (disabled, group) = (disabled.trim(), group.trim());
    Some(Finding::ok(
        Topic::IoUring,
        format!("sysctl kernel.io_uring_disabled is {disabled}, kernel.io_uring_group {group}"),
    ))
}

/// Which way the daemon goes where there are several, best first.
fn rungs(survey: &Survey) -> Vec<Finding> {
    let mut findings = vec![Finding::ok(
        Topic::IoUring,
        format!("operations: {}; a restricted ring refuses all others", survey.operations),
    )];
    findings.push(if survey.features.bounded_multishot_receive {
        Finding::ok(Topic::IoUring, "receives: multishot, bounded (Linux 6.17)")
    } else {
        Finding::note(
            Topic::IoUring,
            "receives: one at a time, as this kernel cannot bound a multishot receive",
            "none needed; Linux 6.17 saves an operation for each message",
        )
    });
    findings.push(if survey.without_index_array {
        Finding::ok(Topic::IoUring, "submissions: without an index array (Linux 6.6)")
    } else {
        Finding::note(
            Topic::IoUring,
            "submissions: through an index array",
            "none needed; Linux 6.6 saves a cache line for each operation",
        )
    });
    findings.push(if survey.idle_waits {
        Finding::ok(Topic::IoUring, "waits: booked as idle time (Linux 6.15)")
    } else {
        Finding::note(
            Topic::IoUring,
            "waits: booked as iowait, so an idle worker shows in top and /proc/pressure/io",
            "none needed, as nothing waits for a disk; Linux 6.15 books them as idle time",
        )
    });
    findings
}
