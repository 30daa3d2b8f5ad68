//! What the daemon shows of itself to those who ask: the boards of all workers, made into a
//! [`Snapshot`].
//!
//! It is called by the thread of [`crate::admin`] and may wait there for a worker; the event loops
//! and the main thread never notice.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::workers::{self, Plan, Worker};
use crate::admin::snapshot::{self, Figures, ListenerFigures, WorkerFigures};
use crate::admin::{Snapshot, State};
use crate::metrics::Shown;

/// How long a worker may take to turn when it is asked to.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Where the daemon is in its life, for whoever asks.
#[derive(Clone, Default)]
pub(super) struct Life {
    state: Arc<AtomicU8>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Life {
    const STATES: [State; 4] = [State::Starting, State::Ready, State::Leaving, State::Draining];

    /// Starting, with a configuration that is not what the file says, if there is a reason.
    pub(super) fn new(trouble: Option<String>) -> Self {
        Self { trouble: Arc::new(Mutex::new(trouble)), ..Self::default() }
    }

    /// From now on.
    pub(super) fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn get(&self) -> State {
        Self::STATES[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Why the configuration in force is not what the file says, if it is not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// What never changes of a listener.
pub(super) struct Label {
    pub(super) name: String,
    pub(super) address: String,
    /// `tcp` or `unix`.
    pub(super) protocol: &'static str,
}

/// Everything a snapshot is made of.
pub(super) struct View {
    life: Life,
    labels: Vec<Label>,
    workers: Vec<Worker>,
    origin: Instant,
    buffers: u64,
}

impl View {
    /// Of these workers. The labels are in the order of their listeners.
    pub(super) fn new(plan: &Plan<'_>, life: Life, labels: Vec<Label>, workers: &[Worker]) -> Self {
        let buffers = workers::buffers_of_worker(plan);
        Self { life, labels, workers: workers.to_vec(), origin: plan.origin, buffers }
    }

    /// The counters up to now. Every worker is woken, so one that hangs is found out.
    pub(super) fn snapshot(&self) -> Snapshot {
        let turned = self.turn_all();
        let mut total = Shown::default();
        let mut workers = Vec::with_capacity(self.workers.len());
        for (worker, turning) in self.workers.iter().zip(turned) {
            let shown = worker.shared.board.read();
            let figures = Figures::new(&shown.stats, self.buffers);
            workers.push(WorkerFigures { turns: worker.shared.turns(), turning, figures });
            total.add(&shown);
        }
        // Before the first worker has shown anything no listener has a figure.
        total.listeners.resize_with(self.labels.len(), Default::default);
        let figures = |(label, stats): (&Label, _)| {
            ListenerFigures::new((&label.name, &label.address, label.protocol), stats)
        };
        Snapshot {
            schema: snapshot::SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.life.get(),
            configuration_error: self.life.trouble(),
            uptime_seconds: self.origin.elapsed().as_secs_f64(),
            total: Figures::new(&total.stats, self.buffers * self.workers.len() as u64),
            listeners: self.labels.iter().zip(&total.listeners).map(figures).collect(),
            workers,
        }
    }

    /// Makes every worker turn and show its counters, and says of each whether it has done so: even
    /// one with nothing new to show, for that is how one that hangs is found out. A worker that has
    /// ended shows its last figures.
    fn turn_all(&self) -> Vec<bool> {
        let before = self.workers.iter().map(|worker| worker.shared.turns()).collect::<Vec<_>>();
        for worker in &self.workers {
            let _ = worker.shared.board.ask();
            worker.wake();
        }
        workers::wait_for(&self.workers, TIMEOUT, |index, worker| {
            let shared = &worker.shared;
            let turned = shared.turns() != before[index] && shared.board.has_answered();
            turned || shared.has_ended()
        })
    }
}
