//! The source limiter of the daemon: how many connections each source has, over all workers.
//!
//! It is sharded. The hash of a source selects its shard, so two workers rarely want the same shard
//! at the same moment. A shard is locked for one look-up, at an accept and at a close.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use echo_core::admission::{Limiter, SourceKey, SourceLimits, SourceTable};
use echo_core::op::Timestamp;
use echo_core::reason::RefuseReason;

/// Shards of the limiter. With 64, one look-up in thousands finds its shard locked.
const SHARDS: u32 = 64;

/// See the head of this file.
#[derive(Debug)]
pub struct SourceLimiter {
    /// Peers that choose their addresses cannot predict their shards.
    hashing: RandomState,
    shards: Box<[Mutex<SourceTable>]>,
}

impl Default for SourceLimiter {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(SourceTable::one_of(SHARDS))).collect();
        Self { hashing: RandomState::new(), shards }
    }
}

impl SourceLimiter {
    fn shard(&self, key: SourceKey) -> MutexGuard<'_, SourceTable> {
        let index = self.hashing.hash_one(key) as usize % self.shards.len();
        // Only tests unwind and so poison a lock; the counts stay valid.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limiter for SourceLimiter {
    fn enter(
        &self,
        now: Timestamp,
        key: SourceKey,
        limits: &SourceLimits,
    ) -> Result<(), RefuseReason> {
        self.shard(key).enter(now, key, limits)
    }

    fn leave(&self, now: Timestamp, key: SourceKey, limits: &SourceLimits) {
        self.shard(key).leave(now, key, limits);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use echo_core::op::PeerAddr;

    use super::*;

    /// Goal: a limit holds over all workers, and every connection is subtracted at its end. Method:
    /// threads enter and leave for the same few sources, and count how many are inside.
    #[test]
    fn a_limit_holds_over_all_threads() {
        const LIMIT: u32 = 3;
        let limiter = Arc::new(SourceLimiter::default());
        let inside: Arc<[AtomicU32; 4]> = Arc::default();
        let limits = SourceLimits { connections: Some(LIMIT), ..SourceLimits::default() };
        let now = Timestamp(0);
        thread::scope(|scope| {
            for thread in 0..4_usize {
                let (limiter, inside, limits) = (&limiter, &inside, &limits);
                scope.spawn(move || {
                    for round in 0..20_000_usize {
                        let source = (round + thread) % 4;
                        let peer = PeerAddr::Ipv4([10, 0, 0, source as u8]);
                        let key = limits.key(peer).expect("an IP peer has a source");
                        if limiter.enter(now, key, limits).is_ok() {
                            let count = inside[source].fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(count <= LIMIT, "{count} inside");
                            inside[source].fetch_sub(1, Ordering::SeqCst);
                            limiter.leave(now, key, limits);
                        }
                    }
                });
            }
        });
        let sources: usize =
            limiter.shards.iter().map(|shard| shard.lock().expect("no panic").sources()).sum();
        assert_eq!(sources, 0);
    }
}
