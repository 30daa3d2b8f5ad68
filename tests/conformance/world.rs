//! The trait that scripts run on, and its implementation with the fake.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use echo_core::kernel::Kernel;
use echo_core::op::Budget;
use echo_core::op::{BufferPlan, ConnectionError, ConnectionId, ListenerId, PeerAddr, ReceiveMode};

use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::peer::{Header, PeerId, Saying, Wire};
use crate::fake::{FakeKernel, Faults, Settings};

/// What a world is built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// The buffers of each class: powers of two, or none.
    pub(crate) buffers: BufferPlan,
}

/// Large enough for scripts about other subjects.
pub(crate) const ROOMY: Setup = Setup::new([32, 2]);

impl Setup {
    /// These numbers of small and large buffers.
    pub(crate) const fn new(counts: [u16; 2]) -> Self {
        Self { buffers: BufferPlan::new(counts, [1024, 4096]) }
    }
}

/// What a peer sees when it has read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing yet.
    Open,
    /// The server's FIN.
    Finished,
    /// A reset.
    Reset,
}

/// How a reset or an abort appears, which depends on the kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resets {
    /// RST: TCP.
    Always,
    /// Only unread bytes make a close a reset: Unix stream sockets.
    WithUnreadBytes,
}

/// The header of a proxy that says this.
pub(crate) fn header(saying: Saying) -> Vec<u8> {
    let line = match saying {
        Saying::Announces(PeerAddr::Ipv4(address)) => {
            let address = Ipv4Addr::from(address);
            format!("PROXY TCP4 {address} 198.51.100.7 4000 7\r\n")
        }
        Saying::Announces(address) => panic!("no script announces {address:?}"),
        Saying::Nothing => "PROXY UNKNOWN whatever\r\n".to_owned(),
        Saying::Nonsense => "PROXY TCP4 192.0.2.1 198.51.100.7 x".to_owned(),
    };
    line.into_bytes()
}

/// A kernel and the peers on its other side. Peer number n sends the bytes `stream(n, 0), stream(n,
/// 1), …`.
pub(crate) trait World {
    type Kernel: Kernel<Error: fmt::Debug>;
    const RESETS: Resets;
    /// Whether a multishot receive continues, or is carried out as a one-shot, which the contract
    /// allows.
    const MULTISHOT_LASTS: bool;
    /// Whether buffers beyond those needed at the same time stay unused.
    const FEW_BUFFERS_GO_ROUND: bool;
    /// The source address of peers.
    const SOURCE: PeerAddr;

    /// Whether an accept reports whether another connection is waiting.
    fn tells_backlog() -> bool;
    /// The ways of receiving that this kernel has.
    fn modes() -> &'static [ReceiveMode];
    fn new(setup: Setup) -> Self;
    fn kernel(&mut self) -> &mut Self::Kernel;
    /// The memory for spilled bytes.
    fn budget(&self) -> Arc<dyn Budget>;
    /// Another kernel takes over the connections, each with a new id.
    fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]);
    /// A new peer, which is in the backlog when this returns.
    fn connect(&mut self) -> PeerId;
    /// The same, of a peer whose first bytes are those of [`header`].
    fn connect_with(&mut self, saying: Saying) -> PeerId;
    /// The peer writes its next `length` bytes; there must be room.
    fn write(&mut self, peer: PeerId, length: usize);
    /// The peer reads what is there, up to `length`, and checks each byte. Returns how many.
    fn read(&mut self, peer: PeerId, length: usize) -> usize;
    /// The peer reads an identity, which must be whole. False if none is there.
    fn read_identity(&mut self, peer: PeerId) -> bool;
    /// The peer sends FIN and continues to read.
    fn finish(&mut self, peer: PeerId);
    /// The peer closes both directions.
    fn close(&mut self, peer: PeerId);
    /// The peer resets.
    fn reset(&mut self, peer: PeerId);
    /// What the peer sees after it has read everything.
    fn end(&mut self, peer: PeerId) -> End;
    /// From now on the listener gets no new connections; those in its backlog may be accepted.
    fn end_listener(&mut self);
    /// Whether a peer that connects now is refused.
    fn refuses(&mut self) -> bool;
    /// Whether this script may change limits of the whole process. If not, it has been run
    /// successfully in another process.
    fn has_process_of_its_own() -> bool;
    /// Uses up all file descriptors.
    fn use_up_files(&mut self);
    /// Ends [`Self::use_up_files`].
    fn free_files(&mut self);
    /// Wakes the kernel's turn after a short time, from another thread.
    fn wake_soon(&mut self);
}

