//! The sandbox configured in the unit of the service: whether it permits the required system calls,
//! and where it is weaker than the shipped one.

use super::finding::{Finding, Topic};
use super::service::Service;
use crate::systemd::units::Unit;

/// The system calls that a ring requires.
const CALLS: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

/// The most important settings of the shipped unit.
const SHIPPED: [(&str, &str); 8] = [
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("PrivateNetwork", "yes"),
    ("PrivateUsers", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectProc", "invisible"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX"),
];

pub(super) fn findings(service: &Service) -> Vec<Finding> {
    let unit = &service.unit;
    let mut findings: Vec<Finding> = refused_calls(unit).into_iter().collect();
    findings.push(strength(service));
    findings
}

/// System calls of io_uring that `SystemCallFilter=` refuses. The list permits calls or, after a
/// tilde, denies them.
fn refused_calls(unit: &Unit) -> Option<Finding> {
    let filter = unit.value("SystemCallFilter");
    let (list, denies) = match filter.strip_prefix('~') {
        Some(list) => (list, true),
        None => (filter, false),
    };
    // An entry may name the error it returns: "io_uring_setup:ENOSYS".
    let listed =
        |call: &str| list.split_whitespace().any(|entry| entry.split(':').next() == Some(call));
    let refused: Vec<&str> = CALLS.into_iter().filter(|call| listed(call) == denies).collect();
    if filter.is_empty() || refused.is_empty() {
        return None;
    }
    Some(Finding::problem(
        Topic::Sandbox,
        format!("SystemCallFilter= of {} refuses {}", unit.name(), refused.join(", ")),
        &format!(
            "permit them: systemctl edit {}, [Service], SystemCallFilter={}",
            unit.name(),
            CALLS.join(" ")
        ),
    ))
}

fn strength(service: &Service) -> Finding {
    let unit = &service.unit;
    let mut weaker: Vec<String> = SHIPPED
        .into_iter()
        .filter(|(property, wanted)| unit.value(property) != *wanted)
        .map(|(property, _)| format!("{property}={}", shortened(unit.value(property))))
        .collect();
    if unit.value("SystemCallFilter").is_empty() {
        weaker.push("SystemCallFilter=".to_owned());
    }
    if service.account.is_none() {
        weaker.push("User=root".to_owned());
    }
    let name = unit.name();
    if weaker.is_empty() {
        return Finding::ok(Topic::Sandbox, format!("the sandbox of {name} is as shipped"));
    }
    Finding::note(
        Topic::Sandbox,
        format!("the sandbox of {name} is weaker than shipped: {}", weaker.join(" ")),
        &format!("find the drop-in that changes it: systemctl cat {name}"),
    )
}

/// The first word of a value, because a set of capabilities may be very long.
fn shortened(value: &str) -> String {
    let mut words = value.split_whitespace();
    let first = words.next().unwrap_or_default();
    if words.next().is_some() { format!("{first}…") } else { first.to_owned() }
}
