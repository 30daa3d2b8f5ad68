//! What all connections of a worker share: the pool, the memory for stalled peers, the queues of
//! connections that wait for something, the counters.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use super::receive_policy::ReceivePolicy;
use super::spill::Spill;
use crate::budget::Budget;
use crate::buffer_offer::BufferOffer;
use crate::buffer_pool::Pool;
use crate::id::{BufferId, ConnectionId, ListenerId, Timestamp};
use crate::limits;
use crate::op::Op;
use crate::parameters::Parameters;
use crate::reason::RefuseReason;
use crate::stats::{Stats, Traffic};

/// What all connections of a worker share.
pub(crate) struct Resources {
    /// The configuration of the core.
    pub(crate) parameters: Parameters,
    /// Which buffers are lent.
    pub(crate) pool: Pool,
    /// How small receives are submitted.
    pub(crate) receive_policy: ReceivePolicy,
    /// How many small buffers are offered.
    pub(crate) buffer_offer: BufferOffer,
    /// The counters. Traffic, connections that wait for capacity, and lent buffers are added by
    /// `Server::stats`.
    pub(crate) stats: Stats,
    /// Every connection is to become quiescent: nothing is received and no spilled byte is sent.
    pub(crate) quiescing: bool,
    /// Connections whose receive waits for bulk and already has a large buffer; the one that has
    /// waited longest is first. There are at most as many as large buffers.
    pub(crate) idle_large: VecDeque<ConnectionId>,
    /// Connections that wait for their share of a turn's bulk, first come first served. Connections
    /// that have ended since are skipped.
    pub(crate) bulk_waiting: VecDeque<ConnectionId>,
    /// What the connection of each slot has received, if there is a byte limit; else it is empty.
    pub(crate) received: Vec<u64>,
    /// What the connections of each listener did.
    pub(crate) listeners: Vec<Traffic>,
    /// When the present events were fetched from the kernel, in microseconds since an arbitrary
    /// start.
    pub(crate) clock_us: u64,
    /// By slot, when the oldest spilled bytes were received, in microseconds modulo 2^32, if their
    /// residence time is measured. It contains only stalled connections.
    pub(crate) stalled_since: BTreeMap<u32, Option<u32>>,
    /// Connections that wait for a small buffer, first come first served. Connections that have
    /// ended since are skipped.
    pub(crate) waiting: VecDeque<ConnectionId>,
    /// Connections that this turn refuses because of their headers: only the kernel knows their
    /// peers, see `Server::note_refused_headers`.
    pub(crate) refused_headers: Vec<(ConnectionId, ListenerId, RefuseReason)>,
    /// Connections to be tried again, and the moments, in order of time.
    pub(crate) retries: VecDeque<(Timestamp, ConnectionId)>,
    /// Sends until the next one whose residence time is measured.
    untimed_sends: u32,
}

impl Resources {
    /// All buffers free, no connection waiting.
    #[must_use]
    pub(crate) fn new(parameters: Parameters) -> Self {
        Self {
            pool: Pool::new(parameters.buffers),
            receive_policy: ReceivePolicy::new(parameters.deferral, parameters.buffers.small.count),
            buffer_offer: BufferOffer::new(parameters.buffers.small.count),
            stats: Stats::default(),
            quiescing: false,
            idle_large: VecDeque::new(),
            bulk_waiting: VecDeque::new(),
            received: Vec::new(),
            // At least one: a connection of the previous process whose listener is gone is counted
            // for the first one, and a worker may have only datagram sockets.
            listeners: vec![Traffic::default(); usize::from(parameters.listeners.max(1))],
            clock_us: 0,
            stalled_since: BTreeMap::new(),
            waiting: VecDeque::new(),
            refused_headers: Vec::new(),
            retries: VecDeque::new(),
            untimed_sends: 0,
            parameters,
        }
    }

