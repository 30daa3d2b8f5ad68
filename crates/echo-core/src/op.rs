//! The vocabulary between the core and the kernel: events come in, operations go out.
//!
//! Events are facts in the past tense, operations are imperatives. Neither knows a file descriptor,
//! a pointer or a byte of payload: a connection is a [`ConnectionId`], a piece of payload is a
//! [`BufferId`] and a length. [`Kernel`] is the one seam of the daemon: `uring::Driver` implements
//! it on a real ring, `tests/sim` on a fake that injects faults.
//!
//! One echo, as both sides see it:
//!
//! ```text
//! Event::Received { connection, buffer, length: 5, .. }
//!     -> Op::Send { connection, buffer, length: 5, .. }, Op::Receive { connection, .. }
//! Event::Sent { connection, length: 5 }
//!     -> Op::Recycle { buffer }
//! ```

use std::fmt;

pub use super::budget::Budget;
use super::stats::CloseReason;

/// Milliseconds on the kernel's monotonic clock since an arbitrary start. The core never reads a
/// clock: it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `milliseconds` later; stays at the end of time rather than wrap.
    #[must_use]
    pub fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Names one tenant of one connection slot. The generation changes with each tenant, so a late
/// completion can never reach the connection that took over the slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

impl ConnectionId {
    /// Generations count modulo 2^24: that is what `user_data` has room for.
    pub const GENERATION_MASK: u32 = 0x00ff_ffff;

    /// The tenant number `generation` (modulo 2^24) of `slot`.
    #[must_use]
    pub fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation: generation & Self::GENERATION_MASK }
    }

    /// The index of the slot, dense from 0.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.slot
    }

    /// Which tenant of the slot, below 2^24.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "c{}.{}", self.slot, self.generation)
    }
}

/// Names a listening socket: its position, dense from 0, in the list that the driver was built
/// with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);

/// The size of pooled buffer that a receive takes its room from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SizeClass {
    /// For quiet lines: a few KiB.
    Small,
    /// For bulk: a connection that fills small buffers one after another moves up to these.
    Large,
}

impl SizeClass {
    /// Both classes, smallest first.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// 0 for small, 1 for large: the index into tables with one entry a class.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Small => 0,
            Self::Large => 1,
        }
    }
}

/// Names one buffer of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId {
    /// Which pool.
    pub class: SizeClass,
    /// Position in that pool, dense from 0.
    pub index: u16,
}

/// Where a connection comes from. IPv4 addresses are never in their mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody asked; see [`Op::NameSources`].
    Untold,
    /// This machine, without an address: a Unix socket.
    Local,
    /// An IPv4 address.
    Ipv4([u8; 4]),
    /// An IPv6 address.
    Ipv6([u8; 16]),
}

/// How a receive is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// Ends with the first bytes.
    Once,
    /// Goes on until an event says that it ended. A driver may end it at any time, with or without
    /// data.
    Multishot,
}

/// What the core believes about the socket when it arms a receive; only a hint for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Bytes are probably waiting: try at once.
    Data,
    /// Probably nothing is there: wait for readiness first, so that no attempt is wasted and nobody
    /// jumps the queue.
    Silence,
}

/// What a relay waits for before it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing: bytes are probably there, and room for them.
    Now,
    /// Bytes of the peer, or its end.
    Readable,
    /// Room in the socket's send buffer: the peer is behind with reading.
    Writable,
}

/// Which direction of a connection is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Send FIN after everything sent so far; go on receiving.
    Write,
    /// Both: an armed receive and a waiting send end soon after.
    Both,
}

