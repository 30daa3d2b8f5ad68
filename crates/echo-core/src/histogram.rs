//! The distribution of durations, in constant memory and a few nanoseconds for each record.
//!
//! The classes are log-linear: each doubling is cut into `STEPS` equal classes, so a figure read
//! from it is at most an eighth too large, from one microsecond to half an hour. Histograms of
//! several workers add up.

/// Classes of one doubling.
const STEPS: usize = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Values of this many bits and more share the last class.
const BITS_MAX: u32 = 31;
/// How many classes there are.
const CLASSES: usize = STEPS * (BITS_MAX - STEP_BITS + 1) as usize;

/// Counts of durations in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; CLASSES],
    /// The sum of all durations, in microseconds.
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; CLASSES], sum: 0 }
    }
}

impl Histogram {
    /// Notes one duration.
    pub fn record(&mut self, microseconds: u32) {
        self.counts[class(microseconds)] += 1;
        self.sum += u64::from(microseconds);
    }

    /// How many durations were noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all durations, in microseconds.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The duration, in microseconds, that a `fraction` (0 to 1) of all durations does not exceed;
    /// 0 if there is no duration. It is the upper end of a class, so at most an eighth too large.
    #[must_use]
    pub fn quantile(&self, fraction: f64) -> u64 {
        let exact = self.count() as f64 * fraction;
        let whole = exact as u64;
        let wanted = (whole + u64::from((whole as f64) < exact)).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return last_of(index);
            }
        }
        0
    }

    /// How many durations were of at most `microseconds`. Exact if that is the last value of a
    /// class, for example one less than a power of two. Otherwise the durations in its class are
    /// not counted.
    #[must_use]
    pub fn count_up_to(&self, microseconds: u64) -> u64 {
        let whole = (0..CLASSES).take_while(|&index| last_of(index) <= microseconds).count();
        self.counts[..whole].iter().sum()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }
}

/// The class of a value. Values below [`STEPS`] have one of their own.
fn class(value: u32) -> usize {
    let value = value.min((1 << BITS_MAX) - 1);
    if value < STEPS as u32 {
        return value as usize;
    }
    let doubling = value.ilog2() - STEP_BITS;
    let step = (value >> doubling) as usize - STEPS;
    STEPS * (doubling as usize + 1) + step
}

/// The largest value of a class.
fn last_of(class: usize) -> u64 {
    if class < STEPS {
        return class as u64;
    }
    let doubling = class / STEPS - 1;
    let first = (STEPS + class % STEPS) as u64;
    ((first + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_one_class_and_classes_ascend() {
        let mut before = 0;
        for exponent in 0..BITS_MAX {
            for offset in 0..16_u32 {
                let value = (1_u32 << exponent) + offset * ((1_u32 << exponent) / 16);
                let class = class(value);
                assert!(class >= before, "{value}");
                before = class;
                assert!(last_of(class) >= u64::from(value), "{value} in {class}");
                assert!(class == 0 || last_of(class - 1) < u64::from(value), "{value} in {class}");
            }
        }
        assert_eq!(class(u32::MAX), CLASSES - 1);
    }

    #[test]
    fn a_quantile_is_at_most_an_eighth_too_large() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        for value in 1..=10_000 {
            histogram.record(value);
        }
        for (fraction, exact) in [(0.001, 10), (0.5, 5_000), (0.99, 9_900), (1.0, 10_000)] {
            let read = histogram.quantile(fraction);
            assert!(read >= exact && read <= exact + exact / 8 + 1, "{fraction}: {read}");
        }
        assert_eq!((histogram.count(), histogram.sum()), (10_000, 50_005_000));
    }

    #[test]
    fn counts_up_to_a_power_of_two_are_exact_and_sums_add_up() {
        let mut one = Histogram::default();
        let mut two = Histogram::default();
        (0..1_000).for_each(|value| one.record(value));
        (0..2_000).for_each(|value| two.record(value));
        one.add(&two);
        assert_eq!(one.count(), 3_000);
        for exponent in 0..10 {
            let limit = (1_u64 << exponent) - 1;
            assert_eq!(one.count_up_to(limit), 2 * (limit + 1));
        }
        assert_eq!(one.count_up_to(u64::MAX), 3_000);
    }

    #[test]
    fn a_quantile_is_the_end_of_its_class() {
        let mut histogram = Histogram::default();
        [3, 3, 3, 7].into_iter().for_each(|value| histogram.record(value));
        // Three of four are 0.75; a little more needs the fourth.
        assert_eq!([0.0, 0.75, 0.76, 1.0].map(|it| histogram.quantile(it)), [3, 3, 7, 7]);
        let mut twice = histogram.clone();
        twice.add(&histogram);
        assert_eq!((twice.count(), twice.sum()), (8, 32));
        assert_eq!([2, 3, 6, 7].map(|it| twice.count_up_to(it)), [0, 6, 6, 8]);
    }
}
