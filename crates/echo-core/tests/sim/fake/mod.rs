//! A kernel made of counters. It does everything that the real one may do, as its source of
//! decisions determines.
//!
//! Implements `Kernel` with virtual time. Deterministic: every random decision is drawn from
//! [`Choice`]. It holds real bytes in real buffers and panics when an operation violates the
//! contract of `echo_core::op` in a way that a kernel can detect; `audit` detects the rest. It must
//! never know how the core decides.

pub(crate) mod budget;
pub(crate) mod choice;
pub(crate) mod datagrams;
pub(crate) mod limiter;
pub(crate) mod peer;
mod pool;
mod preface;
pub(crate) mod records;
mod relay;
pub(crate) mod trace;
mod turn;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;

use echo_core::op::{
    BufferId, BufferPlan, ConnectionError, ConnectionId, Event, Expectation, ListenerId, Op,
    ReceiveMode, SendError, Shutdown, SizeClass, Timestamp,
};

use budget::FakeBudget;
use choice::Choice;
use peer::{Peer, PeerId};
use pool::Pool;
use preface::ArmedPreface;
use records::Records;
use relay::ArmedRelay;
use trace::{Note, Trace};

/// The probability of each fault, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A receive takes less than is there.
    pub(crate) short_receive: u16,
    /// A send takes less than there is room for.
    pub(crate) short_send: u16,
    /// A try-send takes nothing although there is room.
    pub(crate) would_block: u16,
    /// An armed receive ends for no reason.
    pub(crate) stopped: u16,
    /// A multishot receive ends with data.
    pub(crate) disarmed: u16,
    /// A receive finds no small buffer although some are offered: another receive was faster.
    pub(crate) dry: u16,
    /// A receive finds no memory.
    pub(crate) receive_memory: u16,
    /// A send finds no memory.
    pub(crate) send_memory: u16,
    /// An accept fails, by any error.
    pub(crate) accept_error: u16,
    /// Something that could happen now happens later.
    pub(crate) late: u16,
    /// An event is reported later.
    pub(crate) late_event: u16,
    /// A cancel comes too late.
    pub(crate) cancel_loses: u16,
    /// The hint that more bytes wait is missing.
    pub(crate) no_hint: u16,
    /// A turn ends without an event.
    pub(crate) spurious_wakeup: u16,
    /// The clock jumps by seconds or minutes.
    pub(crate) time_jump: u16,
}

/// ENOMEM, see errno(3).
const NO_MEMORY: i32 = 12;

/// The settings of the fake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) listeners: u16,
    /// The listener whose connections have records, if any has.
    pub(crate) records: Option<ListenerId>,
    pub(crate) buffers: BufferPlan,
    /// The maximum number of connections with a file descriptor.
    pub(crate) files_max: usize,
    pub(crate) faults: Faults,
}

/// The fake.
pub(crate) struct FakeKernel {
    pub(crate) choice: Choice,
    pub(crate) settings: Settings,
    pub(crate) trace: Trace,
    pub(crate) peers: Vec<Peer>,
    /// The last turn had nothing to do, nothing to wait for and no deadline: only a peer can end
    /// this sleep.
    pub(crate) asleep: bool,
    /// How many processes there have been before this one. Connection ids are unique within one
    /// process.
    pub(crate) era: u32,
    /// A planted bug of the kernel.
    pub(crate) breaks_records: Option<records::Breach>,
    /// The next action of a peer, which ends a turn that waits.
    pub(crate) peers_act_at: Option<u64>,
    /// Whether accepted connections are reported with the address of their peer.
    reports_peers: bool,
    now: u64,
    pool: Pool,
    pub(crate) budget: Arc<FakeBudget>,
    /// Peers that connected and wait to be accepted, one queue for each listener.
    backlogs: Vec<VecDeque<PeerId>>,
    /// The progress of the end of each listener.
    ends: Vec<ListenerEnd>,
    accepts: Vec<ArmedAccept>,
    sockets: Vec<Socket>,
    /// Events that are not reported yet, in order for each connection.
    untold: Vec<(ConnectionId, VecDeque<Event>)>,
    /// Connections whose only unreported event is a complete send for which nothing waits.
    unawaited: Vec<ConnectionId>,
}

/// The progress of the end of a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ListenerEnd {
    No,
    /// New connections are refused.
    HeldBack,
    /// The socket is closed.
    Closed,
}

struct ArmedAccept {
    listener: ListenerId,
    connection: ConnectionId,
    canceled: bool,
    /// It has been tried once: faults at the time of arming have been decided.
    tried: bool,
}

