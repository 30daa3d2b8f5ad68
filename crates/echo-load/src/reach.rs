//! Selects the address of the target. A name may have several, and not all may answer: `localhost`
//! is `::1` first on most machines. If there are several, they are tried once each, in order, and
//! the first that answers is used.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::arguments::Plan;
use crate::failure::{Failure, LOOK};
use crate::signals::Signals;
use crate::status::Status;
use crate::target::{Address, Unresolved};

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

/// Whether a server accepts connections at an address.
fn answers(
    plan: &Plan,
    address: &Address,
    signals: &mut Signals,
) -> Result<io::Result<()>, Failure> {
    let begin = || {
        let socket = Socket::new(Domain::from(i32::from(address.0.family())), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(source) = plan.sources.first() {
            socket.bind(&SocketAddr::new(*source, 0).into())?;
        }
        match socket.connect(&address.0) {
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
        let timeout = left.min(LOOK) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(timeout).expect("invariant: a look is short");
        let mut files = [
            PollFd::new(socket.as_fd(), PollFlags::POLLOUT),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        // An error only shortens the wait; the clock decides.
        let _ = poll(&mut files, timeout);
        if files[0].any() == Some(true) {
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
