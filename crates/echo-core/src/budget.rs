//! The memory for spilled bytes, in the core: a number of blocks.

use core::fmt;

/// The memory for spilled bytes: one budget for all workers of the process.
///
/// Bytes that a peer did not take are copied out of the pooled buffers into blocks of memory. A
/// block is taken from the budget before bytes are copied into it, and given back by the driver
/// when the last of its bytes is forgotten. The budget therefore counts the memory that is really
/// used: a single byte takes a block.
///
/// A refused block harms no connection: the connection keeps its bytes in their pooled buffers and
/// receives nothing until they are sent (see `stream/outbound.rs`).
///
/// The daemon's budget manages real memory (`echo_ring::spill`); the simulator's is a number that
/// refuses at random.
pub trait Budget: fmt::Debug + Send + Sync {
    /// Bytes of a block, at least 1.
    fn block_size(&self) -> u32;

    /// Takes `blocks`, all or none. False if the limit would be exceeded, or if the system has no
    /// memory for them.
    fn take(&self, blocks: u32) -> bool;

    /// Takes `blocks` even if that exceeds the limit: bytes that already exist need memory while
    /// one process hands over to the next. False only if the system has no memory for them.
    fn take_beyond(&self, blocks: u32) -> bool;
}
