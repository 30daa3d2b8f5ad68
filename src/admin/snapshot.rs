//! The content of a snapshot: the schema of the JSON on the status socket.
//!
//! Names and units are those of the metrics. Fields are added but never removed, so a reader of
//! this version understands later ones. Each field added since 0.1.0 has a default, so it
//! understands earlier ones as well: `status` may be newer than the daemon that it queries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use echo_core::admission::RefusedSources;
use echo_core::datagram::{DatagramTraffic, DropReason};
use echo_core::histogram::Histogram;
use echo_core::reason::{CloseReason, RefuseReason};
use echo_core::stats::{self, Stats};

/// The version of the fields: incremented by each release that adds some. 0.1.0 has no number.
pub const SCHEMA: u32 = 2;

/// The state of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not every worker accepts yet.
    #[default]
    Starting,
    /// Serving.
    Ready,
    /// Not ready, but still accepting (`timeouts.drain-lead`), or handing over.
    Leaving,
    /// Not accepting any more.
    Draining,
}

impl State {
    /// Its name in JSON and in messages.
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
    /// Its state.
    pub state: State,
    /// Whether new connections are served.
    #[serde(default)]
    pub accepting: bool,
    /// Why the configuration in force differs from the file, if it does.
    #[serde(default)]
    pub configuration_error: Option<String>,
    /// The keys whose new values wait for a restart.
    #[serde(default)]
    pub restart_needed: Vec<String>,
    /// The last time that the configuration was read.
    #[serde(default)]
    pub reload: Reload,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// The limits in force.
    #[serde(default)]
    pub limits: Limits,
    /// The resources of the process.
    #[serde(default)]
    pub process: Process,
    /// The sums over all workers.
    pub total: Figures,
    /// Each echo listener, over all workers.
    pub listeners: Vec<ListenerFigures>,
    /// Each listener for datagrams, over all workers.
    #[serde(default)]
    pub datagram_listeners: Vec<DatagramListenerFigures>,
    /// Each worker, over all listeners.
    pub workers: Vec<WorkerFigures>,
    /// The sources whose connections were refused most often, at most [`SOURCES_SHOWN`].
    #[serde(default)]
    pub refused_sources: Vec<RefusedSource>,
    /// The last messages of level warn and more severe, oldest first.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The number of refused sources in a snapshot.
pub const SOURCES_SHOWN: usize = 10;

/// How the configuration was read, at the start and at each reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether the file was valid the last time.
    pub successful: bool,
    /// When a valid file was read last, in seconds since 1970; 0 if this process has read none.
    pub success_timestamp_seconds: f64,
}

/// The limits in force. A limit that is off is null, and so is one of datagrams if there is no
/// listener for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Connections: `limits.max-connections`, or less if the limit on open files is lower.
    pub connections: u64,
    /// Memory for peers that do not read, in bytes.
    pub stalled_bytes: u64,
    /// Connections of one source.
    pub connections_per_source: Option<u64>,
    /// Accepts of one source in a second.
    pub accepts_per_source: Option<u64>,
    /// Datagrams of one source in a second.
    pub datagrams_per_source: Option<u64>,
    /// Bytes of payload in datagrams of one source in a second.
    pub datagram_bytes_per_source: Option<u64>,
}

/// The resources of the process. All are zero where /proc cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The limit on them.
    pub max_fds: u64,
    /// Address space.
    pub virtual_memory_bytes: u64,
    /// Memory in RAM.
    pub resident_memory_bytes: u64,
    /// Threads, without those of the kernel.
    pub threads: u64,
    /// The start, in seconds since 1970.
    pub start_time_seconds: f64,
}

/// A source whose connections were refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedSource {
    /// Its address, or its network with the length of the prefix.
    pub source: String,
    /// Refusals. There are more sources than counters, so this may be too high by `excess`.
    pub count: u64,
    /// See `count`.
    pub excess: u64,
    /// Why it was refused last.
    pub reason: String,
}

impl RefusedSource {
    /// The sources of `refused` that are shown.
    #[must_use]
    pub fn top(refused: &RefusedSources) -> Vec<Self> {
        let top = refused.top(SOURCES_SHOWN).into_iter();
        let shown = top.map(|it| Self {
            source: it.source.to_string(),
            count: it.count,
            excess: it.excess,
            reason: it.reason.name().to_owned(),
        });
        shown.collect()
    }
}

/// A log message of level warn or more severe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// When, in seconds since 1970.
    pub timestamp_seconds: f64,
    /// `warn` or `error`.
    pub level: String,
    /// The text, without control characters.
    pub text: String,
}

fn first_schema() -> u32 {
    1
}

impl Snapshot {
    /// The first worker that completed no iteration when it was queried.
    #[must_use]
    pub fn stalled_worker(&self) -> Option<usize> {
        self.workers.iter().position(|worker| !worker.turning)
    }
}

