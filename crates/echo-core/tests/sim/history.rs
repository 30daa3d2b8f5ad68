//! One history: a server, a fake kernel and a population of peers, all drawn from one seed, run to
//! their end.
//!
//! The loop is the worker's own: each turn is one `Worker::step`, with the commands of the daemon.
//! At first there are faults. Then the world is healed, and everything must become quiescent within
//! a bounded number of turns. Invariants are checked after every event; a violation is a panic that
//! the caller catches and reports with the seed.

use std::sync::Arc;

use echo_core::admission::{AccessList, AdmissionPolicy, IpSet, SourceLimits};
use echo_core::command::Command;
use echo_core::fullness::Fullness;
use echo_core::kernel::{Kernel, Wake};
use echo_core::limits::{QUEUE_CHUNKS_MAX, SWEEP_SLOTS_MAX};
use echo_core::op::{BufferPlan, ConnectionId, ListenerId, Timestamp, TransferState};
use echo_core::parameters::{Deferral, Keepalive, Parameters, RuntimeLimits};
use echo_core::reason::{CloseReason, RefuseReason};
use echo_core::stats::Stats;
use echo_core::worker::{Status, Worker};

use crate::apart::{draw_divisions, draw_identities};
use crate::audit::admission::Admission;
use crate::audit::{Audit, Limits};
use crate::audited::{Audited, Delivery};
use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::limiter::FakeLimiter;
use crate::fake::records::Records;
use crate::fake::trace::Note;
use crate::fake::{FakeKernel, Faults, Settings};
use crate::peers::{Peers, Population};
use crate::saboteur::Saboteur;

/// Turns that a healed world may take to become quiescent. Far more than any seed has needed, but
/// bounded.
const HEALED_TURNS_MAX: usize = 20_000;

/// The parameters of one history.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) parameters: Parameters,
    pub(crate) settings: Settings,
    pub(crate) population: Population,
    /// Turns before the world is healed.
    pub(crate) chaos_turns: usize,
    /// The turn at which a drain begins, and its timeout, in milliseconds.
    pub(crate) drain: Option<(usize, u64)>,
    /// Whether the listeners end with a drain or a handover, because no other process holds them.
    pub(crate) listeners_end: bool,
    /// New limits and timeouts, each with the turn of its command, the last one first.
    pub(crate) reconfigurations: Vec<(usize, RuntimeLimits, u64)>,
    /// The listeners from which the worker accepts, each with the turn of its command, the last one
    /// first.
    pub(crate) divisions: Vec<(usize, [bool; 2])>,
    /// The moments at which the process is replaced by another.
    pub(crate) handovers: Vec<Handover>,
    pub(crate) delivery: Delivery,
    /// The budget for spilled bytes, which is also in the parameters.
    pub(crate) budget: Arc<FakeBudget>,
    /// The start of the clock, in milliseconds.
    pub(crate) clock: u64,
    /// The probability that other workers take or give back memory, in thousandths.
    pub(crate) others: u16,
    /// The source limiter, which is also in the parameters.
    pub(crate) limiter: Arc<FakeLimiter>,
    /// The turn at which another admission policy takes effect.
    pub(crate) new_policy: Option<(usize, Arc<AdmissionPolicy>)>,
    /// After healing, peers that stay are ended by the server's timeouts instead of ending by
    /// themselves.
    pub(crate) stayers_are_ended: bool,
    /// If a drain has begun, peers are not healed: the server must finish in spite of them.
    pub(crate) stubborn: bool,
}

/// One process takes over from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handover {
    /// The turn at which it begins.
    pub(crate) turn: usize,
    /// How long connections have to become quiescent, in milliseconds.
    pub(crate) timeout: u64,
    /// How long there is no process at all, in milliseconds.
    pub(crate) gap: u64,
    /// No process takes over: the same process takes everything back, after the gap, and drains.
    pub(crate) fails: bool,
    /// The configuration of the next process.
    pub(crate) connections_max: u32,
    pub(crate) budget_limit: u64,
    pub(crate) multishot: bool,
}

