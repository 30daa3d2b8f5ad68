//! The addresses of the service's socket units, and whether clients can connect to them.

use std::net::SocketAddr;

use super::finding::{Finding, Topic};
use super::service::{Service, is_of_echo};
use super::{Listening, receive_buffer, sockets};
use crate::config::{Config, Protocol, UnixKind};
use crate::listen;
use crate::systemd::units::Unit;

pub(super) fn look(service: &Service, config: &Config) -> Listening {
    let mut findings: Vec<Finding> = service.sockets.iter().filter_map(state).collect();
    let of_echo = || service.sockets.iter().filter(|unit| is_of_echo(unit));
    let reachable = of_echo().flat_map(listens).any(|it| it.is_reachable());
    for unit in &service.sockets {
        let whole = is_of_echo(unit) && !reachable;
        findings.extend(listens(unit).filter_map(|listen| address(unit, &listen, whole)));
    }
    let mut with_datagrams = of_echo().next().is_none() && sockets::serves_datagrams(config);
    with_datagrams |= of_echo().flat_map(listens).any(|it| it.kind == Shown::Datagram);
    // A Unix socket needs no receive buffer: its datagrams are charged to their senders.
    for unit in of_echo().filter(|unit| has_udp(unit)) {
        let wanted = unit.value("ReceiveBuffer").parse().unwrap_or(0);
        let has_streams = listens(unit).any(|listen| listen.kind == Shown::Stream);
        findings.push(receive_buffer::of_unit(unit.name(), wanted, has_streams));
    }
    Listening { findings, with_datagrams }
}

/// The kind of a socket, as systemd shows it behind its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Stream,
    Datagram,
    SequentialPacket,
}

impl Shown {
    fn protocol(self) -> Protocol {
        match self {
            Self::Stream | Self::SequentialPacket => Protocol::Tcp,
            Self::Datagram => Protocol::Udp,
        }
    }

    /// How the address of such a Unix socket begins.
    fn unix(self) -> &'static str {
        match self {
            Self::Stream => UnixKind::Stream.name(),
            Self::Datagram => UnixKind::Datagram.name(),
            Self::SequentialPacket => UnixKind::Seqpacket.name(),
        }
    }
}

/// An address that a unit listens on, as systemd shows it: `127.0.0.1:7 (Stream)`.
struct Listen<'a> {
    shown: &'a str,
    kind: Shown,
    /// None if it is a Unix socket.
    inet: Option<SocketAddr>,
}

impl Listen<'_> {
    fn is_reachable(&self) -> bool {
        self.inet.is_none_or(|inet| is_local(self.kind.protocol(), inet))
    }
}

fn listens(unit: &Unit) -> impl Iterator<Item = Listen<'_>> {
    unit.values("Listen").map(|listen| {
        let (shown, kind) = match listen.rsplit_once(' ') {
            Some((shown, "(Datagram)")) => (shown, Shown::Datagram),
            Some((shown, "(SequentialPacket)")) => (shown, Shown::SequentialPacket),
            Some((shown, "(Stream)")) => (shown, Shown::Stream),
            Some(_) | None => (listen, Shown::Stream),
        };
        Listen { shown, kind, inet: shown.parse().ok() }
    })
}

fn has_udp(unit: &Unit) -> bool {
    listens(unit).any(|listen| listen.kind == Shown::Datagram && listen.inet.is_some())
}

/// Whether this machine has the address: whether any port of it can be bound.
fn is_local(protocol: Protocol, address: SocketAddr) -> bool {
    let any_port = SocketAddr::new(address.ip(), 0);
    match listen::rehearse(protocol, any_port) {
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
                        "see journalctl -u {name}, and ss -{} for the program that uses the port",
                        if has_udp(unit) { "tulnp" } else { "tlnp" }
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

fn address(unit: &Unit, listen: &Listen<'_>, whole: bool) -> Option<Finding> {
    let name = unit.name();
    let is_open = unit.value("ActiveState") == "active";
    let Listen { shown, kind, inet } = *listen;
    let Some(inet) = inet else {
        let what = format!("{}:{shown} ({name})", kind.unix());
        return is_open.then(|| Finding::ok(Topic::Sockets, what));
    };
    let protocol = kind.protocol();
    let (kind, users) = match protocol {
        Protocol::Tcp => ("", "ss -tlnp"),
        Protocol::Udp => ("udp:", "ss -lunp"),
    };
    let shown = format!("{kind}{inet} ({name})");
    if !is_local(protocol, inet) {
        return Some(absent(name, inet, &shown, whole));
    }
    if is_open {
        return Some(Finding::ok(Topic::Sockets, format!("{shown} is open")));
    }
    listen::rehearse(protocol, inet).err().filter(listen::ListenError::is_in_use)?;
    Some(Finding::problem(
        Topic::Sockets,
        format!("{shown} is in use by another program"),
        &format!("stop the program that listens there (see {users}), or choose another port"),
    ))
}

/// Clients cannot connect to an address that the machine does not have. `FreeBind=` permits
/// listening on it all the same, for an address that is added later or moves between machines. It
/// also hides typing errors.
fn absent(name: &str, address: SocketAddr, shown: &str, whole: bool) -> Finding {
    if address.ip().is_loopback() {
        let what =
            format!("{shown}: this machine does not have this address, because IPv6 is disabled");
        return Finding::note(Topic::Sockets, what, "none needed");
    }
    let what = format!("{shown} is not an address of this machine: clients cannot connect to it");
    let remedy =
        format!("correct it with systemctl edit {name}, unless the address is added later");
    match whole {
        true => Finding::problem(Topic::Sockets, what, &remedy),
        false => Finding::note(Topic::Sockets, what, &remedy),
    }
}
