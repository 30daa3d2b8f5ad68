//! The promise of admission, by a model of its own: who is refused is refused for a reason, and
//! nobody is let in beyond a cap.
//!
//! Written the plain way, with lists and milli-tokens, so that it shares no thought with the core.
//! Every verdict must be exactly the model's: a refusal is a close in answer to the very event that
//! decides it.

use echo_core::admission::Rules;
use echo_core::op::{ConnectionId, Source};

/// The model of admission at all listeners of one history.
pub(crate) struct Admission {
    pub(crate) rules: Rules,
    /// Who is inside, and what counts it.
    inside: Vec<(ConnectionId, Group)>,
    /// The tokens of each group in thousandths, and when they were counted.
    buckets: Vec<(Group, u64, u64)>,
    /// Who waits for a verdict, since the limiter was locked.
    undecided: Vec<(ConnectionId, Source)>,
    /// Who left while the limiter was locked, and is still counted.
    owed: Vec<Group>,
    /// Who must be closed before the present event is over.
    to_close: Vec<ConnectionId>,
    /// Another worker has locked the limiter.
    pub(crate) held: bool,
    pub(crate) refused: u64,
}

/// The leading bits of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group(String);

impl Admission {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            inside: Vec::new(),
            buckets: Vec::new(),
            undecided: Vec::new(),
            owed: Vec::new(),
            to_close: Vec::new(),
            held: false,
            refused: 0,
        }
    }

    /// How many sources must have an entry, at least and at most.
    pub(crate) fn sources(&self) -> std::ops::RangeInclusive<usize> {
        let mut groups: Vec<&Group> = self.inside.iter().map(|(_, group)| group).collect();
        groups.extend(&self.owed);
        groups.sort_by_key(|group| &group.0);
        groups.dedup();
        groups.len()..=groups.len() + self.buckets.len()
    }

    pub(crate) fn accepted(&mut self, now: u64, id: ConnectionId, source: Source) {
        if self.needs_limiter(source) && (self.held || !self.undecided.is_empty()) {
            return self.undecided.push((id, source));
        }
        self.judge(now, id, source);
    }

    /// The moment at which the core looks again. Returns who gets a verdict now.
    pub(crate) fn time_passed(&mut self, now: u64) -> Vec<ConnectionId> {
        if !self.held {
            self.owed.clear();
        }
        let mut decided = Vec::new();
        while let Some(&(id, source)) = self.undecided.first()
            && !(self.held && self.needs_limiter(source))
        {
            self.undecided.remove(0);
            self.judge(now, id, source);
            decided.push(id);
        }
        decided
    }

    fn needs_limiter(&self, source: Source) -> bool {
        let counts = self.rules.caps.count() && self.group(source).is_some();
        counts && !self.rules.access.denies(source)
    }

    fn judge(&mut self, now: u64, id: ConnectionId, source: Source) {
        if self.rules.access.denies(source) {
            return self.to_close.push(id);
        }
        if !self.needs_limiter(source) {
            return;
        }
        self.owed.clear();
        let group = self.group(source).expect("only who is counted waits");
        let count = self.inside.iter().filter(|(_, other)| *other == group).count();
        if self.rules.caps.connections.is_some_and(|cap| count >= cap as usize) {
            return self.to_close.push(id);
        }
        if let Some(rate) = self.rules.caps.accepts_per_second {
            let full = u64::from(rate) * 1000;
            let known = self.buckets.iter().position(|(other, ..)| *other == group);
            let index = known.unwrap_or_else(|| {
                self.buckets.push((group.clone(), full, now));
                self.buckets.len() - 1
            });
            let (_, tokens, counted_at) = &mut self.buckets[index];
            *tokens = full.min(*tokens + (now - *counted_at) * u64::from(rate));
            *counted_at = now;
            if *tokens < 1000 {
                return self.to_close.push(id);
            }
            *tokens -= 1000;
        }
        self.inside.push((id, group));
    }

    /// A connection is closed. Whether that is because it was refused.
    pub(crate) fn closed(&mut self, id: ConnectionId) -> bool {
        if let Some(index) = self.to_close.iter().position(|other| *other == id) {
            self.to_close.swap_remove(index);
            self.refused += 1;
            return true;
        }
        let waits = self.undecided.iter().any(|(other, _)| *other == id);
        assert!(!waits, "promise: {id:?} is refused before its verdict");
        if let Some(index) = self.inside.iter().position(|(other, _)| *other == id) {
            let (_, group) = self.inside.swap_remove(index);
            if self.held {
                self.owed.push(group);
            }
        }
        false
    }

    /// Another process counts from now on: buckets are full again.
    pub(crate) fn forget_buckets(&mut self) {
        self.buckets.clear();
    }

    /// These connections were given away, and are taken over: they stay, and count by the rules of
    /// now.
    pub(crate) fn hand_over(&mut self, renamed: &[(ConnectionId, Source)]) {
        assert!(self.undecided.is_empty(), "hand-over: {:?} wait for a verdict", self.undecided);
        self.owed.clear();
        self.held = false;
        self.inside.clear();
        if self.rules.caps.count() {
            let counted =
                renamed.iter().filter_map(|(id, source)| Some((*id, self.group(*source)?)));
            self.inside = counted.collect();
        }
    }

    /// These are inside when other rules come into force. Whoever was not counted so far counts from
    /// now on, if anybody does.
    pub(crate) fn change(&mut self, rules: Rules, inside: &[(ConnectionId, Source)]) {
        let begins = rules.caps.count() && !self.rules.caps.count();
        self.rules = rules;
        for (id, source) in inside.iter().filter(|_| begins) {
            let known = self.inside.iter().any(|(other, _)| other == id)
                || self.undecided.iter().any(|(other, _)| other == id);
            if let Some(group) = self.group(*source).filter(|_| !known) {
                self.inside.push((*id, group));
            }
        }
    }

    /// One event has been handled altogether.
    pub(crate) fn settle(&self) {
        assert_eq!(self.to_close, [], "promise: they are refused, and were let in");
    }

    fn group(&self, source: Source) -> Option<Group> {
        let (bytes, length) = match &source {
            Source::Untold | Source::Local => return None,
            Source::Ipv4(address) => (&address[..], self.rules.caps.ipv4_prefix),
            Source::Ipv6(address) => (&address[..], self.rules.caps.ipv6_prefix),
        };
        let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
        Some(Group(format!("{} {}", bytes.len(), &bits[..usize::from(length)])))
    }
}
