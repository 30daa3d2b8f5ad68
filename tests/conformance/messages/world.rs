//! The trait that scripts about messages run on, and its implementations.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use echo_core::kernel::Kernel;
use echo_core::op::{Budget, ConnectionId, ListenerId, PeerAddr};
use echo_ring::{Driver, ListeningSocket, Settings, SpillMemory, Transport};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::peer::{PeerId, Wire, stream};
use crate::fake::records;
use crate::fake::{self, FakeKernel, Faults};
use crate::real::abstract_address;
use crate::world::ROOMY;

/// A kernel with one listener for connections with records, and the peers on its other side.
pub(crate) trait World {
    type Kernel: Kernel<Error: fmt::Debug>;
    /// Bytes of the longest message that is echoed.
    const LENGTH_MAX: usize;

    fn new() -> Self;
    fn kernel(&mut self) -> &mut Self::Kernel;
    fn budget(&self) -> Arc<dyn Budget>;
    /// Another kernel takes over the connections, each with a new id.
    fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]);
    /// A new peer, which is in the backlog when this returns.
    fn connect(&mut self) -> PeerId;
    /// The peer sends a message of `length` bytes. False if there is no room for it.
    fn write(&mut self, peer: PeerId, length: usize) -> bool;
    /// The length of the next message that the peer reads, each byte of which is checked.
    fn read(&mut self, peer: PeerId) -> Option<usize>;
    /// The peer sends FIN and continues to read.
    fn finish(&mut self, peer: PeerId);
}

/// The fake without faults.
pub(crate) struct Fake(FakeKernel);

impl World for Fake {
    type Kernel = FakeKernel;
    const LENGTH_MAX: usize = records::LENGTH_MAX;

    fn new() -> Self {
        let settings = fake::Settings {
            listeners: 1,
            records: Some(ListenerId(0)),
            buffers: ROOMY.buffers,
            files_max: usize::MAX,
            faults: Faults::default(),
        };
        let budget = Arc::new(FakeBudget::new(16, 1 << 20, 0, 1));
        Self(FakeKernel::new(settings, budget, Choice::from_seed(1)))
    }

    fn kernel(&mut self) -> &mut FakeKernel {
        &mut self.0
    }

    fn budget(&self) -> Arc<dyn Budget> {
        Arc::clone(&self.0.budget) as Arc<dyn Budget>
    }

    fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
        self.0.hand_over(renamed);
    }

    fn connect(&mut self) -> PeerId {
        let wire = Wire { receive_space: 500, send_space: 400 };
        self.0.connect(ListenerId(0), wire, PeerAddr::Local)
    }

    fn write(&mut self, peer: PeerId, length: usize) -> bool {
        let room = self.0.peers[peer.0].inbound() < self.0.peers[peer.0].wire.receive_space;
        self.0.peer_write(peer, length);
        room
    }

    fn read(&mut self, peer: PeerId) -> Option<usize> {
        self.0.peer_read_message(peer)
    }

    fn finish(&mut self, peer: PeerId) {
        self.0.peer_finish(peer);
    }
}

/// A real ring with a seqpacket socket.
pub(crate) struct Real {
    driver: Driver,
    listeners: Arc<[ListeningSocket]>,
    memory: Arc<SpillMemory>,
    address: SockAddr,
    peers: Vec<Peer>,
}

struct Peer {
    socket: Socket,
    written: usize,
    read: usize,
}

impl Real {
    fn driver(listeners: &Arc<[ListeningSocket]>, memory: &Arc<SpillMemory>) -> Driver {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let driver = Driver::new(Settings {
            datagram_sockets: Vec::new(),
            listeners: Arc::clone(listeners),
            wake: Arc::new(wake.expect("an eventfd")),
            buffers: ROOMY.buffers,
            connections_max: 0,
            memory: Arc::clone(memory),
            busy_poll: None,
            origin: Instant::now(),
            worker: 0,
        });
        driver.unwrap_or_else(|unusable| panic!("no ring: {unusable}"))
    }
}

impl World for Real {
    type Kernel = Driver;
    const LENGTH_MAX: usize = 1 << 20;

    fn new() -> Self {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        listener.bind(&abstract_address()).expect("a free name");
        listener.listen(16).expect("listen");
        let address = listener.local_addr().expect("its address");
        let listener = ListeningSocket::of(listener.into(), Transport::UnixSeqpacket);
        let listeners: Arc<[ListeningSocket]> = Arc::from([listener]);
        let memory = SpillMemory::new(1 << 20);
        let driver = Self::driver(&listeners, &memory);
        Self { driver, listeners, memory, address, peers: Vec::new() }
    }

    fn kernel(&mut self) -> &mut Driver {
        &mut self.driver
    }

    fn budget(&self) -> Arc<dyn Budget> {
        Arc::clone(&self.memory) as Arc<dyn Budget>
    }

    fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
        let mut next = Self::driver(&self.listeners, &self.memory);
        for &(old, new) in renamed {
            let parts = self.driver.release(old);
            assert!(parts.unsent.is_empty(), "messages are never owned");
            next.import(new, parts);
        }
        self.driver = next;
    }

    fn connect(&mut self) -> PeerId {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        // Room for the longest message; where the system does not grant it, `write` says so.
        socket.set_send_buffer_size(2 << 20).expect("SO_SNDBUF");
        socket.connect(&self.address).expect("the listener's backlog has room");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        self.peers.push(Peer { socket, written: 0, read: 0 });
        PeerId(self.peers.len() - 1)
    }

    fn write(&mut self, id: PeerId, length: usize) -> bool {
        let peer = &mut self.peers[id.0];
        let bytes: Vec<u8> =
            (peer.written..peer.written + length).map(|at| stream(id, at)).collect();
        match (&peer.socket).write(&bytes) {
            Ok(sent) => assert_eq!(sent, length, "a message is sent as a whole"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{length} bytes: {error}"),
        }
        peer.written += length;
        true
    }

    fn read(&mut self, id: PeerId) -> Option<usize> {
        let peer = &mut self.peers[id.0];
        let mut bytes = vec![0; Self::LENGTH_MAX + 1];
        let length = match (&peer.socket).read(&mut bytes) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{id:?} reads: {error}"),
        };
        for (index, byte) in bytes[..length].iter().enumerate() {
            let offset = peer.read + index;
            assert_eq!(*byte, stream(id, offset), "{id:?}: a wrong byte at {offset}");
        }
        peer.read += length;
        Some(length)
    }

    fn finish(&mut self, peer: PeerId) {
        self.peers[peer.0].socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }
}
