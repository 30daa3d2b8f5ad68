//! Two workers with datagram sockets: a source has one rate for both of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use echo_core::datagram::Rates;

use super::history::{FakeRateLimiter, History, Scenario};
use super::rules::Allowances;
use super::saboteur::Saboteur;
use crate::caught::caught;
use crate::fake::choice::Choice;
use crate::swarm::from_environment;

const SEEDS: u64 = 400;

/// Steps of either of them during which clients send.
const STEPS: usize = 600;

struct World {
    choice: Choice,
    lanes: [History; 2],
    allowances: Rc<RefCell<Allowances>>,
}

impl World {
    fn draw(seed: u64) -> Self {
        let mut choice = Choice::from_seed(seed);
        let mut scenario = Scenario::draw(&mut choice);
        scenario.handovers.clear();
        scenario.changes.clear();
        (scenario.drain, scenario.peers) = (None, 0);
        scenario.sources_max = 100_000;
        scenario.rules.rates = Rates {
            datagrams: [None, Some(5), Some(100), Some(3_000)][choice.below(4)],
            bytes: [None, Some(100), Some(20_000), Some(3_000_000)][choice.below(4)],
        };
        let allowances = Rc::new(RefCell::new(Allowances::new(2, true)));
        let limiter = Arc::new(FakeRateLimiter::new(scenario.sources_max));
        let lanes = [0, 1].map(|_| {
            // One of them may get short datagrams and the other one long ones.
            scenario.clients.length_max = [1, 100, 3_000][choice.below(3)];
            let seed = choice.below(1 << 30) as u64;
            let (choice, saboteur) = (Choice::from_seed(seed), Saboteur::none());
            let (limiter, allowances) = (Arc::clone(&limiter), Rc::clone(&allowances));
            History::of_worker(scenario.clone(), choice, saboteur, limiter, allowances)
        });
        Self { choice, lanes, allowances }
    }

    fn run(&mut self) {
        self.lanes.iter_mut().for_each(History::start);
        let mut last = 0;
        for _ in 0..STEPS {
            // Often the same one several times, so that the other one keeps leases for a long time.
            last = if self.choice.below(4) == 0 { 1 - last } else { last };
            self.set_clock(last);
            let lane = &mut self.lanes[last];
            if self.choice.below(100) == 0 {
                lane.scenario.clients.length_max = [1, 3_000][self.choice.below(2)];
            }
            lane.turn();
        }
        for index in 0..2 {
            self.set_clock(index);
            let lane = &mut self.lanes[index];
            lane.heal();
            lane.come_to_rest();
            lane.finish();
        }
    }

    /// Both have the same clock.
    fn set_clock(&mut self, index: usize) {
        let clock = |lane: &History| lane.kernel.streams.kernel.clock();
        let now = self.lanes.iter().map(clock).max().expect("two of them");
        let fake = &mut self.lanes[index].kernel.streams.kernel;
        fake.pass_time(now - fake.clock());
    }
}

/// Goal: no source gets more than its rate from both together, and none is refused before it has
/// used its rate. Method: many seeds; each is a different pair of workers that take their steps in
/// any order.
#[test]
fn two_workers_share_the_rates() {
    let seeds = from_environment("ECHO_SIM_SEEDS").unwrap_or(SEEDS).min(SEEDS);
    let mut refused = 0;
    for seed in 1..=seeds {
        let mut world = World::draw(seed);
        if let Err(words) = caught(|| world.run()) {
            let tails = world.lanes.iter().map(|lane| lane.kernel.tail(60));
            let scenario = &world.lanes[0].scenario;
            let tails = tails.collect::<Vec<_>>().join("\n");
            panic!("{tails}{scenario:?}\n{words}\nseed {seed}");
        }
        refused += world.allowances.borrow().refused;
    }
    println!("{refused} refused");
    assert!(seeds < SEEDS || refused > 0, "too little has happened");
}
