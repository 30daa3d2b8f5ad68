//! What the next receive of a connection will probably bring: how many bytes, and whether at once.

use crate::id::SizeClass;
use crate::limits;
use crate::op::Expectation;

/// Learns from the receives of one connection. A connection that fills small buffers gets large
/// ones; one that does not gets small ones again.
///
/// One byte, because there is one for each connection. The lowest two bits are the number of
/// receives that filled a small buffer minus those that did not, from 0 to
/// [`limits::BULKY_RECEIVES_TO_GROW`]. The upper four are how many small buffers the last receive
/// would have filled, as a power of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate(u8);

const BULKY: u8 = 0b0011;
const LARGE: u8 = 0b0100;
const SILENCE: u8 = 0b1000;
const SIZE_SHIFT: u32 = 4;
const SIZE_MAX: u32 = 15;

const _: () = assert!(limits::BULKY_RECEIVES_TO_GROW <= BULKY);

impl Estimate {
    /// Small buffers, and what the socket holds.
    #[must_use]
    pub(crate) fn new(expectation: Expectation) -> Self {
        let mut estimate = Self(0);
        estimate.expect(expectation);
        estimate
    }

    /// The size for the next receive.
    #[must_use]
    pub(crate) fn class(self) -> SizeClass {
        if self.0 & LARGE == 0 { SizeClass::Small } else { SizeClass::Large }
    }

    /// What the socket probably holds.
    #[must_use]
    pub(crate) fn expectation(self) -> Expectation {
        if self.0 & SILENCE == 0 { Expectation::Data } else { Expectation::Silence }
    }

    /// Sets what the socket probably holds from now on.
    pub(crate) fn expect(&mut self, expectation: Expectation) {
        self.0 = match expectation {
            Expectation::Data => self.0 & !SILENCE,
            Expectation::Silence => self.0 | SILENCE,
        };
    }

    /// Records a receive of `length` bytes, after which the socket holds `rest`. `small_size` is
    /// the size of a small buffer, `largest` the largest class that may be used.
    pub(crate) fn note(
        &mut self,
        length: u32,
        rest: Expectation,
        small_size: u32,
        largest: SizeClass,
    ) {
        self.expect(rest);
        let size = length.div_ceil(small_size).next_power_of_two().trailing_zeros().min(SIZE_MAX);
        self.0 = self.0 & (BULKY | LARGE | SILENCE) | (size as u8) << SIZE_SHIFT;
        let full = length == small_size && rest == Expectation::Data;
        let bulky = if length > small_size || full {
            ((self.0 & BULKY) + 1).min(limits::BULKY_RECEIVES_TO_GROW)
        } else {
            (self.0 & BULKY).saturating_sub(1)
        };
        self.0 = self.0 & !BULKY | bulky;
        if bulky == 0 {
            self.0 &= !LARGE;
        } else if bulky == limits::BULKY_RECEIVES_TO_GROW && largest == SizeClass::Large {
            self.0 |= LARGE;
        }
    }

    /// How many bytes the next receive into a large buffer will probably bring: as many as the
    /// last receive.
    pub(crate) fn bytes(self, small_size: u32) -> u32 {
        small_size.saturating_mul(1 << (self.0 >> SIZE_SHIFT))
    }

    /// Forgets the bulk: the next receives get small buffers.
    pub(crate) fn forget_bulk(&mut self) {
        self.0 &= !(BULKY | LARGE);
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;
    use Expectation::{Data, Silence};

    /// The classes after each of these receives, by their first letters. Small buffers hold 8
    /// bytes.
    fn classes(receives: &[(u32, Expectation)]) -> String {
        let mut estimate = Estimate::new(Data);
        let class = |&(length, rest): &(u32, Expectation)| {
            estimate.note(length, rest, 8, SizeClass::Large);
            if estimate.class() == SizeClass::Large { 'L' } else { 's' }
        };
        receives.iter().map(class).collect()
    }

    #[test]
    fn what_fits_a_small_buffer_stays_in_small_ones() {
        let receives = [(8, Silence), (8, Silence), (8, Silence), (3, Data), (3, Data)];
        assert_eq!(classes(&receives), "sssss");
        // One may be chance.
        assert_eq!(classes(&[(8, Data), (1, Silence), (8, Data), (1, Silence)]), "ssss");
    }

    #[test]
    fn bulk_gets_large_buffers_until_it_is_over() {
        assert_eq!(classes(&[(8, Data), (8, Data), (64, Data), (20, Silence)]), "sLLL");
        // The rest of a burst is no reason to change back, a second small receive is.
        let burst = [(8, Data), (8, Data), (5, Silence), (64, Data), (5, Silence)];
        assert_eq!(classes(&burst), "sLLLL");
        let two = [(8, Data), (8, Data), (5, Silence), (8, Silence), (5, Silence)];
        assert_eq!(classes(&two), "sLLss");
    }

    #[test]
    fn the_size_is_that_of_the_last_receive() {
        let mut estimate = Estimate::new(Data);
        for (length, bytes) in [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (3, 8)] {
            estimate.note(length, Data, 8, SizeClass::Large);
            assert_eq!(estimate.bytes(8), bytes, "{length}");
        }
        estimate.note(64, Data, 8, SizeClass::Large);
        estimate.forget_bulk();
        assert_eq!((estimate.class(), estimate.bytes(8)), (SizeClass::Small, 64));
        estimate.note(8, Data, 8, SizeClass::Small);
        estimate.note(8, Data, 8, SizeClass::Small);
        assert_eq!(estimate.class(), SizeClass::Small, "large ones may not be used");
    }
}
