//! The sandbox as this process sees it: its user, privileges and writable directories. The same for
//! a running daemon, as far as /proc shows it.

use std::fs;

use nix::unistd::{AccessFlags, access};

use super::finding::{Finding, Topic};

/// Directories that are usually writable without a sandbox.
const PLACES: [&str; 12] = [
    "/",
    "/etc",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/tmp",
    "/tmp",
    "/run",
    "/home",
    "/dev/shm",
    "/dev/mqueue",
];

pub(super) fn findings(findings: &mut Vec<Finding>) {
    findings.extend(systemd());
    match Status::read("self") {
        Some(status) => judge(&status, findings),
        None => findings.push(Finding::note(
            Topic::Sandbox,
            "/proc is not readable, so the sandbox cannot be examined",
            "mount /proc",
        )),
    }
    findings.extend(running_daemons());
}

fn systemd() -> Vec<Finding> {
    let set = |name: &&str| std::env::var_os(name).is_some();
    let told: Vec<&str> = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "INVOCATION_ID"]
        .into_iter()
        .filter(set)
        .collect();
    vec![Finding::ok(
        Topic::Systemd,
        match told.is_empty() {
            true => "not started by a service manager".to_owned(),
            false => format!("the service manager has set {}", told.join(", ")),
        },
    )]
}

/// The relevant fields of /proc/PID/status.
struct Status {
    user: String,
    capabilities: String,
    no_new_privileges: bool,
    seccomp: String,
    filters: String,
}

impl Status {
    fn read(process: &str) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|line| line.trim().to_owned())
        };
        Some(Self {
            user: field("Uid")?.split_whitespace().nth(1)?.to_owned(),
            capabilities: field("CapEff")?,
            no_new_privileges: field("NoNewPrivs")? == "1",
            seccomp: field("Seccomp")?,
            filters: field("Seccomp_filters").unwrap_or_else(|| "unknown".to_owned()),
        })
    }

    fn has_capabilities(&self) -> bool {
        self.capabilities.chars().any(|digit| digit != '0')
    }

    fn is_sandboxed(&self) -> bool {
        self.user != "0"
            && !self.has_capabilities()
            && self.no_new_privileges
            && self.seccomp == "2"
    }

    fn line(&self) -> String {
        let Self { user, capabilities, no_new_privileges, filters, .. } = self;
        let privileges = if *no_new_privileges { "no" } else { "yes" };
        let seccomp = if self.seccomp == "2" { filters } else { "none" };
        format!(
            "user {user}, capabilities {capabilities}, new privileges {privileges}, \
             seccomp filters {seccomp}"
        )
    }
}

fn judge(status: &Status, findings: &mut Vec<Finding>) {
    let what = status.line();
    if status.is_sandboxed() {
        findings.push(Finding::ok(Topic::Sandbox, what));
    } else {
        findings.push(Finding::note(
            Topic::Sandbox,
            format!("this command is not sandboxed: {what}"),
            "none needed for a command; run the service under systemd with the shipped unit",
        ));
    }
    let writable: Vec<&str> =
        PLACES.into_iter().filter(|place| access(*place, AccessFlags::W_OK).is_ok()).collect();
    findings.push(Finding::ok(
        Topic::Sandbox,
        match writable.is_empty() {
            true => "none of the usual directories is writable".to_owned(),
            false => format!("writable: {}", writable.join(" ")),
        },
    ));
    findings.push(Finding::ok(Topic::Sandbox, namespaces()));
}

/// The namespaces that differ from those of process 1, if that is visible, and the network.
fn namespaces() -> String {
    let name = |process: &str, kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
    let mut own = Vec::new();
    let mut comparable = false;
    for kind in ["net", "mnt", "user", "ipc", "uts", "pid", "cgroup"] {
        if let (Ok(here), Ok(first)) = (name("self", kind), name("1", kind)) {
            comparable = true;
            if here != first {
                own.push(kind);
            }
        }
    }
    let own = match (comparable, own.is_empty()) {
        (false, _) => "cannot be compared with those of process 1".to_owned(),
        (true, true) => "the same as those of process 1".to_owned(),
        (true, false) => format!("separate: {}", own.join(" ")),
    };
    format!("namespaces: {own}; network interfaces: {}", interfaces())
}

fn interfaces() -> String {
    let Ok(text) = fs::read_to_string("/proc/self/net/dev") else { return "unknown".to_owned() };
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim()).collect::<Vec<_>>().join(" ")
}

/// Running daemons, if they are visible.
fn running_daemons() -> Vec<Finding> {
    let mut findings = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return findings };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let is_other = name.parse().is_ok_and(|pid: u32| pid != std::process::id());
        let command = fs::read_to_string(format!("/proc/{name}/comm")).unwrap_or_default();
        if !is_other || command.trim() != "echo-uring" {
            continue;
        }
        let Some(status) = Status::read(&name) else { continue };
        let what = format!("the running daemon (process {name}): {}", status.line());
        findings.push(if status.is_sandboxed() {
            Finding::ok(Topic::Sandbox, what)
        } else {
            let remedy = "run it under systemd with the shipped unit";
            Finding::note(Topic::Sandbox, what, remedy)
        });
    }
    findings
}
