//! The source limiter: how many connections each source has, and how full its bucket of accepts is.
//!
//! All workers share one limiter; with one for each worker, a cap would be a cap for each worker.
//! The limiter has [`SHARDS`] shards. The hash of a source selects its shard, so two workers rarely
//! want the same shard at the same moment. A shard is locked for one look-up. A worker that finds
//! it locked does not wait: it tries again in its next turn.
//!
//! An entry exists as long as its source has connections, or a bucket that is not full. There are
//! at most as many entries with connections as connections. Of the others each shard keeps its part
//! of [`Caps::kept_max`] and evicts the one that it has kept longest; that source gets its burst
//! again, early. So nobody can fill the limiter, and no source is refused for want of room in it.
//!
//! The bucket is kept as the moment at which it is full again: an accept moves that by one
//! interval, and is refused if it would be more than a second ahead. (The generic cell rate
//! algorithm of ATM; the same as a bucket that holds one second's worth.)

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::op::{Source, Timestamp};
use crate::stats::RefuseReason;

/// Shards of the limiter. With 64 a worker finds a shard locked once in thousands of times.
const SHARDS: usize = 64;
/// Kept entries that are looked at with each look-up. One comes at a time, so two keep up.
const LOOKS: usize = 2;
const NANOSECONDS: u64 = 1_000_000_000;

/// How much one source may take. The default is: anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Connections that a source has open at the same time, at most.
    pub connections: Option<u32>,
    /// Connections of a source that are accepted in a second, at most, after a burst of as many.
    pub accepts_per_second: Option<u32>,
    /// How many leading bits of an IPv4 address are its source, up to 32.
    pub ipv4_prefix: u8,
    /// How many leading bits of an IPv6 address are its source, up to 128.
    pub ipv6_prefix: u8,
    /// Sources without connections that are remembered for their bucket, about: rounded up to full
    /// shards.
    pub kept_max: u32,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            connections: None,
            accepts_per_second: None,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            kept_max: 1024,
        }
    }
}

impl Caps {
    /// Whether anything is counted.
    #[must_use]
    pub fn count(&self) -> bool {
        self.connections.is_some() || self.accepts_per_second.is_some()
    }

    /// What `source` is counted under; nothing if it has no address.
    pub(super) fn key(&self, source: Source) -> Option<SourceKey> {
        match source {
            Source::Untold | Source::Local => None,
            Source::Ipv4([a, b, c, d]) => {
                let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, a, b, c, d];
                Some(SourceKey::new(mapped, 96 + self.ipv4_prefix))
            }
            Source::Ipv6(address) => Some(SourceKey::new(address, self.ipv6_prefix)),
        }
    }

    fn kept_max_of_shard(&self) -> usize {
        (self.kept_max as usize).div_ceil(SHARDS)
    }
}

/// The leading bits of an address, and how many they are: after a change of the prefix lengths the
/// old entries go out with their connections, and are no others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceKey {
    bits: [u8; 16],
    length: u8,
}

impl SourceKey {
    fn new(address: [u8; 16], length: u8) -> Self {
        assert!(length <= 128, "an address has 128 bits");
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self { bits: (u128::from_be_bytes(address) & mask).to_be_bytes(), length }
    }
}

/// What is known of a source.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Its connections, in all workers.
    connections: u32,
    /// When its bucket is full again, in nanoseconds.
    full_at: u64,
    /// Whether it is in [`Shard::kept`].
    kept: bool,
}

struct Shard {
    entries: HashMap<SourceKey, Entry, RandomState>,
    /// Sources that may have to go: those without connections whose bucket was not full, oldest
    /// first.
    kept: VecDeque<SourceKey>,
}

/// See the head of this file.
pub struct SourceLimiter {
    hashing: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

impl fmt::Debug for SourceLimiter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SourceLimiter of {} sources", self.sources())
    }
}

