//! One history: a worker with datagram sockets, alone or beside streams, drawn from one seed and
//! run to its end.
//!
//! At first there are faults. Then the kernel makes no more faults and the clients stop sending.
//! Everything must become idle within a bounded number of turns, and a drain must close the
//! sockets.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use echo_core::admission::SourceKey;
use echo_core::command::Command;
use echo_core::datagram::op::SocketId;
use echo_core::datagram::{
    Amount, BucketTable, DatagramParameters, DatagramTraffic, DropReason, Endpoint,
    REFLECT_SOURCE_PORTS, RateLimiter, Rates, SocketParameters,
};
use echo_core::fullness::Fullness;
use echo_core::kernel::Kernel;
use echo_core::limits::{QUEUE_CHUNKS_MAX, SWEEP_SLOTS_MAX};
use echo_core::op::{BufferPlan, PeerAddr, Timestamp};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};
use echo_core::worker::{Status, Worker};

use super::audit::Audit;
use super::clients::Clients;
use super::mixed::Mixed;
use super::rules::{Allowances, Rules};
use super::saboteur::{Bug, Saboteur};
use crate::audit::admission::Admission;
use crate::audit::{self, Limits};
use crate::audited::{Audited, Delivery};
use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::datagrams::{DatagramFaults, DatagramKernel};
use crate::fake::limiter::FakeLimiter;
use crate::fake::{FakeKernel, Faults, Settings};
use crate::history::draw_faults;
use crate::peers::{Peers, Population};
use crate::saboteur;

/// Turns that a healed world may take to become idle.
const HEALED_TURNS_MAX: usize = 5_000;

/// The buckets of all sources, behind a lock, as in the daemon.
#[derive(Debug)]
pub(crate) struct FakeRateLimiter(Mutex<BucketTable>);

impl FakeRateLimiter {
    pub(crate) fn new(count_max: usize) -> Self {
        Self(Mutex::new(BucketTable::new(count_max)))
    }

    pub(crate) fn check(&self) {
        self.0.lock().expect("no panic holds it").check_invariants();
    }
}

impl RateLimiter for FakeRateLimiter {
    fn take(
        &self,
        now_us: u64,
        key: SourceKey,
        rates: &Rates,
        wanted: Amount,
        least: Amount,
    ) -> Result<Amount, DropReason> {
        self.0.lock().expect("no panic holds it").take(now_us, key, rates, wanted, least)
    }

    fn give_back(&self, key: SourceKey, rates: &Rates, unused: Amount) {
        self.0.lock().expect("no panic holds it").give_back(key, rates, unused);
    }
}

/// The parameters of one history.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) sockets: Vec<SocketParameters>,
    pub(crate) listeners: u16,
    pub(crate) buffers: u16,
    /// The maximum number of packets that wait in a socket.
    pub(crate) queue_max: usize,
    pub(crate) faults: DatagramFaults,
    pub(crate) rules: Rules,
    /// Sources that the limiter remembers.
    pub(crate) sources_max: usize,
    pub(crate) clients: Clients,
    /// Turns before the world is healed.
    pub(crate) chaos_turns: usize,
    /// The turn at which a drain begins.
    pub(crate) drain: Option<usize>,
    /// The turns at which another process takes over, the last one first, each with whether the
    /// handover fails.
    pub(crate) handovers: Vec<(usize, bool)>,
    /// New rules, each with the turn of its command, the last one first.
    pub(crate) changes: Vec<(usize, Rules)>,
    /// The start of the clock, in milliseconds.
    pub(crate) clock: u64,
    /// How many TCP peers there are at the same time.
    pub(crate) peers: usize,
    /// The probability of a jump of the clock, in thousandths.
    pub(crate) time_jump: u16,
    /// In a healed world the drain begins while datagrams wait.
    pub(crate) drains_busy: bool,
}

