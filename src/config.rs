//! The configuration: a TOML file and the command line's overrides become one checked [`Config`].
//!
//! Text is read into a tree of TOML values, each with its place in the file, and from there, once,
//! into `Config` (checked meaning). Nothing validates later, and nothing here panics, whatever the
//! file says: a reload would take the running daemon down. Every error is one line of at most 1 KiB
//! that names file, line, column and key and ends with the cure; what it echoes of the file is
//! escaped, and cut at 80 characters:
//!
//! ```text
//! /etc/echo-uring.toml:12:9: timeouts.drain: "61m" is out of range; use a duration from …
//! ```
//!
//! This module alone knows TOML and how durations and sizes are spelled. It must never know a
//! socket.

mod address;
mod change;
mod echoed;
mod file;
mod network;
mod quantity;
mod section;
mod value;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

pub use address::Address;
pub use change::{Change, Effect, changes, in_force, spelled};
pub use network::Network;
use value::{
    HOUR, LOG_TARGETS, SECOND, exact_size, number_or_off, quoted, size_or_auto, size_or_off,
    time_or_off,
};

/// Where the configuration is looked for when none is named. It may be absent.
pub const DEFAULT_PATH: &str = "/etc/echo-uring.toml";

/// A file larger than this (bytes) is none of ours: `--config /dev/zero` must end.
const FILE_LENGTH_MAX: u64 = 1 << 20;

/// Everything the daemon was told, checked. `Config::default()` is what an empty file means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[[listener]]`: used only when no sockets are inherited. Never empty.
    pub listeners: Vec<ListenerConfig>,
    /// `[access]`
    pub access: Access,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[tcp]`
    pub tcp: Tcp,
    /// `[log]`
    pub log: Log,
}

/// `[server]`: the shape of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How many threads, each with its own ring.
    pub workers: Workers,
    /// Pooled buffers of 16 KiB in each worker: a power of two, 8 to 32768.
    pub buffers: u16,
    /// How long a worker that has nothing to do looks for work before it sleeps, 1 µs to 10 ms.
    pub busy_poll: Option<Duration>,
}

/// How many workers are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each CPU the process may run on.
    Auto,
    /// That many, 1 to 1024.
    Count(u16),
}

/// One `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// What log lines call it; unique.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// What is served there.
    pub kind: Kind,
    /// Whether it is one of the two built-in ones, by name and address, in the file or not. Those
    /// may be skipped on a host that lacks the address family; any other must be bound.
    pub builtin_default: bool,
}

/// What is served at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every byte that comes, back.
    Echo,
    /// A snapshot as JSON, for `echo-uring status`.
    Status,
    /// Metrics and health over HTTP.
    Metrics,
    /// One line for HAProxy's agent-check.
    AgentCheck,
}

impl Kind {
    /// All kinds, and how they are spelled.
    pub const ALL: [(&str, Self); 4] = [
        ("echo", Self::Echo),
        ("status", Self::Status),
        ("metrics", Self::Metrics),
        ("agent-check", Self::AgentCheck),
    ];

    /// As it is spelled.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, kind)| *kind == self);
        found.expect("invariant: every kind is in the list").0
    }

    /// The kind of an inherited socket of this name: an echo unless the name is that of another.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let found = Self::ALL.iter().find(|(word, _)| *word == name);
        found.map_or(Self::Echo, |(_, kind)| *kind)
    }
}

/// `[access]`: who may connect. Unix peers always may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// If this is not empty, peers in none of these networks are refused.
    pub allow: Vec<Network>,
    /// Peers in one of these are refused, allowed or not.
    pub deny: Vec<Network>,
}

/// `[limits]`: what the daemon may use up, and one source of it. `None` is "off".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once, 1 to 4194304; more wait in the backlog.
    pub max_connections: u32,
    /// Bytes of memory for what peers do not read, 64 KiB to 1 TiB, in the whole process.
    pub stalled_memory: u64,
    /// Connections of one source at once, 1 to 4194304; more are closed at once.
    pub max_connections_per_source: Option<u32>,
    /// Connections of one source in a second, 1 to 1000000; more are closed at once.
    pub accepts_per_source: Option<u32>,
    /// Bytes that a connection may send, 1 to 1 TiB; then it is ended.
    pub max_bytes: Option<u64>,
    /// Leading bits of an IPv4 address that make a source, 8 to 32.
    pub source_prefix_ipv4: u8,
    /// Leading bits of an IPv6 address that make a source, 16 to 128.
    pub source_prefix_ipv6: u8,
}

/// `[timeouts]`: `None` is "off".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    // Whole milliseconds, which is what the core counts in.
    /// Silence before a connection is closed, 10 ms to 1 year.
    pub idle: Option<Duration>,
    /// How long a peer may refuse every byte of its echo, 10 ms to 1 year.
    pub stall: Option<Duration>,
    /// How long a connection may live, 10 ms to 1 year.
    pub lifetime: Option<Duration>,
    /// How long a stop waits for connections to end, 0 to 1 hour.
    pub drain: Duration,
    /// How long a stop tells load balancers before it begins to drain, 0 to 1 hour.
    pub drain_lead: Duration,
}

