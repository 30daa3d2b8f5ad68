//! The status of the daemon: combines the boards of all workers into a [`Snapshot`].
//!
//! The thread of [`crate::admin`] calls it and may wait for a worker there. This does not affect
//! the event loops or the main thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use echo_core::datagram::DatagramTraffic;
use echo_core::stats::Traffic;

use super::datagrams::KernelDrops;
use super::life::{Life, Standing};
use super::workers::{self, Plan, Worker};
use crate::admin::Snapshot;
use crate::admin::process::seconds_since_1970;
use crate::admin::snapshot::{
    self, DatagramListenerFigures, Figures, ListenerFigures, Process, RefusedSource, Warning,
    WorkerFigures,
};
use crate::logging;
use crate::metrics::Shown;

/// How long a worker may take to complete an iteration when it is woken.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The constant properties of a listener.
#[derive(Clone)]
pub(super) struct Label {
    pub(super) name: String,
    pub(super) address: String,
    /// `tcp`, `unix` or `udp`.
    pub(super) protocol: &'static str,
}

/// The listeners, each kind in its order.
pub(super) struct Labels {
    /// One for each socket; several sockets of one address are one listener.
    pub(super) streams: Vec<Label>,
    pub(super) datagrams: Vec<Label>,
}

/// The sources of a snapshot.
pub(super) struct View {
    life: Life,
    log: logging::Handle,
    labels: Labels,
    kernel_drops: Arc<KernelDrops>,
    workers: Vec<Worker>,
    origin: Instant,
    buffers: u64,
}

impl View {
    /// The view of these workers. The labels are in the order of their listeners.
    pub(super) fn new(
        plan: &Plan<'_>,
        life: Life,
        log: logging::Handle,
        labels: Labels,
        workers: &[Worker],
    ) -> Self {
        Self {
            life,
            log,
            labels,
            kernel_drops: Arc::clone(&plan.kernel_drops),
            workers: workers.to_vec(),
            origin: plan.origin,
            buffers: workers::buffers_of_worker(plan),
        }
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
        let Standing { trouble, restart_needed, reload, limits } = self.life.standing();
        let phase = self.life.phase();
        let uptime = self.origin.elapsed();
        Snapshot {
            schema: snapshot::SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: phase.state(),
            accepting: phase.accepts(),
            configuration_error: trouble,
            restart_needed: restart_needed.into_iter().map(str::to_owned).collect(),
            reload,
            uptime_seconds: uptime.as_secs_f64(),
            limits,
            process: Process::current(uptime),
            total: Figures::new(&total.stats, self.buffers * self.workers.len() as u64),
            listeners: self.streams(&total.listeners),
            datagram_listeners: self.datagrams(&total.datagram_listeners),
            workers,
            refused_sources: RefusedSource::top(&total.refused_sources),
            warnings: self.log.recent().into_iter().map(warning).collect(),
        }
    }

    /// The figures of the listeners for streams.
    fn streams(&self, traffic: &[Traffic]) -> Vec<ListenerFigures> {
        let mut listeners: Vec<(&Label, Traffic)> = Vec::new();
        for (label, traffic) in self.labels.streams.iter().zip(traffic) {
            let same = |it: &&mut (&Label, Traffic)| {
                (&it.0.name, &it.0.address) == (&label.name, &label.address)
            };
            match listeners.iter_mut().find(same) {
                Some((_, sum)) => sum.add(traffic),
                None => listeners.push((label, traffic.clone())),
            }
        }
        let figures = |(label, traffic): &(&Label, Traffic)| {
            ListenerFigures::new((&label.name, &label.address, label.protocol), traffic)
        };
        listeners.iter().map(figures).collect()
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

fn warning(warning: logging::Warning) -> Warning {
    Warning {
        timestamp_seconds: seconds_since_1970(warning.at),
        level: warning.level.as_str().to_lowercase(),
        text: warning.text,
    }
}
