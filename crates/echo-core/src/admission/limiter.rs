//! How much one source may take: connections at a time, and accepts per second.
//!
//! All workers share one [`Limiter`]; with one for each worker, a cap would apply to each worker.
//! It is called at an accept and at a close, never for an echo. The daemon's limiter has a
//! [`SourceTable`] behind a lock in each of its shards; the simulator's has one table.
//!
//! A table has an entry for each source with connections, or with a bucket that is not full. There
//! are at most as many entries with connections as connections. Of the other entries a table keeps
//! its share of [`SourceLimits::kept_max`] and evicts the one that it has kept longest. The source
//! of that entry gets its burst again, too early. Therefore no peer can fill a table, and no source
//! is refused because a table is full.
//!
//! The bucket is kept as the moment at which it is full again: an accept moves that by one
//! interval, and is refused if it would be more than a second ahead. (The generic cell rate
//! algorithm of ATM; the same as a bucket that holds one second's worth.)

use alloc::collections::{BTreeMap, VecDeque};
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use crate::id::Timestamp;
use crate::peer::PeerAddr;
use crate::reason::RefuseReason;

/// Kept entries that are examined at each look-up. At most one is added at a time, so two are
/// enough.
const LOOKS: usize = 2;
const NANOSECONDS: u64 = 1_000_000_000;

/// Counts connections by source, for all workers of the process.
pub trait Limiter: fmt::Debug + Send + Sync {
    /// Counts one more connection of `key`.
    ///
    /// # Errors
    /// Why the connection is refused. Nothing is counted then.
    fn enter(
        &self,
        now: Timestamp,
        key: SourceKey,
        limits: &SourceLimits,
    ) -> Result<(), RefuseReason>;

    /// Removes a connection of `key` that was counted by [`Limiter::enter`].
    fn leave(&self, now: Timestamp, key: SourceKey, limits: &SourceLimits);
}

/// A limiter that admits every connection and counts none.
#[derive(Clone, Copy, Debug)]
pub struct Unlimited;

impl Limiter for Unlimited {
    fn enter(&self, _: Timestamp, _: SourceKey, _: &SourceLimits) -> Result<(), RefuseReason> {
        Ok(())
    }

    fn leave(&self, _: Timestamp, _: SourceKey, _: &SourceLimits) {}
}

/// How much one source may take. The default has no limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// The maximum number of connections that a source may have open at the same time.
    pub connections: Option<u32>,
    /// The maximum number of connections of a source that are accepted per second, after a burst of
    /// as many.
    pub accepts_per_second: Option<u32>,
    /// How many leading bits of an IPv4 address identify its source, up to 32.
    pub ipv4_prefix: u8,
    /// How many leading bits of an IPv6 address identify its source, up to 128.
    pub ipv6_prefix: u8,
    /// Roughly how many sources without connections are remembered for their bucket: rounded up to
    /// full tables.
    pub kept_max: u32,
}

impl Default for SourceLimits {
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

impl SourceLimits {
    /// The same without bounds, for connections that are already open. Counting them changes no
    /// bucket, neither that of their source nor any other: an infinite rate is still a rate, so
    /// buckets that are not full are kept.
    #[must_use]
    pub fn boundless(&self) -> Self {
        let accepts_per_second = self.accepts_per_second.map(|_| u32::MAX);
        Self { connections: None, accepts_per_second, ..self.clone() }
    }

    /// Whether there is any limit, so that connections have to be counted.
    #[must_use]
    pub fn count(&self) -> bool {
        self.connections.is_some() || self.accepts_per_second.is_some()
    }

    /// The source under which `peer` is counted; none if it has no address.
    #[must_use]
    pub fn key(&self, peer: PeerAddr) -> Option<SourceKey> {
        match peer {
            PeerAddr::Unknown | PeerAddr::Local => None,
            PeerAddr::Ipv4([a, b, c, d]) => {
                let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, a, b, c, d];
                Some(SourceKey::new(mapped, 96 + self.ipv4_prefix))
            }
            PeerAddr::Ipv6(address) => Some(SourceKey::new(address, self.ipv6_prefix)),
        }
    }
}

