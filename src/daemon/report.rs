//! Reports for the operator: the status line, and rate-limited warnings derived from counters.
//!
//! The event loops log nothing. They count errors, and the main thread reads the counters once a
//! second. Each class of event is logged at most once in [`QUIET`], with its count, so peers cannot
//! flood the log.

mod datagrams;

use std::time::{Duration, Instant};

use nix::errno::Errno;

use echo_core::admission::RefusedSources;
use echo_core::limits;
use echo_core::reason::RefuseReason;
use echo_core::stats::Stats;

pub(super) use datagrams::{CLASSES as DATAGRAM_CLASSES, Datagrams};

/// The minimum time between two messages of the same class.
const QUIET: Duration = Duration::from_secs(10);

/// The text that `systemctl status` shows; `echoes` is the rate per second. `datagrams` is there if
/// there is a listener for them.
pub(super) fn status(
    stats: &Stats,
    echoes: u64,
    datagrams: Option<&Datagrams>,
    workers: usize,
) -> String {
    let stalled = match stats.stalled {
        0 => String::new(),
        count => format!(" ({count} stalled)"),
    };
    let datagrams = datagrams.map_or(String::new(), |it| format!(", {}", it.status()));
    format!(
        "{}{stalled}, {} echoes/s, {} echoed{datagrams}, {}",
        count(stats.connections, "connection"),
        short(echoes),
        bytes(stats.traffic.bytes_out),
        count(workers as u64, "worker"),
    )
}

/// The text that `systemctl status` shows during the drain lead.
pub(super) fn leaving(stats: &Stats) -> String {
    format!("leaving, still accepting, {}", count(stats.connections, "connection"))
}

/// The text that `systemctl status` shows during the drain.
pub(super) fn draining(stats: &Stats) -> String {
    format!("draining, {} left", count(stats.connections, "connection"))
}

/// The text that `systemctl status` shows during a handover.
pub(super) fn handing_over(stats: &Stats) -> String {
    format!("handing over, {}", count(stats.connections, "connection"))
}

/// The end of the last message if connections were handed over from or to another process.
pub(super) fn handover_counts(stats: &Stats) -> String {
    let Stats { traffic, bytes_taken_over, bytes_handed_over, .. } = stats;
    let taken_over = traffic.taken_over;
    match taken_over + bytes_handed_over {
        0 => String::new(),
        _ => format!(
            " taken-over={taken_over} bytes-taken-over={bytes_taken_over} \
             bytes-handed-over={bytes_handed_over}"
        ),
    }
}

/// `1 worker`, `2 workers`.
pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// One class of warnings: its counter, and the text for `count` more events.
pub(super) struct Class<S> {
    reason: &'static str,
    counter: fn(&S) -> u64,
    line: fn(count: u64, seen: &S) -> String,
}

/// What the classes about connections are derived from.
#[derive(Debug)]
pub(super) struct Connections {
    /// The counters of all workers.
    pub(super) stats: Stats,
    /// The limits in force.
    pub(super) capacity: Capacity,
    /// The sources whose connections were refused.
    pub(super) refused_sources: RefusedSources,
}

impl Connections {
    /// An example of those that were refused for this reason.
    fn refused_last(&self, reason: RefuseReason) -> String {
        match self.refused_sources.last(reason) {
            Some(source) => format!("; the last from {source}"),
            None => String::new(),
        }
    }
}

/// The limits on the number of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// From the limit on open files.
    pub(super) by_files: u32,
    /// From `limits.max-connections`.
    pub(super) configured: u32,
}

impl Capacity {
    /// How to raise the capacity.
    fn remedy(self) -> String {
        let Self { by_files, configured } = self;
        if by_files < configured {
            format!(
                "raise LimitNOFILE= (ulimit -n), which permits only {by_files} of \
                 limits.max-connections = {configured}"
            )
        } else {
            "raise limits.max-connections".to_owned()
        }
    }
}

