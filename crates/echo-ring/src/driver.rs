//! Translates operations to submission entries and completions to events: [`Kernel`] on a real
//! ring.

mod datagrams;
mod handover;
mod identity;
mod keepalive;
mod messages;
mod preface;
mod receive;
mod relay;
mod send;
#[cfg(test)]
mod tenants;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::net;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{cqueue, types};
use nix::sys::eventfd::EventFd;
use socket2::SockRef;

use self::datagrams::Datagrams;
pub use self::handover::ConnectionParts;
use self::preface::Preface;
use self::receive::{Rdhup, Receiving};
use self::relay::Scratch;
use self::send::{OnWritable, Room, SkipSuccessSend};
use super::buffers::{BufferRing, BufferStack, Buffers, SMALL_GROUP};
use super::datagram_socket::DatagramSocket;
use super::listening::ListeningSocket;
use super::peer;
use super::prepared::PreparedRing;
use super::ring::{self, COMPLETIONS, Ring};
use super::spill::{SpillMemory, SpillQueue};
use super::token::Token;
use super::transport::Transport;
use super::unusable::Unusable;
use echo_core::datagram::op as datagram;
use echo_core::kernel::{Kernel, Wake};
use echo_core::op::{
    BufferPlan, ConnectionId, Event, Expectation, ListenerId, Op, PeerAddr, Shutdown, SizeClass,
};

/// A multishot receive ends after this many bytes (in whole buffers). That bounds how much of the
/// pool one connection can take before it is handled again: 16 buffers, which is what its queue may
/// hold. With 64 KiB, messages of 16 KiB cost 1 % more, because the receive is armed more often.
const MULTISHOT_BYTES_MAX: u32 = 256 << 10;

const OPEN: &str = "invariant: the core names open connections only";

/// The settings of a driver.
pub struct Settings {
    /// The listening sockets, in the order of their [`ListenerId`]. Shared by all workers.
    pub listeners: Arc<[ListeningSocket]>,
    /// The datagram sockets of this worker, in the order of their
    /// [`SocketId`](echo_core::datagram::op::SocketId).
    pub datagram_sockets: Vec<Arc<DatagramSocket>>,
    /// Becomes readable to start a turn of the worker; the driver empties it.
    pub wake: Arc<EventFd>,
    /// The pooled buffers. Small ones: a power of two up to 32768.
    pub buffers: BufferPlan,
    /// The number of connections for which tables have room before they must grow.
    pub connections_max: u32,
    /// The memory for spilled bytes of all workers.
    pub memory: Arc<SpillMemory>,
    /// How long to look for work before sleeping.
    pub busy_poll: Option<Duration>,
    /// The moment that is [`echo_core::op::Timestamp`] 0.
    pub origin: Instant,
    /// The number of this worker, as identities tell it.
    pub worker: usize,
}

/// The ring is unusable: io_uring_enter(2) failed with an error that no retry remedies.
#[derive(Debug)]
pub struct DriverError(io::Error);

impl fmt::Display for DriverError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "io_uring_enter(2) fails: {}", self.0)
    }
}

/// The socket of a connection. 8 bytes.
struct Socket {
    fd: OwnedFd,
    /// `No` exactly while the kernel has no receive and no poll for bytes.
    receiving: Receiving,
    /// `Watched` or `Canceled` exactly while the kernel has a poll for the end of the stream.
    rdhup: Rdhup,
    /// `Unwatched` exactly while the kernel has no poll for room.
    room: Room,
}

const _: () = assert!(size_of::<Option<Socket>>() == 8);

impl Socket {
    fn new(fd: OwnedFd, transport: Transport) -> Self {
        Self { fd, receiving: Receiving::No, rdhup: Rdhup::of(transport), room: Room::Unwatched }
    }

    fn transport(&self) -> Transport {
        match self.rdhup {
            Rdhup::Unneeded => Transport::Tcp,
            Rdhup::Messages => Transport::UnixSeqpacket,
            Rdhup::Unwatched | Rdhup::Watched | Rdhup::Canceled | Rdhup::Seen => Transport::Unix,
        }
    }
}

/// The memory that receives write to and sends read from.
struct Pools {
    small: BufferRing,
    large: BufferStack,
    /// Present in every worker of a process with a UDP listener, also in workers without a socket.
    datagrams: Option<Box<Datagrams>>,
}