/// `[tcp]`: socket options. `None` is "off" for times and "auto" for buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// Silence before the first keep-alive probe: whole seconds, 1 s to 9 h (the kernel's ceiling
    /// is 32767 s).
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`, 1 s to 24 days (the kernel counts milliseconds in 31 bits).
    pub user_timeout: Option<Duration>,
    /// `SO_RCVBUF` in bytes, 2 KiB to 1 GiB.
    pub receive_buffer: Option<u32>,
    /// `SO_SNDBUF` in bytes, 2 KiB to 1 GiB.
    pub send_buffer: Option<u32>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Where lines go.
    pub target: LogTarget,
    /// Lines less grave than this are not written.
    pub level: LevelFilter,
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The journal if stderr leads there, else stderr.
    Auto,
    /// `/dev/log`.
    Syslog,
    /// Standard error.
    Stderr,
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`, as typed; if there is any, all listeners of the file are replaced.
    pub listen: Vec<String>,
    /// `--log-level`
    pub log_level: Option<LevelFilter>,
}

/// Why there is no configuration. `Display` is one line that ends with the cure, of at most 1 KiB
/// and without control characters.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The file is invalid.
    Content {
        /// Which file.
        file: PathBuf,
        /// Counted from 1; 0 when the whole file is meant.
        line: usize,
        /// The character in that line, counted from 1.
        column: usize,
        /// `section.key`, or empty when the text is no TOML at all.
        key: String,
        /// What is wrong, and the cure.
        problem: String,
    },
    /// An option of the command line is invalid.
    CommandLine {
        /// The option, with its dashes.
        option: &'static str,
        /// What is wrong, and the cure.
        problem: String,
    },
}

impl ConfigError {
    /// The exit status by sysexits: 64 (usage) for the command line, 78 (configuration) for the
    /// file.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::CommandLine { .. } => 64,
            Self::Read { .. } | Self::Content { .. } => 78,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { file, cause } => {
                let file = echoed::path(file);
                write!(formatter, "{file}: cannot be read: {cause}; ")?;
                match cause.kind() {
                    io::ErrorKind::NotFound => formatter
                        .write_str("write it (it may be empty), or name another with --config"),
                    io::ErrorKind::PermissionDenied => write!(
                        formatter,
                        "let the user that reads it do so: chmod o+r {file}, and chmod o+x for \
                         each directory above it"
                    ),
                    _ => formatter.write_str("name a readable file with --config"),
                }
            }
            Self::Content { file, line, column, key, problem } => {
                write!(formatter, "{}:", echoed::path(file))?;
                if *line > 0 {
                    write!(formatter, "{line}:{column}:")?;
                }
                if !key.is_empty() {
                    write!(formatter, " {key}:")?;
                }
                write!(formatter, " {problem}")
            }
            Self::CommandLine { option, problem } => write!(formatter, "{option}: {problem}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads the file at `path`, or the default file if there is one, and lays `overrides` over it.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut config = match read(file) {
        Ok(bytes) => Config::from_bytes(&bytes, file)?,
        Err(cause) if path.is_none() && cause.kind() == io::ErrorKind::NotFound => {
            Config::default()
        }
        Err(cause) => return Err(ConfigError::Read { file: file.to_owned(), cause }),
    };
    config.overlay(overrides)?;
    Ok(config)
}

/// Reads a configuration that was kept as `text`, as if from a file called `name`, and lays
/// `overrides` over it.
pub fn restore(text: &str, name: &Path, overrides: &Overrides) -> Result<Config, ConfigError> {
    let mut config = Config::from_bytes(text.as_bytes(), name)?;
    config.overlay(overrides)?;
    Ok(config)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_LENGTH_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LENGTH_MAX {
        return Err(io::Error::other("larger than 1 MiB, so not a configuration"));
    }
    Ok(bytes)
}

/// The listeners that `--listen` asks for, named by the order in which they were given.
fn overridden_listeners(addresses: &[String]) -> Result<Vec<ListenerConfig>, ConfigError> {
    let refuse = |problem| ConfigError::CommandLine { option: "--listen", problem };
    let mut listeners: Vec<ListenerConfig> = Vec::new();
    for (index, text) in addresses.iter().enumerate() {
        let address: Address = text.parse().map_err(refuse)?;
        if let Some(problem) = conflict(&listeners, &address) {
            return Err(refuse(problem));
        }
        let name = format!("command-line-{}", index + 1);
        listeners.push(ListenerConfig { name, address, kind: Kind::Echo, builtin_default: false });
    }
    Ok(listeners)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: Server { workers: Workers::Auto, buffers: 256, busy_poll: None },
            listeners: builtin_listeners(),
            access: Access::default(),
            limits: Limits {
                max_connections: 100_000,
                stalled_memory: 64 << 20,
                max_connections_per_source: None,
                accepts_per_source: None,
                max_bytes: None,
                source_prefix_ipv4: 32,
                source_prefix_ipv6: 64,
            },
            timeouts: Timeouts {
                idle: Some(HOUR),
                stall: Some(60 * SECOND),
                lifetime: None,
                drain: 10 * SECOND,
                drain_lead: Duration::ZERO,
            },
            tcp: Tcp {
                nodelay: true,
                keepalive: Some(120 * SECOND),
                user_timeout: Some(60 * SECOND),
                receive_buffer: None,
                send_buffer: None,
            },
            log: Log { target: LogTarget::Auto, level: LevelFilter::Info },
        }
    }
}

