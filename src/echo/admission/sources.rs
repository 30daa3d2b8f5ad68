//! The book of sources: how many connections each has, and how full its bucket of accepts is.
//!
//! All workers write in one book, or a cap would be a cap for each worker. It has [`PAGES`] pages,
//! and a source its page by hash, so two workers rarely want the same one at the same moment. A
//! page is held for one look-up; who finds it in other hands is told so at once and comes again.
//!
//! An entry stands as long as its source has connections, or a bucket that is not full. Those with
//! connections are as many as connections at most; of the others each page keeps its part of
//! [`Caps::kept_max`] and forgets the one that it has kept longest, which gives that source its
//! burst again, early. So nobody can fill the book, and no source is refused for want of room in
//! it.
//!
//! The bucket is kept as the moment at which it is full again: an accept moves that by one
//! interval, and is refused if it would be more than a second ahead. (The generic cell rate
//! algorithm of ATM; the same as a bucket that holds one second's worth.)

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::echo::op::{Source, Timestamp};
use crate::echo::stats::RefuseReason;

/// Pages of the book. With 64 a worker finds a page in other hands once in thousands of times.
const PAGES: usize = 64;
/// Kept entries that a page looks at in passing. One comes at a time, so two keep up.
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
    /// pages.
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

    fn kept_max_of_page(&self) -> usize {
        (self.kept_max as usize).div_ceil(PAGES)
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
    /// Whether it stands in [`Page::kept`].
    kept: bool,
}

struct Page {
    entries: HashMap<SourceKey, Entry, RandomState>,
    /// Sources that may have to go: those without connections whose bucket was not full, oldest
    /// first.
    kept: VecDeque<SourceKey>,
}

/// The book. See the head of this file.
pub struct SourceBook {
    hashing: RandomState,
    pages: Box<[Mutex<Page>]>,
}

impl fmt::Debug for SourceBook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SourceBook of {} sources", self.sources())
    }
}

impl SourceBook {
    /// An empty book. Who chooses addresses cannot foresee what a random `hashing` makes of them.
    #[must_use]
    pub fn new(hashing: RandomState) -> Self {
        let page = || {
            let entries = HashMap::with_hasher(hashing.clone());
            Mutex::new(Page { entries, kept: VecDeque::new() })
        };
        Self { pages: (0..PAGES).map(|_| page()).collect(), hashing }
    }

    /// How many sources stand in it; pages that somebody holds count for nothing. For tests and
    /// simulation.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.pages.iter().filter_map(open).map(|page| page.entries.len()).sum()
    }

    /// Whether every page is as it must be: each entry has a reason to stand there. For tests and
    /// simulation.
    pub fn check_invariants(&self) {
        for page in self.pages.iter().filter_map(open) {
            for (key, entry) in &page.entries {
                assert!(entry.connections > 0 || entry.kept, "{key:?} stands there for nothing");
            }
            let kept = page.entries.values().filter(|entry| entry.kept).count();
            assert_eq!(kept, page.kept.len(), "the line of a page and its entries differ");
        }
    }

    /// Holds all pages while `act` runs, as other workers may for a moment. For tests and
    /// simulation.
    pub fn while_held<T>(&self, act: impl FnOnce() -> T) -> T {
        let pages: Vec<_> = self.pages.iter().filter_map(open).collect();
        let result = act();
        drop(pages);
        result
    }

    /// Counts one more connection of `key`, or says why it is refused. Nothing if the page is in
    /// other hands.
    pub(super) fn enter(
        &self,
        now: Timestamp,
        key: SourceKey,
        caps: &Caps,
    ) -> Option<Result<(), RefuseReason>> {
        let mut page = self.page(key)?;
        page.tidy(now, caps);
        let entry = page.entries.get(&key).copied().unwrap_or_default();
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
        page.entries.insert(key, Entry { connections: entry.connections + 1, full_at, ..entry });
        Some(Ok(()))
    }

    /// Counts off a connection of `key`. False if the page is in other hands.
    #[must_use]
    pub(super) fn leave(&self, now: Timestamp, key: SourceKey, caps: &Caps) -> bool {
        let Some(mut page) = self.page(key) else { return false };
        let Page { entries, kept } = &mut *page;
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
        page.tidy(now, caps);
        true
    }

    fn page(&self, key: SourceKey) -> Option<MutexGuard<'_, Page>> {
        // Bits that the tables of the pages make little use of.
        let index = (self.hashing.hash_one(key) >> 32) as usize % PAGES;
        open(&self.pages[index])
    }
}

impl Page {
    /// Looks at those kept longest: forgets who has a full bucket, or came back, or is one too
    /// many.
    fn tidy(&mut self, now: Timestamp, caps: &Caps) {
        for _ in 0..LOOKS {
            let Some(key) = self.kept.pop_front() else { return };
            let entry = self.entries.get_mut(&key).expect("invariant: who is kept has an entry");
            let full = entry.full_at <= nanoseconds(now) || caps.accepts_per_second.is_none();
            if entry.connections > 0 {
                entry.kept = false;
            } else if full || self.kept.len() >= caps.kept_max_of_page() {
                self.entries.remove(&key);
            } else {
                self.kept.push_back(key);
            }
        }
    }
}

