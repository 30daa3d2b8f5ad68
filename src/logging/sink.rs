//! The destination of log messages: the socket of the journal or of syslog, or standard error.
//!
//! Only the log thread uses this module. It may wait for a socket for a limited time: a stalled
//! journal costs messages, but does not block the thread.
//!
//! The journal's protocol is a datagram of `NAME=value` lines (systemd's "Native Journal
//! Protocol"). Values here have no line ends and are short, so its two other forms, the
//! length-prefixed value and the sealed memfd, are not needed.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::Level;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

use super::Line;

/// The syslog identifier.
const IDENTIFIER: &str = "echo-uring";
/// How long one message may wait for a stalled socket.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How soon a failed connection is retried; until then messages go to standard error.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

pub(super) enum Sink {
    /// Lines begin with `<N>` if the journal reads them, else with the name of the level.
    Stderr { journal: bool },
    /// `connection` is absent while the socket is unavailable; `retry_at` is the time of the next
    /// attempt.
    Socket {
        peer: Peer,
        path: PathBuf,
        connection: Option<Connection>,
        retry_at: Instant,
        journal: bool,
    },
}

/// The reader of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Journal,
    Syslog,
}

pub(super) enum Connection {
    Journal(UnixDatagram),
    Syslog(Logger<LoggerBackend, Formatter3164>),
}

impl Sink {
    pub(super) fn socket(peer: Peer, path: PathBuf, journal: bool) -> Self {
        Self::Socket { peer, path, connection: None, retry_at: Instant::now(), journal }
    }

    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        let (peer, path, connection, retry_at, journal) = match self {
            Self::Stderr { journal } => return write_stderr(*journal, line),
            Self::Socket { peer, path, connection, retry_at, journal } => {
                (*peer, path, connection, retry_at, *journal)
            }
        };
        // The second attempt is for a socket that was replaced, as by a restart of the syslog
        // daemon.
        for _ in 0..2 {
            if connection.is_none() && Instant::now() >= *retry_at {
                *retry_at = Instant::now() + RECONNECT_INTERVAL;
                *connection = Connection::to(peer, path);
            }
            let Some(open) = connection else { break };
            match open.send(line) {
                // A stalled journal does not read standard error either, so the message is lost.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => *connection = None,
                Ok(()) => return Ok(()),
            }
        }
        write_stderr(journal, line)
    }
}

impl Connection {
    fn to(peer: Peer, path: &Path) -> Option<Self> {
        match peer {
            Peer::Journal => {
                let socket = UnixDatagram::unbound().ok()?;
                socket.set_write_timeout(Some(TIMEOUT)).ok()?;
                socket.connect(path).ok()?;
                Some(Self::Journal(socket))
            }
            Peer::Syslog => syslog(path).map(Self::Syslog),
        }
    }

    /// The kernel does not restart a send with a timeout after a signal or a freeze (signal(7)).
    fn send(&mut self, line: &Line) -> io::Result<()> {
        loop {
            match self.try_send(line) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    fn try_send(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Self::Journal(socket) => socket.send(journal_entry(line).as_bytes()).map(drop),
            Self::Syslog(logger) => {
                let text = &line.text;
                let outcome = match line.level {
                    Level::Error => logger.err(text),
                    Level::Warn => logger.warning(text),
                    Level::Info => logger.info(text),
                    Level::Debug | Level::Trace => logger.debug(text),
                };
                outcome.map_err(|error| match error {
                    syslog::Error::Write(error) | syslog::Error::Io(error) => error,
                    other => io::Error::other(other.to_string()),
                })
            }
        }
    }
}

fn syslog(path: &Path) -> Option<Logger<LoggerBackend, Formatter3164>> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: IDENTIFIER.to_owned(),
        pid: std::process::id(),
    };
    let logger = syslog::unix_custom(formatter, path).ok()?;
    match &logger.backend {
        LoggerBackend::Unix(socket) => socket.set_write_timeout(Some(TIMEOUT)),
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_write_timeout(Some(TIMEOUT)),
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => {
            unreachable!("a path leads to a Unix socket")
        }
    }
    .ok()?;
    Some(logger)
}

fn journal_entry(line: &Line) -> String {
    let Line { level, text, fields } = line;
    let (priority, facility) = (priority(*level), Facility::LOG_DAEMON as u32 >> 3);
    format!(
        "PRIORITY={priority}\nSYSLOG_FACILITY={facility}\nSYSLOG_IDENTIFIER={IDENTIFIER}\n\
         MESSAGE={text}\n{fields}"
    )
}

/// Uses one write(2), so that lines of several threads or processes do not mix.
fn write_stderr(journal: bool, line: &Line) -> io::Result<()> {
    io::stderr().write_all(stderr_line(journal, line).as_bytes())
}

fn stderr_line(journal: bool, Line { level, text, .. }: &Line) -> String {
    if journal {
        return format!("{}{text}\n", prefix(*level));
    }
    format!("{} {text}\n", level.as_str().to_ascii_lowercase())
}

/// The prefix of a line for the journal (sd-daemon(3)).
fn prefix(level: Level) -> String {
    format!("<{}>", priority(level))
}

/// The priorities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Writes an error to standard error when there is no log yet. The prefix tells the journal that it
/// is an error. A failed write is ignored.
pub fn complain(text: &str) {
    let severity = if stderr_is_journal() { prefix(Level::Error) } else { String::new() };
    let _ = io::stderr().write_all(format!("{severity}{text}\n").as_bytes());
}

