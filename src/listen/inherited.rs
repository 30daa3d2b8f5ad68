//! Sockets that a service manager passed (sd_listen_fds(3)): which process they are for, and their
//! kind.

use std::env;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use listenfd::ListenFd;
use nix::sys::socket::{AddressFamily, SockType};
use socket2::{Protocol, SockRef};

use crate::config::{Identity, Kind, UnixKind};

use super::{BUNDLE, Family, Inherited, ListenError, Listener, Origin, printed};

/// The maximum number of inherited sockets: a thousand addresses are a mistake.
pub(super) const COUNT_MAX: usize = 1024;

/// The maximum number of characters of a variable that are shown, more than any number has.
const VALUE_LENGTH_MAX: usize = 40;

/// The sockets passed to this process. `LISTEN_PID` must name it (sd_listen_fds(3)); listenfd alone
/// would also take sockets meant for a parent that did not clean its environment.
pub(super) fn sockets() -> Result<Inherited, ListenError> {
    let mut found = Inherited::default();
    let own = std::process::id().to_string();
    let count = match (env::var("LISTEN_PID"), env::var("LISTEN_FDS")) {
        (Ok(pid), Ok(count)) if pid == own => count,
        _ => return Ok(found),
    };
    if !count.parse().is_ok_and(|count: usize| count <= COUNT_MAX) {
        // The value is cut, because the message has to stay short.
        let value = count.chars().take(VALUE_LENGTH_MAX).collect();
        return Err(ListenError::Environment { variable: "LISTEN_FDS", value });
    }
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut passed = ListenFd::from_env();
    let named = names.len() == passed.len();
    let is_bundle = |index: &usize| named && names[*index] == BUNDLE;
    for index in (0..passed.len()).filter(is_bundle) {
        // systemd passes any descriptor that was stored; only one of ours has this name.
        match passed.take_custom(
            index,
            AddressFamily::Unix as i32,
            SockType::SeqPacket as i32,
            "a bundle",
        ) {
            Ok(bundle) => found.bundles.extend(bundle),
            Err(error) => {
                found
                    .warnings
                    .push(format!("cannot use the state of the previous process: {error}"));
            }
        }
    }
    for index in (0..passed.len()).filter(|index| !is_bundle(index)) {
        let (socket, family) = take(&mut passed, index)?;
        // systemd writes "unknown" if there is no name.
        let name = Some(names[if named { index } else { 0 }])
            .filter(|name| named && !name.is_empty() && *name != "unknown");
        found.listeners.push(examine(socket, family, name.unwrap_or("inherited"))?);
    }
    Ok(found)
}

/// The passed fd at `index` as a socket of a kind that can be served.
fn take(passed: &mut ListenFd, index: usize) -> Result<(OwnedFd, Family), ListenError> {
    // Each of these queries the type and family of the socket, and leaves it in place if it is of
    // another kind.
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        return Ok((listener.into(), Family::Unix(UnixKind::Stream)));
    }
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        return Ok((listener.into(), Family::Tcp));
    }
    if let Ok(Some(socket)) = passed.take_udp_socket(index) {
        return Ok((socket.into(), Family::Udp));
    }
    if let Ok(Some(socket)) = passed.take_unix_datagram(index) {
        return Ok((socket.into(), Family::Unix(UnixKind::Datagram)));
    }
    let (unix, seqpacket) = (AddressFamily::Unix as i32, SockType::SeqPacket as i32);
    if let Ok(Some(listener)) = passed.take_custom(index, unix, seqpacket, "a seqpacket listener") {
        return Ok((listener, Family::Unix(UnixKind::Seqpacket)));
    }
    let fd = passed.take_raw_fd(index).ok().flatten();
    let fd = fd.expect("invariant: this fd was not taken before");
    Err(ListenError::Inherited { fd, problem: foreign(fd) })
}

fn refuse(socket: &impl AsRawFd, problem: &str) -> ListenError {
    ListenError::Inherited { fd: socket.as_raw_fd(), problem: problem.to_owned() }
}

