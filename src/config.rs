//! The configuration: TOML files and the command line's overrides become one checked [`Config`].
//!
//! Text is read into a tree of TOML values, each with its place in its file, and from there, once,
//! into `Config` (checked meaning), by the one table of keys. Nothing validates later. Nothing here
//! panics for any content of a file, because a panic at a reload would end the running daemon.
//! Every error is one line of at most 1 KiB that names file, line, column and key and ends with the
//! remedy; text of the file in it is escaped, and truncated at 80 characters:
//!
//! ```text
//! /etc/echo-uring.toml:12:9: timeouts.drain: "61m" is out of range; use a duration from …
//! ```
//!
//! Only this module knows TOML and the syntax of durations and sizes. It must never know a socket.

mod address;
mod change;
mod echoed;
mod error;
mod file;
mod guess;
mod json;
mod keys;
mod network;
mod quantity;
mod sources;
mod value;
mod warning;

use std::iter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use log::LevelFilter;

pub use address::{Address, Protocol, UnixKind, UnixName};
pub use change::{Change, changes, in_force, spelled};
pub use error::{ConfigError, Invalid};
use file::{Place, Places, Role, Source};
pub use json::judgement;
pub use keys::{
    Access, Datagram, Effect, Key, Limits, Log, SECTIONS, Section, Server, Tcp, Timeouts,
};
pub use network::Network;
pub use value::Type;

/// The default path of the configuration. The file may be absent.
pub const DEFAULT_PATH: &str = "/etc/echo-uring.toml";

/// The complete, checked configuration of the daemon. `Config::default()` is the meaning of an
/// empty file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[[listener]]`: those with an address are used only when no sockets are inherited. Never
    /// empty.
    pub listeners: Vec<ListenerConfig>,
    /// `[access]`
    pub access: Access,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[datagram]`
    pub datagram: Datagram,
    /// `[tcp]`
    pub tcp: Tcp,
    /// `[log]`
    pub log: Log,
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
    /// Its name in log lines, unique.
    pub name: String,
    /// Its address. None: it uses the inherited sockets of its name, of which there must be at
    /// least one.
    pub address: Option<Address>,
    /// What is served there.
    pub kind: Kind,
    /// The proxies whose connections it accepts (PROXY protocol); none if connections come directly
    /// from clients.
    pub proxies: Option<Vec<Network>>,
    /// What its peers are told, if it is of the kind that tells them something.
    pub identity: Identity,
    /// Whether it is one of the two built-in ones, by name and address, in the file or not. Those
    /// may be skipped on a host that lacks the address family; any other must be bound.
    pub builtin_default: bool,
}

/// What a listener of kind "identity" tells its peers, besides what is known of it anyway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name of the host, if they are to know it; [`Self::SYSTEM`] for that of the system.
    pub host: Option<String>,
    /// Whether a connection continues as an echo.
    pub then_echo: bool,
}

impl Identity {
    /// What stands for the name that the system has.
    pub const SYSTEM: &str = "auto";
}

/// What is served at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends every byte back.
    Echo,
    /// One line that tells the peer where it has arrived.
    Identity,
    /// A snapshot as JSON, for `echo-uring status`.
    Status,
    /// Metrics and health over HTTP.
    Metrics,
    /// One line for HAProxy's agent-check.
    AgentCheck,
}

impl Kind {
    /// All kinds, and their spelling.
    pub const ALL: [(&str, Self); 5] = [
        ("echo", Self::Echo),
        ("identity", Self::Identity),
        ("status", Self::Status),
        ("metrics", Self::Metrics),
        ("agent-check", Self::AgentCheck),
    ];

    /// Its spelling.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, kind)| *kind == self);
        found.expect("invariant: every kind is in the list").0
    }

    /// The kind of an inherited socket of this name: an echo unless the name is that of a kind that
    /// monitors. A name alone never reveals an identity.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let found = Self::ALL.iter().find(|(word, kind)| *word == name && kind.is_monitoring());
        found.map_or(Self::Echo, |(_, kind)| *kind)
    }

    /// Whether it serves figures of the daemon, and not what the daemon is there for.
    #[must_use]
    pub fn is_monitoring(self) -> bool {
        match self {
            Self::Echo | Self::Identity => false,
            Self::Status | Self::Metrics | Self::AgentCheck => true,
        }
    }
}

/// How many listening sockets the daemon binds for a TCP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListeningSockets {
    /// [`Self::PerWorker`] from [`Self::PER_WORKER_FROM`] workers on, otherwise [`Self::Shared`].
    Auto,
    /// One, from which all workers accept in turn.
    Shared,
    /// One for each worker.
    PerWorker,
}

impl ListeningSockets {
    /// With this many workers or more, "auto" creates a socket for each. All workers serve a single
    /// queue in exact turns, which spreads few connections evenly, but each accept takes the locks
    /// of the queue.
    pub const PER_WORKER_FROM: usize = 16;

    /// Whether each of `workers` workers gets its own socket.
    #[must_use]
    pub fn are_per_worker(self, workers: usize) -> bool {
        match self {
            Self::Auto => workers >= Self::PER_WORKER_FROM,
            Self::Shared => false,
            Self::PerWorker => true,
        }
    }
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

/// Options of the command line that override the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`, as typed; if there is any, all listeners of the file are replaced.
    pub listen: Vec<String>,
    /// `--metrics`, as typed: a listener of this kind beside those of the file or of `--listen`.
    pub metrics: Option<String>,
    /// `--status`: the same, at this path.
    pub status: Option<PathBuf>,
    /// `--log-level`
    pub log_level: Option<LevelFilter>,
}

