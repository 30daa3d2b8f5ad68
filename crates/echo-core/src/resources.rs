//! What all connections of a worker share: the pool, the memory for stalled peers, the lines they
//! wait in, the counters.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::admission::{Rules, SourceLimiter};
use super::fullness::Fullness;
use super::limits;
use super::op::{Budget, BufferId, ConnectionId, ListenerId, Op, ReceiveMode, Timestamp};
use super::pool::Pool;
use super::stats::{CloseReason, RefuseReason, Stats, Traffic};

/// How one worker's core is set up.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Listening sockets, named 0, 1, 2, …
    pub listeners: u16,
    /// Pooled buffers of each size class; a class may be empty, but not the small one.
    pub buffers: [u16; 2],
    /// Size of a buffer of each class, in bytes, ascending.
    pub buffer_sizes: [u32; 2],
    /// How quiet lines are received from.
    pub receive_mode: ReceiveMode,
    /// Milliseconds a peer has to answer our FIN with its own.
    pub linger_timeout: u64,
    /// Where connections are counted by source, over all workers.
    pub limiter: Arc<SourceLimiter>,
    /// Where memory for spilled bytes comes from, for all workers.
    pub budget: Arc<dyn Budget>,
    /// Where all workers note whether they have places left.
    pub fullness: Arc<Fullness>,
    /// What may change while it runs.
    pub runtime_limits: RuntimeLimits,
}

/// The part of a core's set-up that may change while it runs: see `Server::reconfigure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeLimits {
    /// Connections that have a place at the same time; the rest waits in the backlog. Lowering it
    /// below what is open ends nobody: new ones wait until it has room again.
    pub connections_max: u32,
    /// A connection on which nothing moves for so many milliseconds is ended in order.
    pub idle_timeout: Option<u64>,
    /// A connection whose peer takes nothing for so many milliseconds, while bytes wait for it, is
    /// reset.
    pub stall_timeout: Option<u64>,
    /// A connection that has been open for so many milliseconds is ended in order.
    pub lifetime: Option<u64>,
    /// A connection that has received so many bytes is ended in order; what it sends beyond is not
    /// echoed.
    pub bytes_max: Option<u64>,
    /// When silent peers are asked whether they are still there.
    pub keepalive: Option<Keepalive>,
    /// Who is let in. Connections that are there already are not judged again.
    pub rules: Arc<Rules>,
}

/// When silent peers are asked whether they are still there, and at what pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Milliseconds of silence before the first probe.
    pub silence: u64,
    /// Probes in one burst of this worker, at least 1.
    pub burst: u32,
}

impl Keepalive {
    /// For one of `workers`, which share what a burst may hold.
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

    /// Milliseconds after probe number `attempt`, counted from 1, at which it is looked whether it
    /// was answered.
    #[must_use]
    pub fn wait_for_answer(self, attempt: u8) -> u64 {
        if attempt < limits::PROBES {
            self.interval().min(limits::PROBE_ANSWER_MS)
        } else {
            self.interval()
        }
    }

    /// In what steps the silence of a connection is counted, in milliseconds.
    pub(super) fn step(self) -> u64 {
        (self.silence / 32).max(1)
    }
}

#[cfg(test)]
impl Parameters {
    /// A small core without limits but its places: what the unit tests begin with.
    pub(crate) fn small(listeners: u16, places: u32) -> Self {
        let hasher = std::hash::RandomState::new();
        Self {
            listeners,
            buffers: [8, 0],
            buffer_sizes: [8, 64],
            receive_mode: ReceiveMode::Once,
            linger_timeout: 100,
            limiter: Arc::new(SourceLimiter::new(hasher)),
            budget: Arc::new(tests::Blocks::of(8, 0)),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits {
                connections_max: places,
                idle_timeout: None,
                stall_timeout: None,
                lifetime: None,
                bytes_max: None,
                keepalive: None,
                rules: Arc::default(),
            },
        }
    }
}

impl Parameters {
    /// The tick of the timer wheel: a fraction of the shortest timeout, in milliseconds.
    #[must_use]
    pub fn tick_ms(&self) -> u64 {
        let RuntimeLimits { idle_timeout, stall_timeout, lifetime, keepalive, .. } =
            self.runtime_limits;
        let silence = keepalive.map(|keepalive| keepalive.silence);
        [idle_timeout, stall_timeout, lifetime, silence, Some(self.linger_timeout)]
            .into_iter()
            .flatten()
            .min()
            .map_or(limits::TICK_MS_MAX, |shortest| {
                (shortest / limits::TICKS_PER_TIMEOUT)
                    .clamp(limits::TICK_MS_MIN, limits::TICK_MS_MAX)
            })
    }
}

