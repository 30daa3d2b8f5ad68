//! The thread of one worker: the loop of the core, the mailbox of its commands, and the board on
//! which it shows its figures.
//!
//! It knows the ring only through [`Kernel`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use echo_core::command::Command;
use echo_core::kernel::Kernel;
use echo_core::worker::{Status, Worker};

use crate::metrics::{Board, Counted};

/// What the daemon and one worker tell each other.
#[derive(Debug, Default)]
pub struct Shared {
    turns: AtomicU64,
    ready: AtomicBool,
    ended: AtomicBool,
    /// Commands that the worker has not taken yet, oldest first.
    commands: Mutex<Vec<Command>>,
    /// Whether there are any: all that a turn without commands looks at.
    has_commands: AtomicBool,
    /// The worker's counters.
    pub board: Board,
}

impl Shared {
    /// How often the worker has turned its loop.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether the worker has armed its listeners.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether the worker has drained, or waits for what becomes of a hand-over; it turns no more,
    /// and its board shows its last figures.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Puts `command` behind those that wait. The worker takes them all at its next turn; wake it
    /// after this call, not before, to be heard at once.
    pub fn post(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.has_commands.store(true, Ordering::Release);
    }

    /// Whether a command waits to be taken.
    #[must_use]
    pub fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::Acquire)
    }

    /// The commands that wait. None while somebody is posting: the wake-up that follows brings the
    /// worker back.
    fn take_commands(&self) -> Vec<Command> {
        if !self.has_commands.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut commands = match self.commands.try_lock() {
            Ok(commands) => commands,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Vec::new(),
        };
        self.has_commands.store(false, Ordering::Release);
        std::mem::take(&mut *commands)
    }
}

/// Why a worker stopped serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The drain that a [`Command::Drain`] asked for is over.
    Drained,
    /// Every connection is quiescent, as a [`Command::HandOver`] asked.
    Quiescent,
}

/// Serves until the drain or the handover that a [`Command`] asked for is over. `on_ready` is
/// called when the listeners are armed.
///
/// # Errors
/// When the kernel itself fails; the connections are lost then.
pub fn run<K: Kernel>(
    kernel: &mut K,
    worker: &mut Worker,
    shared: &Shared,
    on_ready: impl FnOnce(),
) -> Result<Outcome, K::Error> {
    worker.start(kernel)?;
    // From here on a board has room for every counter.
    shared.board.publish(|| Counted::of(worker), 0, &mut 0, true);
    shared.ready.store(true, Ordering::Release);
    on_ready();
    serve(kernel, worker, shared)
}

/// Serves on after [`Outcome::Quiescent`], when the connections could not be handed over and are
/// back. The same worker goes on, so whatever it was told since its start still holds, and it
/// accepts nothing: a [`Command::Drain`] must be in the mailbox.
///
/// # Errors
/// When the kernel itself fails; the connections are lost then.
pub fn resume<K: Kernel>(
    kernel: &mut K,
    worker: &mut Worker,
    shared: &Shared,
) -> Result<Outcome, K::Error> {
    shared.ended.store(false, Ordering::Release);
    serve(kernel, worker, shared)
}

fn serve<K: Kernel>(
    kernel: &mut K,
    worker: &mut Worker,
    shared: &Shared,
) -> Result<Outcome, K::Error> {
    // When the board was last brought up to date.
    let mut published_us = 0;
    let outcome = loop {
        let status = worker.step(kernel, shared.take_commands())?;
        // No other thread writes it, so this needs no locked instruction.
        shared.turns.store(shared.turns() + 1, Ordering::Relaxed);
        match status {
            Status::Running { idle } => {
                let clock_us = worker.clock_us();
                shared.board.publish(|| Counted::of(worker), clock_us, &mut published_us, idle);
            }
            Status::Drained => break Outcome::Drained,
            Status::Quiescent => break Outcome::Quiescent,
        }
    };
    shared.board.publish_last(Counted::of(worker));
    shared.ended.store(true, Ordering::Release);
    Ok(outcome)
}
