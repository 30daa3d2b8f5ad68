//! What the daemon tells systemd: ready, status, watchdog, stopping (sd_notify(3)).
//!
//! Messages are spelled by the sd-notify crate (here alone) but sent from here: the crate sends
//! without a time limit and does not know abstract addresses, and a service manager that is slow or
//! gone must never hold up or end the daemon. Without `NOTIFY_SOCKET` every call is a silent no-op.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sd_notify::NotifyState;

pub mod account;
pub mod bus;
pub mod units;

/// How long news that changes the unit's state may wait for a busy service manager: a lost READY=1
/// is a failed start.
const PATIENCE_FOR_STATE: Duration = Duration::from_secs(20);
/// A lost ping halves the time until the watchdog bites; the caller has signals to mind, too.
const PATIENCE_FOR_PINGS: Duration = Duration::from_secs(2);
/// News that is soon told again is not worth a wait.
const PATIENCE_FOR_NEWS: Duration = Duration::from_millis(100);

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<OsString>,
    watchdog_interval: Option<Duration>,
    /// Set by a failed message, so that a lasting failure is reported once.
    failing: AtomicBool,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Self {
        let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        Self::new(std::env::var_os("NOTIFY_SOCKET"), limit.map(|limit| limit / 2))
    }

    fn new(socket: Option<OsString>, watchdog_interval: Option<Duration>) -> Self {
        let socket = socket.filter(|address| !address.is_empty());
        Self { socket, watchdog_interval, failing: AtomicBool::new(false) }
    }

    /// How often [`Self::watchdog`] is to be called: half the time after which systemd kills the
    /// service. `None` if no watchdog is asked of this process.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval
    }

    /// Every worker has armed its listeners.
    pub fn ready(&self, status: &str) {
        let status = one_line(status);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)], PATIENCE_FOR_STATE);
    }

    /// A reload begins; [`Self::ready`] ends it, however it goes.
    pub fn reloading(&self) {
        // systemd tells by the time which of several reloads is meant.
        let time = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
        self.tell(&[NotifyState::Reloading, time], PATIENCE_FOR_STATE);
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&one_line(status))], PATIENCE_FOR_NEWS);
    }

    /// Every worker has turned its loop since the last call.
    pub fn watchdog(&self) {
        self.tell(&[NotifyState::Watchdog], PATIENCE_FOR_PINGS);
    }

    /// The drain has begun.
    pub fn stopping(&self, status: &str) {
        let status = one_line(status);
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&status)], PATIENCE_FOR_STATE);
    }

    /// Starting or stopping will take up to `time` from now. Spelled here, for the crate knows 32
    /// bits of it, 71 minutes, and systemd 64: a lead and a drain of an hour each are more.
    pub fn extend_timeout(&self, time: Duration) {
        let field = format!("EXTEND_TIMEOUT_USEC={}", time.as_micros());
        self.tell(&[NotifyState::Custom(&field)], PATIENCE_FOR_STATE);
    }

    /// The start failed with the system error `errno`.
    pub fn failed(&self, errno: u32, status: &str) {
        let status = one_line(status);
        self.tell(&[NotifyState::Errno(errno), NotifyState::Status(&status)], PATIENCE_FOR_STATE);
    }

    /// Whether there is a service manager to tell things.
    #[must_use]
    pub fn has_manager(&self) -> bool {
        self.socket.is_some()
    }

    /// Asks the service manager to keep copies of `descriptors` for the next process, under `name`.
    /// It answers nothing; see [`Self::synchronize`].
    ///
    /// # Errors
    /// When they cannot be sent.
    pub fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Without the last line it would watch them, find that the other end of each is closed, and
        // drop them at once.
        let states =
            [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        self.try_to_tell(&states, descriptors, PATIENCE_FOR_STATE)
    }

    /// Asks the service manager to forget what it keeps under `name`.
    pub fn forget(&self, name: &str) {
        self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)], PATIENCE_FOR_STATE);
    }

    /// Waits until the service manager has dealt with everything it was told so far.
    ///
    /// # Errors
    /// When it has not within `patience`.
    pub fn synchronize(&self, patience: Duration) -> io::Result<()> {
        let (ours, theirs) = io::pipe()?;
        self.try_to_tell(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()], patience)?;
        drop(theirs);
        // It closes its copy when it comes to this message, and ours was the other one.
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(ours.as_fd(), PollFlags::empty())], timeout)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn try_to_tell(
        &self,
        states: &[NotifyState<'_>],
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> io::Result<()> {
        let Some(address) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        send(address, message.as_bytes(), descriptors, patience)
    }

    fn tell(&self, states: &[NotifyState<'_>], patience: Duration) {
        let Some(address) = &self.socket else { return };
        match self.try_to_tell(states, &[], patience) {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    let address = address.to_string_lossy();
                    log::warn!("cannot tell the service manager at {address}: {error}");
                }
            }
        }
    }
}

/// A new socket a message: the service manager may have replaced its own since the last one.
fn send(
    address: &OsStr,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    patience: Duration,
) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => {
            let reason = "NOTIFY_SOCKET is neither a path nor an abstract Unix socket";
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect_addr(&address)?;
    if descriptors.is_empty() {
        return socket.send(message).map(|_| ());
    }
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], &rights, flags, None)?;
    Ok(())
}

