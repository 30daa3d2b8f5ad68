//! A coarse timer wheel: at most one timer for each connection slot, driven by the `now` that is
//! passed in.
//!
//! It is lazy: activity does not move a timer. When a timer fires, its owner checks whether the
//! deadline has really passed and, if not, sets the timer again. A timer beyond the wheel's horizon
//! fires at the horizon and is set again in the same way. Therefore a connection costs the wheel a
//! visit every few minutes, and the echo path never touches it.

use alloc::vec::Vec;

use crate::id::Timestamp;

const BUCKETS: usize = 256;
const WORDS: usize = BUCKETS / 64;
const NONE: u32 = u32::MAX;
const UNSET: u16 = u16::MAX;

/// The position of one slot in its bucket's doubly linked list.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    bucket: u16,
}

const UNLINKED: Link = Link { previous: NONE, next: NONE, bucket: UNSET };

/// Timers for slots 0, 1, 2, …; 12 bytes a slot.
pub struct Wheel {
    tick_ms: u64,
    /// A moment at which a tick began, in milliseconds, and the number of that tick.
    origin: (u64, u64),
    /// The last tick whose bucket has been emptied.
    done: u64,
    heads: [u32; BUCKETS],
    occupied: [u64; WORDS],
    links: Vec<Link>,
}

impl Wheel {
    /// An empty wheel that counts from `now` in steps of `tick_ms` milliseconds, with room for
    /// `slots` slots before it must grow.
    #[must_use]
    pub fn new(now: Timestamp, tick_ms: u64, slots: u32) -> Self {
        assert!(tick_ms > 0, "time must move");
        Self {
            tick_ms,
            origin: (0, 0),
            done: now.0 / tick_ms,
            heads: [NONE; BUCKETS],
            occupied: [0; WORDS],
            links: Vec::with_capacity(slots as usize),
        }
    }

    /// Counts in steps of `tick_ms` milliseconds from `now` on. Timers that are set keep their
    /// distance in ticks, so they fire too early or too late. The caller must set them again.
    pub fn set_tick(&mut self, now: Timestamp, tick_ms: u64) {
        assert!(tick_ms > 0, "time must move");
        if tick_ms != self.tick_ms {
            self.tick_ms = tick_ms;
            self.origin = (now.0, self.done);
        }
    }

    /// Sets the timer of `slot` to fire at `at` or up to one tick later, or at the horizon if that
    /// is nearer.
    pub fn set(&mut self, slot: u32, at: Timestamp) {
        self.clear(slot);
        let (moment, first) = self.origin;
        let ahead = at.0.saturating_sub(moment).div_ceil(self.tick_ms);
        let tick = (first + ahead).clamp(self.done + 1, self.done + BUCKETS as u64 - 1);
        let bucket = bucket_of(tick);
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, UNLINKED);
        }
        let next = self.heads[bucket];
        self.links[index] = Link { previous: NONE, next, bucket: bucket as u16 };
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.heads[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
    }

    /// Restarts an empty wheel at `now`. The wheel does not advance while no timer is set, so a new
    /// timer would seem to lie beyond its horizon.
    pub fn catch_up(&mut self, now: Timestamp) {
        if self.occupied == [0; WORDS] {
            let (moment, first) = self.origin;
            let tick = first + now.0.saturating_sub(moment) / self.tick_ms;
            self.done = self.done.max(tick);
        }
    }

    /// Unsets the timer of `slot`, if it has one.
    pub fn clear(&mut self, slot: u32) {
        let Some(&Link { previous, next, bucket }) = self.links.get(slot as usize) else { return };
        if bucket == UNSET {
            return;
        }
        let bucket = usize::from(bucket);
        match previous {
            NONE => self.heads[bucket] = next,
            _ => self.links[previous as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if self.heads[bucket] == NONE {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
        self.links[slot as usize] = UNLINKED;
    }

    /// Removes one timer that has fired by `now`; `None` if there is none.
    pub fn expired(&mut self, now: Timestamp) -> Option<u32> {
        let (moment, first) = self.origin;
        let tick = first + now.0.saturating_sub(moment) / self.tick_ms;
        // A wheel that is whole revolutions behind skips them. All its timers have fired in either
        // case, but a timer that is set again would otherwise go round once for each revolution.
        let turns_behind = tick.saturating_sub(self.done) / BUCKETS as u64;
        self.done += turns_behind.saturating_sub(1) * BUCKETS as u64;
        while self.done < tick {
            match self.next_tick() {
                Some(due) if due <= tick => {
                    let slot = self.heads[bucket_of(due)];
                    // Timers set while this bucket is emptied must not land in it again.
                    self.done = self.done.max(due - 1);
                    self.clear(slot);
                    return Some(slot);
                }
                _ => self.done = tick,
            }
        }
        None
    }

    /// When the next timer fires.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let (moment, first) = self.origin;
        self.next_tick().map(|tick| Timestamp(moment + (tick - first) * self.tick_ms))
    }

    /// The first tick after `done` whose bucket is not empty.
    fn next_tick(&self) -> Option<u64> {
        let start = bucket_of(self.done + 1);
        let ahead = (0..=WORDS).find_map(|step| {
            let word = (start / 64 + step) % WORDS;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= !0 << (start % 64);
            } else if step == WORDS {
                bits &= !(!0 << (start % 64));
            }
            (bits != 0).then(|| {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                (bucket + BUCKETS - start) % BUCKETS
            })
        })?;
        Some(self.done + 1 + ahead as u64)
    }
}

