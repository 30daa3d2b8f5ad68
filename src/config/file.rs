//! The file: which sections and keys there are, and which check each value gets.
//!
//! Sections and keys are read in the order in which an unknown one is told of those that there are.

use std::path::Path;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::section::{self, Faults, Section};
use super::value::{
    DAY, GIB, HOUR, KIB, LOG_LEVELS, LOG_TARGETS, SECOND, YEAR, auto_or_size, boolean, buffers,
    integer, name, off_or, off_or_integer, off_or_size, off_or_time, shown, size, time,
    whole_milliseconds, whole_seconds, word, workers,
};
use super::{
    Access, Address, Config, ConfigError, Kind, Limits, ListenerConfig, Log, Network, Server, Tcp,
    Timeouts, builtin_listeners, conflict, echoed,
};

const LISTENERS_MAX: usize = 256;
/// More than a machine holds.
const CONNECTIONS_MAX: i64 = 4_194_304;

/// The meaning of `bytes`, the content of `file`.
pub(super) fn check(bytes: &[u8], file: &Path) -> Result<Config, ConfigError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let problem = "not UTF-8 text; save the file as UTF-8".to_owned();
        section::error(bytes, file, error.valid_up_to(), String::new(), problem)
    })?;
    let document = DeTable::parse(text).map_err(|error| unreadable(&error, text, file))?;
    let mut faults = Faults::default();
    let mut root = Section::new("", 0, document.into_inner(), &mut faults);
    let config = read(&mut root);
    root.end();
    faults.settle(config, text, file)
}

/// What the TOML reader refused.
fn unreadable(error: &toml::de::Error, text: &str, file: &Path) -> ConfigError {
    let place = error.span().map_or(0, |span| span.start);
    let key = echoed::bare(header_before(text, place));
    let problem = format!("{}; see echo-uring.toml(5)", echoed::bare(error.message().trim()));
    section::error(text.as_bytes(), file, place, key, problem)
}

/// The name of the section that `place` lies in: the last header before it.
fn header_before(text: &str, place: usize) -> &str {
    let before = text.get(..place).unwrap_or("");
    let header = before.lines().rev().find_map(|line| {
        let (name, rest) = line.trim().strip_prefix('[')?.split_once(']')?;
        (!rest.contains('=')).then(|| name.trim_start_matches('[').trim())
    });
    header.unwrap_or("")
}

fn read(root: &mut Section<'_, '_>) -> Config {
    let default = Config::default();
    Config {
        server: root.section("server", |it| server(it, default.server)),
        listeners: listeners(root, default.listeners),
        access: root.section("access", |it| Access {
            allow: networks(it, "allow"),
            deny: networks(it, "deny"),
        }),
        limits: root.section("limits", |it| limits(it, &default.limits)),
        timeouts: root.section("timeouts", |it| timeouts(it, &default.timeouts)),
        tcp: root.section("tcp", |it| tcp(it, &default.tcp)),
        log: root.section("log", |it| Log {
            target: it.value("target", default.log.target, |value| word(value, &LOG_TARGETS)),
            level: it.value("level", default.log.level, |value| word(value, &LOG_LEVELS)),
        }),
    }
}

fn server(section: &mut Section<'_, '_>, default: Server) -> Server {
    let spin = Duration::from_micros(1)..=Duration::from_millis(10);
    Server {
        workers: section.value("workers", default.workers, workers),
        buffers: section.value("buffers", default.buffers, buffers),
        busy_poll: section.value("busy-poll", default.busy_poll, |value| off_or_time(value, spin)),
    }
}

fn limits(section: &mut Section<'_, '_>, default: &Limits) -> Limits {
    let connections = 1..=CONNECTIONS_MAX;
    Limits {
        max_connections: section.value("max-connections", default.max_connections, |value| {
            integer(value, connections.clone(), "")
        }),
        stalled_memory: section.value("stalled-memory", default.stalled_memory, |value| {
            size(value, 64 * KIB..=1024 * GIB, "")
        }),
        max_connections_per_source: section.value(
            "max-connections-per-source",
            default.max_connections_per_source,
            |value| off_or_integer(value, connections.clone()),
        ),
        accepts_per_source: section.value(
            "accepts-per-source",
            default.accepts_per_source,
            |value| off_or_integer(value, 1..=1_000_000),
        ),
        max_bytes: section
            .value("max-bytes", default.max_bytes, |value| off_or_size(value, 1..=1024 * GIB)),
        source_prefix_ipv4: section.value(
            "source-prefix-ipv4",
            default.source_prefix_ipv4,
            |value| integer(value, 8..=32, ""),
        ),
        source_prefix_ipv6: section.value(
            "source-prefix-ipv6",
            default.source_prefix_ipv6,
            |value| integer(value, 16..=128, ""),
        ),
    }
}

