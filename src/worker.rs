//! The thread of one worker: it drives the core's loop, takes commands from a mailbox, and
//! publishes its counters on a board.
//!
//! It knows the ring only through [`Kernel`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use echo_core::command::Command;
use echo_core::kernel::Kernel;
use echo_core::worker::{Status, Worker};

use crate::metrics::{Board, Counted};

/// What the main thread and one worker share. It is in cache lines of its own (CPUs fetch them in
/// pairs): a turn writes it, and no other worker's memory may be beside it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Shared {
    turns: AtomicU64,
    ready: AtomicBool,
    ended: AtomicBool,
    /// The mailbox: commands that the worker has not taken yet, oldest first.
    commands: Mutex<Vec<Command>>,
    /// Whether the mailbox holds any. A turn without commands reads this flag only.
    has_commands: AtomicBool,
    /// The worker's counters.
    pub board: Board,
}

impl Shared {
    /// How many turns of its loop the worker has completed.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether the worker has armed its listeners.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether the loop has ended: the worker has drained, or waits for the outcome of a handover.
    /// The board then has its last counters.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Adds `command` to the mailbox. The worker takes all commands at its next turn. For an effect
    /// at once, wake the worker after this call, not before.
    pub fn post(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.has_commands.store(true, Ordering::Release);
    }

    /// Whether the mailbox holds a command.
    #[must_use]
    pub fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::Acquire)
    }

    /// Takes all commands. None while another thread is posting: the wake-up that follows a post
    /// starts another turn.
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
    /// The drain of a [`Command::Drain`] is over.
    Drained,
    /// Every connection is quiescent after a [`Command::HandOver`].
    Quiescent,
}

/// For how long a worker that was full is reported as such, at least, in microseconds: at the limit
/// it may become full with every accept.
const FULL_US_MIN: u64 = 1_000_000;

/// Serves until a drain or a handover is over, see [`Command`]. `on_ready` is called when the
/// listeners are armed; `on_full`, if there is one, when the worker has no capacity left (true),
/// and when it has some again (false), a second later at the earliest.
///
/// # Errors
/// When the ring fails; the connections are lost then.
pub fn run<K: Kernel>(
    kernel: &mut K,
    worker: &mut Worker,
    shared: &Shared,
    on_ready: impl FnOnce(),
    on_full: Option<&dyn Fn(bool)>,
) -> Result<Outcome, K::Error> {
    worker.start(kernel)?;
    // The first publication allocates the lists of the board, later ones do not.
    shared.board.publish(|| Counted::of(worker), 0, &mut 0, true);
    shared.ready.store(true, Ordering::Release);
    on_ready();
    serve(kernel, worker, shared, on_full)
}

/// Continues after [`Outcome::Quiescent`], when the connections could not be handed over and are
/// back. It is the same worker with the same limits, and it accepts nothing: a [`Command::Drain`]
/// must be in the mailbox.
///
/// # Errors
/// When the ring fails; the connections are lost then.
pub fn resume<K: Kernel>(
    kernel: &mut K,
    worker: &mut Worker,
    shared: &Shared,
) -> Result<Outcome, K::Error> {
    shared.ended.store(false, Ordering::Release);
    serve(kernel, worker, shared, None)
}

fn serve<K: Kernel>(
    kernel: &mut K,
    worker: &mut Worker,
    shared: &Shared,
    on_full: Option<&dyn Fn(bool)>,
) -> Result<Outcome, K::Error> {
    // When the worker was reported to be full, if it was and has not been reported otherwise.
    let mut full_since_us = None;
    let mut report_fullness = |worker: &Worker| {
        let Some(on_full) = on_full else { return };
        match (full_since_us, worker.is_full()) {
            (None, true) => {
                full_since_us = Some(worker.clock_us());
                on_full(true);
            }
            (Some(since), false) if worker.clock_us() - since >= FULL_US_MIN => {
                full_since_us = None;
                on_full(false);
            }
            (None, false) | (Some(_), _) => {}
        }
    };
    // Without a share in the capacity it is full from the beginning.
    report_fullness(worker);
    // When the board was last written.
    let mut published_us = 0;
    let outcome = loop {
        let status = worker.step(kernel, shared.take_commands())?;
        // This thread is the only writer, so no atomic read-modify-write is needed.
        shared.turns.store(shared.turns() + 1, Ordering::Relaxed);
        match status {
            Status::Running { idle } => {
                let clock_us = worker.clock_us();
                report_fullness(worker);
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
