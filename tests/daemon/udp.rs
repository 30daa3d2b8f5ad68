//! Tools for tests of datagrams: sockets that the daemon inherits, clients that compare every byte,
//! and the figures of its listeners.
//!
//! Nothing here waits for a fixed time: the figures show whether a datagram was dropped.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, setsockopt, sockopt,
};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

use crate::daemon::{Daemon, Launch, Remains};
use crate::ending::Losses;
use crate::machine::{Scratch, time_limit, wait_until};
use crate::place::{Listening, Place};
use crate::tape::Tape;

/// The longest payload over IPv4, and over IPv6.
pub(crate) const LONGEST: [usize; 2] = [65_507, 65_527];

/// The configuration of one listener of the daemon's own, on a free port of 127.0.0.1.
pub(crate) const OWN: &str = "[[listener]]\nname = \"own\"\naddress = \"udp:127.0.0.1:0\"\n";

/// A bound socket, kept open here as the service manager keeps it.
pub(crate) struct Bound {
    /// The socket. What is sent from it has the daemon's own address as its source.
    pub(crate) socket: UdpSocket,
    /// Where clients find it: on loopback, even if it is bound to every address.
    pub(crate) address: SocketAddr,
}

impl Bound {
    /// Bound to this address; None if this host has no IPv6.
    pub(crate) fn at(address: SocketAddr) -> Option<Self> {
        Self::with(address, false)
    }

    /// On a free port of 127.0.0.1.
    pub(crate) fn ipv4() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
    }

    /// On a free port of every IPv4 address.
    pub(crate) fn every_ipv4() -> Self {
        Self::at((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap()
    }

    /// On a free port of ::1.
    pub(crate) fn ipv6() -> Option<Self> {
        Self::at((Ipv6Addr::LOCALHOST, 0).into())
    }

    /// On a free port of every address of both families.
    pub(crate) fn both() -> Option<Self> {
        Self::at((Ipv6Addr::UNSPECIFIED, 0).into())
    }

    /// `count` sockets on one free port of 127.0.0.1, as `ReusePort=yes` makes them.
    pub(crate) fn several(count: usize) -> Vec<Self> {
        let first = Self::with((Ipv4Addr::LOCALHOST, 0).into(), true).unwrap();
        let address = first.address;
        let more = (1..count).map(|_| Self::with(address, true).unwrap());
        std::iter::once(first).chain(more).collect()
    }

    fn with(address: SocketAddr, reuse_port: bool) -> Option<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).ok()?;
        socket.set_reuse_port(reuse_port).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified()).unwrap();
        }
        socket.bind(&address.into()).ok()?;
        let mut address = socket.local_addr().unwrap().as_socket().unwrap();
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Some(Self { socket: socket.into(), address })
    }

    /// The same port at another address.
    pub(crate) fn address_at(&self, ip: impl Into<std::net::IpAddr>) -> SocketAddr {
        SocketAddr::new(ip.into(), self.address.port())
    }

    /// Another descriptor of the same socket, for a daemon to inherit.
    pub(crate) fn hand_over(&self) -> OwnedFd {
        self.socket.try_clone().unwrap().into()
    }
}

/// A daemon that serves datagrams, with a status socket for its figures.
pub(crate) struct Server {
    /// The daemon.
    pub(crate) daemon: Daemon,
    _scratch: Scratch,
}

