//! Listening sockets: inherited from a service manager or bound from the configuration. Sets their
//! options.
//!
//! The kind of an inherited socket is queried, never derived from its position. Only this module
//! knows listenfd. Options that TCP connections inherit from their listener are set on the listener
//! once, so accepting has no additional cost. This file must never accept, and it keeps no socket.

mod bound;
mod handshakes;
mod inherited;

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockAddr, SockRef, TcpKeepalive};

pub use bound::SocketFile;
pub use handshakes::{TIMEOUT as HANDSHAKE_TIMEOUT, admit_new, is_any_half_open, refuse_new};

use crate::config::{
    Address, Identity, Kind, ListenerConfig, Network, Protocol, Tcp, UnixKind, UnixName,
};

/// The maximum keepalive time and interval of the kernel (`MAX_TCP_KEEPIDLE`) and the maximum
/// number of probes (`MAX_TCP_KEEPCNT`), with which the kernel never probes by itself. The core
/// decides when to send a keepalive probe, see `echo_ring::driver::keepalive`.
const KEEPALIVE_NEVER: Duration = Duration::from_secs(32_767);
/// See [`KEEPALIVE_NEVER`].
const KEEPALIVE_PROBES: u32 = 127;

/// The name in `LISTEN_FDNAMES` of sockets that a process leaves to the next one. They carry
/// connections and are not listeners.
pub const BUNDLE: &str = "bundle";

/// The result of [`open`].
#[derive(Debug)]
pub struct Opened {
    /// At least one.
    pub listeners: Vec<Listener>,
    /// Descriptors that the previous process left in the service manager's store, see [`BUNDLE`].
    pub bundles: Vec<OwnedFd>,
    /// One line each, to be logged when logging has started.
    pub warnings: Vec<String>,
}

/// A listening stream socket or a bound datagram socket, blocking and close-on-exec, with all its
/// options set.
#[derive(Debug)]
pub struct Listener {
    /// From the configuration or from `LISTEN_FDNAMES`; "inherited" if that has no name.
    pub name: String,
    /// As printed: `127.0.0.1:7777`, `udp:[::1]:7`, `unix:/path`, `unix-datagram:@name`.
    pub address: String,
    /// What is served there, from the configuration or from the name of an inherited socket.
    pub kind: Kind,
    /// The proxies whose connections it takes; none if they have no header.
    pub proxies: Option<Vec<Network>>,
    /// What its peers are told, if it is of the kind that tells them something.
    pub identity: Identity,
    /// Where the socket comes from.
    pub origin: Origin,
    /// The kind of its connections.
    pub family: Family,
    /// The socket itself.
    pub socket: OwnedFd,
    /// The file of a Unix socket that was bound here. It is removed when this is dropped.
    pub file: Option<SocketFile>,
}

/// Where a listening socket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the service manager, which keeps it open after the daemon ends.
    Inherited,
    /// Bound by this process, from the configuration.
    Bound,
}

/// What a socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// TCP over IPv4 or IPv6: connections inherit every option of the listener.
    Tcp,
    /// Unix connections or datagrams: connections inherit no option (seen on Linux 6.18), so the
    /// driver sets them.
    Unix(UnixKind),
    /// UDP: there are no connections.
    Udp,
}

impl Family {
    /// Whether datagrams come, and no connections.
    #[must_use]
    pub fn is_datagram(self) -> bool {
        match self {
            Self::Udp | Self::Unix(UnixKind::Datagram) => true,
            Self::Tcp | Self::Unix(UnixKind::Stream | UnixKind::Seqpacket) => false,
        }
    }

    /// Whether it is a Unix socket whose messages have bounds.
    fn has_unix_messages(self) -> bool {
        matches!(self, Self::Unix(UnixKind::Seqpacket | UnixKind::Datagram))
    }

    /// The protocol as status and metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix(kind) => kind.name(),
        }
    }
}

