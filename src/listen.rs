//! Listening sockets: inherited from a service manager or bound from the configuration, then given
//! their options.
//!
//! An inherited socket is told apart by asking it, never by its position (listenfd is known here
//! alone). Every option that TCP connections inherit from their listener is set on the listener,
//! once, so that accepting costs nothing more. This file must never accept, and it keeps no socket.

mod bound;
mod handshakes;
mod inherited;

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockAddr, SockRef, TcpKeepalive};

pub use bound::SocketFile;
pub use handshakes::{TIMEOUT as HANDSHAKE_TIMEOUT, hold_back, is_any_half_open, let_come};

use crate::config::{Address, Kind, ListenerConfig, Tcp};

/// The longest silence and interval that the kernel takes (`MAX_TCP_KEEPIDLE`), and the most probes
/// (`MAX_TCP_KEEPCNT`): with them it never probes by itself. When a peer is to be asked whether it
/// is still there is decided by the core, see `echo_ring::driver::peer`.
const KEEPALIVE_NEVER: Duration = Duration::from_secs(32_767);
/// See [`KEEPALIVE_NEVER`].
const KEEPALIVE_PROBES: u32 = 127;

/// The name, in `LISTEN_FDNAMES`, of what a process leaves to the next one: sockets that carry
/// connections. They are no listeners.
pub const BUNDLE: &str = "bundle";

/// What [`open`] found or made.
#[derive(Debug)]
pub struct Opened {
    /// At least one.
    pub listeners: Vec<Listener>,
    /// What a process before us left in the service manager's store for us, see [`BUNDLE`].
    pub bundles: Vec<OwnedFd>,
    /// One line each, for the log once it is open.
    pub warnings: Vec<String>,
}

/// A listening stream socket, blocking and close-on-exec, with all its options set.
#[derive(Debug)]
pub struct Listener {
    /// From the configuration or from `LISTEN_FDNAMES`; "inherited" if that says nothing.
    pub name: String,
    /// As printed: `127.0.0.1:7777`, `[::1]:7`, `unix:/path`, or `unix:@name` for an abstract
    /// address.
    pub address: String,
    /// What is served there: by the configuration, or by the name of an inherited socket.
    pub kind: Kind,
    /// Who made the socket.
    pub origin: Origin,
    /// What its connections are.
    pub family: Family,
    /// The socket itself.
    pub socket: OwnedFd,
    /// The file of a Unix socket that was bound here. It is removed when this is dropped.
    pub file: Option<SocketFile>,
}

/// Who made a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The service manager, which holds it beyond our end.
    Inherited,
    /// We did, from the configuration.
    Bound,
}

/// What a listener's connections are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// TCP over IPv4 or IPv6: connections inherit every option of the listener.
    Tcp,
    /// Unix streams: connections inherit no option (seen on Linux 6.18), so the driver sets theirs.
    Unix,
}

/// Why there are no listening sockets. `Display` is one line that ends with the cure.
#[derive(Debug)]
pub enum ListenError {
    /// The service manager's variables make no sense.
    Environment {
        /// Which variable.
        variable: &'static str,
        /// What it holds.
        value: String,
    },
    /// An inherited file descriptor is no listening stream socket.
    Inherited {
        /// Its number.
        fd: RawFd,
        /// What it is, and the cure.
        problem: String,
    },
    /// An address cannot be had.
    Bind {
        /// Which address.
        address: Address,
        /// What the system said.
        cause: io::Error,
    },
    /// The path of a Unix socket is taken by something else than a socket that is listened at.
    Occupied {
        /// Which path.
        path: PathBuf,
        /// By what, and the cure.
        problem: String,
    },
    /// The system refused what it should never refuse.
    System {
        /// The socket's address as printed.
        address: String,
        /// What was asked of the system.
        act: &'static str,
        /// What it said.
        cause: io::Error,
    },
}

