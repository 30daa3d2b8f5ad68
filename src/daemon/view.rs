//! The status of the daemon: combines the boards of all workers into a [`Snapshot`].
//!
//! The thread of [`crate::admin`] calls it and may wait for a worker there. This does not affect
//! the event loops or the main thread.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use echo_core::datagram::DatagramTraffic;

use super::datagrams::KernelDrops;
use super::workers::{self, Plan, Worker};
use crate::admin::snapshot::{
    self, DatagramListenerFigures, Figures, ListenerFigures, WorkerFigures,
};
use crate::admin::{Snapshot, State};
use crate::metrics::Shown;

/// How long a worker may take to complete an iteration when it is woken.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The state of the daemon, shared with the admin thread.
#[derive(Clone, Default)]
pub(super) struct Life {
    state: Arc<AtomicU8>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Life {
    const STATES: [State; 4] = [State::Starting, State::Ready, State::Leaving, State::Draining];

    /// The state at the start; `trouble` says why the configuration differs from the file, if it
    /// does.
    pub(super) fn new(trouble: Option<String>) -> Self {
        Self { trouble: Arc::new(Mutex::new(trouble)), ..Self::default() }
    }

    /// Changes the state.
    pub(super) fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn get(&self) -> State {
        Self::STATES[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Why the configuration in force differs from the file, if it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the reason.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// The constant properties of a listener.
pub(super) struct Label {
    pub(super) name: String,
    pub(super) address: String,
    /// `tcp`, `unix` or `udp`.
    pub(super) protocol: &'static str,
}

/// The listeners, each kind in its order.
pub(super) struct Labels {
    pub(super) streams: Vec<Label>,
    pub(super) datagrams: Vec<Label>,
}

/// The sources of a snapshot.
pub(super) struct View {
    life: Life,
    labels: Labels,
    kernel_drops: Arc<KernelDrops>,
    workers: Vec<Worker>,
    origin: Instant,
    buffers: u64,
}

impl View {
    /// The view of these workers. The labels are in the order of their listeners.
    pub(super) fn new(plan: &Plan<'_>, life: Life, labels: Labels, workers: &[Worker]) -> Self {
        let buffers = workers::buffers_of_worker(plan);
        let kernel_drops = Arc::clone(&plan.kernel_drops);
        Self { life, labels, kernel_drops, workers: workers.to_vec(), origin: plan.origin, buffers }
    }

    /// The current counters. Every worker is woken, so a stalled one is detected.
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
        // Before the first worker has published counters there are none for listeners.
        total.listeners.resize_with(self.labels.streams.len(), Default::default);
        total.datagram_listeners.resize_with(self.labels.datagrams.len(), Default::default);
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
            listeners: self.labels.streams.iter().zip(&total.listeners).map(figures).collect(),
            datagram_listeners: self.datagrams(&total.datagram_listeners),
            workers,
        }
    }

    /// The figures of the listeners for datagrams.
    fn datagrams(&self, traffic: &[DatagramTraffic]) -> Vec<DatagramListenerFigures> {
        let drops = self.kernel_drops.by_listener(self.labels.datagrams.len());
        let figures = |((label, traffic), drops): ((&Label, _), _)| {
            let names = (&*label.name, &*label.address, label.protocol);
            DatagramListenerFigures::new(names, traffic, drops)
        };
        self.labels.datagrams.iter().zip(traffic).zip(drops).map(figures).collect()
    }

    /// Makes every worker complete an iteration and publish its counters; returns for each whether
    /// it did. Workers without new counters are woken too, to detect stalled ones. A worker that
    /// has ended shows its last counters.
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