/// All are whole milliseconds: the core counts in these.
fn timeouts(section: &mut Section<'_, '_>, default: &Timeouts) -> Timeouts {
    let range = Duration::from_millis(10)..=YEAR;
    let limit =
        |value: &DeValue<'_>| off_or(whole_milliseconds, off_or_time(value, range.clone())?);
    let stop = |value: &DeValue<'_>| whole_milliseconds(time(value, Duration::ZERO..=HOUR, "")?);
    Timeouts {
        idle: section.value("idle", default.idle, limit),
        stall: section.value("stall", default.stall, limit),
        lifetime: section.value("lifetime", default.lifetime, limit),
        drain: section.value("drain", default.drain, stop),
        drain_lead: section.value("drain-lead", default.drain_lead, stop),
    }
}

fn tcp(section: &mut Section<'_, '_>, default: &Tcp) -> Tcp {
    Tcp {
        nodelay: section.value("nodelay", default.nodelay, boolean),
        keepalive: section.value("keepalive", default.keepalive, |value| {
            off_or(whole_seconds, off_or_time(value, SECOND..=9 * HOUR)?)
        }),
        user_timeout: section.value("user-timeout", default.user_timeout, |value| {
            off_or(whole_milliseconds, off_or_time(value, SECOND..=24 * DAY)?)
        }),
        receive_buffer: section.value("receive-buffer", default.receive_buffer, auto_or_size),
        send_buffer: section.value("send-buffer", default.send_buffer, auto_or_size),
    }
}

/// A list of networks. A wrong entry is named with its own line.
fn networks(section: &mut Section<'_, '_>, key: &'static str) -> Vec<Network> {
    let Some(list) = section.take(key) else { return Vec::new() };
    let place = list.span().start;
    let DeValue::Array(entries) = list.get_ref() else {
        let list = shown(list.get_ref());
        let problem = format!("{list} is not a list; use one such as [\"10.0.0.0/8\", \"::1\"]");
        section.note(key, place, problem);
        return Vec::new();
    };
    let mut networks = Vec::with_capacity(entries.len());
    for entry in entries {
        let problem = match entry.get_ref().as_str().map(str::parse) {
            Some(Ok(network)) => {
                networks.push(network);
                continue;
            }
            Some(Err(problem)) => problem,
            None => {
                let entry = shown(entry.get_ref());
                format!("{entry} is not text; use one such as \"10.0.0.0/8\"")
            }
        };
        section.note(key, entry.span().start, problem);
    }
    networks
}

fn listeners(root: &mut Section<'_, '_>, default: Vec<ListenerConfig>) -> Vec<ListenerConfig> {
    const KEY: &str = "listener";
    let Some(list) = root.take(KEY) else { return default };
    let place = list.span().start;
    let not_sections = |other: &DeValue<'_>| {
        let other = shown(other);
        format!("{other} is not a list of sections; use [[listener]] for each, with its keys below")
    };
    let entries = match list.into_inner() {
        DeValue::Array(entries) => entries,
        other => {
            root.note(KEY, place, not_sections(&other));
            return default;
        }
    };
    if entries.is_empty() || entries.len() > LISTENERS_MAX {
        let problem = format!(
            "{} listeners; list 1 to {LISTENERS_MAX}, or none for the built-in two",
            entries.len()
        );
        root.note(KEY, place, problem);
        return default;
    }
    let before = root.faults().count();
    let mut listeners = Vec::new();
    for entry in entries {
        match (entry.span().start, entry.into_inner()) {
            (place, DeValue::Table(table)) => {
                let mut section = Section::new(KEY, place, table, root.faults());
                let found = listener(&mut section, &listeners);
                section.end();
                listeners.extend(found);
            }
            (place, other) => root.note(KEY, place, not_sections(&other)),
        }
    }
    // Of a list with faults nobody knows what was meant.
    let whole = root.faults().count() == before;
    if whole && !listeners.iter().any(|listener| listener.kind == Kind::Echo) {
        let problem = "none of kind \"echo\"; add one such as address = \"[::1]:7777\"";
        root.note(KEY, place, problem.to_owned());
    }
    listeners
}

/// One listener beside the `others`, unless something is wrong with it.
fn listener(section: &mut Section<'_, '_>, others: &[ListenerConfig]) -> Option<ListenerConfig> {
    let name = section.required("name", "lan", |value| name_beside(value, others));
    let address = section.required("address", "[::1]:7777", |value| address_beside(value, others));
    let kind = section.value("kind", Kind::Echo, |value| word(value, &Kind::ALL));
    let mut listener =
        ListenerConfig { name: name?, address: address?, kind, builtin_default: false };
    let is_builtin = |other: &ListenerConfig| {
        (&other.name, &other.address, other.kind) == (&listener.name, &listener.address, kind)
    };
    listener.builtin_default = builtin_listeners().iter().any(is_builtin);
    Some(listener)
}

fn name_beside(value: &DeValue<'_>, others: &[ListenerConfig]) -> Result<String, String> {
    let name = name(value)?;
    if others.iter().any(|other| other.name == name) {
        return Err(format!("{} is the name of two listeners; rename one", shown(value)));
    }
    Ok(name)
}

fn address_beside(value: &DeValue<'_>, others: &[ListenerConfig]) -> Result<Address, String> {
    let Some(text) = value.as_str() else {
        return Err(format!("{} is not text; use one such as \"127.0.0.1:7777\"", shown(value)));
    };
    let address: Address = text.parse()?;
    conflict(others, &address).map_or(Ok(address), Err)
}
