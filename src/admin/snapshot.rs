//! What a snapshot holds: the schema of the JSON that the status socket speaks.
//!
//! Names and units are those of the metrics. Fields are only ever added, so a reader that knows
//! this version understands a later one; and each that was added since 0.1.0 has a default, so it
//! understands an earlier one as well: `status` may be newer than the daemon that it asks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use echo_core::histogram::Histogram;
use echo_core::reason::{CloseReason, RefuseReason};
use echo_core::stats::{self, Stats};

/// Which fields a snapshot has at least: counted up when some are added. 0.1.0 has no number.
pub const SCHEMA: u32 = 2;

/// Where the daemon is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not every worker accepts yet.
    #[default]
    Starting,
    /// Serving.
    Ready,
    /// Asked to stop, and still accepting: `timeouts.drain-lead`.
    Leaving,
    /// Not accepting any more.
    Draining,
}

impl State {
    /// As it is spelled everywhere.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Leaving => "leaving",
            Self::Draining => "draining",
        }
    }
}

/// The daemon at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SCHEMA`] of the daemon.
    #[serde(default = "first_schema")]
    pub schema: u32,
    /// Of the daemon.
    pub version: String,
    /// Where it is in its life.
    pub state: State,
    /// Why the configuration in force is not what the file says, if it is not.
    #[serde(default)]
    pub configuration_error: Option<String>,
    /// Since its start.
    pub uptime_seconds: f64,
    /// The sums over all workers.
    pub total: Figures,
    /// Each echo listener, over all workers.
    pub listeners: Vec<ListenerFigures>,
    /// Each worker, over all listeners.
    pub workers: Vec<WorkerFigures>,
}

fn first_schema() -> u32 {
    1
}

impl Snapshot {
    /// The first worker that did not turn its loop when it was asked to.
    #[must_use]
    pub fn hanging_worker(&self) -> Option<usize> {
        self.workers.iter().position(|worker| !worker.turning)
    }
}

/// Connections and what they did. It has no member of its own in the JSON: these are members of
/// whatever it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Open now.
    pub connections: u64,
    /// Accepted so far.
    pub accepted: u64,
    /// Closed so far, by reason.
    pub closed: BTreeMap<String, u64>,
    /// Closed right after their accept so far, by reason.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// Payload.
    pub bytes_received: u64,
    /// Payload.
    pub bytes_sent: u64,
    /// Chunks as they came.
    pub messages_received: u64,
    /// Echoes that were complete.
    pub messages_sent: u64,
}

/// What was counted by a worker, or by all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// What all its connections did.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Open now, and stalled: their peers do not read.
    pub connections_stalled: u64,
    /// Accepted now, but without a place yet.
    pub connections_waiting: u64,
    /// Payload that could not be echoed.
    pub bytes_dropped: u64,
    /// Memory held now for what peers do not read.
    pub stalled_bytes: u64,
    /// Receive buffers of the pool.
    pub buffers: Buffers,
    /// What the ring and the kernel made of it.
    pub ring: Ring,
    /// Accepts that failed so far, by reason.
    pub accept_failures: BTreeMap<String, u64>,
    /// From a chunk's receipt to the end of its echo.
    pub residence_seconds: Residence,
    /// All of the same, for those in this process.
    #[serde(skip)]
    pub histogram: Histogram,
}

/// The pool now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// With an echo.
    pub lent: u64,
    /// All.
    pub total: u64,
}

/// Rarities of the ring, each counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Receives that found no buffer (ENOBUFS) and waited in line.
    pub buffer_waits: u64,
    /// Sends that the socket did not take whole.
    pub short_sends: u64,
    /// Turns that found the completion queue overflowed.
    pub completion_overflows: u64,
    /// Receives and sends that met a kernel short of memory.
    pub memory_retries: u64,
    /// Times that no memory was granted for what a peer did not read.
    #[serde(default)]
    pub spills_refused: u64,
    /// Times that all places were taken.
    pub full: u64,
}

/// Percentiles, at most an eighth too large, of a clock read once a turn in whole microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Residence {
    /// Echoes measured: of each worker the first, and every 16th after it.
    pub count: u64,
    /// All of them together.
    pub sum: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 took no longer.
    pub p90: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1000 took no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// What was counted of the connections of one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerFigures {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// `tcp` or `unix`.
    pub protocol: String,
    /// What its connections did.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What was counted by one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerFigures {
    /// How often it has turned its loop.
    pub turns: u64,
    /// Whether it turned when it was asked to.
    pub turning: bool,
    /// What it counted.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Traffic {
    fn new(connections: u64, traffic: &stats::Traffic) -> Self {
        Self {
            connections,
            accepted: traffic.accepted,
            closed: by_reason(CloseReason::ALL.map(CloseReason::name), &traffic.closed),
            refused: by_reason(RefuseReason::ALL.map(RefuseReason::name), &traffic.refused),
            bytes_received: traffic.bytes_in,
            bytes_sent: traffic.bytes_out,
            messages_received: traffic.chunks_in,
            messages_sent: traffic.chunks_out,
        }
    }
}

impl Figures {
    /// What `stats` say, of a pool of so many buffers.
    #[must_use]
    pub fn new(stats: &Stats, buffers: u64) -> Self {
        let failures = [
            ("process-files", stats.accept_process_files),
            ("system-files", stats.accept_system_files),
            ("memory", stats.accept_memory),
            ("aborted", stats.accept_aborted),
            ("unexpected", stats.accept_unexpected),
        ];
        Self {
            traffic: Traffic::new(stats.connections, &stats.traffic),
            connections_stalled: stats.stalled,
            connections_waiting: stats.waiting_for_capacity,
            bytes_dropped: stats.bytes_dropped,
            stalled_bytes: stats.spilled_bytes,
            buffers: Buffers { lent: stats.buffers_lent, total: buffers },
            ring: Ring {
                buffer_waits: stats.starved,
                short_sends: stats.short_sends,
                completion_overflows: stats.completion_overflows,
                memory_retries: stats.memory_retries,
                spills_refused: stats.spills_refused,
                full: stats.full,
            },
            accept_failures: failures.map(|(name, count)| (name.to_owned(), count)).into(),
            residence_seconds: Residence::new(&stats.residence),
            histogram: stats.residence.clone(),
        }
    }
}

impl Residence {
    fn new(histogram: &Histogram) -> Self {
        let seconds = |microseconds: u64| microseconds as f64 / 1e6;
        let quantile = |fraction| seconds(histogram.quantile(fraction));
        Self {
            count: histogram.count(),
            sum: seconds(histogram.sum()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
        }
    }
}

impl ListenerFigures {
    /// Of the listener of this name, address and protocol.
    #[must_use]
    pub fn new((name, address, protocol): (&str, &str, &str), traffic: &stats::Traffic) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            protocol: protocol.to_owned(),
            traffic: Traffic::new(traffic.connections(), traffic),
        }
    }
}

fn by_reason<const N: usize>(names: [&str; N], counts: &[u64; N]) -> BTreeMap<String, u64> {
    names.into_iter().map(str::to_owned).zip(counts.iter().copied()).collect()
}
