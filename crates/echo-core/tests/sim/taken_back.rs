//! The loop of a worker, as the daemon runs it, through a hand-over that fails.
//!
//! Goal: whatever a reload has changed still holds when the connections come back, nobody is
//! accepted before the drain is heard of, and the worker counts as running again. Method: orders go
//! through the mailbox, turns are those of `worker::Turns`, the kernel is the fake.

use std::convert::Infallible;
use std::hash::RandomState;
use std::sync::Arc;

use echo_core::admission::{Access, Ranges, Rules, SourceLimiter};
use echo_core::fullness::Fullness;
use echo_core::limits;
use echo_core::op::{
    Budget, ConnectionId, Event, Kernel, ListenerId, Op, ReceiveMode, Source, Timestamp,
};
use echo_core::server::{CloseReason, Parameters, RuntimeLimits, Server};
use echo_uring::worker::{Order, Outcome, Shared, Turns};

use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::peer::{PeerId, Wire};
use crate::fake::{FakeKernel, Faults, Settings};

const LINGER: u64 = 100;
const WIRE: Wire = Wire { receive_space: 100, send_space: 100 };

/// A world in which somebody wakes the worker at least so often, in milliseconds: time does not run
/// to the next deadline while the peers of these tests mean to act.
const STEP: u64 = 50;

struct Clocked(FakeKernel);

impl Kernel for Clocked {
    type Error = Infallible;

    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn source_of(&self, connection: ConnectionId) -> Source {
        self.0.source_of(connection)
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        self.0.submit(ops);
    }

    fn turn(
        &mut self,
        deadline: Option<Timestamp>,
        events: &mut Vec<Event>,
    ) -> Result<(), Infallible> {
        let soon = self.0.now().plus(STEP);
        self.0.turn(Some(deadline.map_or(soon, |deadline| deadline.min(soon))), events)
    }
}

struct World {
    kernel: Clocked,
    server: Server,
    shared: Shared,
    turns: Turns,
}

fn runtime_limits(idle_timeout: u64, rules: Rules) -> RuntimeLimits {
    RuntimeLimits {
        connections_max: 3,
        idle_timeout: Some(idle_timeout),
        stall_timeout: None,
        lifetime: None,
        bytes_max: None,
        keepalive: None,
        rules: Arc::new(rules),
    }
}

impl World {
    /// A worker that accepts, by these limits.
    fn start(runtime_limits: RuntimeLimits) -> Self {
        let (buffers, buffer_sizes) = ([8, 0], [16, 64]);
        let budget = Arc::new(FakeBudget::new(16, 100, 0, 1));
        let parameters = Parameters {
            listeners: 1,
            buffers,
            buffer_sizes,
            receive_mode: ReceiveMode::Multishot,
            linger_timeout: LINGER,
            limiter: Arc::new(SourceLimiter::new(RandomState::new())),
            budget: Arc::clone(&budget) as Arc<dyn Budget>,
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits,
        };
        let faults = Faults::default();
        let settings = Settings { listeners: 1, buffers, buffer_sizes, files_max: 100, faults };
        let mut world = Self {
            kernel: Clocked(FakeKernel::new(settings, budget, Choice::from_seed(7))),
            server: Server::new(parameters),
            shared: Shared::default(),
            turns: Turns::default(),
        };
        let Ok(()) = world.turns.start(&mut world.kernel, &mut world.server, &world.shared);
        world
    }

    fn connect(&mut self, address: [u8; 4]) -> PeerId {
        self.kernel.0.connect(ListenerId(0), WIRE, Source::Ipv4(address))
    }

    fn turn(&mut self) -> Option<Outcome> {
        let Ok(outcome) = self.turns.turn(&mut self.kernel, &mut self.server, &self.shared);
        self.server.check_invariants();
        outcome
    }

