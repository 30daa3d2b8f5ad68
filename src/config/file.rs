//! The TOML text: which sections and keys there are, where in the file a value stands, and which
//! check it gets.
//!
//! `RawConfig` is typed text, each value with its place; `Source::check` makes it a [`Config`] or
//! names the first line that cannot be meant.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use toml::de::ValueDeserializer;
use toml::{Spanned, Value};

use super::value::{
    DAY, GIB, HOUR, KIB, LOG_LEVELS, LOG_TARGETS, SECOND, YEAR, auto_or_size, boolean, buffers,
    integer, name, off_or_integer, off_or_size, off_or_time, size, time, whole_seconds, word,
    workers,
};
use super::{
    Access, Address, Config, ConfigError, Kind, Limits, ListenerConfig, Log, Network, Server, Tcp,
    Timeouts, builtin_listeners, conflict,
};

const LISTENERS_MAX: usize = 256;
/// More than a machine holds.
const CONNECTIONS_MAX: i64 = 4_194_304;

/// The meaning of `bytes`, the content of `file`.
pub(super) fn check(bytes: &[u8], file: &Path) -> Result<Config, ConfigError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let (line, column) = position(bytes, error.valid_up_to());
        let problem = "not UTF-8 text; save the file as UTF-8".to_owned();
        ConfigError::Content { file: file.to_owned(), line, column, key: String::new(), problem }
    })?;
    let source = Source { file, text };
    let raw: RawConfig = toml::from_str(text).map_err(|error| source.unreadable(&error))?;
    source.check(raw)
}

/// The line that the byte at `place` stands in, and the character in it, both counted from 1.
fn position(text: &[u8], place: usize) -> (usize, usize) {
    let before = &text[..place.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    // In UTF-8 every character has one byte that is no continuation.
    let column = before[start..].iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    (1 + line, 1 + column)
}

/// The file as typed: sections and keys are known, values are not yet looked at.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    server: RawServer,
    listener: Option<Spanned<Vec<Spanned<RawListener>>>>,
    #[serde(default)]
    access: RawAccess,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    timeouts: RawTimeouts,
    #[serde(default)]
    tcp: RawTcp,
    #[serde(default)]
    log: RawLog,
}

/// A value with its place in the file, or nothing if the key is absent.
type Raw = Option<Spanned<Value>>;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields, expecting = "a section [server]")]
struct RawServer {
    workers: Raw,
    buffers: Raw,
    busy_poll: Raw,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, expecting = "a section [[listener]]")]
struct RawListener {
    name: Raw,
    address: Raw,
    kind: Raw,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields, expecting = "a section [access]")]
struct RawAccess {
    allow: Raw,
    deny: Raw,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields, expecting = "a section [limits]")]
struct RawLimits {
    max_connections: Raw,
    stalled_memory: Raw,
    max_connections_per_source: Raw,
    accepts_per_source: Raw,
    max_bytes: Raw,
    source_prefix_ipv4: Raw,
    source_prefix_ipv6: Raw,
}

#[derive(Default, Deserialize)]
#[serde(
    default,
    rename_all = "kebab-case",
    deny_unknown_fields,
    expecting = "a section [timeouts]"
)]
struct RawTimeouts {
    idle: Raw,
    stall: Raw,
    lifetime: Raw,
    drain: Raw,
    drain_lead: Raw,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields, expecting = "a section [tcp]")]
struct RawTcp {
    nodelay: Raw,
    keepalive: Raw,
    user_timeout: Raw,
    receive_buffer: Raw,
    send_buffer: Raw,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields, expecting = "a section [log]")]
struct RawLog {
    target: Raw,
    level: Raw,
}

