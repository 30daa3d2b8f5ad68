//! The rate limiter of the daemon: how much each source may send in datagrams, over all workers.
//!
//! Sharded as [`crate::source_limiter`] is. Workers take leases, so a shard is locked some 64 times
//! a second for each busy source.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use echo_core::admission::SourceKey;
use echo_core::datagram::{Amount, BucketTable, DropReason, RateLimiter, Rates};

const SHARDS: usize = 64;
/// Buckets of all shards: some 6 MB at most, when sources are forged at random.
const BUCKETS_MAX: usize = 65_536;

/// See the head of this file.
#[derive(Debug)]
pub struct DatagramLimiter {
    /// Peers that choose their addresses cannot predict their shards.
    hashing: RandomState,
    shards: Box<[Mutex<BucketTable>]>,
}

impl Default for DatagramLimiter {
    fn default() -> Self {
        let shard = || Mutex::new(BucketTable::new(BUCKETS_MAX / SHARDS));
        Self { hashing: RandomState::new(), shards: (0..SHARDS).map(|_| shard()).collect() }
    }
}

impl DatagramLimiter {
    fn shard(&self, key: SourceKey) -> MutexGuard<'_, BucketTable> {
        let index = self.hashing.hash_one(key) as usize % self.shards.len();
        // Poisoned where panics unwind, in tests: what was taken is still taken.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RateLimiter for DatagramLimiter {
    fn take(
        &self,
        now_us: u64,
        key: SourceKey,
        rates: &Rates,
        wanted: Amount,
        least: Amount,
    ) -> Result<Amount, DropReason> {
        self.shard(key).take(now_us, key, rates, wanted, least)
    }

    fn give_back(&self, key: SourceKey, rates: &Rates, unused: Amount) {
        self.shard(key).give_back(key, rates, unused);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use echo_core::admission::SourceLimits;
    use echo_core::op::PeerAddr;

    use super::*;

    /// Goal: all threads together take what the bucket held, in any order.
    #[test]
    fn threads_share_a_bucket() {
        let limiter = Arc::new(DatagramLimiter::default());
        let rates = Rates { datagrams: Some(100_000), bytes: None };
        let key = SourceLimits::default().key(PeerAddr::Ipv4([10, 0, 0, 1])).expect("an address");
        let taken = AtomicU64::new(0);
        let one = Amount { datagrams: 1, bytes: 1 };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Ok(amount) = limiter.take(0, key, &rates, one, one) {
                        taken.fetch_add(amount.datagrams, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 100_000);
    }
}