    /// What the connections of a listener did.
    pub(crate) fn traffic(&mut self, listener: ListenerId) -> &mut Traffic {
        &mut self.listeners[usize::from(listener.0)]
    }

    /// How many bytes a connection may still send before its byte limit is reached.
    #[must_use]
    pub(crate) fn left_of_limit(&self, id: ConnectionId) -> u64 {
        let limit = self.parameters.runtime_limits.bytes_max;
        limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.received_by(id)).max(1))
    }

    /// Counts `length` bytes against the byte limit of a connection. Returns how many it could send
    /// before. Costs neither time nor memory as long as there is no limit. Bytes that were received
    /// before a limit was set do not count.
    pub(crate) fn count_against_limit(&mut self, id: ConnectionId, length: u32) -> u64 {
        let Some(limit) = self.parameters.runtime_limits.bytes_max else { return u64::MAX };
        let received = self.received_by(id);
        self.set_received(id, received + u64::from(length));
        limit.saturating_sub(received)
    }

    /// The bytes that count towards the byte limit of a connection.
    #[must_use]
    pub(crate) fn received_by(&self, id: ConnectionId) -> u64 {
        self.received.get(id.slot() as usize).copied().unwrap_or(0)
    }

    /// Sets the bytes that count towards the byte limit of a connection, if there is one.
    pub(crate) fn set_received(&mut self, id: ConnectionId, received: u64) {
        if self.parameters.runtime_limits.bytes_max.is_some() {
            let slot = id.slot() as usize;
            if slot >= self.received.len() {
                self.received.resize(slot + 1, 0);
            }
            self.received[slot] = received;
        }
    }

    /// Counts bytes that were received, relayed or discarded, in this many chunks.
    pub(crate) fn count_received(&mut self, listener: ListenerId, length: u32, chunks: u32) {
        let traffic = self.traffic(listener);
        traffic.bytes_in += u64::from(length);
        traffic.chunks_in += u64::from(chunks);
    }

    /// Counts bytes that were sent.
    pub(crate) fn count_sent(&mut self, listener: ListenerId, length: u32) {
        self.traffic(listener).bytes_out += u64::from(length);
    }

    /// Whether the residence time of the next send is to be measured: that of the first send, and
    /// then of one in [`limits::SENDS_PER_TIMED`], whether it succeeds or not.
    pub(crate) fn is_next_send_timed(&mut self) -> bool {
        let timed = self.untimed_sends == 0;
        self.untimed_sends =
            if timed { limits::SENDS_PER_TIMED - 1 } else { self.untimed_sends - 1 };
        timed
    }

    /// Counts a complete echo, and its residence time if its bytes were received at `since_us`, in
    /// microseconds modulo 2^32.
    pub(crate) fn count_echo(&mut self, listener: ListenerId, since_us: Option<u32>) {
        self.traffic(listener).chunks_out += 1;
        if let Some(since_us) = since_us {
            self.stats.residence.record((self.clock_us as u32).wrapping_sub(since_us));
        }
    }

    /// Counts the bytes at the front of a backlog, which were spilled together and have been sent,
    /// as one echo.
    pub(crate) fn count_echo_of_backlog(&mut self, listener: ListenerId, id: ConnectionId) {
        let since_us = self.stalled_since.get(&id.slot()).copied().flatten();
        self.count_echo(listener, since_us);
    }

    /// The size of a block of memory for spilled bytes.
    #[must_use]
    pub(crate) fn block_size(&self) -> u32 {
        self.parameters.budget.block_size()
    }

    /// Takes the memory for `more` bytes behind those that are spilled, by [`Budget::take`] or, for
    /// a handover, [`Budget::take_beyond`]. None, and nothing is taken, if it is not granted.
    pub(crate) fn charge_spill(
        &mut self,
        spill: Spill,
        more: u32,
        take: fn(&dyn Budget, u32) -> bool,
    ) -> Option<Spill> {
        let (size, grown) = (self.block_size(), spill.with(more));
        let blocks = grown.blocks(size) - spill.blocks(size);
        if blocks > 0 && !take(&*self.parameters.budget, blocks) {
            self.stats.spills_refused += 1;
            return None;
        }
        self.stats.spilled_bytes += u64::from(blocks) * u64::from(size);
        Some(grown)
    }

    /// Notes that the first `sent` spilled bytes are gone; the driver gives their memory back.
    /// Returns what is left.
    pub(crate) fn refund_spill(&mut self, spill: Spill, sent: u32) -> Spill {
        let size = self.block_size();
        let left = spill.without(sent, size);
        let freed = u64::from(spill.blocks(size) - left.blocks(size)) * u64::from(size);
        let spilled = self.stats.spilled_bytes.checked_sub(freed);
        self.stats.spilled_bytes = spilled.expect("invariant: what is refunded was charged");
        left
    }

    /// Counts bytes that the previous process had spilled. The driver has taken the memory for
    /// them, possibly beyond the limit.
    pub(crate) fn count_imported(&mut self, spill: Spill) {
        let size = self.block_size();
        self.stats.spilled_bytes += u64::from(spill.blocks(size)) * u64::from(size);
        self.stats.bytes_taken_over += u64::from(spill.unsent());
    }
}

