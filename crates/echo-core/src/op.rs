//! The vocabulary between the core and the kernel: events come in, operations go out.
//!
//! Events are facts in the past tense, operations are imperatives. Neither knows a file descriptor,
//! a pointer or a byte of payload: a connection is a [`ConnectionId`], a piece of payload is a
//! [`BufferId`] and a length. [`Kernel`](crate::kernel::Kernel) is the one seam of the daemon:
//! `echo_ring::Driver` implements it on a real ring, `tests/sim` on a fake that injects faults.
//!
//! One echo, as both sides see it:
//!
//! ```text
//! Event::Received { connection, buffer, length: 5, .. }
//!     -> Op::Send { connection, buffer, length: 5, .. }, Op::Receive { connection, .. }
//! Event::Sent { connection, length: 5 }
//!     -> Op::Recycle { buffer }
//! ```

pub use crate::budget::Budget;
pub use crate::buffer_pool::{BufferClass, BufferPlan};
pub use crate::id::{BufferId, ConnectionId, ListenerId, SizeClass, Timestamp};
pub use crate::peer::PeerAddr;
pub use crate::reason::{AcceptError, CloseReason, ConnectionError, ReceiveEnd, SendError};

/// When a receive is tried, and how often it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// At once, and once: bytes are probably waiting.
    Now,
    /// As soon as the socket is readable, and once.
    WhenReadable,
    /// As often as bytes come, until an event says that it ended. A driver may end it at any time,
    /// with or without data. Small buffers only.
    Multishot,
}

/// What a socket probably holds for the next receive, or the backlog of a listener for the next
/// accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Bytes, or a connection: it is worth a try at once.
    Data,
    /// Nothing: the operation waits for readiness first, so that no attempt is wasted.
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
/// Those that are answered, and the closes, reach the kernel in the order given; those that are
/// done at once ([`Op::Spill`], [`Op::ReleaseSpilled`], [`Op::Recycle`], [`Op::Shutdown`]) may
/// overtake them. So nothing may be recycled or shut down for writing while a send of it is under
/// way.
///
/// A connection exists for the driver from [`Event::Accepted`], or from its import, to
/// [`Op::Close`] or [`Op::Abort`], or until it is exported.
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
        /// [`Expectation::Silence`] if the backlog is probably empty: the accept waits for a
        /// connection first, where the kernel can do that (Linux 6.10).
        backlog: Expectation,
    },
    /// From now on report the address of the peer with [`Event::Accepted`]. It costs a system call
    /// for each connection, so it is asked for only when it matters. Done at once; accepts that are
    /// armed already report it, or not.
    ReportPeers,
    /// The end of [`Op::ReportPeers`].
    OmitPeers,
    /// From now on offer so many small buffers to the kernel for receives, as far as they are
    /// free: at the beginning of each turn the offer is filled up. Done at once. Until it is first
    /// said, all are offered.
    OfferBuffers {
        /// How many, at least 1.
        count: u16,
    },
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
    /// No connection is accepted from `listener` any more. If the process made the socket, it stops
    /// listening, and connections that wait there are reset; else it stays as it is. Done at once,
    /// never answered; other workers may say the same.
    CloseListener {
        /// Which.
        listener: ListenerId,
    },
    /// Receive into a pooled buffer. At most one receive, relay or poll per connection is armed.
    /// Answered by [`Event::Received`] and [`Event::ReceiveEnded`].
    ///
    /// A small buffer is picked by the kernel when bytes come. A large one is taken from the pool
    /// right away: the core asks for no more of them than are free.
    Receive {
        /// Whose bytes.
        connection: ConnectionId,
        /// Which pool.
        class: SizeClass,
        /// When, and how often.
        mode: ReceiveMode,
    },
    /// As soon as the socket is readable, look for the header (PROXY protocol) at the beginning of
    /// the stream, which may have `length_max` bytes in all, and take what is there of it; bytes
    /// behind it stay in the receive queue. Takes the place of a receive. Answered once by
    /// [`Event::PrefacePartial`], [`Event::PrefaceComplete`], [`Event::PrefaceInvalid`] or
    /// [`Event::ReceiveEnded`]. After a complete or invalid header it is not asked for again.
    ReadPreface {
        /// Whose header.
        connection: ConnectionId,
        /// Bytes of a header, at most; at least 1.
        length_max: u16,
    },
    /// Wait for bytes, or for the end of the stream, without a buffer. Takes the place of a
    /// receive. Answered once by [`Event::Readable`] or [`Event::ReceiveEnded`].
    AwaitReadable {
        /// Whose bytes.
        connection: ConnectionId,
    },
    /// Echo up to `length_max` bytes, and no more than a driver's own measure, without owning them:
    /// what the socket takes for sending is received, and the rest stays in its receive queue. So
    /// no byte needs memory of ours, however slowly the peer reads. It takes the place of a receive
    /// and of a send: neither is under way. Answered once by [`Event::Relayed`] or
    /// [`Event::ReceiveEnded`].
    ///
    /// A connection with records is echoed by relays alone. Each message is echoed as one, the last
    /// one also if it is longer than what is left of `length_max`.
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
    /// Stop the armed receive, relay or poll. Bytes it had already taken still arrive; then it
    /// answers that it ended.
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

