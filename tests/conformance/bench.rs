//! Tools of the scripts: submit operations and wait for events within the contract between core and
//! driver.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echo_core::admission::Unlimited;
use echo_core::datagram::op as datagram;
use echo_core::fullness::Fullness;
use echo_core::kernel::{Kernel, Wake};
use echo_core::limits::SWEEP_SLOTS_MAX;
use echo_core::op::Budget;
use echo_core::op::{
    BufferId, ConnectionId, Event, Expectation, ListenerId, Op, PeerAddr, ReceiveEnd, ReceiveMode,
    SendError, SizeClass, Timestamp,
};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};

use crate::fake::peer::PeerId;
use crate::world::{End, ROOMY, Setup, World};

/// How long an event may take before a script fails.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long no event must come until a script assumes that none will, in milliseconds.
const SILENCE_MS: u64 = 15;

/// Bytes of a connection that were received in one buffer.
pub(crate) type Chunk = (BufferId, u32);

/// A kernel with short turns, for scripts in which peers act while the core waits.
pub(crate) struct Brief<'a, K>(pub(crate) &'a mut K);

impl<K: Kernel> Kernel for Brief<'_, K> {
    type Error = K::Error;

    fn now_us(&self) -> u64 {
        self.0.now_us()
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        self.0.peer_of(connection)
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        self.0.submit(ops);
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), K::Error> {
        let soon: Timestamp = self.0.now().plus(1);
        self.0.turn(wake.min(Wake::At(soon)), events)
    }

    fn take_datagrams(&mut self, events: &mut Vec<datagram::Event>) {
        self.0.take_datagrams(events);
    }

    fn submit_datagrams(&mut self, ops: &mut Vec<datagram::Op>) {
        self.0.submit_datagrams(ops);
    }
}

/// The parameters with which a script runs a core.
pub(crate) fn parameters(
    mode: ReceiveMode,
    budget: Arc<dyn Budget>,
    connections_max: u32,
) -> Parameters {
    Parameters {
        listeners: 1,
        records: Vec::new(),
        buffers: ROOMY.buffers,
        multishot: mode == ReceiveMode::Multishot,
        deferral: Deferral { turns_per_period: 8, chunks_per_turn: 0 },
        sweep_slots_max: SWEEP_SLOTS_MAX,
        linger_timeout: 5_000,
        preface_timeout: 3_000,
        proxies: Arc::new([]),
        identities: Arc::new([]),
        limiter: Arc::new(Unlimited),
        budget,
        fullness: Arc::new(Fullness::new(1)),
        runtime_limits: RuntimeLimits {
            idle_timeout: Some(60_000),
            stall_timeout: Some(60_000),
            ..RuntimeLimits::unlimited(connections_max)
        },
    }
}

/// A world, and the events that a script has not taken yet.
pub(crate) struct Bench<W: World> {
    pub(crate) world: W,
    events: VecDeque<Event>,
    /// What the last accept reported about the backlog.
    pub(crate) backlog: Option<Expectation>,
}

/// The first connection of slot `slot`.
pub(crate) fn name(slot: u32) -> ConnectionId {
    ConnectionId::new(slot, 0)
}

/// A connection whose source was not requested.
pub(crate) fn accepted(connection: ConnectionId) -> Event {
    accepted_from(connection, PeerAddr::Unknown)
}

/// A connection from `peer`, as [`Bench::next`] returns it.
pub(crate) fn accepted_from(connection: ConnectionId, peer: PeerAddr) -> Event {
    Event::Accepted { connection, peer, backlog: Expectation::Silence }
}

/// A receive with small buffers.
pub(crate) fn receive(connection: ConnectionId, mode: ReceiveMode) -> Op {
    Op::Receive { connection, class: SizeClass::Small, mode }
}

/// The answer to a send of spilled bytes: any part of them, but never nothing.
pub(crate) fn sent_spilled(event: Event, spilled: u32) -> u32 {
    match event {
        Event::SentSpilled { length, .. } if (1..=spilled).contains(&length) => length,
        other => panic!("up to {spilled} bytes from the spill were expected, not {other:?}"),
    }
}

