//! The addresses of the service's socket units, and whether clients can connect to them.

use std::net::SocketAddr;

use super::finding::{Finding, Topic};
use super::service::{Service, is_of_echo};
use crate::config::Protocol;
use crate::listen;
use crate::systemd::units::Unit;

pub(super) fn findings(service: &Service) -> Vec<Finding> {
    let mut findings: Vec<Finding> = service.sockets.iter().filter_map(state).collect();
    let of_echo = service.sockets.iter().filter(|unit| is_of_echo(unit));
    let reachable = of_echo.flat_map(addresses).any(|it| it.is_none_or(is_local));
    for unit in &service.sockets {
        findings.extend(addresses(unit).zip(unit.values("Listen")).filter_map(|(inet, listen)| {
            let whole = is_of_echo(unit) && !reachable;
            address(unit, inet, listen.trim_end_matches(" (Stream)"), whole)
        }));
    }
    findings
}

/// The addresses that a unit listens on; `None` for each that is not TCP.
fn addresses(unit: &Unit) -> impl Iterator<Item = Option<SocketAddr>> {
    unit.values("Listen").map(|listen| listen.split(' ').next().unwrap_or_default().parse().ok())
}

/// Whether this machine has the address: whether any port of it can be bound.
fn is_local(address: SocketAddr) -> bool {
    let any_port = SocketAddr::new(address.ip(), 0);
    match listen::rehearse(Protocol::Tcp, any_port) {
        Err(error) => !error.is_absence(),
        Ok(()) => true,
    }
}

/// A finding for a unit that does not listen. An inactive unit is reported only if it is for echo.
fn state(unit: &Unit) -> Option<Finding> {
    let name = unit.name();
    let result = unit.value("Result");
    match unit.value("ActiveState") {
        "failed" => {
            let (why, remedy) = match result {
                "resources" => (
                    "an address could not be bound",
                    format!(
                        "see journalctl -u {name}, and ss -tlnp for the program that uses the port"
                    ),
                ),
                "trigger-limit-hit" | "service-start-limit-hit" => (
                    "connections activated the service repeatedly, but it failed to start",
                    "repair the service, then start it again".to_owned(),
                ),
                _ => ("see its journal", format!("journalctl -u {name}")),
            };
            let what = format!("{name} has failed ({result}) and does not listen: {why}");
            Some(Finding::problem(Topic::Sockets, what, &remedy))
        }
        "active" | "activating" | "deactivating" => None,
        state if is_of_echo(unit) => Some(Finding::note(
            Topic::Sockets,
            format!("{name} is {state} and does not listen"),
            &format!("systemctl start {name}"),
        )),
        _ => None,
    }
}

fn address(unit: &Unit, inet: Option<SocketAddr>, shown: &str, whole: bool) -> Option<Finding> {
    let name = unit.name();
    let is_open = unit.value("ActiveState") == "active";
    let Some(inet) = inet else {
        return is_open.then(|| Finding::ok(Topic::Sockets, format!("{shown} ({name})")));
    };
    if !is_local(inet) {
        return Some(absent(name, inet, whole));
    }
    if is_open {
        return Some(Finding::ok(Topic::Sockets, format!("{inet} ({name}) is open")));
    }
    listen::rehearse(Protocol::Tcp, inet).err().filter(listen::ListenError::is_in_use)?;
    Some(Finding::problem(
        Topic::Sockets,
        format!("{inet} ({name}) is in use by another program"),
        "stop the program that listens there (see ss -tlnp), or choose another port",
    ))
}

/// Clients cannot connect to an address that the machine does not have. `FreeBind=` permits
/// listening on it all the same, for an address that is added later or moves between machines. It
/// also hides typing errors.
fn absent(name: &str, address: SocketAddr, whole: bool) -> Finding {
    if address.ip().is_loopback() {
        let what = format!(
            "{address} ({name}): this machine does not have this address, because IPv6 is disabled"
        );
        return Finding::note(Topic::Sockets, what, "none needed");
    }
    let what = format!(
        "{address} ({name}) is not an address of this machine: clients cannot connect to it"
    );
    let remedy =
        format!("correct it with systemctl edit {name}, unless the address is added later");
    match whole {
        true => Finding::problem(Topic::Sockets, what, &remedy),
        false => Finding::note(Topic::Sockets, what, &remedy),
    }
}
