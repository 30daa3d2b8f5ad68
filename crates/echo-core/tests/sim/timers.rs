//! Each timeout, of every length that can be configured, on clocks that have run for years: it ends
//! the right connection, neither too early nor too late.

use std::convert::Infallible;
use std::sync::Arc;

use echo_core::admission::{IpSet, Unlimited};
use echo_core::command::Command;
use echo_core::fullness::Fullness;
use echo_core::kernel::{Kernel, Wake};
use echo_core::limits::{ACCEPT_BACKOFF_MS, LINGER_MS, MEMORY_RETRY_MS, SWEEP_SLOTS_MAX};
use echo_core::op::{
    BufferPlan, ConnectionId, Event, ListenerId, Op, PeerAddr, Shutdown, Timestamp,
};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};
use echo_core::worker::Worker;

use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::peer::{PeerId, Wire};
use crate::fake::{FakeKernel, Faults, Settings};

/// The initial clock: new, and where numbers of 32 or 36 bits overflow.
const CLOCKS: [u64; 5] = [1_000, (1 << 32) - 3_000, (1 << 36) - 3_000, 1 << 40, (1 << 48) + 7];

const DAY: u64 = 86_400_000;

/// From the shortest to the longest that a configuration may have.
const TIMEOUTS: [u64; 6] = [10, 300, 60_000, 3_600_000, 60 * DAY, 365 * DAY + DAY / 4];

/// The situation that a timeout ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A peer that sends nothing.
    Idle,
    /// A peer that reads nothing, with memory for its unread bytes.
    StallSpilled,
    /// The same without memory: bytes are held.
    StallHeld,
    /// The same on probation: bytes are relayed.
    StallRelayed,
    /// A peer that sends all the time.
    Lifetime,
    /// A proxy that sends no header.
    Preface,
}

const KINDS: [Kind; 6] = [
    Kind::Idle,
    Kind::StallSpilled,
    Kind::StallHeld,
    Kind::StallRelayed,
    Kind::Lifetime,
    Kind::Preface,
];

/// The fake, which also observes how connections end.
struct Watched {
    fake: FakeKernel,
    /// Whether the core has ended a connection.
    ended: bool,
    /// Its operations, and their moments.
    ops: Vec<(u64, Op)>,
    /// The next turn brings only the end of a wait.
    brings_nothing: bool,
}

impl Kernel for Watched {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.fake.now_us()
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        self.fake.peer_of(connection)
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        let now = self.fake.clock();
        self.ops.extend(ops.iter().map(|&op| (now, op)));
        self.ended |= ops.iter().any(|op| matches!(op, Op::Shutdown { .. } | Op::Abort { .. }));
        self.fake.submit(ops);
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), Infallible> {
        if std::mem::take(&mut self.brings_nothing) { Ok(()) } else { self.fake.turn(wake, events) }
    }
}

struct World {
    worker: Worker,
    kernel: Watched,
}

impl World {
    fn new(kind: Kind, timeout: u64, clock: u64) -> Self {
        let only = |wanted: &[Kind]| wanted.contains(&kind).then_some(timeout);
        let limit = if kind == Kind::StallHeld { 0 } else { 100 };
        let budget = Arc::new(FakeBudget::new(4, limit, 0, 1));
        let buffers = BufferPlan::new([8, 0], [8, 64]);
        let worker = Worker::new(Parameters {
            listeners: 1,
            records: Vec::new(),
            buffers,
            multishot: true,
            deferral: Deferral::default(),
            sweep_slots_max: SWEEP_SLOTS_MAX,
            linger_timeout: LINGER_MS,
            preface_timeout: timeout,
            proxies: Arc::new([(kind == Kind::Preface).then(IpSet::default)]),
            identities: Arc::new([]),
            limiter: Arc::new(Unlimited),
            fullness: Arc::new(Fullness::new(1)),
            budget: budget.clone(),
            runtime_limits: RuntimeLimits {
                idle_timeout: only(&[Kind::Idle]),
                stall_timeout: only(&[Kind::StallSpilled, Kind::StallHeld, Kind::StallRelayed]),
                lifetime: only(&[Kind::Lifetime]),
                ..RuntimeLimits::unlimited(4)
            },
        });
        let faults = Faults::default();
        let settings = Settings { listeners: 1, records: None, buffers, files_max: 100, faults };
        let mut fake = FakeKernel::new(settings, budget, Choice::from_seed(1));
        fake.pass_time(clock - fake.clock());
        let kernel = Watched { fake, ended: false, ops: Vec::new(), brings_nothing: false };
        let mut world = Self { worker, kernel };
        let Ok(()) = world.worker.start(&mut world.kernel);
        world
    }