    /// Turns until `wanted` holds; the worker must not end before.
    fn turn_until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if wanted(self) {
                return;
            }
            assert_eq!(self.turn(), None, "it ended before {what}");
        }
        panic!("no {what} in 1000 turns");
    }

    /// Turns until the worker ends.
    fn turn_to_the_end(&mut self) -> Outcome {
        (0..1000).find_map(|_| self.turn()).expect("it ends within 1000 turns")
    }

    fn echo(&mut self, peer: PeerId) {
        let whole = self.kernel.0.peers[peer.0].written + 5;
        assert_eq!(self.kernel.0.peer_write(peer, 5), 5);
        self.turn_until("the echo", |world| world.kernel.0.peers[peer.0].echoed == whole);
        assert_eq!(self.kernel.0.peer_read(peer, 5), 5);
    }

    /// What the daemon does when nobody takes the connections: they come back after `gap`
    /// milliseconds, with an order to drain in the mailbox.
    fn take_back(&mut self, gap: u64, deadline: Timestamp) {
        let released = self.server.release(self.kernel.now());
        self.server.check_invariants();
        self.kernel.0.pass_time(gap);
        self.shared.post(Order::Drain { deadline });
        let renamed: Vec<_> =
            released.iter().map(|(old, _)| (*old, self.server.reserve_slot())).collect();
        self.kernel.0.hand_over(&renamed);
        let mut ops = Vec::new();
        for ((_, connection), (_, transfer)) in renamed.into_iter().zip(released) {
            let source = self.kernel.source_of(connection);
            let transfer = transfer.after(gap);
            let event = Event::Imported { connection, source, transfer };
            self.server.handle(self.kernel.now(), event, &mut ops);
            self.kernel.submit(&mut ops);
        }
        self.turns = Turns::resume(&self.shared);
    }
}

#[test]
fn what_a_reload_changed_holds_after_a_hand_over_that_failed() {
    const IDLE: u64 = 2_000;
    let mut world = World::start(runtime_limits(3_600_000, Rules::default()));
    let peer = world.connect([10, 0, 0, 1]);
    world.echo(peer);
    let mut deny = Ranges::default();
    deny.add_ipv4([10, 0, 0, 9], [10, 0, 0, 9]);
    let access = Access { deny: deny.settle(), ..Access::default() };
    let reloaded = runtime_limits(IDLE, Rules { access, ..Rules::default() });
    world.shared.post(Order::Reconfigure(Box::new(reloaded)));
    world.echo(peer);
    let deadline = world.kernel.now().plus(5_000);
    world.shared.post(Order::HandOver { deadline });
    assert_eq!(world.turn_to_the_end(), Outcome::Quiescent);
    assert!(world.shared.has_ended());

    // One who is denied by now, and one who would be let in if anybody were.
    let others = [world.connect([10, 0, 0, 9]), world.connect([10, 0, 0, 1])];
    let drained_at = world.kernel.now().plus(60_000);
    world.take_back(500, drained_at);
    assert!(!world.shared.has_ended(), "it runs again");
    world.echo(peer);
    let echoed_at = world.kernel.0.clock();
    let ended = loop {
        if let Some(outcome) = world.turn() {
            break outcome;
        }
        assert_eq!(world.kernel.0.connections_and_accepts().1, 0, "an accept is armed");
        assert!(!world.shared.has_ended());
        if world.kernel.0.peers[peer.0].sees_end() && !world.kernel.0.peers[peer.0].closed {
            world.kernel.0.peer_close(peer);
        }
    };
    assert_eq!(ended, Outcome::Drained);
    assert!(world.shared.has_ended());
    // By the timeout of the start it would have stayed until the drain ended.
    let closed = world.server.stats().traffic.closed;
    assert_eq!(closed[CloseReason::Idle as usize], 1, "{closed:?}");
    let silence = world.kernel.0.clock() - echoed_at;
    assert!((IDLE..IDLE + IDLE / 4).contains(&silence), "it was let go after {silence} ms");
    for other in others {
        assert_eq!(world.kernel.0.peers[other.0].named, None, "somebody was accepted");
    }
}

/// Goal: time in which nobody was served counts. Method: a wait for the service manager that is
/// longer than the idle timeout.
#[test]
fn the_wait_for_a_hand_over_that_fails_is_idle_time() {
    let mut world = World::start(runtime_limits(2_000, Rules::default()));
    let peer = world.connect([10, 0, 0, 1]);
    world.echo(peer);
    world.shared.post(Order::HandOver { deadline: world.kernel.now().plus(1_000) });
    assert_eq!(world.turn_to_the_end(), Outcome::Quiescent);
    let drained_at = world.kernel.now().plus(60_000);
    world.take_back(10_000, drained_at);
    let back_at = world.kernel.0.clock();
    world.turn_until("the FIN", |world| world.kernel.0.peers[peer.0].server_finished);
    let late = world.kernel.0.clock() - back_at;
    // Who takes connections back has not turned for long: that is a pause, after which timers wait.
    let most = limits::PAUSE_GRACE_MS + 500;
    assert!(late <= most, "it was let go {late} ms after it was back");
}
