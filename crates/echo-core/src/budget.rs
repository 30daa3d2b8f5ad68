//! The memory for spilled bytes, as the core sees it: a number of blocks.

use core::fmt;

/// The memory for spilled bytes: one budget for all workers of the process.
///
/// Bytes that a peer did not take are copied out of the pooled buffers into blocks of memory. A
/// block is taken from the budget before bytes are copied into it, and given back by the driver
/// when the last of its bytes is forgotten. So what counts is what memory really costs: one byte
/// takes a block.
///
/// A block that is refused harms no connection: it keeps its bytes in the pooled buffers that
/// hold them, and receives nothing until they are sent (see `stream/outbound.rs`).
///
/// The daemon's has memory behind it (`echo_ring::spill`), the simulator's is a number that refuses
/// at random.
pub trait Budget: fmt::Debug + Send + Sync {
    /// Bytes of a block, at least 1.
    fn block_size(&self) -> u32;

    /// Takes `blocks`, all or none. False if the limit would be passed, or if the system has no
    /// memory for them.
    fn take(&self, blocks: u32) -> bool;

    /// Takes `blocks` though the limit may be passed: bytes that exist already have to be somewhere
    /// while one process hands over to the next. False only if the system has no memory for them.
    fn take_beyond(&self, blocks: u32) -> bool;
}
