//! The worlds with a real ring and real sockets: loopback TCP and Unix streams.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use echo_core::op::Budget;
use echo_core::op::{ConnectionId, PeerAddr, ReceiveMode};
use echo_ring::{Driver, Identity, ListeningSocket, Settings, SpillMemory, Transport, probe};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::fake::peer::{PeerId, Saying, stream};
use crate::world::{End, Resets, Setup, World, header};

/// As small as TCP permits, so that a socket fills up within a script.
const SOCKET_BUFFER: usize = 4096;

/// A real ring, its listener, and the peers.
struct Real {
    driver: Driver,
    wake: Arc<EventFd>,
    setup: Setup,
    listeners: Arc<[ListeningSocket]>,
    memory: Arc<SpillMemory>,
    address: SockAddr,
    domain: Domain,
    peers: BTreeMap<PeerId, Peer>,
    next: usize,
}

struct Peer {
    socket: Option<Socket>,
    /// What it writes first, and does not get back.
    header: Vec<u8>,
    written: usize,
    read: usize,
    end: End,
}

impl Real {
    fn new(setup: Setup, domain: Domain, address: &SockAddr) -> Self {
        let listener = Socket::new(domain, Type::STREAM, None).expect("a socket");
        listener.set_send_buffer_size(SOCKET_BUFFER).expect("SO_SNDBUF");
        // The kernel's own interval is two hours, so it only sends requested probes.
        listener.set_keepalive(true).expect("SO_KEEPALIVE");
        listener.bind(address).expect("a free address");
        listener.listen(16).expect("listen");
        let address = listener.local_addr().expect("its address");
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake = Arc::new(wake.expect("an eventfd"));
        let transport = if domain == Domain::UNIX { Transport::Unix } else { Transport::Tcp };
        let listeners = Arc::from([ListeningSocket {
            send_buffer: Some(SOCKET_BUFFER as u32),
            identity: Some(Identity { host: None, instance: None, listener: "here".into() }),
            ..ListeningSocket::of(listener.into(), transport)
        }]);
        let memory = SpillMemory::new(1 << 20);
        let driver = Self::driver(setup, &listeners, &memory, &wake);
        let peers = BTreeMap::new();
        Self { driver, wake, setup, listeners, memory, address, domain, peers, next: 0 }
    }

    fn driver(
        setup: Setup,
        listeners: &Arc<[ListeningSocket]>,
        memory: &Arc<SpillMemory>,
        wake: &Arc<EventFd>,
    ) -> Driver {
        let driver = Driver::new(Settings {
            datagram_sockets: Vec::new(),
            listeners: Arc::clone(listeners),
            wake: Arc::clone(wake),
            buffers: setup.buffers,
            connections_max: 0,
            memory: Arc::clone(memory),
            busy_poll: None,
            origin: Instant::now(),
            worker: 0,
        });
        driver.unwrap_or_else(|unusable| panic!("no ring to compare with: {unusable}"))
    }

    fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
        let mut next = Self::driver(self.setup, &self.listeners, &self.memory, &self.wake);
        for &(old, new) in renamed {
            let parts = self.driver.release(old);
            assert!(next.take_memory_for(&parts.unsent));
            next.import(new, parts);
        }
        self.driver = next;
    }

    fn connect(&mut self, header: Vec<u8>) -> PeerId {
        let socket = Socket::new(self.domain, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(SOCKET_BUFFER).expect("SO_RCVBUF");
        socket.connect(&self.address).expect("the listener's backlog has room");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let id = PeerId(self.next);
        self.next += 1;
        let (socket, end) = (Some(socket), End::Open);
        self.peers.insert(id, Peer { socket, header, written: 0, read: 0, end });
        id
    }

    fn end_listener(&mut self) {
        let listener = &self.listeners[0];
        listener.ending.store(true, Ordering::Release);
        listener.turn_away().expect("new connections can be refused");
    }

    fn peer(&mut self, id: PeerId) -> &mut Peer {
        self.peers.get_mut(&id).expect("a peer that connected")
    }
}

impl Peer {
    fn write(&mut self, id: PeerId, length: usize) {
        let byte = |at| self.header.get(at).copied().unwrap_or_else(|| stream(id, at));
        let bytes: Vec<u8> = (self.written..self.written + length).map(byte).collect();
        let mut socket = self.socket.as_ref().expect("a peer that is open");
        socket.write_all(&bytes).expect("a script writes no more than there is room for");
        self.written += length;
    }

    fn read(&mut self, id: PeerId, length: usize) -> usize {
        let mut total = 0;
        while total < length && self.end == End::Open {
            let mut bytes = vec![0; (length - total).min(4096)];
            let Some(mut socket) = self.socket.as_ref() else { break };
            match socket.read(&mut bytes) {
                Ok(0) => self.end = End::Finished,
                Ok(count) => {
                    for (index, byte) in bytes[..count].iter().enumerate() {
                        let offset = self.header.len() + self.read + index;
                        assert_eq!(*byte, stream(id, offset), "{id:?}: a wrong byte at {offset}");
                    }
                    self.read += count;
                    total += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => self.end = End::Reset,
                Err(error) => panic!("{id:?} reads: {error}"),
            }
        }
        total
    }

    fn read_identity(&mut self) -> bool {
        let mut socket = self.socket.as_ref().expect("a peer that is open");
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") {
            match socket.read(&mut byte) {
                Ok(1) => line.extend(byte),
                Err(error) if error.kind() == ErrorKind::WouldBlock && line.is_empty() => {
                    return false;
                }
                other => panic!("{other:?} behind {:?}", String::from_utf8_lossy(&line)),
            }
        }
        let begin = b"{\"listener\":\"here\",\"worker\":0,\"peer\":\"";
        assert!(line.starts_with(begin), "{:?}", String::from_utf8_lossy(&line));
        true
    }