/// What the kernel is asked to do.
///
/// Those that are answered, and the closes, reach the kernel in the order given, except that a
/// receive may come later than what was asked for after it, though not than its cancel; those that
/// are done at once ([`Op::Spill`], [`Op::ReleaseSpilled`], [`Op::Recycle`], [`Op::Shutdown`]) may
/// overtake them. So nothing may be recycled or shut down for writing while a send of it is under
/// way.
///
/// A connection exists for the driver from [`Event::Accepted`] or [`Event::Imported`] to
/// [`Op::Close`] or [`Op::Abort`], or until it is given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Accept one connection from `listener` into the free slot that `connection` names. At most
    /// one accept per listener is armed. Answered once by [`Event::Accepted`] or
    /// [`Event::AcceptFailed`].
    Accept {
        /// Where from.
        listener: ListenerId,
        /// What the new connection is to be called.
        connection: ConnectionId,
    },
    /// From now on tell with [`Event::Accepted`] where a connection comes from. It costs a system
    /// call for each, so it is asked for only when it matters. Done at once; accepts that are armed
    /// already are told with it, or not.
    NameSources,
    /// The end of [`Op::NameSources`].
    OmitSources,
    /// Stop the accept that was armed for `connection`. It still answers, as canceled or with what
    /// it had.
    CancelAccept {
        /// The name given to the accept.
        connection: ConnectionId,
    },
    /// Accept one connection that waits at `listener`, and wait for none. Like [`Op::Accept`]
    /// otherwise; of the two at most one per listener is under way. Answered once, with the next
    /// turn, by [`Event::Accepted`] or [`Event::AcceptFailed`].
    AcceptWaiting {
        /// Where from.
        listener: ListenerId,
        /// What the new connection is to be called.
        connection: ConnectionId,
    },
    /// Nobody is accepted from `listener` any more. If the process made the socket nobody listens
    /// there from now on, and who waits is reset; else it stays as it is. Done at once, and never
    /// answered; other workers may say the same.
    CloseListener {
        /// Which.
        listener: ListenerId,
    },
    /// Receive into a pooled buffer that the kernel picks when bytes come. At most one receive per
    /// connection is armed. Answered by [`Event::Received`] and [`Event::ReceiveEnded`].
    Receive {
        /// Whose bytes.
        connection: ConnectionId,
        /// Which pool.
        class: SizeClass,
        /// One answer or many.
        mode: ReceiveMode,
        /// Whether bytes are likely to be there.
        expectation: Expectation,
    },
    /// Echo up to `length_max` bytes, and no more than a driver's own measure, without owning them:
    /// what the socket takes for sending is received, and the rest stays in its receive queue. So
    /// no byte needs memory of ours, however slowly the peer reads. It takes the place of a receive
    /// and of a send: neither is under way. Answered once by [`Event::Relayed`] or
    /// [`Event::ReceiveEnded`].
    Relay {
        /// Whose bytes.
        connection: ConnectionId,
        /// What to wait for first.
        when: When,
        /// How many bytes at most, at least 1.
        length_max: u32,
    },
    /// Receive and forget: as [`Op::Relay`], but nothing is sent.
    Discard {
        /// Whose bytes.
        connection: ConnectionId,
        /// What to wait for first.
        when: When,
    },
    /// Stop the armed receive or relay. Bytes it had already taken still arrive; then it answers
    /// that it ended.
    CancelReceive {
        /// Whose receive.
        connection: ConnectionId,
    },
    /// Try to send the first `length` bytes of `buffer` without waiting. At most one send (of
    /// either kind) per connection is in flight. Answered once by [`Event::Sent`] or
    /// [`Event::SendFailed`]; the buffer stays lent until recycled.
    ///
    /// If nothing waits for the answer, it is no reason for a turn to end: that all bytes were
    /// taken may be told as late as with the next thing that happens, or after [`Op::FlushSends`].
    Send {
        /// To whom.
        connection: ConnectionId,
        /// The lent buffer that holds the bytes.
        buffer: BufferId,
        /// How many bytes, at least 1.
        length: u32,
        /// Whether anything waits for the answer.
        needs_completion: bool,
    },
    /// The answers of all sends under way are waited for after all: tell them with the next turn.
    FlushSends,
    /// Send `length` bytes of `buffer`, from `offset` on, once there is room for some. Answered
    /// once by [`Event::Sent`] (any part of them) or [`Event::SendFailed`]; the buffer stays lent
    /// until recycled.
    SendHeld {
        /// To whom.
        connection: ConnectionId,
        /// The lent buffer that holds the bytes.
        buffer: BufferId,
        /// Where they begin in it.
        offset: u32,
        /// How many, at least 1.
        length: u32,
    },
    /// Copy `length` bytes of `buffer`, from `offset` on, to the end of the connection's own
    /// spilled bytes. Done at once; the buffer may be recycled next. The blocks of memory that
    /// they take were granted by the [`Budget`]; the driver gives each
    /// back when its bytes are forgotten.
    Spill {
        /// Whose bytes.
        connection: ConnectionId,
        /// The lent buffer that holds them.
        buffer: BufferId,
        /// Where they begin in it.
        offset: u32,
        /// How many, at least 1.
        length: u32,
    },
    /// Send from the front of the spilled bytes, waiting for room. Answered once by
    /// [`Event::SentSpilled`] (any part of them) or [`Event::SendFailed`].
    SendSpilled {
        /// To whom.
        connection: ConnectionId,
    },
    /// Forget the first `length` spilled bytes: all that were told as sent. Done at once; only
    /// from here on their memory may be given back, so that both sides agree at any time which
    /// bytes are in which block.
    ReleaseSpilled {
        /// Whose bytes.
        connection: ConnectionId,
        /// How many.
        length: u32,
    },
    /// Stop the send of spilled or held bytes. It still answers, as stopped or with what it had
    /// sent.
    CancelSend {
        /// Whose send.
        connection: ConnectionId,
    },
    /// Give a lent buffer back to the pool.
    Recycle {
        /// The buffer; nothing in the kernel may still use it.
        buffer: BufferId,
    },
    /// Shut down one direction or both, at once. Never answered.
    Shutdown {
        /// Whose.
        connection: ConnectionId,
        /// Which directions.
        how: Shutdown,
    },
    /// Ask the peer whether it is still there, once; one of this machine is. Done at once, and
    /// ended by [`Op::EndProbe`], unless the connection is closed or given away before. `silent_s`
    /// are seconds of silence at least, and at least 1; `again` if the last probe was not answered.
    #[allow(missing_docs, reason = "said above")]
    Probe { connection: ConnectionId, silent_s: u16, again: bool },
    /// Say what became of the probe, and ask no more. Answered once by [`Event::ProbeEnded`], with
    /// the next turn, even if the connection has been closed by then. A receive that has not
    /// noticed that bytes are there is ended, as a driver may.
    #[allow(missing_docs, reason = "said above")]
    EndProbe { connection: ConnectionId, again: bool },
    /// Close the connection in order (FIN) and forget its spilled bytes. The kernel must hold no
    /// receive and no send of it any more. Never answered; the slot is free at once.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// As [`Op::Close`], but reset the connection (RST), so that the kernel frees what it still had
    /// to send at once.
    Abort {
        /// Which.
        connection: ConnectionId,
    },
}

