//! Logging: from the `log` facade to the journal, syslog or standard error, without blocking a
//! caller.
//!
//! - Callers put a formatted line into a bounded queue. If the queue is full, the line is counted
//!   as dropped.
//! - One thread owns the sink, and only this thread waits for it: journald may stall, and with it
//!   any write to its sockets or to a standard error that is connected to it.
//! - Only this module knows the syslog crate.
//! - Payload bytes never get here. Text is escaped, since parts of it may come from outside.

pub mod events;
mod sink;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
pub use sink::complain;
use sink::{Peer, Sink, stderr_is_journal};

/// The maximum number of queued lines. A burst at start or stop is a few dozen; a flood does not
/// justify more memory.
const QUEUE_LINES_MAX: usize = 1024;
/// The maximum length of a line in bytes; longer lines are cut to fit into one datagram.
const LINE_LENGTH_MAX: usize = 2048;
/// The number of warnings and errors that are kept for monitoring.
const RECENT_MAX: usize = 16;
const SYSLOG_PATH: &str = "/dev/log";
const JOURNAL_PATH: &str = "/run/systemd/journal/socket";
/// How often [`Handle::finish`] retries if the queue is full.
const FINISH_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The journal if standard error is connected to it, else standard error.
    Auto,
    /// The socket `/dev/log`; standard error while that is unavailable.
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
            Self::Twice => formatter.write_str("logging was started twice: this is a defect"),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts the log thread and makes it the sink of the `log` facade for messages of severity `level`
/// and more severe. From here on errors go through the facade; earlier ones must go to standard
/// error.
pub fn start(target: Target, level: LevelFilter) -> Result<Handle, StartError> {
    let (queue, handle) = queue(level, sink(target)).map_err(StartError::Thread)?;
    log::set_boxed_logger(Box::new(queue)).map_err(|_| StartError::Twice)?;
    log::set_max_level(level);
    Ok(handle)
}

fn sink(target: Target) -> Sink {
    let journal = stderr_is_journal();
    match (target, journal) {
        (Target::Stderr, _) | (Target::Auto, false) => Sink::Stderr { journal },
        (Target::Auto, true) => Sink::socket(Peer::Journal, JOURNAL_PATH.into(), journal),
        (Target::Syslog, _) => Sink::socket(Peer::Syslog, SYSLOG_PATH.into(), journal),
    }
}

/// A message of level warn or more severe, kept for monitoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// When it was logged.
    pub at: SystemTime,
    /// Its level.
    pub level: Level,
    /// Its text, escaped as in the log.
    pub text: String,
}

/// The last warnings, oldest first.
#[derive(Clone, Debug, Default)]
struct Recent(Arc<Mutex<VecDeque<Warning>>>);

impl Recent {
    /// Keeps a copy of `line` if it is a warning. Warnings are few: those that peers can cause are
    /// rate-limited.
    fn keep(&self, line: &Line) {
        if line.level > Level::Warn {
            return;
        }
        let warning = Warning { at: SystemTime::now(), level: line.level, text: line.text.clone() };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == RECENT_MAX {
            kept.pop_front();
        }
        kept.push_back(warning);
    }
}

/// The handle of the log thread, to reconfigure it and to flush it at the end of the process.
#[derive(Clone, Debug)]
pub struct Handle {
    recent: Recent,
    orders: SyncSender<Order>,
    level: Arc<AtomicUsize>,
}

impl Handle {
    /// Changes the minimum severity.
    pub fn set_level(&self, level: LevelFilter) {
        self.level.store(level as usize, Ordering::Relaxed);
        log::set_max_level(level);
    }

    /// Changes the target for messages logged after this call. Returns whether it could be changed:
    /// not while the queue is full.
    #[must_use]
    pub fn set_target(&self, target: Target) -> bool {
        self.orders.try_send(Order::Target(target)).is_ok()
    }

    /// The last messages of level warn and more severe, at most 16, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Warning> {
        self.recent.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits until every message logged so far is written, at most `timeout`. Returns whether it
    /// is.
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
    Line(Line),
    Target(Target),
    Flush(Sender<()>),
}

/// One log message.
#[derive(Debug)]
struct Line {
    level: Level,
    text: String,
    /// Additional fields for the journal: `NAME=value` and a line end for each.
    fields: String,
}

impl Line {
    fn of(record: &Record<'_>) -> Self {
        let mut fields = Fields(String::new());
        record.key_values().visit(&mut fields).expect("invariant: writing to a String never fails");
        Self {
            level: record.level(),
            text: printable(&record.args().to_string()),
            fields: fields.0,
        }
    }

    fn warning(text: String) -> Self {
        Self { level: Level::Warn, text, fields: String::new() }
    }
}

struct Fields(String);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let name = match key.as_str() {
            // The only field name that the journal defines.
            "message_id" => "MESSAGE_ID".to_owned(),
            own => format!("ECHO_URING_{}", own.to_ascii_uppercase()),
        };
        Ok(writeln!(self.0, "{name}={}", printable(&value.to_string()))?)
    }
}