impl ListenError {
    /// The exit status by sysexits: 69 (unavailable), or 71 when the system itself failed.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Environment { .. }
            | Self::Inherited { .. }
            | Self::Bind { .. }
            | Self::Occupied { .. } => 69,
            Self::System { .. } => 71,
        }
    }

    /// Whether somebody else has the address.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Bind { cause, .. } if errno(cause) == Errno::EADDRINUSE)
    }

    /// Whether the host lacks the address or its whole family: the one excuse of a built-in
    /// listener.
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
                "{variable}={value:?} is no number of sockets from 0 to {}; see sd_listen_fds(3)",
                inherited::COUNT_MAX
            ),
            Self::Inherited { fd, problem } => write!(formatter, "inherited fd {fd} is {problem}"),
            Self::Bind { address, cause } => {
                write!(formatter, "{address}: {cause}; {}", bind_cure(address, cause))
            }
            Self::Occupied { path, problem } => {
                write!(formatter, "unix:{}: {problem}", path.display())
            }
            Self::System { address, act, cause } => {
                write!(formatter, "{address}: cannot {act}: {cause}; see the log of the kernel")
            }
        }
    }
}

impl std::error::Error for ListenError {}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn bind_cure(address: &Address, cause: &io::Error) -> String {
    let inet = match address {
        Address::Inet(inet) => *inet,
        Address::Zoned(_, zone) if errno(cause) == Errno::ENODEV => {
            return format!("there is no interface {zone}; use one that \"ip link\" shows");
        }
        Address::Zoned(inet, _) => SocketAddr::from(*inet),
        Address::Unix(_) if errno(cause) == Errno::EADDRINUSE => {
            return "stop the program that listens there or use another path".to_owned();
        }
        Address::Unix(_) => return "use a directory that exists and may be written to".to_owned(),
    };
    let port = inet.port();
    match errno(cause) {
        Errno::EADDRINUSE => format!(
            "see who holds it with \"ss -ltnp sport = :{port}\", or use another with --listen"
        ),
        Errno::EACCES | Errno::EPERM => format!(
            "for ports below 1024 use socket activation (systemctl start echo-uring.socket) or set \
             the sysctl net.ipv4.ip_unprivileged_port_start to {port}"
        ),
        Errno::EINVAL if needs_zone(&inet) => {
            format!("name its interface, as in \"[{}%eth0]:{port}\"", inet.ip())
        }
        Errno::EADDRNOTAVAIL => "use an address that \"ip address\" shows".to_owned(),
        Errno::EAFNOSUPPORT => "use an address of a family that this kernel has".to_owned(),
        _ => "use another address with --listen".to_owned(),
    }
}

/// Whether an address means nothing without an interface.
fn needs_zone(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(inet)
        if inet.ip().is_unicast_link_local() && inet.scope_id() == 0)
}

/// Whether a service manager has passed sockets to this very process.
#[must_use]
pub fn is_anything_inherited() -> bool {
    std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

/// Whether `address` could be bound now: it is, for a moment, without ever listening.
///
/// # Errors
/// When it cannot, and why.
pub fn rehearse(address: SocketAddr) -> Result<(), ListenError> {
    bound::bind_inet_socket(address).map(drop)
}

/// The same on the interface that `zone` names.
///
/// # Errors
/// As above, and when there is no such interface.
pub fn rehearse_in_zone(address: SocketAddrV6, zone: &str) -> Result<(), ListenError> {
    rehearse(bound::in_zone(address, zone)?.into())
}

/// What a service manager passed.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The listening sockets, perhaps none.
    listeners: Vec<Listener>,
    /// See [`Opened::bundles`].
    pub bundles: Vec<OwnedFd>,
    /// See [`Opened::warnings`].
    warnings: Vec<String>,
}

/// Takes the sockets that a service manager passed.
///
/// Must be called before this process makes a descriptor of its own: they are known by their
/// numbers alone, and one that `LISTEN_FDS` speaks of but nobody passed has the number that the
/// kernel gives out next. Also before any thread is started, since the `LISTEN_*` variables are
/// removed from the environment.
///
/// # Errors
/// When what was passed is not what an echo needs.
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