impl Pools {
    #[inline]
    fn of(&self, class: SizeClass) -> &Buffers {
        match class {
            SizeClass::Small => &self.small.buffers,
            SizeClass::Large => &self.large.buffers,
        }
    }

    #[inline]
    fn of_mut(&mut self, class: SizeClass) -> &mut Buffers {
        match class {
            SizeClass::Small => &mut self.small.buffers,
            SizeClass::Large => &mut self.large.buffers,
        }
    }
}

/// One worker's ring, with the sockets and the memory its operations use.
pub struct Driver {
    // Dropped first: the kernel must release the memory before it is freed. See also `Drop`.
    ring: ManuallyDrop<Ring>,
    pools: ManuallyDrop<Pools>,
    /// The spilled bytes of a slot: present exactly when it has some. No operation points into
    /// them.
    spills: HashMap<u32, SpillQueue>,
    memory: Arc<SpillMemory>,
    /// What a slot will send once there is room: present exactly while it waits for room.
    on_writable: HashMap<u32, OnWritable>,
    /// How many bytes a slot may relay: present exactly while it waits for bytes to relay.
    relay_limits: HashMap<u32, u32>,
    /// The header of a slot: present exactly while it is being read, and, if it has announced an
    /// address, until the end of the connection.
    prefaces: HashMap<u32, Preface>,
    /// Memory for relayed bytes and headers while they are examined.
    scratch: Scratch,
    /// The socket of a slot: present exactly from accept or import to close or release.
    sockets: Vec<Option<Socket>>,
    /// Polls of connections that are gone, by `user_data`: present exactly from their cancel to
    /// their last completion. The slots may hold other connections by then.
    left_polls: HashSet<u64>,
    listeners: Arc<[ListeningSocket]>,
    /// The accept of each listener: present exactly while the kernel has it.
    accepting: Vec<Option<ConnectionId>>,
    /// True exactly when the peer of each accepted connection is to be reported.
    reports_peers: bool,
    wake: Arc<EventFd>,
    /// How many receives and sends the kernel has. They point into our memory.
    in_flight: u64,
    /// Turns that found the completion queue overflowed.
    overflows: u64,
    /// Memory for the completions of a turn, between the ring and [`Driver::take`].
    reaped: Box<[MaybeUninit<cqueue::Entry>]>,
    /// Events of operations that were done at once, to be reported with the next turn.
    answers: Vec<Event>,
    /// Skip-success sends, in order: present exactly from their submission to the turn that reports
    /// them.
    skip_success_sends: Vec<SkipSuccessSend>,
    /// True exactly when the next turn must not wait: [`Op::FlushSends`] asked for their answers,
    /// or the last turn was not settled.
    flushes: bool,
    busy_poll: Option<Duration>,
    origin: Instant,
    worker: usize,
}

impl Driver {
    /// A driver for the calling thread, which is the only one that may use it.
    ///
    /// # Errors
    /// When io_uring cannot be used, and why.
    pub fn new(settings: Settings) -> Result<Self, Unusable> {
        let with_datagrams = !settings.datagram_sockets.is_empty();
        let prepared = PreparedRing::one(settings.buffers.small, with_datagrams)?;
        Self::with_ring(prepared, settings)
    }

