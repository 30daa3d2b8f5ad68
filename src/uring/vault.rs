//! Memory for set-aside bytes: what a slow peer did not take yet, out of every core dump.
//!
//! The memory of the program itself must be in a dump, or nobody could read it; what peers sent
//! must not. So a large piece is a mapping of its own, which the kernel leaves out. A small one may
//! be one byte, and the number of mappings is limited: small ones share an allocator of the
//! driver's own, on such mappings.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

use dlmalloc::Dlmalloc;

use super::buffers::Mapping;

/// Pieces from this size on, in bytes, are mappings: rounding to pages costs at most a sixteenth,
/// and their memory goes back to the kernel at once.
const OWN_MAPPING_MIN: usize = 64 << 10;

/// How much address space small pieces take from the kernel at a time. Memory is used as it is
/// touched.
const GRANULARITY: usize = 1 << 20;

/// Where the set-aside bytes of one driver live.
#[derive(Default)]
pub(super) struct Vault(Rc<RefCell<Heap>>);

/// Bytes of exact size, on the vault's memory; given back when dropped.
pub(super) enum Piece {
    /// On a mapping of its own: so many bytes.
    Large(Mapping, usize),
    /// On the heap.
    Small(NonNull<[u8]>, Rc<RefCell<Heap>>),
}

/// The memory of small pieces; all of it goes with the last one.
#[derive(Default)]
pub(super) struct Heap {
    allocator: Option<Dlmalloc<Undumped>>,
    pieces: usize,
}

/// The mappings under the allocator.
struct Undumped;

impl Vault {
    /// A copy of `bytes`. Out of memory is the end of the process, as for every allocation.
    pub(super) fn keep(&self, bytes: &[u8]) -> Piece {
        let source = NonNull::from(bytes).cast();
        if bytes.len() >= OWN_MAPPING_MIN
            && let Ok(mapping) = Mapping::new(bytes.len())
        {
            // SAFETY: the mapping has this length, and is new, so it overlaps with nothing.
            unsafe { mapping.start().copy_from_nonoverlapping(source, bytes.len()) };
            return Piece::Large(mapping, bytes.len());
        }
        let Some(start) = self.0.borrow_mut().give(bytes.len()) else {
            handle_alloc_error(Layout::for_value(bytes));
        };
        // SAFETY: the heap gave out so many bytes, new ones, so they overlap with nothing.
        unsafe { start.copy_from_nonoverlapping(source, bytes.len()) };
        Piece::Small(NonNull::slice_from_raw_parts(start, bytes.len()), Rc::clone(&self.0))
    }
}

impl Heap {
    fn give(&mut self, length: usize) -> Option<NonNull<u8>> {
        let allocator = self.allocator.get_or_insert_with(|| {
            let mut allocator = Dlmalloc::new_with_allocator(Undumped);
            assert!(allocator.set_granularity(GRANULARITY), "{GRANULARITY} is a power of two");
            allocator
        });
        // SAFETY: the alignment of 1 is a power of two; from its first use until its end in
        // `take_back` the allocator stays where it is.
        let start = NonNull::new(unsafe { allocator.malloc(length, 1) })?;
        self.pieces += 1;
        Some(start)
    }

    fn take_back(&mut self, start: NonNull<u8>, length: usize) {
        let allocator = self.allocator.as_mut().expect("invariant: a piece keeps its heap");
        // SAFETY: `give` gave them out with this length and alignment; the piece that held them
        // ends now.
        unsafe { allocator.free(start.as_ptr(), length, 1) };
        self.pieces -= 1;
        if self.pieces == 0 {
            let allocator = self.allocator.take().expect("invariant: it was there above");
            // SAFETY: no piece is left that points into its memory.
            unsafe { allocator.destroy() };
        }
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = match self {
            Self::Large(mapping, length) => NonNull::slice_from_raw_parts(mapping.start(), *length),
            Self::Small(bytes, _) => *bytes,
        };
        // SAFETY: they were initialised by `keep`, nobody writes to them, and they go with the
        // piece.
        unsafe { bytes.as_ref() }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Self::Small(bytes, heap) = self {
            heap.borrow_mut().take_back(bytes.cast(), bytes.len());
        }
    }
}

impl fmt::Debug for Piece {
    /// What peers sent is not for the log either.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.len())
    }
}

// SAFETY: what `alloc` returns is mapped, of the size it says, and not given to anybody else;
// `free` and `free_part` unmap what the allocator gives back and nothing more.
unsafe impl dlmalloc::Allocator for Undumped {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        match Mapping::new(size) {
            Ok(mapping) => (mapping.into_raw(), size, 0),
            Err(_) => (std::ptr::null_mut(), 0, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        // Pieces never change their size.
        std::ptr::null_mut()
    }

    fn free_part(&self, start: *mut u8, old_size: usize, new_size: usize) -> bool {
        self.free(start.wrapping_add(new_size), old_size - new_size)
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        // SAFETY: the allocator gives back what it got from `alloc` and no longer uses; munmap(2)
        // of a part of a mapping, or of neighbours in one go, is fine.
        unsafe { libc::munmap(start.cast(), size) == 0 }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        // A power of two that the allocator rounds by; where pages are larger, the granularity
        // above is a multiple of them all the same.
        4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a row: the second one looks at the mappings of the process.
    #[test]
    fn pieces_keep_their_bytes_and_give_back_their_memory() {
        pieces_keep_their_bytes();
        memory_goes_back_when_nothing_is_kept();
    }

    /// Pieces of all sizes, given back in another order than they came: what is left is intact.
    fn pieces_keep_their_bytes() {
        let vault = Vault::default();
        let content = |number: usize| vec![number as u8; number * number % 300_000];
        let mut pieces: Vec<(usize, Piece)> =
            (1..1000).map(|number| (number, vault.keep(&content(number)))).collect();
        for round in 2..6 {
            pieces.retain(|(number, _)| number % round != 0);
            let more = (1000 * round..1000 * round + 300).map(|it| (it, vault.keep(&content(it))));
            pieces.extend(more);
            for (number, piece) in &pieces {
                assert!(**piece == *content(*number), "piece {number} in round {round}");
            }
        }
        // Those that outlive the vault hold its memory.
        drop(vault);
        for (number, piece) in &pieces {
            assert!(**piece == *content(*number), "piece {number} after the vault");
        }
    }

    fn memory_goes_back_when_nothing_is_kept() {
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut kib = 0;
            let mut size = 0;
            for line in maps.lines() {
                if let Some(value) = line.strip_prefix("Size:") {
                    size = value.trim().trim_end_matches(" kB").parse().unwrap();
                } else if line.starts_with("VmFlags:") && line.contains(" dd") {
                    kib += size;
                }
            }
            kib
        };
        for size in [5000, 100_000] {
            let vault = Vault::default();
            let before: u64 = mapped();
            let pieces: Vec<Piece> = (0..1000).map(|_| vault.keep(&vec![7; size])).collect();
            let kept = mapped() - before;
            assert!(kept >= size as u64 * 1000 / 1024, "{kept} KiB undumped");
            drop(pieces);
            // Other tests map a few small buffers meanwhile.
            assert!(
                mapped() < before + kept / 2,
                "{size}: the pieces are gone, {kept} KiB are not"
            );
        }
    }
}