pub(super) fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM");
    stream.is_ok_and(|stream| leads_to(io::stderr().as_fd(), &stream))
}

/// `JOURNAL_STREAM` contains device and inode of the standard error that systemd connected to the
/// journal (systemd.exec(5)). They are compared because a shell that redirects standard error does
/// not unset the variable.
fn leads_to(file: BorrowedFd<'_>, stream: &str) -> bool {
    nix::sys::stat::fstat(file)
        .is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::thread;

    /// A syslog daemon, or a journal, in a directory of its own.
    pub(in crate::logging) struct Daemon {
        pub(in crate::logging) path: PathBuf,
        pub(in crate::logging) socket: UnixDatagram,
    }

    impl Daemon {
        pub(in crate::logging) fn new(name: &str) -> Self {
            let name = format!("echo-uring-syslog-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let socket = Self::bind(&path);
            Self { path, socket }
        }

        fn bind(path: &Path) -> UnixDatagram {
            let _ = std::fs::remove_file(path);
            let socket = UnixDatagram::bind(path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        }

        /// Without the time of day: `<30>Nov 22 18:00:00 echo-uring[1]: ready` gives `<30>
        /// echo-uring[1]: ready`.
        pub(in crate::logging) fn next(&self) -> String {
            let text = self.whole();
            let (priority, rest) = text.split_once('>').unwrap();
            format!("{priority}>{}", &rest["Nov 22 18:00:00".len()..])
        }

        /// The datagram, byte by byte.
        pub(in crate::logging) fn whole(&self) -> String {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    pub(in crate::logging) fn expected(priority: u8, text: &str) -> String {
        format!("<{priority}> echo-uring[{}]: {text}", std::process::id())
    }

    fn line(level: Level, text: &str) -> Line {
        Line { level, text: text.to_owned(), fields: "ECHO_URING_COUNT=1\n".to_owned() }
    }

    #[test]
    fn a_replaced_syslog_socket_is_found_again() {
        let mut daemon = Daemon::new("replaced");
        let mut sink = Sink::socket(Peer::Syslog, daemon.path.clone(), false);
        sink.write(&line(Level::Info, "one")).unwrap();
        assert_eq!(daemon.next(), expected(30, "one"));
        daemon.socket = Daemon::bind(&daemon.path);
        thread::sleep(RECONNECT_INTERVAL);
        sink.write(&line(Level::Info, "two")).unwrap();
        assert_eq!(daemon.next(), expected(30, "two"));
    }

    #[test]
    fn without_a_reader_lines_go_to_stderr() {
        for peer in [Peer::Syslog, Peer::Journal] {
            let mut sink = Sink::socket(peer, "/nonexistent/log".into(), false);
            sink.write(&line(Level::Debug, "this line of a test goes to stderr")).unwrap();
            assert!(matches!(sink, Sink::Socket { connection: None, .. }));
        }
    }

    /// Goal: a stalled journal costs at most one message a second, and never blocks the thread.
    #[test]
    fn a_stalled_journal_is_not_waited_for_for_ever() {
        let journal = Daemon::new("stalled");
        let mut sink = Sink::socket(Peer::Journal, journal.path.clone(), false);
        let begin = Instant::now();
        let mut written = 0;
        while sink.write(&line(Level::Info, "are you there?")).is_ok() {
            written += 1;
            assert!(written < 100_000, "this socket is never full");
        }
        assert!(begin.elapsed() >= TIMEOUT && begin.elapsed() < 10 * TIMEOUT);
        assert!(matches!(sink, Sink::Socket { connection: Some(_), .. }));
    }

    /// Goal: a journal that is stalled at connect time is handled in the same way.
    #[test]
    fn a_journal_that_was_stalled_before_is_not_taken_for_a_broken_one() {
        let journal = Daemon::new("stalled-before");
        let mut first = Sink::socket(Peer::Journal, journal.path.clone(), false);
        while first.write(&line(Level::Info, "are you there?")).is_ok() {}
        let mut second = Sink::socket(Peer::Journal, journal.path.clone(), false);
        let outcome = second.write(&line(Level::Info, "and now?"));
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(matches!(second, Sink::Socket { connection: Some(_), .. }));
    }

    #[test]
    fn stderr_lines_begin_with_what_the_reader_needs() {
        assert_eq!(stderr_line(false, &line(Level::Info, "ready")), "info ready\n");
        assert_eq!(stderr_line(false, &line(Level::Warn, "x")), "warn x\n");
        for (level, written) in [(Level::Error, "<3>x\n"), (Level::Warn, "<4>x\n")] {
            assert_eq!(stderr_line(true, &line(level, "x")), written);
        }
        for (level, written) in [(Level::Info, "<6>x\n"), (Level::Trace, "<7>x\n")] {
            assert_eq!(stderr_line(true, &line(level, "x")), written);
        }
    }

    #[test]
    fn only_the_very_stream_of_the_journal_counts() {
        use std::os::unix::fs::MetadataExt;
        let daemon = Daemon::new("stream");
        let file = std::fs::File::open("/dev/null").unwrap();
        let (device, inode) = (file.metadata().unwrap().dev(), file.metadata().unwrap().ino());
        assert!(leads_to(file.as_fd(), &format!("{device}:{inode}")));
        for stream in [format!("{device}:{}", inode + 1), format!("{inode}"), String::new()] {
            assert!(!leads_to(file.as_fd(), &stream), "{stream}");
        }
        assert!(!leads_to(daemon.socket.as_fd(), &format!("{device}:{inode}")));
    }
}
