//! All small cases, instead of a sample: every order and every outcome within a budget of faults.
//!
//! A case is a sequence of decisions (which of the possible things happens next, how many bytes,
//! whether this fault occurs). The enumeration visits each sequence once. The worlds are tiny,
//! since bugs of order need only two of each thing.

use std::sync::Arc;
use std::time::Instant;

use echo_core::admission::IpSet;
use echo_core::fullness::Fullness;
use echo_core::limits::SWEEP_SLOTS_MAX;
use echo_core::op::{BufferPlan, ConnectionError, PeerAddr};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};

use crate::audited::Delivery;
use crate::caught::caught;
use crate::fake::budget::FakeBudget;
use crate::fake::choice::{Choice, Enumeration};
use crate::fake::limiter::FakeLimiter;
use crate::fake::peer::Saying;
use crate::fake::{Faults, Settings};
use crate::history::{Handover, History, Scenario};
use crate::peers::{Ending, Peers, Plan, Population, Reading};
use crate::saboteur::Saboteur;

/// A world so small that all of it can be visited.
struct World {
    name: &'static str,
    faults: Faults,
    faults_max: usize,
    buffers: u16,
    connections_max: u32,
    budget_limit: u64,
    chaos_turns: usize,
    drain: Option<(usize, u64)>,
    /// The turn at which a handover begins, and whether it fails.
    handover: Option<(usize, bool)>,
    listeners_end: bool,
    /// Whether connections have a header.
    proxied: bool,
    plans: Vec<Plan>,
}

const QUIET: World = World {
    name: "",
    faults: NO_FAULTS,
    faults_max: 2,
    buffers: 2,
    connections_max: 2,
    budget_limit: 100,
    chaos_turns: 14,
    drain: None,
    handover: None,
    listeners_end: false,
    proxied: false,
    plans: Vec::new(),
};

const NO_FAULTS: Faults = Faults {
    short_receive: 0,
    short_send: 0,
    would_block: 0,
    stopped: 0,
    disarmed: 0,
    dry: 0,
    receive_memory: 0,
    send_memory: 0,
    accept_error: 0,
    late: 0,
    late_event: 0,
    cancel_loses: 0,
    no_hint: 0,
    spurious_wakeup: 0,
    time_jump: 0,
};

/// A world with more cases than this takes too long for every `cargo test`.
const CASES_MAX: usize = 300_000;

/// Any probability except 0 makes the enumeration take both branches.
const ON: u16 = 1;

impl World {
    fn scenario(&self, multishot: bool) -> Scenario {
        let budget = Arc::new(FakeBudget::new(1, self.budget_limit, 0, 0));
        let limiter = Arc::new(FakeLimiter::new());
        let parameters = Parameters {
            listeners: 1,
            records: Vec::new(),
            buffers: BufferPlan::new([self.buffers, 0], [2, 4]),
            multishot,
            deferral: Deferral::default(),
            sweep_slots_max: SWEEP_SLOTS_MAX,
            linger_timeout: 1_000,
            preface_timeout: 1_000,
            proxies: Arc::new([self.proxied.then(IpSet::default)]),
            identities: Arc::new([]),
            limiter: limiter.clone(),
            budget: budget.clone(),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits::unlimited(self.connections_max),
        };
        let settings = Settings {
            listeners: 1,
            records: None,
            buffers: parameters.buffers,
            files_max: 100,
            faults: self.faults,
        };
        let (wire_max, proxied) = (1, [self.proxied, false]);
        let population =
            Population { peers: 0, listeners: 1, total_max: 0, wire_max, rude: 0, proxied };
        Scenario {
            parameters,
            settings,
            population,
            chaos_turns: self.chaos_turns,
            drain: self.drain,
            listeners_end: self.listeners_end,
            reconfigurations: Vec::new(),
            divisions: Vec::new(),
            handovers: self
                .handover
                .map(|(turn, fails)| handover(turn, fails, multishot))
                .into_iter()
                .collect(),
            delivery: Delivery::Together,
            budget,
            clock: 1_000,
            others: 0,
            limiter,
            new_policy: None,
            stayers_are_ended: false,
            stubborn: false,
        }
    }

