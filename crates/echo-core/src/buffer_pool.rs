//! The state of the buffer pool in the core: which buffers are lent, and the queues that lent
//! buffers form.
//!
//! A buffer is free (the driver may fill it) or lent, and a lent one has exactly one owner.
//! Therefore the queue of a connection can be a list linked through the buffers: 12 bytes in the
//! connection, no allocation, any length.

use alloc::vec;
use alloc::vec::Vec;

use crate::id::{BufferId, SizeClass};
use crate::limits;

/// Buffers of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferClass {
    /// How many.
    pub count: u16,
    /// Bytes of each.
    pub size: u32,
}

/// The pooled buffers of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferPlan {
    /// The small ones: at least one.
    pub small: BufferClass,
    /// The large ones, no smaller than the small ones. There may be none.
    pub large: BufferClass,
    /// Roughly how many bytes large buffers may receive and send in a turn. Further bulk waits for
    /// one of the next turns, so that it does not delay small messages. One buffer is always
    /// permitted.
    pub bulk_quantum: u32,
}

impl BufferPlan {
    /// Count and size in bytes of the small and of the large buffers. The bulk quantum is two large
    /// buffers.
    #[must_use]
    pub const fn new(counts: [u16; 2], sizes: [u32; 2]) -> Self {
        Self {
            small: BufferClass { count: counts[0], size: sizes[0] },
            large: BufferClass { count: counts[1], size: sizes[1] },
            bulk_quantum: 2 * sizes[1],
        }
    }
}

/// The owner of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ownership {
    /// None: the driver may fill it.
    #[default]
    Free,
    /// A connection, for a moment.
    Lent,
    /// A connection that waits for its peer to read, however long that takes.
    Held,
}

/// What is known of one buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    ownership: Ownership,
    /// Bytes of payload.
    length: u32,
    /// How many of these bytes have been sent.
    sent: u32,
    next: Option<BufferId>,
    /// When it was filled, in microseconds modulo 2^32: only differences are used.
    filled_us: u32,
}

/// The buffers of one class.
#[derive(Debug)]
struct Class {
    entries: Vec<Entry>,
    size: u32,
    /// Buffers that are not free.
    lent: u32,
    /// How many of these are held.
    held: u32,
    /// Free buffers that are reserved for a receive.
    reserved: u32,
}

impl Class {
    fn new(class: BufferClass) -> Self {
        let entries = vec![Entry::default(); usize::from(class.count)];
        Self { entries, size: class.size, lent: 0, held: 0, reserved: 0 }
    }

    fn count(&self) -> u32 {
        self.entries.len() as u32
    }
}

/// Both classes of buffers.
#[derive(Debug)]
pub struct Pool {
    small: Class,
    large: Class,
    bulk_quantum: u32,
    /// Bytes that large buffers are expected to receive, or hold and are to send.
    bulk: u32,
}

impl Pool {
    /// All of them free.
    #[must_use]
    pub fn new(plan: BufferPlan) -> Self {
        let BufferPlan { small, large, bulk_quantum } = plan;
        Self { small: Class::new(small), large: Class::new(large), bulk_quantum, bulk: 0 }
    }

    /// The size of a small buffer in bytes.
    #[must_use]
    pub fn small_size(&self) -> u32 {
        self.small.size
    }

    /// Whether there are large buffers at all.
    #[must_use]
    pub fn has_large(&self) -> bool {
        self.large.count() > 0
    }

    /// Small buffers that are free, according to the events so far.
    #[must_use]
    pub fn free_small(&self) -> u32 {
        self.small.count() - self.small.lent
    }

    /// Whether a large buffer is free that may receive `expected` bytes in this turn.
    #[must_use]
    pub fn can_reserve_large(&self, expected: u32) -> bool {
        let free = self.large.lent + self.large.reserved < self.large.count();
        free && (self.bulk == 0 || self.bulk + expected <= self.bulk_quantum)
    }

