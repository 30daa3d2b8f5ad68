//! Listening sockets, as all workers share them: what accepted connections need to be told, and how
//! a listener comes to its end.

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::setsockopt_impl;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetStruct;
use socket2::SockRef;

use super::errno;
use super::transport::Transport;
use echo_core::op::AcceptError;

/// The process that made a listening socket, and so may end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This process.
    Us,
    /// Another process, which goes on holding it.
    Another,
}

/// socket(7) has its sibling SO_BINDTODEVICE, which wants an interface that exists.
#[derive(Clone, Copy, Debug)]
struct BindToIfIndex;

setsockopt_impl!(BindToIfIndex, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, i32, SetStruct<i32>);

/// Interfaces are counted up from 1.
const NO_INTERFACE: i32 = i32::MAX;

/// A listening socket, and what its connections need to be told.
#[derive(Debug)]
pub struct ListeningSocket {
    /// The socket. On a TCP socket SO_KEEPALIVE is on, with times so long that the kernel does not
    /// act by itself.
    pub socket: OwnedFd,
    /// What its connections run over.
    pub transport: Transport,
    /// `SO_RCVBUF` for connections that do not inherit it, in bytes.
    pub receive_buffer: Option<u32>,
    /// `SO_SNDBUF` for connections that do not inherit it, in bytes.
    pub send_buffer: Option<u32>,
    /// Whose it is.
    pub owner: Owner,
    /// Whether new connections are refused, so that it ends when its backlog is empty.
    /// Set before any worker is told of it, so that none is surprised by an accept that fails.
    pub ending: AtomicBool,
}

impl ListeningSocket {
    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Refuses new connections: connect(2) fails from now on, as it does without a listener. What
    /// waits in the backlog stays, and so does a handshake that is under way. That cannot be undone
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
        // There is an accept in the ring that does not wait, but only from Linux 6.10 on. The
        // mode is of the socket and not of a descriptor: a process that inherits it sets it anew.
        socket.set_nonblocking(true)?;
        loop {
            match socket.accept() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map(|(connection, _)| connection.into()),
            }
        }
    }

    /// Ends it, if it is ours. shutdown(2) of a TCP listener does what close(2) does, for all that
    /// share it; one of Unix is shut down already, and nothing changes.
    pub(super) fn close(&self) {
        if self.owner == Owner::Us {
            // ENOTCONN: another worker was quicker.
            let _ = SockRef::from(&self.socket).shutdown(Shutdown::Read);
        }
    }

    /// What it means that an accept failed.
    pub(super) fn accept_error(&self, errno: i32) -> AcceptError {
        match errno {
            // The backlog is empty; or the socket listens no more, and that is what was wanted.
            libc::EAGAIN | libc::EINVAL if self.is_ending() => AcceptError::Empty,
            errno => errno::of_accept(errno),
        }
    }

    /// Gives an accepted connection the options that it did not inherit. To be called before its
    /// first receive.
    pub fn equip(&self, connection: BorrowedFd<'_>) {
        if self.transport == Transport::Tcp {
            if self.is_ending() {
                // Inherited from the listener, like all options: the filter that refuses new
                // connections back. It would keep a SYN out of season from being answered (RFC
                // 5961).
                let _ = SockRef::from(&connection).detach_filter();
            }
            return;
        }
        let connection = SockRef::from(&connection);
        if self.transport == Transport::UnixSeqpacket {
            // Marks messages, so that an empty one can be told from the end: see `driver/messages`.
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
        ListeningSocket {
            socket: socket.into(),
            transport,
            receive_buffer: None,
            send_buffer: None,
            owner: Owner::Us,
            ending: AtomicBool::new(true),
        }
    }

    /// Goal: a connection in the backlog stays there and is served; a later one is refused at once.
    #[test]
    fn newcomers_are_turned_away_and_old_connections_are_not_touched() {
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
    fn a_unix_listener_refuses_newcomers_and_keeps_its_backlog() {
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