impl Server {
    /// With these sockets and this configuration.
    pub(crate) fn start<'a>(sockets: impl IntoIterator<Item = &'a Bound>, config: &str) -> Self {
        let strangers = sockets.into_iter().map(Bound::hand_over).collect();
        Self::launch(Launch { strangers, config: config.to_owned(), ..Launch::default() })
    }

    /// From this launch, with a status socket added.
    pub(crate) fn launch(launch: Launch) -> Self {
        let scratch = Scratch::new();
        let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
        let daemon = Launch { admin_sockets, ..launch }.start();
        Self { daemon, _scratch: scratch }
    }

    /// The addresses that it has bound itself, from its log.
    pub(crate) fn own_addresses(&self) -> Vec<SocketAddr> {
        let own = |line: &String| {
            let (address, _) = line.strip_prefix("info listening on udp:")?.split_once(' ')?;
            (!line.contains("inherited")).then(|| address.parse().unwrap())
        };
        self.daemon.log().iter().filter_map(own).collect()
    }

    /// Its listeners for datagrams, as the status has them.
    pub(crate) fn listeners(&self) -> Vec<Value> {
        let Place::Unix(path) = self.daemon.admin_place("status") else { panic!("no Unix socket") };
        let mut text = String::new();
        let mut socket = std::os::unix::net::UnixStream::connect(path).unwrap();
        std::io::Read::read_to_string(&mut socket, &mut text).unwrap();
        let mut status: Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value(status["datagram_listeners"].take()).unwrap()
    }

    /// The sum of a figure over all listeners.
    pub(crate) fn figure(&self, name: &str) -> u64 {
        self.listeners().iter().map(|listener| listener[name].as_u64().unwrap()).sum()
    }

    /// Datagrams dropped for this reason so far.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        let count = |listener: &Value| listener["dropped"][reason].as_u64();
        let known = |listener: &Value| count(listener).unwrap_or_else(|| panic!("{listener}"));
        self.listeners().iter().map(known).sum()
    }

    /// Waits until exactly `count` datagrams were dropped for this reason.
    pub(crate) fn wait_for_dropped(&self, reason: &str, count: u64) {
        wait_until(&format!("{count} datagrams dropped as {reason}"), time_limit(20.0), || {
            let dropped = self.dropped(reason);
            assert!(dropped <= count, "{dropped} were dropped as {reason}: {:?}", self.listeners());
            dropped == count
        });
    }

    /// Its warnings, except that about the limit on open files, which depends on the machine.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let lines = self.daemon.log();
        let counts = |line: &String| line.starts_with("warn ") && !line.contains("LimitNOFILE=");
        lines.into_iter().filter(counts).collect()
    }

    /// Rewrites its configuration and waits for the end of the reload.
    pub(crate) fn reload(&self, config: &str) {
        std::fs::write(self.daemon.config_path(), config).unwrap();
        let before = self.daemon.manager.values("READY").len();
        self.daemon.signal(nix::sys::signal::Signal::SIGHUP);
        wait_until("the end of a reload", time_limit(20.0), || {
            self.daemon.manager.values("READY").len() > before
        });
    }

    /// Holds all its threads, until [`Self::go_on`]: what is sent meanwhile waits in its sockets.
    pub(crate) fn hold(&self) {
        self.daemon.signal(nix::sys::signal::Signal::SIGSTOP);
        wait_until("the daemon to be held", time_limit(10.0), || self.daemon.process.is_stopped());
    }

    /// See [`Self::hold`].
    pub(crate) fn go_on(&self) {
        self.daemon.signal(nix::sys::signal::Signal::SIGCONT);
    }

    /// Waits until every received datagram was answered or dropped, and checks that no more were
    /// sent than received. A client has its answer before the daemon has counted it.
    pub(crate) fn balance(&self) {
        wait_until("every datagram to be answered or dropped", time_limit(20.0), || {
            self.listeners().iter().all(|listener| {
                let figure = |name: &str| listener[name].as_u64().unwrap();
                let dropped = listener["dropped"].as_object().unwrap().values();
                let dropped: u64 = dropped.map(|count| count.as_u64().unwrap()).sum();
                let told = figure("datagrams_sent") + dropped;
                assert!(told <= figure("datagrams_received"), "{listener}");
                assert!(figure("bytes_sent") <= figure("bytes_received"), "{listener}");
                told == figure("datagrams_received")
            })
        });
    }

    /// Checks its figures, asks it to end, and checks its end.
    pub(crate) fn stop(self) -> Remains {
        self.balance();
        self.daemon.stop()
    }

    /// Stops it and waits for the end, without checks of figures that a drain may change.
    pub(crate) fn end(self) -> Remains {
        self.daemon.signal(nix::sys::signal::Signal::SIGTERM);
        self.daemon.finish(Losses::None)
    }
}