pub(super) const CLASSES: [Class<Connections>; 13] = [
    Class {
        reason: "process-files",
        counter: |Connections { stats, .. }| stats.accept_process_files,
        line: |count, _| {
            format!(
                "accept failed {count} times: no file descriptor is free (EMFILE); \
                 connections wait in the backlog; \
                 raise LimitNOFILE= or lower limits.max-connections"
            )
        },
    },
    Class {
        reason: "system-files",
        counter: |Connections { stats, .. }| stats.accept_system_files,
        line: |count, _| {
            format!(
                "accept failed {count} times: the system file table is full (ENFILE); \
                 connections wait in the backlog; \
                 raise sysctl fs.file-max"
            )
        },
    },
    Class {
        reason: "memory",
        counter: |Connections { stats, .. }| stats.accept_memory + stats.memory_retries,
        line: |count, _| {
            format!("the kernel ran out of memory {count} times; the operations are retried")
        },
    },
    Class {
        reason: "accept",
        counter: |Connections { stats, .. }| stats.accept_unexpected,
        line: |count, Connections { stats, .. }| {
            format!(
                "accept failed {count} times, last with {}; connections wait in the backlog",
                error(stats.unexpected_errno)
            )
        },
    },
    Class {
        reason: "unexpected",
        counter: |Connections { stats, .. }| stats.unexpected_errors - stats.accept_unexpected,
        line: |count, Connections { stats, .. }| {
            let error = error(stats.unexpected_errno);
            format!("{count} connections failed with unexpected errors, the last with {error}")
        },
    },
    Class {
        reason: "stalled-memory",
        counter: |Connections { stats, .. }| stats.spills_refused,
        line: |number, Connections { stats, .. }| {
            format!(
                "no memory left for peers that do not read ({number} times; {} stalled): nothing \
                 is lost, but their echoes cost more; raise limits.stalled-memory",
                count(stats.stalled, "connection")
            )
        },
    },
    Class {
        reason: "full",
        counter: |Connections { stats, .. }| stats.full,
        line: |number, Connections { stats, capacity, .. }| {
            format!(
                "capacity exhausted {} ({} now); further connections wait in the backlog; {}",
                count(number, "time"),
                count(stats.connections, "connection"),
                capacity.remedy()
            )
        },
    },
    Class {
        reason: "denied",
        counter: |Connections { stats, .. }| stats.traffic.refused[RefuseReason::Denied as usize],
        line: |number, seen| {
            let last = seen.refused_last(RefuseReason::Denied);
            format!("{} refused by [access]{last}", count(number, "connection"))
        },
    },
    Class {
        reason: "source-full",
        counter: |Connections { stats, .. }| {
            stats.traffic.refused[RefuseReason::SourceFull as usize]
        },
        line: |number, seen| {
            format!(
                "{} refused: their source had reached limits.max-connections-per-source{}",
                count(number, "connection"),
                seen.refused_last(RefuseReason::SourceFull)
            )
        },
    },
    Class {
        reason: "source-rate",
        counter: |Connections { stats, .. }| {
            stats.traffic.refused[RefuseReason::SourceRate as usize]
        },
        line: |number, seen| {
            format!(
                "{} refused: their source exceeded limits.accepts-per-source{}",
                count(number, "connection"),
                seen.refused_last(RefuseReason::SourceRate)
            )
        },
    },
    Class {
        reason: "untrusted",
        counter: |Connections { stats, .. }| {
            stats.traffic.refused[RefuseReason::Untrusted as usize]
        },
        line: |number, seen| {
            format!(
                "{} refused: they do not come from a proxy in trusted-proxies of their listener{}",
                count(number, "connection"),
                seen.refused_last(RefuseReason::Untrusted)
            )
        },
    },
    Class {
        reason: "invalid-header",
        counter: |Connections { stats, .. }| {
            stats.traffic.refused[RefuseReason::InvalidHeader as usize]
        },
        line: |number, seen| {
            format!(
                "{} refused: no valid PROXY header (enable send-proxy-v2 in HAProxy, \
                 proxy_protocol in nginx){}",
                count(number, "proxy connection"),
                seen.refused_last(RefuseReason::InvalidHeader)
            )
        },
    },
    Class {
        reason: "header-timeout",
        counter: |Connections { stats, .. }| {
            stats.traffic.refused[RefuseReason::HeaderTimeout as usize]
        },
        line: |number, seen| {
            format!(
                "{} refused: no complete PROXY header within {} seconds{}",
                count(number, "proxy connection"),
                limits::PREFACE_MS / 1_000,
                seen.refused_last(RefuseReason::HeaderTimeout)
            )
        },
    },
];

