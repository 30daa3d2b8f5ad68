//! Notifications to systemd: ready, status, watchdog, stopping (sd_notify(3)).
//!
//! The sd-notify crate (used here only) formats the messages; `channel` sends them. The crate
//! itself opens a new socket for each message, which fails when no descriptor is free; it sends
//! without a time limit; and it gives up on EINTR. A slow, unresponsive or missing service manager
//! must never delay or end the daemon, and a watchdog ping must not depend on a free descriptor.
//! Without `NOTIFY_SOCKET` every call does nothing.

pub mod account;
pub mod bus;
mod channel;
pub mod units;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use self::channel::{Channel, Kind};

/// How long descriptors for the store may wait while the service manager's queue is full.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the process waits at its end for the last messages to be received.
const FINISH_TIMEOUT: Duration = Duration::from_millis(500);
/// The maximum length of STATUS= in bytes. systemd ignores messages of more than 4,096 bytes
/// (`NOTIFY_BUFFER_MAX`) completely, including READY=1.
pub const STATUS_BYTES_MAX: usize = 1024;

/// The connection to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    channel: Option<Channel>,
    watchdog_interval: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, and makes the socket.
    #[must_use]
    pub fn from_env() -> Self {
        let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        Self::new(std::env::var_os("NOTIFY_SOCKET"), limit.map(|limit| limit / 2))
    }

    fn new(address: Option<OsString>, watchdog_interval: Option<Duration>) -> Self {
        let address = address.filter(|address| !address.is_empty());
        Self { channel: address.map(Channel::new), watchdog_interval }
    }

    /// How often [`Self::watchdog`] must be called: half the time after which systemd kills the
    /// service. `None` if there is no watchdog for this process.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval
    }

    /// Every worker has armed its listeners.
    pub fn ready(&self, status: &str) {
        self.tell(Kind::State, &[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// A reload begins; [`Self::ready`] ends it, whether it succeeds or not.
    pub fn reloading(&self) {
        // The time tells systemd which of several reloads this is.
        let time = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
        self.tell(Kind::State, &[NotifyState::Reloading, time]);
    }

    /// Sets the text that `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.tell(Kind::Status, &[NotifyState::Status(&one_line(status))]);
    }

    /// Every worker has completed an iteration since the last call.
    pub fn watchdog(&self) {
        self.tell(Kind::Ping, &[NotifyState::Watchdog]);
    }

    /// The drain has begun.
    pub fn stopping(&self, status: &str) {
        self.tell(Kind::State, &[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// Starting or stopping will take up to `time` from now. Formatted here, because the crate has
    /// 32 bits for it, which is 71 minutes, and systemd 64: a lead and a drain of an hour each need
    /// more.
    pub fn extend_timeout(&self, time: Duration) {
        let field = format!("EXTEND_TIMEOUT_USEC={}", time.as_micros());
        self.tell(Kind::State, &[NotifyState::Custom(&field)]);
    }

    /// The start failed with the system error `errno`.
    pub fn failed(&self, errno: u32, status: &str) {
        let status = one_line(status);
        self.tell(Kind::State, &[NotifyState::Errno(errno), NotifyState::Status(&status)]);
    }

    /// Whether there is a service manager.
    #[must_use]
    pub fn has_manager(&self) -> bool {
        self.channel.is_some()
    }

    /// Asks the service manager to store copies of `descriptors` for the next process, under
    /// `name`. There is no answer; see [`Self::synchronize`].
    ///
    /// # Errors
    /// When they cannot be sent, or its queue stays full for ten seconds.
    pub fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // With FDPOLL=1, the default, it would poll them, find that the other end of each is
        // closed, and drop them at once.
        let states =
            [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        let channel = self.channel.as_ref().ok_or(ErrorKind::NotConnected)?;
        channel.send_now(&spell(&states), descriptors, channel.until(STORE_TIMEOUT))
    }

    /// Asks the service manager to remove the descriptors that it stores under `name`.
    pub fn forget(&self, name: &str) {
        self.tell(Kind::State, &[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    /// Waits until the service manager has processed all messages sent so far.
    ///
    /// # Errors
    /// When it has not within `timeout`, or before the moment set by [`Self::limit_waits`]. At once
    /// if it is known to be unresponsive.
    pub fn synchronize(&self, timeout: Duration) -> io::Result<()> {
        let channel = self.channel.as_ref().ok_or(ErrorKind::NotConnected)?;
        let until = channel.until(timeout);
        let (ours, theirs) = io::pipe()?;
        let barrier = spell(&[NotifyState::Custom("BARRIER=1")]);
        channel.send_now(&barrier, &[theirs.as_fd()], until)?;
        drop(theirs);
        // It closes its copy when it processes this message, and ours is closed already.
        channel.wait_for_hang_up(ours.as_fd(), until)
    }

    /// All waits for the service manager end at `moment`: a stop has one time limit for all of
    /// them.
    pub fn limit_waits(&self, moment: Instant) {
        if let Some(channel) = &self.channel {
            channel.limit_waits(moment);
        }
    }

    /// The descriptor that becomes writable when queued messages can be sent.
    #[must_use]
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().and_then(Channel::waiting)
    }

    /// Sends queued messages, as far as possible without blocking. Costs nothing if there are none.
    pub fn flush(&self) {
        if let Some(channel) = &self.channel {
            channel.flush();
        }
    }

    /// Waits a moment at the end of the process for the last messages to be received.
    pub fn finish(&self) {
        if let Some(channel) = &self.channel {
            // A failure cannot be reported to a service manager that does not read.
            let _ = channel.flush_until(channel.until(FINISH_TIMEOUT));
        }
    }

    fn tell(&self, kind: Kind, states: &[NotifyState<'_>]) {
        if let Some(channel) = &self.channel {
            channel.send(kind, spell(states));
        }
    }
}

fn spell(states: &[NotifyState<'_>]) -> String {
    states.iter().map(|state| format!("{state}\n")).collect()
}

/// One line of at most [`STATUS_BYTES_MAX`] bytes. Control characters are escaped, because a
/// newline would start a new field of the message, and others could disturb a terminal.
fn one_line(text: &str) -> String {
    const ELLIPSIS: &str = "…";
    // Where the line is cut if it is too long.
    let (mut line, mut cut) = (String::new(), 0);
    for character in text.chars() {
        if character.is_control() {
            // Writing to memory cannot fail.
            let _ = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
        if line.len() > STATUS_BYTES_MAX {
            line.truncate(cut);
            return line + ELLIPSIS;
        }
        if line.len() <= STATUS_BYTES_MAX - ELLIPSIS.len() {
            cut = line.len();
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn manager(name: &str) -> (UnixDatagram, Notifier) {
        let name = format!("echo-uring-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (socket, Notifier::new(Some(format!("@{name}").into()), None))
    }

    /// A process cannot safely change its own environment, so the test starts itself again.
    #[test]
    fn the_environment_says_where_and_how_often() {
        const EXPECTED: &str = "ECHO_URING_TEST_EXPECTED";
        if let Ok(expected) = std::env::var(EXPECTED) {
            let notifier = Notifier::from_env();
            let found = format!(
                "{:?} {:?}",
                notifier.channel.as_ref().map(Channel::address),
                notifier.watchdog_interval()
            );
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

    /// Stored descriptors are not polled, and a barrier ends when its descriptor is closed.
    #[test]
    fn descriptors_travel_and_a_barrier_is_waited_for() {
        let (socket, notifier) = manager("store");
        let (ours, _theirs) = io::pipe().unwrap();
        notifier.store("bundle", &[ours.as_fd()]).unwrap();
        assert_eq!(next(&socket), "FDSTORE=1\nFDNAME=bundle\nFDPOLL=0\n");
        let begin = Instant::now();
        let timeout = Duration::from_millis(200);
        std::thread::scope(|scope| {
            // Received without its descriptor, which the kernel then closes.
            scope.spawn(|| assert_eq!(next(&socket), "BARRIER=1\n"));
            notifier.synchronize(Duration::from_secs(5)).unwrap();
        });
        let late = notifier.synchronize(timeout).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= timeout);
    }

    #[test]
    fn a_newline_cannot_inject_a_field() {
        let (socket, notifier) = manager("newline");
        notifier.status("a\nREADY=1\r\0b");
        assert_eq!(next(&socket), "STATUS=a\\nREADY=1\\r\\u{0}b\n");
    }

    /// systemd ignores a message of more than 4,096 bytes, with all that is in it.
    #[test]
    fn a_long_status_is_cut_where_systemd_still_reads_it() {
        for text in ["x".repeat(9_000), "ü".repeat(9_000), "\n".repeat(9_000), "€".repeat(9_000)]
        {
            let line = one_line(&text);
            assert!(line.len() <= STATUS_BYTES_MAX && line.len() > STATUS_BYTES_MAX - 16);
            assert!(line.ends_with('…'), "{line}");
        }
        assert_eq!(one_line(&"x".repeat(STATUS_BYTES_MAX)), "x".repeat(STATUS_BYTES_MAX));
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
            let failing = notifier.channel.as_ref().is_some_and(|it| it.failing.get());
            assert_eq!(failing, !address.is_empty(), "{address:?}");
        }
        Notifier::new(None, None).ready("x");
    }

    /// Fills the service manager's queue.
    fn fill(name: &str) -> UnixDatagram {
        let name = format!("echo-uring-test-{name}-{}", std::process::id());
        let filler = UnixDatagram::unbound().unwrap();
        filler.connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        filler.set_nonblocking(true).unwrap();
        while filler.send(b"x").is_ok() {}
        filler
    }

    /// All messages in the queue of a service manager that has not read for a while, except
    /// fillers.
    fn read_all(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut buffer = [0; 512];
        while let Ok(length) = socket.recv(&mut buffer) {
            messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        messages.retain(|message| message != "x");
        messages
    }

    /// Goal: no message waits for a service manager that does not read. When it reads again, it
    /// gets the messages that are still relevant, in order.
    #[test]
    fn an_unresponsive_manager_blocks_nothing_and_gets_relevant_messages_later() {
        let (socket, notifier) = manager("stuck");
        let _filler = fill("stuck");
        let begin = Instant::now();
        notifier.ready("0 connections");
        for count in 0..100 {
            notifier.status(&format!("{count} connections"));
            notifier.watchdog();
        }
        notifier.stopping("draining");
        notifier.extend_timeout(Duration::from_secs(1));
        assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
        assert!(notifier.waiting().is_some());
        assert_eq!(read_all(&socket), [""; 0]);
        notifier.flush();
        assert!(notifier.waiting().is_none());
        let heard = read_all(&socket);
        let expected = [
            "READY=1\nSTATUS=0 connections\n",
            "STATUS=99 connections\n",
            "WATCHDOG=1\n",
            "STOPPING=1\nSTATUS=draining\n",
            "EXTEND_TIMEOUT_USEC=1000000\n",
        ];
        assert_eq!(heard, expected);
    }

    /// Goal: after a wait that timed out there is no further wait for a while, and all waits of a
    /// stop together stay within its time limit.
    #[test]
    fn an_unresponsive_manager_is_waited_for_once() {
        let (_socket, notifier) = manager("unresponsive");
        let _filler = fill("unresponsive");
        let begin = Instant::now();
        let timeout = Duration::from_millis(200);
        assert!(notifier.synchronize(timeout).is_err());
        assert!(begin.elapsed() >= timeout);
        assert!(notifier.synchronize(Duration::from_secs(3_600)).is_err());
        assert!(notifier.store("bundle", &[]).is_err());
        notifier.stopping("the end");
        notifier.finish();
        assert!(begin.elapsed() < 2 * timeout, "{:?}", begin.elapsed());

        let (_socket, notifier) = manager("budget");
        let _filler = fill("budget");
        notifier.limit_waits(Instant::now() + timeout);
        let begin = Instant::now();
        assert!(notifier.store("bundle", &[]).is_err());
        notifier.finish();
        assert!(begin.elapsed() < 2 * timeout, "{:?}", begin.elapsed());
    }

    /// Goal: a service manager that makes its socket anew is found again.
    #[test]
    fn a_manager_that_comes_again_is_told() {
        let (socket, notifier) = manager("again");
        notifier.status("one");
        assert_eq!(next(&socket), "STATUS=one\n");
        drop(socket);
        notifier.ready("two");
        assert!(notifier.channel.as_ref().unwrap().failing.get());
        let name = notifier.channel.as_ref().unwrap().address().to_owned();
        let socket = UnixDatagram::bind_addr(&channel::parse(&name).unwrap()).unwrap();
        notifier.watchdog();
        assert_eq!(next(&socket), "READY=1\nSTATUS=two\n");
        assert_eq!(next(&socket), "WATCHDOG=1\n");
    }
}