    /// Reserves a free large buffer for a receive that is submitted right away and is expected to
    /// bring `expected` bytes. False if no large buffer is free, or if the bulk quantum is used up.
    #[must_use]
    pub fn reserve_large(&mut self, expected: u32) -> bool {
        let reserved = self.can_reserve_large(expected);
        if reserved {
            self.large.reserved += 1;
            self.bulk += expected;
        }
        reserved
    }

    /// Notes that a receive with a large buffer is over, which was expected to bring `expected`
    /// bytes. If it brought any, the buffer is lent next.
    pub fn end_reservation(&mut self, expected: u32) {
        let left = self.large.reserved.checked_sub(1);
        self.large.reserved = left.expect("invariant: a receive had a large buffer");
        self.bulk -= expected;
    }

    /// Whether more buffers are lent than occasional messages need, so that each should be returned
    /// soon.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let moving = self.lent_total() - self.small.held - self.large.held;
        moving > limits::TRICKLE_BUFFERS_MAX.min(self.small.count() / 2)
    }

    /// Whether too many small buffers are held to rely on the others, which might soon be held too.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.small.held > 0 && self.small.held >= self.small.count() / 2
    }

    /// The same of large buffers.
    #[must_use]
    pub fn are_large_withheld(&self) -> bool {
        self.large.held > 0 && self.large.held >= self.large.count() / 2
    }

    /// Buffers lent, of both classes.
    #[must_use]
    pub fn lent_total(&self) -> u32 {
        self.small.lent + self.large.lent
    }

    /// Notes that the kernel filled a buffer with `length` bytes, and when: in microseconds, modulo
    /// 2^32.
    pub fn lend(&mut self, buffer: BufferId, length: u32, filled_us: u32) {
        let class = self.class_mut(buffer.class);
        assert!(length > 0 && length <= class.size, "{buffer:?} holds {length} bytes");
        let entry = &mut class.entries[usize::from(buffer.index)];
        assert!(entry.ownership == Ownership::Free, "{buffer:?} was lent twice");
        *entry = Entry { ownership: Ownership::Lent, length, sent: 0, next: None, filled_us };
        class.lent += 1;
        if buffer.class == SizeClass::Large {
            self.bulk += length;
        }
    }

    /// Forgets all but the first `length` bytes of a lent buffer.
    pub fn shorten(&mut self, buffer: BufferId, length: u32) {
        let entry = self.lent_entry(buffer);
        assert!(length > 0 && length <= entry.length, "{buffer:?} holds less");
        let cut = core::mem::replace(&mut entry.length, length) - length;
        if buffer.class == SizeClass::Large && entry.ownership == Ownership::Lent {
            self.bulk -= cut;
        }
    }

    /// Notes that the owner of a lent buffer waits for its peer to read.
    pub fn hold(&mut self, buffer: BufferId) {
        let entry = self.lent_entry(buffer);
        if core::mem::replace(&mut entry.ownership, Ownership::Held) == Ownership::Lent {
            let length = entry.length;
            self.class_mut(buffer.class).held += 1;
            if buffer.class == SizeClass::Large {
                self.bulk -= length;
            }
        }
    }

    /// Notes that the first `length` unsent bytes of a lent buffer have been sent. True if none is
    /// left.
    pub fn advance(&mut self, buffer: BufferId, length: u32) -> bool {
        let entry = self.lent_entry(buffer);
        entry.sent += length;
        assert!(entry.sent <= entry.length, "{buffer:?} holds less");
        entry.sent == entry.length
    }

    /// Where the unsent bytes of a lent buffer begin, and how many there are.
    #[must_use]
    pub fn unsent(&self, buffer: BufferId) -> (u32, u32) {
        let entry = self.entry(buffer);
        (entry.sent, entry.length - entry.sent)
    }

    /// When a lent buffer was filled, in microseconds modulo 2^32.
    #[must_use]
    pub fn filled_us(&self, buffer: BufferId) -> u32 {
        self.entry(buffer).filled_us
    }

    /// Notes that a lent buffer is free again.
    pub fn release(&mut self, buffer: BufferId) {
        let entry = self.lent_entry(buffer);
        assert!(entry.next.is_none(), "{buffer:?} is still in a queue");
        let was_held = entry.ownership == Ownership::Held;
        entry.ownership = Ownership::Free;
        let length = entry.length;
        if buffer.class == SizeClass::Large && !was_held {
            self.bulk -= length;
        }
        let class = self.class_mut(buffer.class);
        class.lent -= 1;
        class.held -= u32::from(was_held);
    }

    fn class_mut(&mut self, class: SizeClass) -> &mut Class {
        match class {
            SizeClass::Small => &mut self.small,
            SizeClass::Large => &mut self.large,
        }
    }

    fn entry(&self, buffer: BufferId) -> &Entry {
        let class = match buffer.class {
            SizeClass::Small => &self.small,
            SizeClass::Large => &self.large,
        };
        &class.entries[usize::from(buffer.index)]
    }

    fn lent_entry(&mut self, buffer: BufferId) -> &mut Entry {
        let entry = &mut self.class_mut(buffer.class).entries[usize::from(buffer.index)];
        assert!(entry.ownership != Ownership::Free, "{buffer:?} is free");
        entry
    }
}

