//! How long a connection may be silent, stalled or alive, and what follows when its time is up.

use super::{CloseReason, Connection, Context, Phase, Receive, Send};
use crate::echo::op::Timestamp;
use crate::echo::resources::Resources;

/// Lifetimes are counted in steps of so many milliseconds, as a power of two: in 32 bits, so that
/// the longest that can be configured, a year, is less than half of what they can tell apart.
const AGE_STEP_BITS: u32 = 4;

impl Connection {
    /// Notes that its life begins. Up to one step late, so that nobody's ends early.
    pub(super) fn begin_life(&mut self, now: Timestamp) {
        self.born = ((now.0 >> AGE_STEP_BITS) as u32).wrapping_add(1);
    }

    /// Notes that its life began in the process before us.
    pub(super) fn resume_life(&mut self, now: Timestamp, age_ms: u64) {
        self.begin_life(Timestamp(now.0.wrapping_sub(age_ms)));
    }

    /// For how many milliseconds it has been open, at least.
    pub(super) fn age_ms(&self, now: Timestamp) -> u64 {
        let steps = ((now.0 >> AGE_STEP_BITS) as u32).wrapping_sub(self.born).cast_signed();
        u64::from(steps.max(0).cast_unsigned()) << AGE_STEP_BITS
    }

    /// When the connection is to be ended if nothing moves until then, or whatever moves.
    #[must_use]
    pub fn due(&self, resources: &Resources, now: Timestamp) -> Option<Timestamp> {
        let end_of_life = match self.phase {
            Phase::Open => resources.parameters.tuning.lifetime,
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
        self.end_of_patience(resources, now).into_iter().chain(end_of_life).min()
    }

    fn end_of_patience(&self, resources: &Resources, now: Timestamp) -> Option<Timestamp> {
        let parameters = &resources.parameters;
        let patience = match (self.phase, self.send) {
            (Phase::Free | Phase::Accepting | Phase::Parked | Phase::Closing(_), _) => None,
            (Phase::Lingering(_), _) => Some(parameters.linger_timeout),
            (Phase::Open, Send::Idle | Send::Trying { .. }) => parameters.tuning.idle_timeout,
            (Phase::Open | Phase::Finishing | Phase::Flushing(_), _) => {
                parameters.tuning.stall_timeout
            }
        }?;
        let quiet = match self.receive {
            // It would move if we had a buffer for it.
            Receive::Starved => 0,
            _ => (now.0 as u32).wrapping_sub(self.progress_ms),
        };
        Some(Timestamp((now.0 + patience).saturating_sub(u64::from(quiet))))
    }

    /// Its time is up.
    pub fn on_due(&mut self, context: &mut Context) {
        let lifetime = context.resources.parameters.tuning.lifetime;
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
            (Phase::Open, Send::Idle | Send::Trying { .. }) => {
                self.phase = Phase::Flushing(CloseReason::Idle);
            }
            (Phase::Open | Phase::Finishing | Phase::Flushing(_), _) => {
                self.die(context, CloseReason::Stalled);
            }
        }
        self.advance(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: nobody is ever taken for older than it is, nor for much younger, however long the
    /// worker has run. Method: births and ages around the limits of the numbers.
    #[test]
    fn an_age_is_never_too_high_and_hardly_too_low() {
        const YEAR: u64 = 31_557_600_000;
        for birth in [0, 1, 15, 16, 17, 1 << 32, (1 << 36) - 1, 1 << 36, 1 << 50] {
            let mut connection = Connection::free();
            connection.begin_life(Timestamp(birth));
            for age in [0, 1, 16, 31, 1_000, 1 << 32, YEAR] {
                let told = connection.age_ms(Timestamp(birth + age));
                assert!(told <= age && told + 32 > age, "{age} ms after {birth}: {told}");
            }
        }
    }
}
