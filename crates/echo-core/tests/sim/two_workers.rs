//! Two workers of one process: they share the memory budget, the source limiter, and the count of
//! full workers.
//!
//! Each has its own kernel, auditor and peers; the clock is shared. Their common counts are
//! compared with one model.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use echo_core::command::Command;
use echo_core::fullness::Fullness;
use echo_core::limits::{QUEUE_CHUNKS_MAX, SWEEP_SLOTS_MAX};
use echo_core::op::{BufferPlan, Timestamp};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};
use echo_core::worker::{Status, Worker};

use crate::audit::admission::{Admission, Shared};
use crate::audit::{Audit, Limits};
use crate::audited::{Audited, Delivery};
use crate::caught::caught;
use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::limiter::FakeLimiter;
use crate::fake::{FakeKernel, Faults, Settings};
use crate::history::{check_end, draw_budget_limit, draw_faults, draw_policy};
use crate::peers::{Peers, Population};
use crate::saboteur::Saboteur;
use crate::swarm::from_environment;

const SEEDS: u64 = 6_000;

/// Steps with faults, and the maximum number of steps that a healed world may take to end.
const CHAOS_STEPS: usize = 300;
const HEALED_STEPS_MAX: usize = 40_000;

/// One worker with its environment.
struct Lane {
    worker: Worker,
    kernel: Audited,
    peers: Peers,
    drains: bool,
    drained: bool,
}

struct World {
    choice: Choice,
    budget: Arc<FakeBudget>,
    limiter: Arc<FakeLimiter>,
    lanes: [Lane; 2],
    refused: u64,
    memory_refused: u64,
    full: u64,
}

impl World {
    fn draw(seed: u64) -> Self {
        let mut choice = Choice::from_seed(seed);
        let block_size = [1, 4, 16][choice.below(3)];
        let limit = draw_budget_limit(&mut choice);
        let budget = Arc::new(FakeBudget::new(block_size, limit, 0, seed));
        let limiter = Arc::new(FakeLimiter::new());
        let fullness = Arc::new(Fullness::new(2));
        let shared = Rc::new(RefCell::new(Shared::default()));
        let policy = Arc::new(draw_policy(&mut choice));
        let faults = draw_faults(&mut choice);
        let lanes = [0, 1].map(|number| {
            let parameters = Parameters {
                listeners: 1,
                records: Vec::new(),
                buffers: BufferPlan::new([[2, 6, 40][choice.below(3)], 2], [4, 16]),
                multishot: choice.below(2) == 0,
                deferral: Deferral { turns_per_period: 3, chunks_per_turn: 0 },
                sweep_slots_max: [1, SWEEP_SLOTS_MAX][choice.below(2)],
                linger_timeout: 100,
                preface_timeout: 1_000,
                proxies: Arc::new([]),
                identities: Arc::new([]),
                limiter: limiter.clone(),
                budget: budget.clone(),
                fullness: Arc::clone(&fullness),
                runtime_limits: RuntimeLimits {
                    admission: Arc::clone(&policy),
                    ..RuntimeLimits::unlimited(choice.below(4) as u32)
                },
            };
            let model = Admission::of_worker((*policy).clone(), number, Rc::clone(&shared));
            Lane::new(parameters, model, faults, budget.clone(), seed ^ ((number as u64 + 1) << 40))
        });
        Self { choice, budget, limiter, lanes, refused: 0, memory_refused: 0, full: 0 }
    }