struct Socket {
    connection: ConnectionId,
    peer: PeerId,
    receive: Option<ArmedReceive>,
    /// A poll for bytes.
    poll: Option<ArmedPoll>,
    relay: Option<ArmedRelay>,
    /// A read of a header.
    preface: Option<ArmedPreface>,
    /// A send that waits for room.
    sending: Option<WaitingSend>,
    /// That send has been canceled.
    send_canceled: bool,
    spilled: VecDeque<u8>,
    /// Their offset in their first block of memory.
    spill_begin: usize,
    /// How many of them have been sent.
    spill_sent: usize,
    /// The error was reported: now it is an end for receives and a broken pipe for sends.
    dead: bool,
    write_shut: bool,
    read_shut: bool,
    /// When something last arrived from the peer.
    heard: u64,
}

/// A send that waits for room.
#[derive(Clone, Copy)]
enum WaitingSend {
    /// Of spilled bytes.
    Spilled,
    /// Of these bytes of a lent buffer.
    Held { buffer: BufferId, offset: u32, length: u32 },
}

/// Whether an event is told in vain of a connection that is gone by then.
pub(crate) fn concerns_the_living(event: &Event) -> bool {
    matches!(event, Event::ProbeEnded { .. } | Event::IdentifyFailed { .. })
}

/// How a connection is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Farewell {
    InOrder,
    Reset,
}

struct ArmedReceive {
    class: SizeClass,
    mode: ReceiveMode,
    canceled: bool,
    tried: bool,
}

impl ArmedReceive {
    /// Whether it is tried before readiness: with an empty pool it fails at once.
    fn is_eager(&self) -> bool {
        match self.mode {
            ReceiveMode::Now | ReceiveMode::Multishot => true,
            ReceiveMode::WhenReadable => false,
        }
    }
}

struct ArmedPoll {
    canceled: bool,
}

impl Socket {
    fn is_receiving(&self) -> bool {
        let polls = self.poll.is_some() || self.relay.is_some() || self.preface.is_some();
        self.receive.is_some() || polls
    }
}

impl FakeKernel {
    pub(crate) fn new(settings: Settings, budget: Arc<FakeBudget>, choice: Choice) -> Self {
        Self {
            choice,
            settings,
            budget,
            trace: Trace::default(),
            peers: Vec::new(),
            asleep: false,
            era: 0,
            breaks_records: None,
            peers_act_at: None,
            reports_peers: false,
            now: 1000,
            pool: Pool::new(settings.buffers),
            backlogs: (0..settings.listeners).map(|_| VecDeque::new()).collect(),
            ends: vec![ListenerEnd::No; usize::from(settings.listeners)],
            accepts: Vec::new(),
            sockets: Vec::new(),
            untold: Vec::new(),
            unawaited: Vec::new(),
        }
    }

    /// How many buffers are free, and how many there are.
    pub(crate) fn buffers_home_and_total(&self) -> (usize, usize) {
        self.pool.home_and_total()
    }

    /// How many bytes are spilled, over all connections.
    pub(crate) fn spilled_bytes(&self) -> usize {
        self.sockets.iter().map(|socket| socket.spilled.len()).sum()
    }