/// Why listening failed. `Display` is one line that ends with the remedy.
#[derive(Debug)]
pub enum ListenError {
    /// A variable of the service manager is invalid.
    Environment {
        /// Which variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// A configured listener has no address, and no socket of its name was inherited.
    Unnamed {
        /// The name.
        name: String,
    },
    /// An inherited file descriptor is not a listening stream socket.
    Inherited {
        /// Its number.
        fd: RawFd,
        /// What it is, and the remedy.
        problem: String,
    },
    /// An address cannot be bound.
    Bind {
        /// Which address.
        address: Address,
        /// The error of the system.
        cause: io::Error,
    },
    /// The path of a Unix socket is used by something other than a socket in use.
    Occupied {
        /// Which address.
        address: Address,
        /// By what, and the remedy.
        problem: String,
    },
    /// The system refused an operation that should always succeed.
    System {
        /// The socket's address as printed.
        address: String,
        /// The operation.
        act: &'static str,
        /// The error of the system.
        cause: io::Error,
    },
}

impl ListenError {
    /// The exit status (sysexits): 78 (configuration) for a name without a socket, 71 (system
    /// error) or 69 (unavailable).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Unnamed { .. } => 78,
            Self::Environment { .. }
            | Self::Inherited { .. }
            | Self::Bind { .. }
            | Self::Occupied { .. } => 69,
            Self::System { .. } => 71,
        }
    }

    /// Whether another program uses the address.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind { cause, .. } if errno(cause) == Errno::EADDRINUSE)
    }

    /// Whether the host lacks the address or the whole address family. Only built-in listeners are
    /// skipped in this case.
    pub fn is_absence(&self) -> bool {
        let Self::Bind { cause, .. } = self else { return false };
        matches!(errno(cause), Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment { variable, value } => write!(
                formatter,
                "{variable}={value:?} is not a number of sockets from 0 to {}; see \
                 sd_listen_fds(3)",
                inherited::COUNT_MAX
            ),
            Self::Unnamed { name } => write!(
                formatter,
                "listener {name} has no address, and no socket of this name was passed; add an \
                 address, or FileDescriptorName={name} to a socket unit of this service"
            ),
            Self::Inherited { fd, problem } => write!(formatter, "inherited fd {fd} is {problem}"),
            Self::Bind { address, cause } => {
                write!(formatter, "{address}: {cause}; {}", bind_remedy(address, cause))
            }
            Self::Occupied { address, problem } => write!(formatter, "{address}: {problem}"),
            Self::System { address, act, cause } => {
                write!(formatter, "{address}: cannot {act}: {cause}; see the kernel log")
            }
        }
    }
}

impl std::error::Error for ListenError {}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn bind_remedy(address: &Address, cause: &io::Error) -> String {
    let inet = match address {
        Address::Inet(_, inet) => *inet,
        Address::Zoned(.., zone) if errno(cause) == Errno::ENODEV => {
            return format!("there is no interface {zone}; use one listed by \"ip link\"");
        }
        Address::Zoned(_, inet, _) => SocketAddr::from(*inet),
        Address::Unix(_, name) => return unix_remedy(name, errno(cause)).to_owned(),
    };
    let port = inet.port();
    let kind = if address.is_udp() { 'u' } else { 't' };
    match errno(cause) {
        Errno::EADDRINUSE => format!(
            "find the program that uses it with \"ss -l{kind}np sport = :{port}\", or use another \
             port with --listen"
        ),
        Errno::EACCES | Errno::EPERM => format!(
            "for ports below 1024 use socket activation (systemctl start echo-uring.socket) or set \
             the sysctl net.ipv4.ip_unprivileged_port_start to {port}"
        ),
        Errno::EINVAL if needs_zone(&inet) => {
            format!("name its interface, as in \"[{}%eth0]:{port}\"", inet.ip())
        }
        Errno::EADDRNOTAVAIL => "use an address listed by \"ip address\"".to_owned(),
        Errno::EAFNOSUPPORT => "use an address family that this kernel supports".to_owned(),
        _ => "use another address with --listen".to_owned(),
    }
}

fn unix_remedy(name: &UnixName, errno: Errno) -> &'static str {
    match (name, errno) {
        (UnixName::Path(_), Errno::EADDRINUSE) => {
            "stop the program that listens there or use another path"
        }
        (UnixName::Path(_), _) => "use a directory that exists and is writable",
        (UnixName::Abstract(_), Errno::EADDRINUSE) => {
            "find the program that uses it with \"ss -xlp\", or use another name"
        }
        (UnixName::Abstract(_), _) => "use another name",
    }
}

/// Whether an address is incomplete without an interface.
fn needs_zone(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(inet)
        if inet.ip().is_unicast_link_local() && inet.scope_id() == 0)
}

