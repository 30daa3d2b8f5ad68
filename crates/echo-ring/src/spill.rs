//! Memory for spilled bytes, which slow peers have not taken yet. All workers share its blocks, and
//! it is excluded from core dumps.
//!
//! A block is taken twice: first by the core, as a number ([`Budget::take`]), which guarantees that
//! the block exists; then by the driver, as memory. If a core spills no more than it was granted,
//! there is therefore always a block. It is given back once, by the driver, when its bytes are
//! gone.
//!
//! Blocks come from *segments*, mappings that the kernel leaves out of core dumps. A segment is
//! returned to the system when all of its blocks are free and the others suffice.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::IoSlice;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffers::Mapping;
use echo_core::op::Budget;

/// Bytes of a block: a page on most machines.
pub(super) const BLOCK: usize = 4096;

/// Blocks of a segment: 1 MiB.
const SEGMENT_BLOCKS: usize = 256;

/// The maximum number of slices in one send: 256 KiB, as much as a large buffer holds.
const SLICES: usize = 64;

/// The memory for spilled bytes of a process.
pub struct SpillMemory {
    /// Blocks that the core may take, all workers together.
    limit: AtomicU64,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// Blocks that have been taken by the core and not been given back by a driver.
    taken: u64,
    /// Segments by number. None for a segment that was returned to the system.
    segments: Vec<Option<Segment>>,
    /// Blocks in all segments.
    total: u64,
    /// Segments with a free block. The first is used first, so that the last become empty.
    with_free: BTreeSet<usize>,
}

struct Segment {
    memory: Mapping,
    free: Vec<u16>,
}

/// A block of memory with one owner.
struct Block {
    start: NonNull<u8>,
    segment: usize,
    index: u16,
}

// SAFETY: a block is plain memory with one owner. Any thread may be its owner.
unsafe impl Send for Block {}

// SAFETY: as for a block: a segment owns its mapping.
unsafe impl Send for Segment {}

impl SpillMemory {
    /// A memory of which at most `limit` bytes may be taken. It is mapped when needed.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let memory = Self { limit: AtomicU64::new(0), blocks: Mutex::default() };
        memory.set_limit(limit);
        Arc::new(memory)
    }

    /// From now on at most `limit` bytes may be taken. Memory that is already taken beyond the
    /// limit stays taken.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit / BLOCK as u64, Ordering::Relaxed);
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget for SpillMemory {
    fn block_size(&self) -> u32 {
        BLOCK as u32
    }

    fn take(&self, blocks: u32) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut all = self.blocks();
        all.taken + u64::from(blocks) <= limit && all.take(blocks)
    }

    fn take_beyond(&self, blocks: u32) -> bool {
        self.blocks().take(blocks)
    }
}

impl Blocks {
    fn take(&mut self, blocks: u32) -> bool {
        let taken = self.taken + u64::from(blocks);
        while self.total < taken {
            let Ok(memory) = Mapping::new(SEGMENT_BLOCKS * BLOCK) else { return false };
            let free = (0..SEGMENT_BLOCKS as u16).rev().collect();
            let vacant = self.segments.iter().position(Option::is_none);
            let number = vacant.unwrap_or(self.segments.len());
            if number == self.segments.len() {
                self.segments.push(None);
            }
            self.segments[number] = Some(Segment { memory, free });
            self.with_free.insert(number);
            self.total += SEGMENT_BLOCKS as u64;
        }
        self.taken = taken;
        true
    }

    /// A block that the core has taken before.
    fn get(&mut self) -> Block {
        let number = *self.with_free.first().expect("invariant: the core was granted this block");
        let segment = self.segments[number].as_mut().expect("invariant: it has a free block");
        let index = segment.free.pop().expect("invariant: it has a free block");
        if segment.free.is_empty() {
            self.with_free.remove(&number);
        }
        let offset = usize::from(index) * BLOCK;
        // SAFETY: `index` is below the number of blocks of the mapping.
        let start = unsafe { segment.memory.start().add(offset) };
        Block { start, segment: number, index }
    }

