//! Messages between the main thread and the workers.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::fault::{Fault, Kind};
use crate::measure::Measured;

/// The number of faults kept with details; further ones are only counted.
const FAULTS_KEPT: usize = 100;

/// The phase of the run. A worker goes through all phases in this order, except `Abort`, which may
/// follow any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Wait until all threads have their resources.
    Prepare,
    /// Connect.
    Connect,
    /// Send and receive without reporting measurements.
    WarmUp,
    /// Send and receive.
    Run,
    /// Start no more messages; half-close, and wait for the remaining echoes and for the end.
    Finish,
    /// Abandon what is not finished.
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

/// Orders from the main thread to all workers, which it wakes after each change.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    phase: AtomicU8,
    /// When the load began, in nanoseconds since the origin of the run.
    start: AtomicU64,
    /// Counts the requests for measurements.
    pub(crate) ticks: AtomicU64,
    /// Counts the requests to look for messages that have timed out.
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

    /// Begins the load at `start`, with the warm-up or with the measured time.
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

/// A message from a worker to the main thread.
pub(crate) enum WorkerEvent {
    /// It has its ring and its memory.
    Prepared,
    /// All its connections are established.
    Ready,
    /// It could not connect, and why.
    Refused(String),
    /// Its ring failed, and why.
    Broken(String),
    /// Its measurements since the last request.
    Measured(Box<Measured>),
    /// It has ended: the outcome of its remaining messages, and its other results.
    Finished(Box<Measured>, Box<Outcome>),
}

/// The connection with the highest mean latency.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slowest {
    /// Its number.
    pub(crate) connection: u64,
    /// Its echoes in the measured time.
    pub(crate) echoes: u64,
    /// Their mean latency in nanoseconds, including the waiting time of a message without echo.
    pub(crate) mean: f64,
}

/// The results of a worker, and finally of the run, besides measurements.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The first faults, with details.
    pub(crate) faults: Vec<Fault>,
    /// The number of all faults, by kind.
    pub(crate) fault_counts: [u64; Kind::ALL.len()],
    /// Connects that failed during the run (churn).
    pub(crate) connect_failures: u64,
    /// The error of the first of them.
    pub(crate) connect_error: Option<String>,
    /// Datagrams that the kernel refused to send.
    pub(crate) send_failures: u64,
    /// The error of the first of them.
    pub(crate) send_error: Option<String>,
    /// Bursts that the kernel did not take as one, and that were sent datagram by datagram.
    pub(crate) split_bursts: u64,
    /// Over UDP, how long the server had been silent at the end of the measured time, in
    /// nanoseconds; zero if it was not. None over streams.
    pub(crate) silence: Option<u64>,
    /// Datagrams that arrived, but for which the sockets of this client had no room.
    pub(crate) client_drops: u64,
    /// Connections that the server echoed completely but did not close after our FIN.
    pub(crate) left_open: u64,
    /// Connections that had messages to send, but got no echo in the measured time.
    pub(crate) without_echo: u64,
    /// The connection with the highest mean latency; None in churn mode.
    pub(crate) slowest: Option<Slowest>,
}

impl Outcome {
    pub(crate) fn report(&mut self, fault: Fault) {
        self.fault_counts[fault.kind as usize] += 1;
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(fault);
        }
    }

    /// Records a connection if it is slower than all others.
    pub(crate) fn note_slow(&mut self, candidate: Slowest) {
        if self.slowest.as_ref().is_none_or(|slowest| candidate.mean > slowest.mean) {
            self.slowest = Some(candidate);
        }
    }

    /// Adds the results of another worker.
    pub(crate) fn add(&mut self, other: Self) {
        for (mine, theirs) in self.fault_counts.iter_mut().zip(other.fault_counts) {
            *mine += theirs;
        }
        let room = FAULTS_KEPT - self.faults.len();
        self.faults.extend(other.faults.into_iter().take(room));
        self.connect_failures += other.connect_failures;
        self.connect_error = self.connect_error.take().or(other.connect_error);
        self.send_failures += other.send_failures;
        self.send_error = self.send_error.take().or(other.send_error);
        self.split_bursts += other.split_bursts;
        self.client_drops += other.client_drops;
        // One thread that has echoes is enough.
        self.silence = [self.silence, other.silence].into_iter().flatten().min();
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
