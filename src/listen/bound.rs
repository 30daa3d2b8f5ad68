//! Sockets bound from the configuration.

use std::fs;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{Family, ListenError, Listener, Origin, errno, printed};
use crate::config::{Address, Identity, Kind, ListenerConfig, Protocol, UnixKind, UnixName};

/// The listen backlog; `net.core.somaxconn` is its upper bound, usually 4096.
const BACKLOG: i32 = 4096;

/// How long addresses may be in use, in total, before this is an error. If a program with a ring is
/// killed, the kernel closes its sockets only after the program has ended: 4 ms to 80 ms later with
/// 5,000 connections (Linux 6.18). By then a supervisor may have started the next process.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(1);
const IN_USE_RETRY: Duration = Duration::from_millis(50);

pub(super) fn sockets<'a>(
    configured: impl Iterator<Item = &'a ListenerConfig>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    let mut skipped = None;
    let deadline = Instant::now() + IN_USE_TIMEOUT;
    for ListenerConfig { name, address, kind, proxies, identity, builtin_default } in configured {
        // Those without are for inherited sockets.
        let Some(address) = address else { continue };
        let bound = until_free(deadline, || match address {
            Address::Inet(protocol, inet) => bind_inet(name, *kind, *protocol, *inet),
            Address::Zoned(protocol, inet, zone) => {
                let inet = in_zone(*protocol, *inet, zone)?;
                bind_inet(name, *kind, *protocol, inet.into())
            }
            Address::Unix(carries, UnixName::Path(path)) => bind_path(name, *kind, *carries, path),
            Address::Unix(carries, UnixName::Abstract(abstract_name)) => {
                bind_abstract(name, *kind, *carries, abstract_name)
            }
        });
        match bound {
            Ok(listener) => {
                let (proxies, identity) = (proxies.clone(), identity.clone());
                listeners.push(Listener { proxies, identity, ..listener });
            }
            Err(error) if *builtin_default && error.is_absence() => {
                warnings.push(format!("listener {name} is skipped: {error}"));
                skipped = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match skipped {
        Some(error) if listeners.is_empty() => Err(error),
        Some(_) | None => Ok(listeners),
    }
}

/// Retries until `deadline` while the address is in use.
fn until_free<T>(
    deadline: Instant,
    bind: impl Fn() -> Result<T, ListenError>,
) -> Result<T, ListenError> {
    loop {
        match bind() {
            Err(error) if error.is_in_use() && Instant::now() < deadline => {
                thread::sleep(IN_USE_RETRY);
            }
            outcome => return outcome,
        }
    }
}

fn bind_inet(
    name: &str,
    kind: Kind,
    protocol: Protocol,
    address: SocketAddr,
) -> Result<Listener, ListenError> {
    let socket = bind_inet_socket(protocol, address)?;
    let fault = |act| move |cause| ListenError::System { address: address.to_string(), act, cause };
    let family = match protocol {
        Protocol::Tcp => {
            let refused =
                |cause| ListenError::Bind { address: Address::Inet(protocol, address), cause };
            socket.listen(BACKLOG).map_err(refused)?;
            Family::Tcp
        }
        Protocol::Udp => {
            raise_buffers(&socket);
            Family::Udp
        }
    };
    // Queried, since with port 0 the kernel chooses the port.
    let address = socket.local_addr().map_err(fault("query its address"))?;
    let address = printed(family, &address);
    let (name, socket) = (name.to_owned(), socket.into());
    let (proxies, identity, origin) = (None, Identity::default(), Origin::Bound);
    Ok(Listener { name, address, kind, proxies, identity, origin, family, socket, file: None })
}

/// The address on the interface that `zone` names.
pub(super) fn in_zone(
    protocol: Protocol,
    address: SocketAddrV6,
    zone: &str,
) -> Result<SocketAddrV6, ListenError> {
    let wanted = || Address::Zoned(protocol, address, zone.to_owned());
    let scope = if_nametoindex(zone)
        .map_err(|errno| ListenError::Bind { address: wanted(), cause: errno.into() })?;
    Ok(SocketAddrV6::new(*address.ip(), address.port(), address.flowinfo(), scope))
}

/// A socket that is bound to the address and does not listen yet.
pub(super) fn bind_inet_socket(
    protocol: Protocol,
    address: SocketAddr,
) -> Result<Socket, ListenError> {
    let wanted = Address::Inet(protocol, address);
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
    };
    let socket = new_socket(Domain::for_address(address), kind, Some(number), &wanted)?;
    let fault = |act| move |cause| ListenError::System { address: address.to_string(), act, cause };
    // Connections of an earlier process in TIME_WAIT must not prevent the start. On a UDP socket it
    // would let another one take all datagrams.
    if protocol == Protocol::Tcp {
        socket.set_reuse_address(true).map_err(fault("set SO_REUSEADDR"))?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false).map_err(fault("clear IPV6_V6ONLY"))?;
    }
    socket.bind(&address.into()).map_err(|cause| ListenError::Bind { address: wanted, cause })?;
    Ok(socket)
}