impl<W: World> Bench<W> {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { world: W::new(setup), events: VecDeque::new(), backlog: None }
    }

    /// Submits these operations together.
    pub(crate) fn say(&mut self, ops: impl IntoIterator<Item = Op>) {
        let mut ops: Vec<Op> = ops.into_iter().collect();
        for op in &ops {
            if let Op::Spill { length, .. } = op {
                // More blocks than needed, wherever the bytes are stored.
                let budget = self.world.budget();
                assert!(budget.take(length / budget.block_size() + 2), "memory for a script");
            }
        }
        self.world.kernel().submit(&mut ops);
        assert!(ops.is_empty(), "the kernel takes all");
    }

    /// The next event. What an accept reports about the backlog is kept separately, since not every
    /// kernel reports it.
    pub(crate) fn next(&mut self) -> Event {
        let began = Instant::now();
        loop {
            match self.events.pop_front() {
                Some(Event::Accepted { connection, peer, backlog }) => {
                    self.backlog = Some(backlog);
                    return accepted_from(connection, peer);
                }
                Some(event) => return event,
                None => {}
            }
            assert!(began.elapsed() < TIMEOUT, "an event was expected and none came");
            self.turn(100);
        }
    }

    /// Whether there is an event that the script has not taken yet.
    pub(crate) fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next event if one comes soon.
    pub(crate) fn next_if_any(&mut self) -> Option<Event> {
        if self.events.is_empty() {
            self.turn(SILENCE_MS);
        }
        self.events.pop_front()
    }

    /// Asserts that no event comes for a while.
    pub(crate) fn silence(&mut self) {
        let event = self.next_if_any();
        assert_eq!(event, None, "nothing was expected");
    }

    /// Asserts that no event comes for a while and that the kernel does not spin: after one or two
    /// turns without an event, a turn lasts until its deadline.
    pub(crate) fn rest(&mut self) {
        for _ in 0..4 {
            let began = self.world.kernel().now();
            self.silence();
            if self.world.kernel().now() >= began.plus(SILENCE_MS) {
                return;
            }
        }
        panic!("each turn ends early without an event");
    }

    /// One turn of at most `milliseconds`; its events are kept for `next`.
    pub(crate) fn turn(&mut self, milliseconds: u64) {
        let kernel = self.world.kernel();
        let deadline = kernel.now().plus(milliseconds);
        let mut events = Vec::new();
        kernel.turn(Wake::At(deadline), &mut events).expect("the ring works");
        self.events.extend(events);
    }

    /// A new peer whose connection gets this id.
    pub(crate) fn accept(&mut self, connection: ConnectionId) -> PeerId {
        let peer = self.world.connect();
        let backlog = Expectation::Data;
        self.say([Op::Accept { listener: ListenerId(0), connection, backlog }]);
        assert_eq!(self.next(), accepted(connection));
        peer
    }

    /// The next event, which must be bytes.
    pub(crate) fn received(&mut self) -> (Chunk, bool, bool) {
        match self.next() {
            Event::Received { buffer, length, armed, rest, .. } => {
                ((buffer, length), armed, rest == Expectation::Data)
            }
            other => panic!("bytes were expected, not {other:?}"),
        }
    }

    /// How a receive ends after bytes that left it armed or not. It may be stopped before it
    /// reports the end.
    pub(crate) fn end_of_receive(
        &mut self,
        connection: ConnectionId,
        mode: ReceiveMode,
        mut armed: bool,
    ) -> ReceiveEnd {
        loop {
            if !armed {
                self.say([receive(connection, mode)]);
            }
            match self.next() {
                Event::ReceiveEnded { connection: whose, reason } if whose == connection => {
                    if reason != ReceiveEnd::Stopped {
                        return reason;
                    }
                    armed = false;
                }
                other => panic!("the end of {connection:?} was expected, not {other:?}"),
            }
        }
    }

    /// The peer writes ten bytes, which are received. Returns the operation that sends them back,
    /// for the script to submit, and their buffer.
    pub(crate) fn echo_to_say(&mut self, peer: PeerId, connection: ConnectionId) -> (Op, BufferId) {
        let (buffer, length) = self.take(peer, connection, 10)[0];
        (Op::Send { connection, buffer, length, needs_completion: true }, buffer)
    }

    /// The peer writes `length` bytes, which are then received by one-shot receives.
    pub(crate) fn take(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        length: usize,
    ) -> Vec<Chunk> {
        self.world.write(peer, length);
        let (mut chunks, mut left) = (Vec::new(), length);
        while left > 0 {
            self.say([receive(connection, ReceiveMode::WhenReadable)]);
            let (chunk, armed, _) = self.received();
            assert!(!armed, "a one-shot receive ends with the first bytes");
            left -= chunk.1 as usize;
            chunks.push(chunk);
        }
        chunks
    }

    /// Tries to send a chunk, and returns its buffer to the pool if all bytes were sent. Returns
    /// how many were sent.
    pub(crate) fn send(&mut self, connection: ConnectionId, (buffer, length): Chunk) -> u32 {
        self.say([Op::Send { connection, buffer, length, needs_completion: true }]);
        match self.next() {
            Event::Sent { connection: name, length: sent } if name == connection => {
                assert!(sent <= length, "{sent} of {length} bytes were sent");
                if sent == length {
                    self.say([Op::Recycle { buffer }]);
                }
                sent
            }
            other => panic!("the answer to a send was expected, not {other:?}"),
        }
    }

    /// Echoes until the socket is full, and spills what it did not take. Returns (bytes
    /// written, spilled bytes).
    pub(crate) fn fill(&mut self, peer: PeerId, connection: ConnectionId) -> (usize, u32) {
        const STEP: usize = 500;
        for step in 1..4000 {
            for (buffer, length) in self.take(peer, connection, STEP) {
                let sent = self.send(connection, (buffer, length));
                if sent < length {
                    let rest = length - sent;
                    let spilled = Op::Spill { connection, buffer, offset: sent, length: rest };
                    self.say([spilled, Op::Recycle { buffer }]);
                    return (step * STEP, rest);
                }
            }
        }
        panic!("the socket of a peer that does not read was never full");
    }

    /// Makes a send of spilled bytes wait for room. Returns (bytes written so far, spilled bytes).
    pub(crate) fn block(&mut self, peer: PeerId, connection: ConnectionId) -> (usize, u32) {
        let (mut written, mut spilled) = (0, 0);
        loop {
            if spilled == 0 {
                let (more, rest) = self.fill(peer, connection);
                (written, spilled) = (written + more, rest);
            }
            self.say([Op::SendSpilled { connection }]);
            match self.next_if_any() {
                None => return (written, spilled),
                // There may still be room for a small rest.
                Some(event) => spilled -= self.forget(connection, event, spilled),
            }
        }
    }

    /// Releases the spilled bytes that were sent. Returns their number.
    fn forget(&mut self, connection: ConnectionId, event: Event, spilled: u32) -> u32 {
        let length = sent_spilled(event, spilled);
        self.say([Op::ReleaseSpilled { connection, length }]);
        length
    }

    /// Cancels the waiting send of spilled bytes. Returns how many are still spilled.
    pub(crate) fn take_back(&mut self, connection: ConnectionId, spilled: u32) -> u32 {
        self.say([Op::CancelSend { connection }]);
        match self.next() {
            Event::SendFailed { error: SendError::Stopped, .. } => spilled,
            event @ Event::SentSpilled { .. } => spilled - self.forget(connection, event, spilled),
            other => panic!("a send that stopped was expected, not {other:?}"),
        }
    }

    /// Sends the rest of the spilled bytes while the peer reads; one send waits already. Returns
    /// how many bytes the peer has read.
    pub(crate) fn flush(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        mut spilled: u32,
    ) -> usize {
        let mut read = 0;
        while spilled > 0 {
            read += self.world.read(peer, 4096);
            if let Some(event) = self.next_if_any() {
                spilled -= self.forget(connection, event, spilled);
                if spilled > 0 {
                    self.say([Op::SendSpilled { connection }]);
                }
            }
        }
        read
    }

    /// Reads until `left` bytes of the echo have come, with turns of the kernel in between.
    pub(crate) fn read_all(&mut self, peer: PeerId, mut left: usize) {
        let began = Instant::now();
        while left > 0 {
            left -= self.world.read(peer, left);
            assert!(began.elapsed() < TIMEOUT, "{left} bytes did not come");
            self.turn(0);
        }
    }

    /// The end that the peer sees.
    pub(crate) fn end(&mut self, peer: PeerId) -> End {
        let began = Instant::now();
        loop {
            self.turn(0);
            match self.world.end(peer) {
                End::Open => assert!(began.elapsed() < TIMEOUT, "the peer sees no end"),
                end => return end,
            }
        }
    }
}