/// One run.
pub(crate) struct History {
    pub(crate) kernel: Audited,
    scenario: Scenario,
    pub(crate) worker: Worker,
    pub(crate) peers: Peers,
    /// The commands of the daemon for the next turn.
    commands: Vec<Command>,
    draining: bool,
    drained: bool,
    /// The handover in progress.
    handover: Option<Handover>,
    /// The counters of previous processes.
    pub(crate) before: Stats,
    /// Time advances from deadline to deadline of the worker, regardless of the plans of the peers.
    hasty: bool,
    /// How many connections there may be: more than capacity for a while after capacity was reduced
    /// or another process took over.
    allowed: u64,
    /// How often the limits changed.
    pub(crate) reconfigured: u64,
    /// How often the listeners were divided.
    pub(crate) divided: u64,
    /// The configuration of the first worker.
    first_limits: RuntimeLimits,
    /// How often a handover failed.
    pub(crate) taken_back: u64,
    /// Turns so far.
    pub(crate) turns: usize,
}

impl Scenario {
    /// Tiny limits and drawn probabilities: every seed stresses different parts of the code.
    pub(crate) fn draw(choice: &mut Choice) -> Self {
        let listeners = 1 + choice.below(2) as u16;
        let timeouts = [None, Some(300), Some(5_000), Some(60_000)];
        let idle_timeout = timeouts[choice.below(4)];
        let out_of_memory = [0, 0, 100, 1000][choice.below(4)];
        let block_size = [1, 4, 16][choice.below(3)];
        let seed = choice.below(1 << 20) as u64;
        let limit = draw_budget_limit(choice);
        let budget = Arc::new(FakeBudget::new(block_size, limit, out_of_memory, seed));
        let limiter = Arc::new(FakeLimiter::new());
        let connections_max = 1 + choice.below(6) as u32;
        let parameters = Parameters {
            listeners,
            records: Vec::new(),
            buffers: BufferPlan::new(
                [[1, 2, 3, 4, 6, 8, 8, 40][choice.below(8)], [0, 0, 1, 2, 4][choice.below(5)]],
                [[4, 16][choice.below(2)], [16, 64][choice.below(2)]],
            ),
            multishot: choice.below(2) == 0,
            deferral: Deferral {
                turns_per_period: [1, 3, 256][choice.below(3)],
                chunks_per_turn: [0, 1, 6][choice.below(3)],
            },
            sweep_slots_max: [1, 2, SWEEP_SLOTS_MAX][choice.below(3)],
            linger_timeout: [100, 5_000][choice.below(2)],
            preface_timeout: [100, 3_000][choice.below(2)],
            proxies: (0..listeners).map(|_| draw_proxies(choice)).collect(),
            identities: Arc::new([]),
            limiter: limiter.clone(),
            budget: budget.clone(),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits {
                idle_timeout,
                stall_timeout: timeouts[choice.below(4)],
                lifetime: [None, None, None, Some(200), Some(6_000)][choice.below(5)],
                bytes_max: [None, None, None, Some(1), Some(17), Some(100)][choice.below(6)],
                keepalive: draw_keepalive(choice),
                admission: Arc::new(draw_policy(choice)),
                ..RuntimeLimits::unlimited(connections_max)
            },
        };
        let rate = parameters.runtime_limits.admission.source_limits.accepts_per_second;
        let settings = Settings {
            listeners,
            records: None,
            buffers: parameters.buffers,
            files_max: [1, 2, 100, 100][choice.below(4)],
            faults: draw_faults(choice),
        };
        let population = Population {
            peers: 1 + choice.below(8),
            listeners,
            total_max: [0, 6, 40, 200, 600][choice.below(5)],
            wire_max: [1, 5, 30, 100, 300][choice.below(5)],
            rude: [0, 300, 800][choice.below(3)],
            proxied: [0, 1].map(|listener| parameters.proxies_of(ListenerId(listener)).is_some()),
        };
        let timeout = [0, 40, 2_000, 20_000][choice.below(4)];
        let mut scenario = Self {
            parameters,
            settings,
            population,
            chaos_turns: choice.below(200),
            drain: (choice.below(3) == 0).then(|| (choice.below(150), timeout)),
            handovers: draw_handovers(choice),
            delivery: [Delivery::OneByOne, Delivery::Together][choice.below(2)],
            budget,
            clock: [1_000, 1_000, (1 << 32) - 3_000, (1 << 36) - 3_000, 1 << 40][choice.below(5)],
            others: [0, 0, 50, 500][choice.below(4)],
            limiter,
            new_policy: (choice.below(3) == 0).then(|| draw_new_policy(choice, rate)),
            stayers_are_ended: idle_timeout.is_some() && choice.below(2) == 0,
            stubborn: choice.below(2) == 0,
            listeners_end: choice.below(2) == 0,
            reconfigurations: Vec::new(),
            divisions: Vec::new(),
        };
        if scenario.new_policy.is_some() {
            // The model counts open connections by a new policy at once, not some in each turn.
            scenario.parameters.sweep_slots_max = SWEEP_SLOTS_MAX;
        }
        scenario.reconfigurations = draw_reconfigurations(choice, scenario.stayers_are_ended);
        scenario
    }