/// The sending side.
struct Queue {
    recent: Recent,
    level: Arc<AtomicUsize>,
    orders: SyncSender<Order>,
    dropped: Arc<AtomicU64>,
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() as usize <= self.level.load(Ordering::Relaxed)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = Line::of(record);
        self.recent.keep(&line);
        if self.orders.try_send(Order::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A caller of the facade must not wait. [`Handle::finish`] waits.
    fn flush(&self) {}
}

fn queue(level: LevelFilter, sink: Sink) -> io::Result<(Queue, Handle)> {
    let (orders, inbox) = sync_channel(QUEUE_LINES_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = Writer { sink, dropped: Arc::clone(&dropped) };
    thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&inbox))?;
    let level = Arc::new(AtomicUsize::new(level as usize));
    let recent = Recent::default();
    let handle =
        Handle { recent: recent.clone(), orders: orders.clone(), level: Arc::clone(&level) };
    Ok((Queue { recent, level, orders, dropped }, handle))
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
                Order::Line(line) => self.write(&line),
                Order::Target(target) => self.sink = sink(target),
                Order::Flush(done) => {
                    self.report_dropped();
                    // The caller may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, line: &Line) {
        match self.sink.write(line) {
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
        let line = Line::warning(format!("{count} log {lines} dropped"));
        if self.sink.write(&line).is_err() {
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// `text` on one line, with control characters and bidirectional controls escaped, cut to the
/// length of a datagram.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if line.len() + character.len_utf8() > LINE_LENGTH_MAX {
            line.push('…');
            break;
        }
        let steers =
            matches!(character as u32, 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069);
        if character.is_control() || steers {
            write!(line, "{}", character.escape_default())
                .expect("invariant: writing to a String never fails");
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::sink::tests::{Daemon, expected};
    use super::*;

    fn say(queue: &Queue, level: Level, text: &str) {
        queue.log(&Record::builder().level(level).args(format_args!("{text}")).build());
    }

    #[test]
    fn lines_reach_syslog_with_facility_priority_and_name() {
        let daemon = Daemon::new("lines");
        let (queue, handle) =
            queue(LevelFilter::Debug, Sink::socket(Peer::Syslog, daemon.path.clone(), false))
                .unwrap();
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

    /// Goal: the journal gets its field names, and text cannot inject a field. Method: compare the
    /// datagram byte by byte.
    #[test]
    fn lines_reach_the_journal_with_their_fields() {
        let daemon = Daemon::new("journal");
        let sink = Sink::socket(Peer::Journal, daemon.path.clone(), false);
        let (queue, handle) = queue(LevelFilter::Info, sink).unwrap();
        let pairs = [("message_id", "0123"), ("reason", "idle\nPRIORITY=0")];
        let text = format_args!("a\nb");
        queue.log(&Record::builder().level(Level::Warn).args(text).key_values(&pairs).build());
        assert!(handle.finish(Duration::from_secs(5)));
        assert_eq!(
            daemon.whole(),
            "PRIORITY=4\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=echo-uring\nMESSAGE=a\\nb\n\
             MESSAGE_ID=0123\nECHO_URING_REASON=idle\\nPRIORITY=0\n"
        );
    }

    #[test]
    fn a_stuck_syslog_never_blocks_a_caller_and_drops_are_reported() {
        let daemon = Daemon::new("stuck");
        let (queue, handle) =
            queue(LevelFilter::Info, Sink::socket(Peer::Syslog, daemon.path.clone(), false))
                .unwrap();
        let total = 3 * QUEUE_LINES_MAX as u64;
        let mut slowest = Duration::ZERO;
        for number in 0..total {
            let begin = Instant::now();
            say(&queue, Level::Info, &format!("line {number}"));
            slowest = slowest.max(begin.elapsed());
        }
        // The sink waits a second for each line; a caller that waited for it would show that.
        assert!(slowest < Duration::from_secs(1), "a caller waited {slowest:?}");
        let begin = Instant::now();
        assert!(!handle.finish(Duration::from_millis(200)), "without a reader nothing is flushed");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());

        // With a reader again: the lines that arrive and those reported as dropped are all lines.
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

    /// Goal: monitoring shows the last warnings, and a flood does not make memory grow.
    #[test]
    fn the_last_warnings_are_kept() {
        let (queue, handle) = queue(LevelFilter::Info, Sink::Stderr { journal: false }).unwrap();
        for number in 0..=RECENT_MAX {
            say(&queue, Level::Warn, &format!("warning\u{1b} {number}"));
            say(&queue, Level::Info, "no warning");
        }
        say(&queue, Level::Error, "error");
        let recent = handle.recent();
        assert_eq!(recent.len(), RECENT_MAX);
        assert_eq!(recent[0].text, "warning\\u{1b} 2");
        let last = recent.last().unwrap();
        assert_eq!((last.level, &*last.text), (Level::Error, "error"));
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
