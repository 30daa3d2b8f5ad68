//! Spilled bytes in the core: a number of bytes, and the blocks of memory that they occupy.

/// The spilled bytes of one connection. They begin somewhere in their first block of memory, and
/// fill one block after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spill {
    /// Bytes still to be sent.
    unsent: u32,
    /// Where they begin in their first block.
    begin: u32,
}

impl Spill {
    /// `unsent` bytes at the beginning of a block.
    #[must_use]
    pub(crate) fn of(unsent: u32) -> Self {
        Self { unsent, begin: 0 }
    }

    /// Bytes still to be sent.
    #[must_use]
    pub(crate) fn unsent(self) -> u32 {
        self.unsent
    }

    /// How many blocks of this size they take.
    #[must_use]
    pub(crate) fn blocks(self, block_size: u32) -> u32 {
        assert!(self.begin < block_size, "{} is not in the first block", self.begin);
        if self.unsent == 0 { 0 } else { (self.begin + self.unsent).div_ceil(block_size) }
    }

    /// The same with `more` bytes at the end.
    #[must_use]
    pub(crate) fn with(self, more: u32) -> Self {
        Self { unsent: self.unsent + more, ..self }
    }

    /// The same without its first `sent` bytes.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub(crate) fn without(self, sent: u32, block_size: u32) -> Self {
        let unsent = self.unsent.checked_sub(sent).expect("invariant: what is sent was spilled");
        Self { unsent, begin: (self.begin + sent) % block_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the number of blocks is that of the blocks that contain a byte. Method: compare with a
    /// list of the block of each byte, for small blocks and all sequences of sending and adding.
    #[test]
    fn blocks_are_those_that_hold_a_byte() {
        for block_size in 1..=5 {
            let mut spill = Spill::default();
            let (mut first, mut end) = (0_u32, 0_u32);
            for step in 0..200_u32 {
                let more = step * 7 % 6;
                spill = spill.with(more);
                end += more;
                let sent = (step * 5 % 7).min(end - first);
                spill = spill.without(sent, block_size);
                first += sent;
                let mut blocks: alloc::vec::Vec<u32> =
                    (first..end).map(|byte| byte / block_size).collect();
                blocks.dedup();
                assert_eq!(spill.unsent(), end - first);
                assert_eq!(spill.blocks(block_size), blocks.len() as u32, "{spill:?}");
            }
        }
    }
}