    fn give_back(&mut self, block: Block) {
        let Block { segment: number, index, .. } = block;
        let segment = self.segments[number].as_mut().expect("invariant: a block of it is in use");
        segment.free.push(index);
        self.with_free.insert(number);
        let whole = segment.free.len() == SEGMENT_BLOCKS;
        self.taken -= 1;
        // One is kept while any is in use: a peer that was slow once is probably slow again.
        let enough = self.taken + if self.taken == 0 { 0 } else { SEGMENT_BLOCKS as u64 };
        if whole && self.total - SEGMENT_BLOCKS as u64 >= enough {
            self.segments[number] = None;
            self.with_free.remove(&number);
            self.total -= SEGMENT_BLOCKS as u64;
        }
    }
}

impl Block {
    fn bytes(&self) -> &[u8] {
        // SAFETY: a block has this length, is mapped as long as it is in use, and initialised:
        // zeroed, then written by `SpillQueue::push` alone.
        unsafe { NonNull::slice_from_raw_parts(self.start, BLOCK).as_ref() }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`; only the owner of a block points into it.
        unsafe { NonNull::slice_from_raw_parts(self.start, BLOCK).as_mut() }
    }
}

/// The spilled bytes of one connection, oldest first. Never empty, except during construction.
pub(super) struct SpillQueue {
    memory: Arc<SpillMemory>,
    blocks: VecDeque<Block>,
    /// The offset of the unsent bytes in the first block.
    begin: usize,
    /// Unsent bytes.
    length: usize,
}

impl SpillQueue {
    pub(super) fn new(memory: Arc<SpillMemory>) -> Self {
        Self { memory, blocks: VecDeque::new(), begin: 0, length: 0 }
    }

    /// Adds bytes at the end.
    ///
    /// # Panics
    /// If the blocks for them have not been taken.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        let needed = (self.begin + self.length + bytes.len()).div_ceil(BLOCK);
        if needed > self.blocks.len() {
            let mut all = self.memory.blocks();
            self.blocks.extend((self.blocks.len()..needed).map(|_| all.get()));
        }
        while !bytes.is_empty() {
            let end = self.begin + self.length;
            let free = &mut self.blocks[end / BLOCK].bytes_mut()[end % BLOCK..];
            let (now, later) = bytes.split_at(bytes.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.length += now.len();
            bytes = later;
        }
    }

    /// Slices of the first unsent bytes, followed by empty slices.
    pub(super) fn slices(&self) -> [IoSlice<'_>; SLICES] {
        let mut slices = [IoSlice::new(&[]); SLICES];
        for (slice, part) in slices.iter_mut().zip(self.parts()) {
            *slice = IoSlice::new(part);
        }
        slices
    }

    /// All unsent bytes, block by block.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.length;
        self.blocks.iter().enumerate().map(move |(index, block)| {
            let from = if index == 0 { self.begin } else { 0 };
            let part = &block.bytes()[from..BLOCK.min(from + left)];
            left -= part.len();
            part
        })
    }

    /// Forgets the first `length` bytes: they have been sent. True if none is left.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn consume(&mut self, length: usize) -> bool {
        assert!(length <= self.length, "sent {length} of {} bytes", self.length);
        self.length -= length;
        self.begin += length;
        let whole = if self.length == 0 { self.blocks.len() } else { self.begin / BLOCK };
        self.begin = if self.length == 0 { 0 } else { self.begin % BLOCK };
        if whole > 0 {
            let mut all = self.memory.blocks();
            self.blocks.drain(..whole).for_each(|block| all.give_back(block));
        }
        self.length == 0
    }

    /// A copy of all unsent bytes, for a handover.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.parts().flatten().copied().collect()
    }
}

impl Drop for SpillQueue {
    fn drop(&mut self) {
        if !self.blocks.is_empty() {
            let mut all = self.memory.blocks();
            self.blocks.drain(..).for_each(|block| all.give_back(block));
        }
    }
}

impl fmt::Debug for SpillMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit.load(Ordering::Relaxed);
        write!(formatter, "{} of {limit} blocks", self.blocks().taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(memory: &SpillMemory) -> u64 {
        memory.blocks().taken
    }

    /// Goal: bytes come out in the order in which they went in, for any sequence of sends, and
    /// exactly the blocks that contain bytes are in use. Method: pushes and sends of lengths around
    /// the size of a block, compared with a plain queue.
    #[test]
    fn bytes_keep_their_order_and_blocks_come_back() {
        let memory = SpillMemory::new(1 << 20);
        let mut queue = SpillQueue::new(Arc::clone(&memory));
        let mut model: VecDeque<u8> = VecDeque::new();
        let (mut begin, mut next) = (0, 0_u8);
        for round in 0..2_000_usize {
            let more = [1, 4_095, 4_096, 4_097, 20_000, 70_000][round % 6];
            if model.len() < 300_000 {
                let bytes: Vec<u8> = (0..more)
                    .map(|_| {
                        next = next.wrapping_add(13);
                        next
                    })
                    .collect();
                let blocks = |length: usize| (begin + length).div_ceil(BLOCK);
                let used = if model.is_empty() { 0 } else { blocks(model.len()) };
                let new = blocks(model.len() + more) - used;
                assert!(memory.take(new as u32));
                queue.push(&bytes);
                model.extend(bytes);
            }
            let sent = [1, 4_096, 3, 8_191, 65_536, 16_000][round % 5].min(model.len());
            let slices = queue.slices();
            let bytes = slices.iter().flat_map(|slice| slice.iter());
            let offered: Vec<u8> = bytes.copied().collect();
            assert!(offered.len() >= sent, "{} bytes are offered", offered.len());
            assert!(model.iter().zip(&offered).all(|(a, b)| a == b), "round {round}");
            drop(model.drain(..sent));
            let empty = queue.consume(sent);
            assert_eq!(empty, model.is_empty());
            begin = if model.is_empty() { 0 } else { (begin + sent) % BLOCK };
            let used = if model.is_empty() { 0 } else { (begin + model.len()).div_ceil(BLOCK) };
            assert_eq!(taken(&memory), used as u64, "round {round}");
        }
        assert_eq!(queue.to_vec(), Vec::from(model));
        drop(queue);
        assert_eq!((taken(&memory), memory.blocks().total), (0, 0), "all went back");
    }

    #[test]
    fn no_more_is_taken_than_allowed_except_in_a_handover() {
        let memory = SpillMemory::new(10 * BLOCK as u64);
        assert!(memory.take(6));
        assert!(!memory.take(5));
        assert!(memory.take(4));
        assert!(!memory.take(1));
        assert!(memory.take_beyond(300));
        memory.set_limit(1 << 30);
        assert!(memory.take(1));
        assert_eq!(taken(&memory), 311);
    }

    /// Goal: memory is returned to the system, and excluded from core dumps while it is mapped.
    /// Method: examine the mappings of the process.
    #[test]
    fn memory_is_not_dumped_and_goes_back() {
        let undumped = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (mut kib, mut size) = (0, 0);
            for line in maps.lines() {
                if let Some(value) = line.strip_prefix("Size:") {
                    size = value.trim().trim_end_matches(" kB").parse().unwrap();
                } else if line.starts_with("VmFlags:") && line.contains(" dd") {
                    kib += size;
                }
            }
            kib
        };
        let memory = SpillMemory::new(1 << 30);
        let before: u64 = undumped();
        let mut queues: Vec<SpillQueue> = Vec::new();
        for _ in 0..64 {
            let mut queue = SpillQueue::new(Arc::clone(&memory));
            assert!(memory.take(256));
            queue.push(&vec![7; 1 << 20]);
            queues.push(queue);
        }
        let kept = undumped() - before;
        assert!(kept >= 60 << 10, "{kept} KiB are undumped");
        queues.truncate(32);
        // Other tests map a few small buffers at the same time.
        assert!(undumped() < before + (40 << 10), "half of it is free");
        queues.clear();
        assert!(undumped() < before + (8 << 10), "all of it is free");
    }
}
