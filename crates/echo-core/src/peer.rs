//! The address of a peer.

/// Where a connection comes from. IPv4 addresses are never in their mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddr {
    /// Not reported; see [`Op::ReportPeers`](crate::op::Op::ReportPeers).
    Unknown,
    /// This machine, without an address: a Unix socket.
    Local,
    /// An IPv4 address.
    Ipv4([u8; 4]),
    /// An IPv6 address.
    Ipv6([u8; 16]),
}