fn bucket_of(tick: u64) -> usize {
    (tick % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut fired: Vec<u32> = core::iter::from_fn(|| wheel.expired(Timestamp(now))).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn a_wheel_that_was_empty_for_long_fires_once() {
        let mut wheel = Wheel::new(Timestamp(0), 10, 0);
        let now = 1 << 40;
        wheel.catch_up(Timestamp(now));
        wheel.set(0, Timestamp(now + 35));
        assert_eq!(drain(&mut wheel, now + 30), [0_u32; 0]);
        assert_eq!(drain(&mut wheel, now + 44), [0]);
        // One that is not empty stays as it is.
        wheel.set(0, Timestamp(now + 100));
        wheel.catch_up(Timestamp(now + 90));
        assert_eq!(drain(&mut wheel, now + 110), [0]);
    }

    #[test]
    fn fires_in_order_and_never_early() {
        let mut wheel = Wheel::new(Timestamp(0), 10, 0);
        wheel.set(0, Timestamp(35));
        wheel.set(1, Timestamp(20));
        wheel.set(2, Timestamp(20));
        assert_eq!(wheel.deadline(), Some(Timestamp(20)));
        assert_eq!(drain(&mut wheel, 19), [0_u32; 0]);
        assert_eq!(drain(&mut wheel, 20), [1, 2]);
        assert_eq!(wheel.deadline(), Some(Timestamp(40)));
        assert_eq!(drain(&mut wheel, 39), [0_u32; 0]);
        assert_eq!(drain(&mut wheel, 4_000), [0]);
        assert_eq!(wheel.deadline(), None);
    }

    #[test]
    fn clears_from_every_place_of_a_bucket() {
        for victim in 0..3 {
            let mut wheel = Wheel::new(Timestamp(0), 1, 0);
            (0..3).for_each(|slot| wheel.set(slot, Timestamp(5)));
            wheel.clear(victim);
            wheel.clear(victim);
            let left: Vec<u32> = (0..3).filter(|&slot| slot != victim).collect();
            assert_eq!(drain(&mut wheel, 5), left);
        }
    }

    #[test]
    fn a_far_timer_fires_at_the_horizon_so_that_it_can_be_set_again() {
        let mut wheel = Wheel::new(Timestamp(0), 1, 0);
        wheel.set(7, Timestamp(1_000_000));
        let horizon = wheel.deadline().expect("it is set");
        assert_eq!(horizon, Timestamp(255));
        assert_eq!(drain(&mut wheel, 255), [7]);
    }

    #[test]
    fn a_timer_set_in_the_past_fires_at_the_next_tick() {
        let mut wheel = Wheel::new(Timestamp(1_000), 10, 0);
        wheel.set(3, Timestamp(0));
        assert_eq!(drain(&mut wheel, 1_000), [0_u32; 0]);
        assert_eq!(drain(&mut wheel, 1_010), [3]);
    }

    #[test]
    fn a_long_sleep_fires_everything_once() {
        let mut wheel = Wheel::new(Timestamp(0), 1, 0);
        (0..600).for_each(|slot| wheel.set(slot, Timestamp(u64::from(slot))));
        assert_eq!(drain(&mut wheel, 10_000_000), (0..600).collect::<Vec<_>>());
        assert_eq!(drain(&mut wheel, 20_000_000), [0_u32; 0]);
    }

    /// Goal: after a long pause a timer that is set again and again reaches the present at once,
    /// and no expired timer is skipped.
    #[test]
    fn a_wheel_far_behind_catches_up_in_a_few_steps() {
        let now = Timestamp(1 << 40);
        let mut wheel = Wheel::new(Timestamp(0), 10, 0);
        (0..20).for_each(|slot| wheel.set(slot, Timestamp(100 * u64::from(slot))));
        let mut fired = Vec::new();
        while let Some(slot) = wheel.expired(now) {
            fired.push(slot);
            wheel.set(slot, now.plus(60_000));
            assert!(fired.len() <= 80, "timers go round and round");
        }
        fired.sort_unstable();
        fired.dedup();
        assert_eq!(fired, (0..20).collect::<Vec<_>>());
        assert!(wheel.deadline().is_some_and(|next| next > now));
    }

    /// Compared with a simple model: a list of (slot, tick).
    #[test]
    fn agrees_with_a_plain_list() {
        let mut random = 0x9e37_79b9_u64;
        let mut next = move |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let mut wheel = Wheel::new(Timestamp(0), 4, 0);
        let mut model: Vec<Option<u64>> = alloc::vec![None; 32];
        let mut now = 0;
        // The moment since which a tick has its present length, and the number of the first such
        // tick.
        let (mut since, mut step, mut first) = (0, 4, 0);
        for _ in 0..20_000 {
            let slot = next(32) as u32;
            let tick = first + (now - since) / step;
            match next(3) {
                0 => {
                    let at = now + next(200 * step);
                    wheel.set(slot, Timestamp(at));
                    let tick_of_at = first + (at - since).div_ceil(step);
                    model[slot as usize] = Some(tick_of_at.max(tick + 1));
                }
                1 if next(8) == 0 => {
                    let longer = 1 + next(9);
                    if longer != step {
                        (since, step, first) = (now, longer, tick);
                    }
                    wheel.set_tick(Timestamp(now), longer);
                }
                1 => {
                    wheel.clear(slot);
                    model[slot as usize] = None;
                }
                _ => {
                    now += next(40);
                    let tick = first + (now - since) / step;
                    let mut due: Vec<u32> = (0..32)
                        .filter(|&slot| model[slot as usize].is_some_and(|at| at <= tick))
                        .collect();
                    due.iter().for_each(|&slot| model[slot as usize] = None);
                    due.sort_unstable();
                    assert_eq!(drain(&mut wheel, now), due);
                }
            }
            let earliest = model.iter().flatten().min();
            let earliest = earliest.map(|tick| Timestamp(since + (tick - first) * step));
            assert_eq!(wheel.deadline(), earliest);
        }
    }
}
