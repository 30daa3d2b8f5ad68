//! The pool: small buffers in a provided-buffer ring (Linux 5.19, io_uring_register_buf_ring(3)),
//! large ones on a stack.
//!
//! An idle connection holds no buffer. A completion lends a buffer to the core, and recycling
//! returns it. Memory is mapped once and touched only when used, so a pool occupies as much as the
//! traffic needs.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, cqueue, types::BufRingEntry};

use echo_core::op::BufferClass;

use super::own_lines::OwnLines;

/// An anonymous private mapping: zeroed, page-aligned, excluded from core dumps, unmapped when
/// dropped.
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
        // Payload is private, so it is excluded from core dumps.
        // SAFETY: these are the bounds of the mapping, and the advice changes none of its bytes.
        let advised = unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) };
        let start = NonNull::new(start.cast()).expect("invariant: mmap(2) never maps page 0 here");
        let mapping = Self { start, length };
        if advised == 0 { Ok(mapping) } else { Err(io::Error::last_os_error()) }
    }

    /// The start of the mapping.
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
        // unmaps; the owner of the `Buffers` guarantees that nothing still points into it, see
        // there.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// The buffer group of the small buffers.
pub(super) const SMALL_GROUP: u16 = 0;
/// The buffer group of the pool for datagrams.
pub(super) const DATAGRAM_GROUP: u16 = 1;

/// Buffers of one size, and which of them are lent to the core.
///
/// They must outlive every operation that uses them: [`super::driver::Driver`] drops its ring
/// first, and forgets the buffers rather than drop them when the kernel still holds a receive or a
/// send.
pub(super) struct Buffers {
    payload: Mapping,
    size: u32,
    count: u16,
    /// Of each buffer: true exactly while it is lent to the core.
    lent: OwnLines<bool, 128>,
    /// The buffers that neither the core nor the kernel has: a stack, so that those in circulation
    /// stay in the cache.
    spare: OwnLines<u16, 64>,
    /// The number of these.
    spare_count: u16,
}

impl Buffers {
    fn new(count: u16, size: u32) -> io::Result<Self> {
        // mmap(2) refuses a length of 0.
        let payload = Mapping::new((usize::from(count) * size as usize).max(1))?;
        let lent = OwnLines::new(false, count.into());
        let spare = OwnLines::new(0, count.into());
        let mut buffers = Self { payload, size, count, lent, spare, spare_count: 0 };
        (0..count).rev().for_each(|index| buffers.put_spare(index));
        Ok(buffers)
    }

    fn put_spare(&mut self, index: u16) {
        self.spare[usize::from(self.spare_count)] = index;
        self.spare_count += 1;
    }

    fn take_spare(&mut self) -> Option<u16> {
        self.spare_count = self.spare_count.checked_sub(1)?;
        Some(self.spare[usize::from(self.spare_count)])
    }

    fn lend(&mut self, index: u16) {
        let lent = &mut self.lent[usize::from(index)];
        assert!(!*lent, "buffer {index} was filled while it was lent");
        *lent = true;
    }

    /// Takes a lent buffer back.
    pub(super) fn recycle(&mut self, index: u16) {
        let lent = &mut self.lent[usize::from(index)];
        assert!(*lent, "buffer {index} is free already");
        *lent = false;
        self.put_spare(index);
    }

    /// The address of a lent buffer, for a send of `length` bytes of it.
    ///
    /// # Panics
    /// If the buffer is not lent or shorter than that.
    pub(super) fn lent_bytes(&self, index: u16, length: u32) -> *const u8 {
        assert!(self.lent[usize::from(index)], "buffer {index} is not lent");
        assert!(length <= self.size, "{length} bytes of a buffer of {}", self.size);
        self.address(index)
    }

    /// The first `length` bytes of a lent buffer.
    ///
    /// # Panics
    /// If the buffer is not lent or shorter than that.
    pub(super) fn bytes(&self, index: u16, length: u32) -> &[u8] {
        let start = self.lent_bytes(index, length);
        // SAFETY: `lent_bytes` found these bytes to be inside the buffer; they are mapped and
        // initialised (zeroed, then written by the kernel), and the kernel does not write to a
        // buffer that is lent, which the borrow keeps lent.
        unsafe { std::slice::from_raw_parts(start, length as usize) }
    }

