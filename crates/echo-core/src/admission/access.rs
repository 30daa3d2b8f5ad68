//! Which addresses are let in: two lists, looked up by halving.

use crate::op::Source;

/// The access lists. Empty ones let everybody in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// If this is not empty, whoever it does not contain is refused.
    pub allow: Ranges,
    /// Whoever this contains is refused, allowed or not.
    pub deny: Ranges,
}

impl Access {
    /// Whether everybody is let in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether a connection from `source` is refused. One without an address never is.
    #[must_use]
    pub fn denies(&self, source: Source) -> bool {
        match source {
            Source::Untold | Source::Local => false,
            Source::Ipv4(_) | Source::Ipv6(_) => {
                self.deny.contain(source) || (!self.allow.is_empty() && !self.allow.contain(source))
            }
        }
    }
}

/// A set of addresses. IPv4 and IPv6 are apart: an IPv6 range never contains an IPv4 address, not
/// even a mapped one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First and last address, in order and without overlap.
    ipv4: Vec<([u8; 4], [u8; 4])>,
    /// The same.
    ipv6: Vec<([u8; 16], [u8; 16])>,
}

impl Ranges {
    /// Adds everything from `first` to `last`. To be followed by [`Ranges::settle`].
    pub fn add_ipv4(&mut self, first: [u8; 4], last: [u8; 4]) {
        assert!(first <= last, "a range runs upwards");
        self.ipv4.push((first, last));
    }

    /// Adds everything from `first` to `last`. To be followed by [`Ranges::settle`].
    pub fn add_ipv6(&mut self, first: [u8; 16], last: [u8; 16]) {
        assert!(first <= last, "a range runs upwards");
        self.ipv6.push((first, last));
    }

    /// Sorts what was added, and merges what overlaps.
    #[must_use]
    pub fn settle(mut self) -> Self {
        merge_overlaps(&mut self.ipv4);
        merge_overlaps(&mut self.ipv6);
        self
    }

    /// Whether there is no address in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// Whether the address of `source` is in it.
    #[must_use]
    pub fn contain(&self, source: Source) -> bool {
        match source {
            Source::Untold | Source::Local => false,
            Source::Ipv4(address) => holds(&self.ipv4, &address),
            Source::Ipv6(address) => holds(&self.ipv6, &address),
        }
    }
}

fn merge_overlaps<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

fn holds<T: Ord>(ranges: &[(T, T)], address: &T) -> bool {
    let after = ranges.partition_point(|(first, _)| first <= address);
    ranges[..after].last().is_some_and(|(_, last)| address <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u8, u8)]) -> Ranges {
        let mut set = Ranges::default();
        for &(first, last) in ranges {
            set.add_ipv4([10, 0, 0, first], [10, 0, 0, last]);
        }
        set.settle()
    }

    /// Goal: the set is the same as asking each range, whatever their order, nesting and overlap.
    /// Method: all addresses against a small table of sets.
    #[test]
    fn a_set_holds_what_its_ranges_hold() {
        let sets: [&[(u8, u8)]; 6] = [
            &[],
            &[(5, 5)],
            &[(0, 255), (3, 4)],
            &[(9, 12), (1, 3), (2, 2), (4, 8), (200, 255)],
            &[(1, 100), (2, 3), (50, 120), (119, 130)],
            &[(7, 7), (7, 7), (9, 9)],
        ];
        for ranges in sets {
            let set = of(ranges);
            for last in 0..=255 {
                let wanted = ranges.iter().any(|range| (range.0..=range.1).contains(&last));
                assert_eq!(
                    set.contain(Source::Ipv4([10, 0, 0, last])),
                    wanted,
                    "{ranges:?} {last}"
                );
            }
            assert!(!set.contain(Source::Ipv4([9, 255, 255, 255])));
            assert!(!set.contain(Source::Ipv4([10, 0, 1, 0])));
        }
    }

    #[test]
    fn a_denied_peer_is_refused_and_one_that_no_allow_list_holds() {
        let [one, two] = [Source::Ipv4([10, 0, 0, 1]), Source::Ipv4([10, 0, 0, 2])];
        let both = Access { allow: of(&[(1, 2)]), deny: of(&[(2, 2)]) };
        assert!(!both.denies(one) && both.denies(two));
        assert!(both.denies(Source::Ipv6([0; 16])) && !both.denies(Source::Local));
        let deny = Access { allow: Ranges::default(), deny: of(&[(2, 2)]) };
        assert!(!deny.denies(one) && deny.denies(two) && !deny.denies(Source::Ipv6([0; 16])));
        assert!(Access::default().is_open() && !Access::default().denies(two));
    }

    #[test]
    fn families_are_apart() {
        let mut all = Ranges::default();
        all.add_ipv6([0; 16], [255; 16]);
        let all = all.settle();
        assert!(all.contain(Source::Ipv6([7; 16])));
        assert!(!all.contain(Source::Ipv4([10, 0, 0, 1])));
    }
}
