//! After a pause of the whole process every timer is late, and bytes that peers sent meanwhile wait
//! to be received. No connection is ended for a silence that this process caused.

use crate::id::Timestamp;
use crate::limits;

/// Whether timers have to wait.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// When the present turn began, and the previous one.
    turns: [Timestamp; 2],
    /// There was a pause: timers wait until this moment.
    until: Option<Timestamp>,
}

impl Pause {
    /// A turn begins.
    pub(crate) fn begin_turn(&mut self, now: Timestamp) {
        self.turns = [now, self.turns[0]];
    }

    /// Until when timers wait, if they do.
    pub(crate) fn end(&self) -> Option<Timestamp> {
        self.until
    }

    /// Whether timers may fire `now`. The first of them is set for `deadline`.
    pub(crate) fn is_over(&mut self, now: Timestamp, deadline: Option<Timestamp>) -> bool {
        if let Some(until) = self.until {
            let over = until <= now;
            if over {
                self.until = None;
                // Timers that are still late are late because of this worker, not of a pause.
                self.turns = [now, now];
            }
            return over;
        }
        let [_, former] = self.turns;
        let expected = deadline.map(|deadline| deadline.max(former));
        let paused = expected.is_some_and(|expected| now >= expected.plus(limits::PAUSE_MS));
        self.until = paused.then(|| now.plus(limits::PAUSE_GRACE_MS));
        !paused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(turns: [u64; 2]) -> Pause {
        Pause { turns: turns.map(Timestamp), until: None }
    }

    #[test]
    fn a_late_turn_is_a_pause_and_a_long_sleep_is_none() {
        let deadline = Some(Timestamp(10_000));
        assert!(pause([10_500, 3]).is_over(Timestamp(10_500), deadline), "slept until then");
        assert!(!pause([60_000, 3]).is_over(Timestamp(60_000), deadline), "stopped for 50 s");
        // Timers that are late because a turn fires only a limited number of them.
        assert!(pause([60_000, 59_900]).is_over(Timestamp(60_000), deadline));
        assert!(pause([60_000, 3]).is_over(Timestamp(60_000), None));
    }

    #[test]
    fn timers_wait_once_after_a_pause() {
        let deadline = Some(Timestamp(10_000));
        let mut pause = pause([60_000, 3]);
        assert!(!pause.is_over(Timestamp(60_000), deadline));
        let end = pause.end().unwrap();
        assert_eq!(end, Timestamp(61_000));
        assert!(!pause.is_over(Timestamp(60_900), deadline));
        assert!(pause.is_over(end, deadline));
        assert_eq!(pause.end(), None);
        pause.begin_turn(end);
        assert!(pause.is_over(end, deadline), "the rest of them fires in the next turn");
    }
}