    /// The same, to be changed.
    pub(super) fn bytes_mut(&mut self, index: u16, length: u32) -> &mut [u8] {
        let start = self.lent_bytes(index, length).cast_mut();
        // SAFETY: as in `bytes`; the kernel reads from a lent buffer only for a send of it, and the
        // borrow keeps that from being submitted.
        unsafe { std::slice::from_raw_parts_mut(start, length as usize) }
    }

    /// `length` bytes of a lent buffer, from `offset` on.
    ///
    /// # Panics
    /// If the buffer is not lent or ends before.
    pub(super) fn part(&self, index: u16, offset: u32, length: u32) -> &[u8] {
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

/// The small buffers: a provided-buffer ring. The kernel takes one when bytes arrive, so a receive
/// that waits holds none.
///
/// The ring is first in, first out, so every buffer in it is used in turn. Before each turn it is
/// filled up to the number of buffers to be offered.
///
/// It must outlive every operation that uses it, as [`Buffers`].
pub(super) struct BufferRing {
    entries: Mapping,
    pub(super) buffers: Buffers,
    /// The number of buffers that have been offered, modulo 2^16. The kernel knows it exactly when
    /// none has been offered since [`BufferRing::publish_tail`].
    tail: u16,
    /// Buffers in the ring, according to the completions so far.
    offered: u16,
    /// The number of buffers that are to be in the ring.
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
        let buffers = Buffers::new(count, size)?;
        Ok(Self { entries, buffers, tail: 0, offered: 0, offers: count })
    }

    /// Sets how many buffers are to be offered from now on, if that many are free.
    pub(super) fn offer_up_to(&mut self, count: u16) {
        self.offers = count;
    }

    /// To be called before each turn: offers the configured number of buffers. Returns how many are
    /// offered now.
    pub(super) fn fill_up(&mut self) -> usize {
        while self.offered < self.offers
            && let Some(index) = self.buffers.take_spare()
        {
            self.offer(index);
        }
        self.publish_tail();
        self.offered.into()
    }

    /// Handles the completion of a receive. If the kernel took a buffer out of the ring, that
    /// buffer is lent now, and returned.
    pub(super) fn note_receive(&mut self, flags: u32) -> Option<u16> {
        let index = cqueue::buffer_select(flags)?;
        self.buffers.lend(index);
        self.offered -= 1;
        Some(index)
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

    /// Publishes the tail of the ring to the kernel.
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

/// The large buffers: a stack. The buffer that was used last is used next, while it is still in the
/// cache. A provided-buffer ring is first in, first out and would cycle through all of them.
///
/// A receive takes its buffer when it is submitted, so it must not wait: it is only tried.
///
/// It must outlive every operation that uses it, as [`Buffers`].
pub(super) struct BufferStack {
    pub(super) buffers: Buffers,
    /// For which connection slot the kernel may write to which buffer: present exactly from
    /// [`BufferStack::fill`] to the end of the receive.
    filling: Vec<(u32, u16)>,
}

impl BufferStack {
    /// `count` buffers, all of them free.
    pub(super) fn new(class: BufferClass) -> io::Result<Self> {
        Ok(Self { buffers: Buffers::new(class.count, class.size)?, filling: Vec::new() })
    }

    /// Gives a free buffer to a receive of the connection in `slot`. Returns its address and
    /// length.
    ///
    /// # Panics
    /// If the connection is receiving already: a completion could not be assigned to one of two
    /// buffers.
    pub(super) fn fill(&mut self, slot: u32) -> Option<(*mut u8, u32)> {
        let twice = self.filling.iter().any(|&(owner, _)| owner == slot);
        assert!(!twice, "the connection in slot {slot} is receiving already");
        let index = self.buffers.take_spare()?;
        self.filling.push((slot, index));
        Some((self.buffers.address(index), self.buffers.size))
    }

    /// The receive of the connection in `slot` is over and brought bytes: its buffer is lent.
    pub(super) fn filled(&mut self, slot: u32) -> u16 {
        let index = self.take_filling(slot).expect("invariant: the receive had a large buffer");
        self.buffers.lend(index);
        index
    }

    /// The receive of the connection in `slot` is over and brought nothing.
    pub(super) fn not_filled(&mut self, slot: u32) {
        if let Some(index) = self.take_filling(slot) {
            self.buffers.put_spare(index);
        }
    }

    fn take_filling(&mut self, slot: u32) -> Option<u16> {
        let position = self.filling.iter().position(|&(owner, _)| owner == slot)?;
        Some(self.filling.swap_remove(position).1)
    }
}
