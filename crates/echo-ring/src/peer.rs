//! The address of the peer of an accepted connection.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use socket2::SockRef;

use super::errno;
use super::transport::Transport;
use echo_core::op::{AcceptError, PeerAddr};

/// The peer of `connection`, by getpeername(2). A Unix peer has no address.
///
/// # Errors
/// When the peer has reset the connection meanwhile: then it was gone before it was accepted.
pub(super) fn of(
    connection: BorrowedFd<'_>,
    transport: Transport,
) -> Result<PeerAddr, AcceptError> {
    if transport != Transport::Tcp {
        return Ok(PeerAddr::Local);
    }
    let peer = SockRef::from(&connection).peer_addr();
    let peer = peer.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::EINVAL) => AcceptError::Aborted,
        errno => errno::of_accept(errno.unwrap_or(libc::EIO)),
    })?;
    // Other families, such as vsock, have no address that could be judged: their peers are on this
    // machine.
    Ok(peer.as_socket().map_or(PeerAddr::Local, of_address))
}

pub(super) fn of_address(address: SocketAddr) -> PeerAddr {
    of_ip(address.ip())
}

pub(super) fn of_ip(address: IpAddr) -> PeerAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => PeerAddr::Ipv4(address.octets()),
        IpAddr::V6(address) => PeerAddr::Ipv6(address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an IPv4 peer has the same address on an IPv4 listener and on one for both families.
    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        for text in ["192.0.2.7:1", "[::ffff:192.0.2.7]:1"] {
            let address = text.parse().expect("an address");
            assert_eq!(of_address(address), PeerAddr::Ipv4([192, 0, 2, 7]));
        }
        let address = "[2001:db8::7]:1".parse().expect("an address");
        assert!(matches!(of_address(address), PeerAddr::Ipv6([0x20, 1, 0xd, 0xb8, ..])));
    }
}
