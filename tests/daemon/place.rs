//! Places of an echo server: listening sockets made by the harness, and connections to them.
//!
//! A place is a TCP address or the path of a Unix socket. Ports are never fixed: the kernel
//! selects one, and the daemon inherits the socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::machine::time_limit;
use crate::tape::Tape;

/// Where to connect to.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Place {
    fn address(&self) -> SockAddr {
        match self {
            Self::Tcp(address) => SockAddr::from(*address),
            Self::Unix(path) => SockAddr::unix(path).unwrap(),
        }
    }

    /// A socket of the right kind, not yet connected; options may be set on it first.
    pub(crate) fn socket(&self) -> Socket {
        let socket = Socket::new(self.address().domain(), Type::STREAM, None).unwrap();
        socket.set_read_timeout(Some(time_limit(60.0))).unwrap();
        socket.set_write_timeout(Some(time_limit(60.0))).unwrap();
        socket
    }

    /// Connects `socket` to it.
    pub(crate) fn connect_with(&self, socket: Socket) -> Socket {
        socket
            .connect(&self.address())
            .unwrap_or_else(|error| panic!("connect: {self:?}: {error}"));
        if let Self::Tcp(_) = self {
            socket.set_tcp_nodelay(true).unwrap();
        }
        socket
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Socket {
        self.connect_with(self.socket())
    }

    /// A new connection, if connect(2) succeeds.
    pub(crate) fn try_connect(&self) -> std::io::Result<Socket> {
        let socket = self.socket();
        socket.connect(&self.address())?;
        Ok(socket)
    }

    /// A new connection with small buffers, so that few bytes are in flight when it does not read.
    pub(crate) fn connect_narrow(&self) -> Socket {
        let socket = self.socket();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        socket.set_send_buffer_size(8 * 1024).unwrap();
        self.connect_with(socket)
    }

    /// Whether a connection echoes a word within `limit`.
    pub(crate) fn answers(&self, limit: Duration) -> bool {
        let socket = self.connect();
        socket.set_read_timeout(Some(limit)).unwrap();
        ping(&socket, b"are you there?")
    }
}

/// A listening socket, kept open here as the service manager keeps it, and its place.
pub(crate) struct Listening {
    /// The socket.
    pub(crate) socket: Socket,
    /// Where to connect to it.
    pub(crate) place: Place,
}

impl Listening {
    /// On a free port of 127.0.0.1.
    pub(crate) fn ipv4() -> Self {
        Self::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    /// On a free port of ::1; none when this host has no IPv6.
    pub(crate) fn ipv6() -> Option<Self> {
        Self::tcp(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)))
    }

    /// On a free port of all addresses of both families; none when this host has no IPv6.
    pub(crate) fn both() -> Option<Self> {
        let mut listening = Self::tcp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
        let Place::Tcp(address) = &mut listening.place else { return None };
        // Clients use IPv4, which a socket for both families sees in its mapped form.
        address.set_ip(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into());
        Some(listening)
    }

    /// `count` sockets on one free port of 127.0.0.1, as `ReusePort=yes` makes them.
    pub(crate) fn several(count: usize) -> Vec<Self> {
        let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let several = (0..count).map(|_| {
            let socket = Self::tcp_with(address, true).unwrap();
            let Place::Tcp(chosen) = socket.place else { unreachable!("it was just made") };
            address = chosen;
            socket
        });
        several.collect()
    }

    fn tcp(address: SocketAddr) -> Option<Self> {
        Self::tcp_with(address, false)
    }

    fn tcp_with(address: SocketAddr, reuse_port: bool) -> Option<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).ok()?;
        socket.set_reuse_port(reuse_port).ok()?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified()).ok()?;
        }
        socket.bind(&SockAddr::from(address)).ok()?;
        socket.listen(4096).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Some(Self { socket, place: Place::Tcp(address) })
    }

    /// At `path`, which must not exist.
    pub(crate) fn unix(path: &Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(4096).unwrap();
        Self { socket, place: Place::Unix(path.to_owned()) }
    }

    /// Another descriptor of the same socket, for a daemon to inherit.
    pub(crate) fn hand_over(&self) -> OwnedFd {
        self.socket.try_clone().unwrap().into()
    }
}