/// The fake without faults.
pub(crate) struct Fake {
    kernel: FakeKernel,
}

/// As much as a fake wire holds in each direction.
const WIRE: Wire = Wire { receive_space: 64 << 10, send_space: 6000 };

impl World for Fake {
    type Kernel = FakeKernel;
    const RESETS: Resets = Resets::Always;
    const MULTISHOT_LASTS: bool = true;
    // It lends the buffers in order, so that all are used.
    const FEW_BUFFERS_GO_ROUND: bool = false;
    const SOURCE: PeerAddr = PeerAddr::Ipv6([0x20; 16]);

    fn tells_backlog() -> bool {
        true
    }

    fn modes() -> &'static [ReceiveMode] {
        &[ReceiveMode::WhenReadable, ReceiveMode::Multishot]
    }

    fn new(setup: Setup) -> Self {
        let settings = Settings {
            listeners: 1,
            records: None,
            buffers: setup.buffers,
            files_max: usize::MAX,
            faults: Faults::default(),
        };
        let budget = Arc::new(FakeBudget::new(16, 1 << 20, 0, 1));
        Self { kernel: FakeKernel::new(settings, budget, Choice::from_seed(1)) }
    }

    fn budget(&self) -> Arc<dyn Budget> {
        Arc::clone(&self.kernel.budget) as Arc<dyn Budget>
    }

    fn kernel(&mut self) -> &mut FakeKernel {
        &mut self.kernel
    }

    fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
        self.kernel.hand_over(renamed);
    }

    fn connect(&mut self) -> PeerId {
        self.kernel.connect(ListenerId(0), WIRE, Self::SOURCE)
    }

    fn connect_with(&mut self, says: Saying) -> PeerId {
        let header = Header { length: header(says).len(), says };
        self.kernel.connect_with(ListenerId(0), WIRE, Self::SOURCE, Some(header))
    }

    fn write(&mut self, peer: PeerId, length: usize) {
        let written = self.kernel.peer_write(peer, length);
        assert_eq!(written, length, "a script writes no more than there is room for");
    }

    fn read(&mut self, peer: PeerId, length: usize) -> usize {
        self.kernel.peer_read(peer, length)
    }

    fn read_identity(&mut self, peer: PeerId) -> bool {
        self.kernel.peers[peer.0].identified
    }

    fn finish(&mut self, peer: PeerId) {
        self.kernel.peer_finish(peer);
    }

    fn close(&mut self, peer: PeerId) {
        self.kernel.peer_close(peer);
    }

    fn reset(&mut self, peer: PeerId) {
        self.kernel.break_connection(peer, ConnectionError::Reset);
    }

    fn end(&mut self, peer: PeerId) -> End {
        let peer = &self.kernel.peers[peer.0];
        match (peer.server_reset, peer.sees_end()) {
            (true, _) => End::Reset,
            (false, true) => End::Finished,
            (false, false) => End::Open,
        }
    }

    fn end_listener(&mut self) {
        self.kernel.end_listener(ListenerId(0));
    }

    fn refuses(&mut self) -> bool {
        let peer = self.connect();
        self.kernel.peers[peer.0].broken
    }

    fn has_process_of_its_own() -> bool {
        true
    }

    fn use_up_files(&mut self) {
        self.kernel.settings.files_max = 0;
    }

    fn free_files(&mut self) {
        self.kernel.settings.files_max = usize::MAX;
    }

    fn wake_soon(&mut self) {
        // A turn of the fake that has nothing to wait for ends at once.
    }
}
