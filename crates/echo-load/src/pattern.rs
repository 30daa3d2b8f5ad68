//! The streams that are sent. Each byte is a function of run, connection and offset, so that an
//! echo can be checked without storing what was sent, and the origin of a byte can be computed.
//!
//! A stream consists of 8-byte words, little-endian. Word `i` of connection `c` is
//! `mix((c << 40 | i) * STEP) ^ seed`.
//!
//! - `STEP` is odd and `mix` is invertible, so any eight aligned bytes identify their connection
//!   and offset.
//! - The product for word `i + 1` is that for word `i` plus a constant, so writing and checking can
//!   use vector instructions.

/// The golden ratio in 64 bits: odd, and neighbouring words differ strongly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// The multiplicative inverse of [`STEP`].
const STEP_INVERSE: u64 = inverse(STEP);
const WORD: usize = size_of::<u64>();
/// The number of bits for the index of a word: a stream has up to 8 TiB.
const INDEX_BITS: u32 = 40;
/// Connections are identified modulo this number.
pub(crate) const CONNECTIONS: u64 = 1 << (64 - INDEX_BITS);
/// The end of a stream.
pub(crate) const OFFSET_END: u64 = (WORD as u64) << INDEX_BITS;

/// The multiplicative inverse of an odd number modulo 2^64, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    let mut guess = odd;
    let mut round = 0;
    while round < 5 {
        guess = guess.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(guess)));
        round += 1;
    }
    guess
}

/// The origin of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the connection, modulo [`CONNECTIONS`].
    pub(crate) connection: u64,
    /// Bytes before it in that connection's stream.
    pub(crate) offset: u64,
}

