//! What the client sends, so that it can tell cheaply whether the same came back.
//!
//! Each connection walks an endless repetition of one block, from an offset of its own. The block's
//! length is a prime, so that a byte lost, doubled or taken from another connection shifts the walk
//! and shows at once. Checking is one `memcmp`.

/// Length of the block that repeats: a prime above any power of two that a buffer could have below
/// it.
const PERIOD: usize = 65_537;

/// The longest stretch that can be asked for at once, in bytes.
pub(crate) const STRETCH_MAX: usize = 1 << 20;

/// The bytes of all streams.
pub(crate) struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        // The seed is fixed: the bytes do not matter, but a failure should be the same twice.
        let mut random = fastrand::Rng::with_seed(862);
        let mut bytes: Vec<u8> = (0..PERIOD).map(|_| random.u8(..)).collect();
        while bytes.len() < PERIOD + STRETCH_MAX {
            let missing = (PERIOD + STRETCH_MAX - bytes.len()).min(PERIOD);
            bytes.extend_from_within(..missing);
        }
        Self { bytes }
    }

    /// The stretch of a stream that starts at `offset`, at most [`STRETCH_MAX`] bytes of it.
    pub(crate) fn stretch(&self, offset: u64, length: usize) -> &[u8] {
        let start = (offset % PERIOD as u64) as usize;
        &self.bytes[start..start + length.min(STRETCH_MAX)]
    }
}

/// Where the stream of the connection with that number starts: far from its neighbours'.
pub(crate) fn origin(connection: usize) -> u64 {
    connection as u64 * 8_191
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stretch must not depend on how the stream is cut, else every short receive would look like
    /// a fault.
    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let pattern = Pattern::new();
        let whole = pattern.stretch(65_000, 200_000);
        assert_eq!(&whole[..100], pattern.stretch(65_000, 100));
        assert_eq!(&whole[100..1_000], pattern.stretch(65_100, 900));
        assert_eq!(&whole[150_000..], pattern.stretch(215_000, 50_000));
    }

    /// A lost byte must show: the stream shifted by any small distance is another one.
    #[test]
    fn a_shifted_stream_differs() {
        let pattern = Pattern::new();
        for shift in [1, 64, 4_096, 16_384, 65_536, 262_144] {
            assert_ne!(pattern.stretch(0, 64), pattern.stretch(shift, 64), "shift {shift}");
        }
    }
}
