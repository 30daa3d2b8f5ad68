//! The trait that scripts about datagrams run on, and its implementations.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echo_core::datagram::op::{Event, Header, Op, SocketId};
use echo_core::datagram::{Datagram, Endpoint};
use echo_core::kernel::{Kernel, Wake};
use echo_core::op::{self, ConnectionId, PeerAddr};
use echo_ring::{
    DATAGRAM_BUFFERS, DatagramHeaders, DatagramSocket, Driver, Identity, Settings, SpillMemory,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};

use crate::fake::choice::Choice;
use crate::fake::datagrams::{Answer, DatagramFaults, DatagramKernel, Packet};
use crate::world::ROOMY;

/// Buffers of the pool for datagrams.
pub(crate) const BUFFERS: u16 = DATAGRAM_BUFFERS.count;

/// A kernel with one datagram socket, and the clients on its other side, numbered from 0.
pub(crate) trait World {
    type Kernel: Kernel<Error: fmt::Debug>;
    /// The longest payload that a datagram of the first client has.
    const LENGTH_MAX: usize;
    /// Whether the kernel reports the destination of a datagram.
    const TELLS_DESTINATION: bool;

    fn new() -> Self;
    /// One that answers with identities.
    fn identifying() -> Self;
    fn kernel(&mut self) -> &mut Self::Kernel;
    /// What the socket is bound to.
    fn own(&self) -> Endpoint;
    /// A new client.
    fn connect(&mut self) -> usize;
    /// Where a client sends from.
    fn source(&self, client: usize) -> Endpoint;
    /// A client sends this, which is in the socket when this returns.
    fn send(&mut self, client: usize, payload: &[u8]);
    /// A client sends this as a burst of datagrams of `segment` bytes each.
    fn send_burst(&mut self, client: usize, payload: &[u8], segment: u16);
    /// What a client has received, and not looked at.
    fn receive(&mut self, client: usize) -> Option<Vec<u8>>;
    /// Receives the waiting datagrams through another descriptor of the socket, as another process
    /// would.
    fn take_waiting(&mut self) -> Vec<Vec<u8>>;
    /// From now on the control messages of a datagram do not fit into a buffer.
    fn exceed_control(&mut self);
    /// From now on the longest datagrams cannot be sent. False if that is not possible here.
    fn refuse_the_longest(&mut self) -> bool;
}

/// The fake without faults.
pub(crate) struct Fake {
    kernel: FakeDatagrams,
    inboxes: Vec<VecDeque<Vec<u8>>>,
    serial: u64,
    truncates: bool,
}

/// The fake as a kernel with a clock.
pub(crate) struct FakeDatagrams {
    datagrams: DatagramKernel,
    now: u64,
    told: Vec<Event>,
}

impl Kernel for FakeDatagrams {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.now * 1_000
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        unreachable!("{connection:?} is a connection")
    }

    fn submit(&mut self, ops: &mut Vec<op::Op>) {
        // Without a listener they concern the pool of the streams at most.
        ops.clear();
    }

    fn turn(&mut self, wake: Wake, _: &mut Vec<op::Event>) -> Result<(), Infallible> {
        self.datagrams.enter();
        self.datagrams.tell(&mut self.told);
        if let (true, Wake::At(deadline)) = (self.told.is_empty(), wake) {
            self.now = self.now.max(deadline.0);
        }
        Ok(())
    }

    fn take_datagrams(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.told);
    }

    fn submit_datagrams(&mut self, ops: &mut Vec<Op>) {
        self.datagrams.submit(ops);
    }
}

impl Fake {
    fn arrive(&mut self, client: usize, payload: &[u8], segment: u16) {
        self.serial += 1;
        let source = self.source(client);
        let us = PeerAddr::Ipv4([10, 0, 0, 250]);
        let length = payload.len() as u32;
        let truncated = self.truncates;
        let (header, own) = (Header::Absent, false);
        let (destination, local) = (us, us);
        let datagram =
            Datagram { source, destination, local, header, length, segment, truncated, own };
        let packet = Packet { serial: self.serial, datagram, payload: payload.to_vec() };
        assert!(self.kernel.datagrams.arrive(SocketId(0), packet), "a queue has room");
    }
}

