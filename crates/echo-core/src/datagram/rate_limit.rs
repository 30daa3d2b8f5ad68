//! How much one source may send: datagrams and bytes per second, over all workers.
//!
//! Each source has a bucket of tokens, one for a datagram and one for a byte, which holds one
//! second's worth and fills at its rate. All workers share the buckets ([`RateLimiter`]), but a
//! cache line that every worker writes for every datagram would cost more than the datagram.
//! Therefore a worker takes tokens in advance, a *lease* ([`Leases`]), and spends them without
//! further synchronization. The first lease is small; each that is renewed within [`RENEWAL_US`] is
//! twice as large, up to 1/[`LEASES_PER_SECOND`] of a second's worth. Therefore a busy source
//! causes some 64 visits a second to its bucket, and beyond what it has answered a worker holds at
//! most one 64th for each source. What all workers answer in a second is at most two seconds' worth
//! at first and one second's worth afterwards, plus those leases.
//!
//! Both tables are bounded, so forged sources cannot exhaust memory. The source of an evicted
//! bucket gets a full bucket again, too early; an evicted lease is given back.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;

use super::traffic::DropReason;
use crate::admission::SourceKey;

/// Leases of the largest size that make up one second's worth.
const LEASES_PER_SECOND: u64 = 64;
/// The first lease of a source.
const FIRST: Amount = Amount { datagrams: 8, bytes: 16 << 10 };
/// A lease that is used up in less than this many microseconds is followed by one of twice the
/// size.
const RENEWAL_US: u64 = 250_000;
/// The number of times that a lease can double: after it the lease has the largest size at any
/// rate.
const DOUBLINGS_MAX: u8 = 40;
/// Leases that a worker holds at most, a power of two. Two sources in the same entry of the table
/// evict each other, which costs a visit to their buckets.
const LEASES: usize = 1024;
/// Buckets that are examined at each visit. At most one is added at a time, so two are enough.
const LOOKS: usize = 2;
/// A second in microseconds. A bucket holds one second's worth of tokens.
const SECOND_US: u64 = 1_000_000;

/// Datagrams and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

impl Amount {
    fn covers(self, other: Self) -> bool {
        self.datagrams >= other.datagrams && self.bytes >= other.bytes
    }

    fn minus(self, other: Self) -> Self {
        Self { datagrams: self.datagrams - other.datagrams, bytes: self.bytes - other.bytes }
    }

    /// What has to be added to `other` for it to cover this.
    fn lacking(self, other: Self) -> Self {
        Self {
            datagrams: self.datagrams.saturating_sub(other.datagrams),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            datagrams: self.datagrams.saturating_add(other.datagrams),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    fn times(self, factor: u64) -> Self {
        Self {
            datagrams: self.datagrams.saturating_mul(factor),
            bytes: self.bytes.saturating_mul(factor),
        }
    }

    fn max(self, other: Self) -> Self {
        Self { datagrams: self.datagrams.max(other.datagrams), bytes: self.bytes.max(other.bytes) }
    }

    fn min(self, other: Self) -> Self {
        Self { datagrams: self.datagrams.min(other.datagrams), bytes: self.bytes.min(other.bytes) }
    }
}

/// How much one source may send in a second; after a pause of a second, as much in one burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Datagrams, at most a million million.
    pub datagrams: Option<u64>,
    /// Bytes of payload, at most a million million.
    pub bytes: Option<u64>,
}

impl Rates {
    /// Whether there is any limit.
    #[must_use]
    pub fn limit(&self) -> bool {
        self.datagrams.is_some() || self.bytes.is_some()
    }

    /// One second's worth.
    fn capacity(&self) -> Amount {
        Amount {
            datagrams: self.datagrams.unwrap_or(u64::MAX),
            bytes: self.bytes.unwrap_or(u64::MAX),
        }
    }

