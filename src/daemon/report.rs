//! What the operator hears of the counters: the status line, and a warning when something is wrong.
//!
//! The event loops log nothing. What goes wrong is counted there, and the main thread looks at the
//! counters once a second; so peers cannot flood the log whatever they do: a class of event is told
//! at most once in [`QUIET`], with its count.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use echo_core::reason::RefuseReason;
use echo_core::stats::Stats;

/// The shortest time between two lines of the same class.
const QUIET: Duration = Duration::from_secs(10);

/// What `systemctl status` shows; `echoes` are those of a second.
pub(super) fn status(stats: &Stats, echoes: u64, workers: usize) -> String {
    let stalled = match stats.stalled {
        0 => String::new(),
        count => format!(" ({count} stalled)"),
    };
    format!(
        "{}{stalled}, {} echoes/s, {} echoed, {}",
        count(stats.connections, "connection"),
        short(echoes),
        bytes(stats.traffic.bytes_out),
        count(workers as u64, "worker"),
    )
}

/// What `systemctl status` shows before the drain, while balancers learn of it.
pub(super) fn leaving(stats: &Stats) -> String {
    format!("leaving, still accepting, {}", count(stats.connections, "connection"))
}

/// What `systemctl status` shows during the drain.
pub(super) fn draining(stats: &Stats) -> String {
    format!("draining, {} left", count(stats.connections, "connection"))
}

/// What `systemctl status` shows while connections are handed over.
pub(super) fn handing_over(stats: &Stats) -> String {
    format!("handing over, {}", count(stats.connections, "connection"))
}

/// What the last line adds if connections came from another process or went to one.
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

/// One kind of trouble: its counter, and the line that tells of `count` more of it.
struct Class {
    reason: &'static str,
    counter: fn(&Stats) -> u64,
    line: fn(count: u64, stats: &Stats, places: Places) -> String,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// By the limit on open files.
    pub(super) by_files: u32,
    /// By `limits.max-connections`.
    pub(super) configured: u32,
}

impl Places {
    /// How to have more of them.
    fn cure(self) -> String {
        let Self { by_files, configured } = self;
        if by_files < configured {
            format!(
                "raise LimitNOFILE= (ulimit -n), which allows for {by_files} of \
                 limits.max-connections = {configured}"
            )
        } else {
            "raise limits.max-connections".to_owned()
        }
    }
}

const CLASSES: [Class; 10] = [
    Class {
        reason: "process-files",
        counter: |stats| stats.accept_process_files,
        line: |count, _, _| {
            format!(
                "accept failed {count} times: no file descriptor is free (EMFILE); \
                 connections wait in the backlog; \
                 raise LimitNOFILE= or lower limits.max-connections"
            )
        },
    },
    Class {
        reason: "system-files",
        counter: |stats| stats.accept_system_files,
        line: |count, _, _| {
            format!(
                "accept failed {count} times: the system has no free file (ENFILE); \
                 connections wait in the backlog; \
                 raise sysctl fs.file-max"
            )
        },
    },
    Class {
        reason: "memory",
        counter: |stats| stats.accept_memory + stats.memory_retries,
        line: |count, _, _| {
            format!("the kernel was short of memory {count} times; what failed is tried again")
        },
    },
    Class {
        reason: "accept",
        counter: |stats| stats.accept_unexpected,
        line: |count, stats, _| {
            format!(
                "accept failed {count} times, last with {}; connections wait in the backlog",
                error(stats.unexpected_errno)
            )
        },
    },
    Class {
        reason: "unexpected",
        counter: |stats| stats.unexpected_errors - stats.accept_unexpected,
        line: |count, stats, _| {
            let error = error(stats.unexpected_errno);
            format!("{count} connections died of errors nobody expects, the last of {error}")
        },
    },
    Class {
        reason: "stalled-memory",
        counter: |stats| stats.spills_refused,
        line: |count, stats, _| {
            format!(
                "no memory for bytes of peers that do not read ({count} times; {} connections are \
                 behind): nothing is lost, but echoes cost more; raise limits.stalled-memory",
                stats.stalled
            )
        },
    },
    Class {
        reason: "full",
        counter: |stats| stats.full,
        line: |number, stats, places| {
            format!(
                "all places were taken {} ({} now); further connections wait in the backlog; {}",
                count(number, "time"),
                count(stats.connections, "connection"),
                places.cure()
            )
        },
    },
    Class {
        reason: "denied",
        counter: |stats| stats.traffic.refused[RefuseReason::Denied as usize],
        line: |number, _, _| format!("{} refused by [access]", count(number, "connection")),
    },
    Class {
        reason: "source-full",
        counter: |stats| stats.traffic.refused[RefuseReason::SourceFull as usize],
        line: |number, _, _| {
            format!(
                "{} refused: their source had limits.max-connections-per-source already",
                count(number, "connection")
            )
        },
    },
    Class {
        reason: "source-rate",
        counter: |stats| stats.traffic.refused[RefuseReason::SourceRate as usize],
        line: |number, _, _| {
            format!(
                "{} refused: their source connected faster than limits.accepts-per-source",
                count(number, "connection")
            )
        },
    },
];

/// An error by its name, and what it points to.
fn error(errno: i32) -> String {
    let known = Errno::from_raw(errno);
    let hint = match known {
        Errno::EPERM | Errno::EACCES => ": a security module (LSM) or a packet filter refuses",
        _ => "",
    };
    format!("{known:?} (errno {errno}, {}){hint}", known.desc())
}

