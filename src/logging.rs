//! From the `log` facade to syslog or standard error, without ever holding up a caller.
//!
//! Callers put a finished line into a bounded queue or, if it is full, count it as dropped. One thread owns the sink and
//! alone waits for it: journald may stall, and with it any write to `/dev/log` or to a standard error that leads there.
//! The syslog crate is known here alone. Payload bytes never come here; what does come is escaped, since part of it may
//! have been chosen by others.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// Lines that may wait for the sink. A burst at start or stop is a few dozen; a flood is not worth more memory.
const QUEUE_LINES_MAX: usize = 1024;
/// A longer line (bytes) is cut: it must fit into one datagram.
const LINE_LENGTH_MAX: usize = 2048;
const SYSLOG_PATH: &str = "/dev/log";
/// How long one line may wait for a stalled syslog socket.
const SYSLOG_PATIENCE: Duration = Duration::from_secs(1);
/// How soon a syslog socket that refused us is tried again; until then lines go to standard error.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// How often a full queue is looked at by [`Handle::finish`].
const FINISH_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Syslog if standard error leads to the journal, else standard error.
    Auto,
    /// The socket `/dev/log`; standard error while that cannot be reached.
    Syslog,
    /// Standard error.
    Stderr,
}

/// Why logging could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The log thread could not be started.
    Thread(io::Error),
    /// Logging was started before.
    Twice,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Thread(error) => write!(
                formatter,
                "cannot start the log thread: {error}; raise TasksMax= or the limit on processes"
            ),
            Self::Twice => formatter.write_str("logging is started twice: this is a defect"),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts the log thread and makes it the sink of the `log` facade for lines of `level` and graver. From here on errors
/// go through the facade; what was said before must have gone to standard error.
pub fn start(target: Target, level: LevelFilter) -> Result<Handle, StartError> {
    let journal = stderr_is_journal();
    let sink = match (target, journal) {
        (Target::Stderr, _) | (Target::Auto, false) => Sink::Stderr { journal },
        (Target::Syslog, _) | (Target::Auto, true) => Sink::syslog(SYSLOG_PATH.into(), journal),
    };
    let (queue, handle) = queue(level, sink).map_err(StartError::Thread)?;
    log::set_boxed_logger(Box::new(queue)).map_err(|_| StartError::Twice)?;
    log::set_max_level(level);
    Ok(handle)
}

/// The way to the log thread for those who end the process.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: SyncSender<Order>,
}

