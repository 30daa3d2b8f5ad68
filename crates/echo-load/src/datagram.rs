//! The bytes of datagrams. Each datagram is a function of run, flow and sequence number, so that an
//! echo can be checked without storing what was sent, and names the datagram that it belongs to.
//!
//! - Datagram `n` of flow `f` is a piece of the stream of connection `f` (see `pattern`), which
//!   begins at `n` strides. From 8 bytes on, its first word therefore tells flow and sequence
//!   number, and every further word tells them again, so that a datagram whose beginning is
//!   corrupted is still recognized.
//! - From 16 bytes on, the second word is a *mark*: a function of the first word that does not
//!   depend on the seed. It tells datagrams of another run from corrupted ones.
//! - All bytes are compared with what was sent, which detects more than a checksum would.

use crate::pattern::{CONNECTIONS, OFFSET_END, Pattern};

const WORD: usize = size_of::<u64>();
/// From this size on a datagram names its flow and its sequence number.
pub(crate) const NAMED: usize = WORD;
/// From this size on it has a mark.
const MARKED: usize = 2 * WORD;
/// Arbitrary, and odd.
const MARK_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;
const MARK_TEXT: u64 = u64::from_le_bytes(*b"echoload");
/// How many words are examined for the name of a datagram.
const WORDS_EXAMINED: usize = 8;

/// What a datagram says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// It is a datagram of this run. The sequence number is modulo [`Format::modulus`].
    Known { flow: u64, sequence: u64 },
    /// It is a datagram of another run.
    AnotherRun,
    /// It has too few bytes, or was never sent.
    Unknown,
}

/// The datagrams of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pattern: Pattern,
    /// From one datagram of a flow to the next in its stream, in bytes.
    stride: u64,
    /// The number of flows in the run.
    flows: u64,
    /// Whether bytes beyond the name are written and compared.
    verify: bool,
}

impl Format {
    /// The datagrams of a run with these many flows, of at most `bytes_max` bytes.
    pub(crate) fn new(pattern: Pattern, flows: u64, bytes_max: usize, verify: bool) -> Self {
        let stride = bytes_max.next_multiple_of(WORD).max(WORD) as u64;
        Self { pattern, stride, flows, verify }
    }

    /// Sequence numbers are identified modulo this number: at least 2^27.
    fn modulus(&self) -> u64 {
        OFFSET_END / self.stride
    }

    fn offset(&self, sequence: u64) -> u64 {
        sequence % self.modulus() * self.stride
    }

    /// The name and the mark of a datagram.
    fn head(&self, flow: u64, sequence: u64) -> [u8; MARKED] {
        let (mut head, mut name) = ([0; MARKED], [0; WORD]);
        self.pattern.fill(flow, self.offset(sequence), &mut name);
        head[..WORD].copy_from_slice(&name);
        head[WORD..].copy_from_slice(&mark_of(name));
        head
    }

    /// Writes a datagram.
    pub(crate) fn fill(&self, flow: u64, sequence: u64, bytes: &mut [u8]) {
        let (start, rest) = bytes.split_at_mut(bytes.len().min(MARKED));
        start.copy_from_slice(&self.head(flow, sequence)[..start.len()]);
        if self.verify {
            self.pattern.fill(flow, self.offset(sequence) + MARKED as u64, rest);
        }
    }

    /// Whether `bytes` are the beginning of a datagram.
    pub(crate) fn matches(&self, flow: u64, sequence: u64, bytes: &[u8]) -> bool {
        let (start, rest) = bytes.split_at(bytes.len().min(MARKED));
        let rest_at = self.offset(sequence) + MARKED as u64;
        *start == self.head(flow, sequence)[..start.len()]
            && (!self.verify || self.pattern.matches(flow, rest_at, rest))
    }

    /// How many bytes from the start of `bytes` are those of a datagram.
    pub(crate) fn matching(&self, flow: u64, sequence: u64, bytes: &[u8]) -> usize {
        let (start, rest) = bytes.split_at(bytes.len().min(MARKED));
        let head = self.head(flow, sequence);
        let equal = start.iter().zip(&head).take_while(|(one, other)| one == other).count();
        if equal < start.len() {
            return equal;
        }
        let rest_at = self.offset(sequence) + MARKED as u64;
        let right =
            if self.verify { self.pattern.matching(flow, rest_at, rest) } else { rest.len() };
        equal + right
    }

    /// What a received datagram says of itself, on `flow`.
    pub(crate) fn name(&self, flow: u64, bytes: &[u8]) -> Name {
        let (words, _) = bytes.as_chunks::<WORD>();
        for (index, word) in words.iter().take(WORDS_EXAMINED).enumerate().filter(|it| it.0 != 1) {
            let place = self.pattern.locate(*word);
            let Some(start) = place.offset.checked_sub((index * WORD) as u64) else { continue };
            if !start.is_multiple_of(self.stride) {
                continue;
            }
            let name = Name::Known { flow: place.connection, sequence: start / self.stride };
            // Any word names something. For another flow the mark must agree with it, or if there
            // is none, the flow must exist.
            let is_own = place.connection == self.flow(flow);
            let exists = place.connection < self.flows;
            if is_own || exists && (words.len() == 1 || is_marked(bytes)) {
                return name;
            }
        }
        if is_marked(bytes) { Name::AnotherRun } else { Name::Unknown }
    }