/// An error by name, with a hint at its cause.
fn error(errno: i32) -> String {
    let known = Errno::from_raw(errno);
    let hint = match known {
        Errno::EPERM | Errno::EACCES => ": a security module (LSM) or a packet filter refuses",
        _ => "",
    };
    format!("{known:?} (errno {errno}, {}){hint}", known.desc())
}

/// A message to log.
#[derive(Debug)]
pub(super) struct Line {
    /// The class, as one word.
    pub(super) reason: &'static str,
    /// The number of events since the last message of this class.
    pub(super) count: u64,
    /// The text.
    pub(super) text: String,
}

/// Keeps the counts that were logged, and when.
pub(super) struct Reporter<S: 'static> {
    classes: &'static [Class<S>],
    told: Vec<(u64, Option<Instant>)>,
}

impl<S> Reporter<S> {
    /// Nothing has been logged yet.
    pub(super) fn new(classes: &'static [Class<S>]) -> Self {
        Self { classes, told: vec![(0, None); classes.len()] }
    }

    /// The messages to log now.
    pub(super) fn lines(&mut self, now: Instant, seen: &S) -> Vec<Line> {
        let mut lines = Vec::new();
        for (class, (told, last)) in self.classes.iter().zip(&mut self.told) {
            let counted = (class.counter)(seen);
            let quiet = last.is_none_or(|last| now.duration_since(last) >= QUIET);
            if counted > *told && quiet {
                let count = counted - *told;
                let text = (class.line)(count, seen);
                lines.push(Line { reason: class.reason, count, text });
                *told = counted;
                *last = Some(now);
            }
        }
        lines
    }
}

/// A number for people: `812`, `1.2 M`.
fn short(number: u64) -> String {
    let (value, prefix) = scaled(number);
    if prefix.is_empty() { number.to_string() } else { format!("{value:.1} {prefix}") }
}

/// Bytes for people: `812 B`, `9.8 GB`.
fn bytes(count: u64) -> String {
    let (value, prefix) = scaled(count);
    if prefix.is_empty() { format!("{count} B") } else { format!("{value:.1} {prefix}B") }
}

/// A number as a multiple of a decimal prefix.
fn scaled(number: u64) -> (f64, &'static str) {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let (mut value, mut prefix) = (number as f64, 0);
    // A value that would be rounded to 1000.0 becomes 1.0 of the next prefix.
    while value >= 999.95 && prefix + 1 < PREFIXES.len() {
        value /= 1_000.0;
        prefix += 1;
    }
    if number < 1_000 { (value, "") } else { (value, PREFIXES[prefix]) }
}

/// The rate of a counter between two samples, in events per second.
pub(super) struct Rate {
    counted: u64,
    at: Instant,
}

