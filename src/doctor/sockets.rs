//! The listening sockets: inherited ones, or the configured addresses, which are tested by binding.

use socket2::SockRef;

use super::finding::{Finding, Topic};
use super::{Listening, receive_buffer};
use crate::config::{Address, Config, ListenerConfig};
use crate::listen::{self, Family, Listener};

/// The listen backlog that the shipped socket unit and the daemon itself request.
const BACKLOG: u32 = 4096;

pub(super) fn look(config: &Config) -> Listening {
    if listen::is_anything_inherited() {
        return inherited_sockets(config);
    }
    let configured_address = |listener: &ListenerConfig| match &listener.address {
        Some(address) => configured(address),
        None => Finding::note(
            Topic::Sockets,
            format!("listener {} has no address, so only systemd can pass it", listener.name),
            "start the service by systemd, or give the listener an address",
        ),
    };
    let mut findings: Vec<Finding> = config.listeners.iter().map(configured_address).collect();
    let with_datagrams = serves_datagrams(config);
    let with_udp =
        config.listeners.iter().any(|it| it.address.as_ref().is_some_and(Address::is_udp));
    findings.extend(with_udp.then(receive_buffer::of_configured).flatten());
    Listening { findings, with_datagrams }
}

/// Whether a listener of the configuration is for datagrams.
pub(super) fn serves_datagrams(config: &Config) -> bool {
    let mut addresses = config.listeners.iter().filter_map(|listener| listener.address.as_ref());
    addresses.any(Address::is_datagram)
}

fn inherited_sockets(config: &Config) -> Listening {
    let named: Vec<_> =
        config.listeners.iter().filter(|it| it.address.is_none()).cloned().collect();
    match listen::open(&named, &config.tcp) {
        Ok(opened) => {
            let mut findings: Vec<Finding> = opened.listeners.iter().map(inherited).collect();
            findings.extend(opened.warnings.iter().map(|warning| {
                Finding::from_error(Topic::Sockets, warning, "see echo-uring.toml(5)")
            }));
            let with_datagrams = opened.listeners.iter().any(|it| it.family.is_datagram());
            Listening { findings, with_datagrams }
        }
        Err(error) => {
            let remedy = "see systemd.socket(5)";
            let finding = Finding::from_error(Topic::Sockets, &error.to_string(), remedy);
            Listening { findings: vec![finding], with_datagrams: false }
        }
    }
}

/// The kernel's upper bound for the listen backlog, if it can be read.
pub(super) fn longest_backlog(findings: &mut Vec<Finding>) {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    let Ok(longest) = text.trim().parse::<u32>() else { return };
    findings.push(if longest < BACKLOG {
        Finding::note(
            Topic::Sockets,
            format!(
                "the listen backlog is limited to {longest} connections; {BACKLOG} are requested"
            ),
            &format!("set the sysctl net.core.somaxconn to {BACKLOG}"),
        )
    } else {
        Finding::ok(Topic::Sockets, format!("sysctl net.core.somaxconn is {longest}"))
    });
}

fn inherited(listener: &Listener) -> Finding {
    let socket = SockRef::from(&listener.socket);
    let mut what = format!("{} ({}, inherited)", listener.address, listener.name);
    if listener.family == Family::Udp
        && let Ok(bytes) = socket.recv_buffer_size()
    {
        let remedy = "set ReceiveBuffer=4M in the socket unit";
        return receive_buffer::finding(&what, bytes as u64, remedy);
    }
    let mut tell = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            what += &format!(", {name} {value}");
        }
    };
    if listener.family == Family::Tcp {
        tell("nodelay", socket.tcp_nodelay().ok().map(|it| it.to_string()));
    }
    tell("receive buffer", socket.recv_buffer_size().ok().map(|it| it.to_string()));
    tell("send buffer", socket.send_buffer_size().ok().map(|it| it.to_string()));
    Finding::ok(Topic::Sockets, what)
}

/// The command that shows which program uses an address.
fn users(address: &Address) -> &'static str {
    if address.is_udp() { "ss -lunp" } else { "ss -tlnp" }
}

/// Whether a configured address can be bound now. A Unix path is not tested, because that would
/// create a file.
fn configured(address: &Address) -> Finding {
    let tried = match address {
        Address::Inet(protocol, inet) => listen::rehearse(*protocol, *inet),
        Address::Zoned(protocol, inet, zone) => listen::rehearse_in_zone(*protocol, *inet, zone),
        Address::Unix(..) => {
            return Finding::ok(Topic::Sockets, format!("{address} (configured, not tested)"));
        }
    };
    match tried {
        Ok(()) => Finding::ok(Topic::Sockets, format!("{address} (configured) can be bound")),
        Err(error) if error.is_in_use() => Finding::note(
            Topic::Sockets,
            format!("{address} (configured) is in use, perhaps by a running daemon"),
            &format!("none needed if that is the echo service; see \"{}\"", users(address)),
        ),
        Err(error) => {
            let remedy = "let systemd pass the sockets";
            Finding::from_error(Topic::Sockets, &error.to_string(), remedy)
        }
    }
}