/// One run.
pub(crate) struct History {
    pub(crate) kernel: Mixed,
    pub(crate) worker: Worker,
    pub(crate) peers: Peers,
    pub(crate) scenario: Scenario,
    streams: Parameters,
    limiter: Arc<FakeRateLimiter>,
    commands: Vec<Command>,
    /// The counters of previous processes, by listener.
    before: Vec<DatagramTraffic>,
    /// Whether the next handover is to fail; none if the next end is a drain.
    handover: Option<bool>,
    pub(crate) drained: bool,
    pub(crate) turns: usize,
    pub(crate) handed_over: u64,
    pub(crate) taken_back: u64,
    pub(crate) changed: u64,
}

impl Scenario {
    pub(crate) fn draw(choice: &mut Choice) -> Self {
        let listeners = 1 + choice.below(2) as u16;
        let count = 1 + choice.below(3);
        let sockets: Vec<_> = (0..count).map(|_| draw_socket(choice, listeners)).collect();
        let chaos_turns = 20 + choice.below(150);
        let peers = [0, 0, 3][choice.below(3)];
        let mut clients = Clients {
            sockets: sockets.iter().map(|socket| socket.own).collect(),
            often: [100, 400, 1000][choice.below(3)],
            most: [1, 4, 40][choice.below(3)],
            odd: [0, 100, 500][choice.below(3)],
            bursts: [0, 100, 600][choice.below(3)],
            length_max: [1, 100, 3_000][choice.below(3)],
            headers: false,
            planned: Vec::new(),
            left: u64::MAX,
            sent: 0,
        };
        let mut rules = draw_rules(choice);
        let count = [0, 0, 1, 3][choice.below(4)];
        let mut changes: Vec<_> =
            (0..count).map(|_| (choice.below(150), draw_rules(choice))).collect();
        changes.sort_by_key(|(turn, _)| std::cmp::Reverse(*turn));
        if choice.below(3) == 0 {
            clients.headers = true;
            // They do not change with new rules.
            for rules in changes.iter_mut().map(|(_, rules)| rules).chain([&mut rules]) {
                rules.trusted = Some(vec![[10, 0, 0, 1], [10, 0, 0, 3]]);
            }
        }
        if peers > 0 {
            // The model of the streams has no access lists.
            for rules in changes.iter_mut().map(|(_, rules)| rules).chain([&mut rules]) {
                (rules.denied, rules.allowed) = (Vec::new(), Vec::new());
            }
        }
        let count = if peers > 0 { 0 } else { [0, 0, 1, 3][choice.below(4)] };
        let mut handovers: Vec<_> =
            (0..count).map(|_| (choice.below(150), choice.below(4) == 0)).collect();
        handovers.sort_by_key(|(turn, _)| std::cmp::Reverse(*turn));
        Self {
            sockets,
            listeners,
            buffers: [1, 2, 4, 32][choice.below(4)],
            queue_max: [1, 4, 20][choice.below(3)],
            faults: draw_datagram_faults(choice),
            rules,
            sources_max: [2, 100_000, 100_000][choice.below(3)],
            clients,
            chaos_turns,
            drain: (choice.below(3) == 0).then(|| choice.below(150)),
            handovers,
            changes,
            clock: [1_000, (1 << 32) - 3_000, 1 << 40][choice.below(3)],
            peers,
            time_jump: [0, 0, 20, 200][choice.below(4)],
            drains_busy: choice.below(2) == 0,
        }
    }
}

impl Scenario {
    /// In a third of the histories each socket answers by an identity or not. Drawn apart, so that
    /// the other histories are what their seeds made them before.
    fn draw_identities(&mut self, seed: u64) {
        let mut choice = Choice::from_seed(seed.rotate_left(17) ^ 2);
        if choice.below(3) == 0 {
            for socket in &mut self.sockets {
                socket.identifies = choice.below(2) == 0;
            }
        }
    }
}

