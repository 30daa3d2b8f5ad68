//! Where log lines end: the syslog socket, or standard error.
//!
//! Only the log thread comes here. It may wait for syslog, but for a limited time: a stalled
//! journal costs lines, not the thread.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::Level;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// How long one line may wait for a stalled syslog socket.
const SYSLOG_PATIENCE: Duration = Duration::from_secs(1);
/// How soon a syslog socket that refused us is tried again; until then lines go to standard error.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

pub(super) enum Sink {
    /// Lines begin with `<N>` if the journal reads them, else with the level's name.
    Stderr { journal: bool },
    /// `connection` is absent while the socket cannot be reached; `retry_at` says when it is next
    /// tried.
    Syslog { path: PathBuf, connection: Option<Connection>, retry_at: Instant, journal: bool },
}

type Connection = Logger<LoggerBackend, Formatter3164>;

impl Sink {
    pub(super) fn syslog(path: PathBuf, journal: bool) -> Self {
        Self::Syslog { path, connection: None, retry_at: Instant::now(), journal }
    }

    pub(super) fn write(&mut self, level: Level, line: &str) -> io::Result<()> {
        let (path, connection, retry_at, journal) = match self {
            Self::Stderr { journal } => return write_stderr(*journal, level, line),
            Self::Syslog { path, connection, retry_at, journal } => {
                (path, connection, retry_at, *journal)
            }
        };
        if let Some(old) = connection {
            match send(old, level, line) {
                // A stalled journal reads standard error no sooner, so the line is lost.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // The socket was replaced, as by a restart of the syslog daemon.
                Err(_) => *connection = None,
                Ok(()) => return Ok(()),
            }
        }
        if Instant::now() >= *retry_at {
            *retry_at = Instant::now() + RECONNECT_INTERVAL;
            *connection = connect(path);
            if let Some(new) = connection
                && send(new, level, line).is_ok()
            {
                return Ok(());
            }
            *connection = None;
        }
        write_stderr(journal, level, line)
    }
}

fn connect(path: &Path) -> Option<Connection> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "echo-uring".to_owned(),
        pid: std::process::id(),
    };
    let connection = syslog::unix_custom(formatter, path).ok()?;
    match &connection.backend {
        LoggerBackend::Unix(socket) => socket.set_write_timeout(Some(SYSLOG_PATIENCE)),
        LoggerBackend::UnixStream(stream) => {
            stream.get_ref().set_write_timeout(Some(SYSLOG_PATIENCE))
        }
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(_) => {
            unreachable!("a path leads to a Unix socket")
        }
    }
    .ok()?;
    Some(connection)
}

fn send(connection: &mut Connection, level: Level, line: &str) -> io::Result<()> {
    let outcome = match level {
        Level::Error => connection.err(line),
        Level::Warn => connection.warning(line),
        Level::Info => connection.info(line),
        Level::Debug | Level::Trace => connection.debug(line),
    };
    outcome.map_err(|error| match error {
        syslog::Error::Write(error) | syslog::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    })
}

/// In one write(2): lines of several threads or processes must not mix.
fn write_stderr(journal: bool, level: Level, line: &str) -> io::Result<()> {
    io::stderr().write_all(stderr_line(journal, level, line).as_bytes())
}

fn stderr_line(journal: bool, level: Level, line: &str) -> String {
    if !journal {
        return format!("{} {line}\n", level.as_str().to_ascii_lowercase());
    }
    // The priorities of syslog(3), as sd-daemon(3) wants them.
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    format!("<{priority}>{line}\n")
}

pub(super) fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM");
    stream.is_ok_and(|stream| leads_to(io::stderr().as_fd(), &stream))
}

/// `JOURNAL_STREAM` holds device and inode of the standard error that systemd connected to the
/// journal (systemd.exec(5)). A shell that redirects standard error leaves the variable behind,
/// hence the comparison.
fn leads_to(file: BorrowedFd<'_>, stream: &str) -> bool {
    nix::sys::stat::fstat(file)
        .is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::thread;

    /// A syslog daemon in a directory of its own.
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
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            let (priority, rest) = text.split_once('>').unwrap();
            format!("{priority}>{}", &rest["Nov 22 18:00:00".len()..])
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

    #[test]
    fn a_replaced_syslog_socket_is_found_again() {
        let mut daemon = Daemon::new("replaced");
        let mut sink = Sink::syslog(daemon.path.clone(), false);
        sink.write(Level::Info, "one").unwrap();
        assert_eq!(daemon.next(), expected(30, "one"));
        daemon.socket = Daemon::bind(&daemon.path);
        thread::sleep(RECONNECT_INTERVAL);
        sink.write(Level::Info, "two").unwrap();
        assert_eq!(daemon.next(), expected(30, "two"));
    }

    #[test]
    fn without_syslog_lines_go_to_stderr() {
        let mut sink = Sink::syslog("/nonexistent/log".into(), false);
        sink.write(Level::Debug, "this line of a test goes to stderr").unwrap();
        assert!(matches!(sink, Sink::Syslog { connection: None, .. }));
    }

    #[test]
    fn stderr_lines_begin_with_what_the_reader_needs() {
        assert_eq!(stderr_line(false, Level::Info, "ready"), "info ready\n");
        assert_eq!(stderr_line(false, Level::Warn, "x"), "warn x\n");
        for (level, line) in [(Level::Error, "<3>x\n"), (Level::Warn, "<4>x\n")] {
            assert_eq!(stderr_line(true, level, "x"), line);
        }
        for (level, line) in [(Level::Info, "<6>x\n"), (Level::Trace, "<7>x\n")] {
            assert_eq!(stderr_line(true, level, "x"), line);
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