/// What all connections of a worker share.
pub struct Resources {
    /// How the core is set up.
    pub parameters: Parameters,
    /// Which buffers are lent.
    pub pool: Pool,
    /// The counters. Traffic, parked connections and lent buffers only `Server::stats` tells.
    pub stats: Stats,
    /// Every connection is to become quiescent: nothing is received and no spilled byte is sent.
    pub quiescing: bool,
    /// What the connection of each slot has received, if there is a byte limit; else it is empty.
    pub received: Vec<u64>,
    /// What the connections of each listener did.
    pub listeners: Vec<Traffic>,
    /// When the events at hand were fetched from the kernel, in microseconds since an arbitrary
    /// start.
    pub clock_us: u64,
    /// By slot, when the oldest bytes that are spilled were received, in microseconds modulo
    /// 2^32, if their residence time is taken. Only stalled connections are in it.
    pub stalled_since: BTreeMap<u32, Option<u32>>,
    /// Connections that wait for a buffer, first come first served. One that ended since is
    /// skipped.
    pub waiting: VecDeque<ConnectionId>,
    /// Connections to be tried again, and when; in order of time.
    pub retries: VecDeque<(Timestamp, ConnectionId)>,
    /// Sends until the next one whose residence time is taken.
    untimed_sends: u32,
}

impl Resources {
    /// Everything at home, nobody waiting.
    #[must_use]
    pub fn new(parameters: Parameters) -> Self {
        Self {
            pool: Pool::new(parameters.buffers, parameters.buffer_sizes),
            stats: Stats::default(),
            quiescing: false,
            received: Vec::new(),
            listeners: vec![Traffic::default(); usize::from(parameters.listeners)],
            clock_us: 0,
            stalled_since: BTreeMap::new(),
            waiting: VecDeque::new(),
            retries: VecDeque::new(),
            untimed_sends: 0,
            parameters,
        }
    }

    /// Counts a connection that was accepted.
    pub fn count_accepted(&mut self, listener: ListenerId) {
        self.of(listener).accepted += 1;
    }

    /// Counts a connection of the process before us.
    pub fn count_taken_over(&mut self, listener: ListenerId) {
        self.of(listener).taken_over += 1;
    }

    /// Counts a connection that is closed right after its accept.
    pub fn count_refused(&mut self, listener: ListenerId, reason: RefuseReason) {
        self.of(listener).refused[reason as usize] += 1;
    }

