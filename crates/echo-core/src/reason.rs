//! Why accepts, receives, sends and connections end or fail.

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
    /// The backlog is empty and stays so: the completion of an accept from a listener that ends,
    /// see [`Command::EndListeners`](crate::command::Command::EndListeners).
    Empty,
    /// An unexpected error, by its errno; the backlog is as it was.
    Unexpected(i32),
}

/// Why a receive ended without bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer has sent its FIN: there will be no more bytes.
    EndOfStream,
    /// The kernel was offered no small buffer (ENOBUFS). Nothing was taken from the socket, not
    /// even its end. Small buffers may be free nevertheless, because not all of them need be on
    /// offer, see [`Op::OfferBuffers`](crate::op::Op::OfferBuffers).
    NoBuffer,
    /// Canceled, or ended by the kernel for reasons of its own. Nothing is lost; the receive can be
    /// armed again.
    Stopped,
    /// The kernel was out of memory (ENOMEM): try again a little later.
    Memory,
    /// The connection is dead (ECONNRESET, ETIMEDOUT, …).
    Failed(ConnectionError),
}

/// Why a send failed without taking a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The kernel was out of memory (ENOMEM, ENOBUFS): try again a little later.
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
    /// The next message is longer than can be received or sent as one.
    MessageSize,
    /// An unexpected error, by its errno.
    Unexpected(i32),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer sent FIN and got all its bytes back.
    Finished,
    /// The peer reset the connection.
    Reset,
    /// The network gave up on the peer.
    Unreachable,
    /// No byte moved for the idle timeout.
    Idle,
    /// It had been open for the longest time that is allowed.
    Lifetime,
    /// It had received as many bytes as are allowed.
    ByteLimit,
    /// The peer did not read for the stall timeout.
    Stalled,
    /// The peer sent a message that is longer than can be echoed as one.
    MessageSize,
    /// The drain deadline came first.
    Drained,
    /// It was told the identity of its listener, and was open for nothing else.
    Identified,
    /// An unexpected error; see
    /// [`Stats::unexpected_errno`](crate::stats::Stats::unexpected_errno).
    Unexpected,
    /// It was not closed here: the next process has it now.
    HandedOver,
}

impl CloseReason {
    /// All reasons, in the order of [`Traffic::closed`](crate::stats::Traffic::closed).
    pub const ALL: [Self; 12] = [
        Self::Finished,
        Self::Reset,
        Self::Unreachable,
        Self::Idle,
        Self::Lifetime,
        Self::ByteLimit,
        Self::Stalled,
        Self::MessageSize,
        Self::Drained,
        Self::Identified,
        Self::Unexpected,
        Self::HandedOver,
    ];

    /// The reason as one word, for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::ByteLimit => "byte-limit",
            Self::Stalled => "stalled",
            Self::MessageSize => "message-size",
            Self::Drained => "drained",
            Self::Identified => "identified",
            Self::Unexpected => "unexpected",
            Self::HandedOver => "handed-over",
        }
    }

    /// The close reason for a dead connection.
    #[must_use]
    pub fn of(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Reset => Self::Reset,
            ConnectionError::Unreachable => Self::Unreachable,
            ConnectionError::MessageSize => Self::MessageSize,
            ConnectionError::Unexpected(_) => Self::Unexpected,
        }
    }
}

/// Why a connection was closed right after its accept or after its header (PROXY protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// The access lists do not permit it.
    Denied,
    /// Its source has reached its maximum number of connections.
    SourceFull,
    /// Its source has connected too often within a second.
    SourceRate,
    /// The listener takes connections of trusted proxies only, and this one comes from elsewhere.
    Untrusted,
    /// It does not begin with a valid header, or the header is too long or cut short.
    InvalidHeader,
    /// Its header was not complete in time.
    HeaderTimeout,
}

impl RefuseReason {
    /// All reasons, in the order of [`Traffic::refused`](crate::stats::Traffic::refused).
    pub const ALL: [Self; 6] = [
        Self::Denied,
        Self::SourceFull,
        Self::SourceRate,
        Self::Untrusted,
        Self::InvalidHeader,
        Self::HeaderTimeout,
    ];

    /// The reason as one word, for logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::SourceFull => "source-full",
            Self::SourceRate => "source-rate",
            Self::Untrusted => "untrusted",
            Self::InvalidHeader => "invalid-header",
            Self::HeaderTimeout => "header-timeout",
        }
    }
}