/// A newline would begin a new field of the message.
fn one_line(text: &str) -> String {
    text.replace(|character: char| character.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn manager(name: &str) -> (UnixDatagram, Notifier) {
        let name = format!("echo-uring-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (socket, Notifier::new(Some(format!("@{name}").into()), None))
    }

    /// A process cannot safely change its own environment, so the test starts itself once more.
    #[test]
    fn the_environment_says_where_and_how_often() {
        const EXPECTED: &str = "ECHO_URING_TEST_EXPECTED";
        if let Ok(expected) = std::env::var(EXPECTED) {
            let notifier = Notifier::from_env();
            let found = format!("{:?} {:?}", notifier.socket, notifier.watchdog_interval());
            assert_eq!(found, expected);
            return;
        }
        for (variables, expected) in [
            (
                &[("NOTIFY_SOCKET", "@x"), ("WATCHDOG_USEC", "3000000")][..],
                "Some(\"@x\") Some(1.5s)",
            ),
            (&[("NOTIFY_SOCKET", ""), ("WATCHDOG_USEC", "0")], "None None"),
            (&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")], "None None"),
            (&[("WATCHDOG_USEC", "soon")], "None None"),
        ] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "systemd::tests::the_environment_says_where_and_how_often"])
                .env_remove("NOTIFY_SOCKET")
                .env_remove("WATCHDOG_PID")
                .envs(variables.iter().copied())
                .env(EXPECTED, expected)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{variables:?}: {text}");
        }
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_message_is_spelled_as_systemd_wants_it() {
        let (socket, notifier) = manager("spelling");
        notifier.ready("2 workers");
        assert_eq!(next(&socket), "READY=1\nSTATUS=2 workers\n");
        notifier.reloading();
        let message = next(&socket);
        let time = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.trim_end().parse::<u64>().unwrap() > 0, "{message}");
        notifier.status("3 connections");
        assert_eq!(next(&socket), "STATUS=3 connections\n");
        notifier.watchdog();
        assert_eq!(next(&socket), "WATCHDOG=1\n");
        notifier.stopping("draining");
        assert_eq!(next(&socket), "STOPPING=1\nSTATUS=draining\n");
        notifier.extend_timeout(Duration::from_secs(3));
        assert_eq!(next(&socket), "EXTEND_TIMEOUT_USEC=3000000\n");
        notifier.extend_timeout(Duration::from_secs(86_400));
        assert_eq!(next(&socket), "EXTEND_TIMEOUT_USEC=86400000000\n");
        notifier.forget("bundle");
        assert_eq!(next(&socket), "FDSTOREREMOVE=1\nFDNAME=bundle\n");
        notifier.failed(98, "address in use");
        assert_eq!(next(&socket), "ERRNO=98\nSTATUS=address in use\n");
    }

    /// What is stored is not watched, and the end of a barrier is the end of its descriptor.
    #[test]
    fn descriptors_travel_and_a_barrier_is_waited_for() {
        let (socket, notifier) = manager("store");
        let (ours, _theirs) = io::pipe().unwrap();
        notifier.store("bundle", &[ours.as_fd()]).unwrap();
        assert_eq!(next(&socket), "FDSTORE=1\nFDNAME=bundle\nFDPOLL=0\n");
        let begin = Instant::now();
        let patience = Duration::from_millis(200);
        std::thread::scope(|scope| {
            // Received without its descriptor, which the kernel then closes.
            scope.spawn(|| assert_eq!(next(&socket), "BARRIER=1\n"));
            notifier.synchronize(Duration::from_secs(5)).unwrap();
        });
        let late = notifier.synchronize(patience).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= patience);
    }

    #[test]
    fn a_newline_cannot_inject_a_field() {
        let (socket, notifier) = manager("newline");
        notifier.status("a\nREADY=1\r\0b");
        assert_eq!(next(&socket), "STATUS=a READY=1  b\n");
    }

    #[test]
    fn a_pathname_works_too() {
        let path = std::env::temp_dir().join(format!("echo-uring-notify-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        Notifier::new(Some(path.clone().into()), None).watchdog();
        let message = next(&socket);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(message, "WATCHDOG=1\n");
    }

    #[test]
    fn nobody_there_is_survived() {
        for address in ["", "/nonexistent/notify", "@echo-uring-nobody", "vsock:2:9999"] {
            let notifier = Notifier::new(Some(address.into()), None);
            notifier.ready("x");
            assert_eq!(
                notifier.failing.load(Ordering::Relaxed),
                !address.is_empty(),
                "{address:?}"
            );
        }
        Notifier::new(None, None).ready("x");
    }

    #[test]
    fn a_stuck_manager_does_not_hold_up_the_daemon() {
        let (_socket, notifier) = manager("stuck");
        let begin = Instant::now();
        while !notifier.failing.load(Ordering::Relaxed) {
            notifier.status("fills the queue");
            assert!(begin.elapsed() < Duration::from_secs(10), "the queue never filled");
        }
        let begin = Instant::now();
        notifier.status("lost");
        notifier.watchdog();
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
}