    /// In a third of the histories the last listener has connections with records, unless they have
    /// headers. Drawn separately, so that the histories of other seeds do not change.
    fn draw_records(&mut self, seed: u64) {
        let last = ListenerId(self.parameters.listeners - 1);
        if Choice::from_seed(!seed).below(3) == 0 && self.parameters.proxies_of(last).is_none() {
            self.parameters.records = vec![last];
            self.settings.records = Some(last);
        }
    }
}

/// The proxies that a listener trusts, if it accepts connections of proxies.
fn draw_proxies(choice: &mut Choice) -> Option<IpSet> {
    let subnet = ([10, 0, 0, 0], [10, 0, 0, 255]);
    let all = ([0; 4], [255; 4]);
    match choice.below(6) {
        0 => Some(IpSet::new(vec![subnet], Vec::new())),
        1 => Some(IpSet::new(vec![all], vec![([0; 16], [255; 16])])),
        _ => None,
    }
}

/// Blocks of memory for all spilled bytes.
pub(crate) fn draw_budget_limit(choice: &mut Choice) -> u64 {
    [0, 1, 3, 15, 100, 100_000][choice.below(6)]
}

/// In a third of the histories limits and timeouts change, once or more often. If the idle timeout
/// has to end peers that stay, it is never off.
fn draw_reconfigurations(
    choice: &mut Choice,
    stayers_are_ended: bool,
) -> Vec<(usize, RuntimeLimits, u64)> {
    let count = [0, 0, 0, 0, 1, 3][choice.below(6)];
    let timeouts = [Some(300), Some(5_000), Some(60_000), None];
    let idle_choices = if stayers_are_ended { 3 } else { 4 };
    let mut reconfigurations: Vec<(usize, RuntimeLimits, u64)> = (0..count)
        .map(|_| {
            let runtime_limits = RuntimeLimits {
                idle_timeout: timeouts[choice.below(idle_choices)],
                stall_timeout: timeouts[choice.below(4)],
                lifetime: [None, None, Some(200), Some(6_000)][choice.below(4)],
                bytes_max: [None, None, Some(1), Some(17), Some(100)][choice.below(5)],
                keepalive: draw_keepalive(choice),
                ..RuntimeLimits::unlimited(1 + choice.below(6) as u32)
            };
            (choice.below(150), runtime_limits, draw_budget_limit(choice))
        })
        .collect();
    reconfigurations.sort_by_key(|(turn, ..)| std::cmp::Reverse(*turn));
    reconfigurations
}

fn draw_keepalive(choice: &mut Choice) -> Option<Keepalive> {
    let silence = [None, None, Some(1_000), Some(7_000), Some(60_000)][choice.below(5)];
    silence.map(|silence| Keepalive { silence, burst: 1 + choice.below(3) as u32 })
}

/// In half of the histories no process takes over; in the others there are up to three handovers in
/// a row.
fn draw_handovers(choice: &mut Choice) -> Vec<Handover> {
    let count = [0, 0, 0, 1, 1, 3][choice.below(6)];
    let mut handovers: Vec<Handover> = (0..count)
        .map(|_| Handover {
            turn: choice.below(150),
            timeout: [0, 30, 5_000, 5_000, 5_000][choice.below(5)],
            gap: [0, 1, 200, 4_000][choice.below(4)],
            fails: choice.below(4) == 0,
            connections_max: 1 + choice.below(6) as u32,
            budget_limit: draw_budget_limit(choice),
            multishot: choice.below(2) == 0,
        })
        .collect();
    handovers.sort_by_key(|handover| std::cmp::Reverse(handover.turn));
    handovers
}