impl World for Fake {
    type Kernel = FakeDatagrams;
    const LENGTH_MAX: usize = 65_507;
    const TELLS_DESTINATION: bool = true;

    fn new() -> Self {
        let faults = DatagramFaults::default();
        let datagrams = DatagramKernel::new(&[true], BUFFERS, 1_000, faults, Choice::from_seed(1));
        let kernel = FakeDatagrams { datagrams, now: 1_000, told: Vec::new() };
        Self { kernel, inboxes: Vec::new(), serial: 0, truncates: false }
    }

    fn identifying() -> Self {
        let mut world = Self::new();
        world.kernel.datagrams.identifies = vec![true];
        world
    }

    fn kernel(&mut self) -> &mut FakeDatagrams {
        &mut self.kernel
    }

    fn own(&self) -> Endpoint {
        Endpoint { address: PeerAddr::Unknown, port: 7 }
    }

    fn connect(&mut self) -> usize {
        self.inboxes.push(VecDeque::new());
        self.inboxes.len() - 1
    }

    fn source(&self, client: usize) -> Endpoint {
        Endpoint { address: PeerAddr::Ipv4([10, 0, 0, 1]), port: 40_000 + client as u16 }
    }

    fn send(&mut self, client: usize, payload: &[u8]) {
        self.arrive(client, payload, 0);
    }

    fn send_burst(&mut self, client: usize, payload: &[u8], segment: u16) {
        match self.kernel.datagrams.identifies[0] {
            false => self.arrive(client, payload, segment),
            true => payload.chunks(segment.into()).for_each(|it| self.arrive(client, it, 0)),
        }
    }

    fn receive(&mut self, client: usize) -> Option<Vec<u8>> {
        while let Some(Answer { to, payload, .. }) = self.kernel.datagrams.sent.pop_front() {
            self.inboxes[usize::from(to.port - 40_000)].push_back(payload);
        }
        self.inboxes[client].pop_front()
    }

    fn take_waiting(&mut self) -> Vec<Vec<u8>> {
        self.kernel.datagrams.take_waiting(SocketId(0))
    }

    fn exceed_control(&mut self) {
        self.truncates = true;
    }

    fn refuse_the_longest(&mut self) -> bool {
        self.kernel.datagrams.length_max = Self::LENGTH_MAX - 1;
        true
    }
}

/// A real ring with a real socket.
struct Real {
    driver: Driver,
    /// Another descriptor of the socket, as another process has it.
    shared: UdpSocket,
    own: Endpoint,
    clients: Vec<UdpSocket>,
}

impl Real {
    fn new(address: IpAddr, identity: Option<Identity>) -> Self {
        let shared = UdpSocket::bind((address, 0)).expect("a free port");
        let socket = OwnedFd::from(shared.try_clone().expect("a descriptor"));
        let socket = DatagramSocket::new(socket, DatagramHeaders::Absent);
        let socket = socket.and_then(|socket| socket.with_identity(identity));
        let socket = Arc::new(socket.expect("a socket for datagrams"));
        let own = socket.own();
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let driver = Driver::new(Settings {
            datagram_sockets: vec![socket],
            listeners: Arc::from([]),
            wake: Arc::new(wake.expect("an eventfd")),
            buffers: ROOMY.buffers,
            connections_max: 0,
            memory: SpillMemory::new(1 << 20),
            busy_poll: None,
            origin: Instant::now(),
            worker: 0,
        });
        let driver = driver.unwrap_or_else(|unusable| panic!("no ring: {unusable}"));
        Self { driver, shared, own, clients: Vec::new() }
    }

    /// A client of this family, connected to our socket.
    fn connect(&mut self, us: IpAddr) -> usize {
        let client = UdpSocket::bind((us, 0)).expect("a free port");
        let port = self.shared.local_addr().expect("its address").port();
        client.connect((us, port)).expect("a route to ourselves");
        client.set_nonblocking(true).expect("O_NONBLOCK");
        self.clients.push(client);
        self.clients.len() - 1
    }

    fn source(&self, client: usize) -> Endpoint {
        let address = self.clients[client].local_addr().expect("its address");
        let port = address.port();
        let address = match address {
            SocketAddr::V4(address) => PeerAddr::Ipv4(address.ip().octets()),
            SocketAddr::V6(address) => PeerAddr::Ipv6(address.ip().octets()),
        };
        Endpoint { address, port }
    }

