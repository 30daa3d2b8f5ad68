//! The end of a listening socket without a reset connection.
//!
//! Closing a listening socket resets all that wait in its backlog, and with them the handshakes
//! that are under way. So, in this order:
//!
//! 1. Nobody new comes ([`turn_away`](echo_ring::ListeningSocket::turn_away), [`hold_back`]).
//! 2. Handshakes that were under way are finished by their clients: until [`is_any_half_open`] says
//!    that none is left, or for [`TIMEOUT`], whichever comes first.
//! 3. The backlog is emptied: accept(2) until it finds nobody (EAGAIN; EINVAL on a Unix listener
//!    that is shut down).
//! 4. The socket is closed, or stays for whoever holds it: SYNs find nobody listening, and clients
//!    hear that the connection is refused.
//!
//! There are two ways to the first step, and each has its place:
//!
//! | | turned away | held back |
//! |---|---|---|
//! | TCP | bound to an interface that does not exist | a filter drops SYNs: sent again 1 s later |
//! | Unix | shut down for reading: connect(2) is refused | |
//! | can be undone | no | yes |
//! | needs | nothing, unless it was bound to an interface | CAP_NET_ADMIN (Linux 6.18.44) |
//! | is for | a socket that ends with us | a socket that somebody else may go on with |
//!
//! Listening with a backlog of 0 does not do: the kernel goes on taking one connection more than
//! that. Closing one of several sockets with `SO_REUSEPORT` moves handshakes only with
//! `net.ipv4.tcp_migrate_req` set, and needs another socket to move them to.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::socket::AddressFamily;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

/// How long handshakes may take to be finished. Less than the second after which a SYN is sent
/// again (RFC 6298), so that who was held back is refused at the first try after that, and not held
/// back twice. More than a round trip, except by a satellite and a lost packet.
pub const TIMEOUT: Duration = Duration::from_millis(900);

/// Drops segments with SYN and without ACK: the first ones of new connections. The filter sees a
/// segment from its TCP header on; the flags are its byte 13 (RFC 9293, section 3.1).
const WITHOUT_FIRST_SEGMENTS: [SockFilter; 5] = [
    // BPF_LD | BPF_B | BPF_ABS
    SockFilter::new(0x30, 0, 0, 13),
    // BPF_ALU | BPF_AND | BPF_K: SYN and ACK
    SockFilter::new(0x54, 0, 0, 0x12),
    // BPF_JMP | BPF_JEQ | BPF_K: SYN alone goes on with the next line, all else skips it
    SockFilter::new(0x15, 0, 1, 0x02),
    // BPF_RET | BPF_K
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Holds newcomers back from the TCP listener `listener`, until [`let_come`] is called or it is
/// closed: their SYNs are dropped, and sent again a second later at the earliest.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, where the kernel demands that for a filter on a TCP socket.
pub fn hold_back(listener: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&listener).attach_filter(&WITHOUT_FIRST_SEGMENTS)
}

/// Undoes [`hold_back`] on a TCP listener that somebody else goes on with. Does nothing if nobody
/// is held back.
pub fn let_come(listener: BorrowedFd<'_>) {
    // ENOENT: there is no filter.
    let _ = SockRef::from(&listener).detach_filter();
}

/// Whether a handshake with the TCP listener `listener` has been begun and not been finished. Asked
/// over sock_diag(7): a walk through the kernel's table of connections.
///
/// # Errors
/// When that may not be asked here (a sandbox that allows no netlink sockets), or fails.
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
    // The kind of the first message (netlink(7)); what follows it says no more.
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

/// A `struct nlmsghdr` and a `struct inet_diag_req_v2`: all sockets in SYN_RECV with this port of
/// ours.
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

    /// Goal: who is in the backlog stays there, who comes later is not taken and not refused, and
    /// comes in when the filter has gone.
    #[test]
    fn new_handshakes_are_held_back_and_old_connections_are_not_touched() {
        for address in addresses() {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let mut early = TcpStream::connect(address).unwrap();
            hold_back(listener.as_fd()).unwrap();
            let soon = Duration::from_millis(300);
            let late = TcpStream::connect_timeout(&address, soon).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut, "{address}");
            let (mut accepted, _) = listener.accept().unwrap();
            early.write_all(b"word").unwrap();
            let mut word = [0; 4];
            accepted.read_exact(&mut word).unwrap();
            assert_eq!(&word, b"word");
            let_come(listener.as_fd());
            TcpStream::connect_timeout(&address, soon).unwrap();
            let_come(listener.as_fd());
        }
    }

    /// Goal: a handshake is seen from its first segment to its last one. Method: a filter that
    /// drops the last ones keeps it open.
    #[test]
    fn handshakes_under_way_are_seen() {
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
            let_come(listener.as_fd());
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
