//! The pool: small buffers in a provided-buffer ring (Linux 5.19, io_uring_register_buf_ring(3)),
//! large ones on a stack.
//!
//! A quiet connection holds none of either; a completion lends a buffer to the core, and recycling
//! puts it back. Memory is mapped once and touched only when used, so a pool costs what the traffic
//! needs of it.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, cqueue, types::BufRingEntry};

use echo_core::op::BufferClass;

/// An anonymous private mapping: zeroed, page-aligned, in no core dump, gone when dropped.
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// `length` bytes, not 0.
    pub(super) fn new(length: usize) -> io::Result<Self> {
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
        // What peers sent is private, also in a core dump.
        // SAFETY: these are the bounds of the mapping, and the advice changes none of its bytes.
        let advised = unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) };
        let start = NonNull::new(start.cast()).expect("invariant: mmap(2) never maps page 0 here");
        let mapping = Self { start, length };
        if advised == 0 { Ok(mapping) } else { Err(io::Error::last_os_error()) }
    }

    /// Where it is.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

// SAFETY: a mapping is owned like a `Box<[u8]>`: its address means the same to every thread, and
// it has one owner.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` are those of the mapping made in `new`, which nothing else
        // unmaps; that nothing still points into it is the promise of `BufferRing::drop`'s owner,
        // see there.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// The buffer group of the small buffers.
pub(super) const SMALL_GROUP: u16 = 0;
/// The buffer group of the pool for datagrams.
pub(super) const DATAGRAM_GROUP: u16 = 1;

/// Buffers of one size, and which of them are lent to the core.
struct Buffers {
    payload: Mapping,
    size: u32,
    count: u16,
    lent: Vec<bool>,
}

impl Buffers {
    fn new(count: u16, size: u32) -> io::Result<Self> {
        // There is no mapping of nothing.
        let payload = Mapping::new((usize::from(count) * size as usize).max(1))?;
        Ok(Self { payload, size, count, lent: vec![false; usize::from(count)] })
    }

    fn lend(&mut self, index: u16) {
        let lent = &mut self.lent[usize::from(index)];
        assert!(!*lent, "buffer {index} was filled while it was lent");
        *lent = true;
    }

    fn take_back(&mut self, index: u16) {
        let lent = &mut self.lent[usize::from(index)];
        assert!(*lent, "buffer {index} is free already");
        *lent = false;
    }

    fn lent_bytes(&self, index: u16, length: u32) -> *const u8 {
        assert!(self.lent[usize::from(index)], "buffer {index} is not lent");
        assert!(length <= self.size, "{length} bytes of a buffer of {}", self.size);
        self.address(index)
    }

    fn bytes(&self, index: u16, length: u32) -> &[u8] {
        let start = self.lent_bytes(index, length);
        // SAFETY: `lent_bytes` found these bytes to be inside the buffer; they are mapped and
        // initialised (zeroed, then written by the kernel), and the kernel does not write to a
        // buffer that is lent, which the borrow keeps lent.
        unsafe { std::slice::from_raw_parts(start, length as usize) }
    }

    fn bytes_mut(&mut self, index: u16, length: u32) -> &mut [u8] {
        let start = self.lent_bytes(index, length).cast_mut();
        // SAFETY: as in `bytes`; the kernel reads from a lent buffer only for a send of it, and the
        // borrow keeps that from being submitted.
        unsafe { std::slice::from_raw_parts_mut(start, length as usize) }
    }

    fn part(&self, index: u16, offset: u32, length: u32) -> &[u8] {
        let end = offset.checked_add(length).expect("invariant: a buffer is shorter than 4 GiB");
        &self.bytes(index, end)[offset as usize..]
    }

    fn address(&self, index: u16) -> *mut u8 {
        assert!(index < self.count, "there is no buffer {index}");
        // SAFETY: `index` is below `count`, so this stays inside the mapping of `count * size`
        // bytes.
        unsafe { self.payload.start.as_ptr().add(usize::from(index) * self.size as usize) }
    }
}

/// The small buffers: a provided-buffer ring. The kernel takes one when bytes come, so a receive
/// can wait for ever without holding any.
///
/// The ring is first in, first out, so whatever is in it is used in turn. It is filled up before
/// each turn to as many as are to be offered, from spare buffers that are last in, first out: so
/// what goes round stays in the cache.
///
/// It must outlive every operation that uses it: [`super::driver::Driver`] drops its ring first,
/// and forgets the buffers rather than drop them when the kernel still holds a receive or a send.
pub(super) struct BufferRing {
    entries: Mapping,
    buffers: Buffers,
    tail: u16,
    /// Buffers in the ring, as far as completions have told.
    offered: u16,
    /// Free buffers that are not in the ring.
    spare: Vec<u16>,
    /// So many are to be in the ring.
    offers: u16,
}

impl BufferRing {
    /// Buffers (a power of two, at most 32768), registered as buffer group `group`. None is offered
    /// before [`BufferRing::fill_up`], and all of them until [`BufferRing::offer_up_to`].
    pub(super) fn register(ring: &IoUring, group: u16, class: BufferClass) -> io::Result<Self> {
        let BufferClass { count, size } = class;
        assert!(count.is_power_of_two() && count <= 1 << 15, "{count} buffers make no ring");
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
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
        Ok(Self {
            entries,
            buffers: Buffers::new(count, size)?,
            tail: 0,
            offered: 0,
            spare: (0..count).rev().collect(),
            offers: count,
        })
    }

    /// From now on so many are to be offered, as far as they are free.
    pub(super) fn offer_up_to(&mut self, count: u16) {
        self.offers = count;
    }

