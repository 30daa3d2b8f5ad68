//! The memory budget of the fake: a number, shared with workers that are not simulated.
//!
//! The core must take exactly as many blocks as the kernel gives back.

use std::sync::Mutex;

use echo_core::op::Budget;

use super::choice::Prng;

/// The budget.
#[derive(Debug)]
pub(crate) struct FakeBudget {
    block_size: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: u64,
    /// Blocks that the core took and the kernel has not given back.
    taken: u64,
    /// Blocks that other workers have.
    others: u64,
    /// The probability that the system has no memory, in thousandths.
    out_of_memory: u16,
    prng: Prng,
}

impl FakeBudget {
    pub(crate) fn new(block_size: u32, limit: u64, out_of_memory: u16, seed: u64) -> Self {
        let prng = Prng::new(seed);
        let state = State { limit, taken: 0, others: 0, out_of_memory, prng };
        Self { block_size, state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds it")
    }

    /// From now on this is the limit.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.state().limit = limit;
    }

    /// Sets how many thousandths of the limit other workers have now.
    pub(crate) fn set_others(&self, per_mille: u64) {
        let mut state = self.state();
        state.others = state.limit * per_mille / 1000;
    }

    /// The system has memory again.
    pub(crate) fn heal(&self) {
        self.state().out_of_memory = 0;
    }

    /// The kernel gives blocks back.
    pub(crate) fn give_back(&self, blocks: u64) {
        let mut state = self.state();
        let left = state.taken.checked_sub(blocks);
        state.taken = left.expect("contract: more is given back than was taken");
    }

    /// Another process has these blocks from the start.
    pub(crate) fn begin_with(&self, blocks: u64) {
        self.state().taken = blocks;
    }

    /// Blocks that this worker has.
    pub(crate) fn taken(&self) -> u64 {
        self.state().taken
    }

    /// How many blocks hold `length` bytes that begin at `begin` in the first of them.
    pub(crate) fn blocks_of(&self, begin: usize, length: usize) -> u64 {
        if length == 0 { 0 } else { (begin + length).div_ceil(self.block_size as usize) as u64 }
    }
}

impl Budget for FakeBudget {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn take(&self, blocks: u32) -> bool {
        assert!(blocks > 0, "contract: no block is requested");
        let mut state = self.state();
        let dry = state.out_of_memory;
        let dry = dry > 0 && state.prng.below(1000) < usize::from(dry);
        let within = state.taken + state.others + u64::from(blocks) <= state.limit;
        if within && !dry {
            state.taken += u64::from(blocks);
        }
        within && !dry
    }

    fn take_beyond(&self, blocks: u32) -> bool {
        self.state().taken += u64::from(blocks);
        true
    }
}