/// Binds those of `configured` that are wanted beside the `inherited` ones, and gives all of them
/// their options.
///
/// # Errors
/// When an address cannot be had, or the system refuses an option.
pub fn open_beside(
    inherited: Inherited,
    configured: &[ListenerConfig],
    tcp: &Tcp,
) -> Result<Opened, ListenError> {
    let Inherited { mut listeners, bundles, mut warnings } = inherited;
    // Sockets to look at the daemon are no reason not to serve.
    if listeners.iter().all(|listener| listener.kind != Kind::Echo) {
        let inherited = !listeners.is_empty();
        let wanted = configured.iter().filter(|it| it.kind == Kind::Echo || !inherited);
        listeners.extend(bound::sockets(wanted, &mut warnings)?);
    }
    for listener in listeners.iter().filter(|listener| listener.kind == Kind::Echo) {
        prepare(listener, tcp, &mut warnings)?;
    }
    Ok(Opened { listeners, bundles, warnings })
}

/// An address as log lines show it.
fn printed(address: &SockAddr) -> String {
    if let Some(inet) = address.as_socket() {
        return inet.to_string();
    }
    if let Some(path) = address.as_pathname() {
        return format!("unix:{}", on_one_line(&path.to_string_lossy()));
    }
    match address.as_abstract_namespace() {
        Some(name) => format!("unix:@{}", on_one_line(&String::from_utf8_lossy(name))),
        None => "unix:(unnamed)".to_owned(),
    }
}

/// `text` with its control characters escaped: whoever made an inherited socket may have named it
/// as they liked.
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
    let socket = SockRef::from(&listener.socket);
    let fault = |act| {
        let address = listener.address.clone();
        move |cause| ListenError::System { address, act, cause }
    };
    socket.set_out_of_band_inline(true).map_err(fault("set SO_OOBINLINE"))?;
    set_buffers(&socket, tcp).map_err(fault("set SO_RCVBUF and SO_SNDBUF"))?;
    if listener.family == Family::Unix {
        return Ok(());
    }
    // A stop that did not come to its end may have left the socket closed to newcomers.
    let_come(listener.socket.as_fd());
    warnings.extend(capped_buffers(&socket, tcp, &listener.address));
    tune(listener.socket.as_fd(), tcp).map_err(fault("set its TCP options"))
}

/// Gives a TCP listener the options that may change while it is used; connections that it accepts
/// from then on inherit them.
pub fn tune(socket: BorrowedFd<'_>, tcp: &Tcp) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_tcp_nodelay(tcp.nodelay)?;
    // Also where `tcp.keepalive` is off, since a reload may switch it on.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_NEVER).with_interval(KEEPALIVE_NEVER);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))?;
    socket.set_tcp_user_timeout(tcp.user_timeout)
}

fn set_buffers(socket: &SockRef<'_>, tcp: &Tcp) -> io::Result<()> {
    // Both bounds lie below 1 GiB, see `config`.
    if let Some(bytes) = tcp.receive_buffer {
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = tcp.send_buffer {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    Ok(())
}

/// The kernel caps buffers in silence; the operator should hear of it. It reports twice what was
/// set (socket(7)).
fn capped_buffers(socket: &SockRef<'_>, tcp: &Tcp, address: &str) -> Vec<String> {
    let sizes = [
        ("receive-buffer", "rmem_max", tcp.receive_buffer, socket.recv_buffer_size()),
        ("send-buffer", "wmem_max", tcp.send_buffer, socket.send_buffer_size()),
    ];
    let capped = sizes.into_iter().filter_map(|(key, sysctl, wanted, set)| {
        let (wanted, set) = (wanted? as usize, set.ok()? / 2);
        (set < wanted).then(|| {
            format!(
                "{address}: tcp.{key} is {set} bytes, not {wanted}: the kernel's cap; \
                 raise the sysctl net.core.{sysctl}"
            )
        })
    });
    capped.collect()
}