    /// How many bytes a connection is free to send before its byte limit is reached.
    #[must_use]
    pub fn left_of_limit(&self, id: ConnectionId) -> u64 {
        let limit = self.parameters.runtime_limits.bytes_max;
        limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.received_by(id)).max(1))
    }

    /// Counts `length` bytes against the byte limit of a connection, and says how many it was free
    /// to send before. Costs nothing, neither time nor memory, as long as there is no limit; bytes
    /// that came before there was one do not count.
    pub fn count_against_limit(&mut self, id: ConnectionId, length: u32) -> u64 {
        let Some(limit) = self.parameters.runtime_limits.bytes_max else { return u64::MAX };
        let slot = id.slot() as usize;
        if slot >= self.received.len() {
            self.received.resize(slot + 1, 0);
        }
        let left = limit.saturating_sub(self.received[slot]);
        self.received[slot] += u64::from(length);
        left
    }

    /// What counts towards the byte limit of a connection.
    #[must_use]
    pub fn received_by(&self, id: ConnectionId) -> u64 {
        self.received.get(id.slot() as usize).copied().unwrap_or(0)
    }

    /// What the process before us counted towards the byte limit of a connection.
    pub fn resume_received(&mut self, id: ConnectionId, received: u64) {
        if self.parameters.runtime_limits.bytes_max.is_some() {
            let slot = id.slot() as usize;
            if slot >= self.received.len() {
                self.received.resize(slot + 1, 0);
            }
            self.received[slot] = received;
        }
    }

    /// The slot has a new tenant.
    pub fn forget_received(&mut self, id: ConnectionId) {
        if let Some(received) = self.received.get_mut(id.slot() as usize) {
            *received = 0;
        }
    }

    /// Counts a chunk that was received.
    pub fn count_received(&mut self, listener: ListenerId, length: u32) {
        let of = self.of(listener);
        of.bytes_in += u64::from(length);
        of.chunks_in += 1;
    }

    /// Counts bytes that were sent.
    pub fn count_sent(&mut self, listener: ListenerId, length: u32) {
        self.of(listener).bytes_out += u64::from(length);
    }

    /// Whether the residence time of the next send is to be taken: the first one's, and that of
    /// every so many after it, whatever becomes of it.
    pub fn is_next_send_timed(&mut self) -> bool {
        let timed = self.untimed_sends == 0;
        self.untimed_sends =
            if timed { limits::SENDS_PER_TIMED - 1 } else { self.untimed_sends - 1 };
        timed
    }

    /// Counts an echo that is complete; and its residence time, if it is of bytes that were
    /// received at `since_us`, in microseconds modulo 2^32.
    pub fn count_echo(&mut self, listener: ListenerId, since_us: Option<u32>) {
        self.of(listener).chunks_out += 1;
        if let Some(since_us) = since_us {
            self.stats.residence.record((self.clock_us as u32).wrapping_sub(since_us));
        }
    }

    /// Counts a connection that is closed.
    pub fn count_close(&mut self, listener: ListenerId, reason: CloseReason) {
        self.of(listener).closed[reason as usize] += 1;
    }

    fn of(&mut self, listener: ListenerId) -> &mut Traffic {
        &mut self.listeners[usize::from(listener.0)]
    }

    /// Counts the bytes at the front of a backlog, those that were spilled all together, as one
    /// echo: they have been sent.
    pub fn count_echo_of_backlog(&mut self, listener: ListenerId, id: ConnectionId) {
        let since_us = self.stalled_since.get(&id.slot()).copied().flatten();
        self.count_echo(listener, since_us);
    }

    /// Bytes of a block of memory for spilled bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.parameters.budget.block_size()
    }

    /// How many blocks hold `unsent` bytes that begin at `begin` in the first of them.
    fn blocks_of(&self, begin: u32, unsent: u32) -> u32 {
        if unsent == 0 { 0 } else { (begin + unsent).div_ceil(self.block_size()) }
    }

    /// How many bytes of memory `unsent` spilled bytes take that begin at `begin` in their first
    /// block.
    #[must_use]
    pub fn memory_of(&self, begin: u32, unsent: u32) -> u64 {
        u64::from(self.blocks_of(begin, unsent)) * u64::from(self.block_size())
    }

    /// Takes the memory for `more` bytes behind so many that are spilled. False, and nothing
    /// taken, if it is not granted.
    pub fn charge_spill(&mut self, begin: u32, unsent: u32, more: u32) -> bool {
        self.charge(begin, unsent, more, |budget, blocks| budget.take(blocks))
    }

    /// As [`Resources::charge_spill`], whatever the limit says.
    pub fn charge_spill_beyond(&mut self, begin: u32, unsent: u32, more: u32) -> bool {
        self.charge(begin, unsent, more, |budget, blocks| budget.take_beyond(blocks))
    }

    fn charge(
        &mut self,
        begin: u32,
        unsent: u32,
        more: u32,
        take: fn(&dyn Budget, u32) -> bool,
    ) -> bool {
        let blocks = self.blocks_of(begin, unsent + more) - self.blocks_of(begin, unsent);
        let granted = blocks == 0 || take(&*self.parameters.budget, blocks);
        if granted {
            self.stats.spilled_bytes += u64::from(blocks) * u64::from(self.block_size());
        } else {
            self.stats.spills_refused += 1;
        }
        granted
    }

    /// Notes that the first `sent` of `unsent` spilled bytes are gone; the driver gives their
    /// memory back. Returns where the rest begins in its first block.
    pub fn refund_spill(&mut self, begin: u32, unsent: u32, sent: u32) -> u32 {
        let left = (begin + sent) % self.block_size();
        let freed = self.memory_of(begin, unsent) - self.memory_of(left, unsent - sent);
        self.stats.spilled_bytes = self
            .stats
            .spilled_bytes
            .checked_sub(freed)
            .expect("invariant: what is refunded was charged");
        left
    }

    /// Counts bytes that the process before us had spilled: the driver has taken the memory for
    /// them, whatever the limit says.
    pub fn count_imported(&mut self, length: u32) {
        self.stats.spilled_bytes += self.memory_of(0, length);
        self.stats.bytes_taken_over += u64::from(length);
    }
}

/// What a connection gets in hand while it handles one event.
pub struct Context<'a> {
    /// Who it is.
    pub id: ConnectionId,
    /// Now.
    pub now: Timestamp,
    /// What it shares with the others.
    pub resources: &'a mut Resources,
    /// Where its operations go.
    pub ops: &'a mut Vec<Op>,
    /// Set when it has closed: the slot is free.
    pub closed: bool,
    /// Set when its time may be up earlier than it was.
    pub timer_changed: bool,
}

impl Context<'_> {
    /// Sends a lent buffer home.
    pub fn recycle(&mut self, buffer: BufferId) {
        self.resources.pool.take_back(buffer);
        self.ops.push(Op::Recycle { buffer });
    }

    /// Asks for a call of `Connection::retry` in a little while.
    pub fn retry_later(&mut self) {
        self.resources.stats.memory_retries += 1;
        self.resources.retries.push_back((self.now.plus(limits::MEMORY_RETRY_MS), self.id));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use crate::op::Budget;

    /// So many blocks of one size, for the unit tests: none comes back.
    #[derive(Debug)]
    pub(crate) struct Blocks {
        size: u32,
        left: AtomicU32,
    }

    impl Blocks {
        pub(crate) fn of(size: u32, left: u32) -> Self {
            Self { size, left: left.into() }
        }
    }

    impl Budget for Blocks {
        fn block_size(&self) -> u32 {
            self.size
        }

        fn take(&self, blocks: u32) -> bool {
            let left = self.left.load(Ordering::Relaxed);
            self.left.store(left.saturating_sub(blocks), Ordering::Relaxed);
            blocks <= left
        }

        fn take_beyond(&self, blocks: u32) -> bool {
            self.take(blocks);
            true
        }
    }
}
