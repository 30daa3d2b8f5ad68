//! Who is let in: the access lists, and how much one source may take.
//!
//! A connection is judged once, when its accept is answered and before it has a place or a receive.
//! Who is refused is closed at once; that costs the others nothing, while a place in the backlog
//! would keep them out. Unix peers are always let in.
//!
//! What a source takes is counted over all workers, in one [`SourceLimiter`] that they share. No
//! worker ever waits for it: a locked shard makes a connection *undecided*, or a count *owed*, and
//! the next turn, at once, tries again.

mod access;
mod limiter;

use std::collections::VecDeque;
use std::sync::Arc;

pub use access::{Access, Ranges};
use limiter::SourceKey;
pub use limiter::{Caps, SourceLimiter};

use super::op::{ConnectionId, Op, Source, Timestamp};
use super::stats::RefuseReason;

/// What the operator says about who is let in. All workers go by the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Which addresses.
    pub access: Access,
    /// How many connections of each source, and how fast.
    pub caps: Caps,
}

impl Rules {
    /// Whether it matters where connections come from.
    #[must_use]
    pub fn ask_for_sources(&self) -> bool {
        !self.access.is_open() || self.caps.count()
    }
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may have a place.
    Admitted,
    /// It is closed.
    Refused(RefuseReason),
    /// Another worker has locked the shard of its source at this very moment.
    Undecided,
}

/// The admission of one worker.
pub(super) struct Admission {
    pub(super) rules: Arc<Rules>,
    /// Whether the driver has been asked to tell where connections come from.
    asked: bool,
    limiter: Arc<SourceLimiter>,
    /// What the connection of each slot is counted under. As long as nothing is counted it is
    /// empty.
    counted: Vec<Option<SourceKey>>,
    /// Accepted connections that wait for their verdict, in order.
    pub(super) undecided: VecDeque<(ConnectionId, Source)>,
    /// Sources of closed connections that are still to be counted off.
    owed: Vec<SourceKey>,
    /// Up to which slot those have been counted who came while nobody was; nothing if that is done.
    pub(super) recounted: Option<usize>,
}

impl Admission {
    /// Nobody has come yet.
    pub(super) fn new(rules: Arc<Rules>, limiter: Arc<SourceLimiter>) -> Self {
        Self {
            rules,
            asked: false,
            limiter,
            counted: Vec::new(),
            undecided: VecDeque::new(),
            owed: Vec::new(),
            recounted: None,
        }
    }

    /// From now on these are the rules. If sources are counted by them and were not before, those
    /// who are here already are to be counted as well.
    pub(super) fn change(&mut self, rules: Arc<Rules>) {
        if !rules.caps.count() {
            self.recounted = None;
        } else if !self.rules.caps.count() {
            self.recounted = Some(0);
        }
        self.rules = rules;
    }

    /// Whether the next turn must not wait.
    pub(super) fn has_unfinished(&self) -> bool {
        !self.undecided.is_empty() || !self.owed.is_empty() || self.recounted.is_some()
    }

    /// Asks for sources from now on, or asks no longer, if the rules have changed in that.
    pub(super) fn announce(&mut self, ops: &mut Vec<Op>) {
        let ask = self.rules.ask_for_sources();
        if ask != self.asked {
            self.asked = ask;
            ops.push(if ask { Op::NameSources } else { Op::OmitSources });
        }
    }

    /// Judges a connection that has just been accepted. It queues behind those that are undecided.
    pub(super) fn judge(&mut self, now: Timestamp, id: ConnectionId, source: Source) -> Verdict {
        if self.rules.access.denies(source) {
            return Verdict::Refused(RefuseReason::Denied);
        }
        if !self.rules.caps.count() {
            return Verdict::Admitted;
        }
        let Some(key) = self.rules.caps.key(source) else { return Verdict::Admitted };
        if !self.undecided.is_empty() {
            return Verdict::Undecided;
        }
        self.count(now, id, key)
    }

    /// Judges the first of those that are undecided, once more; nobody if there is none, or if it
    /// stays so.
    pub(super) fn decide(&mut self, now: Timestamp) -> Option<(ConnectionId, Verdict)> {
        self.pay(now);
        let (id, source) = self.undecided.pop_front()?;
        // The rules may have changed since.
        let verdict = match self.rules.caps.key(source) {
            _ if self.rules.access.denies(source) => Verdict::Refused(RefuseReason::Denied),
            Some(key) if self.rules.caps.count() => self.count(now, id, key),
            Some(_) | None => Verdict::Admitted,
        };
        if verdict == Verdict::Undecided {
            self.undecided.push_front((id, source));
            return None;
        }
        Some((id, verdict))
    }

    /// Whether the connection of this slot still has to be counted, or never will be.
    pub(super) fn is_uncounted(&self, id: ConnectionId) -> bool {
        let counted = self.counted.get(id.slot() as usize).is_some_and(Option::is_some);
        !counted && !self.undecided.iter().any(|(other, _)| *other == id)
    }

    /// A connection is here already, and stays whatever the caps say. It counts
    /// for those who come after, unless its shard is locked all the time; its bucket is not
    /// touched.
    pub(super) fn count_imported(&mut self, now: Timestamp, id: ConnectionId, source: Source) {
        const TRIES: usize = 1000;
        let caps = &self.rules.caps;
        let Some(key) = caps.key(source).filter(|_| caps.count()) else { return };
        let boundless = Caps { connections: None, accepts_per_second: None, ..caps.clone() };
        if (0..TRIES).any(|_| self.limiter.enter(now, key, &boundless).is_some()) {
            self.note_counted(id, key);
        }
    }

    fn note_counted(&mut self, id: ConnectionId, key: SourceKey) {
        let slot = id.slot() as usize;
        if slot >= self.counted.len() {
            self.counted.resize(slot + 1, None);
        }
        self.counted[slot] = Some(key);
    }

    fn count(&mut self, now: Timestamp, id: ConnectionId, key: SourceKey) -> Verdict {
        self.pay(now);
        match self.limiter.enter(now, key, &self.rules.caps) {
            Some(Ok(())) => {
                self.note_counted(id, key);
                Verdict::Admitted
            }
            Some(Err(reason)) => Verdict::Refused(reason),
            None => Verdict::Undecided,
        }
    }

    /// The connection of `slot` is closed.
    pub(super) fn leave(&mut self, now: Timestamp, slot: u32) {
        let counted = self.counted.get_mut(slot as usize).and_then(Option::take);
        if let Some(key) = counted
            && !self.limiter.leave(now, key, &self.rules.caps)
        {
            self.owed.push(key);
        }
    }

    /// Counts off what is owed, as far as the shards are not locked.
    fn pay(&mut self, now: Timestamp) {
        let (limiter, caps) = (&self.limiter, &self.rules.caps);
        self.owed.retain(|key| !limiter.leave(now, *key, caps));
    }
}