/// A line that is due.
#[derive(Debug)]
pub(super) struct Line {
    /// What it is about, as one word.
    pub(super) reason: &'static str,
    /// How often that happened since the last line about it.
    pub(super) count: u64,
    /// What the operator reads.
    pub(super) text: String,
}

/// Remembers what has been told, and when.
pub(super) struct Reporter {
    told: [(u64, Option<Instant>); CLASSES.len()],
}

impl Reporter {
    /// Nothing has been told.
    pub(super) fn new() -> Self {
        Self { told: [(0, None); CLASSES.len()] }
    }

    /// The lines that are due.
    pub(super) fn lines(&mut self, now: Instant, stats: &Stats, places: Places) -> Vec<Line> {
        let mut lines = Vec::new();
        for (class, (told, last)) in CLASSES.iter().zip(&mut self.told) {
            let counted = (class.counter)(stats);
            let quiet = last.is_none_or(|last| now.duration_since(last) >= QUIET);
            if counted > *told && quiet {
                let count = counted - *told;
                let text = (class.line)(count, stats, places);
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
    // What would be rounded to 1000.0 is 1.0 of the next prefix.
    while value >= 999.95 && prefix + 1 < PREFIXES.len() {
        value /= 1_000.0;
        prefix += 1;
    }
    if number < 1_000 { (value, "") } else { (value, PREFIXES[prefix]) }
}

/// Echoes of a second, from one look to the next.
pub(super) struct Rate {
    echoes: u64,
    at: Instant,
}

impl Rate {
    /// Nothing echoed yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { echoes: 0, at: now }
    }

    /// The rate since the last look.
    pub(super) fn look(&mut self, now: Instant, stats: &Stats) -> u64 {
        let seconds = now.duration_since(self.at).as_secs_f64();
        let echoes = stats.traffic.chunks_out - self.echoes;
        *self = Self { echoes: stats.traffic.chunks_out, at: now };
        if seconds > 0.0 { (echoes as f64 / seconds).round() as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: Places = Places { by_files: 1_000, configured: 500 };

    /// Goal: the limit that is reached is the one that is named.
    #[test]
    fn who_wants_more_places_hears_which_limit_to_raise() {
        let stats = Stats { full: 1, connections: 500, ..Stats::default() };
        let line = |places| Reporter::new().lines(Instant::now(), &stats, places).remove(0).text;
        let by_config = line(PLACES);
        assert!(by_config.contains("taken 1 time (500 connections now)"), "{by_config}");
        assert!(by_config.ends_with("; raise limits.max-connections"), "{by_config}");
        let by_files = line(Places { by_files: 500, configured: 100_000 });
        for word in ["; raise LimitNOFILE=", "500 of", "limits.max-connections = 100000"] {
            assert!(by_files.contains(word), "{word:?} is missing: {by_files}");
        }
    }

    #[test]
    fn a_status_reads_like_a_sentence() {
        let mut stats = Stats { connections: 1, ..Stats::default() };
        assert_eq!(status(&stats, 0, 1), "1 connection, 0 echoes/s, 0 B echoed, 1 worker");
        stats.connections = 142;
        stats.stalled = 3;
        stats.traffic.bytes_out = 9_812_345_678;
        assert_eq!(
            status(&stats, 1_234_567, 2),
            "142 connections (3 stalled), 1.2 M echoes/s, 9.8 GB echoed, 2 workers"
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
        let places = Places { by_files: 9, configured: 9 };
        let lines = Reporter::new().lines(Instant::now(), &stats, places);
        assert_eq!((lines.len(), lines[0].reason), (1, "accept"));
        let text = &lines[0].text;
        assert!(text.contains("accept failed 3 times, last with EPERM (errno 1, "), "{text}");
        assert!(text.contains("security module") && text.ends_with("the backlog"), "{text}");
    }

    #[test]
    fn a_rate_is_that_of_the_last_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let mut stats = Stats::default();
        stats.traffic.chunks_out = 500;
        assert_eq!(rate.look(start + Duration::from_secs(1), &stats), 500);
        assert_eq!(rate.look(start + Duration::from_secs(2), &stats), 0);
        stats.traffic.chunks_out += 300;
        assert_eq!(rate.look(start + Duration::from_secs(4), &stats), 150);
        assert_eq!(rate.look(start + Duration::from_secs(4), &stats), 0, "no time, no rate");
    }

    #[test]
    fn a_flood_of_one_class_is_one_line_in_ten_seconds_and_hides_no_other() {
        let mut reporter = Reporter::new();
        let start = Instant::now();
        let mut stats = Stats::default();
        let mut lines = 0;
        for second in 0..100 {
            stats.accept_process_files += 1_000_000;
            lines += reporter.lines(start + Duration::from_secs(second), &stats, PLACES).len();
        }
        assert_eq!(lines, 10);
        stats.accept_system_files = 5;
        let other = reporter.lines(start + Duration::from_secs(99), &stats, PLACES);
        assert_eq!(other.len(), 1);
        assert_eq!((other[0].reason, other[0].count), ("system-files", 5));
        let text = &other[0].text;
        assert!(text.contains("accept failed 5 times") && text.contains("ENFILE"), "{text}");
    }
}
