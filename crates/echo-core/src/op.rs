//! The interface between the core and the kernel: events come in, operations go out.
//!
//! Events are facts in the past tense, operations are imperatives. Neither knows a file descriptor,
//! a pointer or a byte of payload: a connection is a [`ConnectionId`], a piece of payload is a
//! [`BufferId`] and a length. [`Kernel`](crate::kernel::Kernel) is the only interface to the
//! kernel: `echo_ring::Driver` implements it on a real ring, `tests/sim` on a fake that injects
//! faults.
//!
//! One echo:
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

/// When a receive is tried, and how often it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// At once, and once: bytes are probably waiting.
    Now,
    /// As soon as the socket is readable, and once.
    WhenReadable,
    /// Whenever bytes arrive, until an event reports its end. A driver may end it at any time, with
    /// or without data. Small buffers only.
    Multishot,
}

/// What the next receive will probably find in a socket, or the next accept in the backlog of a
/// listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Bytes, or a connection: the operation is tried at once.
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
    /// Room in the socket's send buffer: the peer does not read fast enough.
    Writable,
}

/// Which direction of a connection is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Send FIN after everything sent so far, and keep receiving.
    Write,
    /// Both: an armed receive and a waiting send end soon after.
    Both,
}

/// What the kernel is asked to do.
///
/// Operations that are answered, and closes, reach the kernel in the order given. Operations that
/// are done at once ([`Op::Identify`], [`Op::Spill`], [`Op::ReleaseSpilled`], [`Op::Recycle`],
/// [`Op::Shutdown`]) keep their order among themselves, and may overtake the others. Therefore no
/// buffer may be recycled, and no connection shut down for writing, while a send of it is in
/// flight.
///
/// A `length`, `length_max` or `count` is at least 1.
///
/// A connection exists for the driver from [`Event::Accepted`], or from its import, to
/// [`Op::Close`] or [`Op::Abort`], or until it is exported.
#[allow(missing_docs, reason = "a variant says what its fields are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Accept one connection from `listener` into the free slot that `connection` names. At most
    /// one accept per listener is armed. Answered once by [`Event::Accepted`] or
    /// [`Event::AcceptFailed`].
    Accept {
        listener: ListenerId,
        connection: ConnectionId,
        /// [`Expectation::Silence`] if the backlog is probably empty: the accept waits for a
        /// connection first, where the kernel can do that (Linux 6.10).
        backlog: Expectation,
    },
    /// From now on report the address of the peer with [`Event::Accepted`]. That costs a system
    /// call for each connection, so it is requested only when the address is needed. Done at once.
    /// Accepts that are already armed may or may not report it.
    ReportPeers,
    /// The end of [`Op::ReportPeers`].
    OmitPeers,
    /// From now on offer `count` small buffers to the kernel for receives, or fewer if fewer are
    /// free. The offer is filled up at the beginning of each turn. Done at once. Before the first
    /// such operation all are offered.
    OfferBuffers { count: u16 },
    /// Stop the accept that was armed for `connection`. The accept still completes, as canceled or
    /// with its result.
    CancelAccept { connection: ConnectionId },
    /// Accept one connection that waits at `listener`, without waiting for one. Otherwise like
    /// [`Op::Accept`]. At most one of the two is in flight per listener. Answered once, with the
    /// next turn, by [`Event::Accepted`] or [`Event::AcceptFailed`].
    AcceptWaiting { listener: ListenerId, connection: ConnectionId },
    /// No connection is accepted from `listener` any more. If this process created the socket, it
    /// stops listening, and connections that wait there are reset. Otherwise the socket is left
    /// unchanged. Done at once, never answered. Other workers may submit the same.
    CloseListener { listener: ListenerId },
    /// Receive into a pooled buffer. At most one receive, relay or poll per connection is armed.
    /// Answered by [`Event::Received`] and [`Event::ReceiveEnded`].
    ///
    /// The kernel picks a small buffer when bytes arrive. A large buffer is taken from the pool
    /// right away, so the core never requests more of them than are free.
    Receive { connection: ConnectionId, class: SizeClass, mode: ReceiveMode },
    /// As soon as the socket is readable, look for the header (PROXY protocol) at the beginning of
    /// the stream, which may have `length_max` bytes in all. The bytes of the header that have
    /// arrived are taken; bytes behind it stay in the receive queue. Takes the place of a receive.
    /// Answered once by [`Event::PrefacePartial`], [`Event::PrefaceComplete`],
    /// [`Event::PrefaceInvalid`] or [`Event::ReceiveEnded`]. Never submitted again after a complete
    /// or invalid header.
    ReadPreface { connection: ConnectionId, length_max: u16 },
    /// Send the identity of the listener that it comes from: one line that tells the peer where it
    /// has arrived. It is the first that is sent on the connection, so an empty send buffer takes
    /// it whole. Done at once; answered, by [`Event::IdentifyFailed`], only if it was not taken
    /// whole.
    Identify { connection: ConnectionId, listener: ListenerId },
    /// Wait for bytes, or for the end of the stream, without a buffer. Takes the place of a
    /// receive. Answered once by [`Event::Readable`] or [`Event::ReceiveEnded`].
    AwaitReadable { connection: ConnectionId },
    /// Echo up to `length_max` bytes, or fewer by the driver's own limit, without owning them. The
    /// bytes that the socket takes for sending are received, and the rest stays in its receive
    /// queue. Therefore no byte needs memory of ours, however slowly the peer reads. Takes the
    /// place of a receive and of a send: neither is in flight. Answered once by [`Event::Relayed`]
    /// or [`Event::ReceiveEnded`].
    ///
    /// A connection with records is echoed only by relays. Each message is echoed as one message,
    /// the last one even if it is longer than the rest of `length_max`.
    Relay { connection: ConnectionId, when: When, length_max: u32 },
    /// Receive and drop: as [`Op::Relay`], but nothing is sent.
    Discard { connection: ConnectionId, when: When },
    /// Stop the armed receive, relay or poll. Bytes that it had already taken are still reported,
    /// then its end.
    CancelReceive { connection: ConnectionId },
    /// Try to send the first `length` bytes of `buffer` without waiting. At most one send (of any
    /// kind) per connection is in flight. Answered once by [`Event::Sent`] or
    /// [`Event::SendFailed`]; the buffer stays lent until recycled.
    ///
    /// If nothing waits for the answer, its completion ends no turn: that all bytes were taken may
    /// be reported with the next event, or after [`Op::FlushSends`].
    Send { connection: ConnectionId, buffer: BufferId, length: u32, needs_completion: bool },
    /// The answers of all sends in flight are needed after all: report them with the next turn.
    FlushSends,
    /// Send `length` bytes of `buffer`, from `offset` on, once there is room for some. Answered
    /// once by [`Event::Sent`] (any part of them) or [`Event::SendFailed`]; the buffer stays lent
    /// until recycled.
    SendHeld { connection: ConnectionId, buffer: BufferId, offset: u32, length: u32 },
    /// Copy `length` bytes of `buffer`, from `offset` on, to the end of the connection's own
    /// spilled bytes. Done at once; the buffer may be recycled next. The blocks of memory that
    /// they take were granted by the [`Budget`]; the driver gives each
    /// back when its bytes are forgotten.
    Spill { connection: ConnectionId, buffer: BufferId, offset: u32, length: u32 },
    /// Send from the front of the spilled bytes, waiting for room. Answered once by
    /// [`Event::SentSpilled`] (any part of them) or [`Event::SendFailed`].
    SendSpilled { connection: ConnectionId },
    /// Forget the first `length` spilled bytes: all that were reported as sent. Done at once. Their
    /// memory may be given back only from here on, so that core and driver always agree which bytes
    /// are in which block.
    ReleaseSpilled { connection: ConnectionId, length: u32 },
    /// Stop the send of spilled or held bytes. The send still completes, as canceled or with the
    /// bytes that it had sent.
    CancelSend { connection: ConnectionId },
    /// Give a lent buffer back to the pool. No operation in the kernel may still use it.
    Recycle { buffer: BufferId },
    /// Shut down one direction or both, at once. Never answered.
    Shutdown { connection: ConnectionId, how: Shutdown },
    /// Send one keepalive probe to the peer. A peer on this machine needs none. Done at once, and
    /// ended by [`Op::EndProbe`] unless the connection is closed or exported before. The peer has
    /// been silent for at least `silent_s` seconds, which are at least 1. `again` is set if the
    /// last probe was not answered.
    Probe { connection: ConnectionId, silent_s: u16, again: bool },
    /// Report the result of the probe, and send no more. Answered once by [`Event::ProbeEnded`],
    /// with the next turn, even if the connection has been closed by then. The driver ends a
    /// receive that has not noticed waiting bytes, as it may do at any time.
    EndProbe { connection: ConnectionId, again: bool },
    /// Close the connection with FIN and forget its spilled bytes. The kernel must hold no receive
    /// and no send of it any more. Never answered; the slot is free at once.
    Close { connection: ConnectionId },
    /// As [`Op::Close`], but reset the connection (RST), so that the kernel frees unsent data at
    /// once.
    Abort { connection: ConnectionId },
}