    fn clock(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.kernel.kernel.clock()).max().expect("two of them")
    }

    /// One step of one of the workers.
    fn step(&mut self) {
        let now = self.clock();
        let number = self.choice.below(2);
        let soon = now + self.choice.below(50) as u64;
        let lane = &mut self.lanes[number];
        if lane.drained {
            return;
        }
        let fake = &mut lane.kernel.kernel;
        fake.pass_time(now - fake.clock());
        lane.peers.act(fake);
        fake.peers_act_at = Some(soon);
        let drain = lane.drains && !lane.kernel.audit.is_draining();
        let command = drain.then_some(Command::Drain { deadline: Timestamp(now + 500) });
        let Ok(status) = lane.worker.step(&mut lane.kernel, command);
        lane.worker.check_invariants();
        lane.drained = status == Status::Drained;
        self.check();
    }

    /// Checks the common counts of both.
    fn check(&self) {
        let blocks: u64 = self.lanes.iter().map(|lane| lane.kernel.kernel.spill_blocks()).sum();
        assert_eq!(self.budget.taken(), blocks, "counters: blocks of memory");
        let table = self.limiter.table();
        table.check_invariants();
        let sources = self.lanes[0].kernel.audit.admission.sources();
        assert!(sources.contains(&table.sources()), "counters: {} sources", table.sources());
        for lane in &self.lanes {
            let stats = lane.worker.stats();
            let audit = &lane.kernel.audit;
            assert_eq!(stats.traffic.refused_total(), audit.admission.refused, "counters: refused");
            assert_eq!(stats.traffic.bytes_in, audit.bytes_in, "counters: bytes in");
            assert_eq!(stats.traffic.bytes_out, audit.bytes_out, "counters: bytes out");
        }
    }

    fn run(&mut self) {
        for lane in &mut self.lanes {
            let Ok(()) = lane.worker.start(&mut lane.kernel);
        }
        for _ in 0..CHAOS_STEPS {
            self.step();
        }
        let now = self.clock();
        for lane in &mut self.lanes {
            lane.kernel.kernel.settings.faults = Faults::default();
            lane.peers.heal(now);
            lane.peers.no_longer_stay(now);
        }
        let mut steps = 0;
        while self.lanes.iter().any(|lane| !lane.drained) {
            steps += 1;
            assert!(steps < HEALED_STEPS_MAX, "liveness: no end after {HEALED_STEPS_MAX} steps");
            for lane in &mut self.lanes {
                let ended = lane.kernel.audit.open_count() == 0;
                // A worker without capacity accepts nothing: its peers wait for its drain.
                lane.drains |= ended && lane.peers.are_done(&lane.kernel.kernel) || steps > 2_000;
            }
            self.step();
        }
        for lane in &mut self.lanes {
            check_end(&mut lane.kernel, &lane.peers);
            let stats = lane.worker.stats();
            self.refused += stats.traffic.refused_total();
            self.memory_refused += stats.spills_refused;
            self.full += stats.full;
        }
        assert_eq!(self.budget.taken(), 0, "rest: memory is taken");
    }
}

impl Lane {
    fn new(
        parameters: Parameters,
        model: Admission,
        faults: Faults,
        budget: Arc<FakeBudget>,
        seed: u64,
    ) -> Self {
        let limits = Limits {
            connections_max: parameters.runtime_limits.connections_max as usize,
            listeners: 1,
            buffers: parameters.buffers,
            chunks_max: usize::from(QUEUE_CHUNKS_MAX),
            idle_timeout: None,
            stall_timeout: None,
            linger_timeout: parameters.linger_timeout,
            lifetime: None,
            preface_timeout: 1_000,
            bytes_max: None,
        };
        let mut choice = Choice::from_seed(seed);
        let population = Population {
            peers: 1 + choice.below(6),
            listeners: 1,
            total_max: [6, 40, 200][choice.below(3)],
            wire_max: [1, 5, 30][choice.below(3)],
            rude: [0, 300][choice.below(2)],
            proxied: [false; 2],
        };
        let delivery = [Delivery::OneByOne, Delivery::Together][choice.below(2)];
        let settings = Settings {
            listeners: 1,
            records: None,
            buffers: parameters.buffers,
            files_max: 100,
            faults,
        };
        let mut fake = FakeKernel::new(settings, budget, choice);
        let now = fake.clock();
        let peers = Peers::draw(&mut fake.choice, population, now);
        let audit = Audit::new(limits, model);
        Self {
            worker: Worker::new(parameters),
            kernel: Audited::new(fake, audit, Saboteur::none(), delivery),
            peers,
            drains: false,
            drained: false,
        }
    }
}

/// Goal: limits hold for both workers together, and no step of one disturbs the other. Method: many
/// seeds; each is a different pair of workers that take their steps in any order.
#[test]
fn two_workers_share_limits_and_memory() {
    let seeds = from_environment("ECHO_SIM_SEEDS").unwrap_or(SEEDS).min(SEEDS);
    let (mut refused, mut memory_refused, mut full) = (0, 0, 0);
    for seed in 1..=seeds {
        let mut world = World::draw(seed);
        if let Err(words) = caught(|| world.run()) {
            let tails = world.lanes.iter().map(|lane| lane.kernel.kernel.trace.tail(60));
            panic!("{}{words}\nseed {seed}", tails.collect::<Vec<_>>().join("\n"));
        }
        refused += world.refused;
        memory_refused += world.memory_refused;
        full += world.full;
    }
    println!("{refused} refused, memory refused {memory_refused} times, full {full} times");
    assert!(seeds < SEEDS || refused.min(memory_refused).min(full) > 0, "too little has happened");
}