fn draw_socket(choice: &mut Choice, listeners: u16) -> SocketParameters {
    let mut ipv6 = [0; 16];
    (ipv6[0], ipv6[15]) = (0x20, 7);
    let mut group = [0; 16];
    group[0] = 0xff;
    let address = match choice.below(12) {
        0..7 => PeerAddr::Unknown,
        7..9 => PeerAddr::Ipv4([10, 0, 0, 250]),
        9..11 => PeerAddr::Ipv6(ipv6),
        _ => [PeerAddr::Ipv4([239, 1, 1, 1]), PeerAddr::Ipv6(group)][choice.below(2)],
    };
    let own = Endpoint { address, port: [7, 7_777][choice.below(2)] };
    let listener = choice.below(listeners.into()) as u16;
    let outlives_us = choice.below(2) == 0;
    SocketParameters { own, listener, outlives_us, identifies: false }
}

/// The rules of the operator. In some of the histories there are none.
pub(crate) fn draw_rules(choice: &mut Choice) -> Rules {
    let mut rules = Rules { prefix: [32, 24][choice.below(2)], ..Rules::default() };
    if choice.below(3) > 0 {
        rules.ports = REFLECT_SOURCE_PORTS.to_vec();
    }
    if choice.below(4) == 0 {
        rules.denied = vec![[10, 0, 0, 2], [10, 0, 0, 4]];
    }
    if choice.below(4) == 0 {
        rules.allowed = vec![[10, 0, 0, 1], [10, 0, 0, 2]];
    }
    rules.rates = Rates {
        datagrams: [None, None, Some(1), Some(20), Some(1_000)][choice.below(5)],
        bytes: [None, None, Some(10), Some(3_000), Some(100_000)][choice.below(5)],
    };
    rules
}

fn draw_datagram_faults(choice: &mut Choice) -> DatagramFaults {
    let mut draw = |most: usize| match choice.below(2) {
        0 => 0,
        _ => 1 + choice.below(most) as u16,
    };
    DatagramFaults {
        late: draw(700),
        late_event: draw(700),
        disarmed: draw(400),
        dry: draw(300),
        stopped: draw(200),
        memory: draw(100),
        unexpected: draw(100),
        cancel_loses: draw(800),
        late_reply: draw(700),
        reply_error: draw(300),
        burst_refused: draw(800),
        segment_error: draw(500),
        unanswered: 0,
    }
}

/// A worker's stream side: `peers` of them, or no listener at all.
pub(crate) fn streams(
    choice: &mut Choice,
    peers: usize,
    budget: Arc<FakeBudget>,
) -> (Parameters, Audited, Peers) {
    let listeners = u16::from(peers > 0);
    let parameters = Parameters {
        listeners,
        records: Vec::new(),
        buffers: BufferPlan::new([6, 2], [4, 16]),
        multishot: true,
        deferral: Deferral { turns_per_period: 3, chunks_per_turn: 0 },
        sweep_slots_max: SWEEP_SLOTS_MAX,
        linger_timeout: 100,
        preface_timeout: 1_000,
        proxies: Arc::new([]),
        identities: Arc::new([]),
        limiter: Arc::new(FakeLimiter::new()),
        budget: budget.clone(),
        fullness: Arc::new(Fullness::new(1)),
        runtime_limits: RuntimeLimits::unlimited(3),
    };
    let limits = Limits {
        connections_max: 3,
        listeners: listeners.into(),
        buffers: parameters.buffers,
        chunks_max: usize::from(QUEUE_CHUNKS_MAX),
        idle_timeout: None,
        stall_timeout: None,
        linger_timeout: parameters.linger_timeout,
        preface_timeout: 1_000,
        lifetime: None,
        bytes_max: None,
    };
    let faults = if peers > 0 { draw_faults(choice) } else { Faults::default() };
    let settings =
        Settings { listeners, records: None, buffers: parameters.buffers, files_max: 100, faults };
    let seed = if peers > 0 { choice.below(1 << 30) as u64 } else { 0 };
    let mut fake = FakeKernel::new(settings, budget, Choice::from_seed(seed));
    let proxied = [false; 2];
    let population =
        Population { peers, listeners: 1, total_max: 60, wire_max: 30, rude: 300, proxied };
    let now = fake.clock();
    let peers = Peers::draw(&mut fake.choice, population, now);
    let policy = (*parameters.runtime_limits.admission).clone();
    let audit = audit::Audit::new(limits, Admission::new(policy));
    let saboteur = saboteur::Saboteur::none();
    (parameters, Audited::new(fake, audit, saboteur, Delivery::Together), peers)
}

