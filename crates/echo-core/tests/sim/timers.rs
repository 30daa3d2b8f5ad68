//! Each timeout, of every length that can be configured, on clocks that have run for years: it ends
//! what it should, not too early, and not too late.

use std::hash::RandomState;
use std::sync::Arc;

use echo_core::admission::SourceLimiter;
use echo_core::fullness::Fullness;
use echo_core::op::{Event, Kernel, ListenerId, Op, ReceiveMode, Source, Timestamp};
use echo_core::server::{Parameters, RuntimeLimits, Server};

use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::peer::{PeerId, Wire};
use crate::fake::{FakeKernel, Faults, Settings};

/// The clock at the beginning: fresh, and where numbers of 32 or 36 bits end.
const CLOCKS: [u64; 5] = [1_000, (1 << 32) - 3_000, (1 << 36) - 3_000, 1 << 40, (1 << 48) + 7];

const DAY: u64 = 86_400_000;

/// From the shortest to the longest that a file may have.
const TIMEOUTS: [u64; 6] = [10, 300, 60_000, 3_600_000, 60 * DAY, 365 * DAY + DAY / 4];

/// What a timeout is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A peer that says nothing.
    Idle,
    /// A peer that reads nothing, with memory for what it does not read.
    StallSpilled,
    /// The same without memory: bytes are held.
    StallHeld,
    /// The same on probation: bytes are relayed.
    StallRelayed,
    /// A peer that talks all the time, or would.
    Lifetime,
}

const KINDS: [Kind; 5] =
    [Kind::Idle, Kind::StallSpilled, Kind::StallHeld, Kind::StallRelayed, Kind::Lifetime];

struct World {
    server: Server,
    kernel: FakeKernel,
}

impl World {
    fn new(kind: Kind, timeout: u64, clock: u64) -> Self {
        let only = |wanted: &[Kind]| wanted.contains(&kind).then_some(timeout);
        let limit = if kind == Kind::StallHeld { 0 } else { 100 };
        let budget = Arc::new(FakeBudget::new(4, limit, 0, 1));
        let buffers = ([8, 0], [8, 64]);
        let server = Server::new(Parameters {
            listeners: 1,
            buffers: buffers.0,
            buffer_sizes: buffers.1,
            receive_mode: ReceiveMode::Multishot,
            linger_timeout: 5_000,
            limiter: Arc::new(SourceLimiter::new(RandomState::new())),
            fullness: Arc::new(Fullness::new(1)),
            budget: budget.clone(),
            runtime_limits: RuntimeLimits {
                connections_max: 4,
                idle_timeout: only(&[Kind::Idle]),
                stall_timeout: only(&[Kind::StallSpilled, Kind::StallHeld, Kind::StallRelayed]),
                lifetime: only(&[Kind::Lifetime]),
                bytes_max: None,
                keepalive: None,
                rules: Arc::default(),
            },
        });
        let settings = Settings {
            listeners: 1,
            buffers: buffers.0,
            buffer_sizes: buffers.1,
            files_max: 100,
            faults: Faults::default(),
        };
        let mut kernel = FakeKernel::new(settings, budget, Choice::from_seed(1));
        kernel.pass_time(clock - kernel.clock());
        let mut world = Self { server, kernel };
        world.handle(Event::Started);
        world
    }

    /// Tells the core, and carries out what it asks for. Whether it ended a connection.
    fn handle(&mut self, event: Event) -> bool {
        let mut ops = Vec::new();
        self.server.handle(Timestamp(self.kernel.clock()), event, &mut ops);
        self.server.check_invariants();
        let ends = ops.iter().any(|op| matches!(op, Op::Shutdown { .. } | Op::Abort { .. }));
        self.kernel.submit(&mut ops);
        ends
    }

    /// One turn of the loop. Whether it ended a connection.
    fn turn(&mut self) -> bool {
        let mut events = Vec::new();
        let Ok(()) = self.kernel.turn(self.server.deadline(), &mut events);
        self.server.observe(self.kernel.clock() * 1_000, 0);
        let mut ended = false;
        for event in events {
            ended |= self.handle(event);
        }
        if self.server.deadline().is_some_and(|deadline| deadline.0 <= self.kernel.clock()) {
            ended |= self.handle(Event::TimePassed);
        }
        ended
    }

    /// Turns that take no time, until nothing happens any more.
    fn settle(&mut self) {
        let now = self.kernel.clock();
        for _ in 0..100 {
            let mut events = Vec::new();
            let Ok(()) = self.kernel.turn(Some(Timestamp(now)), &mut events);
            self.server.observe(now * 1_000, 0);
            events.into_iter().for_each(|event| {
                assert!(!self.handle(event), "nobody is ended yet");
            });
        }
        assert_eq!(self.kernel.clock(), now);
    }