    /// The next lease, after `doublings` leases in a row that were used up quickly.
    fn lease(&self, doublings: u8) -> Amount {
        let doubled = |first: u64| first.saturating_mul(1 << doublings.min(DOUBLINGS_MAX));
        let Amount { datagrams, bytes } = self.capacity();
        let most =
            Amount { datagrams: datagrams / LEASES_PER_SECOND, bytes: bytes / LEASES_PER_SECOND };
        Amount { datagrams: doubled(FIRST.datagrams), bytes: doubled(FIRST.bytes) }.min(most)
    }
}

/// Keeps the buckets of all sources, for all workers of the process. A worker asks it for leases,
/// not for each datagram of a busy source.
pub trait RateLimiter: fmt::Debug + Send + Sync {
    /// Takes `wanted` from the bucket of `key`, or what the bucket has if that is at least `least`.
    ///
    /// # Errors
    /// If there is less; then nothing is taken.
    fn take(
        &self,
        now_us: u64,
        key: SourceKey,
        rates: &Rates,
        wanted: Amount,
        least: Amount,
    ) -> Result<Amount, DropReason>;

    /// Gives back tokens that were taken and not used.
    fn give_back(&self, key: SourceKey, rates: &Rates, unused: Amount);
}

/// A limiter without limits.
#[derive(Clone, Copy, Debug)]
pub struct Unmetered;

impl RateLimiter for Unmetered {
    fn take(
        &self,
        _: u64,
        _: SourceKey,
        _: &Rates,
        wanted: Amount,
        _: Amount,
    ) -> Result<Amount, DropReason> {
        Ok(wanted)
    }

    fn give_back(&self, _: SourceKey, _: &Rates, _: Amount) {}
}

/// The bucket of a source.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In millionths of a token, so that no fraction of a token is lost over short times.
    tokens: Amount,
    at_us: u64,
}

impl Bucket {
    fn full(rates: &Rates, at_us: u64) -> Self {
        Self { tokens: rates.capacity().times(SECOND_US), at_us }
    }

    fn refill(&mut self, rates: &Rates, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.at_us).min(SECOND_US);
        self.put(rates, rates.capacity().times(elapsed_us));
        self.at_us = self.at_us.max(now_us);
    }

    fn holds(&self, rates: &Rates) -> Amount {
        // Without a rate the number of tokens is unlimited.
        let whole = |rate: Option<u64>, tokens: u64| rate.map_or(u64::MAX, |_| tokens / SECOND_US);
        Amount {
            datagrams: whole(rates.datagrams, self.tokens.datagrams),
            bytes: whole(rates.bytes, self.tokens.bytes),
        }
    }

    fn take(&mut self, amount: Amount) {
        self.tokens = self.tokens.lacking(amount.times(SECOND_US));
    }

    /// Adds millionths of tokens, as far as the bucket holds them.
    fn put(&mut self, rates: &Rates, tokens: Amount) {
        self.tokens = self.tokens.plus(tokens).min(rates.capacity().times(SECOND_US));
    }
}

/// The buckets of a limiter, or of one shard of it.
#[derive(Debug)]
pub struct BucketTable {
    buckets: BTreeMap<SourceKey, Bucket>,
    /// Every bucket once, roughly in order of creation.
    order: VecDeque<SourceKey>,
    count_max: usize,
}

impl BucketTable {
    /// An empty table for `count_max` buckets, at least 1.
    #[must_use]
    pub fn new(count_max: usize) -> Self {
        Self { buckets: BTreeMap::new(), order: VecDeque::new(), count_max: count_max.max(1) }
    }