/// Describes a file descriptor that is no socket of such a kind, with the remedy.
fn foreign(fd: RawFd) -> String {
    let remedy = "pass listening TCP and Unix sockets, and UDP and Unix datagram sockets, only";
    let kind = match fs::read_link(format!("/proc/self/fd/{fd}")) {
        Err(_) => "not open".to_owned(),
        Ok(target) => match target.to_string_lossy() {
            name if name.starts_with("socket:") => {
                "a socket other than IPv4, IPv6 or Unix".to_owned()
            }
            name if name.starts_with("pipe:") => "a pipe".to_owned(),
            name => format!("the file {name:?}"),
        },
    };
    format!("{kind}; {remedy}")
}

/// Queries whether a socket for connections listens, and its address.
fn examine(socket: OwnedFd, family: Family, name: &str) -> Result<Listener, ListenError> {
    let asked = SockRef::from(&socket);
    let fault = |act| {
        let address = format!("inherited fd {}", socket.as_raw_fd());
        move |cause| ListenError::System { address, act, cause }
    };
    if family.is_datagram() {
        return examine_datagram(socket, family, name);
    }
    if !asked.is_listener().map_err(fault("query whether it listens"))? {
        let problem = "a socket that does not listen; use Accept=no in the socket unit";
        return Err(refuse(&socket, problem));
    }
    let protocol = asked.protocol().map_err(fault("query its protocol"))?;
    if family == Family::Tcp && protocol != Some(Protocol::TCP) {
        let problem = "a stream socket, but not TCP; remove SocketProtocol= from the socket unit";
        return Err(refuse(&socket, problem));
    }
    let kind = Kind::of_name(name);
    if family == Family::Unix(UnixKind::Seqpacket) && kind.is_monitoring() {
        let problem = "a seqpacket socket with the name of a service that needs stream sockets; \
                       use ListenStream= in its socket unit, or another FileDescriptorName=";
        return Err(refuse(&socket, problem));
    }
    // The driver waits in the ring. With a non-blocking socket io_uring would return EAGAIN at
    // once.
    asked.set_nonblocking(false).map_err(fault("make it blocking"))?;
    let address = asked.local_addr().map_err(fault("query its address"))?;
    let (name, address) = (name.to_owned(), printed(family, &address));
    let (proxies, identity, origin) = (None, Identity::default(), Origin::Inherited);
    Ok(Listener { name, address, kind, proxies, identity, origin, family, socket, file: None })
}

/// Queries the address of a socket for datagrams, and whether it is one.
fn examine_datagram(socket: OwnedFd, family: Family, name: &str) -> Result<Listener, ListenError> {
    let asked = SockRef::from(&socket);
    let fault = |act| {
        let address = format!("inherited fd {}", socket.as_raw_fd());
        move |cause| ListenError::System { address, act, cause }
    };
    let protocol = asked.protocol().map_err(fault("query its protocol"))?;
    if family == Family::Udp && protocol != Some(Protocol::UDP) {
        let problem = "a datagram socket, but not UDP; remove SocketProtocol= from the socket unit";
        return Err(refuse(&socket, problem));
    }
    let address = asked.local_addr().map_err(fault("query its address"))?;
    if address.is_unnamed() {
        return Err(refuse(
            &socket,
            "a datagram socket without an address; pass one that is bound",
        ));
    }
    let kind = Kind::of_name(name);
    if kind.is_monitoring() {
        let what = if family == Family::Udp { "UDP" } else { "Unix datagram" };
        let problem = format!(
            "a {what} socket with the name of a service that needs stream sockets; use \
             ListenStream= in its socket unit, or another FileDescriptorName="
        );
        return Err(refuse(&socket, &problem));
    }
    let (name, address) = (name.to_owned(), printed(family, &address));
    let (proxies, identity, origin) = (None, Identity::default(), Origin::Inherited);
    Ok(Listener { name, address, kind, proxies, identity, origin, family, socket, file: None })
}
