//! Message sizes: fixed, uniformly distributed over a range, or weighted.

use std::str::FromStr;

use bytesize::ByteSize;

/// The maximum message size: one message for each connection must fit into memory.
const BYTES_MAX: u64 = 64 << 20;

/// The lengths of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// As given on the command line.
    text: String,
    /// Ranges of bytes, both ends included, each with the sum of the weights up to and including
    /// it.
    ranges: Vec<(usize, usize, u64)>,
}

impl Sizes {
    /// The maximum size.
    pub(crate) fn bytes_max(&self) -> usize {
        self.ranges.iter().map(|range| range.1).max().expect("invariant: there is one")
    }

    /// The minimum size.
    pub(crate) fn bytes_min(&self) -> usize {
        self.ranges.iter().map(|range| range.0).min().expect("invariant: there is one")
    }

    /// One size, selected by 64 random bits.
    pub(crate) fn draw(&self, random: u64) -> usize {
        let [(low, high, _)] = self.ranges[..] else { return self.draw_weighted(random) };
        low + (random % (high - low + 1) as u64) as usize
    }

    fn draw_weighted(&self, random: u64) -> usize {
        let sum = self.ranges.last().expect("invariant: there is one").2;
        let ticket = (random >> 32) % sum;
        let index = self.ranges.partition_point(|range| range.2 <= ticket);
        let (low, high, _) = self.ranges[index];
        low + ((random & 0xffff_ffff) % (high - low + 1) as u64) as usize
    }

    /// The size, if it is fixed.
    pub(crate) fn fixed(&self) -> Option<usize> {
        matches!(self.ranges[..], [(low, high, _)] if low == high).then(|| self.ranges[0].0)
    }

    /// As given on the command line.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// `64`, `64..4KiB`, `64:90,16KiB:10` (weights), or ranges with weights.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut ranges = Vec::new();
        let mut sum = 0_u64;
        for part in text.split(',') {
            let (range, weight) = match part.split_once(':') {
                None => (part, 1),
                Some((range, weight)) => {
                    let weight = weight.trim().trim_end_matches('%').parse::<u32>();
                    let wrong =
                        format!("{part:?}: the weight must be a whole number of at least 1");
                    (range, weight.ok().filter(|&it| it > 0).ok_or(wrong)?)
                }
            };
            let (low, high) = match range.split_once("..") {
                None => (bytes(range)?, bytes(range)?),
                Some((low, high)) => (bytes(low)?, bytes(high.trim_start_matches('='))?),
            };
            if low > high {
                return Err(format!("{range:?}: the range is empty"));
            }
            sum += u64::from(weight);
            ranges.push((low, high, sum));
        }
        Ok(Self { text: text.to_owned(), ranges })
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    let size = text
        .trim()
        .parse::<ByteSize>()
        .map_err(|_| format!("{text:?} is not a size; use 64, 4KiB, 64..4KiB or 64:90,16KiB:10"))?;
    match size.as_u64() {
        bytes @ 0..=BYTES_MAX => Ok(bytes as usize),
        _ => Err(format!("{text:?} is out of range; use at most 64MiB")),
    }
}

/// A random number generator for message sizes (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(text: &str) -> Vec<usize> {
        let sizes: Sizes = text.parse().unwrap();
        let mut random = Random::new(1);
        (0..10_000).map(|_| sizes.draw(random.next())).collect()
    }

    #[test]
    fn the_three_forms() {
        assert!(draws("64").iter().all(|&it| it == 64));
        let range = draws("64..4KiB");
        assert!(range.iter().all(|it| (64..=4096).contains(it)));
        assert!(range.iter().min().unwrap() < &100);
        assert!(range.iter().max().unwrap() > &4000);
        let weighted = draws("64:90,16KiB:10");
        let long = weighted.iter().filter(|&&it| it == 16384).count();
        assert!((800..1200).contains(&long), "{long} of 10000");
        assert!(weighted.iter().all(|it| [64, 16384].contains(it)));
        assert_eq!("1..2,8KiB".parse::<Sizes>().unwrap().bytes_max(), 8192);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "4..2", "64:0", "64:x", "65MiB", "64,"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }
}
