//! Moments in 32 bits, coarse enough to represent more than the longest time that can be
//! configured.

use crate::id::Timestamp;

/// The length of a step in milliseconds is 2 to this power. 2^32 steps are two years. Half of them
/// lie in the past and half ahead, and the longest time that can be configured is a year.
const STEP_BITS: u32 = 4;

/// A moment, in steps modulo 2^32: only differences are used. Rounded up by up to one step, so that
/// no timeout ends early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(u32);

impl Stamp {
    /// The moment `now`.
    pub(crate) fn at(now: Timestamp) -> Self {
        Self(((now.0 >> STEP_BITS) as u32).wrapping_add(1))
    }

    /// The moment `milliseconds` before `now`, which may lie before the start of the clock. A
    /// moment that is too long ago to be represented becomes the earliest that can be.
    pub(crate) fn before(now: Timestamp, milliseconds: u64) -> Self {
        let most = u64::from(u32::MAX / 2) << STEP_BITS;
        Self::at(Timestamp(now.0.wrapping_sub(milliseconds.min(most))))
    }

    /// How many milliseconds ago it was, rounded down.
    pub(crate) fn elapsed(self, now: Timestamp) -> u64 {
        let steps = ((now.0 >> STEP_BITS) as u32).wrapping_sub(self.0).cast_signed();
        u64::from(steps.max(0).cast_unsigned()) << STEP_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: u64 = 31_557_600_000;

    /// Goal: no moment is ever taken to be longer ago than it is, nor much less, however long the
    /// worker has run. Method: moments around the limits of the numbers, noted here or taken over.
    #[test]
    fn a_time_is_never_too_long_and_hardly_too_short() {
        for moment in [0, 1, 15, 16, 17, 1 << 32, (1 << 36) - 1, 1 << 36, 1 << 50] {
            for passed in [0, 1, 16, 31, 1_000, 1 << 32, YEAR] {
                let now = Timestamp(moment + passed);
                for stamp in [Stamp::at(Timestamp(moment)), Stamp::before(now, passed)] {
                    let told = stamp.elapsed(now);
                    let right = told <= passed && told + 32 > passed;
                    assert!(right, "{passed} ms after {moment}: {told}");
                }
            }
        }
    }

    #[test]
    fn what_is_too_long_ago_stays_long_ago() {
        for moment in [0, 1 << 40] {
            let told = Stamp::before(Timestamp(moment), u64::MAX).elapsed(Timestamp(moment));
            assert!(told > YEAR, "{told}");
        }
    }
}