    /// One turn of the loop. Returns whether it ended a connection.
    fn turn(&mut self) -> bool {
        self.kernel.ended = false;
        let Ok(_) = self.worker.step(&mut self.kernel, []);
        self.worker.check_invariants();
        self.kernel.ended
    }

    /// Turns until `until` at the latest. Returns whether one ended a connection.
    fn turn_until(&mut self, until: u64) -> bool {
        self.kernel.fake.peers_act_at = Some(until);
        let ended = self.turn();
        self.kernel.fake.peers_act_at = None;
        ended
    }

    /// Turns that take no time, until nothing happens any more.
    fn settle(&mut self) {
        let now = self.kernel.fake.clock();
        for _ in 0..100 {
            assert!(!self.turn_until(now), "no connection is ended yet");
        }
        assert_eq!(self.kernel.fake.clock(), now);
    }

    /// Turns until the first operation of this kind, for at most ten seconds. Returns its moment.
    fn moment_of(&mut self, kind: impl Fn(&Op) -> bool) -> u64 {
        self.kernel.ops.clear();
        let end = self.kernel.fake.clock() + 10_000;
        loop {
            self.turn_until(end);
            let found = self.kernel.ops.iter().find(|(_, op)| kind(op));
            if let Some(&(moment, _)) = found {
                return moment;
            }
            assert!(self.kernel.fake.clock() < end, "no such operation in ten seconds");
        }
    }

    /// A peer in the situation that the timeout ends.
    fn peer(&mut self, kind: Kind) -> PeerId {
        let wire = Wire { receive_space: 100, send_space: 10 };
        let peer = self.kernel.fake.connect(ListenerId(0), wire, PeerAddr::Local);
        self.settle();
        match kind {
            Kind::Idle | Kind::Lifetime | Kind::Preface => {}
            Kind::StallSpilled | Kind::StallHeld => {
                self.kernel.fake.peer_write(peer, 16);
            }
            Kind::StallRelayed => {
                self.kernel.fake.peer_write(peer, 16);
                self.settle();
                self.kernel.fake.peer_read(peer, 16);
                self.settle();
                self.kernel.fake.peer_write(peer, 80);
            }
        }
        self.settle();
        peer
    }
}

/// How late a timeout may be: a tick of the wheel, and the rounding of moments to the 16 ms in
/// which progress is counted.
fn tolerance(timeout: u64) -> u64 {
    (timeout.min(5_000) / 16).clamp(10, 1_000) + 32
}

/// Goal: no timeout is early, and none is late by more than a tick. Method: each kind with each
/// length on each clock, in a world without other events.
#[test]
fn every_timeout_fires_in_time() {
    let all = KINDS.iter().flat_map(|&kind| {
        let of_kind = move |timeout| CLOCKS.map(|clock| (kind, timeout, clock));
        TIMEOUTS.into_iter().flat_map(of_kind)
    });
    // The wheel is visited every few minutes, so a test of a year takes long and has one clock.
    for (kind, timeout, clock) in
        all.filter(|&(_, timeout, clock)| timeout < DAY || clock == CLOCKS[1])
    {
        let what = format!("{kind:?} after {timeout} ms, clock at {clock}");
        let mut world = World::new(kind, timeout, clock);
        world.peer(kind);
        let began = world.kernel.fake.clock();
        while !world.turn() {
            let waited = world.kernel.fake.clock() - began;
            assert!(waited <= timeout + tolerance(timeout), "{what}: {waited} ms and no end");
        }
        let waited = world.kernel.fake.clock() - began;
        assert!(waited >= timeout, "{what}: ended after {waited} ms");
    }
}

/// Goal: a connection with traffic is never idle, for any timeout and lifetime. Method: a word each
/// time that the timeout has nearly expired.
#[test]
fn a_connection_that_talks_is_not_idle() {
    for timeout in [300, 60_000, 60 * DAY] {
        let mut world = World::new(Kind::Idle, timeout, 1_000);
        let peer = world.peer(Kind::Idle);
        for word in 0..20 {
            let until = world.kernel.fake.clock() + timeout - 40;
            while world.kernel.fake.clock() < until {
                assert!(!world.turn_until(until), "{timeout} ms: ended before word {word}");
            }
            world.kernel.fake.peer_write(peer, 5);
            world.settle();
            world.kernel.fake.peer_read(peer, 5);
        }
    }
}

