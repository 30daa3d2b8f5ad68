//! The installed units: whether the service runs, and if not, how it ended and what it said.

use std::path::Path;

use super::finding::{Finding, Topic};
use crate::systemd::account::Account;
use crate::systemd::units::{self, Unit, Unseen};

/// The service and its sockets, as systemd sees them.
pub(super) struct Service {
    pub(super) unit: Unit,
    /// Those that start it or are given to it.
    pub(super) sockets: Vec<Unit>,
    /// Whom it runs as; none if that is root.
    pub(super) account: Option<Account>,
}

/// The units of the service, or of the instance of this name; else a finding that says why there is
/// nothing to look at.
pub(super) fn look(instance: Option<&str>) -> Result<Service, Finding> {
    let base = instance.map_or("echo-uring".to_owned(), |name| format!("echo-uring@{name}"));
    let (service, socket) = (format!("{base}.service"), format!("{base}.socket"));
    let seen = units::show(&[&service, &socket]).map_err(|unseen| nothing_seen(&unseen))?;
    let mut seen = seen.into_iter();
    let (Some(unit), Some(socket)) = (seen.next(), seen.next()) else {
        return Err(nothing_seen(&Unseen::Unreachable("systemctl shows nothing".to_owned())));
    };
    if !unit.is_loaded() {
        return Err(not_loaded(&unit, instance));
    }
    let others: Vec<&str> = unit.value("TriggeredBy").split_whitespace().collect();
    let others: Vec<&str> = others.into_iter().filter(|name| *name != socket.name()).collect();
    let more = match others.is_empty() {
        true => Vec::new(),
        false => units::show(&others).unwrap_or_default(),
    };
    let sockets = [socket].into_iter().chain(more).filter(Unit::is_loaded).collect();
    let account = Account::of(&unit);
    Ok(Service { unit, sockets, account })
}

fn nothing_seen(unseen: &Unseen) -> Finding {
    match unseen {
        Unseen::NoSystemd => {
            Finding::ok(Topic::Systemd, "systemd does not run here: there are no units to look at")
        }
        Unseen::Unreachable(reason) => Finding::ok(
            Topic::Systemd,
            format!("the units cannot be looked at from here: {reason}"),
        ),
    }
}

fn not_loaded(unit: &Unit, instance: Option<&str>) -> Finding {
    let name = unit.name();
    match unit.value("LoadState") {
        "not-found" if instance.is_none() => {
            Finding::ok(Topic::Systemd, format!("{name} is not installed"))
        }
        "not-found" => Finding::problem(
            Topic::Systemd,
            format!("{name} is not installed"),
            "install the package echo-uring",
        ),
        "masked" => Finding::problem(
            Topic::Systemd,
            format!("{name} is masked: nothing can start it"),
            &format!("systemctl unmask {name}"),
        ),
        state => Finding::problem(
            Topic::Systemd,
            format!("{name} cannot be loaded ({state}): {}", unit.value("LoadError")),
            &format!("correct it: systemd-analyze verify {name}"),
        ),
    }
}