/// The file under examination: turns places into line numbers.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn check(&self, raw: RawConfig) -> Result<Config, ConfigError> {
        let default = Config::default();
        let listeners = match raw.listener {
            None => default.listeners,
            Some(list) => self.check_listeners(list)?,
        };
        let (tcp, off, auto) = (default.tcp, off_or_time, auto_or_size);
        Ok(Config {
            server: self.check_server(raw.server, default.server)?,
            listeners,
            access: Access {
                allow: self.check_networks("access.allow", raw.access.allow)?,
                deny: self.check_networks("access.deny", raw.access.deny)?,
            },
            limits: self.check_limits(raw.limits, default.limits)?,
            timeouts: self.check_timeouts(raw.timeouts, default.timeouts)?,
            tcp: Tcp {
                nodelay: self.value("tcp.nodelay", raw.tcp.nodelay, tcp.nodelay, boolean)?,
                keepalive: self.value(
                    "tcp.keepalive",
                    raw.tcp.keepalive,
                    tcp.keepalive,
                    |value| whole_seconds(off(value, SECOND..=9 * HOUR)?),
                )?,
                user_timeout: self.value(
                    "tcp.user-timeout",
                    raw.tcp.user_timeout,
                    tcp.user_timeout,
                    |value| off(value, SECOND..=24 * DAY),
                )?,
                receive_buffer: self.value(
                    "tcp.receive-buffer",
                    raw.tcp.receive_buffer,
                    None,
                    auto,
                )?,
                send_buffer: self.value("tcp.send-buffer", raw.tcp.send_buffer, None, auto)?,
            },
            log: Log {
                target: self.value("log.target", raw.log.target, default.log.target, |value| {
                    word(value, &LOG_TARGETS)
                })?,
                level: self.value("log.level", raw.log.level, default.log.level, |value| {
                    word(value, &LOG_LEVELS)
                })?,
            },
        })
    }

    fn check_server(&self, raw: RawServer, default: Server) -> Result<Server, ConfigError> {
        let spin = Duration::from_micros(1)..=Duration::from_millis(10);
        Ok(Server {
            workers: self.value("server.workers", raw.workers, default.workers, workers)?,
            buffers: self.value("server.buffers", raw.buffers, default.buffers, buffers)?,
            busy_poll: self.value(
                "server.busy-poll",
                raw.busy_poll,
                default.busy_poll,
                |value| off_or_time(value, spin.clone()),
            )?,
        })
    }

    fn check_limits(&self, raw: RawLimits, default: Limits) -> Result<Limits, ConfigError> {
        let prefix = |value: &Value, range| integer(value, range, "");
        Ok(Limits {
            max_connections: self.value(
                "limits.max-connections",
                raw.max_connections,
                default.max_connections,
                |value| integer(value, 1..=CONNECTIONS_MAX, ""),
            )?,
            stalled_memory: self.value(
                "limits.stalled-memory",
                raw.stalled_memory,
                default.stalled_memory,
                |value| size(value, 64 * KIB..=1024 * GIB, ""),
            )?,
            max_connections_per_source: self.value(
                "limits.max-connections-per-source",
                raw.max_connections_per_source,
                default.max_connections_per_source,
                |value| off_or_integer(value, 1..=CONNECTIONS_MAX),
            )?,
            accepts_per_source: self.value(
                "limits.accepts-per-source",
                raw.accepts_per_source,
                default.accepts_per_source,
                |value| off_or_integer(value, 1..=1_000_000),
            )?,
            max_bytes: self.value(
                "limits.max-bytes",
                raw.max_bytes,
                default.max_bytes,
                |value| off_or_size(value, 1..=1024 * GIB),
            )?,
            source_prefix_ipv4: self.value(
                "limits.source-prefix-ipv4",
                raw.source_prefix_ipv4,
                default.source_prefix_ipv4,
                |value| prefix(value, 8..=32),
            )?,
            source_prefix_ipv6: self.value(
                "limits.source-prefix-ipv6",
                raw.source_prefix_ipv6,
                default.source_prefix_ipv6,
                |value| prefix(value, 16..=128),
            )?,
        })
    }

    /// A list of networks. A wrong entry is named with its own line.
    fn check_networks(&self, key: &str, raw: Raw) -> Result<Vec<Network>, ConfigError> {
        let Some(raw) = raw else { return Ok(Vec::new()) };
        let span = raw.span();
        if !raw.get_ref().is_array() {
            let problem = format!(
                "{} is not a list; use one such as [\"10.0.0.0/8\", \"::1\"]",
                raw.get_ref()
            );
            return Err(self.wrong(key, span.start, problem));
        }
        // Read once more, for the places of the entries.
        let entries: Vec<Spanned<Value>> = ValueDeserializer::parse(&self.text[span.clone()])
            .and_then(Vec::deserialize)
            .expect("invariant: what was read can be read again");
        let check = |entry: Spanned<Value>| {
            let problem = match entry.get_ref().as_str().map(str::parse) {
                Some(Ok(network)) => return Ok(network),
                Some(Err(problem)) => problem,
                None => format!("{} is not text; use one such as \"10.0.0.0/8\"", entry.get_ref()),
            };
            Err(self.wrong(key, span.start + entry.span().start, problem))
        };
        entries.into_iter().map(check).collect()
    }

    fn check_timeouts(&self, raw: RawTimeouts, default: Timeouts) -> Result<Timeouts, ConfigError> {
        let range = Duration::from_millis(10)..=YEAR;
        let limit = |value: &Value| off_or_time(value, range.clone());
        let stop = |value: &Value| time(value, Duration::ZERO..=HOUR, "");
        Ok(Timeouts {
            idle: self.value("timeouts.idle", raw.idle, default.idle, limit)?,
            stall: self.value("timeouts.stall", raw.stall, default.stall, limit)?,
            lifetime: self.value("timeouts.lifetime", raw.lifetime, default.lifetime, limit)?,
            drain: self.value("timeouts.drain", raw.drain, default.drain, stop)?,
            drain_lead: self.value(
                "timeouts.drain-lead",
                raw.drain_lead,
                default.drain_lead,
                stop,
            )?,
        })
    }

    fn check_listeners(
        &self,
        list: Spanned<Vec<Spanned<RawListener>>>,
    ) -> Result<Vec<ListenerConfig>, ConfigError> {
        let place = list.span().start;
        let list = list.into_inner();
        if list.is_empty() || list.len() > LISTENERS_MAX {
            let problem = format!(
                "{} listeners; list 1 to {LISTENERS_MAX}, or none for the built-in two",
                list.len()
            );
            return Err(self.wrong("listener", place, problem));
        }
        let builtin = builtin_listeners();
        let mut listeners: Vec<ListenerConfig> = Vec::new();
        for entry in list {
            let place = entry.span().start;
            let RawListener { name, address, kind } = entry.into_inner();
            let Some(raw_name) = name else {
                let problem = "missing; add one such as name = \"lan\"".to_owned();
                return Err(self.wrong("listener.name", place, problem));
            };
            let Some(raw_address) = address else {
                let problem = "missing; add one such as address = \"[::1]:7777\"".to_owned();
                return Err(self.wrong("listener.address", place, problem));
            };
            let name =
                self.checked("listener.name", raw_name, |value| name_beside(value, &listeners))?;
            let address = self.checked("listener.address", raw_address, |value| {
                address_beside(value, &listeners)
            })?;
            let builtin_default =
                builtin.iter().any(|other| other.name == name && other.address == address);
            let kind =
                self.value("listener.kind", kind, Kind::Echo, |value| word(value, &Kind::ALL))?;
            let builtin_default = builtin_default && kind == Kind::Echo;
            listeners.push(ListenerConfig { name, address, kind, builtin_default });
        }
        if !listeners.iter().any(|listener| listener.kind == Kind::Echo) {
            let problem = "none of kind \"echo\"; add one such as address = \"[::1]:7777\"";
            return Err(self.wrong("listener", place, problem.to_owned()));
        }
        Ok(listeners)
    }

    /// The checked value of `key`, or `default` if the file does not have it.
    fn value<T>(
        &self,
        key: &str,
        raw: Raw,
        default: T,
        check: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        raw.map_or(Ok(default), |raw| self.checked(key, raw, check))
    }

    fn checked<T>(
        &self,
        key: &str,
        raw: Spanned<Value>,
        check: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        check(raw.get_ref()).map_err(|problem| self.wrong(key, raw.span().start, problem))
    }

    fn wrong(&self, key: &str, place: usize, problem: String) -> ConfigError {
        let (line, column) = position(self.text.as_bytes(), place);
        let (file, key) = (self.file.to_owned(), key.to_owned());
        ConfigError::Content { file, line, column, key, problem }
    }

    /// What the TOML reader refused: broken syntax, an unknown key, or a section that is none.
    fn unreadable(&self, error: &toml::de::Error) -> ConfigError {
        let place = error.span().map_or(0, |span| span.start);
        let section = self.section(place);
        let message = error.message().trim().replace('\n', ", ");
        let unknown = message
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split_once("`, expected "));
        match unknown {
            Some((key, known)) => {
                let dot = if section.is_empty() { "" } else { "." };
                let known = known.trim_start_matches("one of ").replace('`', "");
                let problem = format!("unknown key; use {known}");
                self.wrong(&format!("{section}{dot}{key}"), place, problem)
            }
            None => self.wrong(section, place, format!("{message}; see echo-uring.toml(5)")),
        }
    }

    /// The name of the section that `place` lies in: the last header before it.
    fn section(&self, place: usize) -> &str {
        let before = self.text.get(..place).unwrap_or("");
        let header = before.lines().rev().find_map(|line| {
            let (name, rest) = line.trim().strip_prefix('[')?.split_once(']')?;
            (!rest.contains('=')).then(|| name.trim_start_matches('[').trim())
        });
        header.unwrap_or("")
    }
}

fn name_beside(value: &Value, others: &[ListenerConfig]) -> Result<String, String> {
    let name = name(value)?;
    if others.iter().any(|other| other.name == name) {
        return Err(format!("{value} is the name of two listeners; rename one"));
    }
    Ok(name)
}

fn address_beside(value: &Value, others: &[ListenerConfig]) -> Result<Address, String> {
    let Some(text) = value.as_str() else {
        return Err(format!("{value} is not text; use one such as \"127.0.0.1:7777\""));
    };
    let address: Address = text.parse()?;
    conflict(others, &address).map_or(Ok(address), Err)
}