/// The context of a connection while it handles one event.
pub(crate) struct Context<'a> {
    /// Its name.
    pub(crate) id: ConnectionId,
    /// The listener it came from.
    pub(crate) listener: ListenerId,
    /// Now.
    pub(crate) now: Timestamp,
    /// What all connections share.
    pub(crate) resources: &'a mut Resources,
    /// Its operations are appended here.
    pub(crate) ops: &'a mut Vec<Op>,
}

impl Context<'_> {
    /// Gives a lent buffer back to the pool.
    pub(crate) fn recycle(&mut self, buffer: BufferId) {
        self.resources.pool.release(buffer);
        self.ops.push(Op::Recycle { buffer });
    }

    /// Drops the unsent bytes of a lent buffer.
    pub(crate) fn drop_chunk(&mut self, buffer: BufferId) {
        let (_, unsent) = self.resources.pool.unsent(buffer);
        self.resources.stats.bytes_dropped += u64::from(unsent);
        self.recycle(buffer);
    }

    /// Schedules a call of `Connection::retry` a little later.
    pub(crate) fn retry_later(&mut self) {
        self.resources.stats.memory_retries += 1;
        self.resources.retries.push_back((self.now.plus(limits::MEMORY_RETRY_MS), self.id));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use core::sync::atomic::{AtomicU32, Ordering};

    use crate::admission::Unlimited;
    use crate::budget::Budget;
    use crate::buffer_pool::BufferPlan;
    use crate::fullness::Fullness;
    use crate::id::ConnectionId;
    use crate::limits;
    use crate::op::{Event, Expectation};
    use crate::parameters::{Deferral, Parameters, RuntimeLimits};
    use crate::peer::PeerAddr;

    /// A small core without limits except its capacity, for the unit tests.
    pub(crate) fn small(listeners: u16, connections_max: u32) -> Parameters {
        Parameters {
            listeners,
            records: Vec::new(),
            buffers: BufferPlan::new([8, 0], [8, 64]),
            multishot: false,
            deferral: Deferral::default(),
            sweep_slots_max: limits::SWEEP_SLOTS_MAX,
            linger_timeout: 100,
            preface_timeout: 100,
            proxies: Arc::new([]),
            identities: Arc::new([]),
            limiter: Arc::new(Unlimited),
            budget: Arc::new(Blocks::of(8, 0)),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits::unlimited(connections_max),
        }
    }

    /// A connection from `peer`, after which the backlog is empty.
    pub(crate) fn accepted(connection: ConnectionId, peer: PeerAddr) -> Event {
        Event::Accepted { connection, peer, backlog: Expectation::Silence }
    }

    /// A number of blocks of one size, for the unit tests. They are never given back.
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