/// Goal: after a pause of the whole process no connection is ended for a silence that the pause
/// caused. Method: time jumps far past the timeout; one of two peers has sent something meanwhile.
#[test]
fn what_came_during_a_pause_is_served_before_timers_end_a_connection() {
    let mut world = World::new(Kind::Idle, 60_000, 1_000);
    let (silent, talker) = (world.peer(Kind::Idle), world.peer(Kind::Idle));
    world.kernel.fake.pass_time(3_600_000);
    world.kernel.fake.peer_write(talker, 5);
    // The turn after the pause brings only the alarm. The bytes come with the next turn.
    world.kernel.brings_nothing = true;
    assert!(!world.turn(), "the timers wait for the first turn");
    let began = world.kernel.fake.clock();
    while !world.turn() {
        assert!(world.kernel.fake.clock() < began + 3_000, "no connection is ended");
    }
    let finished = |peer: PeerId| world.kernel.fake.peers[peer.0].server_finished;
    assert!(finished(silent) && !finished(talker), "the silent one is ended, the other is not");
    assert_eq!(world.kernel.fake.peers[talker.0].outbound(), 5);
}

/// Goal: after a failure, each retry is in time: an accept without a free descriptor, a receive and
/// a send without memory.
#[test]
fn failures_are_tried_again_in_time() {
    type Fails = (&'static str, u64, fn(&mut Settings), fn(&Op) -> bool);
    let failures: [Fails; 3] = [
        ("accept", ACCEPT_BACKOFF_MS, |it| it.files_max = 1, |op| matches!(op, Op::Accept { .. })),
        (
            "receive",
            MEMORY_RETRY_MS,
            |it| it.faults.receive_memory = 1000,
            |op| matches!(op, Op::Receive { .. }),
        ),
        (
            "send",
            MEMORY_RETRY_MS,
            |it| it.faults.send_memory = 1000,
            |op| matches!(op, Op::Send { .. } | Op::SendHeld { .. } | Op::SendSpilled { .. }),
        ),
    ];
    for (what, backoff, fail, is_it) in failures {
        for clock in CLOCKS {
            let mut world = World::new(Kind::Idle, DAY, clock);
            let peer = world.peer(Kind::Idle);
            fail(&mut world.kernel.fake.settings);
            world.kernel.fake.peer_write(peer, 1);
            let wire = Wire { receive_space: 100, send_space: 10 };
            world.kernel.fake.connect(ListenerId(0), wire, PeerAddr::Local);
            // Bytes that are not sent at once are spilled, and sent from there, before any wait.
            world.moment_of(is_it);
            let mut before = world.moment_of(is_it);
            for _ in 0..5 {
                let moment = world.moment_of(is_it);
                let waited = moment - before;
                let range = backoff..=backoff + 20;
                assert!(range.contains(&waited), "{what}, clock at {clock}: {waited} ms");
                before = moment;
            }
        }
    }
}

/// Goal: a drain ends connections at its deadline, and after the linger timeout those whose peer
/// does not end its side. Method: a peer that stays.
#[test]
fn a_drain_and_its_end_are_in_time() {
    for clock in CLOCKS {
        for timeout in [0, 40, 3_000] {
            let mut world = World::new(Kind::Idle, DAY, clock);
            world.peer(Kind::Idle);
            let deadline = world.kernel.fake.clock() + timeout;
            world.kernel.ops.clear();
            let drain = Command::Drain { deadline: Timestamp(deadline) };
            let Ok(_) = world.worker.step(&mut world.kernel, [drain]);
            let is_fin = |op: &Op| matches!(op, Op::Shutdown { how: Shutdown::Write, .. });
            let fin = world.kernel.ops.iter().find(|(_, op)| is_fin(op)).map(|(moment, _)| *moment);
            let fin = fin.unwrap_or_else(|| world.moment_of(is_fin));
            let late = fin.checked_sub(deadline).expect("the drain ended it too early");
            assert!(late <= 20, "clock at {clock}: FIN {late} ms late");
            let end = world.moment_of(|op| matches!(op, Op::Close { .. } | Op::Abort { .. }));
            let lingered = end - fin;
            let range = LINGER_MS - 20..=LINGER_MS + tolerance(LINGER_MS);
            assert!(range.contains(&lingered), "clock at {clock}: it lingered for {lingered} ms");
        }
    }
}
