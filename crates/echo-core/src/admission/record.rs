//! The refused sources, and the last accepts. An operator needs them when a client complains.
//!
//! - [`RefusedSources`] counts refusals by source in a fixed number of entries, with the algorithm
//!   Space-Saving (Metwally, Agrawal and El Abbadi 2005). A source without an entry takes over the
//!   entry with the lowest count. Therefore a source with more than one in [`SOURCES_MAX`] of all
//!   refusals has an entry, and a count is too high by at most [`RefusedSource::excess`].
//! - [`AcceptLog`] keeps the last accepts, if the policy wants them logged. The event loop itself
//!   logs nothing: another thread reads the log, and accepts that it was too slow to read are
//!   counted.
//!
//! Both are written when an accept is judged, never for an echo, and allocate at most once.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::limiter::SourceKey;
use crate::id::ListenerId;
use crate::peer::PeerAddr;
use crate::reason::RefuseReason;

/// Entries of [`RefusedSources`] in one worker.
pub const SOURCES_MAX: usize = 16;
/// Accepts that an [`AcceptLog`] keeps: more than are written to the log at once.
pub const ACCEPTS_MAX: usize = 128;

/// A source, and how often it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedSource {
    /// The source.
    pub source: SourceKey,
    /// Refusals. At most [`Self::excess`] too high.
    pub count: u64,
    /// Refusals in `count` that may have been those of other sources.
    pub excess: u64,
    /// The reason of its last refusal.
    pub reason: RefuseReason,
}

/// The sources that were refused most often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedSources {
    /// At most [`SOURCES_MAX`] of one worker.
    entries: Vec<RefusedSource>,
    /// The source that was refused last, for each reason.
    last: [Option<SourceKey>; RefuseReason::ALL.len()],
}

impl RefusedSources {
    /// Counts one more refusal of `source`.
    pub(super) fn note(&mut self, source: SourceKey, reason: RefuseReason) {
        self.last[reason as usize] = Some(source);
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.source == source) {
            *entry = RefusedSource { count: entry.count + 1, reason, ..*entry };
            return;
        }
        if self.entries.len() < SOURCES_MAX {
            self.entries.reserve_exact(SOURCES_MAX - self.entries.len());
            return self.entries.push(RefusedSource { source, count: 1, excess: 0, reason });
        }
        let lowest = self.entries.iter_mut().min_by_key(|entry| entry.count);
        let lowest = lowest.expect("invariant: it is full");
        let excess = lowest.count;
        *lowest = RefusedSource { source, count: excess + 1, excess, reason };
    }

    /// Adds the counts of another worker. The sum has an entry for each source of either.
    pub fn add(&mut self, other: &Self) {
        for theirs in &other.entries {
            match self.entries.iter_mut().find(|mine| mine.source == theirs.source) {
                Some(mine) => {
                    mine.count += theirs.count;
                    mine.excess += theirs.excess;
                    mine.reason = theirs.reason;
                }
                None => self.entries.push(*theirs),
            }
        }
        for (mine, theirs) in self.last.iter_mut().zip(other.last) {
            *mine = theirs.or(*mine);
        }
    }

    /// Becomes a copy of `other`, in the memory that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.entries.clear();
        self.entries.extend_from_slice(&other.entries);
        self.last = other.last;
    }

    /// The `count` sources that were refused most often, in that order.
    #[must_use]
    pub fn top(&self, count: usize) -> Vec<RefusedSource> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|entry| core::cmp::Reverse(entry.count));
        entries.truncate(count);
        entries
    }

    /// The source that was refused last for this reason; over several workers, one of the last.
    #[must_use]
    pub fn last(&self, reason: RefuseReason) -> Option<SourceKey> {
        self.last[reason as usize]
    }

    /// All refusals.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.entries.iter().map(|entry| entry.count).sum()
    }
}

/// One accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The listener.
    pub listener: ListenerId,
    /// The address of the peer.
    pub peer: PeerAddr,
    /// Why it was refused, if it was.
    pub refused: Option<RefuseReason>,
}

/// The last accepts of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcceptLog {
    /// At most [`ACCEPTS_MAX`], oldest first.
    recent: VecDeque<Accept>,
    /// All accepts ever recorded.
    total: u64,
}

