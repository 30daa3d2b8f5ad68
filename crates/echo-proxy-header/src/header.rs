//! What a header says, and how long it may be.

use core::net::{IpAddr, SocketAddr};

//= proxy-protocol.txt 2.1
//# => 5 + 1 + 7 + 1 + 39 + 1 + 39 + 1 + 5 + 1 + 5 + 2 = 107 chars
/// The longest header of version 1, in bytes, with its CR LF.
pub const V1_LEN_MAX: usize = 107;

/// The longest header of version 2 that is accepted, in bytes, of which the format allows 65,551.
///
/// The specification designs headers for one segment of 536 bytes, but the TLVs that a proxy may
/// add have no such limit: a client certificate alone (`PP2_SUBTYPE_SSL_CLIENT_CERT`) has some
/// 2,000 bytes. TLVs are skipped without being stored, so the limit costs no memory. It bounds what
/// a sender can make the parser read before it announces an address.
pub const HEADER_LEN_MAX: usize = 4096;

/// The address that holds for a connection or a datagram after its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The source address of the header. An IPv4-mapped IPv6 address is reported as IPv4
    /// (RFC 4291, 2.5.5.2), so that a client has one address whatever family the proxy used.
    Announced(SocketAddr),
    /// The header announces no address that could be used: LOCAL, UNKNOWN, UNSPEC or a Unix socket.
    /// The addresses of the connection itself hold.
    Real,
}

impl Peer {
    pub(crate) fn announced(address: impl Into<IpAddr>, port: u16) -> Self {
        Self::Announced(SocketAddr::new(address.into().to_canonical(), port))
    }
}

/// The kind of socket that a header is received from or sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, or a Unix stream socket.
    Stream,
    /// UDP, or a Unix datagram socket.
    Datagram,
}