impl Op {
    /// Whether it is sure to be answered with the next turn, so that this turn does not wait.
    #[must_use]
    pub fn is_answered_at_once(&self) -> bool {
        match self {
            Self::Send { needs_completion: true, .. }
            | Self::Relay { when: When::Now, .. }
            | Self::Discard { when: When::Now, .. }
            | Self::AcceptWaiting { .. }
            | Self::EndProbe { .. } => true,
            Self::Accept { .. }
            | Self::ReportPeers
            | Self::OmitPeers
            | Self::OfferBuffers { .. }
            | Self::CancelAccept { .. }
            | Self::CloseListener { .. }
            | Self::Receive { .. }
            | Self::ReadPreface { .. }
            | Self::AwaitReadable { .. }
            | Self::Relay { .. }
            | Self::Discard { .. }
            | Self::CancelReceive { .. }
            | Self::Send { .. }
            | Self::FlushSends
            | Self::SendHeld { .. }
            | Self::Spill { .. }
            | Self::SendSpilled { .. }
            | Self::ReleaseSpilled { .. }
            | Self::CancelSend { .. }
            | Self::Recycle { .. }
            | Self::Shutdown { .. }
            | Self::Probe { .. }
            | Self::Close { .. }
            | Self::Abort { .. } => false,
        }
    }
}

/// Whose address a header (PROXY protocol) gives to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerOrigin {
    /// The one that the header announces: that of the client of a proxy.
    Announced,
    /// The one of the socket, since the header announces none: the connection is the proxy's own
    /// (`LOCAL`), or it does not know more (`UNKNOWN`, `UNSPEC`).
    Socket,
}

/// How far the header of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefaceProgress {
    /// No byte has come.
    Awaited,
    /// Some of it has come.
    Begun,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Answer to [`Op::Accept`]: the connection exists.
    Accepted {
        /// The name given to the accept.
        connection: ConnectionId,
        /// Where it comes from, if that was asked for.
        peer: PeerAddr,
        /// [`Expectation::Data`] if the backlog is known to hold another connection.
        backlog: Expectation,
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
        /// [`Expectation::Data`] if the socket is known to hold more.
        rest: Expectation,
    },
    /// Answer to [`Op::ReadPreface`]: the header is not complete; what came of it was taken.
    PrefacePartial {
        /// Whose.
        connection: ConnectionId,
        /// Bytes of the header so far, in all; at most what was asked.
        received: u16,
    },
    /// Answer to [`Op::ReadPreface`]: the header is complete, and was taken.
    PrefaceComplete {
        /// Whose.
        connection: ConnectionId,
        /// From here on, the address of the peer.
        peer: PeerAddr,
        /// Whose address that is.
        origin: PeerOrigin,
    },
    /// Answer to [`Op::ReadPreface`]: what came is no header.
    PrefaceInvalid {
        /// Whose.
        connection: ConnectionId,
    },
    /// Answer to [`Op::AwaitReadable`]: bytes are there, or the end of the stream.
    Readable {
        /// Whose.
        connection: ConnectionId,
    },
    /// Answer to [`Op::Relay`] and [`Op::Discard`]: `length` bytes were taken from the socket, and
    /// echoed or forgotten.
    Relayed {
        /// Whose bytes.
        connection: ConnectionId,
        /// How many bytes, at most what was asked; 0 if there was nothing to take or no room.
        length: u32,
        /// How many chunks these are: of a stream one if there are bytes, else none; of a
        /// connection with records the number of messages, of which each may be empty.
        chunks: u32,
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
}

/// What a quiescent connection hands on, besides its socket and its unsent bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferState {
    /// The listener that it came from.
    pub listener: ListenerId,
    /// Whether it has records, see [`Parameters::records`](crate::parameters::Parameters::records).
    pub records: bool,
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
    /// The same after so many milliseconds in which no process served it.
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
    /// Its header (PROXY protocol) is being read.
    Preface(PrefaceProgress),
    /// It receives and echoes.
    Open,
    /// The peer has sent its FIN: what is unsent is the last that it gets.
    HalfClosed,
    /// We are ending it for this reason, with a FIN behind the unsent bytes.
    Flushing(CloseReason),
    /// We have sent FIN for this reason, and wait for the peer's.
    Lingering(CloseReason),
}
