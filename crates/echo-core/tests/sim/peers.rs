//! The far ends of a history: each follows a plan that is drawn at the start, until the world is
//! healed and all peers cooperate.
//!
//! Plans are known behaviours of clients: fast, slow, stopped for a while, half-closing, closing
//! with echoes unread, resetting, or staying without end. This module knows the fake's wire, not
//! the core.

use echo_core::op::{ConnectionError, ListenerId, PeerAddr};

use crate::fake::FakeKernel;
use crate::fake::choice::Choice;
use crate::fake::peer::{Header, PeerId, Saying, Wire};
use crate::fake::records;

/// How a peer reads its echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Everything at once.
    Eager,
    /// A few bytes at a time, now and then.
    Slow,
    /// Nothing after this many bytes, until the world is healed.
    StopsAt(usize),
}

/// The action of a peer after its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// FIN, then reads to the end and closes.
    Finish,
    /// Reads everything back, then closes.
    ReadThenClose,
    /// Closes at once, even with unread bytes.
    Close,
    /// Resets, or the network breaks.
    Break(ConnectionError),
    /// Stays until the server ends it.
    Stay,
}

/// One peer and its plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    listener: ListenerId,
    wire: Wire,
    source: PeerAddr,
    header: Option<Header>,
    connects_at: u64,
    total: usize,
    write_max: usize,
    pause_max: u64,
    reading: Reading,
    ending: Ending,
    id: Option<PeerId>,
    /// When it acts next.
    acts_at: u64,
}

/// The ranges from which the peers of one history are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Population {
    pub(crate) peers: usize,
    pub(crate) listeners: u16,
    pub(crate) total_max: usize,
    pub(crate) wire_max: usize,
    /// The probability of rude behaviour, in thousandths: closing, resetting, or no longer reading.
    pub(crate) rude: u16,
    /// Whether the connections of each listener have a header.
    pub(crate) proxied: [bool; 2],
}

/// All peers of a history.
pub(crate) struct Peers {
    plans: Vec<Plan>,
    healed: bool,
}

impl Peers {
    pub(crate) fn draw(choice: &mut Choice, population: Population, now: u64) -> Self {
        let plans = (0..population.peers).map(|_| Plan::draw(choice, population, now)).collect();
        Self { plans, healed: false }
    }

    pub(crate) fn planned(plans: Vec<Plan>) -> Self {
        Self { plans, healed: false }
    }

    /// From now on all read as fast as possible, finish their plans, and close when the server
    /// does.
    pub(crate) fn heal(&mut self, now: u64) {
        self.healed = true;
        for plan in &mut self.plans {
            plan.reading = Reading::Eager;
            plan.acts_at = plan.acts_at.min(now);
            plan.connects_at = plan.connects_at.min(now);
            plan.pause_max = 0;
        }
    }

    /// Peers that stay now end by themselves, because nothing else would end them.
    pub(crate) fn no_longer_stay(&mut self, now: u64) {
        for plan in &mut self.plans {
            if plan.ending == Ending::Stay {
                plan.ending = Ending::Finish;
                plan.acts_at = now;
            }
        }
    }

    /// Lets every peer act whose time has come. Returns whether any did something.
    pub(crate) fn act(&mut self, kernel: &mut FakeKernel) -> bool {
        let mut acted = false;
        for plan in &mut self.plans {
            acted |= plan.act(kernel, self.healed);
        }
        acted
    }

    /// The moment at which the next peer acts by itself, if any does.
    pub(crate) fn next_at(&self, kernel: &FakeKernel) -> Option<u64> {
        let now = kernel.clock();
        let times = self.plans.iter().map(|plan| plan.acts_at.max(plan.connects_at));
        times.filter(|at| *at > now).min()
    }

    /// Whether the server owes this peer everything it sent: the peer has done nothing that
    /// forfeits its echo.
    pub(crate) fn is_owed(&self, id: PeerId) -> bool {
        let plan =
            self.plans.iter().find(|plan| plan.id == Some(id)).expect("a plan for each peer");
        matches!(plan.ending, Ending::Finish | Ending::ReadThenClose | Ending::Stay)
    }

    /// Whether every accepted peer has ended.
    pub(crate) fn are_done(&self, kernel: &FakeKernel) -> bool {
        self.plans.iter().all(|plan| {
            plan.id.is_some_and(|id| {
                let peer = &kernel.peers[id.0];
                peer.connection.is_none() && (peer.named.is_some() || peer.broken) && peer.is_over()
            })
        })
    }
}

/// Few, so that they coincide. Some differ in bits that a prefix may remove.
fn draw_source(choice: &mut Choice) -> PeerAddr {
    let mut ipv6 = [0x20; 16];
    match choice.below(7) {
        0 => PeerAddr::Local,
        1 => {
            ipv6[15] = choice.below(2) as u8;
            PeerAddr::Ipv6(ipv6)
        }
        _ => PeerAddr::Ipv4([10, 0, choice.below(2) as u8, choice.below(2) as u8]),
    }
}

/// The length of a message, at most `length` bytes: some are empty, and a few are longer than can
/// be echoed.
fn message_length(choice: &mut Choice, length: usize) -> usize {
    match choice.below(50) {
        0 => length,
        1..10 => 0,
        _ => length.min(1 + choice.below(records::LENGTH_MAX)),
    }
}

/// Mostly a valid and short one. A long header needs a wire on which it arrives in few pieces.
fn draw_header(choice: &mut Choice, wire_max: usize) -> Header {
    let long = wire_max >= 300 && choice.below(4) == 0;
    let length = 1 + if long { 4_000 + choice.below(200) } else { choice.below(8) };
    let says = match choice.below(8) {
        0 => Saying::Nonsense,
        1 | 2 => Saying::Nothing,
        _ => Saying::Announces(draw_source(choice)),
    };
    Header { length, says }
}

