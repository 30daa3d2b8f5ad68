//! The installed units: whether the service runs, and if not, how it ended and its last error.

use std::path::Path;

use super::finding::{Finding, Topic};
use crate::systemd::account::Account;
use crate::systemd::units::{self, Unit, Unseen};

/// The service and its sockets, as systemd sees them.
pub(super) struct Service {
    pub(super) unit: Unit,
    /// The socket units that activate the service or belong to it.
    pub(super) sockets: Vec<Unit>,
    /// The user of the service; none if that is root.
    pub(super) account: Option<Account>,
}

/// The units of the service, or of the instance with this name. The error is a finding that states
/// why they cannot be examined.
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
            Finding::ok(Topic::Systemd, "systemd is not running: there are no units to examine")
        }
        Unseen::Unreachable(reason) => {
            Finding::ok(Topic::Systemd, format!("the units cannot be examined: {reason}"))
        }
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
            format!("{name} is masked and cannot be started"),
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
    /// The findings for the service: state, last result and last error; whether unit files were
    /// changed and not reloaded; whether a restart keeps connections.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.state()];
        let name = self.unit.name();
        if [&self.unit].into_iter().chain(&self.sockets).any(|unit| unit.is("NeedDaemonReload")) {
            findings.push(Finding::note(
                Topic::Systemd,
                "unit files were changed after systemd read them",
                "systemctl daemon-reload",
            ));
        }
        let restarts: u64 = self.unit.value("NRestarts").parse().unwrap_or(0);
        if restarts > 0 {
            findings.push(Finding::note(
                Topic::Systemd,
                format!("systemd has restarted {name} automatically {restarts} times"),
                &format!("see journalctl -u {name} for the reason"),
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
            // Between two attempts.
            "activating" if unit.value("Result") != "success" => self.failed(&states),
            "activating" => Finding::note(
                Topic::Systemd,
                format!("{name} is {states}"),
                "run the doctor again in a moment",
            ),
            _ if self.listens() => Finding::ok(
                Topic::Systemd,
                format!("{name} is {states}; the first connection starts it"),
            ),
            _ => Finding::note(
                Topic::Systemd,
                format!("{name} is {states}, and its socket is not active"),
                &format!("systemctl start {name}"),
            ),
        }
    }

    /// The service has failed: how, and the last error of the daemon.
    fn failed(&self, states: &str) -> Finding {
        let (unit, name) = (&self.unit, self.unit.name());
        let how = match (unit.value("ExecMainCode"), unit.value("ExecMainStatus")) {
            ("1", status) => format!("exit status {status}"),
            ("2" | "3", signal) => format!("signal {signal}"),
            _ => "no process".to_owned(),
        };
        let what = format!("{name} is {states}, last result {}, {how}", unit.value("Result"));
        let again = format!("systemctl restart {name}");
        // The status text of a daemon that was killed does not state the reason.
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

    /// Whether a socket is open that activates the service.
    fn listens(&self) -> bool {
        let active = |unit: &Unit| unit.value("ActiveState") == "active";
        self.sockets.iter().any(|unit| active(unit) && is_of_echo(unit))
    }

    /// Whether a restart hands connections over. This needs a file descriptor store, and an
    /// `ExecStop=` that announces a restart by SIGURG, as that of the shipped units does. Without
    /// it a system bus is needed, to find out whether a SIGTERM is for a stop or for a restart.
    fn restart(&self) -> Finding {
        let name = self.unit.name();
        let lacking = |what: String, remedy: &str| {
            let what = format!("a restart of {name} ends every connection: {what}");
            Finding::note(Topic::Systemd, what, remedy)
        };
        if matches!(self.unit.value("FileDescriptorStoreMax"), "" | "0") {
            let remedy = "set FileDescriptorStoreMax= as the shipped unit does";
            return lacking("systemd stores no file descriptors for it".to_owned(), remedy);
        }
        let keeps = Finding::ok(Topic::Systemd, format!("a restart of {name} keeps connections"));
        if self.unit.value("ExecStop").contains("kill -s URG") {
            return keeps;
        }
        if !Path::new("/run/dbus/system_bus_socket").exists() {
            return lacking("there is no system bus".to_owned(), "install the package dbus");
        }
        match &self.account {
            Some(account) if !is_in_passwd(&account.name) => lacking(
                format!(
                    "the system bus rejects user {}, which is not in /etc/passwd",
                    account.name
                ),
                &format!(
                    "create that user: adduser --system --group --no-create-home {}",
                    account.name
                ),
            ),
            _ => keeps,
        }
    }
}

/// Whether this socket unit is for echo, by the name of its descriptors.
pub(super) fn is_of_echo(socket: &Unit) -> bool {
    !matches!(socket.value("FileDescriptorName"), "status" | "metrics" | "agent-check")
}

/// Whether a user is in /etc/passwd. dbus-daemon looks nowhere else.
fn is_in_passwd(name: &str) -> bool {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    text.lines().any(|line| line.split(':').next() == Some(name))
}