/// The page, unless it is in other hands. Never waits.
fn open(page: &Mutex<Page>) -> Option<MutexGuard<'_, Page>> {
    match page.try_lock() {
        Ok(page) => Some(page),
        // Somebody panicked in the middle of it. Where panics unwind, that is: in tests.
        Err(TryLockError::Poisoned(page)) => Some(page.into_inner()),
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

    fn book() -> SourceBook {
        SourceBook::new(RandomState::new())
    }

    fn enter(book: &SourceBook, now: u64, source: Source, caps: &Caps) -> Result<(), RefuseReason> {
        let key = caps.key(source).expect("it has an address");
        let verdict = book.enter(Timestamp(now), key, caps).expect("nobody else is here");
        book.check_invariants();
        verdict
    }

    fn leave(book: &SourceBook, now: u64, source: Source, caps: &Caps) {
        let key = caps.key(source).expect("it has an address");
        assert!(book.leave(Timestamp(now), key, caps));
        book.check_invariants();
    }

    #[test]
    fn a_source_is_refused_at_its_cap_and_no_other() {
        let (book, caps) = (book(), Caps { connections: Some(2), ..Caps::default() });
        assert_eq!(enter(&book, 0, PEER, &caps), Ok(()));
        assert_eq!(enter(&book, 0, PEER, &caps), Ok(()));
        assert_eq!(enter(&book, 0, PEER, &caps), Err(RefuseReason::SourceFull));
        assert_eq!(enter(&book, 0, Source::Ipv4([192, 0, 2, 2]), &caps), Ok(()));
        leave(&book, 0, PEER, &caps);
        assert_eq!(enter(&book, 0, PEER, &caps), Ok(()));
        for _ in 0..2 {
            leave(&book, 0, PEER, &caps);
        }
        leave(&book, 0, Source::Ipv4([192, 0, 2, 2]), &caps);
        assert_eq!(book.sources(), 0);
    }

    /// Goal: a bucket grants one second's worth at once and then the rate, exactly. Method: for
    /// many rates, knock every millisecond for five seconds, and count.
    #[test]
    fn a_bucket_grants_a_burst_and_then_its_rate() {
        for rate in [1, 2, 3, 7, 10, 100, 333, 999, 1000, 1_000_000] {
            let (book, caps) = (book(), Caps { accepts_per_second: Some(rate), ..Caps::default() });
            let burst = (0..rate + 5).filter(|_| enter(&book, 9, PEER, &caps).is_ok()).count();
            assert_eq!(burst, rate as usize, "rate {rate}");
            assert_eq!(enter(&book, 9, PEER, &caps), Err(RefuseReason::SourceRate));
            if rate <= 1000 {
                let later = (10..5_009).filter(|at| enter(&book, *at, PEER, &caps).is_ok()).count();
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

    /// Goal: sources that come once and go do not fill the book: they are forgotten when their
    /// bucket is full, and when they are too many, at the latest.
    #[test]
    fn sources_that_went_are_forgotten() {
        let caps = Caps { accepts_per_second: Some(1), kept_max: 640, ..Caps::default() };
        let book = book();
        let source = |number: u32| Source::Ipv4(number.to_be_bytes());
        for number in 0..20_000 {
            assert_eq!(enter(&book, 0, source(number), &caps), Ok(()));
            leave(&book, 0, source(number), &caps);
            // The last one of a page is one beyond its line until the next comes.
            assert!(book.sources() <= 640 + PAGES, "{} sources", book.sources());
        }
        assert!(book.sources() > 500, "only {} are remembered", book.sources());
        // One second later all buckets are full: whoever comes sweeps the page.
        for number in 0..20_000 {
            assert_eq!(enter(&book, 1_000, source(number), &caps), Ok(()));
        }
        for number in 0..20_000 {
            leave(&book, 2_000, source(number), &caps);
        }
        assert_eq!(book.sources(), 0);
    }

    #[test]
    fn a_page_in_other_hands_keeps_nobody_waiting() {
        let (book, caps) = (book(), Caps { connections: Some(1), ..Caps::default() });
        let key = caps.key(PEER).expect("it has an address");
        book.while_held(|| assert_eq!(book.enter(Timestamp(0), key, &caps), None));
        assert_eq!(enter(&book, 0, PEER, &caps), Ok(()));
        book.while_held(|| assert!(!book.leave(Timestamp(0), key, &caps)));
        assert_eq!(enter(&book, 0, PEER, &caps), Err(RefuseReason::SourceFull));
        leave(&book, 0, PEER, &caps);
        assert_eq!(book.sources(), 0);
    }
}
