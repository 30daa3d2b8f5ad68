//! A table in cache lines of its own.
//!
//! The main thread makes the rings of all workers, one after another, and malloc(3) puts small
//! tables side by side. Without this type the last entries of one worker's table are in the same
//! cache line as the first ones of the next: both workers write it with each echo, and the line
//! moves from CPU to CPU.

use std::ops::{Index, IndexMut};

/// Two cache lines, because CPUs fetch them in pairs.
#[derive(Clone, Copy)]
#[repr(align(128))]
struct Pair<T, const N: usize>([T; N]);

/// A table of a fixed length; `N` entries are 128 bytes.
pub(super) struct OwnLines<T, const N: usize> {
    pairs: Box<[Pair<T, N>]>,
    length: usize,
}

impl<T: Copy, const N: usize> OwnLines<T, N> {
    const IS_A_PAIR: () = assert!(N * size_of::<T>() == 128);

    /// A table of `length` entries, all of them `value`.
    pub(super) fn new(value: T, length: usize) -> Self {
        let () = Self::IS_A_PAIR;
        Self { pairs: vec![Pair([value; N]); length.div_ceil(N)].into(), length }
    }
}

impl<T, const N: usize> Index<usize> for OwnLines<T, N> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        assert!(index < self.length, "entry {index} of {}", self.length);
        &self.pairs[index / N].0[index % N]
    }
}

impl<T, const N: usize> IndexMut<usize> for OwnLines<T, N> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        assert!(index < self.length, "entry {index} of {}", self.length);
        &mut self.pairs[index / N].0[index % N]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_has_its_place() {
        let mut table = OwnLines::<u16, 64>::new(7, 100);
        for index in 0..100 {
            assert_eq!(table[index], 7);
            table[index] = index as u16;
        }
        assert!((0..100).all(|index| usize::from(table[index]) == index));
        assert_eq!(table.pairs.as_ptr().addr() % 128, 0);
        assert_eq!(size_of_val(&*table.pairs), 256);
    }

    #[test]
    #[should_panic(expected = "entry 100 of 100")]
    fn there_is_no_entry_behind_the_last() {
        let table = OwnLines::<u16, 64>::new(7, 100);
        let _ = table[100];
    }
}
