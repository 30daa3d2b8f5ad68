//! Faults: what an echo can do wrong, and how one is reported.

use std::fmt;
use std::net::SocketAddr;

use crate::pattern::Place;
use crate::units::counted;

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Bytes that were never sent.
    Corrupted,
    /// Bytes are missing, but later bytes or the end of the stream arrived.
    Lost,
    /// Bytes arrived after later ones.
    Reordered,
    /// Bytes arrived twice.
    Duplicated,
    /// Bytes of another connection.
    CrossTalk,
    /// The server ended the stream before we did.
    ClosedEarly,
    /// The server ended the stream in order after we did, but before it had echoed everything.
    Truncated,
    /// The connection was reset.
    Reset,
    /// Bytes were not echoed within the timeout.
    Unanswered,
    /// A datagram did not come from the address of the server.
    WrongSource,
    /// A message did not come back as one: it was merged with others, divided or cut.
    Boundary,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Corrupted,
        Self::Lost,
        Self::Reordered,
        Self::Duplicated,
        Self::CrossTalk,
        Self::ClosedEarly,
        Self::Truncated,
        Self::Reset,
        Self::Unanswered,
        Self::WrongSource,
        Self::Boundary,
    ];

    /// The word for it, in tables and in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Corrupted => "corrupted",
            Self::Lost => "lost",
            Self::Reordered => "reordered",
            Self::Duplicated => "duplicated",
            Self::CrossTalk => "cross_talk",
            Self::ClosedEarly => "closed_early",
            Self::Truncated => "truncated",
            Self::Reset => "reset",
            Self::Unanswered => "unanswered",
            Self::WrongSource => "wrong_source",
            Self::Boundary => "boundary",
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// The number of the connection.
    pub(crate) connection: u64,
    pub(crate) detail: Detail,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Bytes of a stream.
    Bytes {
        /// The offset in the stream.
        offset: u64,
        /// The number of bytes affected.
        length: u64,
        /// The origin of the received bytes, if they belong elsewhere.
        source: Option<Place>,
    },
    /// A message of a connection that keeps the bounds of messages.
    Message {
        /// The offset of its first byte among all bytes of the connection.
        offset: u64,
        /// The number of bytes received, all of which are correct.
        length: u64,
        /// The number of bytes sent.
        sent: u64,
    },
    /// A datagram.
    Datagram {
        /// Its number in its flow, if it is known.
        sequence: Option<u64>,
        /// The offset of the first wrong byte.
        offset: usize,
        /// The number of bytes received.
        length: usize,
        /// The number of bytes sent, if that is known.
        sent: Option<usize>,
        origin: Origin,
    },
}

/// Where a datagram came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From the server, an echo on the flow that it was received on.
    Own,
    /// The echo of another flow.
    Flow(u64),
    /// The echo of another run.
    AnotherRun,
    /// From another address.
    Address(SocketAddr),
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail {
            Detail::Bytes { offset, length, source } => {
                write!(formatter, "connection {}, offset {offset}: ", self.connection)?;
                bytes(formatter, self.kind, length, source)
            }
            Detail::Message { offset, length, sent } => {
                let (length, sent) = (counted(length, "byte"), counted(sent, "byte"));
                let connection = self.connection;
                write!(formatter, "connection {connection}, offset {offset}: ")?;
                write!(formatter, "a message of {sent} came back as one of {length}")
            }
            Detail::Datagram { sequence, offset, length, sent, origin } => {
                write!(formatter, "flow {}, ", self.connection)?;
                match sequence {
                    Some(sequence) => write!(formatter, "datagram {sequence}: ")?,
                    None => formatter.write_str("unknown datagram: ")?,
                }
                let sent = sent.map_or(String::new(), |sent| format!(" of {sent}"));
                let length = format!("{length}{sent} bytes");
                match (self.kind, origin) {
                    (_, Origin::Flow(flow)) => write!(formatter, "{length} of flow {flow}"),
                    (_, Origin::AnotherRun) => write!(formatter, "{length} of another run"),
                    (_, Origin::Address(address)) => write!(formatter, "{length} from {address}"),
                    (Kind::Truncated, _) => write!(formatter, "truncated, {length} received"),
                    (Kind::Duplicated, _) => write!(formatter, "{length} received again"),
                    _ => write!(formatter, "{length} received, wrong from offset {offset} on"),
                }
            }
        }
    }
}

/// What is wrong with bytes of a stream.
fn bytes(
    formatter: &mut fmt::Formatter<'_>,
    kind: Kind,
    length: u64,
    source: Option<Place>,
) -> fmt::Result {
    let length = counted(length, "byte");
    match (kind, source) {
        (Kind::Corrupted, _) => write!(formatter, "{length} corrupted"),
        (Kind::Lost, _) => write!(formatter, "{length} lost"),
        (Kind::Reordered, _) => write!(formatter, "{length} arrived after later ones"),
        (Kind::Duplicated, Some(from)) => {
            write!(formatter, "{length} arrived twice, first at offset {}", from.offset)
        }
        (Kind::Duplicated, None) => write!(formatter, "{length} arrived twice"),
        (Kind::CrossTalk, Some(from)) => {
            write!(formatter, "{length} of connection {}, offset {}", from.connection, from.offset)
        }
        (Kind::CrossTalk, None) => write!(formatter, "{length} of another connection"),
        (Kind::ClosedEarly, _) => {
            write!(formatter, "closed by the server, {length} not echoed")
        }
        (Kind::Truncated, _) => {
            write!(formatter, "ended by the server in order, {length} not echoed")
        }
        (Kind::Reset, _) => write!(formatter, "reset, {length} not echoed"),
        (Kind::Unanswered, _) => write!(formatter, "{length} not echoed in time"),
        (Kind::WrongSource, _) => unreachable!("a connection has one source"),
        (Kind::Boundary, _) => unreachable!("bytes of a stream have no bounds"),
    }
}