/// Whether a service manager has passed sockets to this process.
#[must_use]
pub fn is_anything_inherited() -> bool {
    std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Tests whether `address` can be bound, by binding it for a moment without listening.
///
/// # Errors
/// Why it cannot be bound.
pub fn rehearse(protocol: Protocol, address: SocketAddr) -> Result<(), ListenError> {
    bound::bind_inet_socket(protocol, address).map(drop)
}

/// The same on the interface that `zone` names.
///
/// # Errors
/// As above, and when there is no such interface.
pub fn rehearse_in_zone(
    protocol: Protocol,
    address: SocketAddrV6,
    zone: &str,
) -> Result<(), ListenError> {
    rehearse(protocol, bound::in_zone(protocol, address, zone)?.into())
}

/// The receive buffer that a UDP socket gets which the daemon binds, in bytes as SO_RCVBUF reports
/// them. It depends on the sysctl net.core.rmem_max.
///
/// # Errors
/// When the system refuses a socket.
pub fn granted_receive_buffer() -> io::Result<usize> {
    bound::granted_receive_buffer()
}

/// Binds `count` more sockets to the address of a UDP socket that was bound here (SO_REUSEPORT):
/// the kernel then spreads flows over all of them.
///
/// # Errors
/// When the system refuses it.
pub fn siblings(socket: &OwnedFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    bound::siblings(socket, count)
}

/// Binds `count` more listening sockets to the address of a TCP socket that was bound here
/// (SO_REUSEPORT), with the same options: the kernel then spreads connections over all of them.
///
/// # Errors
/// When the system refuses it.
pub fn tcp_siblings(
    socket: &OwnedFd,
    printed: &str,
    count: usize,
    tcp: &Tcp,
) -> Result<Vec<OwnedFd>, ListenError> {
    let fault = |cause| ListenError::System {
        address: printed.to_owned(),
        act: "bind one more socket to it",
        cause,
    };
    let siblings = bound::tcp_siblings(socket, count).map_err(fault)?;
    for sibling in &siblings {
        set_options(sibling, printed, tcp)?;
    }
    Ok(siblings)
}

/// The sockets that a service manager passed.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The listening sockets, possibly none.
    listeners: Vec<Listener>,
    /// See [`Opened::bundles`].
    pub bundles: Vec<OwnedFd>,
    /// See [`Opened::warnings`].
    warnings: Vec<String>,
}

impl Inherited {
    /// The names of the listening sockets.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.name.clone()).collect()
    }
}

/// Takes the sockets that a service manager passed.
///
/// Must be called before this process opens any descriptor: the sockets are identified by number
/// only, and if `LISTEN_FDS` counts a descriptor that was not passed, the kernel would assign its
/// number next. Must also be called before any thread is started, since it removes the `LISTEN_*`
/// variables from the environment.
///
/// # Errors
/// When a descriptor cannot be used as a listener.
pub fn inherit() -> Result<Inherited, ListenError> {
    inherited::sockets()
}

/// Takes the sockets that a service manager passed or, if there are none, binds those of
/// `configured`: [`inherit`] and [`open_beside`] at once.
///
/// # Errors
/// As both.
pub fn open(configured: &[ListenerConfig], tcp: &Tcp) -> Result<Opened, ListenError> {
    open_beside(inherit()?, configured, tcp)
}

/// Binds the `configured` listeners that are needed besides the `inherited` ones, and sets the
/// options of all. One without an address says what is served at the inherited sockets of its name.
///
/// # Errors
/// When an address cannot be bound, a name has no socket, or the system refuses an option.
pub fn open_beside(
    inherited: Inherited,
    configured: &[ListenerConfig],
    tcp: &Tcp,
) -> Result<Opened, ListenError> {
    let Inherited { mut listeners, bundles, mut warnings } = inherited;
    let unaddressed = configured.iter().filter(|it| it.address.is_none());
    for ListenerConfig { name, kind, proxies, identity, .. } in unaddressed {
        let mut named = listeners.iter_mut().filter(|listener| listener.name == *name).peekable();
        if named.peek().is_none() {
            return Err(ListenError::Unnamed { name: name.clone() });
        }
        for listener in named {
            listener.kind = *kind;
            listener.proxies.clone_from(proxies);
            listener.identity.clone_from(identity);
            if let Some(problem) = unsuitable(listener) {
                let (fd, problem) = (listener.socket.as_raw_fd(), problem.to_owned());
                return Err(ListenError::Inherited { fd, problem });
            }
        }
    }
    // Inherited admin sockets alone do not replace the configured echo listeners.
    if listeners.iter().all(|listener| listener.kind.is_monitoring()) {
        let inherited = !listeners.is_empty();
        let wanted = configured.iter().filter(|it| !it.kind.is_monitoring() || !inherited);
        listeners.extend(bound::sockets(wanted, &mut warnings)?);
    }
    for listener in listeners.iter().filter(|listener| !listener.kind.is_monitoring()) {
        prepare(listener, tcp, &mut warnings)?;
    }
    Ok(Opened { listeners, bundles, warnings })
}

/// Why an inherited socket cannot serve what its section says, with the remedy.
fn unsuitable(listener: &Listener) -> Option<&'static str> {
    let Listener { kind, family, proxies, identity, .. } = listener;
    if kind.is_monitoring() && (family.is_datagram() || family.has_unix_messages()) {
        Some(
            "a socket with messages, and its kind is served over streams; use ListenStream= in its \
             socket unit, or another kind",
        )
    } else if identity.then_echo && family.is_datagram() {
        Some(
            "a datagram socket, and identity-then-echo is for connections; remove \
             identity-then-echo",
        )
    } else if proxies.is_some() && family.has_unix_messages() {
        Some(
            "a Unix socket with messages, which have no PROXY header; use ListenStream= in its \
             socket unit, or proxy-protocol = \"off\"",
        )
    } else {
        None
    }
}