impl Rate {
    /// Nothing counted yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { counted: 0, at: now }
    }

    /// The rate since the last sample, if the counter is now `counted`.
    pub(super) fn look(&mut self, now: Instant, counted: u64) -> u64 {
        let seconds = now.duration_since(self.at).as_secs_f64();
        let more = counted - self.counted;
        *self = Self { counted, at: now };
        if seconds > 0.0 { (more as f64 / seconds).round() as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity { by_files: 1_000, configured: 500 };

    fn connections(stats: Stats, capacity: Capacity) -> Connections {
        Connections { stats, capacity, refused_sources: RefusedSources::default() }
    }

    fn lines(now: Instant, seen: Connections) -> Vec<Line> {
        Reporter::new(&CLASSES).lines(now, &seen)
    }

    /// Goal: the message names the limit that was reached.
    #[test]
    fn the_warning_names_the_limit_to_raise() {
        let line = |capacity| {
            let stats = Stats { full: 1, connections: 500, ..Stats::default() };
            lines(Instant::now(), connections(stats, capacity)).remove(0).text
        };
        let by_config = line(CAPACITY);
        assert!(by_config.contains("exhausted 1 time (500 connections now)"), "{by_config}");
        assert!(by_config.ends_with("; raise limits.max-connections"), "{by_config}");
        let by_files = line(Capacity { by_files: 500, configured: 100_000 });
        for word in ["; raise LimitNOFILE=", "500 of", "limits.max-connections = 100000"] {
            assert!(by_files.contains(word), "{word:?} is missing: {by_files}");
        }
    }

    #[test]
    fn the_status_is_one_line() {
        let mut stats = Stats { connections: 1, ..Stats::default() };
        assert_eq!(status(&stats, 0, None, 1), "1 connection, 0 echoes/s, 0 B echoed, 1 worker");
        stats.connections = 142;
        stats.stalled = 3;
        stats.traffic.bytes_out = 9_812_345_678;
        assert_eq!(
            status(&stats, 1_234_567, None, 2),
            "142 connections (3 stalled), 1.2 M echoes/s, 9.8 GB echoed, 2 workers"
        );
        assert_eq!(
            status(&stats, 0, Some(&Datagrams::default()), 2),
            "142 connections (3 stalled), 0 echoes/s, 9.8 GB echoed, 0 datagrams/s, \
             0 B in datagrams, 2 workers"
        );
        assert_eq!(draining(&stats), "draining, 142 connections left");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        for (number, text) in [(999, "999"), (1_000, "1.0 k"), (999_949, "999.9 k")] {
            assert_eq!(short(number), text);
        }
        assert_eq!(short(999_950), "1.0 M");
    }

    #[test]
    fn an_error_is_named() {
        let stats = Stats { accept_unexpected: 3, unexpected_errors: 3, ..Stats::default() };
        let stats = Stats { unexpected_errno: 1, ..stats };
        let capacity = Capacity { by_files: 9, configured: 9 };
        let lines = lines(Instant::now(), connections(stats, capacity));
        assert_eq!((lines.len(), lines[0].reason), (1, "accept"));
        let text = &lines[0].text;
        assert!(text.contains("accept failed 3 times, last with EPERM (errno 1, "), "{text}");
        assert!(text.contains("security module") && text.ends_with("the backlog"), "{text}");
    }

    #[test]
    fn a_rate_is_that_of_the_last_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.look(start + Duration::from_secs(1), 500), 500);
        assert_eq!(rate.look(start + Duration::from_secs(2), 500), 0);
        assert_eq!(rate.look(start + Duration::from_secs(4), 800), 150);
        assert_eq!(rate.look(start + Duration::from_secs(4), 800), 0, "no time, no rate");
    }

    #[test]
    fn a_flood_of_one_class_is_one_line_in_ten_seconds_and_hides_no_other() {
        let mut reporter = Reporter::new(&CLASSES);
        let start = Instant::now();
        let mut seen = connections(Stats::default(), CAPACITY);
        let mut lines = 0;
        for second in 0..100 {
            seen.stats.accept_process_files += 1_000_000;
            lines += reporter.lines(start + Duration::from_secs(second), &seen).len();
        }
        assert_eq!(lines, 10);
        seen.stats.accept_system_files = 5;
        let other = reporter.lines(start + Duration::from_secs(99), &seen);
        assert_eq!(other.len(), 1);
        assert_eq!((other[0].reason, other[0].count), ("system-files", 5));
        let text = &other[0].text;
        assert!(text.contains("accept failed 5 times") && text.contains("ENFILE"), "{text}");
    }
}