/// Which connections are admitted. In half of the histories all are.
pub(crate) fn draw_policy(choice: &mut Choice) -> AdmissionPolicy {
    if choice.below(2) == 0 {
        return AdmissionPolicy::default();
    }
    let source_limits = SourceLimits {
        connections: [None, Some(1), Some(2)][choice.below(3)],
        accepts_per_second: [None, Some(1), Some(2), Some(5)][choice.below(4)],
        ipv4_prefix: [32, 24, 16][choice.below(3)],
        ipv6_prefix: [64, 128][choice.below(2)],
        ..SourceLimits::default()
    };
    let mut access = AccessList::default();
    if choice.below(4) == 0 {
        access.allow = IpSet::new(vec![([10, 0, 0, 0], [10, 0, 0, 255])], Vec::new());
    }
    if choice.below(4) == 0 {
        let ipv4 = vec![([10, 0, 0, 1], [10, 0, 0, 1])];
        access.deny = IpSet::new(ipv4, vec![([0; 16], [255; 16])]);
    }
    AdmissionPolicy { access, source_limits, ..AdmissionPolicy::default() }
}

/// A policy that takes effect in the middle. The rate stays, because the conversion of a bucket to
/// another rate is not specified.
fn draw_new_policy(choice: &mut Choice, rate: Option<u32>) -> (usize, Arc<AdmissionPolicy>) {
    let mut policy = draw_policy(choice);
    policy.source_limits.accepts_per_second = rate;
    (choice.below(150), Arc::new(policy))
}

pub(crate) fn draw_faults(choice: &mut Choice) -> Faults {
    // A history with all faults all the time tests little. In each history half of the faults are
    // off.
    let mut draw = |most: usize| match choice.below(2) {
        0 => 0,
        _ => 1 + choice.below(most) as u16,
    };
    Faults {
        short_receive: draw(600),
        short_send: draw(600),
        would_block: draw(400),
        stopped: draw(300),
        disarmed: draw(400),
        dry: draw(300),
        receive_memory: draw(200),
        send_memory: draw(200),
        accept_error: draw(400),
        late: draw(700),
        late_event: draw(700),
        cancel_loses: draw(800),
        no_hint: draw(900),
        spurious_wakeup: draw(100),
        time_jump: draw(60),
    }
}

impl History {
    pub(crate) fn from_seed(seed: u64, saboteur: Saboteur) -> Self {
        let mut choice = Choice::from_seed(seed);
        let mut scenario = Scenario::draw(&mut choice);
        scenario.draw_records(seed);
        scenario.divisions = draw_divisions(seed);
        scenario.parameters.identities = draw_identities(seed, scenario.parameters.listeners);
        let peers = Peers::draw(&mut choice, scenario.population, scenario.clock);
        Self::new(scenario, peers, choice, saboteur)
    }

    pub(crate) fn new(
        scenario: Scenario,
        peers: Peers,
        choice: Choice,
        saboteur: Saboteur,
    ) -> Self {
        let parameters = &scenario.parameters;
        let limits = Limits {
            connections_max: parameters.runtime_limits.connections_max as usize,
            listeners: usize::from(parameters.listeners),
            buffers: parameters.buffers,
            chunks_max: usize::from(QUEUE_CHUNKS_MAX),
            idle_timeout: parameters.runtime_limits.idle_timeout,
            stall_timeout: parameters.runtime_limits.stall_timeout,
            linger_timeout: parameters.linger_timeout,
            preface_timeout: parameters.preface_timeout,
            lifetime: parameters.runtime_limits.lifetime,
            bytes_max: parameters.runtime_limits.bytes_max,
        };
        let budget = Arc::clone(&scenario.budget);
        let mut kernel = FakeKernel::new(scenario.settings, budget, choice);
        kernel.pass_time(scenario.clock - kernel.clock());
        kernel.breaks_records = saboteur.breach();
        let policy = AdmissionPolicy::clone(&parameters.runtime_limits.admission);
        let admission = Admission::new(policy).with_proxies(Arc::clone(&parameters.proxies));
        let audit = Audit::new(limits, admission);
        let audit = audit.with_identities(Arc::clone(&parameters.identities));
        Self {
            worker: Worker::new(parameters.clone()),
            kernel: Audited::new(kernel, audit, saboteur, scenario.delivery),
            peers,
            commands: Vec::new(),
            draining: false,
            drained: false,
            handover: None,
            before: Stats::default(),
            hasty: false,
            allowed: u64::from(parameters.runtime_limits.connections_max),
            reconfigured: 0,
            divided: 0,
            first_limits: parameters.runtime_limits.clone(),
            taken_back: 0,
            turns: 0,
            scenario,
        }
    }

