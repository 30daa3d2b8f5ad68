//! Which size of buffer a connection gets for its next receive.

use super::Connection;
use crate::limits;
use crate::op::{Expectation, SizeClass};
use crate::resources::Resources;

impl Connection {
    /// Learns from a receive which size of buffer the next one deserves.
    pub(super) fn classify(&mut self, resources: &Resources, length: u32, more: bool) {
        self.expectation = if more { Expectation::Data } else { Expectation::Silence };
        let small = resources.pool.size(SizeClass::Small);
        if length > small || length == small && more {
            self.bulky_receives = (self.bulky_receives + 1).min(limits::BULKY_RECEIVES_TO_GROW);
        } else {
            self.bulky_receives = self.bulky_receives.saturating_sub(1);
        }
        if self.bulky_receives == 0 {
            self.class = SizeClass::Small;
        } else if self.bulky_receives == limits::BULKY_RECEIVES_TO_GROW
            && self.probation == 0
            && resources.pool.exists(SizeClass::Large)
        {
            self.class = SizeClass::Large;
        }
    }

    pub(super) fn shrink(&mut self) {
        self.class = SizeClass::Small;
        self.bulky_receives = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Parameters;

    /// The classes that a connection has after each of these receives, by their first letters.
    /// Small buffers hold 8 bytes.
    fn classes(receives: &[(u32, bool)]) -> String {
        let resources = Resources::new(Parameters { buffers: [8, 4], ..Parameters::small(1, 1) });
        let mut connection = Connection::free();
        let class = |&(length, more): &(u32, bool)| {
            connection.classify(&resources, length, more);
            if connection.class == SizeClass::Large { 'L' } else { 's' }
        };
        receives.iter().map(class).collect()
    }

    #[test]
    fn what_fits_a_small_buffer_stays_in_small_ones() {
        assert_eq!(classes(&[(8, false), (8, false), (8, false), (3, true), (3, true)]), "sssss");
        // One may be chance.
        assert_eq!(classes(&[(8, true), (1, false), (8, true), (1, false)]), "ssss");
    }

    #[test]
    fn bulk_gets_large_buffers_until_it_is_over() {
        assert_eq!(classes(&[(8, true), (8, true), (64, true), (20, false)]), "sLLL");
        // The rest of a burst is no reason to leave, a second one is.
        assert_eq!(classes(&[(8, true), (8, true), (5, false), (64, true), (5, false)]), "sLLLL");
        assert_eq!(classes(&[(8, true), (8, true), (5, false), (8, false), (5, false)]), "sLLss");
    }
}
