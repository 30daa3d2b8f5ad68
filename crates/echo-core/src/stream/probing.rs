//! Unresponsive peers: a peer that has been silent for a long time is probed.
//!
//! 1. A connection joins the queue after [`Keepalive::silence`] without traffic, if no bytes wait
//!    on it.
//! 2. The queue advances at a bounded pace ([`limits::PROBES_PER_BURST`]): `Op::Probe`.
//! 3. A little later the driver reports (`Op::EndProbe`) whether anything has arrived from the peer
//!    since. If so, the silence begins again.
//! 4. If not, the connection joins the queue again one interval after the last probe. After
//!    [`limits::PROBES`] probes, and one interval more, the peer is considered gone.
//!
//! The timers are those of the connections. Nothing here wakes a worker whose connections have
//! traffic, and a silent connection costs two visits per silence. Only connections that are being
//! probed take memory.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::connection::Connection;
use crate::id::{ConnectionId, Timestamp};
use crate::kernel::Wake;
use crate::limits;
use crate::op::Op;
use crate::parameters::Keepalive;

/// The state of silent peers.
#[derive(Debug, Default)]
pub(crate) struct Probing {
    /// By slot.
    probes: BTreeMap<u32, Probe>,
    /// Connections to be probed next; the one that has waited longest is first. Some may have ended
    /// since.
    queue: VecDeque<ConnectionId>,
    /// When the queue advances.
    next_burst: Timestamp,
    heard: Heard,
}

/// When the peer of each slot last answered a probe, or was known to be reachable, in steps
/// ([`Keepalive::step`]) modulo 256: one byte for each slot. A silent peer is examined much more
/// often than every 256 steps.
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

    /// The moment, rounded up by up to one step, so that a silence is never taken to be longer than
    /// it is.
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
    /// The moment of the last probe.
    at: Timestamp,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// In the queue.
    Queued,
    /// Sent.
    Sent,
    /// The driver was asked whether there was an answer.
    Looking,
    /// There was no answer yet.
    Unanswered,
}

impl Probing {
    /// With room for `slots` slots before a table must grow.
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
        if !self.probes.is_empty() {
            self.probes.remove(&slot);
        }
    }

    /// The silence of this slot's peer begins now.
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

    /// Notes when a byte last moved on a connection, if that is later than what is noted.
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

    /// When bytes last came from the peer or went to it, rounded up.
    fn last_heard(
        &self,
        now: Timestamp,
        slot: u32,
        connection: &Connection,
        keepalive: Keepalive,
    ) -> Timestamp {
        self.heard.noted(slot, now, keepalive.step()).max(connection.last_moved(now))
    }

    /// When the probe of a slot has to be checked, or when its connection has to be probed. Without
    /// `keepalive` no new probe begins.
    #[must_use]
    pub(crate) fn deadline(
        &self,
        now: Timestamp,
        slot: u32,
        connection: &Connection,
        keepalive: Option<Keepalive>,
    ) -> Option<Timestamp> {
        if let Some(probe) = self.probes.get(&slot) {
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

    /// It is time to probe, or to check whether there was an answer.
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
        let probe = self.probes.entry(id.slot()).or_insert(new);
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

    /// Asks the driver for the result of a probe. Forgets a probe that was not sent.
    fn end_probe(&mut self, connection: ConnectionId, ops: &mut Vec<Op>) {
        let Some(probe) = self.probes.get_mut(&connection.slot()) else { return };
        if probe.step == Step::Sent {
            probe.step = Step::Looking;
            ops.push(Op::EndProbe { connection, again: probe.attempt > 1 });
        } else {
            self.forget(connection.slot());
        }
    }

    /// How many connections of the queue may be probed now, if it is time for some. A queue that is
    /// not needed any more is emptied at the same pace.
    pub(crate) fn begin_burst(&self, now: Timestamp, keepalive: Option<Keepalive>) -> Option<u32> {
        let burst = keepalive.map_or(limits::PROBES_PER_BURST, |keepalive| keepalive.burst);
        (!self.queue.is_empty() && now >= self.next_burst).then_some(burst)
    }

    /// The connection that has waited longest in the queue. It may have ended since.
    pub(crate) fn next_queued(&mut self) -> Option<ConnectionId> {
        self.queue.pop_front()
    }

    /// The next burst follows after a pause, or in the next turn if this one `was_cut_short`.
    pub(crate) fn end_burst(&mut self, now: Timestamp, was_cut_short: bool) {
        let pause = if was_cut_short { 0 } else { limits::PROBE_BURST_MS };
        self.next_burst = now.plus(pause);
    }

    /// Sends a probe to the peer of a connection from the queue, unless the peer has sent something
    /// since. Returns whether it did.
    pub(crate) fn send(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        connection: &Connection,
        keepalive: Option<Keepalive>,
        ops: &mut Vec<Op>,
    ) -> bool {
        let slot = id.slot();
        if !self.probes.contains_key(&slot) {
            return false;
        }
        let silent_ms = keepalive.filter(|_| connection.is_idle()).and_then(|keepalive| {
            let heard = self.last_heard(now, slot, connection, keepalive);
            let silent_ms = now.0.saturating_sub(heard.0);
            (silent_ms >= keepalive.silence).then_some(silent_ms)
        });
        let Some(silent_ms) = silent_ms else {
            self.forget(slot);
            return false;
        };
        let probe = self.probes.get_mut(&slot).expect("invariant: what is queued is probed");
        assert!(probe.step == Step::Queued, "what is queued has no probe in flight");
        *probe = Probe { attempt: probe.attempt + 1, at: now, step: Step::Sent };
        let silent_s = u16::try_from(silent_ms / 1_000).unwrap_or(u16::MAX).max(1);
        ops.push(Op::Probe { connection: id, silent_s, again: probe.attempt > 1 });
        true
    }

    /// The driver has reported when the peer of a connection that is still open last sent
    /// something. Returns whether the peer has left every probe unanswered.
    pub(crate) fn on_ended(
        &mut self,
        now: Timestamp,
        slot: u32,
        heard: Timestamp,
        keepalive: Option<Keepalive>,
    ) -> bool {
        let Some(probe) = self.probes.get_mut(&slot) else { return false };
        assert!(probe.step == Step::Looking, "no result of a probe was requested");
        let Some(keepalive) = keepalive else {
            self.forget(slot);
            return false;
        };
        // An answer to the previous probe that arrived after the last check also counts. The kernel
        // counts in ticks of up to 10 ms.
        let earlier = if probe.attempt > 1 { keepalive.interval() } else { 0 };
        let slack = (keepalive.silence / 4).min(limits::PROBE_INTERVAL_MS_MIN);
        if heard.plus(earlier + slack) >= probe.at {
            self.forget(slot);
            self.heard.note(slot, now.min(heard), keepalive.step());
            return false;
        }
        if probe.attempt < limits::PROBES {
            probe.step = Step::Unanswered;
            return false;
        }
        self.forget(slot);
        true
    }
}