    fn fake(&mut self) -> &mut FakeKernel {
        &mut self.kernel.kernel
    }

    fn clock(&self) -> u64 {
        self.kernel.kernel.clock()
    }

    fn note(&mut self, word: &'static str) {
        let now = self.clock();
        self.fake().trace.note(now, Note::World(word));
    }

    /// Everything that was drawn, for a failure report.
    pub(crate) fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Runs the history from start to end.
    pub(crate) fn run(&mut self) {
        self.start();
        while self.turns < self.scenario.chaos_turns && !self.drained {
            self.begin_drain_if_due();
            self.reconfigure_if_due();
            self.divide_if_due();
            self.begin_handover_if_due();
            self.change_policy_if_due();
            self.turn();
        }
        self.heal();
        self.finish();
        self.check_rest();
    }

    fn start(&mut self) {
        let Ok(()) = self.worker.start(&mut self.kernel);
        self.worker.check_invariants();
    }

    fn heal(&mut self) {
        self.note("healed");
        // There is no other worker to accept from the other listeners.
        self.accept_from([true; 2]);
        let fake = &mut self.kernel.kernel;
        fake.settings.faults = Faults::default();
        fake.settings.files_max = usize::MAX;
        // Other workers keep their memory: no connection needs memory to end.
        self.scenario.others = 0;
        self.scenario.budget.heal();
        if self.scenario.stubborn && self.draining {
            self.hasty = true;
            return;
        }
        let now = self.clock();
        self.peers.heal(now);
        if !self.scenario.stayers_are_ended && !self.draining {
            self.peers.no_longer_stay(now);
        }
    }

    /// Runs until every peer is done, drains if no drain has begun, and runs until the drain is over.
    fn finish(&mut self) {
        let last = self.turns + HEALED_TURNS_MAX;
        while !self.drained {
            assert!(self.turns < last, "liveness: no end after {HEALED_TURNS_MAX} healed turns");
            if self.are_peers_done() && self.kernel.audit.open_count() == 0 {
                self.begin_drain(20_000);
            }
            let acted = self.turn();
            let stuck = self.kernel.kernel.asleep && !acted && !self.drained;
            let stuck = stuck && self.peers.next_at(&self.kernel.kernel).is_none();
            let stuck = stuck && !self.kernel.has_pending() && self.commands.is_empty();
            assert!(
                !stuck || !self.draining_can_help(),
                "liveness: asleep without a deadline: {}",
                self.left()
            );
        }
    }

    fn are_peers_done(&self) -> bool {
        self.peers.are_done(&self.kernel.kernel)
    }

    /// A sleeping world with all peers done that is not draining yet will be drained next: that is
    /// not a deadlock.
    fn draining_can_help(&self) -> bool {
        self.draining || !self.are_peers_done() || self.kernel.audit.open_count() > 0
    }

