//! Unresponsive peers: a peer that has been silent for long is probed.
//!
//! 1. A connection on which nothing moved, and nothing waits, for [`Keepalive::silence`] joins the
//!    queue.
//! 2. The queue advances at a bounded pace ([`limits::PROBES_PER_BURST`]): `Op::Probe`.
//! 3. A little later the driver says (`Op::EndProbe`) whether anything came from the peer since. If
//!    so, the silence begins anew.
//! 4. If not, the connection joins the queue again one interval after the last probe. After
//!    [`limits::PROBES`] of them, and one interval more, the peer is gone.
//!
//! Timers are those of the connections: nothing here wakes a worker whose connections talk, and a
//! silent one costs two visits in each silence. Only connections that are being probed take memory.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::connection::Connection;
use crate::id::{ConnectionId, Timestamp};
use crate::kernel::Wake;
use crate::limits;
use crate::op::Op;
use crate::parameters::Keepalive;

/// What is known of silent peers.
#[derive(Debug, Default)]
pub(crate) struct Probing {
    /// By slot.
    under_way: BTreeMap<u32, Probe>,
    /// Those to be probed next, longest first. Some may have ended since.
    queue: VecDeque<ConnectionId>,
    /// When the queue advances.
    next_burst: Timestamp,
    heard: Heard,
}

/// When each slot's peer last answered a probe, or was known to be there, in steps
/// ([`Keepalive::step`]) modulo 256: a byte a slot. A silent peer is looked at much more often than
/// every 256 steps.
#[derive(Debug, Default)]
struct Heard(Vec<u8>);

impl Heard {
    fn note(&mut self, slot: u32, at: Timestamp, step: u64) {
        let index = slot as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        self.0[index] = (at.0 / step) as u8;
    }

    /// When it was, up to one step later: so a silence is never taken for longer than it is.
    fn noted(&self, slot: u32, now: Timestamp, step: u64) -> Timestamp {
        let noted = self.0.get(slot as usize).copied().unwrap_or(0);
        let steps = now.0 / step;
        let ago = u64::from((steps as u8).wrapping_sub(noted));
        Timestamp((steps.saturating_sub(ago) + 1) * step)
    }
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    /// How often the peer has been probed.
    attempt: u8,
    /// When it was, the last time.
    at: Timestamp,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// In the queue.
    Queued,
    /// Sent.
    Sent,
    /// The driver is to say whether there was an answer.
    Looking,
    /// There was none yet.
    Unanswered,
}

/// What has become of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nobody asked: the connection has ended since, or its peer is not probed any more.
    Stale,
    /// The peer is there, or is to be probed again.
    Goes,
    /// The peer has left every probe unanswered.
    Unresponsive,
}

impl Probing {
    /// With room for so many slots before a table must grow.
    #[must_use]
    pub(crate) fn new(slots: u32) -> Self {
        Self { heard: Heard(Vec::with_capacity(slots as usize)), ..Self::default() }
    }

    /// When the queue advances, if any connection is in it.
    #[must_use]
    pub(crate) fn wake(&self) -> Wake {
        (!self.queue.is_empty()).then_some(self.next_burst).into()
    }

    /// The slot is free.
    pub(crate) fn forget(&mut self, slot: u32) {
        if !self.under_way.is_empty() {
            self.under_way.remove(&slot);
        }
    }

    /// From here on the silence of this slot's peer is counted.
    pub(crate) fn begin_silence(
        &mut self,
        now: Timestamp,
        slot: u32,
        keepalive: Option<Keepalive>,
    ) {
        if let Some(keepalive) = keepalive {
            self.heard.note(slot, now, keepalive.step());
        }
    }

    /// Notes when a byte last moved on a connection, if that is news.
    pub(crate) fn note_last_byte(
        &mut self,
        now: Timestamp,
        slot: u32,
        connection: &Connection,
        keepalive: Option<Keepalive>,
    ) {
        let Some(keepalive) = keepalive else { return };
        let moved = connection.last_moved(now);
        if moved > self.heard.noted(slot, now, keepalive.step()) {
            self.heard.note(slot, moved, keepalive.step());
        }
    }

    /// When something last came from the peer, or went to it, at the latest.
    fn last_heard(
        &self,
        now: Timestamp,
        slot: u32,
        connection: &Connection,
        keepalive: Keepalive,
    ) -> Timestamp {
        self.heard.noted(slot, now, keepalive.step()).max(connection.last_moved(now))
    }

    /// When the connection of a slot has to be looked at for its probe, or to be probed. Without
    /// `keepalive` no new probe begins.
    #[must_use]
    pub(crate) fn deadline(
        &self,
        now: Timestamp,
        slot: u32,
        connection: &Connection,
        keepalive: Option<Keepalive>,
    ) -> Option<Timestamp> {
        if let Some(probe) = self.under_way.get(&slot) {
            let after = match (probe.step, keepalive) {
                (Step::Queued | Step::Looking, _) => return None,
                (Step::Sent, Some(keepalive)) => keepalive.wait_for_answer(probe.attempt),
                (Step::Sent, None) => limits::PROBE_ANSWER_MS,
                (Step::Unanswered, Some(keepalive)) => keepalive.interval(),
                (Step::Unanswered, None) => 0,
            };
            return Some(probe.at.plus(after));
        }
        let keepalive = keepalive?;
        let due = || self.last_heard(now, slot, connection, keepalive).plus(keepalive.silence);
        connection.is_idle().then(due)
    }

