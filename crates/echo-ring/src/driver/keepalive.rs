//! Keepalive probes: the kernel sends one when the core requests it.
//!
//! By default the kernel would probe by its own timers. Timers of minutes are coarse (2 s and
//! more), so connections that were opened together in large numbers are probed in one burst, and
//! loopback and veth drop what exceeds `net.core.netdev_max_backlog` (1,000). Therefore keep-alive
//! is on for each TCP connection, but with times so long that the kernel never probes by itself
//! (`listen` sets them, and connections inherit them). A probe is made by lowering `TCP_KEEPIDLE`
//! below the present silence: that fires the timer at once (`tcp_sock_set_keepidle_locked`, Linux
//! 6.1 to 6.18).

use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::getsockopt_impl;
use nix::sys::socket::sockopt::{GetStruct, TcpKeepIdle, TcpUserTimeout};
use nix::sys::socket::{SetSockOpt, getsockopt, setsockopt};
use socket2::{SockRef, TcpKeepalive};

use super::receive::Receiving;
use super::{Driver, Transport};
use crate::token::Token;
use echo_core::kernel::Kernel as _;
use echo_core::op::{ConnectionId, Event, SizeClass, Timestamp};

/// The longest silence and the longest interval that the kernel accepts, in seconds
/// (`MAX_TCP_KEEPIDLE`).
const NEVER_S: u32 = 32_767;

/// The largest number of probes that the kernel accepts (`MAX_TCP_KEEPCNT`).
const PROBES_MAX: u32 = 127;

/// The position of `tcpi_last_ack_recv` in the entries of `struct tcp_info`.
const LAST_ACK_RECV: usize = offset_of!(libc::tcp_info, tcpi_last_ack_recv) / size_of::<u32>();

/// `TCP_INFO`, up to that entry: kernels differ in the length of the whole.
#[derive(Clone, Copy, Debug)]
struct TcpInfoHead;

getsockopt_impl!(
    TcpInfoHead,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u32; LAST_ACK_RECV + 1],
    GetStruct<[u32; LAST_ACK_RECV + 1]>
);

impl Driver {
    /// Makes the kernel send a probe at once. `again`: the last one was not answered.
    pub(super) fn probe(&mut self, connection: ConnectionId, silent_s: u16, again: bool) {
        let socket = self.socket(connection);
        if socket.transport() != Transport::Tcp {
            return;
        }
        if again {
            // With a user timeout that is shorter than this silence the second probe would end the
            // connection, answered or not (`tcp_keepalive_timer`).
            set_option(&socket.fd, TcpUserTimeout, 0);
        }
        // Half of the silence: the kernel may have received something from the peer a little later
        // than we have. After an answer the timer would send another probe after this time.
        set_option(&socket.fd, TcpKeepIdle, u32::from(silent_s / 2).max(1));
    }

    /// Ends the probing: no further probe is sent. Returns when something last arrived from the
    /// peer.
    pub(super) fn end_probe(&mut self, connection: ConnectionId, again: bool) {
        let now = self.now();
        let socket = self.socket(connection);
        if socket.transport() != Transport::Tcp {
            return self.answers.push(Event::ProbeEnded { connection, heard: now });
        }
        let silent_ms = milliseconds_of_silence(&socket.fd);
        set_option(&socket.fd, TcpKeepIdle, NEVER_S);
        if again && let Some(timeout @ 1..) = self.user_timeout() {
            set_option(&socket.fd, TcpUserTimeout, timeout);
        }
        if socket.receiving == Receiving::Small && is_readable(&socket.fd) {
            // A multishot receive that stands at an urgent byte while a signal is pending for this
            // thread (it is stopped, frozen or traced) mistakes it for an empty socket and
            // continues to sleep (`tcp_recvmsg_locked`, seen on Linux 6.18). A new receive finds
            // the bytes.
            self.ring.cancel(Token::Receive(connection, SizeClass::Small));
        }
        let heard = Timestamp(now.0.saturating_sub(u64::from(silent_ms)));
        self.answers.push(Event::ProbeEnded { connection, heard });
    }

    /// Gives a TCP connection of the previous process the options that it would have inherited from
    /// a listener of ours. Its own listener may have had others, and a probe may have been in
    /// progress.
    pub(super) fn hold_imported(&self, connection: BorrowedFd<'_>) {
        let never = Duration::from_secs(NEVER_S.into());
        let options = TcpKeepalive::new().with_time(never).with_interval(never);
        // It fails on no TCP socket. A connection on which the kernel continues to probe is no
        // worse than before.
        let _ = SockRef::from(&connection).set_tcp_keepalive(&options.with_retries(PROBES_MAX));
        if let Some(timeout) = self.user_timeout() {
            set_option(&connection, TcpUserTimeout, timeout);
        }
    }

    /// The user timeout of new connections, in milliseconds; 0 if they have none. None if no
    /// listener says so.
    fn user_timeout(&self) -> Option<u32> {
        let listener = self.listeners.iter().find(|it| it.transport == Transport::Tcp)?;
        getsockopt(&listener.socket, TcpUserTimeout).ok()
    }
}

/// Sets an option of TCP. It fails only if the connection is gone, which the receive reports.
fn set_option(socket: &impl AsFd, option: impl SetSockOpt<Val = u32>, value: u32) {
    let _ = setsockopt(socket, option, &value);
}

/// For how long nothing has arrived from the peer, not even an acknowledgement. 0 if the kernel
/// does not report it.
fn milliseconds_of_silence(socket: &OwnedFd) -> u32 {
    getsockopt(socket, TcpInfoHead).map_or(0, |info| info[LAST_ACK_RECV])
}

/// Whether a receive would not wait: bytes are there, or the end of the stream.
fn is_readable(socket: &OwnedFd) -> bool {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    SockRef::from(socket).recv_with_flags(&mut [MaybeUninit::uninit()], flags).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::sync::Arc;

    use super::super::tenants::driver;
    use super::*;
    use crate::{ConnectionParts, ListeningSocket};

    /// The user timeout of a connection that the previous process left with one of a minute, where
    /// new connections have this one.
    fn of_imported(timeout: Option<Duration>) -> Option<Duration> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        SockRef::from(&listener).set_tcp_user_timeout(timeout).expect("TCP_USER_TIMEOUT");
        let address: SocketAddr = listener.local_addr().expect("its address");
        let _peer = TcpStream::connect(address).expect("it listens");
        let (connection, _) = listener.accept().expect("a connection");
        let minute = Some(Duration::from_secs(60));
        SockRef::from(&connection).set_tcp_user_timeout(minute).expect("TCP_USER_TIMEOUT");
        let same = connection.try_clone().expect("a descriptor");
        let listener = ListeningSocket::of(listener.into(), Transport::Tcp);
        let mut driver = driver(Arc::from([listener]));
        driver.import(ConnectionId::new(0, 0), ConnectionParts::of(connection.into()));
        SockRef::from(&same).tcp_user_timeout().expect("TCP_USER_TIMEOUT")
    }

    #[test]
    fn the_user_timeout_of_an_imported_connection_is_the_present_one() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(of_imported(second), second);
        let off = of_imported(None).filter(|timeout| !timeout.is_zero());
        assert_eq!(off, None, "it was switched off");
    }
}
