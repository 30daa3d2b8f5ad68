//! Selects the address of the target. A name may have several, and not all may answer: `localhost`
//! is `::1` first on most machines. If there are several, they are tried once each, in order, and
//! the first that answers is used.
//!
//! Over UDP there is no connect that could fail. One datagram is sent to each address, from a port
//! of its own, and an address is refused if the kernel reports that nothing listens there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::arguments::{DATAGRAM_MAX, DATAGRAM_MAX_IPV6, Plan};
use crate::failure::{Failure, LOOK};
use crate::proxy::{Ends, datagram_header, probe_header};
use crate::signals::Signals;
use crate::status::Status;
use crate::target::{Address, Transport, Unresolved};
use crate::unix;

/// The maximum time to wait for the echo of a first datagram: it may be lost.
const PROBE: Duration = Duration::from_millis(250);

/// The name of a target in errors.
pub(crate) fn named(target: &str, address: Option<&str>) -> String {
    match address {
        Some(address) if !target.ends_with(address) => format!("{target} ({address})"),
        _ => target.to_owned(),
    }
}

fn unconnected(plan: &Plan, why: &str) -> Failure {
    let text = format!("cannot connect to {}: {why}", plan.target.text);
    Failure::Fatal(Status::Unconnected, text)
}

/// All addresses of the target. A separate thread resolves them, because that may take long.
///
/// # Errors
/// When there are none, or the user interrupts.
pub(crate) fn resolve(plan: &Plan, signals: &mut Signals) -> Result<Vec<Address>, Failure> {
    let (tell, answer) = mpsc::channel();
    let (target, sources) = (plan.target.clone(), plan.sources.clone());
    let ask = move || {
        // It fails if the user has interrupted.
        let _ = tell.send(target.resolve(&sources));
    };
    thread::Builder::new().spawn(ask).map_err(|error| {
        Failure::Fatal(Status::Usage, format!("cannot start a thread: {error}"))
    })?;
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(Unresolved::Name(why))) => return Err(unconnected(plan, &why)),
            Ok(Err(Unresolved::Family(why))) => {
                let text = format!("TARGET {}: {why}", plan.target.text);
                return Err(Failure::Fatal(Status::Usage, text));
            }
            Err(_) if signals.is_interrupted() => return Err(Failure::Interrupted),
            Err(_) => {}
        }
    }
}

/// The address to use.
///
/// # Errors
/// When none of several answers, or the user interrupts.
pub(crate) fn choose(
    plan: &Plan,
    mut addresses: Vec<Address>,
    signals: &mut Signals,
) -> Result<Address, Failure> {
    match plan.target.transport() {
        Transport::Udp => return choose_for_datagrams(plan, addresses, signals),
        Transport::UnixSeqpacket | Transport::UnixDatagram => {
            unix::check_size(plan).map_err(Failure::usage)?;
        }
        Transport::Tcp | Transport::Unix => {}
    }
    if addresses.len() == 1 {
        return Ok(addresses.remove(0));
    }
    let mut failures = Vec::new();
    for address in addresses {
        match answers(plan, &address, signals)? {
            Ok(()) => return Ok(address),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    Err(unconnected(plan, &failures.join("; ")))
}

/// The address to use over UDP: the first that echoes a datagram, else the first that does not
/// refuse it.
fn choose_for_datagrams(
    plan: &Plan,
    addresses: Vec<Address>,
    signals: &mut Signals,
) -> Result<Address, Failure> {
    let (mut silent, mut failures) = (None, Vec::new());
    for address in addresses {
        let Some(server) = address.socket.as_socket() else { continue };
        check_size(plan, server).map_err(Failure::usage)?;
        match echoes(plan, server, signals)? {
            Ok(true) => return Ok(address),
            Ok(false) => silent = silent.or(Some(address)),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    silent.ok_or_else(|| unconnected(plan, &failures.join("; ")))
}

/// Refuses datagrams that are too long for the address family or for a burst; headers count.
fn check_size(plan: &Plan, server: SocketAddr) -> Result<(), String> {
    let size = plan.sizes.bytes_max();
    let local = Some(server);
    let header = datagram_header(plan, Ends { number: 0, local, server: local }).len();
    let with_header = if header > 0 { " with its header" } else { "" };
    let (family, max) = match server {
        SocketAddr::V4(_) => ("IPv4", DATAGRAM_MAX),
        SocketAddr::V6(_) => ("IPv6", DATAGRAM_MAX_IPV6),
    };
    if size + header > max {
        return Err(format!(
            "--size {size}: over {family} a datagram has at most {max} bytes{with_header}"
        ));
    }
    let burst = plan.burst as usize;
    if burst > 1 && (size + header) * burst > DATAGRAM_MAX {
        return Err(format!(
            "--burst {burst}: {burst} datagrams of {size} bytes and a header of {header} exceed \
             the {DATAGRAM_MAX} bytes that can be sent together; use --burst {} or less",
            DATAGRAM_MAX / (size + header)
        ));
    }
    Ok(())
}

/// Whether a server echoes a datagram, or an error if that is refused.
fn echoes(
    plan: &Plan,
    server: SocketAddr,
    signals: &mut Signals,
) -> Result<io::Result<bool>, Failure> {
    let begin = || {
        let any = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let source = plan.sources.first().copied().unwrap_or(any);
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.set_nonblocking(true)?;
        // Only a connected socket is told of a refusal.
        socket.connect(server)?;
        let mut datagram = probe_header(plan);
        datagram.resize(datagram.len() + plan.sizes.bytes_min(), b'x');
        socket.send(&datagram)?;
        Ok(socket)
    };
    let socket = match begin() {
        Ok(socket) => socket,
        Err(error) => return Ok(Err(error)),
    };
    let deadline = Instant::now() + plan.timeout.min(PROBE);
    loop {
        match socket.recv(&mut [0]) {
            Ok(_) => return Ok(Ok(true)),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Ok(Err(error)),
            Err(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ok(false));
        }
        wait(socket.as_fd(), PollFlags::POLLIN, signals, left);
        if signals.is_interrupted() {
            return Err(Failure::Interrupted);
        }
    }
}

/// Waits until a socket is ready, a signal arrives, or at most `left`. Returns whether the socket
/// is ready.
fn wait(socket: BorrowedFd<'_>, ready: PollFlags, signals: &Signals, left: Duration) -> bool {
    let timeout = left.min(LOOK) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(timeout).expect("invariant: a look is short");
    let mut files = [PollFd::new(socket, ready), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    // An error only shortens the wait; the clock decides.
    let _ = poll(&mut files, timeout);
    files[0].any() == Some(true)
}

/// Whether a server accepts connections at an address.
fn answers(
    plan: &Plan,
    address: &Address,
    signals: &mut Signals,
) -> Result<io::Result<()>, Failure> {
    let begin = || {
        let socket =
            Socket::new(Domain::from(i32::from(address.socket.family())), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(source) = plan.sources.first() {
            socket.bind(&SocketAddr::new(*source, 0).into())?;
        }
        match socket.connect(&address.socket) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
            _ => Ok(socket),
        }
    };
    let socket = match begin() {
        Ok(socket) => socket,
        Err(error) => return Ok(Err(error)),
    };
    let deadline = Instant::now() + plan.timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(io::ErrorKind::TimedOut.into()));
        }
        if wait(socket.as_fd(), PollFlags::POLLOUT, signals, left) {
            return Ok(match socket.take_error() {
                Ok(Some(error)) | Err(error) => Err(error),
                Ok(None) => Ok(()),
            });
        }
        if signals.is_interrupted() {
            return Err(Failure::Interrupted);
        }
    }
}
