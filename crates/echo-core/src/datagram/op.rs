//! The interface between the core and the kernel for datagrams. Events are facts, operations
//! imperatives, as in [`crate::op`].

use crate::peer::PeerAddr;

/// Names a datagram socket of one worker: its position, dense from 0, in the list that the driver
/// was built with. A socket has one owner: two rings on one socket reorder the datagrams of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u16);

/// Names a buffer of the pool for datagrams: its position, dense from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u16);

/// An address with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address. [`PeerAddr::Unknown`] stands for none: an unbound sender, or a socket that is
    /// bound to every address. [`PeerAddr::Local`] is the name of a Unix socket, which the core
    /// does not know.
    pub address: PeerAddr,
    /// The port; 0 if there is none.
    pub port: u16,
}

/// The content of the header (PROXY protocol) at the beginning of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// There is no header: datagrams of this socket have none.
    Absent,
    /// The datagram comes from a client of its sender, at this address.
    Announced(PeerAddr),
    /// The sender announces no client: the datagram is its own, or it does not know the client.
    Unannounced,
    /// The header is not valid, or missing.
    Invalid,
}

/// What the kernel reports about a datagram, or about a burst: datagrams of one flow that it merged
/// (UDP_GRO). All of a burst have one length, except the last, which may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where it comes from.
    pub source: Endpoint,
    /// The destination in its header; unknown on a socket that is bound to one address.
    pub destination: PeerAddr,
    /// The address that a reply leaves from; unknown on a socket that is bound to one address. It
    /// differs from the destination exactly if that is a broadcast or multicast address (ip(7)).
    pub local: PeerAddr,
    /// The content of its header.
    pub header: Header,
    /// Bytes of payload in the buffer, behind a header. For a burst, of all its datagrams.
    pub length: u32,
    /// Bytes of each datagram of a burst except the last; 0 if this is a single datagram.
    pub segment: u16,
    /// Whether the buffer was too short for it or for what the kernel reports about it.
    pub truncated: bool,
    /// Whether its source, by name, is a socket of this process. Set for Unix sockets only: for UDP
    /// the address and the port are compared.
    pub own: bool,
}

impl Datagram {
    /// How many datagrams it is.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self.segment {
            0 => 1,
            segment => self.length.div_ceil(segment.into()).max(1),
        }
    }
}

/// Why a receive is no longer armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// There was no buffer (ENOBUFS). Datagrams wait in the socket.
    NoBuffer,
    /// Canceled, or ended by the kernel for reasons of its own. Datagrams wait in the socket.
    Stopped,
    /// The kernel was out of memory (ENOMEM): try again a little later.
    Memory,
    /// An unexpected error, by its errno: try again a little later.
    Unexpected(i32),
}

/// Why a reply was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The socket's send buffer is full (EAGAIN): the link is down, or slower than the datagrams
    /// arrive. Or the queue of a Unix peer is full.
    Full,
    /// The route does not carry a burst, or a datagram of this size (EMSGSIZE, EINVAL, EIO).
    Unsendable,
    /// There is no route to the source, or none from the address that the datagram was sent to
    /// (ENETUNREACH, EHOSTUNREACH, ENETDOWN, EADDRNOTAVAIL). Or the Unix peer is gone
    /// (ECONNREFUSED), or its path no longer leads to such a socket (ENOENT, ENOTDIR, ELOOP,
    /// EPROTOTYPE).
    Unroutable,
    /// The identity is longer than it may be: the request was too short for it.
    TooShort,
    /// A packet filter refuses it (EPERM, EACCES). Or the Unix peer is connected to another socket,
    /// or the permissions of its file do not permit us to write.
    Refused,
    /// The kernel was out of memory (ENOMEM, ENOBUFS).
    Memory,
    /// An unexpected error, by its errno.
    Unexpected(i32),
}

/// What the kernel is asked to do.
#[allow(missing_docs, reason = "a variant says what its fields are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Receive datagrams from the socket until an event reports the end of the receive. At most one
    /// receive per socket is armed.
    Receive { socket: SocketId },
    /// Stop receiving. Answered by [`Event::ReceiveEnded`], unless the receive has just ended.
    CancelReceive { socket: SocketId },
    /// Send the payload of a lent buffer back, as one datagram or as the burst that it was, from
    /// the address that it was sent to. Never waits. Answered once by [`Event::Replied`] or
    /// [`Event::ReplyFailed`].
    Reply { buffer: BufferId },
    /// The same, but each datagram of a burst by itself. Answered once by
    /// [`Event::SegmentsReplied`].
    ReplySegments { buffer: BufferId },
    /// Send the identity to the sender of the datagram in a lent buffer, from the address that was
    /// asked: one line that tells it where it has arrived, and no more than `length_max` bytes.
    /// Never waits. Answered once, with the next turn, by [`Event::Identified`] or
    /// [`Event::ReplyFailed`].
    Identify { buffer: BufferId, length_max: u32 },
    /// Give a lent buffer back to the pool. No reply from it may be in flight.
    Recycle { buffer: BufferId },
    /// Close the socket. No receive of it is armed, and no reply of it is in flight. If another
    /// process also holds it, datagrams that arrived meanwhile wait for that process.
    Close { socket: SocketId },
}

/// What happened.
#[allow(missing_docs, reason = "a variant says what its fields are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A datagram or a burst was received. The buffer is lent to the core until [`Op::Recycle`].
    /// `armed` is whether the receive continues: an empty datagram ends it (seen on Linux 6.1 to
    /// 6.18).
    Received { socket: SocketId, buffer: BufferId, datagram: Datagram, armed: bool },
    /// The receive ended without a datagram.
    ReceiveEnded { socket: SocketId, reason: ReceiveEnd },
    /// Answer to [`Op::Reply`]: the kernel took all of it.
    Replied { buffer: BufferId },
    /// Answer to [`Op::Identify`]: the kernel took the line, which has `length` bytes, at most what
    /// was requested.
    Identified { buffer: BufferId, length: u32 },
    /// Answer to [`Op::Reply`] and [`Op::Identify`]: the kernel took nothing.
    ReplyFailed { buffer: BufferId, error: ReplyError },
    /// Answer to [`Op::ReplySegments`]: how many datagrams the kernel took, their bytes, and why it
    /// did not take the others.
    SegmentsReplied { buffer: BufferId, datagrams: u32, bytes: u32, error: Option<ReplyError> },
}