/// The receive buffer of a UDP socket, as far as the sysctl net.core.rmem_max permits. The kernel's
/// default of 208 KiB holds 256 small datagrams or 3 large ones, so a pause of milliseconds loses
/// some.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The same for replies, as far as net.core.wmem_max permits. All clients of a socket share it: a
/// reply that waits for the link-layer address of its receiver occupies it for up to three seconds.
const SEND_BUFFER: usize = 4 << 20;

/// See [`super::granted_receive_buffer`].
pub(super) fn granted_receive_buffer() -> io::Result<usize> {
    let unix = || Socket::new(Domain::UNIX, Type::DGRAM, None);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).or_else(|_| unix())?;
    raise_buffers(&socket);
    socket.recv_buffer_size()
}

fn raise_buffers(socket: &Socket) {
    // The doctor reports the result.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
}

/// See [`super::siblings`].
pub(super) fn siblings(socket: &OwnedFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    bind_beside(socket, count, Type::DGRAM, |sibling| {
        raise_buffers(sibling);
        Ok(())
    })
}

/// See [`super::tcp_siblings`].
pub(super) fn tcp_siblings(socket: &OwnedFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    bind_beside(socket, count, Type::STREAM, |sibling| sibling.listen(BACKLOG))
}

/// Binds `count` more sockets to the address of `socket`, and finishes each.
fn bind_beside(
    socket: &OwnedFd,
    count: usize,
    kind: Type,
    finish: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Vec<OwnedFd>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // Not before the first one was bound: with the option, it would have been bound beside the
    // socket of another process of the same user.
    let first = SockRef::from(socket);
    first.set_reuse_port(true)?;
    let address = first.local_addr()?;
    let one = || {
        let sibling = Socket::new(address.domain(), kind, None)?;
        sibling.set_reuse_port(true)?;
        if kind == Type::STREAM {
            // As the first one, for connections in TIME_WAIT.
            sibling.set_reuse_address(true)?;
        }
        if address.is_ipv6() {
            sibling.set_only_v6(false)?;
        }
        sibling.bind(&address)?;
        finish(&sibling)?;
        Ok(sibling.into())
    };
    (0..count).map(|_| one()).collect()
}

/// The file of an echo socket gets mode 0666 less the umask: like a loopback port, it is open to
/// everyone who can reach it. Admin sockets are for user and group: 0660.
fn bind_path(
    name: &str,
    kind: Kind,
    carries: UnixKind,
    path: &Path,
) -> Result<Listener, ListenError> {
    let wanted = Address::Unix(carries, UnixName::Path(path.to_owned()));
    let refused = |cause| ListenError::Bind { address: wanted.clone(), cause };
    let socket = new_unix_socket(carries, &wanted)?;
    let address = SockAddr::unix(path).map_err(refused)?;
    match socket.bind(&address) {
        Err(cause) if errno(&cause) == Errno::EADDRINUSE => {
            remove_stale(path, &address, &wanted)?;
            socket.bind(&address).map_err(refused)?;
        }
        outcome => outcome.map_err(refused)?,
    }
    let file = SocketFile::new(path).map_err(refused)?;
    if kind.is_monitoring() {
        // No client can connect before listen(2).
        let mode = fs::Permissions::from_mode(0o660);
        fs::set_permissions(path, mode).map_err(refused)?;
    }
    unix_listener(name, kind, carries, socket, wanted, Some(file))
}