    /// The number of a flow as names have it.
    pub(crate) fn flow(&self, number: u64) -> u64 {
        number % CONNECTIONS
    }

    /// The sequence number of a datagram of which `sequence` is known modulo the modulus, if
    /// `started` datagrams were sent.
    pub(crate) fn whole(&self, sequence: u64, started: u64) -> Option<u64> {
        let last = started.checked_sub(1)?;
        let modulus = self.modulus();
        let behind = (last % modulus + modulus - sequence) % modulus;
        last.checked_sub(behind)
    }
}

/// The mark that follows a name.
fn mark_of(name: [u8; WORD]) -> [u8; WORD] {
    let name = u64::from_le_bytes(name).wrapping_mul(MARK_FACTOR);
    (name.rotate_left(32) ^ MARK_TEXT).to_le_bytes()
}

/// Whether the first two words are a name and its mark.
fn is_marked(bytes: &[u8]) -> bool {
    let (words, _) = bytes.as_chunks::<WORD>();
    matches!(words, [name, mark, ..] if mark_of(*name) == *mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bytes_max: usize) -> Format {
        Format::new(Pattern::new(7), 10, bytes_max, true)
    }

    fn datagram(format: &Format, flow: u64, sequence: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        format.fill(flow, sequence, &mut bytes);
        bytes
    }

    #[test]
    fn every_byte_is_compared() {
        let format = format(100);
        for length in [0, 1, 7, 8, 9, 15, 16, 17, 40, 100] {
            let mut bytes = datagram(&format, 3, 1000, length);
            assert!(format.matches(3, 1000, &bytes));
            assert_eq!(format.matching(3, 1000, &bytes), length);
            for index in 0..length {
                bytes[index] ^= 1;
                assert!(!format.matches(3, 1000, &bytes), "{length}: {index}");
                assert_eq!(format.matching(3, 1000, &bytes), index);
                bytes[index] ^= 1;
            }
        }
    }

    /// Goal: whatever a datagram was cut to, it is the beginning of what was sent.
    #[test]
    fn the_beginning_of_a_datagram_matches() {
        let format = format(100);
        let bytes = datagram(&format, 3, 1000, 100);
        for length in 0..=100 {
            assert!(format.matches(3, 1000, &bytes[..length]), "{length}");
        }
    }

    #[test]
    fn a_datagram_names_its_flow_and_its_number() {
        for bytes_max in [8, 64, 65_527] {
            let format = format(bytes_max);
            for (flow, sequence) in [(0, 0), (3, 5), (9, (1 << 27) - 1)] {
                let bytes = datagram(&format, flow, sequence, bytes_max);
                for listener in [flow, (flow + 1) % 10] {
                    assert_eq!(format.name(listener, &bytes), Name::Known { flow, sequence });
                }
            }
        }
    }

    #[test]
    fn a_corrupted_beginning_does_not_hide_the_name() {
        let format = format(64);
        let mut bytes = datagram(&format, 3, 5, 64);
        bytes[2] ^= 4;
        assert_eq!(format.name(3, &bytes), Name::Known { flow: 3, sequence: 5 });
        assert_eq!(format.name(4, &bytes), Name::Unknown);
        bytes.fill(0);
        assert_eq!(format.name(3, &bytes), Name::Unknown);
    }

    #[test]
    fn a_datagram_of_another_run_is_one() {
        let other = Format::new(Pattern::new(8), 10, 64, true);
        assert_eq!(format(64).name(3, &datagram(&other, 3, 5, 64)), Name::AnotherRun);
        assert_eq!(format(64).name(3, &datagram(&other, 3, 5, 8)), Name::Unknown);
    }

    #[test]
    fn numbers_go_on_beyond_the_modulus() {
        let format = format(65_527);
        let modulus = format.modulus();
        assert!(modulus >= 1 << 27);
        assert_eq!(format.whole(5, 5), None);
        assert_eq!(format.whole(5, 6), Some(5));
        assert_eq!(format.whole(5, modulus + 5), Some(5));
        assert_eq!(format.whole(5, modulus + 6), Some(modulus + 5));
        assert_eq!(format.whole(modulus - 1, 3 * modulus), Some(3 * modulus - 1));
        assert_eq!(format.whole(0, 0), None);
    }

    #[test]
    fn without_verification_the_name_alone_is_compared() {
        let format = Format::new(Pattern::new(7), 10, 64, false);
        let mut bytes = datagram(&format, 3, 5, 64);
        assert!(bytes[16..].iter().all(|byte| *byte == 0));
        bytes[20] = 1;
        assert!(format.matches(3, 5, &bytes));
        bytes[15] ^= 1;
        assert!(!format.matches(3, 5, &bytes));
    }
}
