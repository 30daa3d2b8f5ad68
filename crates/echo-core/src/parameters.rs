//! The configuration of the core of one worker, and the part of it that may change while it runs.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::admission::{AdmissionPolicy, IpSet, Limiter};
use crate::budget::Budget;
use crate::buffer_pool::BufferPlan;
use crate::datagram::{GuardPolicy, Rates};
use crate::fullness::Fullness;
use crate::id::ListenerId;
use crate::limits;

/// The configuration of the core of one worker.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Listening sockets, named 0, 1, 2, …
    pub listeners: u16,
    /// Listeners whose connections have *records*: messages with boundaries, each of which is
    /// echoed as one message (SOCK_SEQPACKET).
    pub records: Vec<ListenerId>,
    /// The pooled buffers.
    pub buffers: BufferPlan,
    /// Whether the kernel supports multishot receives that can be bounded.
    pub multishot: bool,
    /// When small receives are deferred.
    pub deferral: Deferral,
    /// The maximum number of slots that one turn visits when all slots are to be visited:
    /// [`limits::SWEEP_SLOTS_MAX`], except in simulation.
    pub sweep_slots_max: usize,
    /// Milliseconds a peer has to answer our FIN with its own.
    pub linger_timeout: u64,
    /// Milliseconds a connection has for its header.
    pub preface_timeout: u64,
    /// The proxies whose connections each listener accepts, in the order of the listeners; none if
    /// its connections have no header. Listeners that are missing at the end have none.
    pub proxies: Arc<[Option<IpSet>]>,
    /// What follows the identity on the connections of each listener, in the order of the
    /// listeners; none if it is a plain echo. Those that are missing at the end are plain ones.
    pub identities: Arc<[Option<AfterIdentity>]>,
    /// Counts connections by source, over all workers.
    pub limiter: Arc<dyn Limiter>,
    /// The memory for spilled bytes, for all workers.
    pub budget: Arc<dyn Budget>,
    /// All workers note here whether they have capacity left.
    pub fullness: Arc<Fullness>,
    /// The part that may change while the core runs.
    pub runtime_limits: RuntimeLimits,
}

impl Parameters {
    /// The proxies whose connections a listener accepts; none if its connections have no header.
    #[must_use]
    pub fn proxies_of(&self, listener: ListenerId) -> Option<&IpSet> {
        self.proxies.get(usize::from(listener.0))?.as_ref()
    }

    /// What follows the identity on connections of a listener; none if it is a plain echo.
    #[must_use]
    pub fn identity_of(&self, listener: ListenerId) -> Option<AfterIdentity> {
        *self.identities.get(usize::from(listener.0))?
    }

    /// Whether any listener accepts connections of proxies.
    #[must_use]
    pub fn has_proxies(&self) -> bool {
        self.proxies.iter().any(Option::is_some)
    }

    /// The tick of the timer wheel: a fraction of the shortest timeout, in milliseconds.
    #[must_use]
    pub fn tick_ms(&self) -> u64 {
        let RuntimeLimits { idle_timeout, stall_timeout, lifetime, keepalive, .. } =
            self.runtime_limits;
        let silence = keepalive.map(|keepalive| keepalive.silence);
        let preface = self.has_proxies().then_some(self.preface_timeout);
        [idle_timeout, stall_timeout, lifetime, silence, preface, Some(self.linger_timeout)]
            .into_iter()
            .flatten()
            .min()
            .map_or(limits::TICK_MS_MAX, |shortest| {
                (shortest / limits::TICKS_PER_TIMEOUT)
                    .clamp(limits::TICK_MS_MIN, limits::TICK_MS_MAX)
            })
    }
}

/// What follows the identity on a connection, which is the one line that tells its peer where it
/// has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterIdentity {
    /// The end: FIN behind the line. What the peer sends is discarded.
    End,
    /// An echo, as on any other connection.
    Echo,
}

/// When small receives are deferred; see `stream/receive_policy.rs`. The defaults are measured. The
/// simulator has others, so that short histories cover all cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// Turns between two decisions.
    pub turns_per_period: u32,
    /// Deferring is tried if an average turn brings this many chunks, and ends below half of that.
    pub chunks_per_turn: u32,
}