    /// How many sources have a bucket.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.buckets.len()
    }

    /// As [`RateLimiter::take`].
    ///
    /// # Errors
    /// If there is less than `least`.
    pub fn take(
        &mut self,
        now_us: u64,
        key: SourceKey,
        rates: &Rates,
        wanted: Amount,
        least: Amount,
    ) -> Result<Amount, DropReason> {
        self.evict(now_us);
        let bucket = self.buckets.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Bucket::full(rates, now_us)
        });
        bucket.refill(rates, now_us);
        let holds = bucket.holds(rates);
        if holds.datagrams < least.datagrams {
            return Err(DropReason::SourceDatagrams);
        }
        if holds.bytes < least.bytes {
            return Err(DropReason::SourceBytes);
        }
        let granted = wanted.max(least).min(holds);
        bucket.take(granted);
        Ok(granted)
    }

    /// As [`RateLimiter::give_back`].
    pub fn give_back(&mut self, key: SourceKey, rates: &Rates, unused: Amount) {
        if let Some(bucket) = self.buckets.get_mut(&key) {
            bucket.put(rates, unused.times(SECOND_US));
        }
    }

    /// Examines the oldest buckets. Removes one if nothing has been taken from it for a second,
    /// because it is full again, or if the table has one bucket too many.
    fn evict(&mut self, now_us: u64) {
        for _ in 0..LOOKS {
            let Some(key) = self.order.pop_front() else { return };
            let unused_us = now_us.saturating_sub(self.buckets[&key].at_us);
            if unused_us >= SECOND_US || self.order.len() >= self.count_max {
                self.buckets.remove(&key);
            } else {
                self.order.push_back(key);
            }
        }
    }

    /// Panics if a bucket is not listed exactly once. For tests and simulation.
    pub fn check_invariants(&self) {
        assert_eq!(self.order.len(), self.buckets.len(), "a bucket is not listed exactly once");
        assert!(self.buckets.len() <= self.count_max + 1, "the table is too full");
    }
}

/// What a worker holds of the bucket of a source.
#[derive(Clone, Copy, Debug)]
struct Lease {
    key: SourceKey,
    left: Amount,
    taken_us: u64,
    doublings: u8,
    /// The bucket held too few tokens of one kind. It is not visited again before this moment.
    refused: Option<(u64, DropReason)>,
}

