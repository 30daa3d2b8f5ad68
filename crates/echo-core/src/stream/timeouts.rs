//! The timeouts of a connection, and the two moments from which they run.

use crate::id::Timestamp;

/// Which timeout runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeout {
    /// The header is not complete.
    Preface,
    /// No byte moves, and none waits.
    Idle,
    /// Bytes wait for the peer, which takes none.
    Stall,
    /// The peer has not answered our FIN.
    Linger,
}

/// The moments from which the timeouts of a connection run. Each is known to 16 ms, so that both
/// fit into 8 bytes; no timeout ends early.
#[derive(Debug, Default)]
pub(crate) struct Timeouts {
    /// When bytes last moved in either direction, or silence ended for which the peer is not
    /// responsible.
    moved: Stamp,
    /// When the connection was opened.
    opened: Stamp,
}

impl Timeouts {
    /// Those of a connection that is opened `now`.
    #[must_use]
    pub(crate) fn begin(now: Timestamp) -> Self {
        Self { moved: Stamp::at(now), opened: Stamp::at(now) }
    }

    /// Those of a connection of the previous process: it has been quiet and open for this many
    /// milliseconds.
    #[must_use]
    pub(crate) fn imported(now: Timestamp, quiet_ms: u64, age_ms: u64) -> Self {
        Self { moved: Stamp::before(now, quiet_ms), opened: Stamp::before(now, age_ms) }
    }

    /// Bytes move `now`, or the silence until now does not count.
    pub(crate) fn restart(&mut self, now: Timestamp) {
        self.moved = Stamp::at(now);
    }

    /// For how many milliseconds no byte has moved, rounded down.
    #[must_use]
    pub(crate) fn quiet_ms(&self, now: Timestamp) -> u64 {
        self.moved.elapsed(now)
    }

    /// For how many milliseconds the connection has been open, rounded down.
    #[must_use]
    pub(crate) fn age_ms(&self, now: Timestamp) -> u64 {
        self.opened.elapsed(now)
    }

    /// When bytes last moved, rounded up.
    #[must_use]
    pub(crate) fn last_moved(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_sub(self.quiet_ms(now)))
    }

    /// The moment at which no byte will have moved for `timeout` milliseconds.
    #[must_use]
    pub(crate) fn silence_ends(&self, timeout: u64, now: Timestamp) -> Timestamp {
        Timestamp(now.plus(timeout).0.saturating_sub(self.quiet_ms(now)))
    }

    /// The moment at which the connection will have been open for `lifetime` milliseconds.
    #[must_use]
    pub(crate) fn life_ends(&self, lifetime: u64, now: Timestamp) -> Timestamp {
        Timestamp(now.plus(lifetime).0.saturating_sub(self.age_ms(now)))
    }
}

/// The length of a step in milliseconds is 2 to this power.
const STEP_BITS: u32 = 4;
/// Steps that a stamp may lie ahead of the present, at most: it is rounded up.
const STEPS_AHEAD_MAX: u32 = 1 << 8;

/// A moment, in steps modulo 2^32: only differences are used. Rounded up by up to one step, so that
/// no timeout ends early.
///
/// 2^32 steps are 795 days. The longest time that can be configured is a year, so a timeout that
/// runs ends before that. Without one, a moment that is longer ago is taken for a recent one; that
/// matters if a timeout is configured only then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp(u32);

impl Stamp {
    /// The moment `now`.
    fn at(now: Timestamp) -> Self {
        Self(((now.0 >> STEP_BITS) as u32).wrapping_add(1))
    }

    /// The moment `milliseconds` before `now`, which may lie before the start of the clock, but at
    /// most a year and a month.
    fn before(now: Timestamp, milliseconds: u64) -> Self {
        let most = u64::from(u32::MAX / 2) << STEP_BITS;
        Self::at(Timestamp(now.0.wrapping_sub(milliseconds.min(most))))
    }

    /// How many milliseconds ago it was, rounded down.
    fn elapsed(self, now: Timestamp) -> u64 {
        let steps = ((now.0 >> STEP_BITS) as u32).wrapping_sub(self.0);
        let is_ahead = steps >= STEPS_AHEAD_MAX.wrapping_neg();
        if is_ahead { 0 } else { u64::from(steps) << STEP_BITS }
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

    /// Goal: a deadline is never early and at most two steps late, counted from its own moment.
    /// Method: a connection that moved bytes later than it was opened.
    #[test]
    fn a_deadline_counts_from_its_own_moment() {
        let within = |told: Timestamp, right: u64| (right..right + 32).contains(&told.0);
        let mut timeouts = Timeouts::begin(Timestamp(1_000));
        timeouts.restart(Timestamp(4_000));
        let now = Timestamp(9_000);
        assert!(within(timeouts.silence_ends(7_000, now), 11_000));
        assert!(within(timeouts.silence_ends(2_000, now), 6_000), "a deadline that has passed");
        assert!(within(timeouts.life_ends(10_000, now), 11_000));
        assert!(within(timeouts.last_moved(now), 4_000));
        let imported = Timeouts::imported(now, 5_000, 8_000);
        assert!(within(imported.silence_ends(7_000, now), 11_000));
        assert!(within(imported.life_ends(10_000, now), 11_000));
        // The previous process may have known the connection longer than this clock runs.
        assert_eq!(Timeouts::imported(now, YEAR, YEAR).last_moved(now), Timestamp(0));
        assert_eq!(Timeouts::imported(now, YEAR, YEAR).silence_ends(1, now), Timestamp(0));
    }

    /// A connection without timeouts may be older than any, when a reload sets one.
    #[test]
    fn what_is_too_long_ago_stays_long_ago() {
        for moment in [0, 1 << 40] {
            let now = Timestamp(moment);
            let told = Stamp::at(now).elapsed(now.plus(2 * YEAR));
            assert!(told + 32 > 2 * YEAR, "{told}");
            let told = Stamp::before(now, u64::MAX).elapsed(now.plus(YEAR));
            assert!(told > 2 * YEAR, "{told}");
        }
    }
}
