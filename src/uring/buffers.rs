//! The pool: one provided-buffer ring per size class (Linux 5.19, io_uring_register_buf_ring(3)).
//!
//! The kernel takes a buffer from the ring when bytes come, so a quiet connection holds none; a
//! completion lends it to the core, and recycling puts it back. Memory is mapped once and touched
//! only when used, so a pool costs what the traffic needs of it.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types::BufRingEntry};

/// An anonymous private mapping: zeroed, page-aligned, gone when dropped.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of
        // ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("invariant: mmap(2) never maps page 0 here");
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` are those of the mapping made in `new`, which nothing else
        // unmaps; that nobody still points into it is the promise of `BufferRing::drop`'s owner,
        // see there.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// One size class of the pool.
///
/// It must outlive every operation that uses it: [`super::driver::Driver`] drops its ring first,
/// and forgets the pool rather than drop it when the kernel still holds a receive or a send.
pub(super) struct BufferRing {
    entries: Mapping,
    payload: Mapping,
    size: u32,
    count: u16,
    tail: u16,
    lent: Vec<bool>,
}

impl BufferRing {
    /// `count` buffers (a power of two, at most 32768) of `size` bytes, registered as buffer group
    /// `group`.
    pub(super) fn register(ring: &IoUring, group: u16, count: u16, size: u32) -> io::Result<Self> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "{count} buffers make no ring");
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let payload = Mapping::new(usize::from(count) * size as usize)?;
        // SAFETY: `entries` holds `count` entries, is page-aligned, and outlives the ring (see the
        // type).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.start.as_ptr() as u64,
                count,
                group,
                0,
            )?;
        }
        let mut pool =
            Self { entries, payload, size, count, tail: 0, lent: vec![true; usize::from(count)] };
        (0..count).for_each(|index| pool.recycle(index));
        Ok(pool)
    }

    /// Notes that the kernel took a buffer out of the ring.
    pub(super) fn lend(&mut self, index: u16) {
        let lent = &mut self.lent[usize::from(index)];
        assert!(!*lent, "the kernel filled buffer {index}, which it did not have");
        *lent = true;
    }

    /// Puts a lent buffer at the end of the ring.
    pub(super) fn recycle(&mut self, index: u16) {
        let lent = &mut self.lent[usize::from(index)];
        assert!(*lent, "buffer {index} is at home already");
        *lent = false;
        let position = usize::from(self.tail & (self.count - 1));
        let address = self.address(index) as u64;
        let base: *mut BufRingEntry = self.entries.start.as_ptr().cast();
        // SAFETY: `position` is below `count`, so this stays inside the mapping of `count` entries.
        let slot = unsafe { base.add(position) };
        // SAFETY: the mapping is zeroed, which is a valid entry, and lives as long as `self`. The
        // kernel reads an entry only between head and tail; as each of the `count` buffers is in
        // the ring at most once (`lent`), this one is outside.
        let entry = unsafe { &mut *slot };
        entry.set_addr(address);
        entry.set_len(self.size);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `base` is the start of a registered ring; its tail lies in the reserved field of
        // the first entry.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: the tail is aligned, lives as long as the mapping, and is written here only; the
        // kernel reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Where the bytes of a lent buffer are, for a send of `length` bytes of it.
    ///
    /// # Panics
    /// If the buffer is not lent or shorter than that.
    pub(super) fn lent_bytes(&self, index: u16, length: u32) -> *const u8 {
        assert!(self.lent[usize::from(index)], "buffer {index} is not lent");
        assert!(length <= self.size, "{length} bytes of a buffer of {}", self.size);
        self.address(index)
    }

    /// A copy of `length` bytes of a lent buffer, from `offset` on.
    pub(super) fn copy(&self, index: u16, offset: u32, length: u32) -> Box<[u8]> {
        let end = offset.checked_add(length).expect("invariant: a buffer is shorter than 4 GiB");
        let start = self.lent_bytes(index, end);
        // SAFETY: `offset` is at most `end`, which `lent_bytes` found to be inside the buffer.
        let from = unsafe { start.add(offset as usize) };
        // SAFETY: these bytes are mapped and initialised (zeroed, then written by the kernel), and
        // the kernel does not write to a buffer that is lent: it is not in the ring.
        unsafe { std::slice::from_raw_parts(from, length as usize) }.into()
    }

    fn address(&self, index: u16) -> *const u8 {
        assert!(index < self.count, "there is no buffer {index}");
        // SAFETY: `index` is below `count`, so this stays inside the mapping of `count * size`
        // bytes.
        unsafe { self.payload.start.as_ptr().add(usize::from(index) * self.size as usize) }
    }
}
