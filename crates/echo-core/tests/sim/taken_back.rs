//! A handover that fails.
//!
//! Goal: changes by a reload still hold when the connections come back, nothing is accepted before
//! the command to drain, and the worker continues. Method: steps of the worker on the fake, with
//! the commands that the daemon gives.

use std::convert::Infallible;
use std::sync::Arc;

use echo_core::admission::{AccessList, AdmissionPolicy, IpSet, SourceLimits};
use echo_core::command::Command;
use echo_core::fullness::Fullness;
use echo_core::kernel::{Kernel, Wake};
use echo_core::limits;
use echo_core::op::{
    BufferPlan, CloseReason, ConnectionId, Event, ListenerId, Op, PeerAddr, Timestamp,
};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};
use echo_core::worker::{Status, Worker};

use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::limiter::FakeLimiter;
use crate::fake::peer::{PeerId, Wire};
use crate::fake::{FakeKernel, Faults, Settings};

const LINGER: u64 = 100;
const WIRE: Wire = Wire { receive_space: 100, send_space: 100 };

/// A world in which the worker is woken at least at this interval, in milliseconds, so that time
/// does not jump to the next deadline before the peers of these tests act.
const STEP: u64 = 50;

struct Clocked(FakeKernel);

impl Kernel for Clocked {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.0.now_us()
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        self.0.peer_of(connection)
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        self.0.submit(ops);
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), Infallible> {
        self.0.turn(wake.min(Wake::At(self.0.now().plus(STEP))), events)
    }
}

struct World {
    kernel: Clocked,
    worker: Worker,
    commands: Vec<Command>,
}

fn runtime_limits(idle_timeout: u64, policy: AdmissionPolicy) -> RuntimeLimits {
    RuntimeLimits {
        idle_timeout: Some(idle_timeout),
        admission: Arc::new(policy),
        ..RuntimeLimits::unlimited(3)
    }
}

impl World {
    /// A worker that accepts connections with these limits.
    fn start(runtime_limits: RuntimeLimits) -> Self {
        let buffers = BufferPlan::new([8, 0], [16, 64]);
        let budget = Arc::new(FakeBudget::new(16, 100, 0, 1));
        let parameters = Parameters {
            listeners: 1,
            records: Vec::new(),
            buffers,
            multishot: true,
            deferral: Deferral::default(),
            sweep_slots_max: limits::SWEEP_SLOTS_MAX,
            linger_timeout: LINGER,
            preface_timeout: 1_000,
            proxies: Arc::new([]),
            identities: Arc::new([]),
            limiter: Arc::new(FakeLimiter::new()),
            budget: budget.clone(),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits,
        };
        let faults = Faults::default();
        let settings = Settings { listeners: 1, records: None, buffers, files_max: 100, faults };
        let mut world = Self {
            kernel: Clocked(FakeKernel::new(settings, budget, Choice::from_seed(7))),
            worker: Worker::new(parameters),
            commands: Vec::new(),
        };
        let Ok(()) = world.worker.start(&mut world.kernel);
        world
    }

    fn connect(&mut self, address: [u8; 4]) -> PeerId {
        self.kernel.0.connect(ListenerId(0), WIRE, PeerAddr::Ipv4(address))
    }

    fn turn(&mut self) -> Status {
        let commands = std::mem::take(&mut self.commands);
        let Ok(status) = self.worker.step(&mut self.kernel, commands);
        self.worker.check_invariants();
        status
    }