/// The leases of one worker.
#[derive(Debug)]
pub(super) struct Leases {
    /// Each source has one entry that may hold its lease. Empty until the first datagram.
    places: Vec<Option<Lease>>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { places: Vec::new() }
    }

    /// Charges the source `key` for `amount`.
    ///
    /// # Errors
    /// If it has sent too much.
    pub(super) fn charge(
        &mut self,
        now_us: u64,
        key: SourceKey,
        rates: &Rates,
        limiter: &dyn RateLimiter,
        amount: Amount,
    ) -> Result<(), DropReason> {
        if self.places.is_empty() {
            self.places.resize(LEASES, None);
        }
        let place = &mut self.places[key.fold() as usize % LEASES];
        let (mut left, mut doublings) = (Amount::default(), 0);
        if let Some(lease) = place {
            if lease.key != key {
                limiter.give_back(lease.key, rates, lease.left);
            } else if lease.left.covers(amount) {
                lease.left = lease.left.minus(amount);
                return Ok(());
            } else if let Some((until_us, reason)) = lease.refused
                && now_us < until_us
            {
                return Err(reason);
            } else {
                left = lease.left;
                if now_us.saturating_sub(lease.taken_us) < RENEWAL_US {
                    doublings = (lease.doublings + 1).min(DOUBLINGS_MAX);
                }
            }
        }
        // The rest of the old lease counts towards the new one. No token of it is lost, and no
        // tokens accumulate of a kind that the source does not use up.
        let missing = amount.lacking(left);
        let wanted = rates.lease(doublings).lacking(left);
        let taken = limiter.take(now_us, key, rates, wanted, missing);
        // This also bounds how often per second a flood visits a bucket.
        let until_us = now_us + SECOND_US / LEASES_PER_SECOND;
        let refused = taken.err().map(|reason| (until_us, reason));
        let verdict = taken.map(|taken| left = left.plus(taken).minus(amount));
        *place = Some(Lease { key, left, taken_us: now_us, doublings, refused });
        verdict
    }

    /// Gives all of them back, because the rates are about to change.
    pub(super) fn give_back(&mut self, rates: &Rates, limiter: &dyn RateLimiter) {
        for lease in self.places.iter_mut().filter_map(Option::take) {
            limiter.give_back(lease.key, rates, lease.left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::admission::SourceLimits;
    use crate::peer::PeerAddr;

    #[derive(Debug)]
    struct Table(Mutex<BucketTable>);

    impl RateLimiter for Table {
        fn take(
            &self,
            now_us: u64,
            key: SourceKey,
            rates: &Rates,
            wanted: Amount,
            least: Amount,
        ) -> Result<Amount, DropReason> {
            let mut table = self.0.lock().unwrap();
            let taken = table.take(now_us, key, rates, wanted, least);
            table.check_invariants();
            taken
        }

        fn give_back(&self, key: SourceKey, rates: &Rates, unused: Amount) {
            self.0.lock().unwrap().give_back(key, rates, unused);
        }
    }

    fn table(count_max: usize) -> Table {
        Table(Mutex::new(BucketTable::new(count_max)))
    }

    fn key(number: u32) -> SourceKey {
        SourceLimits::default().key(PeerAddr::Ipv4(number.to_be_bytes())).unwrap()
    }

    const ONE: Amount = Amount { datagrams: 1, bytes: 10 };

    /// Goal: a source gets one second's worth at once and then its rate, independent of the size of
    /// its datagrams and of the number of workers that it is spread over. No token is lost, and
    /// none is created.
    #[test]
    fn a_source_gets_its_rate_over_all_workers() {
        for (rate, workers, each) in [(1_000, 1, 1), (1_000, 8, 1), (999, 3, 32), (10_000, 64, 1)] {
            let limiter = table(16);
            let rates = Rates { datagrams: Some(rate), bytes: None };
            let mut leases: Vec<Leases> = (0..workers).map(|_| Leases::new()).collect();
            let amount = Amount { datagrams: each, bytes: 0 };
            let mut answered = 0;
            // Twice the rate for four seconds.
            let steps = 4_000;
            let mut sent = 0;
            for step in 0..steps {
                let now_us = step * 1_000;
                while sent < (step + 1) * 2 * rate / 1_000 {
                    let worker = &mut leases[sent as usize / each as usize % workers];
                    if worker.charge(now_us, key(1), &rates, &limiter, amount).is_ok() {
                        answered += each;
                    }
                    sent += each;
                }
            }
            let most = rate + 4 * rate;
            let least = most - most / 20 - workers as u64 * (rate / LEASES_PER_SECOND + each);
            assert!((least..=most).contains(&answered), "{answered} of {most} at {rate}");
        }
    }

    #[test]
    fn bytes_are_limited_as_well() {
        let limiter = table(16);
        let rates = Rates { datagrams: None, bytes: Some(100_000) };
        let mut leases = Leases::new();
        let amount = Amount { datagrams: 1, bytes: 30_000 };
        let verdicts: Vec<_> =
            (0..5).map(|_| leases.charge(0, key(1), &rates, &limiter, amount)).collect();
        let refused = Err(DropReason::SourceBytes);
        assert_eq!(verdicts, [Ok(()), Ok(()), Ok(()), refused, refused]);
        assert_eq!(leases.charge(300_000, key(1), &rates, &limiter, amount), Ok(()));
        assert_eq!(leases.charge(300_000, key(2), &rates, &limiter, amount), Ok(()));
    }

    /// Goal: datagrams that are refused without a visit to the bucket are counted under the limit
    /// that refused them. Method: a lease whose datagrams are used up, of a source that has only a
    /// limit of bytes.
    #[test]
    fn a_refusal_is_remembered_with_its_reason() {
        let limiter = table(16);
        let rates = Rates { datagrams: None, bytes: Some(640) };
        let mut leases = Leases::new();
        let short = Amount { datagrams: 1, bytes: 1 };
        for _ in 0..FIRST.datagrams {
            assert_eq!(leases.charge(0, key(1), &rates, &limiter, short), Ok(()));
        }
        let long = Amount { datagrams: 1, bytes: 1_000 };
        for _ in 0..3 {
            let refused = leases.charge(0, key(1), &rates, &limiter, long);
            assert_eq!(refused, Err(DropReason::SourceBytes));
        }
    }

    /// Goal: a busy source visits its bucket some 64 times a second, a quiet one at most once for
    /// each datagram.
    #[test]
    fn a_busy_source_rarely_visits_its_bucket() {
        #[derive(Debug, Default)]
        struct Counting(Mutex<u32>);
        impl RateLimiter for Counting {
            fn take(
                &self,
                _: u64,
                _: SourceKey,
                _: &Rates,
                wanted: Amount,
                _: Amount,
            ) -> Result<Amount, DropReason> {
                *self.0.lock().unwrap() += 1;
                Ok(wanted)
            }
            fn give_back(&self, _: SourceKey, _: &Rates, _: Amount) {}
        }
        let limiter = Counting::default();
        let rates = Rates { datagrams: Some(100_000), bytes: None };
        let mut leases = Leases::new();
        for sent in 0..100_000 {
            leases.charge(sent * 10, key(1), &rates, &limiter, ONE).unwrap();
        }
        let visits = *limiter.0.lock().unwrap();
        assert!((64..90).contains(&visits), "{visits} visits");
    }

    /// Goal: forged sources neither overfill the table nor take tokens from an honest source.
    #[test]
    fn forged_sources_do_not_overfill_the_table() {
        let limiter = table(100);
        let rates = Rates { datagrams: Some(1_000), bytes: None };
        let mut leases = Leases::new();
        for number in 0..20_000 {
            let now_us = u64::from(number) * 100;
            leases.charge(now_us, key(number + 10), &rates, &limiter, ONE).unwrap();
            if number % 100 == 0 {
                // 100 a second, of 1,000 that it may send.
                assert_eq!(leases.charge(now_us, key(1), &rates, &limiter, ONE), Ok(()));
            }
        }
        assert!(limiter.0.lock().unwrap().sources() <= 101);
    }

    /// Goal: a worker holds one lease and no more, also of the kind of token that a source hardly
    /// uses. Otherwise the source could send the bytes of a minute in one second. Method: a minute
    /// of small datagrams, then a second of long ones.
    #[test]
    fn unused_tokens_do_not_accumulate() {
        let limiter = table(16);
        let rates = Rates { datagrams: Some(1_000), bytes: Some(1_000_000) };
        let mut leases = Leases::new();
        for now_ms in 0..60_000 {
            leases.charge(now_ms * 1_000, key(1), &rates, &limiter, ONE).unwrap();
        }
        let long = Amount { datagrams: 1, bytes: 10_000 };
        let answered = (60_000..61_000)
            .filter(|now_ms| leases.charge(now_ms * 1_000, key(1), &rates, &limiter, long).is_ok());
        let bytes = answered.count() as u64 * long.bytes;
        assert!(bytes <= 2_000_000 + 1_000_000 / LEASES_PER_SECOND, "{bytes} bytes in a second");
    }

    #[test]
    fn what_is_given_back_can_be_used() {
        let limiter = table(4);
        let rates = Rates { datagrams: Some(640), bytes: None };
        let mut leases = Leases::new();
        for _ in 0..640 {
            assert_eq!(leases.charge(0, key(1), &rates, &limiter, ONE), Ok(()));
            leases.give_back(&rates, &limiter);
        }
        let refused = leases.charge(0, key(1), &rates, &limiter, ONE);
        assert_eq!(refused, Err(DropReason::SourceDatagrams));
    }

    #[test]
    fn without_rates_nothing_is_limited() {
        assert!(!Rates::default().limit());
        for rates in
            [Rates { datagrams: Some(1), bytes: None }, Rates { datagrams: None, bytes: Some(1) }]
        {
            assert!(rates.limit());
        }
        let wanted = Amount { datagrams: 3, bytes: 40 };
        let key = SourceLimits::default().key(PeerAddr::Ipv4([192, 0, 2, 1])).unwrap();
        let taken = Unmetered.take(0, key, &Rates::default(), wanted, Amount::default());
        assert_eq!(taken, Ok(wanted));
    }

    #[test]
    fn a_table_knows_its_sources() {
        let rates = Rates { datagrams: Some(100), bytes: None };
        let mut table = BucketTable::new(2);
        let one = Amount { datagrams: 1, bytes: 1 };
        // One too many is evicted by the next.
        for (last, sources) in [(1, 1), (1, 1), (2, 2), (3, 3), (4, 3)] {
            let key = SourceLimits::default().key(PeerAddr::Ipv4([192, 0, 2, last])).unwrap();
            assert_eq!(table.take(0, key, &rates, one, one), Ok(one));
            assert_eq!(table.sources(), sources);
        }
    }
}