impl Handle {
    /// Waits until every line logged so far is written, at most `timeout`. Says whether it is.
    pub fn finish(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let (done, written) = channel();
        let mut order = Order::Flush(done);
        loop {
            match self.orders.try_send(order) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => order = back,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return false,
            }
            thread::sleep(FINISH_RETRY_INTERVAL);
        }
        written.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

#[derive(Debug)]
enum Order {
    Line(Level, String),
    Flush(Sender<()>),
}

/// The producers' end.
struct Queue {
    level: LevelFilter,
    orders: SyncSender<Order>,
    dropped: Arc<AtomicU64>,
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = printable(&record.args().to_string());
        if self.orders.try_send(Order::Line(record.level(), line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A caller of the facade must not wait; [`Handle::finish`] is for those who may.
    fn flush(&self) {}
}

fn queue(level: LevelFilter, sink: Sink) -> io::Result<(Queue, Handle)> {
    let (orders, inbox) = sync_channel(QUEUE_LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = Writer { sink, dropped: Arc::clone(&dropped) };
    thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&inbox))?;
    Ok((Queue { level, orders: orders.clone(), dropped }, Handle { orders }))
}

/// The log thread.
struct Writer {
    sink: Sink,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Order>) {
        for order in inbox {
            match order {
                Order::Line(level, line) => self.write(level, &line),
                Order::Flush(done) => {
                    self.report_dropped();
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, level: Level, line: &str) {
        match self.sink.write(level, line) {
            Ok(()) => self.report_dropped(),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn report_dropped(&mut self) {
        let count = self.dropped.swap(0, Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let lines = if count == 1 { "line" } else { "lines" };
        if self.sink.write(Level::Warn, &format!("{count} log {lines} dropped")).is_err() {
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

enum Sink {
    /// Lines begin with `<N>` if the journal reads them, else with the level's name.
    Stderr { journal: bool },
    /// `connection` is absent while the socket cannot be reached; `retry_at` says when it is next tried.
    Syslog { path: PathBuf, connection: Option<Connection>, retry_at: Instant, journal: bool },
}

type Connection = Logger<LoggerBackend, Formatter3164>;

impl Sink {
    fn syslog(path: PathBuf, journal: bool) -> Self {
        Self::Syslog { path, connection: None, retry_at: Instant::now(), journal }
    }

    fn write(&mut self, level: Level, line: &str) -> io::Result<()> {
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

/// `JOURNAL_STREAM` holds device and inode of the standard error that systemd connected to the journal (systemd.exec(5)).
/// A shell that redirects standard error leaves the variable behind, hence the comparison.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(file) = nix::sys::stat::fstat(io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", file.st_dev, file.st_ino)
}

/// `text` on one line, without characters that move the cursor or hide others, cut to a datagram's length.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if line.len() + character.len_utf8() > LINE_LENGTH_MAX {
            line.push('…');
            break;
        }
        let steers = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || steers {
            write!(line, "{}", character.escape_default()).expect("invariant: a String takes it");
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// A syslog daemon in a directory of its own.
    struct Daemon {
        path: PathBuf,
        socket: UnixDatagram,
    }

    impl Daemon {
        fn new(name: &str) -> Self {
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

        /// Without the time of day: `<30>Nov 22 18:00:00 echo-uring[1]: ready` gives `<30> echo-uring[1]: ready`.
        fn next(&self) -> String {
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

    fn say(queue: &Queue, level: Level, text: &str) {
        queue.log(&Record::builder().level(level).args(format_args!("{text}")).build());
    }

    fn expected(priority: u8, text: &str) -> String {
        format!("<{priority}> echo-uring[{}]: {text}", std::process::id())
    }

    #[test]
    fn lines_reach_syslog_with_facility_priority_and_name() {
        let daemon = Daemon::new("lines");
        let (queue, handle) =
            queue(LevelFilter::Debug, Sink::syslog(daemon.path.clone(), false)).unwrap();
        let levels = [(Level::Error, 27), (Level::Warn, 28), (Level::Info, 30), (Level::Debug, 31)];
        for (level, priority) in levels {
            say(&queue, level, "a\nb");
            assert_eq!(daemon.next(), expected(priority, "a\\nb"));
        }
        say(&queue, Level::Trace, "below the level");
        assert!(handle.finish(Duration::from_secs(5)));
        daemon.socket.set_nonblocking(true).unwrap();
        let nothing = daemon.socket.recv(&mut [0; 1]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
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
    fn a_stuck_syslog_never_blocks_a_caller_and_drops_are_reported() {
        let daemon = Daemon::new("stuck");
        let (queue, handle) =
            queue(LevelFilter::Info, Sink::syslog(daemon.path.clone(), false)).unwrap();
        let total = 3 * QUEUE_LINES_MAX as u64;
        let mut slowest = Duration::ZERO;
        for number in 0..total {
            let begin = Instant::now();
            say(&queue, Level::Info, &format!("line {number}"));
            slowest = slowest.max(begin.elapsed());
        }
        assert!(slowest < Duration::from_millis(500), "a caller waited {slowest:?}");
        let begin = Instant::now();
        assert!(!handle.finish(Duration::from_millis(200)), "nobody reads, so nothing is flushed");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());

        // Now somebody reads again: what arrived and what is reported as dropped make up all that was said.
        let (mut arrived, mut dropped) = (0, 0);
        while arrived + dropped < total {
            let line = daemon.next();
            let text = line.split_once(": ").unwrap().1;
            match text.split_once(" log line") {
                Some((count, _)) => dropped += count.parse::<u64>().unwrap(),
                None => arrived += 1,
            }
        }
        assert_eq!(arrived + dropped, total);
        assert!(dropped > 0);
        assert!(handle.finish(Duration::from_secs(5)));
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
    fn nothing_in_a_line_can_steer_a_terminal() {
        assert_eq!(printable("grün\t\u{1b}[31m\r\n"), "grün\\t\\u{1b}[31m\\r\\n");
        assert_eq!(printable("\u{202e}\u{9b}"), "\\u{202e}\\u{9b}");
        let long = printable(&"ä".repeat(LINE_LENGTH_MAX));
        assert!(long.len() <= LINE_LENGTH_MAX + '…'.len_utf8(), "{}", long.len());
        assert!(long.ends_with("ä…"));
    }
}