/// Makes `source` the address that `socket` will connect from. A port selected by bind(2) would not
/// be available to other tests until a minute after the end.
pub(crate) fn come_from(socket: &Socket, source: IpAddr) {
    setsockopt(socket, IpBindAddressNoPort, &true).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
}

/// Sends `word` and reads as much back; false if the peer stayed silent or ended. A wrong answer is
/// a panic.
pub(crate) fn ping(mut socket: &Socket, word: &[u8]) -> bool {
    if socket.write_all(word).is_err() {
        return false;
    }
    let mut answer = vec![0; word.len()];
    let complete = socket.read_exact(&mut answer).is_ok();
    assert!(!complete || answer == word, "sent {word:?}, got {answer:?}");
    complete
}

/// Sends the part of `tape` from `from` to `to`.
pub(crate) fn send_tape(mut socket: &Socket, tape: Tape, from: u64, to: u64) {
    let mut at = from;
    while at < to {
        let length = usize::try_from((to - at).min(64 * 1024)).unwrap();
        socket
            .write_all(&tape.bytes(at, length))
            .unwrap_or_else(|error| panic!("send at byte {at} of {to}: {error}"));
        at += length as u64;
    }
}

/// Reads the part of `tape` from `from` to `to`, each byte compared.
pub(crate) fn expect_tape(mut socket: &Socket, tape: Tape, from: u64, to: u64) {
    let mut scratch = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut at = from;
    while at < to {
        let room = usize::try_from((to - at).min(buffer.len() as u64)).unwrap();
        let length = socket
            .read(&mut buffer[..room])
            .unwrap_or_else(|error| panic!("receive at byte {at} of {to}: {error}"));
        assert_ne!(length, 0, "the echo ended at byte {at} of {to}");
        tape.check(at, &buffer[..length], &mut scratch);
        at += length as u64;
    }
}

/// Asserts an orderly end: no further byte, no reset.
pub(crate) fn expect_end(mut socket: &Socket) {
    let mut buffer = [0; 16];
    match socket.read(&mut buffer) {
        Ok(0) => {}
        Ok(length) => panic!("{length} bytes too many: {:?}", &buffer[..length]),
        Err(error) => panic!("no orderly end: {error}"),
    }
}

/// Asserts that the peer neither sends nor ends for `span`.
pub(crate) fn expect_silence(mut socket: &Socket, span: Duration) {
    let before = socket.read_timeout().unwrap();
    socket.set_read_timeout(Some(span)).unwrap();
    let answer = socket.read(&mut [0; 16]);
    socket.set_read_timeout(before).unwrap();
    match answer {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("expected silence, got {other:?}"),
    }
}

/// Reads until the peer ends or resets, but no longer than `limit`; how many bytes came and how it
/// ended.
pub(crate) fn read_out(mut socket: &Socket, limit: Duration) -> (u64, Result<(), ErrorKind>) {
    let start = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return (count, Ok(())),
            Ok(length) => count += length as u64,
            Err(error) => return (count, Err(error.kind())),
        }
        assert!(start.elapsed() < limit, "no end after {limit:?} and {count} bytes");
    }
}

/// Writes the tape to a socket without reading, until it takes nothing for `rest`; returns the
/// number of bytes.
pub(crate) fn stuff(mut socket: &Socket, tape: Tape, rest: Duration) -> u64 {
    socket.set_nonblocking(true).unwrap();
    let mut at = 0;
    while writable(socket, rest) {
        match socket.write(&tape.bytes(at, 16 * 1024)) {
            Ok(length) => at += length as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("stuffing at byte {at}: {error}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
    at
}

/// Whether `socket` takes bytes within `limit`.
pub(crate) fn writable(socket: &Socket, limit: Duration) -> bool {
    poll(socket, PollFlags::POLLOUT, limit)
}

/// Whether `socket` has bytes, an end or an error within `limit`.
pub(crate) fn readable(socket: &Socket, limit: Duration) -> bool {
    poll(socket, PollFlags::POLLIN, limit)
}

fn poll(socket: &Socket, what: PollFlags, limit: Duration) -> bool {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(socket.as_fd(), what)];
    let timeout = PollTimeout::try_from(limit).unwrap();
    nix::poll::poll(&mut fds, timeout).unwrap() > 0
}

/// Closes with a reset instead of an end.
pub(crate) fn reset(socket: Socket) {
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
}
