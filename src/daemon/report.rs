//! What the operator hears of the counters: the status line, and a warning when something is wrong.
//!
//! The event loops log nothing. What goes wrong is counted there, and the main thread looks at the
//! counters once a second; so peers cannot flood the log whatever they do: a class of event is told
//! at most once in [`QUIET`], with its count.

use std::time::{Duration, Instant};

use crate::echo::server::{CloseReason, RefuseReason, Stats};

/// The shortest time between two lines of the same class.
const QUIET: Duration = Duration::from_secs(10);

/// What `systemctl status` shows.
pub(super) fn status(stats: &Stats, workers: usize) -> String {
    let stalled = match stats.stalled {
        0 => String::new(),
        count => format!(" ({count} stalled)"),
    };
    format!(
        "{}{stalled}, {} accepted, {} echoed, {}",
        count(stats.connections, "connection"),
        stats.accepted,
        bytes(stats.bytes_out),
        count(workers as u64, "worker"),
    )
}

/// What `systemctl status` shows during the drain.
pub(super) fn draining(stats: &Stats) -> String {
    format!("draining, {} left", count(stats.connections, "connection"))
}

/// `1 worker`, `2 workers`.
pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// One kind of trouble: its counter, and the line that tells of `count` more of it.
struct Class {
    counter: fn(&Stats) -> u64,
    line: fn(count: u64, stats: &Stats) -> String,
}

const CLASSES: [Class; 10] = [
    Class {
        counter: |stats| stats.accept_process_files,
        line: |count, _| {
            format!(
                "accept failed {count} times: no file descriptor is free (EMFILE); \
                 connections wait in the backlog; \
                 raise LimitNOFILE= or lower limits.max-connections"
            )
        },
    },
    Class {
        counter: |stats| stats.accept_system_files,
        line: |count, _| {
            format!(
                "accept failed {count} times: the system has no free file (ENFILE); \
                 connections wait in the backlog; \
                 raise sysctl fs.file-max"
            )
        },
    },
    Class {
        counter: |stats| stats.accept_memory + stats.memory_retries,
        line: |count, _| {
            format!("the kernel was short of memory {count} times; what failed is tried again")
        },
    },
    Class {
        counter: |stats| stats.accept_unexpected,
        line: |count, stats| {
            format!("accept failed {count} times, last with errno {}", stats.unexpected_errno)
        },
    },
    Class {
        counter: |stats| stats.unexpected_errors - stats.accept_unexpected,
        line: |count, stats| {
            let errno = stats.unexpected_errno;
            format!("{count} connections died of errors nobody expects, last errno {errno}")
        },
    },
    Class {
        counter: |stats| stats.closed[CloseReason::StalledMemory as usize],
        line: |count, _| {
            format!(
                "{count} connections reset: they stopped reading when limits.stalled-memory \
                 was used up"
            )
        },
    },
    Class {
        counter: |stats| stats.full,
        line: |count, stats| {
            format!(
                "all places were taken {count} times ({} connections now); \
                 further connections wait in the backlog; \
                 raise limits.max-connections",
                stats.connections
            )
        },
    },
    Class {
        counter: |stats| stats.refused[RefuseReason::Denied as usize],
        line: |count, _| format!("{} refused by [access]", connections(count)),
    },
    Class {
        counter: |stats| stats.refused[RefuseReason::SourceFull as usize],
        line: |count, _| {
            format!(
                "{} refused: their source had limits.max-connections-per-source already",
                connections(count)
            )
        },
    },
    Class {
        counter: |stats| stats.refused[RefuseReason::SourceRate as usize],
        line: |count, _| {
            format!(
                "{} refused: their source connected faster than limits.accepts-per-source",
                connections(count)
            )
        },
    },
];

fn connections(number: u64) -> String {
    count(number, "connection")
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
    pub(super) fn lines(&mut self, now: Instant, stats: &Stats) -> Vec<String> {
        let mut lines = Vec::new();
        for (class, (told, last)) in CLASSES.iter().zip(&mut self.told) {
            let counted = (class.counter)(stats);
            let quiet = last.is_none_or(|last| now.duration_since(last) >= QUIET);
            if counted > *told && quiet {
                lines.push((class.line)(counted - *told, stats));
                *told = counted;
                *last = Some(now);
            }
        }
        lines
    }
}

/// Bytes for people: `4.1 MiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = (count.ilog2() / 10) as usize;
    let value = count as f64 / (1_u64 << (10 * power)) as f64;
    format!("{value:.1} {}", UNITS[power - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_like_a_sentence() {
        let mut stats = Stats { connections: 1, accepted: 12, ..Stats::default() };
        assert_eq!(status(&stats, 1), "1 connection, 12 accepted, 0 B echoed, 1 worker");
        stats.connections = 3;
        stats.stalled = 2;
        stats.bytes_out = 4_300_000;
        assert_eq!(
            status(&stats, 2),
            "3 connections (2 stalled), 12 accepted, 4.1 MiB echoed, 2 workers"
        );
        assert_eq!(draining(&stats), "draining, 3 connections left");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(bytes(1024), "1.0 KiB");
    }

    #[test]
    fn a_flood_of_one_class_is_one_line_in_ten_seconds_and_hides_no_other() {
        let mut reporter = Reporter::new();
        let start = Instant::now();
        let mut stats = Stats::default();
        let mut lines = 0;
        for second in 0..100 {
            stats.accept_process_files += 1_000_000;
            lines += reporter.lines(start + Duration::from_secs(second), &stats).len();
        }
        assert_eq!(lines, 10);
        stats.accept_system_files = 5;
        let other = reporter.lines(start + Duration::from_secs(99), &stats);
        assert_eq!(other.len(), 1);
        assert!(other[0].contains("accept failed 5 times") && other[0].contains("ENFILE"));
    }
}