    /// A new process takes over: every connection that is still open gets its next id. The kernel
    /// must hold no operation of the old process any more.
    pub(crate) fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
        // The result of a probe or an identity only concerns the old process.
        self.untold.retain(|(_, events)| !events.iter().all(concerns_the_living));
        assert!(self.untold.is_empty(), "contract: not reported at a handover: {:?}", self.untold);
        assert!(self.accepts.is_empty(), "contract: an accept is armed at a handover");
        let (home, total) = self.pool.home_and_total();
        assert_eq!(home, total, "contract: a buffer is lent at a handover");
        self.era += 1;
        for socket in &mut self.sockets {
            let held = socket.is_receiving() || socket.sending.is_some();
            // The next process keeps them in its own memory.
            socket.spill_begin = 0;
            assert_eq!(socket.spill_sent, 0, "contract: bytes are handed over that were sent");
            assert!(!held, "contract: {:?} is handed over while in use", socket.connection);
            let next = renamed.iter().find(|(old, _)| *old == socket.connection);
            socket.connection = next.expect("contract: a connection was forgotten").1;
            let peer = &mut self.peers[socket.peer.0];
            peer.connection = Some(socket.connection);
            peer.named = Some((self.era, socket.connection));
        }
        let blocks = |socket: &Socket| self.budget.blocks_of(0, socket.spilled.len());
        self.budget.begin_with(self.sockets.iter().map(blocks).sum());
        self.trace.note(self.now, Note::World("a new process takes over"));
    }

    /// Time passes without a process that serves.
    pub(crate) fn pass_time(&mut self, milliseconds: u64) {
        self.now += milliseconds;
    }

    /// A new process creates its listeners again, or continues with those that were left open.
    pub(crate) fn reopen_listeners(&mut self) {
        self.ends.fill(ListenerEnd::No);
    }

    /// From now on `listener` refuses new connections, and those that wait there are to be
    /// accepted.
    pub(crate) fn end_listener(&mut self, listener: ListenerId) {
        self.ends[usize::from(listener.0)] = ListenerEnd::HeldBack;
        self.trace.note(self.now, Note::World("new connections are refused"));
    }

    /// Whether no peer waits at a listener that will not accept any more.
    pub(crate) fn is_nobody_forgotten(&self) -> bool {
        let mut all = self.ends.iter().zip(&self.backlogs);
        all.all(|(end, backlog)| *end == ListenerEnd::No || backlog.is_empty())
    }

    /// How many connections are open, and how many accepts are armed.
    pub(crate) fn connections_and_accepts(&self) -> (usize, usize) {
        (self.sockets.len(), self.accepts.len())
    }

    fn perform(&mut self, op: Op) {
        self.trace.note(self.now, Note::Op(op));
        match op {
            Op::Accept { listener, connection, backlog } => {
                self.arm_accept(listener, connection, backlog);
            }
            Op::AcceptWaiting { listener, connection } => {
                self.arm_accept(listener, connection, Expectation::Data);
                self.accept_waiting(listener, connection);
            }
            Op::CloseListener { listener } => self.close_listener(listener),
            Op::ReportPeers => self.reports_peers = true,
            Op::OmitPeers => self.reports_peers = false,
            Op::OfferBuffers { count } => self.pool.offer_up_to(usize::from(count)),
            Op::CancelAccept { connection } => {
                if let Some(accept) = self.accepts.iter_mut().find(|a| a.connection == connection) {
                    accept.canceled = true;
                }
            }
            Op::Receive { connection, class, mode } => {
                if class == SizeClass::Large {
                    assert!(mode != ReceiveMode::Multishot, "contract: a large buffer is one");
                    self.pool.reserve_large();
                }
                self.check_no_records(connection);
                let socket = self.socket(connection);
                assert!(!socket.is_receiving(), "contract: {connection:?} has two receives");
                socket.receive = Some(ArmedReceive { class, mode, canceled: false, tried: false });
            }
            Op::AwaitReadable { connection } => {
                self.check_no_records(connection);
                let socket = self.socket(connection);
                assert!(!socket.is_receiving(), "contract: {connection:?} has two receives");
                socket.poll = Some(ArmedPoll { canceled: false });
            }
            Op::Relay { connection, when, length_max } => {
                self.arm_relay(connection, when, Some(length_max));
            }
            Op::ReadPreface { connection, length_max } => self.arm_preface(connection, length_max),
            Op::Identify { connection, .. } => self.identify(connection),
            Op::Discard { connection, when } => self.arm_relay(connection, when, None),
            Op::CancelReceive { connection } => {
                if let Some(relay) = &mut self.socket(connection).relay {
                    relay.canceled = true;
                }
                if let Some(receive) = &mut self.socket(connection).receive {
                    receive.canceled = true;
                }
                if let Some(poll) = &mut self.socket(connection).poll {
                    poll.canceled = true;
                }
                if let Some(preface) = &mut self.socket(connection).preface {
                    preface.canceled = true;
                }
            }
            Op::Send { connection, buffer, length, needs_completion } => {
                self.try_send(connection, buffer, length, needs_completion);
            }
            Op::FlushSends => self.unawaited.clear(),
            Op::Spill { connection, buffer, offset, length } => {
                let bytes = self.pool.bytes(buffer, offset, length).to_vec();
                self.socket(connection).spilled.extend(bytes);
                let blocks = self.spill_blocks();
                let taken = self.budget.taken();
                assert!(blocks <= taken, "contract: {blocks} blocks are used, {taken} granted");
            }
            Op::ReleaseSpilled { connection, length } => self.release_spilled(connection, length),
            Op::SendSpilled { connection } => self.await_room(connection, WaitingSend::Spilled),
            Op::SendHeld { connection, buffer, offset, length } => {
                self.await_room(connection, WaitingSend::Held { buffer, offset, length });
            }
            Op::CancelSend { connection } => {
                let socket = self.socket(connection);
                socket.send_canceled = socket.sending.is_some();
            }
            Op::Recycle { buffer } => self.pool.recycle(buffer),
            Op::Shutdown { connection, how } => {
                let socket = self.socket(connection);
                socket.write_shut = true;
                socket.read_shut |= how == Shutdown::Both;
                let (peer, dead) = (socket.peer, socket.dead);
                self.peers[peer.0].server_finished |= !dead;
            }
            Op::Probe { connection, silent_s, .. } => {
                assert!(silent_s > 0, "contract: {connection:?} is probed while it has traffic");
                let now = self.now;
                let peer = self.socket(connection).peer;
                if !self.peers[peer.0].broken {
                    self.socket(connection).heard = now;
                }
            }
            Op::EndProbe { connection, .. } => {
                let heard = Timestamp(self.socket(connection).heard);
                self.tell(connection, Event::ProbeEnded { connection, heard });
            }
            Op::Close { connection } => self.close(connection, Farewell::InOrder),
            Op::Abort { connection } => self.close(connection, Farewell::Reset),
        }
    }

    fn arm_accept(&mut self, listener: ListenerId, connection: ConnectionId, backlog: Expectation) {
        assert!(listener.0 < self.settings.listeners, "contract: {listener:?} does not exist");
        let slot = connection.slot();
        let taken = self.sockets.iter().any(|socket| socket.connection.slot() == slot)
            || self.accepts.iter().any(|accept| accept.connection.slot() == slot);
        assert!(!taken, "contract: {connection:?} is accepted into a slot in use");
        let twice = self.accepts.iter().any(|accept| accept.listener == listener);
        assert!(!twice, "contract: {listener:?} has two accepts");
        // An accept that waits first is not tried before a connection waits.
        let tried = backlog == Expectation::Silence;
        self.accepts.push(ArmedAccept { listener, connection, canceled: false, tried });
    }

    /// Blocks of memory with spilled bytes.
    pub(crate) fn spill_blocks(&self) -> u64 {
        let blocks =
            |socket: &Socket| self.budget.blocks_of(socket.spill_begin, socket.spilled.len());
        self.sockets.iter().map(blocks).sum()
    }

    fn await_room(&mut self, connection: ConnectionId, send: WaitingSend) {
        let socket = self.socket(connection);
        assert!(socket.sending.is_none(), "contract: {connection:?} has two sends");
        assert!(socket.relay.is_none(), "contract: {connection:?} sends while it relays");
        assert_eq!(socket.spill_sent, 0, "contract: {connection:?} sends bytes again");
        let spilled = !socket.spilled.is_empty();
        let first = spilled == matches!(send, WaitingSend::Spilled);
        assert!(first, "contract: {connection:?} has {} spilled bytes", socket.spilled.len());
        socket.sending = Some(send);
    }

    fn close_listener(&mut self, listener: ListenerId) {
        let index = usize::from(listener.0);
        assert!(self.ends[index] != ListenerEnd::No, "contract: {listener:?} has not been ended");
        self.ends[index] = ListenerEnd::Closed;
        for peer in std::mem::take(&mut self.backlogs[index]) {
            self.peers[peer.0].server_reset = true;
            self.peers[peer.0].break_with(ConnectionError::Reset, true);
        }
    }

    fn try_send(
        &mut self,
        connection: ConnectionId,
        buffer: BufferId,
        length: u32,
        needs_completion: bool,
    ) {
        let faults = self.settings.faults;
        self.check_no_records(connection);
        let bytes = self.pool.bytes(buffer, 0, length).to_vec();
        let socket = self.socket(connection);
        let busy = socket.sending.is_some() || socket.relay.is_some();
        assert!(!busy, "contract: {connection:?} has two sends");
        assert!(socket.spilled.is_empty(), "contract: {connection:?} has spilled bytes");
        if self.choice.strikes(faults.send_memory) {
            return self
                .tell(connection, Event::SendFailed { connection, error: SendError::Memory });
        }
        if let Some(error) = self.send_error(connection) {
            let error = SendError::Failed(error);
            return self.tell(connection, Event::SendFailed { connection, error });
        }
        let length = self.fit(connection, bytes.len());
        let blocked = length == 0 || self.choice.strikes(faults.would_block);
        let length = if blocked { 0 } else { length };
        self.deliver_to_peer(connection, &bytes[..length]);
        self.tell(connection, Event::Sent { connection, length: length as u32 });
        if !needs_completion && length == bytes.len() {
            self.unawaited.push(connection);
        }
    }

    /// An empty socket takes the line whole, unless the peer has gone or there is no memory.
    fn identify(&mut self, connection: ConnectionId) {
        let socket = self.socket(connection);
        let (busy, peer) = (socket.is_receiving() || socket.sending.is_some(), socket.peer);
        let peer = &self.peers[peer.0];
        let fresh = !busy && peer.echoed == 0 && !peer.identified && !peer.server_finished;
        assert!(fresh, "contract: {connection:?} is told an identity after something else");
        let send_memory = self.settings.faults.send_memory;
        let error = if self.choice.strikes(send_memory) {
            Some(ConnectionError::Unexpected(NO_MEMORY))
        } else {
            self.send_error(connection)
        };
        if let Some(error) = error {
            return self.tell(connection, Event::IdentifyFailed { connection, error });
        }
        let peer = self.socket(connection).peer;
        self.peers[peer.0].identified = true;
        // A peer that has closed answers bytes with a reset.
        if self.peers[peer.0].closed {
            self.break_connection(peer, ConnectionError::Reset);
        }
    }

    fn close(&mut self, connection: ConnectionId, farewell: Farewell) {
        let socket = self.socket(connection);
        assert!(!socket.is_receiving(), "contract: {connection:?} is closed while receiving");
        assert!(socket.sending.is_none(), "contract: {connection:?} is closed while sending");
        let matters = |event: &Event| !concerns_the_living(event);
        let untold = self
            .untold
            .iter()
            .find(|(name, events)| *name == connection && events.iter().any(matters));
        assert!(untold.is_none(), "contract: {connection:?} is closed before {untold:?}");
        let index = self.position(connection);
        let socket = self.sockets.swap_remove(index);
        self.budget.give_back(self.budget.blocks_of(socket.spill_begin, socket.spilled.len()));
        let peer = &mut self.peers[socket.peer.0];
        peer.connection = None;
        if peer.broken {
            return;
        }
        // Closing with unread input resets the connection and destroys bytes in transit to the
        // peer.
        if peer.has_inbound() || farewell == Farewell::Reset {
            peer.server_reset = true;
            peer.echoed = peer.read;
            peer.taken = peer.written;
            peer.records.iter_mut().for_each(Records::forget_unread);
            peer.records.iter_mut().for_each(Records::forget_inbound);
        }
        peer.server_finished = true;
    }

    /// The open connection with this id.
    fn socket(&mut self, connection: ConnectionId) -> &mut Socket {
        let index = self.position(connection);
        &mut self.sockets[index]
    }

    fn position(&self, connection: ConnectionId) -> usize {
        let found = self.sockets.iter().position(|socket| socket.connection == connection);
        found.unwrap_or_else(|| panic!("contract: {connection:?} is not open"))
    }

    fn tell(&mut self, connection: ConnectionId, event: Event) {
        match self.untold.iter_mut().find(|(name, _)| *name == connection) {
            Some((_, events)) => events.push_back(event),
            None => self.untold.push((connection, VecDeque::from([event]))),
        }
    }

    /// The error of a send, if any. It is reported once.
    fn send_error(&mut self, connection: ConnectionId) -> Option<ConnectionError> {
        let index = self.position(connection);
        let socket = &mut self.sockets[index];
        if let Some(error) = self.peers[socket.peer.0].error.take() {
            socket.dead = true;
            return Some(error);
        }
        let broken = socket.dead || socket.write_shut;
        broken.then_some(ConnectionError::Reset)
    }

    /// How many of `length` bytes the socket takes now.
    fn fit(&mut self, connection: ConnectionId, length: usize) -> usize {
        let peer = self.socket(connection).peer;
        let length = length.min(self.peers[peer.0].room());
        if length > 1 && self.choice.strikes(self.settings.faults.short_send) {
            return 1 + self.choice.below(length - 1);
        }
        length
    }

    fn deliver_to_peer(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let peer = self.socket(connection).peer;
        let peers = self.peers.len();
        self.peers[peer.0].accept_echo(bytes, peers);
        // A peer that has closed answers bytes with a reset.
        if self.peers[peer.0].closed && !bytes.is_empty() {
            self.break_connection(peer, ConnectionError::Reset);
        }
    }

    /// Now, for callers without the trait `Kernel`.
    pub(crate) fn clock(&self) -> u64 {
        self.now
    }
}