/// Why an accept brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AcceptError {
    /// It was canceled on request.
    Canceled,
    /// The peer was gone before it was accepted (ECONNABORTED and other network errors, accept(2)):
    /// try again.
    Aborted,
    /// No file descriptor is free in the process (EMFILE). The connection stays in the backlog.
    ProcessFiles,
    /// No file descriptor is free in the system (ENFILE). The connection stays in the backlog.
    SystemFiles,
    /// No memory (ENOMEM, ENOBUFS). The connection stays in the backlog.
    Memory,
    /// Nobody waits, and nobody will: the answer to an accept from a listener that ends, see
    /// [`Event::ListenerEnding`].
    Nobody,
    /// An error nobody expects here, by its errno; the backlog is as it was.
    Unexpected(i32),
}

/// Why a receive ended without bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer has sent its FIN: there will be no more bytes.
    EndOfStream,
    /// The pool offered no buffer (ENOBUFS). Nothing was taken from the socket, not even its end.
    /// Some may be at home all the same: a pool may offer only as many as it believes are needed,
    /// and more when it turns out to be wrong.
    NoBuffer,
    /// Canceled, or ended by the kernel for reasons of its own; nothing is lost, arm again if
    /// wanted.
    Stopped,
    /// The kernel was short of memory (ENOMEM): worth another try a little later.
    Memory,
    /// The connection is dead (ECONNRESET, ETIMEDOUT, …).
    Failed(ConnectionError),
}

/// Why a send failed without taking a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The kernel was short of memory (ENOMEM, ENOBUFS): worth another try a little later.
    Memory,
    /// It was canceled.
    Stopped,
    /// The connection is dead (ECONNRESET, EPIPE, ETIMEDOUT, …).
    Failed(ConnectionError),
}

