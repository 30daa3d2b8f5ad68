//! A reproducible stream of bytes: what a peer sends, and what it must receive.
//!
//! Byte n of a tape depends on its seed and on n alone, so a receiver needs no memory of what was
//! sent, and a byte that is lost, doubled, swapped or taken from another connection shows at once.

/// An endless stream of bytes, determined by its seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tape {
    seed: u64,
}

impl Tape {
    /// The tape with this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: mix(seed) }
    }

    /// Writes the bytes from `offset` on into `out`.
    pub(crate) fn copy(self, offset: u64, out: &mut [u8]) {
        let mut word = offset / 8;
        let skip = usize::try_from(offset % 8).unwrap();
        let head = if skip == 0 { 0 } else { (8 - skip).min(out.len()) };
        if head > 0 {
            out[..head].copy_from_slice(&self.word(word).to_le_bytes()[skip..skip + head]);
            word += 1;
        }
        let mut rest = out[head..].chunks_exact_mut(8);
        for piece in rest.by_ref() {
            piece.copy_from_slice(&self.word(word).to_le_bytes());
            word += 1;
        }
        let tail = rest.into_remainder();
        let length = tail.len();
        tail.copy_from_slice(&self.word(word).to_le_bytes()[..length]);
    }

    /// The bytes from `offset` on, `length` of them.
    pub(crate) fn bytes(self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.copy(offset, &mut bytes);
        bytes
    }

    /// Panics with the position of the first difference unless `got` has the bytes from `offset`
    /// on.
    pub(crate) fn check(self, offset: u64, got: &[u8], scratch: &mut Vec<u8>) {
        scratch.resize(got.len(), 0);
        self.copy(offset, scratch);
        if scratch.as_slice() == got {
            return;
        }
        let place = scratch.iter().zip(got).position(|(want, have)| want != have).unwrap();
        panic!(
            "byte {} differs: sent {:#04x}, got {:#04x} ({} bytes of this read were right)",
            offset + place as u64,
            scratch[place],
            got[place],
            place,
        );
    }

    fn word(self, index: u64) -> u64 {
        mix(self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// Spreads one bit of input over all bits of output (the finaliser of the published SplitMix64
/// generator).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Random numbers that are the same in every run.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The series with this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5eed))
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }

    /// A size from 1 to `largest`, each power of two as likely as any other.
    pub(crate) fn size(&mut self, largest: u64) -> usize {
        let doublings = u64::from(largest.ilog2()) + 1;
        let floor = 1_u64 << self.below(doublings);
        usize::try_from((floor + self.below(floor)).min(largest)).unwrap()
    }
}

#[test]
fn any_part_of_a_tape_equals_that_part_of_the_whole() {
    let tape = Tape::new(7);
    let whole = tape.bytes(0, 100);
    for start in 0..40 {
        for length in 0..40 {
            assert_eq!(tape.bytes(start as u64, length), whole[start..start + length]);
        }
    }
}

#[test]
fn one_wrong_byte_is_found_at_its_place() {
    let tape = Tape::new(7);
    let mut bytes = tape.bytes(5, 100);
    tape.check(5, &bytes, &mut Vec::new());
    bytes[30] ^= 1;
    let verdict = std::panic::catch_unwind(|| tape.check(5, &bytes, &mut Vec::new()));
    let message = *verdict.unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("byte 35 differs"), "{message}");
}

#[test]
fn sizes_reach_from_one_byte_to_the_largest() {
    let mut dice = Dice::new(1);
    let sizes: Vec<usize> = (0..10_000).map(|_| dice.size(1 << 20)).collect();
    assert_eq!(sizes.iter().min(), Some(&1));
    assert!(sizes.iter().max() > Some(&900_000));
    let small = sizes.iter().filter(|size| **size < 1024).count();
    assert!((4000..6000).contains(&small), "{small} of 10,000 sizes are below 1 KiB");
}