impl Plan {
    /// A peer that connects at once to the first listener and writes `total` bytes, at most
    /// `write_max` at a time.
    pub(crate) fn prompt(total: usize, write_max: usize, reading: Reading, ending: Ending) -> Self {
        Self {
            listener: ListenerId(0),
            wire: Wire { receive_space: total.max(1), send_space: total.max(1) },
            source: PeerAddr::Local,
            header: None,
            connects_at: 0,
            total,
            write_max,
            pause_max: 0,
            reading,
            ending,
            id: None,
            acts_at: 0,
        }
    }

    /// The same, on a wire with room for `space` bytes in each direction.
    pub(crate) fn on_wire(self, space: usize) -> Self {
        Self { wire: Wire { receive_space: space, send_space: space }, ..self }
    }

    /// The same, with a header in front of the bytes.
    pub(crate) fn with_header(self, length: usize, says: Saying) -> Self {
        let header = Some(Header { length, says });
        let space = self.wire.receive_space + length;
        let wire = Wire { receive_space: space, ..self.wire };
        Self { header, wire, total: self.total + length, ..self }
    }

    fn draw(choice: &mut Choice, population: Population, now: u64) -> Self {
        let wire_max = population.wire_max;
        let listener = choice.below(usize::from(population.listeners));
        let header = population.proxied[listener].then(|| draw_header(choice, wire_max));
        let payload = choice.below(population.total_max + 1);
        // Some end in the middle of their header.
        let total = match header {
            None => payload,
            Some(header) if choice.below(8) == 0 => choice.below(header.length),
            Some(header) => header.length + payload,
        };
        let rude = |choice: &mut Choice| choice.below(1000) < usize::from(population.rude);
        let reading = match choice.below(4) {
            0 => Reading::Slow,
            1 if rude(choice) => Reading::StopsAt(choice.below(total + 1)),
            _ => Reading::Eager,
        };
        let ending = if rude(choice) {
            let unreachable = ConnectionError::Unreachable;
            let errors = [ConnectionError::Reset, unreachable, ConnectionError::Unexpected(5)];
            match choice.below(3) {
                0 => Ending::Close,
                _ => Ending::Break(errors[choice.below(3)]),
            }
        } else {
            [Ending::Finish, Ending::Finish, Ending::ReadThenClose, Ending::Stay][choice.below(4)]
        };
        let pause_max = [0, 3, 150, 8_000][choice.below(4)];
        let connects_at = now + choice.below(100) as u64 * choice.below(10) as u64;
        Self {
            listener: ListenerId(listener as u16),
            wire: Wire {
                receive_space: 1 + choice.below(wire_max),
                send_space: 1 + choice.below(wire_max),
            },
            source: draw_source(choice),
            header,
            connects_at,
            total,
            write_max: 1 + choice.below(wire_max),
            pause_max,
            reading,
            ending,
            id: None,
            acts_at: connects_at,
        }
    }

    fn act(&mut self, kernel: &mut FakeKernel, healed: bool) -> bool {
        let now = kernel.clock();
        if now < self.connects_at || now < self.acts_at {
            return false;
        }
        let Some(id) = self.id else {
            self.id = Some(kernel.connect_with(self.listener, self.wire, self.source, self.header));
            return true;
        };
        if kernel.peers[id.0].is_over() {
            return false;
        }
        if self.pause_max > 0 {
            self.acts_at = now + kernel.choice.below(self.pause_max as usize + 1) as u64;
        }
        let read = self.read(kernel, id);
        let wrote = self.write(kernel, id);
        let ended = self.end(kernel, id, healed);
        read || wrote || ended
    }

    fn read(&self, kernel: &mut FakeKernel, id: PeerId) -> bool {
        let read = kernel.peers[id.0].read;
        let length = match self.reading {
            Reading::Eager => usize::MAX,
            Reading::Slow => kernel.choice.below(4),
            Reading::StopsAt(offset) => offset.saturating_sub(read),
        };
        kernel.peer_read(id, length) > 0
    }

    fn write(&self, kernel: &mut FakeKernel, id: PeerId) -> bool {
        let left = self.total - kernel.peers[id.0].written;
        let length = left.min(1 + kernel.choice.below(self.write_max));
        if left == 0 {
            return false;
        }
        let length = match kernel.peers[id.0].records {
            Some(_) => message_length(&mut kernel.choice, length),
            None => length,
        };
        kernel.peer_write(id, length) > 0
    }

    /// The action after the last byte, or after the server's FIN. A peer that continues after the
    /// server's FIN sends the rest of its bytes.
    fn end(&self, kernel: &mut FakeKernel, id: PeerId, healed: bool) -> bool {
        let peer = &kernel.peers[id.0];
        let (sees_end, written_all, finished) =
            (peer.sees_end(), peer.written == self.total, peer.finished);
        let caught_up = peer.read == peer.written_behind_header();
        if sees_end && (finished || healed || kernel.choice.below(4) == 0) {
            kernel.peer_close(id);
            return true;
        }
        if !written_all {
            return false;
        }
        match self.ending {
            Ending::Finish if !finished => kernel.peer_finish(id),
            Ending::ReadThenClose if caught_up => kernel.peer_close(id),
            Ending::Close => kernel.peer_close(id),
            Ending::Break(error) => kernel.break_connection(id, error),
            Ending::Finish | Ending::ReadThenClose | Ending::Stay => return false,
        }
        true
    }
}