    /// Runs every case. Returns how many there are.
    fn visit(&self, multishot: bool) -> usize {
        let mut choice = Choice::Enumerated(Enumeration::new(self.faults_max));
        let mut cases = 0;
        loop {
            let peers = Peers::planned(self.plans.clone());
            let mut history =
                History::new(self.scenario(multishot), peers, choice, Saboteur::none());
            let outcome = caught(|| history.run());
            cases += 1;
            assert!(cases < CASES_MAX, "world {:?} is not small", self.name);
            let Choice::Enumerated(mut enumeration) = history.kernel.kernel.choice else {
                unreachable!("an enumeration was put in")
            };
            if let Err(words) = outcome {
                let (story, case) = (history.kernel.kernel.trace.tail(200), enumeration.describe());
                panic!("{story}{words}\nworld {:?}, multishot {multishot}, case {case}", self.name);
            }
            if !enumeration.advance() {
                return cases;
            }
            choice = Choice::Enumerated(enumeration);
        }
    }
}

fn handover(turn: usize, fails: bool, multishot: bool) -> Handover {
    let (timeout, gap) = (5_000, 1);
    let (connections_max, budget_limit) = (2, 100);
    Handover { turn, timeout, gap, fails, connections_max, budget_limit, multishot }
}

/// A handover in each of the first turns that fails or not, with a socket that is soon full.
fn worlds_with_handovers() -> impl Iterator<Item = World> {
    let faults = Faults { late: ON, would_block: ON, cancel_loses: ON, ..NO_FAULTS };
    // If a handover fails in the first turn, no connection has been accepted: not an interesting
    // case.
    let handovers = (0..6).map(|turn| (turn, false)).chain((1..6).map(|turn| (turn, true)));
    handovers.map(move |(turn, fails)| World {
        name: if fails { "no process takes over" } else { "another process takes over" },
        faults,
        faults_max: 2,
        handover: Some((turn, fails)),
        chaos_turns: 7,
        plans: vec![Plan::prompt(2, 1, Reading::Eager, Ending::Finish).on_wire(1)],
        ..QUIET
    })
}

/// Headers in every number of pieces, with a handover in each of the first turns, and at the end.
fn worlds_with_headers() -> impl Iterator<Item = World> {
    let receives =
        Faults { short_receive: ON, stopped: ON, receive_memory: ON, late: ON, ..NO_FAULTS };
    let order = Faults { late: ON, cancel_loses: ON, ..NO_FAULTS };
    let client = Saying::Announces(PeerAddr::Ipv4([192, 0, 2, 1]));
    let plan =
        |says| Plan::prompt(2, 3, Reading::Eager, Ending::Finish).on_wire(2).with_header(3, says);
    let says = [client, Saying::Nothing, Saying::Nonsense];
    let whole = says.map(|says| World {
        name: "every number of pieces of a header",
        faults: receives,
        faults_max: 1,
        proxied: true,
        chaos_turns: 7,
        plans: vec![plan(says)],
        ..QUIET
    });
    let handovers = [1, 2, 5].into_iter().map(move |turn| World {
        name: "another process takes over in the middle of a header",
        faults: order,
        faults_max: 1,
        handover: Some((turn, false)),
        proxied: true,
        chaos_turns: 7,
        plans: vec![plan(client)],
        ..QUIET
    });
    let drains = (0..3).map(move |turn| World {
        name: "a drain in the middle of a header",
        faults: order,
        faults_max: 1,
        proxied: true,
        drain: Some((turn, 0)),
        chaos_turns: 7,
        plans: vec![plan(client)],
        ..QUIET
    });
    whole.into_iter().chain(handovers).chain(drains)
}