impl AcceptLog {
    /// Records one more accept.
    pub(super) fn note(&mut self, accept: Accept) {
        if self.recent.capacity() == 0 {
            self.recent.reserve_exact(ACCEPTS_MAX);
        }
        if self.recent.len() == ACCEPTS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(accept);
        self.total += 1;
    }

    /// How many accepts have been recorded so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The accepts after the first `seen` ones, oldest first, and how many of those are not kept
    /// any more.
    #[must_use]
    pub fn since(&self, seen: u64) -> (u64, Vec<Accept>) {
        let new = self.total.saturating_sub(seen);
        let kept = new.min(self.recent.len() as u64);
        let recent = self.recent.iter().skip(self.recent.len() - kept as usize);
        (new - kept, recent.copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceLimits;
    use super::*;

    fn source(number: u8) -> SourceKey {
        let peer = PeerAddr::Ipv4([192, 0, 2, number]);
        SourceLimits::default().key(peer).expect("it has an address")
    }

    /// Goal: a source that is refused often is found among many that are refused once. Method: one
    /// source in every ten refusals, and a different source in each of the others.
    #[test]
    fn the_source_that_is_refused_most_is_found() {
        let mut refused = RefusedSources::default();
        for round in 0..2_000_u32 {
            let number = if round % 10 == 0 { 7 } else { 8 + (round % 240) as u8 };
            refused.note(source(number), RefuseReason::Denied);
        }
        let top = refused.top(3);
        assert_eq!((top.len(), top[0].source), (3, source(7)));
        assert!(top[0].count - top[0].excess <= 200 && top[0].count >= 200, "{:?}", top[0]);
        assert_eq!(refused.total(), 2_000, "each refusal is in one count");
        assert_eq!(refused.top(usize::MAX).len(), SOURCES_MAX);
    }

    #[test]
    fn a_count_is_exact_while_there_are_entries() {
        let mut refused = RefusedSources::default();
        for number in 0..SOURCES_MAX as u8 {
            for _ in 0..=number {
                refused.note(source(number), RefuseReason::SourceRate);
            }
        }
        let counts: Vec<u64> = refused.top(2).iter().map(|entry| entry.count).collect();
        assert_eq!(counts, [16, 15]);
        assert!(refused.top(usize::MAX).iter().all(|entry| entry.excess == 0));
    }

    #[test]
    fn workers_add_up() {
        let (mut one, mut other) = (RefusedSources::default(), RefusedSources::default());
        one.note(source(1), RefuseReason::Denied);
        one.note(source(2), RefuseReason::SourceFull);
        other.note(source(2), RefuseReason::SourceRate);
        one.add(&other);
        let top = one.top(1)[0];
        assert_eq!((top.source, top.count), (source(2), 2));
        assert_eq!(one.last(RefuseReason::Denied), Some(source(1)));
        assert_eq!(one.last(RefuseReason::SourceRate), Some(source(2)));
        let mut copy = other.clone();
        copy.copy_from(&one);
        assert_eq!(copy, one);
    }

    /// Goal: what may belong to other sources is known as such, also over several workers, and the
    /// reason of a source is its last one.
    #[test]
    fn an_entry_that_was_taken_over_says_so() {
        let mut refused = RefusedSources::default();
        for number in 0..=SOURCES_MAX as u8 {
            refused.note(source(number), RefuseReason::Denied);
        }
        refused.note(source(SOURCES_MAX as u8), RefuseReason::SourceFull);
        let mut both = refused.clone();
        both.add(&refused);
        for (seen, times) in [(refused, 1), (both, 2)] {
            let top = seen.top(1)[0];
            assert_eq!(
                (top.source, top.reason),
                (source(SOURCES_MAX as u8), RefuseReason::SourceFull)
            );
            assert_eq!((top.count, top.excess), (3 * times, times));
        }
    }

    #[test]
    fn what_was_not_read_in_time_is_counted() {
        let mut log = AcceptLog::default();
        let peer = PeerAddr::Local;
        for number in 0..ACCEPTS_MAX as u16 + 5 {
            log.note(Accept { listener: ListenerId(number), peer, refused: None });
        }
        let (missed, accepts) = log.since(0);
        assert_eq!((missed, accepts.len(), accepts[0].listener), (5, ACCEPTS_MAX, ListenerId(5)));
        let (missed, accepts) = log.since(log.total() - 2);
        assert_eq!((missed, accepts.len()), (0, 2));
        assert_eq!(log.since(log.total()), (0, Vec::new()));
    }
}