impl History {
    pub(crate) fn from_seed(seed: u64, saboteur: Saboteur) -> Self {
        let mut choice = Choice::from_seed(seed);
        let mut scenario = Scenario::draw(&mut choice);
        scenario.draw_identities(seed);
        Self::new(scenario, choice, saboteur)
    }

    pub(crate) fn new(scenario: Scenario, choice: Choice, saboteur: Saboteur) -> Self {
        let is_strict = scenario.sources_max > 2;
        let allowances = Rc::new(RefCell::new(Allowances::new(1, is_strict)));
        let limiter = Arc::new(FakeRateLimiter::new(scenario.sources_max));
        Self::of_worker(scenario, choice, saboteur, limiter, allowances)
    }

    /// The history of one of several workers, which share the limits of each source.
    pub(crate) fn of_worker(
        scenario: Scenario,
        mut choice: Choice,
        saboteur: Saboteur,
        limiter: Arc<FakeRateLimiter>,
        allowances: Rc<RefCell<Allowances>>,
    ) -> Self {
        let budget = Arc::new(FakeBudget::new(16, 1_000, 0, 1));
        let (streams, mut audited, peers) = streams(&mut choice, scenario.peers, budget);
        audited.kernel.pass_time(scenario.clock - audited.kernel.clock());
        audited.kernel.settings.faults.time_jump = scenario.time_jump;
        let held_elsewhere: Vec<_> =
            scenario.sockets.iter().map(|socket| socket.outlives_us).collect();
        let mut faults = scenario.faults;
        faults.unanswered = if saboteur.is(Bug::WaitForNothing) { 300 } else { 0 };
        let Scenario { buffers, queue_max, listeners, .. } = scenario;
        let mut datagrams =
            DatagramKernel::new(&held_elsewhere, buffers, queue_max, faults, choice);
        datagrams.identifies = scenario.sockets.iter().map(|it| it.identifies).collect();
        let rules = scenario.rules.clone();
        let audit = Audit::new(&scenario.sockets, listeners, buffers, rules, allowances);
        let worker = worker(&scenario, &streams, &limiter, &saboteur);
        let kernel = Mixed::new(audited, datagrams, audit, saboteur);
        Self {
            kernel,
            worker,
            peers,
            streams,
            limiter,
            commands: Vec::new(),
            before: vec![DatagramTraffic::default(); usize::from(listeners)],
            handover: None,
            drained: false,
            turns: 0,
            handed_over: 0,
            taken_back: 0,
            changed: 0,
            scenario,
        }
    }

    /// Runs the history from start to end.
    pub(crate) fn run(&mut self) {
        self.start();
        while self.turns < self.scenario.chaos_turns && !self.drained {
            self.command();
            self.turn();
        }
        self.heal();
        self.come_to_rest();
        self.finish();
    }

    pub(crate) fn start(&mut self) {
        let Ok(()) = self.worker.start(&mut self.kernel);
        self.worker.check_invariants();
    }

