//! What workers publish and others read: one board per worker, and the sums over all of them.

use std::sync::{Mutex, PoisonError};

use crate::echo::stats::Stats;

/// Where one worker shows its counters. The worker never waits for a reader.
#[derive(Debug, Default)]
pub struct Board(Mutex<Stats>);

impl Board {
    /// Shows `stats`, unless somebody reads at this very moment: then the next turn does.
    pub fn publish(&self, stats: &Stats) {
        if let Ok(mut shown) = self.0.try_lock() {
            shown.clone_from(stats);
        }
    }

    /// What was shown last.
    #[must_use]
    pub fn read(&self) -> Stats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