    /// One turn of the worker's loop, after the actions of the world. Returns whether anything
    /// except the worker acted.
    fn turn(&mut self) -> bool {
        self.turns += 1;
        let fake = &mut self.kernel.kernel;
        if fake.choice.strikes(self.scenario.others) {
            let per_mille = fake.choice.below(1001) as u64;
            self.scenario.budget.set_others(per_mille);
        }
        let acted = self.peers.act(fake);
        let next = self.peers.next_at(fake).filter(|_| !self.hasty);
        fake.peers_act_at = next.or_else(|| acted.then_some(fake.clock()));
        let commands = std::mem::take(&mut self.commands);
        let commanded = !commands.is_empty();
        let Ok(status) = self.worker.step(&mut self.kernel, commands);
        self.worker.check_invariants();
        self.check_step();
        match status {
            Status::Running { .. } => acted || commanded,
            Status::Drained => {
                self.drained = true;
                true
            }
            Status::Quiescent => {
                self.hand_over();
                true
            }
        }
    }

    fn begin_drain_if_due(&mut self) {
        if let Some((turn, timeout)) = self.scenario.drain
            && turn <= self.turns
        {
            self.begin_drain(timeout);
        }
    }

    fn reconfigure_if_due(&mut self) {
        let turns = self.turns;
        let due = self.scenario.reconfigurations.pop_if(|(turn, ..)| *turn <= turns);
        let Some((_, runtime_limits, budget_limit)) = due else {
            return;
        };
        self.scenario.budget.set_limit(budget_limit);
        self.note("new limits and timeouts");
        self.reconfigured += 1;
        // The admission policy does not change.
        let admission = Arc::clone(&self.scenario.parameters.runtime_limits.admission);
        self.reconfigure(RuntimeLimits { admission, ..runtime_limits });
    }

    fn divide_if_due(&mut self) {
        let turns = self.turns;
        if let Some((_, ours)) = self.scenario.divisions.pop_if(|(turn, _)| *turn <= turns) {
            self.note("the listeners are divided again");
            self.divided += 1;
            self.accept_from(ours);
        }
    }

    fn accept_from(&mut self, ours: [bool; 2]) {
        let listeners = usize::from(self.scenario.settings.listeners);
        self.commands.push(Command::AcceptFrom(ours[..listeners].into()));
    }

    fn change_policy_if_due(&mut self) {
        let turns = self.turns;
        let Some((_, admission)) = self.scenario.new_policy.take_if(|(turn, _)| *turn <= turns)
        else {
            return;
        };
        self.note("another policy is in force");
        let open = self.kernel.audit.judged_connections().into_iter();
        let open: Vec<_> = open.map(|id| (id, self.kernel.peer_of(id))).collect();
        self.kernel.audit.admission.change(AdmissionPolicy::clone(&admission), &open);
        let limits = self.scenario.parameters.runtime_limits.clone();
        self.reconfigure(RuntimeLimits { admission, ..limits });
    }

    fn reconfigure(&mut self, runtime_limits: RuntimeLimits) {
        let connections = self.worker.stats().connections;
        self.allowed = connections.max(u64::from(runtime_limits.connections_max));
        self.scenario.parameters.runtime_limits = runtime_limits.clone();
        self.commands.push(Command::Reconfigure(Box::new(runtime_limits)));
    }

    fn begin_drain(&mut self, timeout: u64) {
        // During a handover a drain would come too late.
        if !self.draining && self.handover.is_none() {
            self.draining = true;
            self.note("a drain begins");
            let deadline = Timestamp(self.clock() + timeout);
            self.end_listeners();
            self.commands.push(Command::Drain { deadline });
        }
    }

    fn end_listeners(&mut self) {
        if !self.scenario.listeners_end {
            return;
        }
        let listeners: Arc<[ListenerId]> =
            (0..self.scenario.settings.listeners).map(ListenerId).collect();
        listeners.iter().for_each(|listener| self.fake().end_listener(*listener));
        self.commands.push(Command::EndListeners(listeners));
    }

    fn begin_handover_if_due(&mut self) {
        if self.draining || self.handover.is_some() {
            return;
        }
        let turns = self.turns;
        let Some(handover) = self.scenario.handovers.pop_if(|next| next.turn <= turns) else {
            return;
        };
        self.handover = Some(handover);
        self.note("a handover begins");
        let deadline = Timestamp(self.clock() + handover.timeout);
        self.end_listeners();
        self.commands.push(Command::HandOver { deadline });
    }