    /// A driver for the calling thread, on a ring that was created elsewhere with the number of
    /// buffers in `settings`, and with buffers for datagrams if `settings` has datagram sockets.
    ///
    /// # Errors
    /// When io_uring cannot be used, and why.
    pub fn with_ring(prepared: PreparedRing, settings: Settings) -> Result<Self, Unusable> {
        let PreparedRing { mut ring, small, datagrams } = prepared;
        let no_memory = |error| Unusable::Resources { call: "mmap(2)", error };
        let large = BufferStack::new(settings.buffers.large).map_err(no_memory)?;
        ring.seal(datagrams.is_some())?;
        let sockets = settings.datagram_sockets;
        assert!(sockets.is_empty() || datagrams.is_some(), "the ring has no buffers for datagrams");
        let datagrams = datagrams.map(|pool| Box::new(Datagrams::new(sockets, pool)));
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            pools: ManuallyDrop::new(Pools { small, large, datagrams }),
            answers: Vec::new(),
            skip_success_sends: Vec::new(),
            flushes: false,
            spills: HashMap::new(),
            memory: settings.memory,
            on_writable: HashMap::new(),
            relay_limits: HashMap::new(),
            prefaces: HashMap::new(),
            scratch: Scratch::new().map_err(no_memory)?,
            sockets: Vec::with_capacity(settings.connections_max as usize),
            left_polls: HashSet::new(),
            accepting: vec![None; settings.listeners.len()],
            reports_peers: false,
            listeners: settings.listeners,
            wake: settings.wake,
            in_flight: 0,
            overflows: 0,
            reaped: Box::new_uninit_slice(COMPLETIONS as usize),
            busy_poll: settings.busy_poll,
            origin: settings.origin,
            worker: settings.worker,
        })
    }

    fn install(&mut self, connection: ConnectionId, socket: Socket) {
        let slot = connection.slot() as usize;
        if slot >= self.sockets.len() {
            self.sockets.resize_with(slot + 1, || None);
        }
        let former = self.sockets[slot].replace(socket);
        assert!(former.is_none(), "{connection:?} is given a slot in use");
    }

    fn carry_out(&mut self, op: Op) {
        match op {
            Op::Accept { listener, connection, backlog } => {
                self.accept(listener, connection, backlog);
            }
            Op::AcceptWaiting { listener, connection } => {
                self.accept_waiting(listener, connection);
            }
            Op::CloseListener { listener } => self.listeners[usize::from(listener.0)].close(),
            Op::ReportPeers => self.reports_peers = true,
            Op::OmitPeers => self.reports_peers = false,
            Op::OfferBuffers { count } => self.pools.small.offer_up_to(count),
            Op::CancelAccept { connection } => self.ring.cancel(Token::Accept(connection)),
            Op::Receive { connection, class: SizeClass::Small, mode } => {
                self.receive_small(connection, mode);
            }
            Op::Receive { connection, class: SizeClass::Large, mode } => {
                self.receive_large(connection, mode);
            }
            Op::ReadPreface { connection, length_max } => {
                self.await_preface(connection, length_max);
            }
            Op::Identify { connection, listener } => self.identify(connection, listener),
            Op::AwaitReadable { connection } => {
                self.await_readable(connection, Receiving::Readable)
            }
            Op::Relay { connection, when, length_max } => {
                self.relay(connection, when, Some(length_max));
            }
            Op::Discard { connection, when } => self.relay(connection, when, None),
            Op::CancelReceive { connection } => self.cancel_receive(connection),
            Op::Send { connection, buffer, length, needs_completion } => {
                self.send(connection, buffer, length, needs_completion);
            }
            Op::FlushSends => self.flushes |= !self.skip_success_sends.is_empty(),
            Op::Spill { connection, buffer, offset, length } => {
                let bytes = self.pools.of(buffer.class).part(buffer.index, offset, length);
                let memory = &self.memory;
                let spill = self.spills.entry(connection.slot());
                spill.or_insert_with(|| SpillQueue::new(Arc::clone(memory))).push(bytes);
            }
            Op::ReleaseSpilled { connection, length } => self.release_spilled(connection, length),
            Op::SendSpilled { connection } => self.await_room(connection, OnWritable::SendSpilled),
            Op::SendHeld { connection, buffer, offset, length } => {
                self.await_room(connection, OnWritable::SendHeld { buffer, offset, length });
            }
            Op::CancelSend { connection } => self.cancel_send(connection),
            Op::Recycle { buffer } => self.pools.of_mut(buffer.class).recycle(buffer.index),
            Op::Shutdown { connection, how } => self.shutdown(connection, how),
            Op::Probe { connection, silent_s, again } => self.probe(connection, silent_s, again),
            Op::EndProbe { connection, again } => self.end_probe(connection, again),
            Op::Close { connection } => self.close(connection),
            Op::Abort { connection } => {
                // Closing with a linger time of 0 sends RST. It fails on no socket that can be
                // accepted.
                let _ = SockRef::from(&self.socket(connection).fd).set_linger(Some(Duration::ZERO));
                self.close(connection);
            }
        }
    }

    fn accept(&mut self, listener: ListenerId, connection: ConnectionId, backlog: Expectation) {
        let index = usize::from(listener.0);
        let former = self.accepting[index].replace(connection);
        assert!(former.is_none(), "{listener:?} is accepting already");
        self.ring.accept(self.listeners[index].socket.as_fd(), backlog, Token::Accept(connection));
    }

    fn accept_waiting(&mut self, listener: ListenerId, connection: ConnectionId) {
        let index = usize::from(listener.0);
        assert!(self.accepting[index].is_none(), "{listener:?} is accepting already");
        let event = match self.listeners[index].accept_waiting() {
            Ok(fd) => self.let_in(index, connection, fd, Expectation::Data),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let error = self.listeners[index].accept_error(errno);
                Event::AcceptFailed { connection, error }
            }
        };
        self.answers.push(event);
    }

    fn shutdown(&self, connection: ConnectionId, how: Shutdown) {
        let how = match how {
            Shutdown::Write => net::Shutdown::Write,
            Shutdown::Both => net::Shutdown::Both,
        };
        // It fails only if the connection is gone already, and then there is nothing left to shut
        // down.
        let _ = SockRef::from(&self.socket(connection).fd).shutdown(how);
    }

    fn close(&mut self, connection: ConnectionId) {
        let awaited = self.on_writable.get(&connection.slot());
        assert!(awaited.is_none(), "{connection:?} is closed while it waits for room");
        self.spills.remove(&connection.slot());
        let fd = self.take_socket(connection);
        self.ring.close(fd);
    }

    /// Takes the socket out of its slot. Its polls are canceled: each holds the file open, so the
    /// peer would never see the end of the stream.
    fn take_socket(&mut self, connection: ConnectionId) -> OwnedFd {
        let socket = self.sockets[connection.slot() as usize].take().expect(OPEN);
        self.prefaces.remove(&connection.slot());
        let rdhup = match socket.rdhup {
            Rdhup::Watched => Some(true),
            Rdhup::Canceled => Some(false),
            Rdhup::Unneeded | Rdhup::Messages | Rdhup::Unwatched | Rdhup::Seen => None,
        };
        let room = match socket.room {
            Room::Watched => Some(true),
            Room::Canceled => Some(false),
            Room::Unwatched => None,
        };
        let polls = [(Token::Rdhup(connection), rdhup), (Token::Writable(connection), room)];
        for (token, armed) in polls {
            if armed == Some(true) {
                self.ring.cancel(token);
            }
            if armed.is_some() {
                self.left_polls.insert(token.pack());
            }
        }
        socket.fd
    }

    /// Whether a completion belongs to a poll whose connection is gone, and is therefore ignored.
    fn is_left(&mut self, poll: Token, flags: u32) -> bool {
        if self.left_polls.is_empty() {
            return false;
        }
        if cqueue::more(flags) {
            self.left_polls.contains(&poll.pack())
        } else {
            self.left_polls.remove(&poll.pack())
        }
    }

    /// Whether there is time left until `wake`. If so, sets an alarm that ends the wait then.
    fn set_alarm(&mut self, wake: Wake) -> bool {
        let deadline = match wake {
            Wake::Now => return false,
            Wake::At(deadline) => deadline,
            Wake::Never => return true,
        };
        // One millisecond later, because the clock is truncated to milliseconds.
        let moment = self.origin + Duration::from_millis(deadline.0.saturating_add(1));
        self.ring.has_alarm_by(moment)
            || deadline > self.now() && {
                self.ring.set_alarm(moment);
                true
            }
    }

    /// Appends the event of a completion, if it has one. Events are written in place. Returning
    /// them by value reads with wide loads what narrow stores have just written, which stalls the
    /// processor (104 instead of 95 ns of our own code per echo).
    #[inline(always)]
    fn take(&mut self, token: Token, result: i32, flags: u32, events: &mut Vec<Event>) {
        match token {
            Token::Accept(connection) => events.push(self.accepted(connection, result, flags)),
            Token::Receive(connection, SizeClass::Small) => {
                self.received_small(connection, result, flags, events);
            }
            Token::Receive(connection, SizeClass::Large) => {
                self.received_large(connection, result, flags, events);
            }
            Token::Readable(connection) => self.readable(connection, result, events),
            poll @ (Token::Rdhup(_) | Token::Writable(_)) if self.is_left(poll, flags) => {}
            Token::Rdhup(connection) => self.on_rdhup(connection, result),
            Token::Send(connection) | Token::SkipSuccessSend(connection) => {
                self.sent(connection, result, events);
            }
            Token::Writable(connection) => self.writable(connection, result, flags, events),
            Token::Wake => self.ring.on_wake(&self.wake),
            Token::Alarm => self.ring.on_alarm(),
            Token::ReceiveDatagrams(socket) => self.received_datagram(socket, result, flags),
            Token::Reply(buffer) => self.reply_failed(buffer, result),
            Token::Unanswered => {}
            Token::Connect(connection) => unreachable!("{connection:?} connects"),
        }
    }

    fn accepted(&mut self, connection: ConnectionId, result: i32, flags: u32) -> Event {
        let listener = self.accepting.iter().position(|&armed| armed == Some(connection));
        let listener = listener.expect("invariant: an accept is armed until it is answered");
        self.accepting[listener] = None;
        if result < 0 {
            let error = self.listeners[listener].accept_error(-result);
            return Event::AcceptFailed { connection, error };
        }
        // SAFETY: the kernel has just opened this descriptor for this accept; it has no other
        // owner.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        let backlog = match cqueue::sock_nonempty(flags) {
            true => Expectation::Data,
            false => Expectation::Silence,
        };
        self.let_in(listener, connection, fd, backlog)
    }

    /// The event for a connection accepted from the listener at this index. `backlog` is whether
    /// the backlog probably holds more.
    fn let_in(
        &mut self,
        listener: usize,
        connection: ConnectionId,
        fd: OwnedFd,
        backlog: Expectation,
    ) -> Event {
        let listener = &self.listeners[listener];
        let peer = match self.reports_peers.then(|| peer::of(fd.as_fd(), listener.transport)) {
            None => PeerAddr::Unknown,
            Some(Ok(peer)) => peer,
            // The connection is gone already; its descriptor closes here.
            Some(Err(error)) => return Event::AcceptFailed { connection, error },
        };
        listener.equip(fd.as_fd());
        self.install(connection, Socket::new(fd, listener.transport));
        Event::Accepted { connection, peer, backlog }
    }

    fn socket(&self, connection: ConnectionId) -> &Socket {
        self.sockets[connection.slot() as usize].as_ref().expect(OPEN)
    }

    fn fd(&self, connection: ConnectionId) -> types::Fd {
        types::Fd(self.socket(connection).fd.as_raw_fd())
    }
}

