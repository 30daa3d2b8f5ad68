//! The socket to the service manager, and the queue of messages for it.
//!
//! - There is one non-blocking datagram socket, made at the start.
//! - Messages that it does not accept are queued in order. The main loop calls [`Channel::flush`]
//!   when [`Channel::waiting`] becomes writable, and from time to time.
//! - Only messages that need an answer are waited for ([`Channel::send_now`],
//!   [`Channel::wait_for_hang_up`]), until a moment from [`Channel::until`]. That is now if a
//!   recent wait timed out, because an unresponsive service manager is not waited for again, and
//!   never later than [`Channel::limit_waits`].

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socket,
};

/// How long after a wait that timed out there are no further waits: the service manager is
/// unresponsive.
const UNRESPONSIVE_FOR: Duration = Duration::from_secs(60);
/// A queue that has been full for this long is logged.
const BLOCKED_IS_LOGGED: Duration = Duration::from_secs(10);
/// The maximum number of queued messages; beyond it the oldest is dropped.
const WAITING_MAX: usize = 32;

/// The kind of a message, which determines whether a later one replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A change of state: must arrive, in order.
    State,
    /// The status text: a later one replaces it.
    Status,
    /// A watchdog ping: a later one replaces it.
    Ping,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Channel {
    address: OsString,
    /// Set once it could be made.
    socket: OnceCell<UnixDatagram>,
    /// True exactly when the socket was connected and the connection was not found lost since.
    connected: Cell<bool>,
    /// Queued messages, oldest first.
    waiting: RefCell<VecDeque<(Kind, String)>>,
    /// Since when the service manager's queue has been full, if it was at the last attempt.
    blocked_since: Cell<Option<Instant>>,
    /// Set by a failed message, so that a permanent failure is logged once.
    pub(super) failing: Cell<bool>,
    /// Until when there are no waits, because one timed out.
    unresponsive_until: Cell<Option<Instant>>,
    /// When all waits end.
    waits_end: Cell<Option<Instant>>,
}

impl Channel {
    /// A channel to `address`, in the syntax of `NOTIFY_SOCKET`.
    pub(super) fn new(address: OsString) -> Self {
        let channel = Self {
            address,
            socket: OnceCell::new(),
            connected: Cell::new(false),
            waiting: RefCell::default(),
            blocked_since: Cell::new(None),
            failing: Cell::new(false),
            unresponsive_until: Cell::new(None),
            waits_end: Cell::new(None),
        };
        // If this fails, it fails again with the first message and is logged then.
        let _ = channel.connected_socket();
        channel
    }

    /// The address.
    #[cfg(test)]
    pub(super) fn address(&self) -> &OsStr {
        &self.address
    }

    /// Queues `message` and sends as much of the queue as possible. Never waits.
    pub(super) fn send(&self, kind: Kind, message: String) {
        {
            let mut waiting = self.waiting.borrow_mut();
            if kind != Kind::State {
                waiting.retain(|(waits, _)| *waits != kind);
            }
            waiting.push_back((kind, message));
            if waiting.len() > WAITING_MAX {
                waiting.pop_front();
            }
        }
        self.flush();
    }

    /// Sends the queue and then `message` with `descriptors`; waits until it is sent, or `until`
    /// then.
    pub(super) fn send_now(
        &self,
        message: &str,
        descriptors: &[BorrowedFd<'_>],
        until: Instant,
    ) -> io::Result<()> {
        self.flush_until(until)?;
        loop {
            match self.try_to_send(message, descriptors) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_for_room(until)?,
                outcome => return outcome,
            }
        }
    }

    /// Waits until all copies of the other end of `pipe` are closed.
    pub(super) fn wait_for_hang_up(&self, pipe: BorrowedFd<'_>, until: Instant) -> io::Result<()> {
        self.wait(pipe, PollFlags::empty(), until)
    }

    /// The end of a wait of at most `timeout` that begins now.
    pub(super) fn until(&self, timeout: Duration) -> Instant {
        let now = Instant::now();
        if self.unresponsive_until.get().is_some_and(|until| now < until) {
            return now;
        }
        let end = now + timeout;
        self.waits_end.get().map_or(end, |limit| end.min(limit))
    }

    pub(super) fn limit_waits(&self, moment: Instant) {
        self.waits_end.set(Some(moment));
    }