fn builtin_listeners() -> Vec<ListenerConfig> {
    let builtin = |name: &str, address: SocketAddr| ListenerConfig {
        name: name.to_owned(),
        address: Address::Inet(address),
        kind: Kind::Echo,
        builtin_default: true,
    };
    vec![
        builtin("local-ipv4", SocketAddr::from(([127, 0, 0, 1], 7777))),
        builtin("local-ipv6", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7777))),
    ]
}

impl Config {
    /// The meaning of a file's content; `file` is only named in errors.
    pub fn from_bytes(bytes: &[u8], file: &Path) -> Result<Self, ConfigError> {
        file::check(bytes, file)
    }

    fn overlay(&mut self, overrides: &Overrides) -> Result<(), ConfigError> {
        if !overrides.listen.is_empty() {
            self.listeners = overridden_listeners(&overrides.listen)?;
        }
        if let Some(level) = overrides.log_level {
            self.log.level = level;
        }
        Ok(())
    }

    /// The same meaning as a file, every key written out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let workers = match self.server.workers {
            Workers::Auto => quoted("auto"),
            Workers::Count(count) => count.to_string(),
        };
        let mut text = format!(
            "[server]\nworkers = {workers}\nbuffers = {}\nbusy-poll = {}\n",
            self.server.buffers,
            time_or_off(self.server.busy_poll)
        );
        for ListenerConfig { name, address, kind, builtin_default: _ } in &self.listeners {
            let (name, address) = (quoted(name), quoted(&address.to_string()));
            let kind = quoted(kind.name());
            text += &format!("\n[[listener]]\nname = {name}\naddress = {address}\nkind = {kind}\n");
        }
        let list = |networks: &[Network]| {
            let entries: Vec<_> = networks.iter().map(|entry| quoted(&entry.to_string())).collect();
            format!("[{}]", entries.join(", "))
        };
        let (allow, deny) = (list(&self.access.allow), list(&self.access.deny));
        text += &format!("\n[access]\nallow = {allow}\ndeny = {deny}\n");
        text += &self.limits.to_toml();
        text += &format!(
            "\n[timeouts]\nidle = {}\nstall = {}\nlifetime = {}\ndrain = {}\ndrain-lead = {}\n",
            time_or_off(self.timeouts.idle),
            time_or_off(self.timeouts.stall),
            time_or_off(self.timeouts.lifetime),
            time_or_off(Some(self.timeouts.drain)),
            time_or_off(Some(self.timeouts.drain_lead))
        );
        text += &format!(
            "\n[tcp]\nnodelay = {}\nkeepalive = {}\nuser-timeout = {}\n",
            self.tcp.nodelay,
            time_or_off(self.tcp.keepalive),
            time_or_off(self.tcp.user_timeout)
        );
        text += &format!(
            "receive-buffer = {}\nsend-buffer = {}\n",
            size_or_auto(self.tcp.receive_buffer),
            size_or_auto(self.tcp.send_buffer)
        );
        let target = LOG_TARGETS.iter().find(|(_, target)| *target == self.log.target);
        let (target, _) = target.expect("invariant: every log target has a word");
        let level = self.log.level.as_str().to_ascii_lowercase();
        text + &format!("\n[log]\ntarget = {}\nlevel = {}\n", quoted(target), quoted(&level))
    }
}

impl Limits {
    fn to_toml(&self) -> String {
        format!(
            "\n[limits]\nmax-connections = {}\nstalled-memory = {}\n\
             max-connections-per-source = {}\naccepts-per-source = {}\n\
             source-prefix-ipv4 = {}\nsource-prefix-ipv6 = {}\nmax-bytes = {}\n",
            self.max_connections,
            quoted(&exact_size(self.stalled_memory)),
            number_or_off(self.max_connections_per_source),
            number_or_off(self.accepts_per_source),
            self.source_prefix_ipv4,
            self.source_prefix_ipv6,
            size_or_off(self.max_bytes),
        )
    }
}

/// Why `address` cannot be bound beside `others`, if so.
fn conflict(others: &[ListenerConfig], address: &Address) -> Option<String> {
    let other = others.iter().find(|other| other.address.overlaps(address))?;
    let shown = echoed::bare(&address.to_string());
    Some(if other.address == *address {
        format!("{shown} is listed twice; remove one")
    } else {
        format!("{shown} and {} overlap; keep the wider one", other.address)
    })
}