/// A configuration, and its warnings.
#[derive(Debug)]
pub struct Examined {
    /// The configuration that results from the files and the command line.
    pub config: Config,
    /// Values that are valid but cannot work as written: one line each, `FILE:LINE:COLUMN: KEY: …`
    /// if a file contains the value, else `KEY: …`.
    pub warnings: Vec<String>,
    sources: Vec<Source>,
    places: Places,
    /// The places of the listeners in the files.
    listeners: Vec<Place>,
}

impl Examined {
    /// The files that were read, in their order.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        self.sources.iter().map(|source| echoed::path(&source.file)).collect()
    }

    /// Whether each listener without an address is one of `names`, those of inherited sockets.
    ///
    /// # Errors
    /// One for each that is not.
    pub fn require_sockets(&self, names: &[String]) -> Result<(), Invalid> {
        let listeners = self.config.listeners.iter().zip(&self.listeners);
        file::unnamed(listeners, names, &self.sources)
    }

    /// A warning about the value of `key`, as in `limits.max-connections`.
    #[must_use]
    pub fn warning(&self, key: &str, problem: &str) -> String {
        match self.places.get(key) {
            Some(place) => format!("{}: {key}: {problem}", place.shown(&self.sources)),
            None => format!("{key}: {problem}"),
        }
    }
}

/// Reads the file at `path`, or the default file if there is one, with the drop-ins beside it, and
/// applies `overrides`.
///
/// # Errors
/// All problems of the files; if there are none, the first problem of `overrides`.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Invalid> {
    examine(path, overrides).map(|examined| examined.config)
}

/// The same, with warnings.
///
/// # Errors
/// As above.
pub fn examine(path: Option<&Path>, overrides: &Overrides) -> Result<Examined, Invalid> {
    let mut examined = file::merge(sources::read_all(path)?)?;
    examined.config.overlay(overrides)?;
    let warnings = warning::warnings(&examined.config);
    let told = warnings.iter().map(|(key, problem)| examined.warning(key, problem)).collect();
    examined.warnings = told;
    Ok(examined)
}

/// The paths that a reader of the configuration at `path`, or of the default one, must be able to
/// read: the file, the directory of drop-ins, and the drop-ins, if they exist.
#[must_use]
pub fn files(path: Option<&Path>) -> Vec<PathBuf> {
    let main = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut files = vec![main.to_owned(), sources::directory(main)];
    files.extend(sources::drop_ins(main).unwrap_or_default());
    files.retain(|file| file.exists());
    files
}

/// Reads a configuration that was kept as `text`, as if from a file called `name`, and applies
/// `overrides`.
///
/// # Errors
/// As [`load`].
pub fn restore(text: &str, name: &Path, overrides: &Overrides) -> Result<Config, Invalid> {
    let mut config = Config::from_bytes(text.as_bytes(), name)?;
    config.overlay(overrides)?;
    Ok(config)
}

/// The listeners of `--listen`, named by the order in which they were given.
fn overridden_listeners(addresses: &[String]) -> Result<Vec<ListenerConfig>, ConfigError> {
    let refuse = |problem| ConfigError::CommandLine { option: "--listen", problem };
    let mut listeners: Vec<ListenerConfig> = Vec::new();
    for (index, text) in addresses.iter().enumerate() {
        let address: Address = text.parse().map_err(refuse)?;
        let others: Vec<&ListenerConfig> = listeners.iter().collect();
        if let Some(problem) = conflict(&others, &address) {
            return Err(refuse(problem));
        }
        let name = format!("command-line-{}", index + 1);
        listeners.push(ListenerConfig {
            name,
            address: Some(address),
            kind: Kind::Echo,
            proxies: None,
            identity: Identity::default(),
            builtin_default: false,
        });
    }
    Ok(listeners)
}

/// The listener of `kind` that `option` requests at `address`, in addition to `others`. It has the
/// name of its kind, and replaces a listener of that name.
fn admin_listener(
    option: &'static str,
    kind: Kind,
    address: &str,
    others: &[&ListenerConfig],
) -> Result<ListenerConfig, ConfigError> {
    let refuse = |problem| ConfigError::CommandLine { option, problem };
    let address: Address = address.parse().map_err(refuse)?;
    if address.is_udp() {
        let problem = format!("{address} is not served over UDP; use a TCP or Unix address");
        return Err(refuse(problem));
    }
    if let Some(problem) = conflict(others, &address) {
        return Err(refuse(problem));
    }
    let name = kind.name().to_owned();
    let (address, proxies, identity) = (Some(address), None, Identity::default());
    Ok(ListenerConfig { name, address, kind, proxies, identity, builtin_default: false })
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: Server::default(),
            listeners: builtin_listeners(),
            access: Access::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            datagram: Datagram::default(),
            tcp: Tcp::default(),
            log: Log::default(),
        }
    }
}