/// An address of this family as shown in log messages.
fn printed(family: Family, address: &SockAddr) -> String {
    let prefix = match family {
        Family::Tcp => "",
        Family::Udp => "udp:",
        Family::Unix(kind) => &format!("{}:", kind.name()),
    };
    if let Some(inet) = address.as_socket() {
        return format!("{prefix}{inet}");
    }
    if let Some(path) = address.as_pathname() {
        return format!("{prefix}{}", on_one_line(&path.to_string_lossy()));
    }
    match address.as_abstract_namespace() {
        Some(name) => format!("{prefix}@{}", on_one_line(&String::from_utf8_lossy(name))),
        None => format!("{prefix}(unnamed)"),
    }
}

/// `text` with its control characters escaped: an inherited socket may have an arbitrary name.
fn on_one_line(text: &str) -> String {
    let visible = |character: char| {
        if character.is_control() {
            character.escape_default().to_string()
        } else {
            character.to_string()
        }
    };
    text.chars().map(visible).collect()
}

fn prepare(listener: &Listener, tcp: &Tcp, warnings: &mut Vec<String>) -> Result<(), ListenError> {
    match listener.family {
        Family::Udp | Family::Unix(UnixKind::Datagram) => return Ok(()),
        Family::Unix(UnixKind::Seqpacket) => {
            return set_sizes(&listener.socket, &listener.address, tcp);
        }
        Family::Unix(UnixKind::Stream) => {
            return set_stream_options(&listener.socket, &listener.address, tcp);
        }
        Family::Tcp => {}
    }
    set_options(&listener.socket, &listener.address, tcp)?;
    // An interrupted stop may have left the socket with a filter that drops new connections.
    admit_new(listener.socket.as_fd());
    warnings.extend(capped_buffers(&SockRef::from(&listener.socket), tcp, &listener.address));
    Ok(())
}

/// Sets the options of a TCP listener, which its connections inherit.
fn set_options(socket: &OwnedFd, address: &str, tcp: &Tcp) -> Result<(), ListenError> {
    set_stream_options(socket, address, tcp)?;
    let act = "set its TCP options";
    tune(socket.as_fd(), tcp).map_err(|cause| ListenError::System {
        address: address.to_owned(),
        act,
        cause,
    })
}

/// Sets the options that listeners for streams have, TCP and Unix.
fn set_stream_options(socket: &OwnedFd, address: &str, tcp: &Tcp) -> Result<(), ListenError> {
    let act = "set SO_OOBINLINE";
    SockRef::from(socket).set_out_of_band_inline(true).map_err(|cause| ListenError::System {
        address: address.to_owned(),
        act,
        cause,
    })?;
    set_sizes(socket, address, tcp)
}

/// Sets the buffer sizes that all listeners have.
fn set_sizes(socket: &OwnedFd, address: &str, tcp: &Tcp) -> Result<(), ListenError> {
    let act = "set SO_RCVBUF and SO_SNDBUF";
    set_buffers(&SockRef::from(socket), tcp).map_err(|cause| ListenError::System {
        address: address.to_owned(),
        act,
        cause,
    })
}

/// Sets the options of a TCP listener that can change at run time. Connections accepted from then
/// on inherit them.
pub fn tune(socket: BorrowedFd<'_>, tcp: &Tcp) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_tcp_nodelay(tcp.nodelay)?;
    // Also if `tcp.keepalive` is off, since a reload may enable it.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_NEVER).with_interval(KEEPALIVE_NEVER);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))?;
    socket.set_tcp_user_timeout(tcp.user_timeout)
}

fn set_buffers(socket: &SockRef<'_>, tcp: &Tcp) -> io::Result<()> {
    // Both limits are below 1 GiB, see `config`.
    if let Some(bytes) = tcp.receive_buffer {
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = tcp.send_buffer {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    Ok(())
}

/// Warnings for buffer sizes that the kernel limits without an error. The kernel reports twice the
/// size that was set (socket(7)).
fn capped_buffers(socket: &SockRef<'_>, tcp: &Tcp, address: &str) -> Vec<String> {
    let sizes = [
        ("receive-buffer", "rmem_max", tcp.receive_buffer, socket.recv_buffer_size()),
        ("send-buffer", "wmem_max", tcp.send_buffer, socket.send_buffer_size()),
    ];
    let capped = sizes.into_iter().filter_map(|(key, sysctl, wanted, set)| {
        let (wanted, set) = (wanted? as usize, set.ok()? / 2);
        (set < wanted).then(|| {
            format!(
                "{address}: the kernel limits tcp.{key} to {set} bytes instead of {wanted}; \
                 raise the sysctl net.core.{sysctl}"
            )
        })
    });
    capped.collect()
}
