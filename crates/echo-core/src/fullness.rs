//! Whether the last capacity of all workers is taken.
//!
//! Each worker has a share of the capacity (which is 0 where the limit is below the number of
//! workers). A full worker does no harm as long as another one has capacity: connections wait only
//! when all are full. Therefore each worker notes here when it becomes full and when it no longer
//! is. That is a locked instruction, but not one for each echo.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

/// How many workers are full. Shared by all workers.
#[derive(Debug)]
pub struct Fullness {
    workers: u32,
    full: AtomicU32,
}

impl Fullness {
    /// For `workers` workers, none of which is full.
    #[must_use]
    pub fn new(workers: u32) -> Self {
        Self { workers, full: AtomicU32::new(0) }
    }
}

/// The state of one worker.
pub(crate) struct Part {
    all: Arc<Fullness>,
    /// True exactly when this worker is among those that are counted as full.
    full: bool,
}

impl Part {
    /// For a worker that is not full.
    pub(crate) fn new(all: Arc<Fullness>) -> Self {
        Self { all, full: false }
    }

    /// Whether the worker is full, as noted last.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Notes whether the worker is full. True if it has just become full, as the last of all
    /// workers.
    pub(crate) fn note(&mut self, full: bool) -> bool {
        // Relaxed ordering is enough: the count publishes no other data.
        let completes = match (self.full, full) {
            (false, true) => self.all.full.fetch_add(1, Ordering::Relaxed) + 1 == self.all.workers,
            (true, false) => {
                self.all.full.fetch_sub(1, Ordering::Relaxed);
                false
            }
            (false, false) | (true, true) => false,
        };
        self.full = full;
        completes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.note(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: capacity is exhausted when the last worker becomes full, and again only after one of
    /// them was not. Method: two workers, one of which ends.
    #[test]
    fn all_are_full_when_the_last_one_is() {
        let all = Arc::new(Fullness::new(2));
        let (mut one, mut two) = (Part::new(Arc::clone(&all)), Part::new(Arc::clone(&all)));
        assert!(!one.note(true) && one.is_full() && !two.is_full());
        assert!(two.note(true) && !two.note(true));
        assert!(!two.note(false) && !two.is_full());
        assert!(two.note(true));
        drop(one);
        let mut next = Part::new(all);
        assert!(next.note(true), "a worker that ended is not full");
    }
}