    /// The descriptor that becomes writable when queued messages can be sent.
    pub(super) fn waiting(&self) -> Option<BorrowedFd<'_>> {
        let waits = self.blocked_since.get().is_some() && !self.waiting.borrow().is_empty();
        self.socket.get().filter(|_| waits).map(AsFd::as_fd)
    }

    /// Sends queued messages, as far as possible without blocking.
    pub(super) fn flush(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some((_, message)) = waiting.front() {
            match self.try_to_send(message, &[]) {
                Ok(()) => self.failing.set(false),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let since = self.blocked_since.get();
                    if since.is_some_and(|since| since.elapsed() >= BLOCKED_IS_LOGGED) {
                        self.report(&io::Error::new(error.kind(), "it does not read its messages"));
                    }
                    return;
                }
                Err(error) => {
                    self.report(&error);
                    // State changes are sent when the service manager listens again.
                    waiting.retain(|(kind, _)| *kind == Kind::State);
                    return;
                }
            }
            waiting.pop_front();
        }
    }

    pub(super) fn flush_until(&self, until: Instant) -> io::Result<()> {
        loop {
            self.flush();
            match self.waiting() {
                Some(_) => self.wait_for_room(until)?,
                None if self.waiting.borrow().is_empty() => return Ok(()),
                None => return Err(ErrorKind::NotConnected.into()),
            }
        }
    }

    fn wait_for_room(&self, until: Instant) -> io::Result<()> {
        let socket = self.socket.get().ok_or(ErrorKind::NotConnected)?;
        self.wait(socket.as_fd(), PollFlags::POLLOUT, until)
    }

    fn wait(
        &self,
        descriptor: BorrowedFd<'_>,
        events: PollFlags,
        until: Instant,
    ) -> io::Result<()> {
        loop {
            // poll(2) counts in whole milliseconds and the remainder would be lost.
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(descriptor, events)], timeout) {
                Ok(0) => {
                    self.unresponsive_until.set(Some(Instant::now() + UNRESPONSIVE_FOR));
                    return Err(ErrorKind::TimedOut.into());
                }
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends a message without waiting. If the service manager has replaced its socket since the
    /// last message, connects again.
    fn try_to_send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let attempt =
            || self.connected_socket().and_then(|socket| transmit(socket, message, descriptors));
        let was_connected = self.connected.get();
        let mut outcome = attempt();
        if was_connected && outcome.as_ref().is_err_and(is_lost) {
            self.connected.set(false);
            outcome = attempt();
        }
        let blocked = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        let since = self.blocked_since.get();
        if since.is_some() && !blocked {
            // The service manager reads.
            self.unresponsive_until.set(None);
        }
        self.blocked_since.set(blocked.then(|| since.unwrap_or_else(Instant::now)));
        outcome
    }

    fn connected_socket(&self) -> io::Result<&UnixDatagram> {
        let socket = match self.socket.get() {
            Some(socket) => socket,
            None => {
                // The standard library would make the socket non-blocking with ioctl(2), which is
                // not in the unit's list of system calls.
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
                self.socket.get_or_init(|| UnixDatagram::from(socket))
            }
        };
        if !self.connected.get() {
            socket.connect_addr(&parse(&self.address)?)?;
            self.connected.set(true);
        }
        Ok(socket)
    }

    fn report(&self, error: &io::Error) {
        if !self.failing.replace(true) {
            let address = self.address.to_string_lossy();
            log::warn!("cannot notify the service manager at {address}: {error}");
        }
    }
}

/// Whether the other end was closed.
fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::BrokenPipe
    )
}

/// Parses the value of `NOTIFY_SOCKET`.
pub(super) fn parse(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => {
            let reason = "NOTIFY_SOCKET is neither a path nor an abstract Unix socket";
            Err(io::Error::new(ErrorKind::Unsupported, reason))
        }
    }
}

fn transmit(
    socket: &UnixDatagram,
    message: &str,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    loop {
        let sent = match descriptors {
            [] => socket.send(message.as_bytes()),
            some => send_with(socket, message, some).map_err(io::Error::from),
        };
        match sent {
            Ok(_) => return Ok(()),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINTR) => {}
                // The queue is full or memory is short: both are temporary.
                Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => {
                    return Err(ErrorKind::WouldBlock.into());
                }
                _ => return Err(error),
            },
        }
    }
}

fn send_with(
    socket: &UnixDatagram,
    message: &str,
    descriptors: &[BorrowedFd<'_>],
) -> nix::Result<usize> {
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let text = [IoSlice::new(message.as_bytes())];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None)
}