    /// The commands of the daemon before this turn.
    fn command(&mut self) {
        let turns = self.turns;
        if self.scenario.drain.is_some_and(|turn| turn <= turns) {
            self.begin_drain();
        }
        if let Some((_, rules)) = self.scenario.changes.pop_if(|(turn, _)| *turn <= turns) {
            self.change(rules);
        }
        if self.handover.is_some() || self.kernel.audit.is_draining() {
            return;
        }
        if let Some((_, fails)) = self.scenario.handovers.pop_if(|(turn, _)| *turn <= turns) {
            self.handover = Some(fails);
            self.kernel.note("a handover begins");
            let deadline = Timestamp(self.kernel.now().0 + 1_000);
            self.commands.push(Command::HandOver { deadline });
        }
    }

    fn change(&mut self, rules: Rules) {
        self.kernel.note("other rules");
        self.changed += 1;
        let told = self.kernel.saboteur.rules(&rules).limits(&self.streams.runtime_limits);
        self.commands.push(Command::Reconfigure(Box::new(told)));
        self.kernel.audit.change(rules.clone());
        self.scenario.rules = rules;
    }

    fn begin_drain(&mut self) {
        if !self.kernel.audit.is_draining() && self.handover.is_none() {
            self.kernel.note("a drain begins");
            let deadline = Timestamp(self.kernel.now().0 + 500);
            self.commands.push(Command::Drain { deadline });
        }
    }

    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        let acted = self.scenario.clients.act(self.turns, &mut self.kernel.datagrams);
        let fake = &mut self.kernel.streams.kernel;
        let acted = self.peers.act(fake) || acted;
        let soon = match self.scenario.clients.left {
            0 => None,
            _ => Some(fake.clock() + self.kernel.datagrams.choice.below(40) as u64),
        };
        let next = self.peers.next_at(fake).or_else(|| acted.then_some(fake.clock()));
        fake.peers_act_at = [soon, next].into_iter().flatten().min();
        let commands = std::mem::take(&mut self.commands);
        let Ok(status) = self.worker.step(&mut self.kernel, commands);
        self.check_step();
        match status {
            Status::Running { .. } => {}
            Status::Drained => self.drained = true,
            Status::Quiescent => self.hand_over(),
        }
    }

    fn told(&self) -> Vec<DatagramTraffic> {
        let told = self.worker.datagram_traffic().iter().zip(&self.before);
        told.map(|(now, before)| {
            let mut sum = before.clone();
            sum.add(now);
            sum
        })
        .collect()
    }

    fn check_step(&self) {
        self.worker.check_invariants();
        self.limiter.check();
        self.kernel.audit.check_counters(&self.told());
        let mut total = DatagramTraffic::default();
        self.worker.datagram_traffic().iter().for_each(|traffic| total.add(traffic));
        assert_eq!(self.worker.stats().datagrams, total, "counters: the sum of all listeners");
    }

    /// The old process ends and the next one begins. Or no process takes over, and the same process
    /// drains.
    fn hand_over(&mut self) {
        let fails = self.handover.take().expect("a handover was requested");
        assert!(self.worker.release(self.kernel.now()).is_empty(), "there are no connections");
        if fails {
            self.kernel.note("no process takes over");
            self.taken_back += 1;
            let deadline = self.kernel.now();
            self.commands.push(Command::Drain { deadline });
            return;
        }
        self.kernel.note("a new process takes over");
        self.handed_over += 1;
        self.before = self.told();
        self.kernel.audit.check_rest(&self.before);
        self.limiter = Arc::new(FakeRateLimiter::new(self.scenario.sources_max));
        self.worker = worker(&self.scenario, &self.streams, &self.limiter, &self.kernel.saboteur);
        self.kernel.datagrams.open();
        self.kernel.audit.begin_again();
        self.start();
    }

    pub(crate) fn heal(&mut self) {
        self.kernel.note("healed");
        let unanswered = self.kernel.datagrams.faults.unanswered;
        self.kernel.datagrams.faults = DatagramFaults { unanswered, ..Default::default() };
        self.scenario.clients.left = 0;
        self.kernel.streams.kernel.settings.faults = Faults::default();
        let now = self.kernel.now().0;
        self.peers.heal(now);
        self.peers.no_longer_stay(now);
    }

    /// Runs until nothing waits in a socket and no reply is in flight.
    pub(crate) fn come_to_rest(&mut self) {
        if self.scenario.drains_busy {
            return;
        }
        let last = self.turns + HEALED_TURNS_MAX;
        while !self.drained && (self.kernel.datagrams.waiting() > 0 || !self.is_at_rest()) {
            assert!(self.turns < last, "liveness: no rest after {HEALED_TURNS_MAX} turns");
            self.turn();
            self.check_awake();
        }
    }

    fn is_at_rest(&self) -> bool {
        let (free, total) = self.kernel.datagrams.free_and_total();
        free == total && self.kernel.streams.audit.open_count() == 0
    }

    fn check_awake(&self) {
        let fake = &self.kernel.streams.kernel;
        let is_asleep = fake.asleep && !self.kernel.is_busy() && self.commands.is_empty();
        let waits = self.kernel.datagrams.waiting() > 0 && self.kernel.datagrams.open_sockets() > 0;
        // Bytes in the socket of a stream peer that has yet to act do not concern datagrams.
        let ended = self.drained || !(waits || self.kernel.audit.is_draining());
        let alone = self.peers.next_at(fake).is_none() && !self.kernel.streams.has_pending();
        assert!(!is_asleep || !alone || ended, "liveness: asleep without a deadline");
    }

    /// Drains, and checks what is left.
    pub(crate) fn finish(&mut self) {
        let forgotten = self.kernel.datagrams.forgotten;
        let is_exact = !self.kernel.audit.is_draining() && self.handover.is_none();
        let last = self.turns + HEALED_TURNS_MAX;
        while !self.drained {
            assert!(self.turns < last, "liveness: no end after {HEALED_TURNS_MAX} turns");
            self.begin_drain();
            self.turn();
            self.check_awake();
        }
        let told = self.told();
        self.kernel.audit.check_rest(&told);
        assert!(self.kernel.audit.is_over(), "rest: a socket is open");
        assert_eq!(self.kernel.datagrams.open_sockets(), 0, "rest: a socket is open");
        let (free, total) = self.kernel.datagrams.free_and_total();
        assert_eq!(free, total, "rest: a buffer is missing");
        let forgotten = self.kernel.datagrams.forgotten - forgotten;
        // With one or two buffers, emptying the sockets may take more turns than a drain lasts.
        let is_exact = is_exact && !self.kernel.audit.closed_in_pause && self.scenario.buffers >= 4;
        assert!(!is_exact || forgotten == 0, "promise: {forgotten} datagrams are left behind");
        self.check_packets();
    }

    /// Every packet was received, or waits for the next process, or was in a socket that was
    /// closed.
    fn check_packets(&mut self) {
        let fake = &mut self.kernel.datagrams;
        let sockets = 0..self.scenario.sockets.len() as u16;
        let waiting: usize = sockets.map(|socket| fake.take_waiting(SocketId(socket)).len()).sum();
        let known = self.kernel.audit.packets + fake.forgotten + waiting as u64;
        assert_eq!(fake.arrived, known, "rest: a packet is lost");
    }
}

/// The worker of one process.
fn worker(
    scenario: &Scenario,
    streams: &Parameters,
    limiter: &Arc<FakeRateLimiter>,
    saboteur: &Saboteur,
) -> Worker {
    let rules = saboteur.rules(&scenario.rules);
    let runtime_limits = rules.limits(&streams.runtime_limits);
    let parameters = Parameters { runtime_limits, ..streams.clone() };
    Worker::new(parameters).with_datagrams(DatagramParameters {
        sockets: scenario.sockets.clone(),
        listeners: scenario.listeners,
        buffers: scenario.buffers,
        proxies: vec![scenario.rules.proxies(); scenario.listeners.into()].into(),
        limiter: Arc::clone(limiter) as Arc<dyn RateLimiter>,
    })
}