    /// The time has come to probe, or to look whether there was an answer.
    pub(crate) fn advance(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        keepalive: Option<Keepalive>,
        ops: &mut Vec<Op>,
    ) {
        if keepalive.is_none() {
            return self.end_probe(id, ops);
        }
        let new = Probe { attempt: 0, at: now, step: Step::Unanswered };
        let probe = self.under_way.entry(id.slot()).or_insert(new);
        if probe.step == Step::Unanswered {
            probe.step = Step::Queued;
            if self.queue.is_empty() {
                self.next_burst = self.next_burst.max(now);
            }
            self.queue.push_back(id);
        } else {
            self.end_probe(id, ops);
        }
    }

    /// Has the driver say what became of a probe; forgets one that was not sent.
    fn end_probe(&mut self, connection: ConnectionId, ops: &mut Vec<Op>) {
        let Some(probe) = self.under_way.get_mut(&connection.slot()) else { return };
        if probe.step == Step::Sent {
            probe.step = Step::Looking;
            ops.push(Op::EndProbe { connection, again: probe.attempt > 1 });
        } else {
            self.forget(connection.slot());
        }
    }

    /// Probes as many of those in the queue as a burst may hold. A queue that is not wanted any
    /// more is emptied by and by, with so many looks in a turn. `retime` is told of each slot whose deadline has changed.
    pub(crate) fn send_burst(
        &mut self,
        now: Timestamp,
        slots: &[Connection],
        keepalive: Option<Keepalive>,
        looks_max: usize,
        ops: &mut Vec<Op>,
        mut retime: impl FnMut(&Self, u32),
    ) {
        if self.queue.is_empty() || now < self.next_burst {
            return;
        }
        let mut left = keepalive.map_or(limits::PROBES_PER_BURST, |keepalive| keepalive.burst);
        // Those that have ended since, or were heard of, cost a look each.
        let mut looks = looks_max;
        while left > 0
            && looks > 0
            && let Some(id) = self.queue.pop_front()
        {
            looks -= 1;
            let connection = &slots[id.slot() as usize];
            if connection.generation() == id.generation() && self.under_way.contains_key(&id.slot())
            {
                left -= u32::from(self.send(now, id, connection, keepalive, ops));
                retime(self, id.slot());
            }
        }
        let pause = if left > 0 && looks == 0 { 0 } else { limits::PROBE_BURST_MS };
        self.next_burst = now.plus(pause);
    }

    /// Sends a probe to the peer of a connection from the queue, unless it was heard of since.
    /// Whether it did.
    fn send(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        connection: &Connection,
        keepalive: Option<Keepalive>,
        ops: &mut Vec<Op>,
    ) -> bool {
        let slot = id.slot();
        let silent_ms = keepalive.filter(|_| connection.is_idle()).and_then(|keepalive| {
            let heard = self.last_heard(now, slot, connection, keepalive);
            let silent_ms = now.0.saturating_sub(heard.0);
            (silent_ms >= keepalive.silence).then_some(silent_ms)
        });
        let Some(silent_ms) = silent_ms else {
            self.forget(slot);
            return false;
        };
        let probe = self.under_way.get_mut(&slot).expect("invariant: what is queued is probed");
        assert!(probe.step == Step::Queued, "what is queued has no probe under way");
        *probe = Probe { attempt: probe.attempt + 1, at: now, step: Step::Sent };
        let silent_s = u16::try_from(silent_ms / 1_000).unwrap_or(u16::MAX).max(1);
        ops.push(Op::Probe { connection: id, silent_s, again: probe.attempt > 1 });
        true
    }

    /// The driver has said when the peer of a connection that is still open was last heard of.
    pub(crate) fn on_ended(
        &mut self,
        now: Timestamp,
        slot: u32,
        heard: Timestamp,
        keepalive: Option<Keepalive>,
    ) -> Outcome {
        let Some(probe) = self.under_way.get_mut(&slot) else { return Outcome::Stale };
        assert!(probe.step == Step::Looking, "an answer that was not asked for");
        let Some(keepalive) = keepalive else {
            self.forget(slot);
            return Outcome::Stale;
        };
        // An answer to the probe before, that came after the last look, is one as well. The kernel
        // counts in ticks of up to 10 ms.
        let earlier = if probe.attempt > 1 { keepalive.interval() } else { 0 };
        let slack = (keepalive.silence / 4).min(limits::PROBE_INTERVAL_MS_MIN);
        if heard.plus(earlier + slack) >= probe.at {
            self.forget(slot);
            self.heard.note(slot, now.min(heard), keepalive.step());
            Outcome::Goes
        } else if probe.attempt < limits::PROBES {
            probe.step = Step::Unanswered;
            Outcome::Goes
        } else {
            self.forget(slot);
            Outcome::Unresponsive
        }
    }
}
