//! How long a connection may be silent, stalled or alive, and what follows when its time is up.

use super::{CloseReason, Connection, Context, Phase, Receive, Send, Step};
use crate::op::{ConnectionError, Timestamp};
use crate::resources::Resources;

impl Connection {
    /// For how many milliseconds it has been open, at least.
    pub(super) fn age_ms(&self, now: Timestamp) -> u64 {
        self.opened.elapsed(now)
    }

    /// When the connection is to be ended if nothing moves until then, or whatever moves.
    #[must_use]
    pub fn due(&self, resources: &Resources, now: Timestamp) -> Option<Timestamp> {
        let end_of_life = match self.phase {
            Phase::Open => resources.parameters.runtime_limits.lifetime,
            Phase::Free
            | Phase::Accepting
            | Phase::Parked
            | Phase::Finishing
            | Phase::Flushing(_)
            | Phase::Lingering(_)
            | Phase::Closing(_) => None,
        };
        let end_of_life =
            end_of_life.map(|life| Timestamp((now.0 + life).saturating_sub(self.age_ms(now))));
        self.progress_deadline(resources, now).into_iter().chain(end_of_life).min()
    }

    fn progress_deadline(&self, resources: &Resources, now: Timestamp) -> Option<Timestamp> {
        let parameters = &resources.parameters;
        let timeout = match (self.phase, self.send) {
            (Phase::Free | Phase::Accepting | Phase::Parked | Phase::Closing(_), _) => None,
            (Phase::Lingering(_), _) => Some(parameters.linger_timeout),
            (Phase::Open, Send::Idle | Send::Trying { .. }) if !self.is_relay_blocked() => {
                parameters.runtime_limits.idle_timeout
            }
            (Phase::Open | Phase::Finishing | Phase::Flushing(_), _) => {
                parameters.runtime_limits.stall_timeout
            }
        }?;
        let quiet = match self.receive {
            // It might move if we or the kernel had memory for it.
            Receive::Starved | Receive::Retrying => 0,
            _ => match self.send {
                Send::Spilled { step: Step::Retrying, .. }
                | Send::Held { step: Step::Retrying, .. } => 0,
                _ => self.progress.elapsed(now),
            },
        };
        Some(Timestamp((now.0 + timeout).saturating_sub(quiet)))
    }

    /// Whether its peer may be asked whether it is still there: nothing else waits for it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Open
            && matches!(self.send, Send::Idle | Send::Trying { .. })
            && !self.is_relay_blocked()
            && !matches!(self.receive, Receive::Starved | Receive::Retrying)
    }

    /// When bytes last moved in either direction, at the latest.
    #[must_use]
    pub fn last_moved(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_sub(self.progress.elapsed(now)))
    }

    /// Its peer leaves every probe unanswered.
    pub fn on_lost(&mut self, context: &mut Context) {
        self.fail(context, ConnectionError::Unreachable);
        self.advance(context);
    }

    /// Its time is up.
    pub fn on_due(&mut self, context: &mut Context) {
        let lifetime = context.resources.parameters.runtime_limits.lifetime;
        let is_old = lifetime.is_some_and(|lifetime| self.age_ms(context.now) >= lifetime);
        match (self.phase, self.send) {
            (Phase::Free | Phase::Accepting | Phase::Parked | Phase::Closing(_), _) => {
                unreachable!("{:?} has no timer", self.phase)
            }
            (Phase::Lingering(reason), _) => self.die(context, reason),
            // Stalled or not: what was received is still echoed.
            (Phase::Open, _) if is_old => {
                self.phase = Phase::Flushing(CloseReason::Lifetime);
            }
            (Phase::Open, Send::Idle | Send::Trying { .. }) if !self.is_relay_blocked() => {
                self.phase = Phase::Flushing(CloseReason::Idle);
            }
            (Phase::Open | Phase::Finishing | Phase::Flushing(_), _) => {
                self.die(context, CloseReason::Stalled);
            }
        }
        self.advance(context);
    }
}