/// The leading bits of an address, and their number. After a change of the prefix lengths, old
/// entries are therefore distinct from new ones, and are removed with their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    bits: [u8; 16],
    length: u8,
}

impl SourceKey {
    fn new(address: [u8; 16], length: u8) -> Self {
        assert!(length <= 128, "an address has 128 bits");
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self { bits: (u128::from_be_bytes(address) & mask).to_be_bytes(), length }
    }

    /// A hash that differs for most different sources, although an attacker can find collisions.
    pub(crate) fn fold(self) -> u32 {
        let bits = u128::from_be_bytes(self.bits);
        let folded = (bits >> 64) as u64 ^ bits as u64 ^ u64::from(self.length);
        // Fibonacci hashing: the upper bits depend on all of them.
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }
}

/// An address, or a network with the length of its prefix: `192.0.2.7`, `2001:db8::/64`.
impl fmt::Display for SourceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let Self { bits, length } = *self;
        let (length, full) = match bits {
            [head @ .., a, b, c, d] if head == MAPPED && length >= 96 => {
                Ipv4Addr::from([a, b, c, d]).fmt(formatter)?;
                (length - 96, 32)
            }
            bits => {
                Ipv6Addr::from(bits).fmt(formatter)?;
                (length, 128)
            }
        };
        if length < full { write!(formatter, "/{length}") } else { Ok(()) }
    }
}

/// The entry of a source.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Its connections, in all workers.
    connections: u32,
    /// When its bucket is full again, in nanoseconds.
    full_at: u64,
    /// Whether it is in [`SourceTable::kept`].
    kept: bool,
}

/// The sources of a limiter, or of one shard of it.
#[derive(Debug)]
pub struct SourceTable {
    entries: BTreeMap<SourceKey, Entry>,
    /// Candidates for eviction: sources without connections whose bucket was not full, oldest
    /// first.
    kept: VecDeque<SourceKey>,
    /// How many tables there are.
    tables: u32,
}

impl SourceTable {
    /// An empty table, one of `tables` that share [`SourceLimits::kept_max`].
    #[must_use]
    pub fn one_of(tables: u32) -> Self {
        assert!(tables > 0, "this is one");
        Self { entries: BTreeMap::new(), kept: VecDeque::new(), tables }
    }

    /// How many sources have an entry.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.entries.len()
    }

    /// As [`Limiter::enter`].
    ///
    /// # Errors
    /// Why the connection is refused.
    pub fn enter(
        &mut self,
        now: Timestamp,
        key: SourceKey,
        limits: &SourceLimits,
    ) -> Result<(), RefuseReason> {
        self.evict(now, limits);
        let entry = self.entries.get(&key).copied().unwrap_or_default();
        if limits.connections.is_some_and(|cap| entry.connections >= cap) {
            return Err(RefuseReason::SourceFull);
        }
        let mut full_at = entry.full_at;
        if let Some(rate) = limits.accepts_per_second {
            let (now, interval) = (nanoseconds(now), NANOSECONDS / u64::from(rate.max(1)));
            full_at = entry.full_at.max(now);
            if full_at - now > NANOSECONDS - interval {
                return Err(RefuseReason::SourceRate);
            }
            full_at += interval;
        }
        self.entries.insert(key, Entry { connections: entry.connections + 1, full_at, ..entry });
        Ok(())
    }

    /// As [`Limiter::leave`].
    pub fn leave(&mut self, now: Timestamp, key: SourceKey, limits: &SourceLimits) {
        let entry = self.entries.get_mut(&key).expect("invariant: what leaves has entered");
        entry.connections -= 1;
        if entry.connections == 0 && !entry.kept {
            if entry.full_at > nanoseconds(now) && limits.accepts_per_second.is_some() {
                entry.kept = true;
                self.kept.push_back(key);
            } else {
                self.entries.remove(&key);
            }
        }
        self.evict(now, limits);
    }

    /// Examines the entries that were kept longest. Removes an entry whose bucket is full, or if
    /// there is one too many. Takes an entry that has connections again out of the queue.
    fn evict(&mut self, now: Timestamp, limits: &SourceLimits) {
        let kept_max = limits.kept_max.div_ceil(self.tables) as usize;
        for _ in 0..LOOKS {
            let Some(key) = self.kept.pop_front() else { return };
            let entry = self.entries.get_mut(&key).expect("invariant: what is kept has an entry");
            let full = entry.full_at <= nanoseconds(now) || limits.accepts_per_second.is_none();
            if entry.connections > 0 {
                entry.kept = false;
            } else if full || self.kept.len() >= kept_max {
                self.entries.remove(&key);
            } else {
                self.kept.push_back(key);
            }
        }
    }

    /// Panics if an entry has no reason to exist. For tests and simulation.
    pub fn check_invariants(&self) {
        for (key, entry) in &self.entries {
            assert!(entry.connections > 0 || entry.kept, "{key:?} needs no entry");
        }
        let kept = self.entries.values().filter(|entry| entry.kept).count();
        assert_eq!(kept, self.kept.len(), "the queue of a table and its entries differ");
    }
}