    /// To be called before each turn: offers as many buffers as are to be. Returns how many are on
    /// offer now.
    pub(super) fn fill_up(&mut self) -> usize {
        while self.offered < self.offers
            && let Some(index) = self.spare.pop()
        {
            self.offer(index);
        }
        self.publish_tail();
        self.offered.into()
    }

    /// Notes what the completion of a receive tells: the buffer that the kernel took out of the
    /// ring, if it took one, which is lent now.
    pub(super) fn note_receive(&mut self, flags: u32) -> Option<u16> {
        let index = cqueue::buffer_select(flags)?;
        self.buffers.lend(index);
        self.offered -= 1;
        Some(index)
    }

    /// Takes a lent buffer back.
    pub(super) fn recycle(&mut self, index: u16) {
        self.buffers.take_back(index);
        self.spare.push(index);
    }

    /// Where the bytes of a lent buffer are, for a send of `length` bytes of it.
    ///
    /// # Panics
    /// If the buffer is not lent or shorter than that.
    pub(super) fn lent_bytes(&self, index: u16, length: u32) -> *const u8 {
        self.buffers.lent_bytes(index, length)
    }

    /// The first `length` bytes of a lent buffer.
    ///
    /// # Panics
    /// If the buffer is not lent or shorter than that.
    pub(super) fn bytes(&self, index: u16, length: u32) -> &[u8] {
        self.buffers.bytes(index, length)
    }

    /// The same, to be changed.
    pub(super) fn bytes_mut(&mut self, index: u16, length: u32) -> &mut [u8] {
        self.buffers.bytes_mut(index, length)
    }

    /// `length` bytes of a lent buffer, from `offset` on.
    ///
    /// # Panics
    /// If the buffer is not lent or ends before.
    pub(super) fn part(&self, index: u16, offset: u32, length: u32) -> &[u8] {
        self.buffers.part(index, offset, length)
    }

    /// Writes a buffer behind the end of the ring.
    fn offer(&mut self, index: u16) {
        self.offered += 1;
        let position = usize::from(self.tail & (self.buffers.count - 1));
        let address = self.buffers.address(index) as u64;
        let base: *mut BufRingEntry = self.entries.start.as_ptr().cast();
        // SAFETY: `position` is below `count`, so this stays inside the mapping of `count` entries.
        let slot = unsafe { base.add(position) };
        // SAFETY: the mapping is zeroed, which is a valid entry, and lives as long as `self`. The
        // kernel reads an entry only between head and tail; as each of the `count` buffers is in
        // the ring at most once (it comes here from being spare), this one is outside.
        let entry = unsafe { &mut *slot };
        entry.set_addr(address);
        entry.set_len(self.buffers.size);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see the end of the ring.
    fn publish_tail(&self) {
        let base: *const BufRingEntry = self.entries.start.as_ptr().cast();
        // SAFETY: `base` is the start of a registered ring; its tail lies in the reserved field of
        // the first entry.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: the tail is aligned, lives as long as the mapping, and is written here only; the
        // kernel reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// The large buffers: a stack. The one that was used last is used next, while it is still in the
/// cache; a provided-buffer ring is first in, first out and would walk all of them.
///
/// A receive takes its buffer when it is submitted, so it must not wait: it is only tried.
///
/// It must outlive every operation that uses it, as [`BufferRing`].
pub(super) struct BufferStack {
    buffers: Buffers,
    free: Vec<u16>,
    /// The buffers that the kernel may write to now, and for which connection slot.
    filling: Vec<(u32, u16)>,
}

impl BufferStack {
    /// So many buffers, all of them free.
    pub(super) fn new(class: BufferClass) -> io::Result<Self> {
        let BufferClass { count, size } = class;
        let free = (0..count).rev().collect();
        Ok(Self { buffers: Buffers::new(count, size)?, free, filling: Vec::new() })
    }

    /// Gives a free buffer to a receive of the connection in `slot`: where it is, and its length.
    ///
    /// # Panics
    /// If the connection is receiving already: which of two buffers is filled could not be told.
    pub(super) fn fill(&mut self, slot: u32) -> Option<(*mut u8, u32)> {
        let twice = self.filling.iter().any(|&(owner, _)| owner == slot);
        assert!(!twice, "the connection in slot {slot} is receiving already");
        let index = self.free.pop()?;
        self.filling.push((slot, index));
        Some((self.buffers.address(index), self.buffers.size))
    }

    /// The receive of the connection in `slot` is over and brought bytes: its buffer is lent.
    pub(super) fn filled(&mut self, slot: u32) -> u16 {
        let index = self.take_filling(slot).expect("invariant: bytes came into a buffer of ours");
        self.buffers.lend(index);
        index
    }

    /// The receive of the connection in `slot` is over and brought nothing.
    pub(super) fn not_filled(&mut self, slot: u32) {
        let index = self.take_filling(slot);
        self.free.extend(index);
    }

    /// Puts a lent buffer on top of the stack.
    pub(super) fn recycle(&mut self, index: u16) {
        self.buffers.take_back(index);
        self.free.push(index);
    }

    /// As [`BufferRing::lent_bytes`].
    pub(super) fn lent_bytes(&self, index: u16, length: u32) -> *const u8 {
        self.buffers.lent_bytes(index, length)
    }

    /// As [`BufferRing::part`].
    pub(super) fn part(&self, index: u16, offset: u32, length: u32) -> &[u8] {
        self.buffers.part(index, offset, length)
    }

    fn take_filling(&mut self, slot: u32) -> Option<u16> {
        let position = self.filling.iter().position(|&(owner, _)| owner == slot)?;
        Some(self.filling.swap_remove(position).1)
    }
}