impl Default for Deferral {
    /// A period is some ten milliseconds of a busy worker. (A connection whose receives are
    /// deferred brings one chunk in two turns, while an armed receive may bring several in one
    /// turn. With a few connections that send without pause, deferring is therefore tried in vain.)
    fn default() -> Self {
        Self { turns_per_period: 256, chunks_per_turn: 6 }
    }
}

/// Limits and timeouts that may change while the core runs: see
/// [`Command::Reconfigure`](crate::command::Command::Reconfigure).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeLimits {
    /// Connections that may be open at the same time; further ones wait in the listen backlog.
    /// Lowering it below the number of open connections ends none: new ones wait until there is
    /// capacity again.
    pub connections_max: u32,
    /// A connection on which no byte moves for this many milliseconds is ended with FIN.
    pub idle_timeout: Option<u64>,
    /// A connection whose peer takes no byte for this many milliseconds, while bytes wait for it,
    /// is reset.
    pub stall_timeout: Option<u64>,
    /// A connection that has been open for this many milliseconds is ended with FIN.
    pub lifetime: Option<u64>,
    /// A connection from which this many bytes were received is ended with FIN. Further bytes are
    /// not echoed.
    pub bytes_max: Option<u64>,
    /// When silent peers are probed.
    pub keepalive: Option<Keepalive>,
    /// Which connections are admitted. Open connections are not judged again.
    pub admission: Arc<AdmissionPolicy>,
    /// Source ports whose datagrams are not answered.
    pub datagram_guard: GuardPolicy,
    /// How much one source may send by datagrams.
    pub datagram_rates: Rates,
}

impl RuntimeLimits {
    /// No limit except the number of connections.
    #[must_use]
    pub fn unlimited(connections_max: u32) -> Self {
        Self {
            connections_max,
            idle_timeout: None,
            stall_timeout: None,
            lifetime: None,
            bytes_max: None,
            keepalive: None,
            admission: Arc::default(),
            datagram_guard: GuardPolicy::default(),
            datagram_rates: Rates::default(),
        }
    }
}

/// When silent peers are probed, and at what pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Milliseconds of silence before the first probe.
    pub silence: u64,
    /// Probes in one burst of this worker, at least 1.
    pub burst: u32,
}

impl Keepalive {
    /// For one of `workers` workers, which share the size of a burst.
    #[must_use]
    pub fn new(silence: u64, workers: usize) -> Self {
        let burst = limits::PROBES_PER_BURST / (workers.max(1) as u32);
        Self { silence, burst: burst.max(1) }
    }

    /// Milliseconds from one probe to the next.
    #[must_use]
    pub fn interval(self) -> u64 {
        (self.silence / limits::PROBE_INTERVAL_DIVISOR).max(limits::PROBE_INTERVAL_MS_MIN)
    }

    /// Milliseconds after probe number `attempt`, counted from 1, at which the core checks for an
    /// answer.
    #[must_use]
    pub fn wait_for_answer(self, attempt: u8) -> u64 {
        if attempt < limits::PROBES {
            self.interval().min(limits::PROBE_ANSWER_MS)
        } else {
            self.interval()
        }
    }

    /// The resolution in which the silence of a connection is measured, in milliseconds.
    pub(crate) fn step(self) -> u64 {
        (self.silence / 32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_follow_at_a_quarter_of_the_silence() {
        let keepalive = |silence| Keepalive { silence, burst: 1 };
        assert_eq!(
            [100, 8_000, 120_000].map(|it| keepalive(it).interval()),
            [1_000, 2_000, 30_000]
        );
        // The last probe is given the whole interval.
        let waits = [1, 2, 3, 4].map(|attempt| keepalive(120_000).wait_for_answer(attempt));
        let short = limits::PROBE_ANSWER_MS;
        assert_eq!(waits, [short, short, short, 30_000]);
        assert_eq!(keepalive(1_000).wait_for_answer(1), limits::PROBE_ANSWER_MS.min(1_000));
        assert_eq!([1, 32, 640].map(|it| keepalive(it).step()), [1, 1, 20]);
    }

    #[test]
    fn workers_share_the_size_of_a_burst() {
        let burst = |workers| Keepalive::new(1_000, workers).burst;
        assert_eq!([0, 1].map(burst), [limits::PROBES_PER_BURST; 2]);
        assert_eq!(burst(4), limits::PROBES_PER_BURST / 4);
        assert_eq!(burst(1_000_000), 1);
    }
}