    /// The old process ends and the next one begins. The world continues in between.
    fn hand_over(&mut self) {
        let handover = self.handover.take().expect("a handover was requested");
        self.check_ended_listeners();
        let mut released = self.worker.release(self.kernel.now());
        self.worker.check_invariants();
        for (_, transfer) in &mut released {
            self.kernel.saboteur.transfer(transfer);
            *transfer = transfer.after(handover.gap);
        }
        if handover.fails {
            return self.take_back(handover, released);
        }
        self.fake().reopen_listeners();
        self.kernel.audit.reopen_listeners();
        self.before.add(&self.worker.stats());
        self.scenario.limiter = Arc::new(FakeLimiter::new());
        let parameters = &mut self.scenario.parameters;
        parameters.runtime_limits.connections_max = handover.connections_max;
        parameters.multishot = handover.multishot;
        parameters.limiter = self.scenario.limiter.clone();
        self.scenario.budget.set_limit(handover.budget_limit);
        // Commands to the old process are too late.
        self.commands.clear();
        self.worker = Worker::new(self.scenario.parameters.clone());
        self.kernel.audit.admission.forget_buckets();
        self.import(handover.gap, released);
        self.start();
    }

    /// The handover has failed. The same worker continues with the connections that it gave away,
    /// by the present limits, timeouts and policy, and drains.
    fn take_back(&mut self, handover: Handover, released: Vec<(ConnectionId, TransferState)>) {
        self.kernel.audit.begin_to_take_back();
        self.draining = true;
        self.taken_back += 1;
        let slots = self.kernel.audit.slots();
        if let Some(limits) = self.kernel.saboteur.limits_to_go_back_to(&self.first_limits) {
            self.commands.push(Command::Reconfigure(Box::new(limits)));
        }
        self.import(handover.gap, released);
        self.kernel.audit.keep_slots(slots);
        let deadline = Timestamp(self.clock() + handover.timeout);
        if self.scenario.listeners_end {
            // The command is repeated: they are closed already.
            let listeners = (0..self.scenario.settings.listeners).map(ListenerId).collect();
            self.commands.push(Command::EndListeners(listeners));
        }
        self.commands.push(Command::Drain { deadline });
    }

    /// Imports the connections that were given away into the present worker.
    fn import(&mut self, gap: u64, released: Vec<(ConnectionId, TransferState)>) {
        let renamed: Vec<_> =
            released.iter().map(|(old, _)| (*old, self.worker.reserve_slot())).collect();
        self.kernel.audit.hand_over(&renamed, &self.scenario.parameters);
        self.kernel.hand_over(&renamed);
        let judged = self.kernel.audit.judged_connections().into_iter();
        let peers: Vec<_> = judged.map(|next| (next, self.kernel.peer_of(next))).collect();
        self.kernel.audit.admission.hand_over(&peers);
        self.fake().pass_time(gap);
        self.peers.act(&mut self.kernel.kernel);
        let capacity = u64::from(self.scenario.parameters.runtime_limits.connections_max);
        self.allowed = capacity.max(renamed.len() as u64);
        for ((_, connection), (_, transfer)) in renamed.into_iter().zip(released) {
            let peer = self.kernel.peer_of(connection);
            let now = self.clock();
            self.fake().trace.note(now, Note::Import(transfer));
            self.kernel.audit.imported(connection, transfer);
            self.worker.import(&mut self.kernel, connection, peer, transfer);
            self.worker.check_invariants();
        }
    }

    /// The source of every refusal is recorded. A connection that is refused because of its header
    /// is counted when it is closed; if it is one of this machine, its source has no address.
    fn check_refused_sources(&self) {
        let traffic = self.worker.stats().traffic;
        let headers = [RefuseReason::InvalidHeader, RefuseReason::HeaderTimeout];
        let headers: u64 = headers.iter().map(|&reason| traffic.refused[reason as usize]).sum();
        let known = traffic.refused_total();
        let open = self.kernel.audit.open_count() as u64;
        let noted = self.worker.refused_sources().total();
        assert!((known - headers..=known + open).contains(&noted), "counters: {noted} refused");
    }

