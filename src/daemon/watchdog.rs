//! Watchdog pings for the service manager, sent only if every worker has completed an iteration.

use std::time::{Duration, Instant};

use super::workers::Worker;
use crate::logging::events;
use crate::systemd::Notifier;

/// Sends a watchdog ping only if every worker has completed an iteration of its event loop since
/// the previous ping. Sleeping workers are woken right after each ping, so that they have the whole
/// interval for it. Workers that have ended are ignored.
pub(super) struct Watchdog {
    interval: Duration,
    /// When to check next.
    pub(super) next: Instant,
    turns: Vec<u64>,
    /// True exactly while a worker is stalled, so that this is logged once.
    has_warned: bool,
}

impl Watchdog {
    /// A watchdog that pings each `interval`.
    pub(super) fn new(interval: Duration, workers: &[Worker]) -> Self {
        // The first iteration counts like any other, so workers have one interval for it.
        Self {
            interval,
            next: Instant::now() + interval,
            turns: vec![0; workers.len()],
            has_warned: false,
        }
    }

    /// Checks the workers, and sends a ping if none is stalled.
    pub(super) fn check(&mut self, now: Instant, workers: &[Worker], notifier: &Notifier) {
        self.next = now + self.interval;
        let turns: Vec<u64> = workers.iter().map(|worker| worker.shared.turns()).collect();
        let is_stalled = |&index: &usize| {
            turns[index] == self.turns[index] && !workers[index].shared.has_ended()
        };
        match (0..workers.len()).find(is_stalled) {
            None => {
                notifier.watchdog();
                self.has_warned = false;
                self.turns = turns;
            }
            Some(worker) if !self.has_warned => {
                self.has_warned = true;
                log::error!(
                    message_id = events::HANGING, worker;
                    "worker {worker} is stalled: no iteration of its event loop for {} s; \
                     no watchdog ping is sent",
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