impl Service {
    /// How it is: state, last result and what it said of it; what waits for a reload; whether a
    /// restart keeps connections.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.state()];
        let name = self.unit.name();
        if [&self.unit].into_iter().chain(&self.sockets).any(|unit| unit.is("NeedDaemonReload")) {
            findings.push(Finding::note(
                Topic::Systemd,
                "unit files were changed since systemd has read them",
                "systemctl daemon-reload",
            ));
        }
        let restarts: u64 = self.unit.value("NRestarts").parse().unwrap_or(0);
        if restarts > 0 {
            findings.push(Finding::note(
                Topic::Systemd,
                format!("{name}: systemd has restarted it {restarts} times by itself"),
                &format!("see why: journalctl -u {name}"),
            ));
        }
        findings.push(self.restart());
        findings
    }

    fn state(&self) -> Finding {
        let (unit, name) = (&self.unit, self.unit.name());
        let states = format!("{} ({})", unit.value("ActiveState"), unit.value("SubState"));
        let said = unit.value("StatusText");
        match unit.value("ActiveState") {
            "active" | "reloading" | "deactivating" if said.starts_with("reload failed") => {
                Finding::problem(
                    Topic::Systemd,
                    format!("{name} is {states}, and its last reload failed: {said}"),
                    &format!("correct the configuration, then: systemctl reload {name}"),
                )
            }
            "active" | "reloading" | "deactivating" => {
                let process =
                    unit.process().map_or(String::new(), |pid| format!(", process {pid}"));
                Finding::ok(Topic::Systemd, format!("{name} is {states}{process}: {said}"))
            }
            "failed" => self.failed(&states),
            // Between two tries.
            "activating" if unit.value("Result") != "success" => self.failed(&states),
            "activating" => Finding::note(
                Topic::Systemd,
                format!("{name} is {states}"),
                "ask again in a moment",
            ),
            _ if self.listens() => Finding::ok(
                Topic::Systemd,
                format!("{name} is {states}; the first connection starts it"),
            ),
            _ => Finding::note(
                Topic::Systemd,
                format!("{name} is {states}, and so is its socket"),
                &format!("systemctl start {name}"),
            ),
        }
    }

    /// It ended with a failure: which, and what the daemon said last.
    fn failed(&self, states: &str) -> Finding {
        let (unit, name) = (&self.unit, self.unit.name());
        let how = match (unit.value("ExecMainCode"), unit.value("ExecMainStatus")) {
            ("1", status) => format!("exit status {status}"),
            ("2" | "3", signal) => format!("signal {signal}"),
            _ => "no process".to_owned(),
        };
        let what = format!("{name} is {states}, last result {}, {how}", unit.value("Result"));
        let again = format!("systemctl restart {name}");
        // A daemon that was killed has not said why.
        let has_exited = unit.value("ExecMainCode") == "1";
        let (reason, remedy) = match unit.value("StatusText") {
            "" => (None, None),
            _ if !has_exited => (None, None),
            said => match said.rsplit_once("; ") {
                Some((reason, remedy)) => (Some(reason), Some(remedy)),
                None => (Some(said), None),
            },
        };
        let what = reason.map_or(what.clone(), |reason| format!("{what}: {reason}"));
        let journal = format!("see journalctl -u {name}");
        let remedy = remedy.unwrap_or(&journal);
        Finding::problem(Topic::Systemd, what, &format!("{remedy}; then: {again}"))
    }

    /// Whether a socket is open whose first connection starts the service.
    fn listens(&self) -> bool {
        let active = |unit: &Unit| unit.value("ActiveState") == "active";
        self.sockets.iter().any(|unit| active(unit) && is_of_echo(unit))
    }

    /// Whether a restart hands connections over, which takes a store for them and a bus to ask what
    /// a SIGTERM means.
    fn restart(&self) -> Finding {
        let name = self.unit.name();
        let lacking = |what: String, remedy: &str| {
            let what = format!("a restart of {name} ends every connection: {what}");
            Finding::note(Topic::Systemd, what, remedy)
        };
        if matches!(self.unit.value("FileDescriptorStoreMax"), "" | "0") {
            let remedy = "set FileDescriptorStoreMax= as the shipped unit does";
            return lacking("systemd stores no descriptors for it".to_owned(), remedy);
        }
        if !Path::new("/run/dbus/system_bus_socket").exists() {
            return lacking("there is no system bus".to_owned(), "install the package dbus");
        }
        match &self.account {
            Some(account) if !is_in_passwd(&account.name) => lacking(
                format!(
                    "the system bus admits no user {}, who is not in /etc/passwd",
                    account.name
                ),
                &format!(
                    "make that user: adduser --system --group --no-create-home {}",
                    account.name
                ),
            ),
            _ => Finding::ok(Topic::Systemd, format!("a restart of {name} keeps connections")),
        }
    }
}

/// Whether connections to this socket unit are echoed to, by the name of its descriptors.
pub(super) fn is_of_echo(socket: &Unit) -> bool {
    !matches!(socket.value("FileDescriptorName"), "status" | "metrics" | "agent-check")
}

/// dbus-daemon looks there and asks no one else.
fn is_in_passwd(name: &str) -> bool {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines().any(|line| line.split(':').next() == Some(name))
}