    fn check_step(&mut self) {
        let mut stats = self.worker.stats();
        stats.add(&self.before);
        let audit = &self.kernel.audit;
        assert_eq!(stats.traffic.accepted, audit.accepted, "counters: accepted");
        let handed_over = stats.traffic.closed[CloseReason::HandedOver as usize];
        let (closed, refused) =
            (stats.traffic.closed_total() - handed_over, stats.traffic.refused_total());
        let either = audit.closed_or_refused;
        assert!((audit.closed..=audit.closed + either).contains(&closed), "counters: closed");
        let known = audit.closed + audit.admission.refused + either;
        assert_eq!(closed + refused, known, "counters: refused");
        assert_eq!(stats.traffic.announced, audit.announced, "counters: announced");
        assert_eq!(stats.traffic.identities, audit.identified, "counters: identities");
        self.check_refused_sources();
        let table = self.scenario.limiter.table();
        table.check_invariants();
        let sources = audit.admission.sources();
        assert!(sources.contains(&table.sources()), "counters: {} sources", table.sources());
        assert_eq!(stats.traffic.bytes_in, audit.bytes_in, "counters: bytes in");
        assert_eq!(stats.traffic.bytes_out, audit.bytes_out, "counters: bytes out");
        let blocks = self.kernel.kernel.spill_blocks();
        assert_eq!(self.scenario.budget.taken(), blocks, "counters: blocks of memory");
        let capacity = u64::from(self.scenario.parameters.runtime_limits.connections_max);
        // At the end of a drain, connections that wait for capacity are opened so that they can be
        // ended; in a handover, so that they can be given away.
        let exceeds = self.draining || self.handover.is_some();
        assert!(exceeds || stats.connections <= self.allowed, "limit: too many connections");
        self.allowed = stats.connections.max(capacity);
    }

    fn check_ended_listeners(&self) {
        assert!(self.kernel.audit.are_ends_complete(), "rest: a listener has not ended");
        assert!(self.kernel.kernel.is_nobody_forgotten(), "rest: a peer waits in vain");
    }

    fn check_rest(&mut self) {
        check_end(&mut self.kernel, &self.peers);
        self.check_ended_listeners();
        let mut stats = self.worker.stats();
        stats.add(&self.before);
        assert_eq!(
            stats.traffic.bytes_in,
            stats.traffic.bytes_out + stats.bytes_dropped,
            "rest: bytes"
        );
        assert_eq!(stats.bytes_handed_over, stats.bytes_taken_over, "rest: bytes handed over");
        let handed_over = stats.traffic.closed[CloseReason::HandedOver as usize];
        assert_eq!(stats.traffic.taken_over, handed_over, "rest: connections handed over");
        let ended = stats.traffic.closed_total() - handed_over + stats.traffic.refused_total();
        assert_eq!(stats.traffic.accepted, ended, "rest: connections");
        assert_eq!(self.scenario.budget.taken(), 0, "rest: memory is taken");
    }

    fn left(&self) -> String {
        let open: Vec<_> = self.kernel.kernel.peers.iter().filter(|peer| !peer.is_over()).collect();
        format!("{} connections are open, {open:?}", self.kernel.audit.open_count())
    }
}

/// What must hold when the worker has drained: no buffer, memory or connection is left, and every
/// peer that is owed all of its bytes has them.
pub(crate) fn check_end(kernel: &mut Audited, peers: &Peers) {
    // The last submissions have been handed to the kernel, and cause no event.
    let Ok(()) = kernel.turn(Wake::Now, &mut Vec::new());
    let (audit, fake) = (&kernel.audit, &kernel.kernel);
    audit.quiescent();
    let (home, total) = fake.buffers_home_and_total();
    assert_eq!(home, total, "rest: a buffer is missing");
    assert_eq!(fake.spilled_bytes(), 0, "rest: bytes are spilled");
    assert_eq!(fake.connections_and_accepts(), (0, 0), "rest: connections, accepts");
    for peer in &fake.peers {
        let Some(name) = peer.named else { continue };
        if !audit.is_complete(name) || !peers.is_owed(peer.id) || peer.broken {
            continue;
        }
        let written = peer.written_behind_header();
        let whole = peer.read + peer.outbound() == written && peer.server_finished;
        let whole = whole && peer.records.as_ref().is_none_or(Records::are_all_back);
        assert!(whole && !peer.server_reset, "liveness: not all came back: {peer:?}");
    }
}