/// Connections and their traffic. In the JSON these are members of the object that contains them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Open now.
    pub connections: u64,
    /// Accepted so far.
    pub accepted: u64,
    /// Taken over from the previous process.
    #[serde(default)]
    pub taken_over: u64,
    /// Closed so far, by reason.
    pub closed: BTreeMap<String, u64>,
    /// Closed right after their accept or their header (PROXY protocol) so far, by reason.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// Those whose header announced an address so far.
    #[serde(default)]
    pub announced: u64,
    /// Those by which a proxy looked whether the service is there, and sent nothing, so far.
    #[serde(default)]
    pub health_checks: u64,
    /// Those that were told the identity of the listener so far.
    #[serde(default)]
    pub identities: u64,
    /// Payload.
    pub bytes_received: u64,
    /// Payload.
    pub bytes_sent: u64,
    /// Chunks received.
    pub messages_received: u64,
    /// Echoes completed.
    pub messages_sent: u64,
}

/// The counters of one worker, or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The traffic of all connections.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Open now and stalled: their peers do not read.
    pub connections_stalled: u64,
    /// Accepted and waiting for capacity now.
    pub connections_waiting: u64,
    /// Payload that could not be echoed.
    pub bytes_dropped: u64,
    /// Payload that the previous process received and this one echoes.
    #[serde(default)]
    pub bytes_taken_over: u64,
    /// Payload that was left to the next process.
    #[serde(default)]
    pub bytes_handed_over: u64,
    /// Memory held now for peers that do not read.
    pub stalled_bytes: u64,
    /// Receive buffers of the pool.
    pub buffers: Buffers,
    /// Events of the ring.
    pub ring: Ring,
    /// Accepts that failed so far, by reason.
    pub accept_failures: BTreeMap<String, u64>,
    /// Time from the receipt of a chunk to the completion of its echo.
    pub residence_seconds: Residence,
    /// The complete histogram, within this process.
    #[serde(skip)]
    pub histogram: Histogram,
}

/// The pool now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// In use.
    pub lent: u64,
    /// All.
    pub total: u64,
}

/// Counters of rare events of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Receives that found no buffer (ENOBUFS) and were queued.
    pub buffer_waits: u64,
    /// Sends that the socket accepted only in part.
    pub short_sends: u64,
    /// Iterations with an overflowed completion queue.
    pub completion_overflows: u64,
    /// Receives and sends retried because the kernel was out of memory.
    pub memory_retries: u64,
    /// Times that no memory was granted to spill bytes.
    #[serde(default)]
    pub spills_refused: u64,
    /// Times that the capacity was exhausted.
    pub full: u64,
}

/// Percentiles in seconds, at most an eighth too large. The clock is read once an iteration, in
/// whole microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Residence {
    /// The number of measured echoes: the first of each worker, and every 16th after it.
    pub count: u64,
    /// The sum of all times.
    pub sum: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The maximum.
    pub max: f64,
}

/// The counters of one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerFigures {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `tcp`, `unix` or `unix-seqpacket`.
    pub protocol: String,
    /// The traffic of its connections.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// The counters of one listener for datagrams.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DatagramListenerFigures {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `udp` or `unix-datagram`.
    pub protocol: String,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Datagrams sent back.
    pub datagrams_sent: u64,
    /// Bytes of payload received.
    pub bytes_received: u64,
    /// Bytes of payload sent back.
    pub bytes_sent: u64,
    /// Datagrams dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Datagrams that the kernel dropped because a receive buffer was full, since the sockets were
    /// made: inherited ones may be older than the daemon.
    pub kernel_dropped: u64,
}

impl DatagramListenerFigures {
    /// The figures of the listener with this name, address and protocol.
    #[must_use]
    pub fn new(
        (name, address, protocol): (&str, &str, &str),
        traffic: &DatagramTraffic,
        drops: u64,
    ) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            protocol: protocol.to_owned(),
            datagrams_received: traffic.datagrams_in,
            datagrams_sent: traffic.datagrams_out,
            bytes_received: traffic.bytes_in,
            bytes_sent: traffic.bytes_out,
            dropped: by_reason(DropReason::ALL.map(DropReason::name), &traffic.dropped),
            kernel_dropped: drops,
        }
    }
}

/// The counters of one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerFigures {
    /// The number of iterations of its event loop.
    pub turns: u64,
    /// Whether it completed an iteration when it was queried.
    pub turning: bool,
    /// Its counters.
    #[serde(flatten)]
    pub figures: Figures,
}

impl Traffic {
    fn new(connections: u64, traffic: &stats::Traffic) -> Self {
        Self {
            connections,
            accepted: traffic.accepted,
            taken_over: traffic.taken_over,
            closed: by_reason(CloseReason::ALL.map(CloseReason::name), &traffic.closed),
            refused: by_reason(RefuseReason::ALL.map(RefuseReason::name), &traffic.refused),
            announced: traffic.announced,
            health_checks: traffic.health_checks,
            identities: traffic.identities,
            bytes_received: traffic.bytes_in,
            bytes_sent: traffic.bytes_out,
            messages_received: traffic.chunks_in,
            messages_sent: traffic.chunks_out,
        }
    }
}

impl Figures {
    /// The figures from `stats`, with a pool of this many buffers.
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
            bytes_taken_over: stats.bytes_taken_over,
            bytes_handed_over: stats.bytes_handed_over,
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
    /// The figures of the listener with this name, address and protocol.
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
