//! Dead peers: who has been silent for long is asked whether it is still there.
//!
//! 1. A connection on which nothing moved, and nothing waits, for `Keepalive::silence` stands in
//!    line.
//! 2. The line goes on at a bounded pace ([`limits::PROBES_PER_BURST`]): `Op::Probe`.
//! 3. A little later it is looked (`Op::EndProbe`) whether anything came from the peer since. If
//!    so, the silence begins anew.
//! 4. If not, it stands in line again one interval after the last probe. After
//!    [`limits::PROBES`] of them, and one interval more, the peer is gone.
//!
//! Timers are those of the connections: nothing here wakes a worker whose connections talk, and a
//! silent one costs two visits in each silence. Only those that are being asked take memory.

use std::collections::{BTreeMap, VecDeque};

use super::Server;
use crate::connection::Connection;
use crate::limits;
use crate::op::{ConnectionId, Op, Timestamp};
use crate::resources::Keepalive;

/// Who is being asked, and who is to be.
#[derive(Default)]
pub(super) struct Probing {
    /// By slot.
    under_way: BTreeMap<u32, Probe>,
    /// Those to be asked next, longest first. Some may have ended since.
    line: VecDeque<ConnectionId>,
    /// When the line goes on.
    next_burst: Timestamp,
    heard: Heard,
}

/// When each slot's peer last answered a probe, or was known to be there, in steps
/// ([`Keepalive::step`]) modulo 256: a byte a slot. Whoever is silent is looked at much more often
/// than every 256 steps.
#[derive(Default)]
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

struct Probe {
    /// How often the peer has been asked.
    attempt: u8,
    /// When it was, the last time.
    at: Timestamp,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Stands in line.
    InLine,
    /// Has been asked.
    Asked,
    /// The driver is to say whether there was an answer.
    Looking,
    /// There was none yet.
    Unanswered,
}

impl Probing {
    /// With room for so many slots before a table must grow.
    pub(super) fn new(slots: u32) -> Self {
        Self { heard: Heard(Vec::with_capacity(slots as usize)), ..Self::default() }
    }

    /// When the line goes on, if anybody stands in it.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        (!self.line.is_empty()).then_some(self.next_burst)
    }

    /// The slot is nobody's any more.
    pub(super) fn forget(&mut self, slot: u32) {
        if !self.under_way.is_empty() {
            self.under_way.remove(&slot);
        }
    }
}

impl Server {
    /// When the connection of a slot is to be looked at: for its timeouts, or for its peer.
    pub(super) fn next_timer(&self, now: Timestamp, slot: u32) -> Option<Timestamp> {
        let due = self.slots[slot as usize].due(&self.resources, now);
        due.into_iter().chain(self.probe_due(now, slot)).min()
    }

    fn keepalive(&self) -> Option<Keepalive> {
        self.resources.parameters.runtime_limits.keepalive
    }

    /// From here on the silence of this slot's peer is counted.
    pub(super) fn begin_silence(&mut self, now: Timestamp, slot: u32) {
        if let Some(keepalive) = self.keepalive() {
            self.probing.heard.note(slot, now, keepalive.step());
        }
    }

    /// Notes the last byte, if it is news.
    pub(super) fn note_last_byte(&mut self, now: Timestamp, slot: u32) {
        let Some(keepalive) = self.keepalive() else { return };
        let moved = self.slots[slot as usize].last_moved(now);
        if moved > self.probing.heard.noted(slot, now, keepalive.step()) {
            self.probing.heard.note(slot, moved, keepalive.step());
        }
    }

    /// When something last came from the peer, or went to it, at the latest.
    fn last_heard(&self, now: Timestamp, slot: u32, keepalive: Keepalive) -> Timestamp {
        let noted = self.probing.heard.noted(slot, now, keepalive.step());
        noted.max(self.slots[slot as usize].last_moved(now))
    }

    pub(super) fn probe_due(&self, now: Timestamp, slot: u32) -> Option<Timestamp> {
        let keepalive = self.keepalive();
        if let Some(probe) = self.probing.under_way.get(&slot) {
            let after = match (probe.step, keepalive) {
                (Step::InLine | Step::Looking, _) => return None,
                (Step::Asked, Some(keepalive)) => keepalive.wait_for_answer(probe.attempt),
                (Step::Asked, None) => limits::PROBE_ANSWER_MS,
                (Step::Unanswered, Some(keepalive)) => keepalive.interval(),
                (Step::Unanswered, None) => 0,
            };
            return Some(probe.at.plus(after));
        }
        let keepalive = keepalive.filter(|_| !self.resources.quiescing)?;
        let connection = &self.slots[slot as usize];
        let due = || self.last_heard(now, slot, keepalive).plus(keepalive.silence);
        connection.is_idle().then(due)
    }