impl Op {
    /// Whether it is certain to be answered with the next turn, so that the turn does not wait.
    #[must_use]
    pub fn is_answered_at_once(&self) -> bool {
        matches!(
            self,
            Self::Send { needs_completion: true, .. }
                | Self::Relay { when: When::Now, .. }
                | Self::Discard { when: When::Now, .. }
                | Self::AcceptWaiting { .. }
                | Self::EndProbe { .. }
        )
    }
}

/// Whose address a connection has after its header (PROXY protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerOrigin {
    /// The one that the header announces: that of the client of a proxy.
    Announced,
    /// The one of the socket, since the header announces none: the connection is the proxy's own
    /// (`LOCAL`), or the proxy does not know the client (`UNKNOWN`, `UNSPEC`).
    Socket,
}

/// How much of the header of a connection has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefaceProgress {
    /// No byte.
    Awaited,
    /// A part of it.
    Begun,
}

/// What happened.
#[allow(missing_docs, reason = "a variant says what its fields are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Answer to [`Op::Accept`]: the connection exists. `peer` is its address if that was
    /// requested, `backlog` is [`Expectation::Data`] if it is known to hold another connection.
    Accepted { connection: ConnectionId, peer: PeerAddr, backlog: Expectation },
    /// Answer to [`Op::Accept`]: there is no connection, and its id is free again.
    AcceptFailed { connection: ConnectionId, error: AcceptError },
    /// Bytes came, at least 1. The buffer is lent to the core until [`Op::Recycle`]. `armed` is
    /// whether the receive continues, `rest` is [`Expectation::Data`] if the socket is known to
    /// hold more.
    Received {
        connection: ConnectionId,
        buffer: BufferId,
        length: u32,
        armed: bool,
        rest: Expectation,
    },
    /// Answer to [`Op::ReadPreface`]: the header is not complete. The bytes that have arrived were
    /// taken: `received` in all, at most what was requested.
    PrefacePartial { connection: ConnectionId, received: u16 },
    /// Answer to [`Op::ReadPreface`]: the header is complete, and was taken. The address of the
    /// peer is `peer` from here on.
    PrefaceComplete { connection: ConnectionId, peer: PeerAddr, origin: PeerOrigin },
    /// Answer to [`Op::ReadPreface`]: the stream does not begin with a valid header.
    PrefaceInvalid { connection: ConnectionId },
    /// Answer to [`Op::Identify`], with the next turn, even if the connection has been closed by
    /// then: the line was not taken whole.
    IdentifyFailed { connection: ConnectionId, error: ConnectionError },
    /// Answer to [`Op::AwaitReadable`]: bytes are available, or the stream has ended.
    Readable { connection: ConnectionId },
    /// Answer to [`Op::Relay`] and [`Op::Discard`]: `length` bytes were taken from the socket, and
    /// echoed or dropped; 0 if there was nothing to take or no room.
    Relayed {
        connection: ConnectionId,
        length: u32,
        /// How many chunks these are. For a stream, 1 if there are bytes, else 0. For a connection
        /// with records, the number of messages, each of which may be empty.
        chunks: u32,
        /// What the next relay should wait for.
        next: When,
    },
    /// The receive or relay ended without bytes; it is no longer armed.
    ReceiveEnded { connection: ConnectionId, reason: ReceiveEnd },
    /// Answer to [`Op::Send`] and [`Op::SendHeld`]: the socket took the first `length` bytes; 0 if
    /// it had no room at all.
    Sent { connection: ConnectionId, length: u32 },
    /// Answer to [`Op::SendSpilled`]: the socket took `length` spilled bytes, at least 1.
    SentSpilled { connection: ConnectionId, length: u32 },
    /// Answer to [`Op::Send`], [`Op::SendHeld`] or [`Op::SendSpilled`]: no byte was taken.
    SendFailed { connection: ConnectionId, error: SendError },
    /// Answer to [`Op::EndProbe`].
    ProbeEnded {
        connection: ConnectionId,
        /// When the last segment arrived from it, possibly a bare acknowledgement.
        heard: Timestamp,
    },
}