    fn send(&mut self, client: usize, payload: &[u8]) {
        let sent = self.clients[client].send(payload).expect("room for a datagram");
        assert_eq!(sent, payload.len());
    }

    fn send_burst(&mut self, client: usize, payload: &[u8], segment: u16) {
        let burst = |segment: u16| {
            setsockopt(&self.clients[client], sockopt::UdpGsoSegment, &i32::from(segment))
        };
        burst(segment).expect("UDP_SEGMENT");
        let sent = self.clients[client].send(payload).expect("room for a burst");
        assert_eq!(sent, payload.len());
        burst(0).expect("UDP_SEGMENT");
    }

    fn receive(&mut self, client: usize) -> Option<Vec<u8>> {
        let mut payload = vec![0; 1 << 16];
        let length = self.clients[client].recv(&mut payload).ok()?;
        payload.truncate(length);
        Some(payload)
    }

    fn take_waiting(&mut self) -> Vec<Vec<u8>> {
        let timeout = Some(Duration::from_millis(10));
        self.shared.set_read_timeout(timeout).expect("SO_RCVTIMEO");
        let mut waiting = Vec::new();
        let mut payload = vec![0; 1 << 16];
        while let Ok(length) = self.shared.recv(&mut payload) {
            waiting.push(payload[..length].to_vec());
        }
        self.shared.set_read_timeout(None).expect("SO_RCVTIMEO");
        waiting
    }
}

/// The differences between the kinds of socket.
macro_rules! real_world {
    ($name:ident, $what:literal, $bound:expr, $from:expr, $longest:literal, $tells:literal) => {
        #[doc = $what]
        pub(crate) struct $name(Real);

        impl World for $name {
            type Kernel = Driver;
            const LENGTH_MAX: usize = $longest;
            const TELLS_DESTINATION: bool = $tells;

            fn new() -> Self {
                Self(Real::new(IpAddr::from($bound), None))
            }

            fn identifying() -> Self {
                let (host, instance, listener) = (None, None, "here".into());
                let identity = Identity { host, instance, listener };
                Self(Real::new(IpAddr::from($bound), Some(identity)))
            }

            fn kernel(&mut self) -> &mut Driver {
                &mut self.0.driver
            }

            fn own(&self) -> Endpoint {
                self.0.own
            }

            fn connect(&mut self) -> usize {
                let families: [IpAddr; 2] = $from;
                let client = self.0.clients.len();
                self.0.connect(families[client % 2])
            }

            fn source(&self, client: usize) -> Endpoint {
                self.0.source(client)
            }

            fn send(&mut self, client: usize, payload: &[u8]) {
                self.0.send(client, payload);
            }

            fn send_burst(&mut self, client: usize, payload: &[u8], segment: u16) {
                self.0.send_burst(client, payload, segment);
            }

            fn receive(&mut self, client: usize) -> Option<Vec<u8>> {
                self.0.receive(client)
            }

            fn take_waiting(&mut self) -> Vec<Vec<u8>> {
                self.0.take_waiting()
            }

            fn exceed_control(&mut self) {
                // A further control message, for which no buffer has room.
                let option = sockopt::ReceiveTimestampns;
                setsockopt(&self.0.shared, option, &true).expect("SO_TIMESTAMPNS");
            }

            fn refuse_the_longest(&mut self) -> bool {
                // Only those of IPv6 are longer than loopback's MTU (65,536).
                let is_ipv6 = $longest > 65_507;
                if is_ipv6 {
                    setsockopt(&self.0.shared, sockopt::Ipv6DontFrag, &true)
                        .expect("IPV6_DONTFRAG");
                }
                is_ipv6
            }
        }
    };
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

real_world!(Bound, "Bound to an address of IPv4.", V4, [V4, V4], 65_507, false);
real_world!(Wildcard, "Bound to all of IPv4.", Ipv4Addr::UNSPECIFIED, [V4, V4], 65_507, true);
real_world!(DualStack, "Bound to all addresses.", Ipv6Addr::UNSPECIFIED, [V6, V4], 65_527, true);
