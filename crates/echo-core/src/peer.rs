//! The address of a peer.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

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

/// The address, or a description of a peer that has none.
impl fmt::Display for PeerAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unknown => formatter.write_str("an unknown address"),
            Self::Local => formatter.write_str("a Unix socket"),
            Self::Ipv4(address) => Ipv4Addr::from(address).fmt(formatter),
            Self::Ipv6(address) => Ipv6Addr::from(address).fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_peer_is_shown_as_its_address() {
        assert_eq!(PeerAddr::Ipv4([192, 0, 2, 1]).to_string(), "192.0.2.1");
        let mut address = [0; 16];
        address[15] = 1;
        assert_eq!(PeerAddr::Ipv6(address).to_string(), "::1");
        assert_eq!(PeerAddr::Local.to_string(), "a Unix socket");
        assert_eq!(PeerAddr::Unknown.to_string(), "an unknown address");
    }
}