fn builtin_listeners() -> Vec<ListenerConfig> {
    let builtin = |name: &str, address: SocketAddr| ListenerConfig {
        name: name.to_owned(),
        address: Some(Address::Inet(Protocol::Tcp, address)),
        kind: Kind::Echo,
        proxies: None,
        identity: Identity::default(),
        builtin_default: true,
    };
    vec![
        builtin("local-ipv4", SocketAddr::from(([127, 0, 0, 1], 7777))),
        builtin("local-ipv6", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7777))),
    ]
}

impl Config {
    /// The meaning of a file's content. `file` is only used in errors.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn from_bytes(bytes: &[u8], file: &Path) -> Result<Self, Invalid> {
        Self::from_files(&[(file, bytes)])
    }

    /// The meaning of the first file, with the others as its drop-ins.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn from_files(files: &[(&Path, &[u8])]) -> Result<Self, Invalid> {
        let roles = iter::once(Role::Main).chain(iter::repeat(Role::DropIn));
        let sources = files.iter().zip(roles).map(|((file, bytes), role)| Source {
            file: file.into(),
            bytes: bytes.to_vec(),
            role,
        });
        file::merge(sources.collect()).map(|examined| examined.config)
    }

    fn overlay(&mut self, overrides: &Overrides) -> Result<(), ConfigError> {
        if !overrides.listen.is_empty() {
            self.listeners = overridden_listeners(&overrides.listen)?;
        }
        let status = overrides.status.as_ref().map(|path| format!("unix:{}", path.display()));
        for (option, kind, address) in [
            ("--metrics", Kind::Metrics, overrides.metrics.as_ref()),
            ("--status", Kind::Status, status.as_ref()),
        ] {
            let Some(address) = address else { continue };
            let is_same = |listener: &ListenerConfig| listener.name == kind.name();
            let others = self.listeners.iter().filter(|it| !is_same(it)).collect::<Vec<_>>();
            let listener = admin_listener(option, kind, address, &others)?;
            match self.listeners.iter().position(is_same) {
                Some(index) => self.listeners[index] = listener,
                None => self.listeners.push(listener),
            }
        }
        if let Some(level) = overrides.log_level {
            self.log.level = level;
        }
        Ok(())
    }

    /// The same configuration as the text of a file, with every key.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let paragraph = |(section, table): (&Section, Vec<Spelled>)| {
            let lines = table.into_iter().map(|(key, value)| format!("{key} = {value}\n"));
            format!("{}\n{}", section.header(), lines.collect::<String>())
        };
        self.tables().map(paragraph).collect::<Vec<_>>().join("\n")
    }

    /// Each table of such a file.
    fn tables(&self) -> impl Iterator<Item = (&'static Section, Vec<Spelled>)> {
        SECTIONS.iter().flat_map(|section| {
            let tables = match section.is_list() {
                true => self.listeners.iter().map(ListenerConfig::spelled).collect(),
                false => {
                    let keys = section.keys.iter();
                    vec![keys.filter_map(|key| Some((key.name, key.spelled(self)?))).collect()]
                }
            };
            tables.into_iter().map(move |table| (section, table))
        })
    }
}

/// Keys of a listener of kind "identity".
const IDENTITY_HOST: &str = "identity-host";
const IDENTITY_THEN_ECHO: &str = "identity-then-echo";

/// A key and its value, in a syntax that is valid in TOML and JSON.
type Spelled = (&'static str, String);

impl ListenerConfig {
    fn spelled(&self) -> Vec<Spelled> {
        let mut table = vec![("name", value::quoted(&self.name))];
        let address = self.address.as_ref().map(|address| value::quoted(&address.to_string()));
        table.extend(address.map(|address| ("address", address)));
        table.push(("kind", value::quoted(self.kind.name())));
        let mode = usize::from(self.proxies.is_some());
        table.push(("proxy-protocol", value::quoted(value::PROXY_PROTOCOL[mode])));
        let trusted = self.proxies.as_deref().unwrap_or_default();
        table.push(("trusted-proxies", value::networks(trusted)));
        let Identity { host, then_echo } = &self.identity;
        table.push((IDENTITY_HOST, value::quoted(host.as_deref().unwrap_or(value::NO_HOST))));
        table.push((IDENTITY_THEN_ECHO, then_echo.to_string()));
        table
    }
}

/// Why `address` cannot be bound in addition to `others`; none if it can.
fn conflict(others: &[&ListenerConfig], address: &Address) -> Option<String> {
    let mut others = others.iter().filter_map(|other| other.address.as_ref());
    let other = others.find(|other| other.overlaps(address))?;
    let shown = echoed::bare(&address.to_string());
    Some(if other == address {
        format!("{shown} is listed twice; remove one")
    } else {
        format!("{shown} and {other} overlap; keep the wider one")
    })
}