/// A client with a socket of its own.
pub(crate) struct Client {
    /// Connected, so that it receives only from the address that it sends to.
    pub(crate) socket: UdpSocket,
}

impl Client {
    /// From a free port of the loopback address of the same family.
    pub(crate) fn to(address: SocketAddr) -> Self {
        let source: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
        };
        Self::from(source, address)
    }

    /// From this source.
    pub(crate) fn from(source: SocketAddr, address: SocketAddr) -> Self {
        let socket = UdpSocket::bind(source).unwrap();
        // As large as the system permits, so that a late reader loses nothing.
        SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(time_limit(20.0))).unwrap();
        Self { socket }
    }

    /// Its own address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, payload: &[u8]) {
        assert_eq!(self.socket.send(payload).unwrap(), payload.len());
    }

    /// Sends the bytes as datagrams of `segment` bytes each, in one burst.
    pub(crate) fn send_burst(&self, bytes: &[u8], segment: u16) {
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let slices = [IoSlice::new(bytes)];
        let fd = self.socket.as_raw_fd();
        let sent = sendmsg::<()>(fd, &slices, &control, MsgFlags::empty(), None).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The next datagram.
    pub(crate) fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    /// From now on bursts are received as bursts, with [`Self::receive_burst`].
    pub(crate) fn accept_bursts(&self) {
        setsockopt(&self.socket, sockopt::UdpGroSegment, &true).unwrap();
    }

    /// The next datagram or burst, with the length of its segments if it is a burst.
    pub(crate) fn receive_burst(&self) -> (Vec<u8>, Option<i32>) {
        let mut buffer = vec![0; 65_536];
        let mut control = nix::cmsg_space!(i32);
        let (length, segment) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let fd = self.socket.as_raw_fd();
            let got = recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::empty());
            let got = got.unwrap();
            let segment = got.cmsgs().unwrap().find_map(|message| match message {
                ControlMessageOwned::UdpGroSegments(segment) => Some(segment),
                _ => None,
            });
            (got.bytes, segment)
        };
        buffer.truncate(length);
        (buffer, segment)
    }

    /// Asserts that nothing waits to be received now.
    pub(crate) fn expect_nothing(&self) {
        expect_nothing(&self.socket);
    }

    /// Sends a datagram of `length` unique bytes and asserts that it comes back.
    pub(crate) fn ping(&self, length: usize) {
        let payload = Tape::new(u64::from(self.address().port())).bytes(length as u64, length);
        self.send(&payload);
        let answer = self.receive();
        assert_eq!(answer.len(), length, "{length} bytes came back as {}", answer.len());
        assert!(answer == payload, "{length} bytes came back changed");
    }

    /// Sends numbered datagrams, at most `window` of them ahead of their echoes, and asserts that
    /// each comes back in order. `length` gives the length of a datagram by its number, at least 8.
    pub(crate) fn converse(&self, count: u64, window: u64, length: impl Fn(u64) -> usize) {
        let tape = Tape::new(u64::from(self.address().port()));
        let mut sent = 0;
        for expected in 0..count {
            while sent < count && sent < expected + window {
                let mut payload = tape.bytes(sent, length(sent));
                payload[..8].copy_from_slice(&sent.to_be_bytes());
                self.send(&payload);
                sent += 1;
            }
            let answer = self.receive();
            let number = u64::from_be_bytes(*answer.first_chunk().unwrap());
            assert_eq!(number, expected, "out of order, doubled or lost");
            assert_eq!(answer.len(), length(number), "datagram {number}");
            tape.check(number + 8, &answer[8..], &mut Vec::new());
        }
        self.expect_nothing();
    }
}

/// Asserts that nothing waits in the socket now.
pub(crate) fn expect_nothing(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let got = socket.recv(&mut [0; 16]);
    socket.set_nonblocking(false).unwrap();
    match got {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("nothing was expected, but there was {other:?}"),
    }
}