    fn reset(&mut self) {
        let socket = self.socket.take().expect("a peer that is open");
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
}

/// Whether the kernel is of this version or a later one.
fn kernel_since(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0_u32);
    (next(), next()) >= (major, minor)
}

/// The differences between the kinds of socket.
macro_rules! real_world {
    ($name:ident, $what:literal, $resets:expr, $domain:expr, $address:expr) => {
        #[doc = $what]
        pub(crate) struct $name(Real);

        impl World for $name {
            type Kernel = Driver;
            const RESETS: Resets = $resets;
            // A multishot receive on a Unix socket can miss the end (axboe/liburing#1549), so a
            // driver may avoid it.
            const MULTISHOT_LASTS: bool = matches!($resets, Resets::Always);
            const FEW_BUFFERS_GO_ROUND: bool = true;
            const SOURCE: PeerAddr = match $resets {
                Resets::Always => PeerAddr::Ipv4([127, 0, 0, 1]),
                Resets::WithUnreadBytes => PeerAddr::Local,
            };

            fn tells_backlog() -> bool {
                matches!($resets, Resets::Always) && kernel_since(6, 10)
            }

            fn modes() -> &'static [ReceiveMode] {
                modes()
            }

            fn new(setup: Setup) -> Self {
                Self(Real::new(setup, $domain, &$address))
            }

            fn kernel(&mut self) -> &mut Driver {
                &mut self.0.driver
            }

            fn budget(&self) -> Arc<dyn Budget> {
                Arc::clone(&self.0.memory) as Arc<dyn Budget>
            }

            fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
                self.0.hand_over(renamed);
            }

            fn connect(&mut self) -> PeerId {
                self.0.connect(Vec::new())
            }

            fn connect_with(&mut self, saying: Saying) -> PeerId {
                self.0.connect(header(saying))
            }

            fn write(&mut self, peer: PeerId, length: usize) {
                self.0.peer(peer).write(peer, length);
            }

            fn read(&mut self, peer: PeerId, length: usize) -> usize {
                self.0.peer(peer).read(peer, length)
            }

            fn read_identity(&mut self, peer: PeerId) -> bool {
                self.0.peer(peer).read_identity()
            }

            fn finish(&mut self, peer: PeerId) {
                let socket = self.0.peer(peer).socket.as_ref().expect("a peer that is open");
                socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
            }

            fn close(&mut self, peer: PeerId) {
                drop(self.0.peer(peer).socket.take());
            }

            fn reset(&mut self, peer: PeerId) {
                self.0.peer(peer).reset();
            }

            fn end(&mut self, peer: PeerId) -> End {
                let unread = self.0.peer(peer).read(peer, 1);
                assert_eq!(unread, 0, "a script asks for the end after the last byte");
                self.0.peer(peer).end
            }

            fn end_listener(&mut self) {
                self.0.end_listener();
            }

            fn refuses(&mut self) -> bool {
                let peer = Socket::new(self.0.domain, Type::STREAM, None).expect("a socket");
                let refused = peer.connect(&self.0.address).expect_err("nobody listens");
                refused.kind() == ErrorKind::ConnectionRefused
            }

            fn has_process_of_its_own() -> bool {
                has_process_of_its_own()
            }

            fn use_up_files(&mut self) {
                // The next descriptor would be this one, as the lowest free one is used.
                let free = File::open("/dev/null").expect("a last descriptor").as_raw_fd();
                limit_files(free as u64);
            }

            fn free_files(&mut self) {
                let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
                limit_files(most);
            }

            fn wake_soon(&mut self) {
                let wake = Arc::clone(&self.0.wake);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    wake.write(1).expect("an eventfd takes 1");
                });
            }
        }
    };
}

real_world!(Tcp, "Loopback TCP.", Resets::Always, Domain::IPV4, loopback());
real_world!(
    Unix,
    "Unix stream sockets.",
    Resets::WithUnreadBytes,
    Domain::UNIX,
    abstract_address()
);

fn limit_files(soft: u64) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, soft, most).expect("a lower limit");
}

/// Runs the present test again in a process of its own; true in that process.
fn has_process_of_its_own() -> bool {
    const ALONE: &str = "ECHO_CONFORMANCE_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let thread = std::thread::current();
    let name = thread.name().expect("a test's thread bears its name");
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    let output = command.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output();
    let output = output.expect("this program starts");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    false
}

/// The daemon uses multishot receives only where they can be bounded.
fn modes() -> &'static [ReceiveMode] {
    static MODES: OnceLock<&'static [ReceiveMode]> = OnceLock::new();
    MODES.get_or_init(|| {
        let features = probe().unwrap_or_else(|unusable| panic!("no ring: {unusable}"));
        match features.bounded_multishot_receive {
            true => &[ReceiveMode::WhenReadable, ReceiveMode::Multishot],
            false => &[ReceiveMode::WhenReadable],
        }
    })
}

/// A free port.
fn loopback() -> SockAddr {
    SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// A unique abstract name, which leaves no file behind.
pub(crate) fn abstract_address() -> SockAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("\0echo-uring-conformance-{}-{number}", std::process::id());
    SockAddr::unix(name).expect("a short name")
}