/// A first-in-first-out queue of lent buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    ends: Option<(BufferId, BufferId)>,
    count: u8,
}

impl Queue {
    /// How many buffers are in it.
    #[must_use]
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Notes that the owner of all of them waits for its peer to read.
    pub fn hold(&self, pool: &mut Pool) {
        let mut next = self.ends.map(|(first, _)| first);
        while let Some(buffer) = next {
            pool.hold(buffer);
            next = pool.entry(buffer).next;
        }
    }

    /// The first buffer, which stays in the queue, and the number of bytes in it.
    #[must_use]
    pub fn first(&self, pool: &Pool) -> Option<(BufferId, u32)> {
        let (first, _) = self.ends?;
        Some((first, pool.entry(first).length))
    }

    /// Puts `buffer` at the end.
    pub fn push(&mut self, pool: &mut Pool, buffer: BufferId) {
        self.ends = match self.ends {
            None => Some((buffer, buffer)),
            Some((first, last)) => {
                pool.lent_entry(last).next = Some(buffer);
                Some((first, buffer))
            }
        };
        self.count = self.count.checked_add(1).expect("a queue is stopped long before 255 chunks");
    }

    /// Takes the first buffer and the number of bytes in it.
    pub fn pop(&mut self, pool: &mut Pool) -> Option<(BufferId, u32)> {
        let (first, last) = self.ends?;
        let entry = pool.lent_entry(first);
        self.ends = entry.next.take().map(|next| (next, last));
        self.count -= 1;
        Some((first, entry.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(index: u16) -> BufferId {
        BufferId { class: SizeClass::Small, index }
    }

    /// Goal: a turn carries its quantum of bulk and no more, counted by expected and by received
    /// bytes. One buffer is always permitted, and buffers held for a slow peer do not count.
    #[test]
    fn bulk_beyond_the_quantum_waits() {
        let large = |index| BufferId { class: SizeClass::Large, index };
        let mut pool = Pool::new(BufferPlan::new([4, 8], [16, 64]));
        assert!(pool.reserve_large(64) && pool.reserve_large(32) && pool.reserve_large(32));
        assert!(!pool.reserve_large(1), "128 bytes are expected");
        for (index, expected) in [(0, 64), (1, 32)] {
            pool.end_reservation(expected);
            pool.lend(large(index), 50, 0);
        }
        assert!(!pool.can_reserve_large(1), "132 bytes came or are expected");
        pool.end_reservation(32);
        assert!(pool.can_reserve_large(28) && !pool.can_reserve_large(29));
        pool.hold(large(0));
        assert!(pool.can_reserve_large(78) && !pool.can_reserve_large(79));
        pool.shorten(large(1), 20);
        assert!(pool.can_reserve_large(108));
        pool.release(large(0));
        pool.release(large(1));
        assert!(pool.reserve_large(1_000), "one is always permitted");
        assert!(!pool.reserve_large(1));
    }

    #[test]
    fn a_lent_buffer_knows_when_it_was_filled() {
        let mut pool = Pool::new(BufferPlan::new([4, 0], [16, 64]));
        for filled_us in [7, u32::MAX] {
            pool.lend(small(1), 3, filled_us);
            assert_eq!(pool.filled_us(small(1)), filled_us);
            pool.release(small(1));
        }
    }

    #[test]
    fn a_queue_gives_back_what_went_in_in_order() {
        let mut pool = Pool::new(BufferPlan::new([4, 0], [16, 64]));
        let mut queue = Queue::default();
        for index in [2, 0, 3] {
            pool.lend(small(index), u32::from(index) + 1, 0);
            queue.push(&mut pool, small(index));
        }
        assert_eq!((queue.count(), pool.free_small()), (3, 1));
        assert_eq!(queue.pop(&mut pool), Some((small(2), 3)));
        pool.release(small(2));
        pool.lend(small(2), 9, 0);
        queue.push(&mut pool, small(2));
        assert_eq!(queue.pop(&mut pool), Some((small(0), 1)));
        assert_eq!(queue.pop(&mut pool), Some((small(3), 4)));
        assert_eq!(queue.pop(&mut pool), Some((small(2), 9)));
        assert_eq!(queue.pop(&mut pool), None);
        assert_eq!(queue, Queue::default());
    }

    /// Goal: messages that come one at a time need no early return of their buffers; more do. What
    /// is held for slow peers does not count.
    #[test]
    fn a_pool_with_more_than_a_trickle_is_busy() {
        let mut pool = Pool::new(BufferPlan::new([8, 2], [16, 64]));
        let busy = limits::TRICKLE_BUFFERS_MAX as u16;
        for index in 0..=busy {
            assert!(!pool.is_busy(), "{index} are lent");
            pool.lend(small(index), 1, 0);
        }
        assert!(pool.is_busy());
        pool.hold(small(0));
        assert!(!pool.is_busy());
        let large = BufferId { class: SizeClass::Large, index: 0 };
        pool.lend(large, 1, 0);
        assert!(pool.is_busy());
        pool.hold(large);
        assert!(!pool.is_busy());
        // With one buffer in all, any is too many.
        let mut one = Pool::new(BufferPlan::new([1, 0], [16, 64]));
        one.lend(small(0), 1, 0);
        assert!(one.is_busy());
    }

    /// Goal: a class is withheld when half of it is held, and never when none is.
    #[test]
    fn a_class_is_withheld_when_half_of_it_is_held() {
        let mut pool = Pool::new(BufferPlan::new([4, 4], [16, 64]));
        for (count, withheld) in [(1, false), (2, true), (3, true)] {
            for class in [SizeClass::Small, SizeClass::Large] {
                let buffer = BufferId { class, index: count - 1 };
                pool.lend(buffer, 1, 0);
                pool.hold(buffer);
            }
            let both = (pool.is_withheld(), pool.are_large_withheld());
            assert_eq!(both, (withheld, withheld), "{count} of 4");
        }
        let none = Pool::new(BufferPlan::new([1, 0], [16, 64]));
        assert!(!none.is_withheld() && !none.are_large_withheld());
    }

    #[test]
    fn a_queue_is_held_as_a_whole() {
        let mut pool = Pool::new(BufferPlan::new([4, 0], [16, 64]));
        let mut queue = Queue::default();
        assert_eq!(queue.first(&pool), None);
        for index in [1, 3] {
            pool.lend(small(index), u32::from(index), 0);
            queue.push(&mut pool, small(index));
        }
        assert!(!pool.is_withheld());
        assert_eq!(queue.first(&pool), Some((small(1), 1)));
        queue.hold(&mut pool);
        assert!(pool.is_withheld());
        assert_eq!(queue.count(), 2);
    }
}
