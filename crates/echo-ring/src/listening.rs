//! Listening sockets, shared by all workers: the options of accepted connections, and how a
//! listener ends.

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::setsockopt_impl;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetStruct;
use socket2::SockRef;

use super::errno;
use super::identity::Identity;
use super::transport::Transport;
use echo_core::op::AcceptError;

/// The process that created a listening socket, and may therefore end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This process.
    Us,
    /// Another process, which continues to hold it.
    Another,
}

/// socket(7) documents the related SO_BINDTODEVICE, which requires an existing interface.
#[derive(Clone, Copy, Debug)]
struct BindToIfIndex;

setsockopt_impl!(BindToIfIndex, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, i32, SetStruct<i32>);

/// Interface indexes start at 1.
const NO_INTERFACE: i32 = i32::MAX;

/// A listening socket, and the options of its connections.
#[derive(Debug)]
pub struct ListeningSocket {
    /// The socket. On a TCP socket SO_KEEPALIVE is on, with times so long that the kernel does not
    /// probe by itself.
    pub socket: OwnedFd,
    /// The transport of its connections.
    pub transport: Transport,
    /// `SO_RCVBUF` for connections that do not inherit it, in bytes.
    pub receive_buffer: Option<u32>,
    /// `SO_SNDBUF` for connections that do not inherit it, in bytes.
    pub send_buffer: Option<u32>,
    /// Which process created it.
    pub owner: Owner,
    /// What its peers are told first, if anything.
    pub identity: Option<Identity>,
    /// Whether new connections are refused, so that it ends when its backlog is empty. Set before
    /// any worker gets the command, so that a failing accept is expected.
    pub ending: AtomicBool,
}

impl ListeningSocket {
    /// A socket of this process whose connections have no sizes of buffers of their own and are
    /// told nothing.
    #[must_use]
    pub fn of(socket: OwnedFd, transport: Transport) -> Self {
        Self {
            socket,
            transport,
            receive_buffer: None,
            send_buffer: None,
            owner: Owner::Us,
            identity: None,
            ending: AtomicBool::new(false),
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Refuses new connections: connect(2) fails from now on, as it does without a listener.
    /// Connections in the backlog stay, and so do handshakes in progress. That cannot be undone
    /// without CAP_NET_RAW.
    ///
    /// # Errors
    /// EPERM from a TCP socket that is bound to an interface, as one with a link-local address is.
    pub fn turn_away(&self) -> io::Result<()> {
        match self.transport {
            Transport::Tcp => Ok(setsockopt(&self.socket, BindToIfIndex, &NO_INTERFACE)?),
            Transport::Unix | Transport::UnixSeqpacket => {
                SockRef::from(&self.socket).shutdown(Shutdown::Read)
            }
        }
    }

    /// Accepts a connection from the backlog, and does not wait for one.
    pub(super) fn accept_waiting(&self) -> io::Result<OwnedFd> {
        let socket = SockRef::from(&self.socket);
        // io_uring has an accept that does not wait, but only from Linux 6.10 on. The mode belongs
        // to the socket and not to a descriptor: a process that inherits the socket sets the mode
        // again.
        socket.set_nonblocking(true)?;
        loop {
            match socket.accept() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map(|(connection, _)| connection.into()),
            }
        }
    }

    /// Ends it, if this process created it. shutdown(2) of a TCP listener does what close(2) does,
    /// for all processes that share it. A Unix listener is already shut down, so nothing changes.
    pub(super) fn close(&self) {
        if self.owner == Owner::Us {
            // ENOTCONN: another worker was quicker.
            let _ = SockRef::from(&self.socket).shutdown(Shutdown::Read);
        }
    }

    /// The reason of a failed accept.
    pub(super) fn accept_error(&self, errno: i32) -> AcceptError {
        match errno {
            // The backlog is empty, or the socket no longer listens, as intended.
            libc::EAGAIN | libc::EINVAL if self.is_ending() => AcceptError::Empty,
            errno => errno::of_accept(errno),
        }
    }

    /// Gives an accepted connection the options that it did not inherit. To be called before its
    /// first receive.
    pub fn equip(&self, connection: BorrowedFd<'_>) {
        if self.transport == Transport::Tcp {
            if self.is_ending() {
                // The filter that refuses new connections is inherited from the listener, like all
                // options, and is removed again. It would prevent the answer to an unexpected SYN
                // (RFC 5961).
                let _ = SockRef::from(&connection).detach_filter();
            }
            return;
        }
        let connection = SockRef::from(&connection);
        if self.transport == Transport::UnixSeqpacket {
            // Marks messages, so that an empty message can be distinguished from the end: see
            // `driver/messages`.
            let _ = connection.set_passcred(true);
        }
        if self.transport == Transport::Unix {
            // Without this an urgent byte would be lost. None of these fails on a connected socket,
            // and a connection without them is better than none.
            let _ = connection.set_out_of_band_inline(true);
        }
        if let Some(bytes) = self.receive_buffer {
            let _ = connection.set_recv_buffer_size(bytes as usize);
        }
        if let Some(bytes) = self.send_buffer {
            let _ = connection.set_send_buffer_size(bytes as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn listening(socket: impl Into<OwnedFd>, transport: Transport) -> ListeningSocket {
        let ending = AtomicBool::new(true);
        ListeningSocket { ending, ..ListeningSocket::of(socket.into(), transport) }
    }

    /// Goal: a connection in the backlog stays there and is served; a later one is refused at once.
    #[test]
    fn new_connections_are_refused_and_old_ones_are_not_touched() {
        let addresses: [SocketAddr; 2] =
            [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()];
        for address in addresses {
            let listener = TcpListener::bind(address).unwrap();
            let address = listener.local_addr().unwrap();
            let listener = listening(listener, Transport::Tcp);
            let mut early = TcpStream::connect(address).unwrap();
            listener.turn_away().unwrap();
            let late = TcpStream::connect(address).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::ConnectionRefused, "{address}");
            let mut accepted = TcpStream::from(listener.accept_waiting().unwrap());
            early.write_all(b"word").unwrap();
            let mut word = [0; 4];
            accepted.read_exact(&mut word).unwrap();
            assert_eq!(&word, b"word");
        }
    }

    #[test]
    fn a_unix_listener_refuses_new_connections_and_keeps_its_backlog() {
        let path = std::env::temp_dir().join(format!("echo-uring-away-{}", std::process::id()));
        let listener = listening(UnixListener::bind(&path).unwrap(), Transport::Unix);
        let early = UnixStream::connect(&path).unwrap();
        listener.turn_away().unwrap();
        let late = UnixStream::connect(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(late.kind(), ErrorKind::ConnectionRefused);
        listener.accept_waiting().unwrap();
        drop(early);
        let errno = listener.accept_waiting().unwrap_err().raw_os_error().unwrap();
        assert_eq!(listener.accept_error(errno), AcceptError::Empty);
    }
}
