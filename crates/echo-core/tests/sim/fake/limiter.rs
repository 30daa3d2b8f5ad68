//! The source limiter of the fake: one table, which all workers of a history share.

use std::sync::{Mutex, MutexGuard};

use echo_core::admission::{Limiter, SourceKey, SourceLimits, SourceTable};
use echo_core::op::Timestamp;
use echo_core::reason::RefuseReason;

/// The limiter.
#[derive(Debug)]
pub(crate) struct FakeLimiter(Mutex<SourceTable>);

impl FakeLimiter {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(SourceTable::one_of(1)))
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, SourceTable> {
        self.0.lock().expect("no panic holds it")
    }
}

impl Limiter for FakeLimiter {
    fn enter(
        &self,
        now: Timestamp,
        key: SourceKey,
        limits: &SourceLimits,
    ) -> Result<(), RefuseReason> {
        self.table().enter(now, key, limits)
    }

    fn leave(&self, now: Timestamp, key: SourceKey, limits: &SourceLimits) {
        self.table().leave(now, key, limits);
    }
}
