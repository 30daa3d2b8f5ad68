//! Keepalive probes: the kernel sends one when the core requests it.
//!
//! By default the kernel would probe by its own timers. Timers of minutes are coarse (2 s and
//! more), so connections that were opened together in large numbers are probed in one burst, and
//! loopback and veth drop what exceeds `net.core.netdev_max_backlog` (1,000). Therefore keep-alive
//! is on for each TCP connection, but with times so long that the kernel never probes by itself
//! (`listen` sets them, and connections inherit them). A probe is made by lowering `TCP_KEEPIDLE`
//! below the present silence: that fires the timer at once (`tcp_sock_set_keepidle_locked`, Linux
//! 6.1 to 6.18).

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::receive::Receiving;
use super::{Driver, Transport};
use crate::token::Token;
use echo_core::kernel::Kernel as _;
use echo_core::op::{ConnectionId, Event, SizeClass, Timestamp};

/// The longest silence and the longest interval that the kernel accepts, in seconds
/// (`MAX_TCP_KEEPIDLE`).
const NEVER_S: i32 = 32_767;

/// The largest number of probes that the kernel accepts (`MAX_TCP_KEEPCNT`).
const PROBES_MAX: u32 = 127;

/// Stops the kernel's own probes on a connection of the previous process, whose listener may have
/// had other options.
fn hold_probes(connection: BorrowedFd<'_>) {
    let never = Duration::from_secs(NEVER_S as u64);
    let options = TcpKeepalive::new().with_time(never).with_interval(never);
    // It fails on no TCP socket. A connection on which the kernel continues to probe is no worse
    // than before.
    let _ = SockRef::from(&connection).set_tcp_keepalive(&options.with_retries(PROBES_MAX));
}

impl Driver {
    /// Makes the kernel send a probe at once. `again`: the last one was not answered.
    pub(super) fn probe(&mut self, connection: ConnectionId, silent_s: u16, again: bool) {
        let socket = self.socket(connection);
        if socket.transport() != Transport::Tcp {
            return;
        }
        let fd = socket.fd.as_raw_fd();
        if again {
            // With a user timeout that is shorter than this silence the second probe would end the
            // connection, answered or not (`tcp_keepalive_timer`).
            set_option(fd, libc::TCP_USER_TIMEOUT, 0);
        }
        // Half of the silence: the kernel may have received something from the peer a little later
        // than we have. After an answer the timer would send another probe after this time.
        set_option(fd, libc::TCP_KEEPIDLE, i32::from(silent_s / 2).max(1));
    }

    /// Ends the probing: no further probe is sent. Returns when something last arrived from the
    /// peer.
    pub(super) fn end_probe(&mut self, connection: ConnectionId, again: bool) {
        let now = self.now();
        let socket = self.socket(connection);
        if socket.transport() != Transport::Tcp {
            return self.answers.push(Event::ProbeEnded { connection, heard: now });
        }
        let (fd, receiving) = (socket.fd.as_raw_fd(), socket.receiving);
        let silent_ms = milliseconds_of_silence(fd);
        set_option(fd, libc::TCP_KEEPIDLE, NEVER_S);
        if again && let Some(timeout @ 1..) = self.user_timeout() {
            set_option(fd, libc::TCP_USER_TIMEOUT, timeout);
        }
        if receiving == Receiving::Small && is_readable(&self.socket(connection).fd) {
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
        hold_probes(connection);
        if let Some(timeout) = self.user_timeout() {
            set_option(connection.as_raw_fd(), libc::TCP_USER_TIMEOUT, timeout);
        }
    }

    /// The user timeout of new connections, in milliseconds; 0 if they have none. None if no
    /// listener says so.
    fn user_timeout(&self) -> Option<i32> {
        let listener = self.listeners.iter().find(|it| it.transport == Transport::Tcp)?;
        let timeout = SockRef::from(&listener.socket).tcp_user_timeout().ok()?.unwrap_or_default();
        i32::try_from(timeout.as_millis()).ok()
    }
}

/// Sets an option of TCP. It fails only if the connection is gone, which the receive reports.
fn set_option(fd: RawFd, option: i32, value: i32) {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is an int that lives during the call, and `length` is its size.
    unsafe {
        libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const value).cast(), length);
    }
}

/// For how long nothing has arrived from the peer, not even an acknowledgement. 0 if the kernel
/// does not report it.
fn milliseconds_of_silence(fd: RawFd) -> u32 {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` has `length` bytes, which the kernel fills at most.
    unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
    }
    // SAFETY: all fields are numbers, zeroed where the kernel wrote nothing.
    unsafe { info.assume_init() }.tcpi_last_ack_recv
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
    use std::sync::atomic::AtomicBool;

    use super::super::tenants::driver;
    use super::*;
    use crate::{ConnectionParts, ListeningSocket, Owner};

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
        let mut driver = driver(Arc::from([ListeningSocket {
            socket: listener.into(),
            transport: Transport::Tcp,
            receive_buffer: None,
            send_buffer: None,
            owner: Owner::Us,
            ending: AtomicBool::new(false),
            identity: None,
        }]));
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
