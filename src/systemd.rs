//! What the daemon tells systemd: ready, status, watchdog, stopping (sd_notify(3)).
//!
//! Messages are spelled by the sd-notify crate (here alone) but sent from here: the crate sends
//! without a time limit and does not know abstract addresses, and a service manager that is slow or
//! gone must never hold up or end the daemon. Without `NOTIFY_SOCKET` every call is a silent no-op.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

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

    /// Starting or stopping will take up to `time` from now; at most 71 minutes can be told.
    pub fn extend_timeout(&self, time: Duration) {
        let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::ExtendTimeoutUsec(microseconds)], PATIENCE_FOR_STATE);
    }

    /// The start failed with the system error `errno`.
    pub fn failed(&self, errno: u32, status: &str) {
        let status = one_line(status);
        self.tell(&[NotifyState::Errno(errno), NotifyState::Status(&status)], PATIENCE_FOR_STATE);
    }

    fn tell(&self, states: &[NotifyState<'_>], patience: Duration) {
        let Some(address) = &self.socket else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        match send(address, message.as_bytes(), patience) {
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
fn send(address: &OsStr, message: &[u8], patience: Duration) -> io::Result<()> {
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
    socket.send(message).map(|_| ())
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
        assert_eq!(next(&socket), "EXTEND_TIMEOUT_USEC=4294967295\n");
        notifier.failed(98, "address in use");
        assert_eq!(next(&socket), "ERRNO=98\nSTATUS=address in use\n");
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