    /// Turns until `wanted` holds. The worker must not end before.
    fn turn_until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if wanted(self) {
                return;
            }
            let status = self.turn();
            assert!(matches!(status, Status::Running { .. }), "{status:?} before {what}");
        }
        panic!("no {what} in 1000 turns");
    }

    /// Turns until the worker ends.
    fn turn_to_the_end(&mut self) -> Status {
        let mut statuses = (0..1000).map(|_| self.turn());
        let ended = statuses.find(|status| !matches!(status, Status::Running { .. }));
        ended.expect("it ends within 1000 turns")
    }

    fn echo(&mut self, peer: PeerId) {
        let whole = self.kernel.0.peers[peer.0].written + 5;
        assert_eq!(self.kernel.0.peer_write(peer, 5), 5);
        self.turn_until("the echo", |world| world.kernel.0.peers[peer.0].echoed == whole);
        assert_eq!(self.kernel.0.peer_read(peer, 5), 5);
    }

    /// The actions of the daemon when no process takes the connections: they come back after `gap`
    /// milliseconds, and a drain is requested.
    fn take_back(&mut self, gap: u64, deadline: Timestamp) {
        let released = self.worker.release(self.kernel.now());
        self.worker.check_invariants();
        self.kernel.0.pass_time(gap);
        self.commands.push(Command::Drain { deadline });
        let renamed: Vec<_> =
            released.iter().map(|(old, _)| (*old, self.worker.reserve_slot())).collect();
        self.kernel.0.hand_over(&renamed);
        for ((_, connection), (_, transfer)) in renamed.into_iter().zip(released) {
            let peer = self.kernel.peer_of(connection);
            self.worker.import(&mut self.kernel, connection, peer, transfer.after(gap));
        }
    }
}

#[test]
fn what_a_reload_changed_holds_after_a_hand_over_that_failed() {
    const IDLE: u64 = 2_000;
    let mut world = World::start(runtime_limits(3_600_000, AdmissionPolicy::default()));
    let peer = world.connect([10, 0, 0, 1]);
    world.echo(peer);
    let deny = IpSet::new(vec![([10, 0, 0, 9], [10, 0, 0, 9])], Vec::new());
    let access = AccessList { deny, ..AccessList::default() };
    let source_limits = SourceLimits::default();
    let policy = AdmissionPolicy { access, source_limits, ..AdmissionPolicy::default() };
    let reloaded = runtime_limits(IDLE, policy);
    world.commands.push(Command::Reconfigure(Box::new(reloaded)));
    world.echo(peer);
    let deadline = world.kernel.now().plus(5_000);
    world.commands.push(Command::HandOver { deadline });
    assert_eq!(world.turn_to_the_end(), Status::Quiescent);

    // A peer that is now denied, and one that would be admitted if any were.
    let others = [world.connect([10, 0, 0, 9]), world.connect([10, 0, 0, 1])];
    let drained_at = world.kernel.now().plus(60_000);
    world.take_back(500, drained_at);
    world.echo(peer);
    let echoed_at = world.kernel.0.clock();
    let ended = loop {
        let status = world.turn();
        if !matches!(status, Status::Running { .. }) {
            break status;
        }
        assert_eq!(world.kernel.0.connections_and_accepts().1, 0, "an accept is armed");
        if world.kernel.0.peers[peer.0].sees_end() && !world.kernel.0.peers[peer.0].closed {
            world.kernel.0.peer_close(peer);
        }
    };
    assert_eq!(ended, Status::Drained);
    // With the initial timeout it would have stayed until the drain ended.
    let closed = world.worker.stats().traffic.closed;
    assert_eq!(closed[CloseReason::Idle as usize], 1, "{closed:?}");
    let silence = world.kernel.0.clock() - echoed_at;
    assert!((IDLE..IDLE + IDLE / 4).contains(&silence), "it was ended after {silence} ms");
    for other in others {
        assert_eq!(world.kernel.0.peers[other.0].named, None, "a peer was accepted");
    }
}

/// Goal: time without service counts as idle. Method: a wait for the service manager that is longer
/// than the idle timeout.
#[test]
fn the_wait_for_a_hand_over_that_fails_is_idle_time() {
    let mut world = World::start(runtime_limits(2_000, AdmissionPolicy::default()));
    let peer = world.connect([10, 0, 0, 1]);
    world.echo(peer);
    let deadline = world.kernel.now().plus(1_000);
    world.commands.push(Command::HandOver { deadline });
    assert_eq!(world.turn_to_the_end(), Status::Quiescent);
    let drained_at = world.kernel.now().plus(60_000);
    world.take_back(10_000, drained_at);
    let back_at = world.kernel.0.clock();
    world.turn_until("the FIN", |world| world.kernel.0.peers[peer.0].server_finished);
    let late = world.kernel.0.clock() - back_at;
    // A worker that takes connections back has not completed a turn for a long time. That counts as
    // a pause, after which timers wait.
    let most = limits::PAUSE_GRACE_MS + 500;
    assert!(late <= most, "it was ended {late} ms after it was back");
}
