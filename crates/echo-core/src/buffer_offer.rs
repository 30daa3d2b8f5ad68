//! How many small buffers are offered to the kernel.
//!
//! The ring of small buffers is first in, first out, so every buffer in it is used in turn. Each
//! buffer that circulates without need has a cost: the buffers in circulation share the cache with
//! what the kernel copies (messages of 16 KiB take 1.04 of epoll's time with 32 buffers or fewer,
//! 1.06 with 64). Therefore the offer is twice the most that any recent turn took. Once the ring
//! has run dry, the offer is all buffers, until a period of turns has shown what they need.

use core::mem;

/// The smallest offer: since Linux 6.13 a turn brings some 20 completions.
const OFFERED_MIN: u16 = 32;

/// The length of a period in turns. After it fewer are offered if fewer would have been enough for
/// all of its turns.
const TURNS_PER_PERIOD: u16 = 1024;

/// How many buffers to offer, by what recent turns have needed.
#[derive(Debug)]
pub struct BufferOffer {
    /// The number of buffers.
    count: u16,
    /// The number of buffers to offer.
    offers: u16,
    /// The last offer that the driver was given.
    announced: u16,
    /// Buffers that the present turn took.
    taken: u16,
    /// The most that a turn of the present period took.
    taken_most: u16,
    /// Turns until the period ends.
    turns_left: u16,
}

impl BufferOffer {
    /// For `count` buffers which no turn has used yet.
    #[must_use]
    pub fn new(count: u16) -> Self {
        let offers = count.min(OFFERED_MIN);
        Self { count, offers, announced: 0, taken: 0, taken_most: 0, turns_left: TURNS_PER_PERIOD }
    }

    /// A receive took a buffer.
    pub fn note_taken(&mut self) {
        self.taken += 1;
    }

    /// A receive found none, so it is unknown how many the turn would have taken.
    pub fn note_dry(&mut self) {
        self.offers = self.count;
        self.taken_most = self.count;
    }

    /// A turn is over, and the next one may submit `receives` at once. Returns how many buffers to
    /// offer from now on, if that has changed.
    pub fn end_turn(&mut self, receives: u64) -> Option<u16> {
        self.taken_most = self.taken_most.max(mem::take(&mut self.taken));
        self.turns_left -= 1;
        if self.turns_left == 0 {
            let ample = self.taken_most.saturating_mul(2).max(OFFERED_MIN);
            (self.offers, self.taken_most) = (ample.min(self.count), 0);
            self.turns_left = TURNS_PER_PERIOD;
        }
        let wanted = u64::from(self.offers).max(receives).min(u64::from(self.count)) as u16;
        (mem::replace(&mut self.announced, wanted) != wanted).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends a period in which one turn took `most` buffers.
    fn end_period(offer: &mut BufferOffer, most: u16) -> u16 {
        (0..most).for_each(|_| offer.note_taken());
        while offer.turns_left > 1 {
            let _ = offer.end_turn(0);
        }
        let _ = offer.end_turn(0);
        offer.announced
    }

    #[test]
    fn twice_what_turns_take_is_offered() {
        let mut offer = BufferOffer::new(256);
        assert_eq!(offer.end_turn(0), Some(32));
        assert_eq!(offer.end_turn(0), None, "the driver knows");
        assert_eq!(end_period(&mut offer, 20), 40);
        assert_eq!(end_period(&mut offer, 200), 256);
        assert_eq!(end_period(&mut offer, 64), 128);
        assert_eq!(end_period(&mut offer, 1), 32);
        assert_eq!(end_period(&mut BufferOffer::new(8), 8), 8);
    }

    #[test]
    fn all_are_offered_after_a_shortage_until_turns_have_shown_what_they_need() {
        let mut offer = BufferOffer::new(256);
        offer.note_dry();
        assert_eq!(offer.end_turn(0), Some(256));
        assert_eq!(end_period(&mut offer, 10), 256, "there was a turn that took more");
        assert_eq!(end_period(&mut offer, 10), 32);
    }

    #[test]
    fn receives_that_come_together_find_as_many() {
        let mut offer = BufferOffer::new(256);
        assert_eq!(offer.end_turn(100), Some(100));
        assert_eq!(offer.end_turn(500), Some(256));
        assert_eq!(offer.end_turn(0), Some(32));
    }
}
