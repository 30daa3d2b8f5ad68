//! The counters that workers publish for other threads: one board per worker, and sums over them.
//!
//! Counters change with every message and are read about once a second. A worker therefore writes
//! its board only on request, when it is idle, or when the board is older than [`AGE_MAX_US`]. A
//! board knows whether it is stale; a reader that needs exact counters requests them and wakes the
//! worker. A turn that publishes nothing costs two loads and a store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use echo_core::admission::{AcceptLog, RefusedSources};
use echo_core::datagram::DatagramTraffic;
use echo_core::stats::{Stats, Traffic};
use echo_core::worker::Worker;

/// The maximum age of the board of a busy worker, in microseconds.
pub const AGE_MAX_US: u64 = 10_000;

/// The published counters of one worker. The worker waits for a reader only in its last turn.
#[derive(Debug, Default)]
pub struct Board {
    published: Mutex<Published>,
    /// A reader has requested exact counters.
    wanted: AtomicBool,
    /// There have been turns since the last publication.
    stale: AtomicBool,
}

/// What is on a board.
#[derive(Debug, Default)]
struct Published {
    shown: Shown,
    /// The last accepts, if they are logged. There is no sum of them over several workers.
    accepts: AcceptLog,
}

/// The counters of a worker at one moment, or the sums over several workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Of all its connections.
    pub stats: Stats,
    /// What the connections of each listener did.
    pub listeners: Vec<Traffic>,
    /// What the datagram sockets of each listener did.
    pub datagram_listeners: Vec<DatagramTraffic>,
    /// The sources whose connections were refused.
    pub refused_sources: RefusedSources,
}

/// The counters of a worker, as it has them.
#[derive(Clone, Debug)]
pub struct Counted<'a> {
    /// See [`Shown::stats`].
    pub stats: Stats,
    /// See [`Shown::listeners`].
    pub listeners: &'a [Traffic],
    /// See [`Shown::datagram_listeners`].
    pub datagram_listeners: &'a [DatagramTraffic],
    /// See [`Shown::refused_sources`].
    pub refused_sources: &'a RefusedSources,
    /// See [`Board::accepts`].
    pub accepts: &'a AcceptLog,
}

impl<'a> Counted<'a> {
    /// Those of `worker`.
    #[must_use]
    pub fn of(worker: &'a Worker) -> Self {
        Self {
            stats: worker.stats(),
            listeners: worker.listener_traffic(),
            datagram_listeners: worker.datagram_traffic(),
            refused_sources: worker.refused_sources(),
            accepts: worker.accept_log(),
        }
    }
}

impl Shown {
    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Self) {
        self.stats.add(&other.stats);
        // A sum begins with no listener at all.
        let count = self.listeners.len().max(other.listeners.len());
        self.listeners.resize_with(count, Traffic::default);
        for (mine, theirs) in self.listeners.iter_mut().zip(&other.listeners) {
            mine.add(theirs);
        }
        let count = self.datagram_listeners.len().max(other.datagram_listeners.len());
        self.datagram_listeners.resize_with(count, DatagramTraffic::default);
        for (mine, theirs) in self.datagram_listeners.iter_mut().zip(&other.datagram_listeners) {
            mine.add(theirs);
        }
        self.refused_sources.add(&other.refused_sources);
    }
}

impl Board {
    /// To be called at the end of a turn whose events were fetched at `clock_us`. Publishes the
    /// counters if they were requested, if the turn was `idle` (it had no events) or if the board
    /// is too old, and writes the time to `published_us`. If a reader holds the lock, a later turn
    /// publishes them.
    pub fn publish<'a>(
        &self,
        counted: impl FnOnce() -> Counted<'a>,
        clock_us: u64,
        published_us: &mut u64,
        idle: bool,
    ) {
        let due = idle || clock_us.saturating_sub(*published_us) >= AGE_MAX_US;
        if (due || self.wanted.load(Ordering::Acquire)) && self.show(counted()) {
            *published_us = clock_us;
        } else {
            self.stale.store(true, Ordering::Release);
        }
    }

    /// To be called instead of [`Self::publish`] at the end of a worker's last turn. It waits for a
    /// reader that holds the lock, because there is no later turn; a reader only copies.
    pub fn publish_last(&self, counted: Counted<'_>) {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(published, counted);
    }

    /// Publishes these counters unless a reader holds the lock.
    fn show(&self, counted: Counted<'_>) -> bool {
        let Ok(published) = self.published.try_lock() else { return false };
        self.write(published, counted);
        true
    }

    fn write(&self, mut published: MutexGuard<'_, Published>, counted: Counted<'_>) {
        let Published { shown, accepts } = &mut *published;
        shown.stats = counted.stats;
        // Allocates at the first publication only.
        shown.listeners.clear();
        shown.listeners.extend_from_slice(counted.listeners);
        shown.datagram_listeners.clear();
        shown.datagram_listeners.extend_from_slice(counted.datagram_listeners);
        shown.refused_sources.copy_from(counted.refused_sources);
        if accepts.total() != counted.accepts.total() {
            accepts.clone_from(counted.accepts);
        }
        self.wanted.store(false, Ordering::Relaxed);
        self.stale.store(false, Ordering::Release);
    }

    /// The counters as published last.
    #[must_use]
    pub fn read(&self) -> Shown {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).shown.clone()
    }

    /// The last accepts of the worker, if they are logged.
    #[must_use]
    pub fn accepts(&self) -> AcceptLog {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).accepts.clone()
    }

    /// Requests exact counters. Returns false if the board has them already; otherwise the caller
    /// must wake the worker.
    #[must_use]
    pub fn ask(&self) -> bool {
        let stale = self.stale.load(Ordering::Acquire);
        if stale {
            self.wanted.store(true, Ordering::Release);
        }
        stale
    }

    /// Whether no request is pending.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        !self.wanted.load(Ordering::Acquire)
    }
}