fn worlds() -> Vec<World> {
    let one = Plan::prompt(4, 2, Reading::Eager, Ending::Finish);
    let breaks = |error| Plan::prompt(3, 2, Reading::Eager, Ending::Break(error));
    let sends = Faults { short_send: ON, would_block: ON, send_memory: ON, ..NO_FAULTS };
    let order = Faults { late: ON, late_event: ON, cancel_loses: ON, ..NO_FAULTS };
    vec![
        World {
            name: "every way in which a receive can fall short or end",
            faults: Faults {
                short_receive: ON,
                stopped: ON,
                disarmed: ON,
                dry: ON,
                receive_memory: ON,
                ..NO_FAULTS
            },
            plans: vec![one],
            ..QUIET
        },
        World {
            name: "every way in which a send can fall short",
            faults: sends,
            faults_max: 3,
            plans: vec![one],
            ..QUIET
        },
        World {
            name: "every order in which things happen and are told",
            faults: order,
            faults_max: 3,
            chaos_turns: 10,
            plans: vec![Plan::prompt(3, 2, Reading::Eager, Ending::Finish)],
            ..QUIET
        },
        World {
            name: "no memory to spill bytes",
            faults: Faults { late_event: ON, ..sends },
            faults_max: 3,
            budget_limit: 1,
            plans: vec![Plan::prompt(3, 2, Reading::Eager, Ending::Finish).on_wire(2)],
            ..QUIET
        },
        World {
            name: "a peer that breaks at any moment",
            faults: Faults { late: ON, late_event: ON, would_block: ON, ..NO_FAULTS },
            faults_max: 4,
            plans: vec![breaks(ConnectionError::Reset)],
            ..QUIET
        },
        World {
            name: "two connections, capacity for one, any accept error",
            faults: Faults { accept_error: ON, late: ON, cancel_loses: ON, ..NO_FAULTS },
            faults_max: 3,
            connections_max: 1,
            chaos_turns: 16,
            plans: vec![Plan::prompt(1, 1, Reading::Eager, Ending::Finish); 2],
            ..QUIET
        },
        World {
            name: "two connections, one buffer",
            faults: Faults { would_block: ON, late_event: ON, ..NO_FAULTS },
            faults_max: 1,
            buffers: 1,
            chaos_turns: 4,
            plans: vec![Plan::prompt(2, 1, Reading::Eager, Ending::Finish); 2],
            ..QUIET
        },
        World {
            name: "a drain at once, with a peer that stays",
            faults: Faults { late: ON, late_event: ON, would_block: ON, ..NO_FAULTS },
            faults_max: 1,
            drain: Some((3, 0)),
            chaos_turns: 8,
            plans: vec![Plan::prompt(2, 2, Reading::Eager, Ending::Stay)],
            ..QUIET
        },
        World {
            name: "a drain of its own listener, with more peers than capacity",
            faults: Faults { accept_error: ON, late: ON, cancel_loses: ON, ..NO_FAULTS },
            faults_max: 2,
            connections_max: 1,
            drain: Some((1, 5_000)),
            listeners_end: true,
            chaos_turns: 8,
            plans: vec![Plan::prompt(1, 1, Reading::Eager, Ending::Finish); 2],
            ..QUIET
        },
    ]
}

/// Goal: in worlds small enough to visit all of, nothing that the swarm forbids happens in any
/// case.
#[test]
fn all_small_cases() {
    let began = Instant::now();
    let mut total = 0;
    let worlds = worlds().into_iter().chain(worlds_with_handovers()).chain(worlds_with_headers());
    for world in worlds {
        for multishot in [true, false] {
            let cases = world.visit(multishot);
            println!("{cases:>8} cases, multishot {multishot}: {}", world.name);
            assert!(cases > 50, "this world leaves nothing to choose");
            total += cases;
        }
    }
    println!("{total:>8} cases in {:.1} s", began.elapsed().as_secs_f64());
}