impl Kernel for Driver {
    type Error = DriverError;

    fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    fn overflows(&self) -> u64 {
        self.overflows
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        if let Some(Preface::Announced(address)) = self.prefaces.get(&connection.slot()) {
            return peer::of_address(*address);
        }
        let socket = self.socket(connection);
        peer::of(socket.fd.as_fd(), socket.transport()).unwrap_or(PeerAddr::Unknown)
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        for op in ops.drain(..) {
            self.carry_out(op);
        }
    }

    fn take_datagrams(&mut self, events: &mut Vec<datagram::Event>) {
        self.move_datagrams(events);
    }

    fn submit_datagrams(&mut self, ops: &mut Vec<datagram::Op>) {
        for op in ops.drain(..) {
            self.carry_out_datagram(op);
        }
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), DriverError> {
        self.ring.arm_wake(&self.wake);
        let nothing_to_report = self.answers.is_empty() && !self.has_datagram_events();
        let may_wait = nothing_to_report && !self.flushes && self.set_alarm(wake);
        self.pools.small.fill_up();
        if let Some(datagrams) = &mut self.pools.datagrams {
            datagrams.fill_up();
        }
        let waited = match self.busy_poll {
            Some(spin) if may_wait => self.ring.submit_and_spin(spin),
            _ => self.ring.submit_and_wait(may_wait),
        };
        events.append(&mut self.answers);
        let mut reaped = std::mem::take(&mut self.reaped);
        let completions = self.ring.completions().fill(&mut reaped);
        let overflowed = self.ring.has_overflowed();
        self.overflows += u64::from(overflowed);
        // A turn is settled when the kernel has taken all entries and reported all completions.
        // What is left comes with one of the next turns, which do not wait.
        let settled = self.ring.is_handed_over() && !overflowed;
        self.flushes = !settled;
        let idle = completions.is_empty();
        self.forget_failed_sends(completions);
        if settled {
            self.answer_skip_success_sends(events);
        }
        for completion in &*completions {
            let token = Token::unpack(completion.user_data());
            self.take(token, completion.result(), completion.flags(), events);
        }
        self.reaped = reaped;
        if settled {
            self.answer_replies();
        }
        ring::outcome(waited, idle).map_err(DriverError)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: nothing uses the ring after this, and it is dropped once.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        if self.in_flight > 0 {
            // The kernel tears a ring down asynchronously, and may use the memory until then. The
            // memory is leaked: this happens only when a worker fails, at the end of the process.
            return;
        }
        // SAFETY: no receive and no send is in flight, so the kernel does not touch them; they are
        // dropped once.
        unsafe { ManuallyDrop::drop(&mut self.pools) };
    }
}