/// The sum over all workers.
#[must_use]
pub fn total<'a>(all: impl IntoIterator<Item = &'a Stats>) -> Stats {
    all.into_iter().fold(Stats::default(), |mut sum, stats| {
        sum.add(stats);
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(board: &Board, accepted: u64, now: u64, published: &mut u64, idle: bool) {
        let traffic = Traffic { accepted, ..Traffic::default() };
        let listeners = [traffic.clone()];
        let stats = Stats { traffic, ..Stats::default() };
        let (refused, accepts) = (RefusedSources::default(), AcceptLog::default());
        let counted = || Counted {
            stats,
            listeners: &listeners,
            datagram_listeners: &[],
            refused_sources: &refused,
            accepts: &accepts,
        };
        board.publish(counted, now, published, idle);
    }

    #[test]
    fn a_busy_worker_publishes_on_request_or_periodically() {
        let board = Board::default();
        let mut published = 0;
        publish(&board, 1, 5, &mut published, false);
        assert_eq!(board.read().stats.traffic.accepted, 0, "too soon");
        assert!(board.ask() && !board.has_answered());
        publish(&board, 2, 6, &mut published, false);
        assert_eq!((board.read().stats.traffic.accepted, published), (2, 6));
        assert!(board.has_answered() && !board.ask());
        publish(&board, 3, 6 + AGE_MAX_US - 1, &mut published, false);
        assert_eq!(board.read().stats.traffic.accepted, 2, "too soon");
        publish(&board, 4, 6 + AGE_MAX_US, &mut published, false);
        assert_eq!(board.read().stats.traffic.accepted, 4);
    }

    #[test]
    fn an_idle_turn_leaves_nothing_to_request() {
        let board = Board::default();
        let mut published = 0;
        publish(&board, 1, 5, &mut published, false);
        publish(&board, 1, 6, &mut published, true);
        assert_eq!(board.read().stats.traffic.accepted, 1);
        assert!(!board.ask());
    }

    /// Goal: a reader that holds the lock while a worker ends does not leave old counters on the
    /// board, nor a request that is never answered.
    #[test]
    fn the_last_counters_are_published_despite_a_reader() {
        let board = Board::default();
        publish(&board, 1, 0, &mut 0, true);
        publish(&board, 2, 1, &mut 0, false);
        assert!(board.ask());
        let reader = board.published.lock().unwrap();
        std::thread::scope(|scope| {
            let traffic = Traffic { accepted: 3, ..Traffic::default() };
            let last = Stats { traffic, ..Stats::default() };
            let ending = scope.spawn(|| {
                let counted = Counted {
                    stats: last,
                    listeners: &[],
                    datagram_listeners: &[],
                    refused_sources: &RefusedSources::default(),
                    accepts: &AcceptLog::default(),
                };
                board.publish_last(counted);
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!ending.is_finished(), "it did not wait for the reader");
            drop(reader);
        });
        assert_eq!(board.read().stats.traffic.accepted, 3);
        assert!(board.has_answered() && !board.ask());
    }

    #[test]
    fn a_reader_does_not_delay_the_worker() {
        let board = Board::default();
        let mut published = 0;
        let guard = board.published.lock().unwrap();
        publish(&board, 1, AGE_MAX_US, &mut published, true);
        drop(guard);
        assert_eq!(published, 0);
        assert!(board.ask());
        publish(&board, 1, AGE_MAX_US + 1, &mut published, false);
        assert_eq!(board.read().stats.traffic.accepted, 1);
    }
}