    /// The time has come to ask, or to look whether there was an answer.
    pub(super) fn advance_probe(&mut self, now: Timestamp, id: ConnectionId, ops: &mut Vec<Op>) {
        if self.keepalive().is_none() {
            return self.end_probe(id, ops);
        }
        let new = Probe { attempt: 0, at: now, step: Step::Unanswered };
        let probe = self.probing.under_way.entry(id.slot()).or_insert(new);
        if probe.step == Step::Unanswered {
            probe.step = Step::InLine;
            if self.probing.line.is_empty() {
                self.probing.next_burst = self.probing.next_burst.max(now);
            }
            self.probing.line.push_back(id);
        } else {
            self.end_probe(id, ops);
        }
    }

    /// Has the driver say what became of a probe; forgets one that was not asked.
    fn end_probe(&mut self, connection: ConnectionId, ops: &mut Vec<Op>) {
        let Some(probe) = self.probing.under_way.get_mut(&connection.slot()) else { return };
        if probe.step == Step::Asked {
            probe.step = Step::Looking;
            ops.push(Op::EndProbe { connection, again: probe.attempt > 1 });
        } else {
            self.probing.forget(connection.slot());
        }
    }

    /// Asks as many of those in line as a burst may hold. A line that nobody wants any more is
    /// forgotten by and by.
    pub(super) fn send_probes(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        if self.probing.line.is_empty() || now < self.probing.next_burst {
            return;
        }
        let mut left = self.keepalive().map_or(limits::PROBES_PER_BURST, |it| it.burst);
        // Those who have ended since, or were heard of, cost a look each.
        let mut looks = limits::SWEEP_SLOTS_MAX;
        while left > 0
            && looks > 0
            && let Some(connection) = self.probing.line.pop_front()
        {
            looks -= 1;
            left -= u32::from(self.send_probe(now, connection, ops));
        }
        let pause = if left > 0 && looks == 0 { 0 } else { limits::PROBE_BURST_MS };
        self.probing.next_burst = now.plus(pause);
    }

    /// Whether it was asked.
    fn send_probe(&mut self, now: Timestamp, id: ConnectionId, ops: &mut Vec<Op>) -> bool {
        let slot = id.slot();
        let connection = &self.slots[slot as usize];
        if connection.generation() != id.generation() {
            return false;
        }
        let silent_ms = self.keepalive().and_then(|keepalive| {
            let silent_ms = now.0.saturating_sub(self.last_heard(now, slot, keepalive).0);
            (silent_ms >= keepalive.silence).then_some(silent_ms)
        });
        let may_be_asked = connection.is_idle() && !self.resources.quiescing;
        let Some(probe) = self.probing.under_way.get_mut(&slot) else { return false };
        assert!(probe.step == Step::InLine, "who stands in line is not being asked");
        let asked = silent_ms.filter(|_| may_be_asked);
        if let Some(silent_ms) = asked {
            *probe = Probe { attempt: probe.attempt + 1, at: now, step: Step::Asked };
            let silent_s = u16::try_from(silent_ms / 1_000).unwrap_or(u16::MAX).max(1);
            ops.push(Op::Probe { connection: id, silent_s, again: probe.attempt > 1 });
        } else {
            self.probing.forget(id.slot());
        }
        if let Some(due) = self.next_timer(now, id.slot()) {
            self.wheel.catch_up(now);
            self.wheel.set(id.slot(), due);
        }
        asked.is_some()
    }

    /// The driver has said when the peer was last heard of.
    pub(super) fn on_probe_ended(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        heard: Timestamp,
        ops: &mut Vec<Op>,
    ) {
        if self.slots[id.slot() as usize].generation() != id.generation() {
            return;
        }
        let Some(probe) = self.probing.under_way.get_mut(&id.slot()) else { return };
        assert!(probe.step == Step::Looking, "an answer that nobody has asked for");
        let Some(keepalive) = self.resources.parameters.runtime_limits.keepalive else {
            return self.probing.forget(id.slot());
        };
        // An answer to the probe before, that came after the last look, is one as well. The kernel
        // counts in ticks of up to 10 ms.
        let earlier = if probe.attempt > 1 { keepalive.interval() } else { 0 };
        let slack = (keepalive.silence / 4).min(limits::PROBE_INTERVAL_MS_MIN);
        if heard.plus(earlier + slack) >= probe.at {
            self.probing.forget(id.slot());
            self.probing.heard.note(id.slot(), now.min(heard), keepalive.step());
        } else if probe.attempt < limits::PROBES {
            probe.step = Step::Unanswered;
        } else {
            self.probing.forget(id.slot());
            return self.with(now, id, ops, Connection::on_lost);
        }
        if let Some(due) = self.next_timer(now, id.slot()) {
            self.wheel.catch_up(now);
            self.wheel.set(id.slot(), due);
        }
    }
}