/// How a connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The peer reset it, or is gone (ECONNRESET, EPIPE, ENOTCONN, ECONNABORTED).
    Reset,
    /// The network gave up on it (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, …).
    Unreachable,
    /// An error nobody expects here, by its errno.
    Unexpected(i32),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The worker starts: arm the listeners.
    Started,
    /// Answer to [`Op::Accept`]: the connection exists.
    Accepted {
        /// The name given to the accept.
        connection: ConnectionId,
        /// Where it comes from, if that was asked for.
        source: Source,
    },
    /// Answer to [`Op::Accept`]: there is no connection, and its name is free again.
    AcceptFailed {
        /// The name given to the accept.
        connection: ConnectionId,
        /// Why.
        error: AcceptError,
    },
    /// Bytes came. The buffer is lent to the core until [`Op::Recycle`].
    Received {
        /// From whom.
        connection: ConnectionId,
        /// Where they are.
        buffer: BufferId,
        /// How many, at least 1.
        length: u32,
        /// Whether the receive is still armed.
        armed: bool,
        /// Whether the socket is known to hold more.
        more: bool,
    },
    /// Answer to [`Op::Relay`] and [`Op::Discard`]: `length` bytes were taken from the socket, and
    /// echoed or forgotten.
    Relayed {
        /// Whose bytes.
        connection: ConnectionId,
        /// How many bytes, at most what was asked; 0 if there was nothing to take or no room.
        length: u32,
        /// What the next one should wait for.
        next: When,
    },
    /// The receive or relay ended without bytes; it is no longer armed.
    ReceiveEnded {
        /// Whose.
        connection: ConnectionId,
        /// Why.
        reason: ReceiveEnd,
    },
    /// Answer to [`Op::Send`] and [`Op::SendHeld`]: the socket took the first `length` bytes; 0 if
    /// it had no room at all.
    Sent {
        /// To whom.
        connection: ConnectionId,
        /// How many bytes, at most what was asked.
        length: u32,
    },
    /// Answer to [`Op::SendSpilled`]: the socket took `length` spilled bytes.
    SentSpilled {
        /// To whom.
        connection: ConnectionId,
        /// How many bytes, at least 1, at most what is spilled.
        length: u32,
    },
    /// Answer to [`Op::Send`], [`Op::SendHeld`] or [`Op::SendSpilled`]: not a byte was taken.
    SendFailed {
        /// To whom.
        connection: ConnectionId,
        /// Why.
        error: SendError,
    },
    /// Answer to [`Op::EndProbe`].
    ProbeEnded {
        /// Whose peer.
        connection: ConnectionId,
        /// When anything last came from it, were it an acknowledgement.
        heard: Timestamp,
    },
    /// The moment named by `Server::deadline` has come (or some other moment: it never harms).
    TimePassed,
    /// Nobody new comes to `listener` any more, and nobody will accept after us who waits there:
    /// accept all of them, whatever else begins or has begun, and close it. Told again it means
    /// that some may have come nevertheless.
    ListenerEnding {
        /// Which.
        listener: ListenerId,
    },
    /// Stop accepting, go on echoing, and at `deadline` end what is still open.
    DrainStarted {
        /// The deadline.
        deadline: Timestamp,
    },
    /// Stop accepting, receiving and sending, so that every connection becomes quiescent and can be
    /// handed to the next process. What does not become quiescent until `deadline` is ended.
    HandOverStarted {
        /// The deadline.
        deadline: Timestamp,
    },
    /// A connection of the process before us is here, or one that could not be handed over is back,
    /// in a slot that `Server::reserve_slot` gave: the driver has its socket and its unsent bytes.
    Imported {
        /// What it is called from now on.
        connection: ConnectionId,
        /// Where it came from.
        source: Source,
        /// Where it stood.
        transfer: TransferState,
    },
}

/// What a connection quiescent hands on, besides its socket and its unsent bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferState {
    /// The listener that it came from.
    pub listener: ListenerId,
    /// How far its life has come.
    pub phase: TransferPhase,
    /// Bytes that were received and not sent yet; they are spilled.
    pub unsent: u32,
    /// For how many milliseconds no byte has moved: its timers go on from there.
    pub quiet_ms: u64,
    /// For how many milliseconds it has been open.
    pub age_ms: u64,
    /// What counts towards its byte limit so far.
    pub received: u64,
}

impl TransferState {
    /// The same after so many milliseconds in which nobody served it.
    #[must_use]
    pub fn after(self, milliseconds: u64) -> Self {
        let quiet_ms = self.quiet_ms.saturating_add(milliseconds);
        let age_ms = self.age_ms.saturating_add(milliseconds);
        Self { quiet_ms, age_ms, ..self }
    }
}

/// How far the life of a connection has come when it is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferPhase {
    /// It receives and echoes.
    Open,
    /// The peer has sent its FIN: what is unsent is its last word.
    Finishing,
    /// We are ending it for this reason, with a FIN behind the unsent bytes.
    Flushing(CloseReason),
    /// We have sent FIN for this reason, and wait for the peer's.
    Lingering(CloseReason),
}

/// The one seam: what carries out operations and tells what happened.
pub trait Kernel {
    /// What [`Kernel::turn`] may die of.
    type Error: fmt::Debug;

    /// Now.
    fn now(&self) -> Timestamp;

    /// The same reading of the clock in microseconds, as far as the clock can tell them.
    fn now_us(&self) -> u64 {
        self.now().0 * 1_000
    }

    /// How many turns found the queue of completions overflowed, if there is one that can.
    fn overflows(&self) -> u64 {
        0
    }

    /// Where an open connection comes from, as far as that can still be told. For those that came
    /// before anybody asked by [`Op::NameSources`]; it costs a system call.
    fn source_of(&self, connection: ConnectionId) -> Source;

    /// Takes all of `ops`, in order, and leaves it empty. They reach the kernel at the next turn at
    /// the latest; a receive, at the next turn that waits.
    fn submit(&mut self, ops: &mut Vec<Op>);

    /// Hands everything submitted to the kernel, waits until something happened, `deadline` has
    /// passed or somebody else woke the worker, and appends what happened to `events` in the order
    /// in which it happened to each connection.
    ///
    /// # Errors
    /// Only when the ring itself is broken; what befalls a connection is an event.
    fn turn(
        &mut self,
        deadline: Option<Timestamp>,
        events: &mut Vec<Event>,
    ) -> Result<(), Self::Error>;
}
