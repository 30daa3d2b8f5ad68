//! Closing a listening socket without resetting connections.
//!
//! Closing a listening socket resets all connections in its backlog, and the handshakes in
//! progress. Therefore the steps are:
//!
//! 1. Refuse new connections ([`turn_away`](echo_ring::ListeningSocket::turn_away),
//!    [`refuse_new`]).
//! 2. Clients complete the handshakes in progress: wait until [`is_any_half_open`] reports none, or
//!    for [`TIMEOUT`], whichever comes first.
//! 3. Empty the backlog: accept(2) until there is no connection (EAGAIN; EINVAL on a Unix listener
//!    that is shut down).
//! 4. Close the socket, or leave it to its other owner. SYNs then find no listener, and clients get
//!    "connection refused".
//!
//! There are two methods for the first step:
//!
//! | | turn away | filter |
//! |---|---|---|
//! | TCP | bind to an interface that does not exist | a filter drops SYNs: sent again 1 s later |
//! | Unix | shut down for reading: connect(2) is refused | |
//! | reversible | no | yes |
//! | requires | nothing, unless it was bound to an interface | CAP_NET_ADMIN (Linux 6.18.44) |
//! | used for | a socket that ends with the daemon | a socket that its owner may continue to use |
//!
//! Listening with a backlog of 0 does not work: the kernel still accepts one connection more than
//! that. Closing one of several sockets with `SO_REUSEPORT` moves handshakes only with
//! `net.ipv4.tcp_migrate_req` set, and needs another socket to move them to.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::socket::AddressFamily;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

/// How long handshakes may take to complete. Less than the second after which a SYN is sent again
/// (RFC 6298), so that a client whose SYN was dropped is refused at its first retransmission and
/// its SYN is not dropped twice. More than a round trip, except over a satellite with a lost
/// packet.
pub const TIMEOUT: Duration = Duration::from_millis(900);

/// Drops segments with SYN and without ACK: the first ones of new connections. The filter sees a
/// segment from its TCP header on; the flags are its byte 13 (RFC 9293, section 3.1).
const WITHOUT_FIRST_SEGMENTS: [SockFilter; 5] = [
    // BPF_LD | BPF_B | BPF_ABS
    SockFilter::new(0x30, 0, 0, 13),
    // BPF_ALU | BPF_AND | BPF_K: SYN and ACK
    SockFilter::new(0x54, 0, 0, 0x12),
    // BPF_JMP | BPF_JEQ | BPF_K: SYN without ACK continues with the next line, all else skips it
    SockFilter::new(0x15, 0, 1, 0x02),
    // BPF_RET | BPF_K
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Refuses new connections to the TCP listener `listener`, until [`admit_new`] is called or it is
/// closed: their SYNs are dropped, and sent again a second later at the earliest.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, if the kernel requires it for a filter on a TCP socket.
pub fn refuse_new(listener: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&listener).attach_filter(&WITHOUT_FIRST_SEGMENTS)
}

/// Reverts [`refuse_new`] on a TCP listener that its owner continues to use. Does nothing if there
/// is no filter.
pub fn admit_new(listener: BorrowedFd<'_>) {
    // ENOENT: there is no filter.
    let _ = SockRef::from(&listener).detach_filter();
}

/// Whether a handshake with the TCP listener `listener` is in progress. Queried over sock_diag(7),
/// which searches the kernel's table of connections.
///
/// # Errors
/// When the query is not permitted (a sandbox without netlink sockets) or fails.
pub fn is_any_half_open(listener: BorrowedFd<'_>) -> io::Result<bool> {
    let address = SockRef::from(&listener).local_addr()?;
    let address = address.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let domain = Domain::from(AddressFamily::Netlink as i32);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.send(&question(family as u8, address.port()))?;
    let mut answer = [0; 8192];
    let length = (&socket).read(&mut answer)?;
    // The kind of the first message (netlink(7)); the rest is not needed.
    match answer.get(4..6).filter(|_| length >= 16) {
        Some(kind) => match u16::from_ne_bytes([kind[0], kind[1]]) {
            NLMSG_DONE => Ok(false),
            SOCK_DIAG_BY_FAMILY => Ok(true),
            _ => Err(io::ErrorKind::Unsupported.into()),
        },
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_DONE: u16 = 3;
/// The kernel answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// A `struct nlmsghdr` and a `struct inet_diag_req_v2`: all sockets in SYN_RECV with this local
/// port.
fn question(family: u8, port: u16) -> [u8; 72] {
    const REQUEST_AND_DUMP: u16 = 0x301;
    const TCP: u8 = 6;
    const SYN_RECV: u32 = 1 << 3;
    let mut bytes = [0; 72];
    bytes[0..4].copy_from_slice(&72_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = TCP;
    bytes[20..24].copy_from_slice(&SYN_RECV.to_ne_bytes());
    bytes[24..26].copy_from_slice(&port.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Instant;

    fn addresses() -> [SocketAddr; 2] {
        [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()]
    }

    /// Goal: connections in the backlog stay there. Later SYNs are neither accepted nor refused
    /// until the filter is removed.
    #[test]
    fn new_handshakes_are_dropped_and_old_connections_are_not_affected() {
        for address in addresses() {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let mut early = TcpStream::connect(address).unwrap();
            refuse_new(listener.as_fd()).unwrap();
            let soon = Duration::from_millis(300);
            let late = TcpStream::connect_timeout(&address, soon).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut, "{address}");
            let (mut accepted, _) = listener.accept().unwrap();
            early.write_all(b"word").unwrap();
            let mut word = [0; 4];
            accepted.read_exact(&mut word).unwrap();
            assert_eq!(&word, b"word");
            admit_new(listener.as_fd());
            TcpStream::connect_timeout(&address, soon).unwrap();
            admit_new(listener.as_fd());
        }
    }

    /// Goal: a handshake is reported from its first segment to its last. Method: a filter that
    /// drops the last segment keeps it in progress.
    #[test]
    fn handshakes_in_progress_are_reported() {
        for address in addresses() {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let mine = || is_any_half_open(listener.as_fd()).unwrap();
            assert!(!mine(), "{address}");
            let mut only_first = WITHOUT_FIRST_SEGMENTS;
            only_first.swap(3, 4);
            SockRef::from(&listener).attach_filter(&only_first).unwrap();
            let stream = TcpStream::connect(address).unwrap();
            assert!(mine(), "{address}");
            admit_new(listener.as_fd());
            // The next segment of the client ends it.
            (&stream).write_all(b"x").unwrap();
            let began = Instant::now();
            while mine() {
                assert!(began.elapsed() < Duration::from_secs(10), "{address}");
                thread::sleep(Duration::from_millis(10));
            }
            listener.accept().unwrap();
        }
    }
}
