//! The state of the buffer pool, as the core sees it: which buffers are lent, and the queues that
//! lent buffers form.
//!
//! A buffer is either at home (the driver may fill it) or lent, and a lent one has exactly one
//! owner. That is what lets a connection's queue be a list through the buffers themselves: 12 bytes
//! in the connection, no allocation, any length.

use super::limits;
use super::op::{BufferId, SizeClass};

/// What is known of one buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    lent: bool,
    /// Its owner waits for its peer to read: it may stay lent for long.
    held: bool,
    /// Bytes of payload.
    length: u32,
    /// Those of them that have been sent.
    sent: u32,
    next: Option<BufferId>,
    /// When it was filled, in microseconds modulo 2^32: only differences are used.
    filled_us: u32,
}

/// Both pools.
#[derive(Debug)]
pub struct Pool {
    entries: [Vec<Entry>; SizeClass::ALL.len()],
    lent: [u32; SizeClass::ALL.len()],
    /// Those of the lent ones that are held.
    held: [u32; SizeClass::ALL.len()],
    sizes: [u32; SizeClass::ALL.len()],
}

impl Pool {
    /// All at home: `counts[class]` buffers of `sizes[class]` bytes.
    #[must_use]
    pub fn new(counts: [u16; 2], sizes: [u32; 2]) -> Self {
        Self {
            entries: counts.map(|count| vec![Entry::default(); usize::from(count)]),
            lent: [0; 2],
            held: [0; 2],
            sizes,
        }
    }

    /// The size of a buffer in bytes.
    #[must_use]
    pub fn size(&self, class: SizeClass) -> u32 {
        self.sizes[class.index()]
    }

    /// Whether the class has any buffer at all.
    #[must_use]
    pub fn exists(&self, class: SizeClass) -> bool {
        !self.entries[class.index()].is_empty()
    }

    /// Buffers at home, as far as the events so far tell.
    #[must_use]
    pub fn home(&self, class: SizeClass) -> u32 {
        self.entries[class.index()].len() as u32 - self.lent[class.index()]
    }

    /// Whether more buffers are lent than a thin trickle of messages needs, so that each is better
    /// had back soon.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let count = self.entries[SizeClass::Small.index()].len() as u32;
        let moving = self.lent_total() - self.held.iter().sum::<u32>();
        moving > limits::TRICKLE_BUFFERS_MAX.min(count / 2)
    }

    /// Whether so many small buffers are held that the others must not be relied on: they might be
    /// held soon, too.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        let small = SizeClass::Small.index();
        self.held[small] > 0 && self.held[small] >= self.entries[small].len() as u32 / 2
    }

    /// Buffers lent, of both classes.
    #[must_use]
    pub fn lent_total(&self) -> u32 {
        self.lent.iter().sum()
    }

    /// Notes that the kernel filled a buffer with `length` bytes, and when: in microseconds, modulo
    /// 2^32.
    pub fn lend(&mut self, buffer: BufferId, length: u32, filled_us: u32) {
        assert!(length > 0 && length <= self.size(buffer.class), "{buffer:?} holds {length} bytes");
        let entry = self.entry(buffer);
        assert!(!entry.lent, "{buffer:?} was lent twice");
        *entry = Entry { lent: true, held: false, length, sent: 0, next: None, filled_us };
        self.lent[buffer.class.index()] += 1;
    }

    /// Forgets all but the first `length` bytes of a lent buffer.
    pub fn shorten(&mut self, buffer: BufferId, length: u32) {
        let entry = self.entry(buffer);
        assert!(entry.lent && length > 0 && length <= entry.length, "{buffer:?} holds less");
        entry.length = length;
    }

    /// Notes that the owner of a lent buffer waits for its peer to read.
    pub fn hold(&mut self, buffer: BufferId) {
        let entry = self.entry(buffer);
        assert!(entry.lent, "{buffer:?} is at home");
        if !std::mem::replace(&mut entry.held, true) {
            self.held[buffer.class.index()] += 1;
        }
    }

    /// Notes that the first `length` unsent bytes of a lent buffer have been sent. True if none is
    /// left.
    pub fn advance(&mut self, buffer: BufferId, length: u32) -> bool {
        let entry = self.entry(buffer);
        entry.sent += length;
        assert!(entry.lent && entry.sent <= entry.length, "{buffer:?} holds less");
        entry.sent == entry.length
    }

    /// Where the unsent bytes of a lent buffer begin, and how many there are.
    #[must_use]
    pub fn unsent(&self, buffer: BufferId) -> (u32, u32) {
        let entry = &self.entries[buffer.class.index()][usize::from(buffer.index)];
        (entry.sent, entry.length - entry.sent)
    }

    /// When a lent buffer was filled, in microseconds modulo 2^32.
    #[must_use]
    pub fn filled_us(&self, buffer: BufferId) -> u32 {
        self.entries[buffer.class.index()][usize::from(buffer.index)].filled_us
    }

    /// Notes that a buffer is at home again.
    pub fn take_back(&mut self, buffer: BufferId) {
        let entry = self.entry(buffer);
        assert!(entry.lent, "{buffer:?} came home twice");
        assert!(entry.next.is_none(), "{buffer:?} still stands in a queue");
        entry.lent = false;
        let held = std::mem::take(&mut entry.held);
        self.lent[buffer.class.index()] -= 1;
        self.held[buffer.class.index()] -= u32::from(held);
    }

    fn entry(&mut self, buffer: BufferId) -> &mut Entry {
        &mut self.entries[buffer.class.index()][usize::from(buffer.index)]
    }
}

/// A first-in-first-out queue of lent buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    ends: Option<(BufferId, BufferId)>,
    count: u8,
}

impl Queue {
    /// How many buffers stand in it.
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

    /// The first buffer, which stays where it is, and the number of bytes in it.
    #[must_use]
    pub fn first(&self, pool: &Pool) -> Option<(BufferId, u32)> {
        let (first, _) = self.ends?;
        Some((first, pool.entries[first.class.index()][usize::from(first.index)].length))
    }

    /// Puts `buffer` at the end.
    pub fn push(&mut self, pool: &mut Pool, buffer: BufferId) {
        self.ends = match self.ends {
            None => Some((buffer, buffer)),
            Some((first, last)) => {
                pool.entry(last).next = Some(buffer);
                Some((first, buffer))
            }
        };
        self.count = self.count.checked_add(1).expect("a queue is stopped long before 255 chunks");
    }

    /// Takes the first buffer and the number of bytes in it.
    pub fn pop(&mut self, pool: &mut Pool) -> Option<(BufferId, u32)> {
        let (first, last) = self.ends?;
        let entry = pool.entry(first);
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

    #[test]
    fn a_queue_gives_back_what_went_in_in_order() {
        let mut pool = Pool::new([4, 0], [16, 64]);
        let mut queue = Queue::default();
        for index in [2, 0, 3] {
            pool.lend(small(index), u32::from(index) + 1, 0);
            queue.push(&mut pool, small(index));
        }
        assert_eq!((queue.count(), pool.home(SizeClass::Small)), (3, 1));
        assert_eq!(queue.pop(&mut pool), Some((small(2), 3)));
        pool.take_back(small(2));
        pool.lend(small(2), 9, 0);
        queue.push(&mut pool, small(2));
        assert_eq!(queue.pop(&mut pool), Some((small(0), 1)));
        assert_eq!(queue.pop(&mut pool), Some((small(3), 4)));
        assert_eq!(queue.pop(&mut pool), Some((small(2), 9)));
        assert_eq!(queue.pop(&mut pool), None);
        assert_eq!(queue, Queue::default());
    }
}