    /// A peer in the state that the timeout is for.
    fn peer(&mut self, kind: Kind) -> PeerId {
        let wire = Wire { receive_space: 100, send_space: 10 };
        let peer = self.kernel.connect(ListenerId(0), wire, Source::Local);
        self.settle();
        match kind {
            Kind::Idle | Kind::Lifetime => {}
            Kind::StallSpilled | Kind::StallHeld => {
                self.kernel.peer_write(peer, 16);
            }
            Kind::StallRelayed => {
                self.kernel.peer_write(peer, 16);
                self.settle();
                self.kernel.peer_read(peer, 16);
                self.settle();
                self.kernel.peer_write(peer, 80);
            }
        }
        self.settle();
        peer
    }
}

/// How late a timeout may be: a tick of the wheel, and what is lost of the moments of 16 ms in which
/// progress is counted.
fn tolerance(timeout: u64) -> u64 {
    (timeout.min(5_000) / 16).clamp(10, 1_000) + 32
}

/// Goal: no timeout is early, and none is late by more than a tick. Method: each kind in each length
/// on each clock, in a world where nothing else happens.
#[test]
fn every_timeout_fires_in_time() {
    let all = KINDS.iter().flat_map(|&kind| {
        let of_kind = move |timeout| CLOCKS.map(|clock| (kind, timeout, clock));
        TIMEOUTS.into_iter().flat_map(of_kind)
    });
    // A visit of the wheel every few minutes makes a year long, so it has one clock.
    for (kind, timeout, clock) in
        all.filter(|&(_, timeout, clock)| timeout < DAY || clock == CLOCKS[1])
    {
        let what = format!("{kind:?} after {timeout} ms, clock at {clock}");
        let mut world = World::new(kind, timeout, clock);
        world.peer(kind);
        let began = world.kernel.clock();
        while !world.turn() {
            let waited = world.kernel.clock() - began;
            assert!(waited <= timeout + tolerance(timeout), "{what}: {waited} ms and no end");
        }
        let waited = world.kernel.clock() - began;
        assert!(waited >= timeout, "{what}: ended after {waited} ms");
    }
}

/// Goal: who talks is never idle, however long the timeout and the life. Method: a word each time
/// that the timeout is nearly over.
#[test]
fn whoever_talks_is_not_idle() {
    for timeout in [300, 60_000, 60 * DAY] {
        let mut world = World::new(Kind::Idle, timeout, 1_000);
        let peer = world.peer(Kind::Idle);
        for word in 0..20 {
            let until = world.kernel.clock() + timeout - 40;
            while world.kernel.clock() < until {
                let next = world.server.deadline().map_or(until, |at| at.0.min(until));
                world.kernel.pass_time(next.max(world.kernel.clock() + 1) - world.kernel.clock());
                world.server.observe(world.kernel.clock() * 1_000, 0);
                if world.server.deadline().is_some_and(|at| at.0 <= world.kernel.clock()) {
                    let ended = world.handle(Event::TimePassed);
                    assert!(!ended, "{timeout} ms: ended before word {word}");
                }
            }
            world.kernel.peer_write(peer, 5);
            world.settle();
            world.kernel.peer_read(peer, 5);
        }
    }
}

/// Goal: after a pause of the whole process nobody is ended for a silence that was ours. Method: time
/// jumps far past the timeout; one of two peers has said something meanwhile.
#[test]
fn what_came_during_a_pause_is_served_before_timers_end_anybody() {
    let mut world = World::new(Kind::Idle, 60_000, 1_000);
    let (silent, talker) = (world.peer(Kind::Idle), world.peer(Kind::Idle));
    world.kernel.pass_time(3_600_000);
    world.kernel.peer_write(talker, 5);
    // The turn that the pause ends with brings the alarm alone: the bytes come with the next one.
    world.server.observe(world.kernel.clock() * 1_000, 0);
    assert!(!world.handle(Event::TimePassed), "the timers wait for the first turn");
    let began = world.kernel.clock();
    while !world.turn() {
        assert!(world.kernel.clock() < began + 3_000, "nobody is ended");
    }
    let finished = |peer: PeerId| world.kernel.peers[peer.0].server_finished;
    assert!(finished(silent) && !finished(talker), "the silent one is ended, the other is not");
    assert_eq!(world.kernel.peers[talker.0].outbound(), 5);
}
