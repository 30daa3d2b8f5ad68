//! What the service manager's watchdog is told: that every worker has turned its loop.

use std::time::{Duration, Instant};

use super::workers::Worker;
use crate::logging::events;
use crate::systemd::Notifier;

/// Tells the service manager that all is well, but only if every worker has turned its loop since
/// the last time it was told. Workers that sleep are woken for it, right after each ping, so that
/// they have the whole interval to answer. A worker that has ended owes no turn.
pub(super) struct Watchdog {
    interval: Duration,
    /// When to look next.
    pub(super) next: Instant,
    turns: Vec<u64>,
    /// Set while a worker does not turn, so that it is reported once.
    worried: bool,
}

impl Watchdog {
    /// To be asked each `interval`.
    pub(super) fn new(interval: Duration, workers: &[Worker]) -> Self {
        // Every worker's first turn counts: they have an interval for it like for any other.
        Self {
            interval,
            next: Instant::now() + interval,
            turns: vec![0; workers.len()],
            worried: false,
        }
    }

    /// Looks at the workers, and tells the service manager if all is well.
    pub(super) fn check(&mut self, now: Instant, workers: &[Worker], notifier: &Notifier) {
        self.next = now + self.interval;
        let turns: Vec<u64> = workers.iter().map(|worker| worker.shared.turns()).collect();
        let is_stuck = |&index: &usize| {
            turns[index] == self.turns[index] && !workers[index].shared.has_ended()
        };
        match (0..workers.len()).find(is_stuck) {
            None => {
                notifier.watchdog();
                self.worried = false;
                self.turns = turns;
            }
            Some(worker) if !self.worried => {
                self.worried = true;
                log::error!(
                    message_id = events::HANGING, worker;
                    "worker {worker} has not turned its loop for {} s: \
                     the watchdog is not told that all is well",
                    self.interval.as_secs_f64()
                );
            }
            Some(_) => {}
        }
        for worker in workers {
            worker.wake();
        }
    }
}