/// The streams of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    seed: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The word before mixing; the next word is one [`STEP`] further.
    fn raw(connection: u64, index: u64) -> u64 {
        ((connection % CONNECTIONS) << INDEX_BITS | index).wrapping_mul(STEP)
    }

    /// The word after mixing. The number of the connection is only in the upper 24 bits of `raw`.
    /// Mixing spreads it over every byte, so that a byte of another connection is detected (except
    /// by coincidence).
    fn word(self, raw: u64) -> u64 {
        raw ^ raw >> 24 ^ raw >> 40 ^ self.seed
    }

    /// The inverse of [`Pattern::word`]: each round restores 24 more bits, from the top.
    fn unmixed(self, word: u64) -> u64 {
        let mixed = word ^ self.seed;
        (0..3).fold(mixed, |raw, _| mixed ^ raw >> 24 ^ raw >> 40)
    }

    /// Writes the part of a connection's stream that begins at `offset`.
    pub(crate) fn fill(self, connection: u64, offset: u64, bytes: &mut [u8]) {
        let (head, words) = bytes.split_at_mut(Self::head(offset, bytes.len()));
        let mut index = offset / WORD as u64;
        if !head.is_empty() {
            let word = self.word(Self::raw(connection, index)).to_le_bytes();
            let start = offset as usize % WORD;
            head.copy_from_slice(&word[start..start + head.len()]);
            index += 1;
        }
        let mut raw = Self::raw(connection, index);
        let mut chunks = words.chunks_exact_mut(WORD);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.word(raw).to_le_bytes());
            raw = raw.wrapping_add(STEP);
        }
        let tail = chunks.into_remainder();
        tail.copy_from_slice(&self.word(raw).to_le_bytes()[..tail.len()]);
    }

    /// Whether `bytes` are the part of a connection's stream that begins at `offset`.
    pub(crate) fn matches(self, connection: u64, offset: u64, bytes: &[u8]) -> bool {
        let (head, words) = bytes.split_at(Self::head(offset, bytes.len()));
        let mut index = offset / WORD as u64;
        if !head.is_empty() {
            let word = self.word(Self::raw(connection, index)).to_le_bytes();
            let start = offset as usize % WORD;
            if head != &word[start..start + head.len()] {
                return false;
            }
            index += 1;
        }
        let mut raw = Self::raw(connection, index);
        let mut difference = 0;
        let (chunks, tail) = words.as_chunks::<WORD>();
        for chunk in chunks {
            difference |= u64::from_le_bytes(*chunk) ^ self.word(raw);
            raw = raw.wrapping_add(STEP);
        }
        difference == 0 && *tail == self.word(raw).to_le_bytes()[..tail.len()]
    }

    /// How many bytes from the start of `bytes` are correct.
    pub(crate) fn matching(self, connection: u64, offset: u64, bytes: &[u8]) -> usize {
        let right = |&(index, byte): &(usize, &u8)| {
            *byte == self.byte(Place { connection, offset: offset + index as u64 })
        };
        bytes.iter().enumerate().take_while(right).count()
    }

    fn byte(self, place: Place) -> u8 {
        let word = self.word(Self::raw(place.connection, place.offset / WORD as u64));
        word.to_le_bytes()[place.offset as usize % WORD]
    }

    /// The origin of eight bytes that are a whole word. Any eight bytes have one; the caller must
    /// check whether it is plausible.
    pub(crate) fn locate(self, word: [u8; WORD]) -> Place {
        let position = self.unmixed(u64::from_le_bytes(word)).wrapping_mul(STEP_INVERSE);
        Place {
            connection: position >> INDEX_BITS,
            offset: (position & ((1 << INDEX_BITS) - 1)) * WORD as u64,
        }
    }

    /// How many of `length` bytes come before the first whole word.
    fn head(offset: u64, length: usize) -> usize {
        ((WORD - offset as usize % WORD) % WORD).min(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let pattern = Pattern::new(7);
        let mut whole = [0; 100];
        pattern.fill(3, 0, &mut whole);
        for start in 0..40 {
            for length in 0..40 {
                let mut part = vec![0; length];
                pattern.fill(3, start as u64, &mut part);
                assert_eq!(part, whole[start..start + length]);
                assert!(pattern.matches(3, start as u64, &part));
                assert_eq!(pattern.matching(3, start as u64, &part), length);
                for index in 0..length {
                    part[index] ^= 1;
                    assert!(!pattern.matches(3, start as u64, &part));
                    assert_eq!(pattern.matching(3, start as u64, &part), index);
                    part[index] ^= 1;
                }
            }
        }
    }

    #[test]
    fn a_word_tells_where_it_belongs() {
        let pattern = Pattern::new(0xfeed_beef);
        for place in [
            Place { connection: 0, offset: 0 },
            Place { connection: CONNECTIONS - 1, offset: 8 * ((1 << INDEX_BITS) - 1) },
            Place { connection: 1000, offset: 1 << 33 },
        ] {
            let mut word = [0; WORD];
            pattern.fill(place.connection, place.offset, &mut word);
            assert_eq!(pattern.locate(word), place);
        }
    }

    #[test]
    fn runs_and_connections_and_places_differ_in_every_byte() {
        let stream = |seed, connection, offset| {
            let mut bytes = vec![0; 8000];
            Pattern::new(seed).fill(connection, offset, &mut bytes);
            bytes
        };
        let one = stream(0x0123_4567_89ab_cdef, 0, 0);
        for (seed, connection, offset) in [
            (0x0123_4567_89ab_cdef, 1, 0),
            (0x0123_4567_89ab_cdef, 0, 1),
            (0x0123_4567_89ab_cdef, 0, 8),
            (0x0123_4567_89ab_cdef, 0, 64),
            (0x8899_aabb_ccdd_eeff, 0, 0),
        ] {
            let other = stream(seed, connection, offset);
            for lane in 0..WORD {
                let equal = (lane..8000).step_by(WORD).filter(|&it| one[it] == other[it]).count();
                assert!(equal <= 40, "{equal} of 1000 bytes: {seed} {connection} {offset} {lane}");
            }
        }
    }
}