/// The state of a quiescent connection that is handed over, besides its socket and its unsent
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferState {
    /// The listener that accepted it.
    pub listener: ListenerId,
    /// Whether it has records, see [`Parameters::records`](crate::parameters::Parameters::records).
    pub records: bool,
    /// The stage of its life.
    pub phase: TransferPhase,
    /// Bytes that were received and not sent yet. They are spilled.
    pub unsent: u32,
    /// For how many milliseconds no byte has moved. Its timers continue from there.
    pub quiet_ms: u64,
    /// For how many milliseconds it has been open.
    pub age_ms: u64,
    /// The bytes that count towards its byte limit so far.
    pub received: u64,
}

impl TransferState {
    /// The same state after `milliseconds` in which no process served the connection.
    #[must_use]
    pub fn after(self, milliseconds: u64) -> Self {
        let quiet_ms = self.quiet_ms.saturating_add(milliseconds);
        let age_ms = self.age_ms.saturating_add(milliseconds);
        Self { quiet_ms, age_ms, ..self }
    }
}

/// The stage of the life of a connection at its handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferPhase {
    /// Its header (PROXY protocol) is being read.
    Preface(PrefaceProgress),
    /// It receives and echoes.
    Open,
    /// The peer has sent its FIN. The unsent bytes are the last that it gets.
    HalfClosed,
    /// We are ending it for this reason, with a FIN after the unsent bytes.
    Flushing(CloseReason),
    /// We have sent FIN for this reason, and wait for the peer's FIN.
    Lingering(CloseReason),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_waits_is_answered_at_once() {
        let (connection, listener) = (ConnectionId::new(0, 0), ListenerId(0));
        let send = |needs_completion| {
            let buffer = BufferId { class: SizeClass::Small, index: 0 };
            Op::Send { connection, buffer, length: 1, needs_completion }
        };
        let relay = |when| Op::Relay { connection, when, length_max: 1 };
        for (op, expected) in [
            (send(true), true),
            (send(false), false),
            (relay(When::Now), true),
            (relay(When::Readable), false),
            (relay(When::Writable), false),
            (Op::Discard { connection, when: When::Now }, true),
            (Op::Discard { connection, when: When::Readable }, false),
            (Op::AcceptWaiting { listener, connection }, true),
            (Op::EndProbe { connection, again: false }, true),
            (Op::AwaitReadable { connection }, false),
            (Op::FlushSends, false),
        ] {
            assert_eq!(op.is_answered_at_once(), expected, "{op:?}");
        }
    }

    #[test]
    fn a_gap_between_processes_counts_as_silence_and_as_age() {
        let state = TransferState {
            listener: ListenerId(0),
            records: false,
            phase: TransferPhase::Open,
            unsent: 3,
            quiet_ms: 5,
            age_ms: 70,
            received: 9,
        };
        assert_eq!(state.after(100), TransferState { quiet_ms: 105, age_ms: 170, ..state });
        assert_eq!(state.after(u64::MAX).age_ms, u64::MAX);
    }
}
