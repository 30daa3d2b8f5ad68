//! The promise of admission, checked by a separate model: a connection is refused for a reason, and
//! none is admitted beyond a limit.
//!
//! Written in a simple way, with lists and thousandths of tokens, so that it shares no idea with
//! the core. Every verdict must be exactly the model's: a refusal is a close in answer to the event
//! that decides it.

use std::cell::RefCell;
use std::rc::Rc;

use std::sync::Arc;

use echo_core::admission::{AdmissionPolicy, IpSet};
use echo_core::op::{ConnectionId, ListenerId, PeerAddr};

/// The model of admission of one worker.
pub(crate) struct Admission {
    policy: AdmissionPolicy,
    /// The proxies that each listener trusts, if it accepts connections of proxies.
    proxies: Arc<[Option<IpSet>]>,
    /// Which worker it is.
    worker: usize,
    /// The counts of all workers of a process.
    shared: Rc<RefCell<Shared>>,
    /// Connections that must be closed before the handling of the present events ends.
    to_close: Vec<ConnectionId>,
    pub(crate) refused: u64,
}

/// The model of the limiter.
#[derive(Default)]
pub(crate) struct Shared {
    /// The counted connections by worker, and their groups.
    inside: Vec<(usize, ConnectionId, Group)>,
    /// The tokens of each group in thousandths, and the moment of that count.
    buckets: Vec<(Group, u64, u64)>,
}

/// The leading bits of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group(String);

impl Admission {
    /// For a process with one worker.
    pub(crate) fn new(policy: AdmissionPolicy) -> Self {
        Self::of_worker(policy, 0, Rc::default())
    }

    /// For one of several workers.
    pub(crate) fn of_worker(
        policy: AdmissionPolicy,
        worker: usize,
        shared: Rc<RefCell<Shared>>,
    ) -> Self {
        let proxies = Arc::new([]);
        Self { policy, proxies, worker, shared, to_close: Vec::new(), refused: 0 }
    }

    /// The same, with listeners that accept connections of these proxies.
    pub(crate) fn with_proxies(self, proxies: Arc<[Option<IpSet>]>) -> Self {
        Self { proxies, ..self }
    }

    /// How many sources must have an entry, at least and at most.
    pub(crate) fn sources(&self) -> std::ops::RangeInclusive<usize> {
        let shared = self.shared.borrow();
        let mut groups: Vec<&Group> = shared.inside.iter().map(|(.., group)| group).collect();
        groups.sort_by_key(|group| &group.0);
        groups.dedup();
        groups.len()..=groups.len() + shared.buckets.len()
    }

    /// A connection was accepted. Returns whether it is judged by its header.
    pub(crate) fn accepted(
        &mut self,
        now: u64,
        listener: ListenerId,
        id: ConnectionId,
        peer: PeerAddr,
    ) -> bool {
        let Some(Some(trusted)) = self.proxies.get(usize::from(listener.0)) else {
            self.judge(now, id, peer);
            return false;
        };
        if peer != PeerAddr::Local && !trusted.contains(peer) {
            self.to_close.push(id);
        }
        true
    }

    /// A connection must be closed before the handling of the present events ends.
    pub(crate) fn refuse(&mut self, id: ConnectionId) {
        self.to_close.push(id);
    }

    /// The address under which a connection is counted is known.
    pub(crate) fn judge(&mut self, now: u64, id: ConnectionId, peer: PeerAddr) {
        if self.policy.access.denies(peer) {
            return self.to_close.push(id);
        }
        let limits = &self.policy.source_limits;
        let Some(group) = self.group(peer).filter(|_| limits.count()) else { return };
        let shared = &mut *self.shared.borrow_mut();
        let count = shared.inside.iter().filter(|(.., other)| *other == group).count();
        if limits.connections.is_some_and(|cap| count >= cap as usize) {
            return self.to_close.push(id);
        }
        if let Some(rate) = limits.accepts_per_second {
            let full = u64::from(rate) * 1000;
            let known = shared.buckets.iter().position(|(other, ..)| *other == group);
            let index = known.unwrap_or_else(|| {
                shared.buckets.push((group.clone(), full, now));
                shared.buckets.len() - 1
            });
            let (_, tokens, counted_at) = &mut shared.buckets[index];
            let passed = now.saturating_sub(*counted_at);
            *tokens = full.min(*tokens + passed * u64::from(rate));
            *counted_at = now.max(*counted_at);
            if *tokens < 1000 {
                return self.to_close.push(id);
            }
            *tokens -= 1000;
        }
        shared.inside.push((self.worker, id, group));
    }

    /// A connection is closed. Returns whether that is because it was refused.
    pub(crate) fn closed(&mut self, id: ConnectionId) -> bool {
        if let Some(index) = self.to_close.iter().position(|other| *other == id) {
            self.to_close.swap_remove(index);
            self.refused += 1;
            return true;
        }
        let worker = self.worker;
        let inside = &mut self.shared.borrow_mut().inside;
        inside.retain(|(of, other, _)| (*of, *other) != (worker, id));
        false
    }

    /// Another process counts from now on: buckets are full again.
    pub(crate) fn forget_buckets(&mut self) {
        self.shared.borrow_mut().buckets.clear();
    }

    /// These connections were given away, and are taken over: they stay, and count by the present
    /// policy.
    pub(crate) fn hand_over(&mut self, renamed: &[(ConnectionId, PeerAddr)]) {
        let counts = self.policy.source_limits.count();
        let counted = renamed
            .iter()
            .filter(|_| counts)
            .filter_map(|(id, peer)| Some((self.worker, *id, self.group(*peer)?)));
        let inside = &mut self.shared.borrow_mut().inside;
        inside.retain(|(worker, ..)| *worker != self.worker);
        inside.extend(counted);
    }

    /// These connections are open when another policy takes effect. A connection that was not
    /// counted so far is counted from now on, if the policy counts any.
    pub(crate) fn change(&mut self, policy: AdmissionPolicy, open: &[(ConnectionId, PeerAddr)]) {
        let begins = policy.source_limits.count() && !self.policy.source_limits.count();
        self.policy = policy;
        let inside = &mut self.shared.borrow_mut().inside;
        for (id, peer) in open.iter().filter(|_| begins) {
            let known =
                inside.iter().any(|(worker, other, _)| (*worker, other) == (self.worker, id));
            if let Some(group) = self.group(*peer).filter(|_| !known) {
                inside.push((self.worker, *id, group));
            }
        }
    }

    /// All events have been handled.
    pub(crate) fn settle(&self) {
        assert_eq!(self.to_close, [], "promise: they are refused, and were admitted");
    }

    fn group(&self, peer: PeerAddr) -> Option<Group> {
        let (bytes, length) = match &peer {
            PeerAddr::Unknown | PeerAddr::Local => return None,
            PeerAddr::Ipv4(address) => (&address[..], self.policy.source_limits.ipv4_prefix),
            PeerAddr::Ipv6(address) => (&address[..], self.policy.source_limits.ipv6_prefix),
        };
        let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
        Some(Group(format!("{} {}", bytes.len(), &bits[..usize::from(length)])))
    }
}
