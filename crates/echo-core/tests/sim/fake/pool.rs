//! The buffers of the fake, with real bytes in them. Small ones are offered, first in, first out.
//!
//! Knows the holder of each buffer (pool, kernel on its way to the core, core), and poisons
//! returned buffers, so that a byte read from a recycled buffer is a wrong byte.

use std::collections::VecDeque;

use echo_core::op::{BufferClass, BufferId, BufferPlan, SizeClass};

/// The fill byte of a free buffer, which must not be read.
const POISON: u8 = 0xdd;

/// Both classes of buffers.
pub(crate) struct Pool {
    classes: [Class; 2],
    /// Large buffers that are assigned to receives.
    reserved: usize,
    /// How many small buffers are to be offered.
    offers: usize,
    /// How many are offered.
    offered: usize,
}

struct Class {
    /// The bytes of each buffer.
    bytes: Vec<Box<[u8]>>,
    /// For each buffer how many of its bytes are lent; none while it is free.
    lent: Vec<Option<usize>>,
    /// The free buffers, in the order in which they will be taken.
    home: VecDeque<u16>,
}

impl Pool {
    pub(crate) fn new(plan: BufferPlan) -> Self {
        let class = |BufferClass { count, size }| Class {
            bytes: (0..count).map(|_| vec![POISON; size as usize].into_boxed_slice()).collect(),
            lent: vec![None; usize::from(count)],
            home: (0..count).collect(),
        };
        let classes = [class(plan.small), class(plan.large)];
        let offers = usize::from(plan.small.count);
        Self { classes, reserved: 0, offers, offered: 0 }
    }

    /// Sets how many small buffers are to be offered from now on.
    pub(crate) fn offer_up_to(&mut self, count: usize) {
        assert!(count > 0, "contract: no buffer is offered");
        self.offers = count;
    }

    /// A turn begins: the offer is filled up.
    pub(crate) fn fill_up(&mut self) {
        self.offered = self.offered.max(self.offers.min(self.classes[0].home.len()));
    }

    /// A large buffer is assigned to a receive.
    pub(crate) fn reserve_large(&mut self) {
        self.reserved += 1;
        let free = self.classes[SizeClass::Large as usize].home.len();
        assert!(self.reserved <= free, "contract: {} large buffers of {free}", self.reserved);
    }

    /// A receive with a large buffer is over.
    pub(crate) fn end_reservation(&mut self) {
        self.reserved -= 1;
    }

    /// Whether a receive into this class finds a buffer.
    pub(crate) fn has_room(&self, class: SizeClass) -> bool {
        class == SizeClass::Large || self.offered > 0
    }

    /// How many bytes a buffer of this class holds.
    pub(crate) fn size(&self, class: SizeClass) -> usize {
        self.classes[class as usize].bytes.first().map_or(0, |bytes| bytes.len())
    }

    /// Takes the buffer that has been free for longest and fills it; none if the class is empty.
    pub(crate) fn take(
        &mut self,
        class: SizeClass,
        bytes: impl ExactSizeIterator<Item = u8>,
    ) -> Option<BufferId> {
        let pool = &mut self.classes[class as usize];
        let index = pool.home.pop_front()?;
        if class == SizeClass::Small {
            self.offered -= 1;
        }
        pool.lent[usize::from(index)] = Some(bytes.len());
        for (place, byte) in pool.bytes[usize::from(index)].iter_mut().zip(bytes) {
            *place = byte;
        }
        Some(BufferId { class, index })
    }

    /// The bytes `offset..offset + length` of a lent buffer.
    pub(crate) fn bytes(&self, buffer: BufferId, offset: u32, length: u32) -> &[u8] {
        let pool = &self.classes[buffer.class as usize];
        let Some(lent) = pool.lent.get(usize::from(buffer.index)).copied().flatten() else {
            panic!("contract: {buffer:?} is used but not lent");
        };
        let (from, to) = (offset as usize, offset as usize + length as usize);
        assert!(length > 0, "contract: no byte of {buffer:?} is requested");
        assert!(to <= lent, "contract: {buffer:?} holds {lent} bytes, {from}..{to} are requested");
        &pool.bytes[usize::from(buffer.index)][from..to]
    }

    /// Takes a buffer back.
    pub(crate) fn recycle(&mut self, buffer: BufferId) {
        let pool = &mut self.classes[buffer.class as usize];
        let lent = pool.lent.get_mut(usize::from(buffer.index)).and_then(Option::take);
        assert!(lent.is_some(), "contract: {buffer:?} is recycled but not lent");
        pool.bytes[usize::from(buffer.index)].fill(POISON);
        pool.home.push_back(buffer.index);
    }

    /// How many buffers are free, in both classes, and how many there are.
    pub(crate) fn home_and_total(&self) -> (usize, usize) {
        let home = self.classes.iter().map(|class| class.home.len()).sum();
        (home, self.classes.iter().map(|class| class.bytes.len()).sum())
    }
}
