//! What the main thread and the workers tell each other.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::diagnosis::{Fault, Kind};
use crate::measure::Measured;

/// Faults that are kept in full; the rest is counted.
const FAULTS_KEPT: usize = 100;

/// What workers are to do. A worker goes through all phases in this order, but for `Abort`, which
/// may follow any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Wait: other threads have yet to get what they need of the machine.
    Prepare,
    /// Connect.
    Connect,
    /// Send and receive; what is measured is not told.
    WarmUp,
    /// Send and receive.
    Run,
    /// Start nothing more; half-close, wait for the rest of the echoes and for the end.
    Finish,
    /// Give up what is not finished.
    Abort,
}

impl Phase {
    pub(crate) const ALL: [Self; 6] =
        [Self::Prepare, Self::Connect, Self::WarmUp, Self::Run, Self::Finish, Self::Abort];

    /// Whether messages are sent.
    pub(crate) fn sends(self) -> bool {
        matches!(self, Self::WarmUp | Self::Run)
    }
}

/// What the main thread tells all workers. After each change it wakes them.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    phase: AtomicU8,
    /// When the load began, in nanoseconds since the origin of the run.
    start: AtomicU64,
    /// Counts the requests for what was measured.
    pub(crate) ticks: AtomicU64,
    /// Counts the requests to look for messages whose time is over.
    pub(crate) sweeps: AtomicU64,
    /// Connections made so far, by all workers.
    pub(crate) connected: AtomicU64,
    /// Connections that still take part.
    pub(crate) live: AtomicU64,
    /// Faults found so far, by all workers.
    pub(crate) errors: AtomicU64,
}

impl Orders {
    /// Begins a phase.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Begins the load at `start`: with the warm-up, or at once with what is measured.
    pub(crate) fn begin(&self, phase: Phase, start: u64) {
        self.start.store(start, Ordering::Release);
        self.set_phase(phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// When the load began.
    pub(crate) fn start(&self) -> u64 {
        self.start.load(Ordering::Acquire)
    }
}

/// What a worker tells the main thread.
pub(crate) enum News {
    /// It has its ring and its memory.
    Prepared,
    /// All its connections stand.
    Ready,
    /// It could not connect, and why.
    Refused(String),
    /// Its ring does not work, and why.
    Broken(String),
    /// What it measured since it was last asked.
    Measured(Box<Measured>),
    /// It has ended: what became of the rest of its messages, and what else it came to.
    Finished(Box<Measured>, Outcome),
}

/// A connection whose echoes took longest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slowest {
    /// Its number.
    pub(crate) connection: u64,
    /// Its echoes in the measured time.
    pub(crate) echoes: u64,
    /// Nanoseconds that they took on average; of one that waits, what it has waited counts.
    pub(crate) mean: f64,
}

/// What a worker, and in the end the run, came to besides its measurements.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The first ones, in full.
    pub(crate) faults: Vec<Fault>,
    /// All, by kind.
    pub(crate) fault_counts: [u64; Kind::ALL.len()],
    /// Connects that failed while the run was on (churn).
    pub(crate) connect_failures: u64,
    /// Why the first of them did.
    pub(crate) connect_error: Option<String>,
    /// Connections that the server did not close after our FIN, though it echoed everything.
    pub(crate) left_open: u64,
    /// Connections that had something to send, and got no echo in the measured time.
    pub(crate) without_echo: u64,
    /// The connection whose echoes took longest; None in a churn.
    pub(crate) slowest: Option<Slowest>,
}

impl Outcome {
    pub(crate) fn report(&mut self, fault: Fault) {
        self.fault_counts[fault.kind as usize] += 1;
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(fault);
        }
    }

    /// Notes a connection, if it is slower than others.
    pub(crate) fn note_slow(&mut self, candidate: Slowest) {
        if self.slowest.as_ref().is_none_or(|slowest| candidate.mean > slowest.mean) {
            self.slowest = Some(candidate);
        }
    }

    /// Adds what another worker came to.
    pub(crate) fn add(&mut self, other: Self) {
        for (mine, theirs) in self.fault_counts.iter_mut().zip(other.fault_counts) {
            *mine += theirs;
        }
        let room = FAULTS_KEPT - self.faults.len();
        self.faults.extend(other.faults.into_iter().take(room));
        self.connect_failures += other.connect_failures;
        self.connect_error = self.connect_error.take().or(other.connect_error);
        self.left_open += other.left_open;
        self.without_echo += other.without_echo;
        if let Some(slowest) = other.slowest {
            self.note_slow(slowest);
        }
    }

    pub(crate) fn faults_total(&self) -> u64 {
        self.fault_counts.iter().sum()
    }
}