impl SourceLimiter {
    /// An empty limiter. Whoever chooses addresses cannot predict their shards if `hashing` is
    /// random.
    #[must_use]
    pub fn new(hashing: RandomState) -> Self {
        let shard = || {
            let entries = HashMap::with_hasher(hashing.clone());
            Mutex::new(Shard { entries, kept: VecDeque::new() })
        };
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hashing }
    }

    /// How many sources have an entry, in the shards that are not locked. For tests and simulation.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.shards.iter().filter_map(unlocked).map(|shard| shard.entries.len()).sum()
    }

    /// Panics if an entry has no reason to exist. For tests and simulation.
    pub fn check_invariants(&self) {
        for shard in self.shards.iter().filter_map(unlocked) {
            for (key, entry) in &shard.entries {
                assert!(entry.connections > 0 || entry.kept, "{key:?} has an entry for nothing");
            }
            let kept = shard.entries.values().filter(|entry| entry.kept).count();
            assert_eq!(kept, shard.kept.len(), "the queue of a shard and its entries differ");
        }
    }

    /// Locks all shards while `act` runs, as other workers may for a moment. For tests and
    /// simulation.
    pub fn while_held<T>(&self, act: impl FnOnce() -> T) -> T {
        let shards: Vec<_> = self.shards.iter().filter_map(unlocked).collect();
        let result = act();
        drop(shards);
        result
    }

    /// Counts one more connection of `key`, or says why it is refused. Nothing if the shard is
    /// locked.
    pub(super) fn enter(
        &self,
        now: Timestamp,
        key: SourceKey,
        caps: &Caps,
    ) -> Option<Result<(), RefuseReason>> {
        let mut shard = self.shard(key)?;
        shard.evict(now, caps);
        let entry = shard.entries.get(&key).copied().unwrap_or_default();
        if caps.connections.is_some_and(|cap| entry.connections >= cap) {
            return Some(Err(RefuseReason::SourceFull));
        }
        let mut full_at = entry.full_at;
        if let Some(rate) = caps.accepts_per_second {
            let (now, interval) = (nanoseconds(now), NANOSECONDS / u64::from(rate.max(1)));
            full_at = entry.full_at.max(now);
            if full_at - now > NANOSECONDS - interval {
                return Some(Err(RefuseReason::SourceRate));
            }
            full_at += interval;
        }
        shard.entries.insert(key, Entry { connections: entry.connections + 1, full_at, ..entry });
        Some(Ok(()))
    }

    /// Counts off a connection of `key`. False if the shard is locked.
    #[must_use]
    pub(super) fn leave(&self, now: Timestamp, key: SourceKey, caps: &Caps) -> bool {
        let Some(mut shard) = self.shard(key) else { return false };
        let Shard { entries, kept } = &mut *shard;
        let entry = entries.get_mut(&key).expect("invariant: who leaves has entered");
        entry.connections -= 1;
        if entry.connections == 0 && !entry.kept {
            if entry.full_at > nanoseconds(now) && caps.accepts_per_second.is_some() {
                entry.kept = true;
                kept.push_back(key);
            } else {
                entries.remove(&key);
            }
        }
        shard.evict(now, caps);
        true
    }

    fn shard(&self, key: SourceKey) -> Option<MutexGuard<'_, Shard>> {
        // Bits that the tables of the shards make little use of.
        let index = (self.hashing.hash_one(key) >> 32) as usize % SHARDS;
        unlocked(&self.shards[index])
    }
}

impl Shard {
    /// Looks at the entries that were kept longest: removes one whose bucket is full, or which is
    /// one too many; and takes one that has connections again out of the queue.
    fn evict(&mut self, now: Timestamp, caps: &Caps) {
        for _ in 0..LOOKS {
            let Some(key) = self.kept.pop_front() else { return };
            let entry = self.entries.get_mut(&key).expect("invariant: who is kept has an entry");
            let full = entry.full_at <= nanoseconds(now) || caps.accepts_per_second.is_none();
            if entry.connections > 0 {
                entry.kept = false;
            } else if full || self.kept.len() >= caps.kept_max_of_shard() {
                self.entries.remove(&key);
            } else {
                self.kept.push_back(key);
            }
        }
    }
}

