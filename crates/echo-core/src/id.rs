//! Names of moments, connections, listeners and buffers.

use core::fmt;

/// Milliseconds on the kernel's monotonic clock since an arbitrary start. The core never reads a
/// clock: the time is passed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `milliseconds` later. Saturates instead of wrapping.
    #[must_use]
    pub fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Names one tenant of one connection slot. The generation changes with each tenant, so a late
/// completion can never reach the connection that took over the slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

impl ConnectionId {
    /// Generations count modulo 2^24: `user_data` has no room for more.
    pub const GENERATION_MASK: u32 = 0x00ff_ffff;

    /// The tenant number `generation` (modulo 2^24) of `slot`.
    #[must_use]
    pub fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation: generation & Self::GENERATION_MASK }
    }

    /// The index of the slot, dense from 0.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.slot
    }

    /// Which tenant of the slot, below 2^24.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "c{}.{}", self.slot, self.generation)
    }
}

/// Names a listening socket: its position, dense from 0, in the list that the driver was built
/// with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);

/// The size of the pooled buffer that a receive uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SizeClass {
    /// For connections with little traffic: a few KiB.
    Small,
    /// For bulk: a connection that fills several small buffers in a row changes to large ones.
    Large,
}

/// Names one buffer of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId {
    /// Which pool.
    pub class: SizeClass,
    /// Position in that pool, dense from 0.
    pub index: u16,
}