fn nanoseconds(time: Timestamp) -> u64 {
    time.0.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    const PEER: PeerAddr = PeerAddr::Ipv4([192, 0, 2, 1]);

    #[test]
    fn a_source_is_shown_as_an_address_or_a_network() {
        let shown = |peer, ipv4_prefix, ipv6_prefix| {
            let limits = SourceLimits { ipv4_prefix, ipv6_prefix, ..SourceLimits::default() };
            std::format!("{}", limits.key(peer).expect("it has an address"))
        };
        let ipv6 = PeerAddr::Ipv6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!([32, 24].map(|bits| shown(PEER, bits, 64)), ["192.0.2.1", "192.0.2.0/24"]);
        assert_eq!([64, 128].map(|bits| shown(ipv6, 32, bits)), ["2001:db8::/64", "2001:db8::9"]);
    }

    fn enter(
        table: &mut SourceTable,
        now: u64,
        peer: PeerAddr,
        limits: &SourceLimits,
    ) -> Result<(), RefuseReason> {
        let key = limits.key(peer).expect("it has an address");
        let verdict = table.enter(Timestamp(now), key, limits);
        table.check_invariants();
        verdict
    }

    fn leave(table: &mut SourceTable, now: u64, peer: PeerAddr, limits: &SourceLimits) {
        let key = limits.key(peer).expect("it has an address");
        table.leave(Timestamp(now), key, limits);
        table.check_invariants();
    }

    #[test]
    fn a_source_is_refused_at_its_cap_and_no_other() {
        let mut table = SourceTable::one_of(1);
        let limits = SourceLimits { connections: Some(2), ..SourceLimits::default() };
        assert_eq!(enter(&mut table, 0, PEER, &limits), Ok(()));
        assert_eq!(enter(&mut table, 0, PEER, &limits), Ok(()));
        assert_eq!(enter(&mut table, 0, PEER, &limits), Err(RefuseReason::SourceFull));
        assert_eq!(enter(&mut table, 0, PeerAddr::Ipv4([192, 0, 2, 2]), &limits), Ok(()));
        leave(&mut table, 0, PEER, &limits);
        assert_eq!(enter(&mut table, 0, PEER, &limits), Ok(()));
        for _ in 0..2 {
            leave(&mut table, 0, PEER, &limits);
        }
        leave(&mut table, 0, PeerAddr::Ipv4([192, 0, 2, 2]), &limits);
        assert_eq!(table.sources(), 0);
    }

    /// Goal: a bucket grants one second's worth at once and then the rate, exactly. Method: for
    /// many rates, connect every millisecond for five seconds, and count.
    #[test]
    fn a_bucket_grants_a_burst_and_then_its_rate() {
        for rate in [1, 2, 3, 7, 10, 100, 333, 999, 1000, 1_000_000] {
            let mut table = SourceTable::one_of(1);
            let limits = SourceLimits { accepts_per_second: Some(rate), ..SourceLimits::default() };
            let mut is_let_in = |at: u64| enter(&mut table, at, PEER, &limits).is_ok();
            let burst = (0..rate + 5).filter(|_| is_let_in(9)).count();
            assert_eq!(burst, rate as usize, "rate {rate}");
            if rate <= 1000 {
                let later = (10..5_009).filter(|at| is_let_in(*at)).count();
                let least = 5 * rate as usize - 1;
                assert!((least..=least + 1).contains(&later), "{later} at rate {rate}");
            } else {
                assert_eq!(enter(&mut table, 9, PEER, &limits), Err(RefuseReason::SourceRate));
            }
        }
    }

    #[test]
    fn leading_bits_are_one_source() {
        let limits = SourceLimits { ipv4_prefix: 24, ipv6_prefix: 56, ..SourceLimits::default() };
        let key = |peer| limits.key(peer).expect("it has an address");
        assert_eq!(key(PeerAddr::Ipv4([10, 1, 2, 3])), key(PeerAddr::Ipv4([10, 1, 2, 255])));
        assert_ne!(key(PeerAddr::Ipv4([10, 1, 2, 3])), key(PeerAddr::Ipv4([10, 1, 3, 3])));
        let mut one = [0x20; 16];
        let two = one;
        one[7] = 0x2f;
        assert_eq!(key(PeerAddr::Ipv6(one)), key(PeerAddr::Ipv6(two)));
        one[6] = 0x21;
        assert_ne!(key(PeerAddr::Ipv6(one)), key(PeerAddr::Ipv6(two)));
        assert_eq!((limits.key(PeerAddr::Local), limits.key(PeerAddr::Unknown)), (None, None));
    }

    /// Goal: sources that connect only once do not fill a table: they are forgotten when their
    /// bucket is full, or before if there are too many.
    #[test]
    fn sources_that_went_are_forgotten() {
        let limits = SourceLimits {
            accepts_per_second: Some(1),
            kept_max: 6_400,
            ..SourceLimits::default()
        };
        let mut table = SourceTable::one_of(10);
        let peer = |number: u32| PeerAddr::Ipv4(number.to_be_bytes());
        for number in 0..20_000 {
            assert_eq!(enter(&mut table, 0, peer(number), &limits), Ok(()));
            leave(&mut table, 0, peer(number), &limits);
            // The last one is one too many until the next look-up.
            assert!(table.sources() <= 641, "{} sources", table.sources());
        }
        assert!(table.sources() > 500, "only {} are remembered", table.sources());
        // One second later all buckets are full: any look-up cleans the table.
        for number in 0..20_000 {
            assert_eq!(
                table.enter(Timestamp(1_000), limits.key(peer(number)).unwrap(), &limits),
                Ok(())
            );
        }
        for number in 0..20_000 {
            table.leave(Timestamp(2_000), limits.key(peer(number)).unwrap(), &limits);
        }
        assert_eq!(table.sources(), 0);
    }

    /// Goal: connections that are counted regardless of the limits do not change the buckets. Found
    /// by the simulator (seed 24995), where a failed handover filled them.
    #[test]
    fn an_open_connection_is_counted_without_a_change_of_buckets() {
        let limits = SourceLimits { accepts_per_second: Some(1), ..SourceLimits::default() };
        let other = PeerAddr::Ipv4([198, 51, 100, 1]);
        let mut table = SourceTable::one_of(1);
        assert_eq!(enter(&mut table, 1_000, PEER, &limits), Ok(()));
        leave(&mut table, 1_001, PEER, &limits);
        for peer in [other, PEER, PEER] {
            assert_eq!(enter(&mut table, 1_002, peer, &limits.boundless()), Ok(()));
        }
        assert_eq!(enter(&mut table, 1_003, PEER, &limits), Err(RefuseReason::SourceRate));
        assert_eq!(enter(&mut table, 1_003, other, &limits), Ok(()));
        assert_eq!(enter(&mut table, 2_000, PEER, &limits), Ok(()));
    }

    #[test]
    fn sources_next_to_each_other_have_different_hashes() {
        let ipv4 = |last: u8| {
            let mut address = [0; 16];
            address[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, last]);
            SourceKey::new(address, 128)
        };
        let ipv6 = |last: u8| {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, last]);
            SourceKey::new(address, 64)
        };
        let keys = (0..=255).flat_map(|last| [ipv4(last), ipv6(last)]);
        let hashes: BTreeSet<u32> = keys.map(SourceKey::fold).collect();
        assert_eq!(hashes.len(), 2 * 256);
    }
}
