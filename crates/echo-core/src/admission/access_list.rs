//! Which addresses are admitted: two lists, looked up by binary search.

use alloc::vec::Vec;

use crate::peer::PeerAddr;

/// The access lists. Empty ones admit every address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessList {
    /// If this is not empty, an address that it does not contain is refused.
    pub allow: IpSet,
    /// An address that this contains is refused, even if it is allowed.
    pub deny: IpSet,
}

impl AccessList {
    /// Whether every address is admitted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether a connection from `peer` is refused. A peer without an address never is.
    #[must_use]
    pub fn denies(&self, peer: PeerAddr) -> bool {
        match peer {
            PeerAddr::Unknown | PeerAddr::Local => false,
            PeerAddr::Ipv4(_) | PeerAddr::Ipv6(_) => {
                self.deny.contains(peer) || (!self.allow.is_empty() && !self.allow.contains(peer))
            }
        }
    }
}

/// A set of addresses. IPv4 and IPv6 are separate: an IPv6 range never contains an IPv4 address,
/// not even a mapped one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSet {
    /// First and last address of each range, in order and without overlap.
    ipv4: Vec<([u8; 4], [u8; 4])>,
    /// The same.
    ipv6: Vec<([u8; 16], [u8; 16])>,
}

impl IpSet {
    /// All addresses of these ranges, given by their first and last address, in any order.
    ///
    /// # Panics
    /// If the last address of a range is below the first.
    #[must_use]
    pub fn new(mut ipv4: Vec<([u8; 4], [u8; 4])>, mut ipv6: Vec<([u8; 16], [u8; 16])>) -> Self {
        merge_overlaps(&mut ipv4);
        merge_overlaps(&mut ipv6);
        Self { ipv4, ipv6 }
    }

    /// Whether there is no address in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// Whether the address of `peer` is in it.
    #[must_use]
    pub fn contains(&self, peer: PeerAddr) -> bool {
        match peer {
            PeerAddr::Unknown | PeerAddr::Local => false,
            PeerAddr::Ipv4(address) => holds(&self.ipv4, &address),
            PeerAddr::Ipv6(address) => holds(&self.ipv6, &address),
        }
    }
}

fn merge_overlaps<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    assert!(ranges.iter().all(|(first, last)| first <= last), "a range runs upwards");
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

    fn of(ranges: &[(u8, u8)]) -> IpSet {
        let range = |&(first, last): &(u8, u8)| ([10, 0, 0, first], [10, 0, 0, last]);
        IpSet::new(ranges.iter().map(range).collect(), Vec::new())
    }

    /// Goal: a look-up in the set agrees with a look-up in each range, for any order, nesting and
    /// overlap. Method: all addresses against a small table of sets.
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
                    set.contains(PeerAddr::Ipv4([10, 0, 0, last])),
                    wanted,
                    "{ranges:?} {last}"
                );
            }
            assert!(!set.contains(PeerAddr::Ipv4([9, 255, 255, 255])));
            assert!(!set.contains(PeerAddr::Ipv4([10, 0, 1, 0])));
        }
    }

    #[test]
    fn a_denied_peer_is_refused_and_one_that_no_allow_list_holds() {
        let [one, two] = [PeerAddr::Ipv4([10, 0, 0, 1]), PeerAddr::Ipv4([10, 0, 0, 2])];
        let both = AccessList { allow: of(&[(1, 2)]), deny: of(&[(2, 2)]) };
        assert!(!both.denies(one) && both.denies(two));
        assert!(both.denies(PeerAddr::Ipv6([0; 16])) && !both.denies(PeerAddr::Local));
        let deny = AccessList { allow: IpSet::default(), deny: of(&[(2, 2)]) };
        assert!(!deny.denies(one) && deny.denies(two) && !deny.denies(PeerAddr::Ipv6([0; 16])));
        assert!(AccessList::default().is_open() && !AccessList::default().denies(two));
    }

    #[test]
    fn families_are_apart() {
        let all = IpSet::new(Vec::new(), alloc::vec![([0; 16], [255; 16])]);
        assert!(all.contains(PeerAddr::Ipv6([7; 16])));
        assert!(!all.contains(PeerAddr::Ipv4([10, 0, 0, 1])));
    }
}
