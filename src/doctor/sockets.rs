//! Where connections come from: inherited sockets, or those of the configuration, tried out.

use socket2::SockRef;

use super::finding::{Finding, Topic};
use crate::config::{Address, Config};
use crate::listen::{self, Family, Listener};

/// The backlog that the shipped socket unit, and the daemon itself, ask for.
const BACKLOG: u32 = 4096;

pub(super) fn findings(config: &Config, findings: &mut Vec<Finding>) {
    if listen::is_anything_inherited() {
        let named: Vec<_> =
            config.listeners.iter().filter(|it| it.address.is_none()).cloned().collect();
        match listen::open(&named, &config.tcp) {
            Ok(opened) => {
                findings.extend(opened.listeners.iter().map(inherited));
                findings.extend(opened.warnings.iter().map(|warning| {
                    Finding::from_error(Topic::Sockets, warning, "see echo-uring.toml(5)")
                }));
            }
            Err(error) => {
                let cure = "see systemd.socket(5)";
                findings.push(Finding::from_error(Topic::Sockets, &error.to_string(), cure));
            }
        }
        return;
    }
    for listener in &config.listeners {
        findings.push(match &listener.address {
            Some(address) => configured(address),
            None => Finding::note(
                Topic::Sockets,
                format!("listener {} has no address, so only systemd can pass it", listener.name),
                "start the service by systemd, or give the listener an address",
            ),
        });
    }
}

/// What the kernel makes of the backlog that is asked for, where that can be read.
pub(super) fn longest_backlog(findings: &mut Vec<Finding>) {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    let Ok(longest) = text.trim().parse::<u32>() else { return };
    findings.push(if longest < BACKLOG {
        Finding::note(
            Topic::Sockets,
            format!(
                "a backlog is {longest} connections at most, fewer than the {BACKLOG} asked for"
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

/// Whether an address of the configuration can be bound now. A Unix path is not tried: that would
/// make a file.
fn configured(address: &Address) -> Finding {
    let tried = match address {
        Address::Inet(inet) => listen::rehearse(*inet),
        Address::Zoned(inet, zone) => listen::rehearse_in_zone(*inet, zone),
        Address::Unix(_) => {
            return Finding::ok(Topic::Sockets, format!("{address} (configured, not tried)"));
        }
    };
    match tried {
        Ok(()) => Finding::ok(Topic::Sockets, format!("{address} (configured) can be bound")),
        Err(error) if error.is_in_use() => Finding::note(
            Topic::Sockets,
            format!("{address} (configured) is in use, perhaps by a daemon that runs"),
            "none needed if it is ours: see \"ss -tlnp\"",
        ),
        Err(error) => {
            let cure = "let systemd pass the sockets";
            Finding::from_error(Topic::Sockets, &error.to_string(), cure)
        }
    }
}
