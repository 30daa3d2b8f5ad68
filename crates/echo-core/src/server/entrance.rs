//! The way in: an answered accept becomes a connection with a place, one that waits for it, or one
//! that is refused.

use super::{Listener, Phase, Server, limits};
use crate::admission::Verdict;
use crate::op::{ConnectionId, Op, Source, Timestamp};
use crate::stats::RefuseReason;

impl Server {
    pub(super) fn on_accepted(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        source: Source,
        ops: &mut Vec<Op>,
    ) {
        let listener = self.accept_ended(id);
        self.listeners[usize::from(listener.0)] = Listener::Off;
        self.arming.aborts[usize::from(listener.0)] = 0;
        self.resources.count_accepted(listener);
        match self.admission.judge(now, id, source) {
            Verdict::Undecided => {
                self.connection(id).park();
                self.admission.undecided.push_back((id, source));
            }
            verdict @ (Verdict::Admitted | Verdict::Refused(_)) => {
                self.receive_verdict(now, id, verdict, ops);
            }
        }
    }

    /// Connections that came while no source was counted, if a change of the rules has it that they
    /// count; some of them in each turn. Each is to be told to [`Self::count_source`].
    #[must_use]
    pub fn take_uncounted(&mut self) -> Vec<ConnectionId> {
        let Some(from) = self.admission.recounted else { return Vec::new() };
        let to = self.slots.len().min(from + limits::SWEEP_SLOTS_MAX);
        self.admission.recounted = (to < self.slots.len()).then_some(to);
        let here = (from..to).filter(|slot| match self.slots[*slot].phase() {
            Phase::Free | Phase::Accepting => false,
            Phase::Parked
            | Phase::Open
            | Phase::Finishing
            | Phase::Flushing(_)
            | Phase::Lingering(_)
            | Phase::Closing(_) => true,
        });
        let named = here.map(|slot| ConnectionId::new(slot as u32, self.slots[slot].generation()));
        named.filter(|id| self.admission.is_uncounted(*id)).collect()
    }

    /// Counts a connection that is here already; it stays whatever the caps say.
    pub fn count_source(&mut self, now: Timestamp, id: ConnectionId, source: Source) {
        self.admission.count_imported(now, id, source);
    }

    /// Judges those again who could not be judged when they came.
    pub(super) fn decide_undecided(&mut self, now: Timestamp, ops: &mut Vec<Op>) {
        while let Some((id, verdict)) = self.admission.decide(now) {
            self.receive_verdict(now, id, verdict, ops);
        }
    }

    fn receive_verdict(
        &mut self,
        now: Timestamp,
        id: ConnectionId,
        verdict: Verdict,
        ops: &mut Vec<Op>,
    ) {
        match verdict {
            Verdict::Undecided => unreachable!("{id:?} has no verdict"),
            Verdict::Refused(reason) => self.refuse(id, reason, ops),
            Verdict::Admitted if self.has_place() => self.open(now, id, ops),
            Verdict::Admitted => {
                if !matches!(self.connection(id).phase(), Phase::Parked) {
                    self.connection(id).park();
                }
                self.parked.push_back(id);
            }
        }
    }

    /// Closes it at once: it takes no place, no buffer and no receive.
    fn refuse(&mut self, id: ConnectionId, reason: RefuseReason, ops: &mut Vec<Op>) {
        let listener = self.connection(id).listener();
        self.resources.count_refused(listener, reason);
        ops.push(Op::Close { connection: id });
        self.connection(id).release();
        self.free.push(id.slot());
    }
}