/// An abstract name has no file, and is free again when its socket is closed.
fn bind_abstract(
    name: &str,
    kind: Kind,
    carries: UnixKind,
    abstract_name: &str,
) -> Result<Listener, ListenError> {
    let wanted = Address::Unix(carries, UnixName::Abstract(abstract_name.to_owned()));
    let refused = |cause| ListenError::Bind { address: wanted.clone(), cause };
    let socket = new_unix_socket(carries, &wanted)?;
    let address = SockAddr::unix(format!("\0{abstract_name}")).map_err(refused)?;
    socket.bind(&address).map_err(refused)?;
    unix_listener(name, kind, carries, socket, wanted, None)
}

fn unix_listener(
    name: &str,
    kind: Kind,
    carries: UnixKind,
    socket: Socket,
    wanted: Address,
    file: Option<SocketFile>,
) -> Result<Listener, ListenError> {
    let (name, address) = (name.to_owned(), wanted.to_string());
    match carries {
        UnixKind::Datagram => raise_buffers(&socket),
        UnixKind::Stream | UnixKind::Seqpacket => {
            let refused = |cause| ListenError::Bind { address: wanted, cause };
            socket.listen(BACKLOG).map_err(refused)?;
        }
    }
    let (proxies, identity, origin) = (None, Identity::default(), Origin::Bound);
    let (family, socket) = (Family::Unix(carries), socket.into());
    Ok(Listener { name, address, kind, proxies, identity, origin, family, socket, file })
}

fn new_unix_socket(carries: UnixKind, wanted: &Address) -> Result<Socket, ListenError> {
    let kind = match carries {
        UnixKind::Stream => Type::STREAM,
        UnixKind::Seqpacket => Type::SEQPACKET,
        UnixKind::Datagram => Type::DGRAM,
    };
    new_socket(Domain::UNIX, kind, None, wanted)
}

fn new_socket(
    domain: Domain,
    kind: Type,
    protocol: Option<socket2::Protocol>,
    wanted: &Address,
) -> Result<Socket, ListenError> {
    Socket::new(domain, kind, protocol).map_err(|cause| match errno(&cause) {
        Errno::EAFNOSUPPORT => ListenError::Bind { address: wanted.clone(), cause },
        _ => ListenError::System { address: wanted.to_string(), act: "create a socket", cause },
    })
}

/// Removes the socket file that a killed process left at `path`. Anything else at that path is kept
/// and is an error: "in use" if a program has a socket there, of whatever kind (EPROTOTYPE).
fn remove_stale(path: &Path, address: &SockAddr, wanted: &Address) -> Result<(), ListenError> {
    let occupied = |problem: String| ListenError::Occupied { address: wanted.clone(), problem };
    let unclear =
        |cause: io::Error| occupied(format!("{cause}; remove the file or use another path"));
    if !fs::symlink_metadata(path).map_err(unclear)?.file_type().is_socket() {
        let problem = "exists and is not a socket; remove it or use another path";
        return Err(occupied(problem.to_owned()));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(unclear)?;
    // A listener with a full backlog would block a blocking connect.
    probe.set_nonblocking(true).map_err(unclear)?;
    match probe.connect(address) {
        Err(cause) if errno(&cause) == Errno::ECONNREFUSED => {
            fs::remove_file(path).map_err(unclear)
        }
        Err(cause) if !matches!(errno(&cause), Errno::EAGAIN | Errno::EPROTOTYPE) => {
            Err(unclear(cause))
        }
        Ok(()) | Err(_) => {
            Err(ListenError::Bind { address: wanted.clone(), cause: Errno::EADDRINUSE.into() })
        }
    }
}

/// The file of a Unix socket. Dropping this removes the file, if the path still names the same
/// file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // A failure is ignored; the next start removes a stale file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}
