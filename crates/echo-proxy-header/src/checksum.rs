//! CRC32C of bytes that come one by one.

/// The CRC32C (Castagnoli) of all bytes so far: RFC 3309; polynomial 0x1edc6f41, reflected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc32c(u32);

const POLYNOMIAL_REFLECTED: u32 = 0x82f6_3b78;

/// The remainders of all values of four bits. A table for whole bytes is faster, but takes 1 KiB of
/// the cache for headers that have 28 bytes as a rule.
const REMAINDERS: [u32; 16] = {
    let mut table = [0; 16];
    let mut index = 0;
    while index < table.len() {
        let mut remainder = index as u32;
        let mut bit = 0;
        while bit < 4 {
            let is_odd = remainder & 1 == 1;
            remainder = remainder >> 1 ^ if is_odd { POLYNOMIAL_REFLECTED } else { 0 };
            bit += 1;
        }
        table[index] = remainder;
        index += 1;
    }
    table
};

impl Crc32c {
    pub(crate) const fn new() -> Self {
        Self(!0)
    }

    /// Continues at what [`register`](Self::register) returned.
    pub(crate) const fn from_register(register: u32) -> Self {
        Self(register)
    }

    pub(crate) fn update(&mut self, byte: u8) {
        self.0 ^= u32::from(byte);
        for _ in 0..2 {
            self.0 = self.0 >> 4 ^ REMAINDERS[(self.0 & 0xf) as usize];
        }
    }

    pub(crate) const fn value(self) -> u32 {
        !self.0
    }

    /// The intermediate state, from which the calculation can be continued.
    pub(crate) const fn register(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32/ISCSI, and the vector of 32 zeroes of RFC 3720, B.4.
    #[test]
    fn it_is_the_castagnoli_polynomial() {
        let crc = |bytes: &[u8]| {
            let mut crc = Crc32c::new();
            bytes.iter().for_each(|byte| crc.update(*byte));
            crc.value()
        };
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
    }
}