/// The shard, unless it is locked. Never waits.
fn unlocked(shard: &Mutex<Shard>) -> Option<MutexGuard<'_, Shard>> {
    match shard.try_lock() {
        Ok(shard) => Some(shard),
        // Somebody panicked in the middle of it. Where panics unwind, that is: in tests.
        Err(TryLockError::Poisoned(shard)) => Some(shard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn nanoseconds(time: Timestamp) -> u64 {
    time.0.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Source = Source::Ipv4([192, 0, 2, 1]);

    fn limiter() -> SourceLimiter {
        SourceLimiter::new(RandomState::new())
    }

    fn enter(
        limiter: &SourceLimiter,
        now: u64,
        source: Source,
        caps: &Caps,
    ) -> Result<(), RefuseReason> {
        let key = caps.key(source).expect("it has an address");
        let verdict = limiter.enter(Timestamp(now), key, caps).expect("nobody else is here");
        limiter.check_invariants();
        verdict
    }

    fn leave(limiter: &SourceLimiter, now: u64, source: Source, caps: &Caps) {
        let key = caps.key(source).expect("it has an address");
        assert!(limiter.leave(Timestamp(now), key, caps));
        limiter.check_invariants();
    }

    #[test]
    fn a_source_is_refused_at_its_cap_and_no_other() {
        let (limiter, caps) = (limiter(), Caps { connections: Some(2), ..Caps::default() });
        assert_eq!(enter(&limiter, 0, PEER, &caps), Ok(()));
        assert_eq!(enter(&limiter, 0, PEER, &caps), Ok(()));
        assert_eq!(enter(&limiter, 0, PEER, &caps), Err(RefuseReason::SourceFull));
        assert_eq!(enter(&limiter, 0, Source::Ipv4([192, 0, 2, 2]), &caps), Ok(()));
        leave(&limiter, 0, PEER, &caps);
        assert_eq!(enter(&limiter, 0, PEER, &caps), Ok(()));
        for _ in 0..2 {
            leave(&limiter, 0, PEER, &caps);
        }
        leave(&limiter, 0, Source::Ipv4([192, 0, 2, 2]), &caps);
        assert_eq!(limiter.sources(), 0);
    }

    /// Goal: a bucket grants one second's worth at once and then the rate, exactly. Method: for
    /// many rates, knock every millisecond for five seconds, and count.
    #[test]
    fn a_bucket_grants_a_burst_and_then_its_rate() {
        for rate in [1, 2, 3, 7, 10, 100, 333, 999, 1000, 1_000_000] {
            let (limiter, caps) =
                (limiter(), Caps { accepts_per_second: Some(rate), ..Caps::default() });
            let burst = (0..rate + 5).filter(|_| enter(&limiter, 9, PEER, &caps).is_ok()).count();
            assert_eq!(burst, rate as usize, "rate {rate}");
            assert_eq!(enter(&limiter, 9, PEER, &caps), Err(RefuseReason::SourceRate));
            if rate <= 1000 {
                let later =
                    (10..5_009).filter(|at| enter(&limiter, *at, PEER, &caps).is_ok()).count();
                let least = 5 * rate as usize - 1;
                assert!((least..=least + 1).contains(&later), "{later} at rate {rate}");
            }
        }
    }

    #[test]
    fn leading_bits_are_one_source() {
        let caps = Caps { ipv4_prefix: 24, ipv6_prefix: 56, ..Caps::default() };
        let key = |source| caps.key(source).expect("it has an address");
        assert_eq!(key(Source::Ipv4([10, 1, 2, 3])), key(Source::Ipv4([10, 1, 2, 255])));
        assert_ne!(key(Source::Ipv4([10, 1, 2, 3])), key(Source::Ipv4([10, 1, 3, 3])));
        let mut one = [0x20; 16];
        let two = one;
        one[7] = 0x2f;
        assert_eq!(key(Source::Ipv6(one)), key(Source::Ipv6(two)));
        one[6] = 0x21;
        assert_ne!(key(Source::Ipv6(one)), key(Source::Ipv6(two)));
        assert_eq!((caps.key(Source::Local), caps.key(Source::Untold)), (None, None));
    }

    /// Goal: sources that come once and go do not fill the limiter: they are forgotten when their
    /// bucket is full, and when they are too many, at the latest.
    #[test]
    fn sources_that_went_are_forgotten() {
        let caps = Caps { accepts_per_second: Some(1), kept_max: 640, ..Caps::default() };
        let limiter = limiter();
        let source = |number: u32| Source::Ipv4(number.to_be_bytes());
        for number in 0..20_000 {
            assert_eq!(enter(&limiter, 0, source(number), &caps), Ok(()));
            leave(&limiter, 0, source(number), &caps);
            // The last one of a shard is one beyond its line until the next comes.
            assert!(limiter.sources() <= 640 + SHARDS, "{} sources", limiter.sources());
        }
        assert!(limiter.sources() > 500, "only {} are remembered", limiter.sources());
        // One second later all buckets are full: whoever comes sweeps the shard.
        for number in 0..20_000 {
            assert_eq!(enter(&limiter, 1_000, source(number), &caps), Ok(()));
        }
        for number in 0..20_000 {
            leave(&limiter, 2_000, source(number), &caps);
        }
        assert_eq!(limiter.sources(), 0);
    }

    #[test]
    fn a_page_in_other_hands_keeps_nobody_waiting() {
        let (limiter, caps) = (limiter(), Caps { connections: Some(1), ..Caps::default() });
        let key = caps.key(PEER).expect("it has an address");
        limiter.while_held(|| assert_eq!(limiter.enter(Timestamp(0), key, &caps), None));
        assert_eq!(enter(&limiter, 0, PEER, &caps), Ok(()));
        limiter.while_held(|| assert!(!limiter.leave(Timestamp(0), key, &caps)));
        assert_eq!(enter(&limiter, 0, PEER, &caps), Err(RefuseReason::SourceFull));
        leave(&limiter, 0, PEER, &caps);
        assert_eq!(limiter.sources(), 0);
    }
}
