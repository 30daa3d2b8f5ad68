//! One history: a server, a fake kernel and a crowd of peers, all drawn from one seed, run to their
//! end.
//!
//! First chaos, then the world is healed and everything must become quiescent within a bounded number
//! of turns. What must hold is checked after every event; a breach is a panic that the caller
//! catches and dresses with the seed.

use std::hash::RandomState;
use std::sync::Arc;

use echo_core::admission::{Access, Caps, Ranges, Rules, SourceLimiter};
use echo_core::fullness::Fullness;
use echo_core::limits::QUEUE_CHUNKS_MAX;
use echo_core::op::{
    ConnectionId, Event, Kernel, ListenerId, Op, ReceiveMode, Timestamp, TransferState,
};
use echo_core::server::{CloseReason, Keepalive, Parameters, RuntimeLimits, Server, Stats};

use crate::audit::admission::Admission;
use crate::audit::{Audit, Limits};
use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::trace::Note;
use crate::fake::{FakeKernel, Faults, Settings};
use crate::peers::{Crowd, Peers};
use crate::saboteur::Saboteur;

/// Turns that a healed world may take to become quiescent. Far above what any seed has needed, far
/// below for ever.
const HEALED_TURNS_MAX: usize = 20_000;

/// What one history is made of.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) parameters: Parameters,
    pub(crate) settings: Settings,
    pub(crate) crowd: Crowd,
    /// Turns before the world is healed.
    pub(crate) chaos_turns: usize,
    /// The turn at which a drain begins, and its timeout, in milliseconds.
    pub(crate) drain: Option<(usize, u64)>,
    /// Whether the listeners end with a drain or a hand-over: nobody else holds them.
    pub(crate) listeners_end: bool,
    /// New limits and timeouts, each at the turn at which it comes, the last one first.
    pub(crate) reconfigurations: Vec<(usize, RuntimeLimits, u64)>,
    /// When the process is replaced by another.
    pub(crate) handovers: Vec<Handover>,
    pub(crate) submit: Submit,
    /// How often a `TimePassed` comes that nobody asked for, in thousandths.
    pub(crate) idle_ticks: u16,
    /// The budget for spilled bytes, which is the parameters', too.
    pub(crate) budget: Arc<FakeBudget>,
    /// Where the clock begins, in milliseconds.
    pub(crate) clock: u64,
    /// How often other workers take and give back memory, in thousandths.
    pub(crate) others: u16,
    /// How often another worker locks the source limiter for a turn, in thousandths.
    pub(crate) limiter_locked: u16,
    /// The turn at which other rules come into force.
    pub(crate) new_rules: Option<(usize, Arc<Rules>)>,
    /// After healing, peers that stay are ended by the server's timeouts instead of by themselves.
    pub(crate) stayers_are_ended: bool,
    /// If a drain has begun, peers are not healed: the server must come to its end against them.
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
    /// Nobody takes over: the same process takes everything back, after the gap, and drains.
    pub(crate) fails: bool,
    /// What the next process is configured with.
    pub(crate) connections_max: u32,
    pub(crate) budget_limit: u64,
    pub(crate) receive_mode: ReceiveMode,
}

/// When operations reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submit {
    /// After each event.
    AfterEach,
    /// After all events of a turn.
    AfterAll,
}

/// One run.
pub(crate) struct History {
    pub(crate) kernel: FakeKernel,
    scenario: Scenario,
    pub(crate) server: Server,
    audit: Audit,
    peers: Peers,
    saboteur: Saboteur,
    submitted: Vec<Op>,
    draining: bool,
    /// The handover that is under way.
    handover: Option<Handover>,
    /// What the processes before this one counted.
    pub(crate) before: Stats,
    /// Time runs from deadline to deadline of the server, past the plans of the peers.
    hasty: bool,
    /// How many connections there may be: more than places for a while after these became
    /// fewer or another process took over.
    allowed: u64,
    /// How often the limits changed.
    pub(crate) reconfigured: u64,
    /// What the first server began with.
    first_limits: RuntimeLimits,
    /// How often a hand-over failed.
    pub(crate) taken_back: u64,
    /// Turns so far.
    pub(crate) turns: usize,
}

impl Scenario {
    /// Tiny limits and drawn probabilities: every seed leans on other parts of the code.
    pub(crate) fn draw(choice: &mut Choice) -> Self {
        let listeners = 1 + choice.below(2) as u16;
        let timeouts = [None, Some(300), Some(5_000), Some(60_000)];
        let idle_timeout = timeouts[choice.below(4)];
        let out_of_memory = [0, 0, 100, 1000][choice.below(4)];
        let block_size = [1, 4, 16][choice.below(3)];
        let seed = choice.below(1 << 20) as u64;
        let limit = draw_budget_limit(choice);
        let budget = Arc::new(FakeBudget::new(block_size, limit, out_of_memory, seed));
        let parameters = Parameters {
            listeners,
            buffers: [[1, 2, 3, 4, 6, 8, 8, 40][choice.below(8)], [0, 0, 1, 2, 4][choice.below(5)]],
            buffer_sizes: [[4, 16][choice.below(2)], [16, 64][choice.below(2)]],
            receive_mode: [ReceiveMode::Multishot, ReceiveMode::Once][choice.below(2)],
            linger_timeout: [100, 5_000][choice.below(2)],
            limiter: Arc::new(SourceLimiter::new(RandomState::new())),
            budget: budget.clone(),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits {
                connections_max: 1 + choice.below(6) as u32,
                idle_timeout,
                stall_timeout: timeouts[choice.below(4)],
                lifetime: [None, None, None, Some(200), Some(6_000)][choice.below(5)],
                bytes_max: [None, None, None, Some(1), Some(17), Some(100)][choice.below(6)],
                keepalive: draw_keepalive(choice),
                rules: Arc::new(draw_rules(choice)),
            },
        };
        let rate = parameters.runtime_limits.rules.caps.accepts_per_second;
        let settings = Settings {
            listeners,
            buffers: parameters.buffers,
            buffer_sizes: parameters.buffer_sizes,
            files_max: [1, 2, 100, 100][choice.below(4)],
            faults: draw_faults(choice),
        };
        let crowd = Crowd {
            peers: 1 + choice.below(8),
            listeners,
            total_max: [0, 6, 40, 200, 600][choice.below(5)],
            wire_max: [1, 5, 30, 100, 300][choice.below(5)],
            rude: [0, 300, 800][choice.below(3)],
        };
        let timeout = [0, 40, 2_000, 20_000][choice.below(4)];
        let mut scenario = Self {
            parameters,
            settings,
            crowd,
            chaos_turns: choice.below(200),
            drain: (choice.below(3) == 0).then(|| (choice.below(150), timeout)),
            handovers: draw_handovers(choice),
            submit: [Submit::AfterEach, Submit::AfterAll][choice.below(2)],
            idle_ticks: [0, 20, 300, 1000][choice.below(4)],
            budget,
            clock: [1_000, 1_000, (1 << 32) - 3_000, (1 << 36) - 3_000, 1 << 40][choice.below(5)],
            others: [0, 0, 50, 500][choice.below(4)],
            limiter_locked: [0, 0, 100, 700][choice.below(4)],
            new_rules: (choice.below(3) == 0).then(|| draw_new_rules(choice, rate)),
            stayers_are_ended: idle_timeout.is_some() && choice.below(2) == 0,
            stubborn: choice.below(2) == 0,
            listeners_end: choice.below(2) == 0,
            reconfigurations: Vec::new(),
        };
        scenario.reconfigurations = draw_reconfigurations(choice, scenario.stayers_are_ended);
        scenario
    }
}

/// Blocks of memory for all that is spilled.
fn draw_budget_limit(choice: &mut Choice) -> u64 {
    [0, 1, 3, 15, 100, 100_000][choice.below(6)]
}

/// In a third of the histories limits and timeouts change, once or more often. An idle timeout that
/// is to end those who stay is never off.
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
                connections_max: 1 + choice.below(6) as u32,
                idle_timeout: timeouts[choice.below(idle_choices)],
                stall_timeout: timeouts[choice.below(4)],
                lifetime: None,
                bytes_max: None,
                keepalive: draw_keepalive(choice),
                rules: Arc::default(),
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

/// In half of the histories nobody takes over; in the others up to three, one from the other.
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
            receive_mode: [ReceiveMode::Multishot, ReceiveMode::Once][choice.below(2)],
        })
        .collect();
    handovers.sort_by_key(|handover| std::cmp::Reverse(handover.turn));
    handovers
}

/// Who is let in; everybody, in half of the histories.
fn draw_rules(choice: &mut Choice) -> Rules {
    if choice.below(2) == 0 {
        return Rules::default();
    }
    let caps = Caps {
        connections: [None, Some(1), Some(2)][choice.below(3)],
        accepts_per_second: [None, Some(1), Some(2), Some(5)][choice.below(4)],
        ipv4_prefix: [32, 24, 16][choice.below(3)],
        ipv6_prefix: [64, 128][choice.below(2)],
        ..Caps::default()
    };
    let [mut allow, mut deny] = [Ranges::default(), Ranges::default()];
    if choice.below(4) == 0 {
        allow.add_ipv4([10, 0, 0, 0], [10, 0, 0, 255]);
    }
    if choice.below(4) == 0 {
        deny.add_ipv4([10, 0, 0, 1], [10, 0, 0, 1]);
        deny.add_ipv6([0; 16], [255; 16]);
    }
    Rules { access: Access { allow: allow.settle(), deny: deny.settle() }, caps }
}

/// Rules that come into force in the middle. The rate stays: how a bucket is converted to another
/// is nothing that anybody may rely on.
fn draw_new_rules(choice: &mut Choice, rate: Option<u32>) -> (usize, Arc<Rules>) {
    let mut rules = draw_rules(choice);
    rules.caps.accepts_per_second = rate;
    (choice.below(150), Arc::new(rules))
}

fn draw_faults(choice: &mut Choice) -> Faults {
    // A history in which everything goes wrong all the time tests little: half of the faults are
    // off in each.
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
        let scenario = Scenario::draw(&mut choice);
        let peers = Peers::draw(&mut choice, scenario.crowd, scenario.clock);
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
            small_buffers: usize::from(parameters.buffers[0]),
            chunks_max: usize::from(QUEUE_CHUNKS_MAX),
            idle_timeout: parameters.runtime_limits.idle_timeout,
            stall_timeout: parameters.runtime_limits.stall_timeout,
            linger_timeout: parameters.linger_timeout,
            lifetime: parameters.runtime_limits.lifetime,
            bytes_max: parameters.runtime_limits.bytes_max,
        };
        let budget = Arc::clone(&scenario.budget);
        let mut kernel = FakeKernel::new(scenario.settings, budget, choice);
        kernel.pass_time(scenario.clock - kernel.clock());
        Self {
            server: Server::new(parameters.clone()),
            kernel,
            audit: Audit::new(
                limits,
                Admission::new(Rules::clone(&parameters.runtime_limits.rules)),
            ),
            peers,
            saboteur,
            submitted: Vec::new(),
            draining: false,
            handover: None,
            before: Stats::default(),
            hasty: false,
            allowed: u64::from(scenario.parameters.runtime_limits.connections_max),
            reconfigured: 0,
            first_limits: parameters.runtime_limits.clone(),
            taken_back: 0,
            turns: 0,
            scenario,
        }
    }

    /// What was drawn, for a failure report.
    pub(crate) fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// From the start to the end of everything.
    pub(crate) fn run(&mut self) {
        self.handle(Event::Started);
        self.submit();
        while self.turns < self.scenario.chaos_turns && !self.is_over() {
            self.begin_drain_if_due();
            self.reconfigure_if_due();
            self.begin_handover_if_due();
            self.change_rules_if_due();
            self.turn();
        }
        self.heal();
        self.finish();
        self.check_rest();
    }

    fn heal(&mut self) {
        self.kernel.trace.note(self.kernel.clock(), Note::World("healed"));
        self.kernel.settings.faults = Faults::default();
        self.scenario.limiter_locked = 0;
        // Other workers keep what they have: nobody needs memory to come to an end.
        self.scenario.others = 0;
        self.scenario.budget.heal();
        self.kernel.settings.files_max = usize::MAX;
        if self.scenario.stubborn && self.draining {
            self.hasty = true;
            return;
        }
        let now = self.kernel.clock();
        self.peers.heal(now);
        if !self.scenario.stayers_are_ended && !self.draining {
            self.peers.no_longer_stay(now);
        }
    }

    /// Runs until every peer is done, drains if nobody has yet, and runs until that is done too.
    fn finish(&mut self) {
        let last = self.turns + HEALED_TURNS_MAX;
        while !self.is_over() {
            assert!(self.turns < last, "liveness: no end after {HEALED_TURNS_MAX} healed turns");
            if self.peers.are_done(&self.kernel) && self.audit.open_count() == 0 {
                self.begin_drain(20_000);
            }
            let acted = self.turn();
            let stuck = self.kernel.asleep && !acted && !self.is_over();
            let stuck = stuck && self.peers.next_at(&self.kernel).is_none();
            assert!(
                !stuck || !self.draining_can_help(),
                "liveness: asleep for ever: {}",
                self.left()
            );
        }
    }

    /// A sleeping world that is not draining yet, all peers done, is about to be drained: that is
    /// no deadlock.
    fn draining_can_help(&self) -> bool {
        self.draining || !self.peers.are_done(&self.kernel) || self.audit.open_count() > 0
    }

    fn is_over(&self) -> bool {
        self.draining && self.server.is_drained()
    }

    /// One turn of the worker's loop, with the world acting before it. Returns whether a peer
    /// acted.
    fn turn(&mut self) -> bool {
        self.audit.admission.held = self.kernel.choice.strikes(self.scenario.limiter_locked);
        if self.audit.admission.held {
            let limiter = Arc::clone(&self.scenario.parameters.limiter);
            let acted = limiter.while_held(|| self.free_turn());
            return acted;
        }
        self.free_turn()
    }

    fn free_turn(&mut self) -> bool {
        self.turns += 1;
        if self.kernel.choice.strikes(self.scenario.others) {
            let per_mille = self.kernel.choice.below(1001) as u64;
            self.scenario.budget.set_others(per_mille);
        }
        let acted = self.peers.act(&mut self.kernel);
        let next = self.peers.next_at(&self.kernel).filter(|_| !self.hasty).map(Timestamp);
        let next = next.or_else(|| acted.then(|| self.kernel.now()));
        let deadline = self.server.deadline().into_iter().chain(next).min();
        let mut events = Vec::new();
        let Ok(()) = self.kernel.turn(deadline, &mut events);
        for event in events {
            self.handle(event);
            if self.scenario.submit == Submit::AfterEach {
                self.submit();
            }
        }
        let due = self.server.deadline().is_some_and(|deadline| deadline <= self.kernel.now());
        if due || self.kernel.choice.strikes(self.scenario.idle_ticks) {
            self.handle(Event::TimePassed);
        }
        self.submit();
        self.check_step();
        // Whoever counts a source that comes back finds its shard unlocked, within so many tries.
        let held = self.audit.admission.held;
        let rests = self.server.is_quiescent();
        let succeeds = rests && self.handover.is_some_and(|it| !(it.fails && held));
        if succeeds {
            self.hand_over();
        }
        acted || succeeds || self.handover.is_some()
    }

    fn handle(&mut self, event: Event) {
        let now = self.kernel.clock();
        self.audit.event(now, &event);
        let mut ops = Vec::new();
        if let Some(event) = self.saboteur.event(event) {
            self.server.handle(Timestamp(now), event, &mut ops);
            self.server.check_invariants();
        }
        self.saboteur.ops(&mut ops);
        for op in &ops {
            self.audit.op(now, op);
        }
        self.audit.settle();
        self.submitted.append(&mut ops);
    }

    fn submit(&mut self) {
        self.kernel.submit(&mut self.submitted);
        assert!(self.submitted.is_empty(), "the kernel takes all");
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
        // Who is let in, for how long and with how much stays as it was.
        let RuntimeLimits { connections_max, keepalive, idle_timeout, stall_timeout, .. } =
            runtime_limits;
        let runtime_limits = RuntimeLimits {
            connections_max,
            keepalive,
            idle_timeout,
            stall_timeout,
            ..self.scenario.parameters.runtime_limits.clone()
        };
        let now = self.kernel.clock();
        self.kernel.trace.note(now, Note::World("new limits and timeouts"));
        self.reconfigured += 1;
        self.allowed =
            self.server.stats().connections.max(u64::from(runtime_limits.connections_max));
        self.audit.reconfigure(&runtime_limits);
        self.scenario.parameters.runtime_limits = runtime_limits.clone();
        self.server.reconfigure(Timestamp(now), runtime_limits);
    }

    fn change_rules_if_due(&mut self) {
        let Some((_, rules)) = self.scenario.new_rules.take_if(|(turn, _)| *turn <= self.turns)
        else {
            return;
        };
        self.kernel.trace.note(self.kernel.clock(), Note::World("other rules are in force"));
        let inside: Vec<_> = self.audit.open_connections();
        let inside: Vec<_> = inside.into_iter().map(|id| (id, self.kernel.source_of(id))).collect();
        self.audit.admission.change(Rules::clone(&rules), &inside);
        let runtime_limits =
            RuntimeLimits { rules, ..self.scenario.parameters.runtime_limits.clone() };
        self.scenario.parameters.runtime_limits = runtime_limits.clone();
        let now = self.kernel.now();
        self.server.reconfigure(now, runtime_limits);
        for connection in self.server.take_uncounted() {
            self.server.count_source(now, connection, self.kernel.source_of(connection));
        }
    }

    fn begin_drain(&mut self, timeout: u64) {
        // During a hand-over a drain would come too late.
        if !self.draining && self.handover.is_none() {
            self.draining = true;
            self.kernel.trace.note(self.kernel.clock(), Note::World("a drain begins"));
            let deadline = Timestamp(self.kernel.clock() + timeout);
            self.end_listeners();
            self.handle(Event::DrainStarted { deadline });
            self.submit();
        }
    }

    fn end_listeners(&mut self) {
        if !self.scenario.listeners_end {
            return;
        }
        for listener in (0..self.scenario.settings.listeners).map(ListenerId) {
            self.kernel.end_listener(listener);
            self.handle(Event::ListenerEnding { listener });
        }
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
        self.kernel.trace.note(self.kernel.clock(), Note::World("a hand-over begins"));
        let deadline = Timestamp(self.kernel.clock() + handover.timeout);
        self.end_listeners();
        self.handle(Event::HandOverStarted { deadline });
        self.submit();
    }

    /// The old process ends and the next one begins; the world does not stop in between.
    fn hand_over(&mut self) {
        let handover = self.handover.take().expect("somebody takes over");
        self.check_ended_listeners();
        let mut released = self.server.release(self.kernel.now());
        self.server.check_invariants();
        for (_, transfer) in &mut released {
            self.saboteur.transfer(transfer);
            *transfer = transfer.after(handover.gap);
        }
        if handover.fails {
            return self.take_back(handover, released);
        }
        self.kernel.reopen_listeners();
        self.audit.reopen_listeners();
        self.before.add(&self.server.stats());
        self.scenario.parameters.runtime_limits.connections_max = handover.connections_max;
        self.scenario.budget.set_limit(handover.budget_limit);
        self.scenario.parameters.receive_mode = handover.receive_mode;
        self.scenario.parameters.limiter = Arc::new(SourceLimiter::new(RandomState::new()));
        self.audit.admission.held = false;
        self.server = Server::new(self.scenario.parameters.clone());
        self.audit.admission.forget_buckets();
        self.import(handover.gap, released);
        self.handle(Event::Started);
        self.submit();
    }

    /// The hand-over has failed. The same server goes on with what it gave away, by the limits,
    /// timeouts and rules of now, and drains.
    fn take_back(&mut self, handover: Handover, released: Vec<(ConnectionId, TransferState)>) {
        self.audit.begin_to_take_back();
        self.draining = true;
        self.taken_back += 1;
        if let Some(runtime_limits) = self.saboteur.limits_to_go_back_to(&self.first_limits) {
            self.server.reconfigure(self.kernel.now(), runtime_limits);
        }
        let slots = self.audit.slots();
        self.import(handover.gap, released);
        self.audit.keep_slots(slots);
        let deadline = Timestamp(self.kernel.clock() + handover.timeout);
        if self.scenario.listeners_end {
            // Told once more: they are closed already.
            for listener in (0..self.scenario.settings.listeners).map(ListenerId) {
                self.handle(Event::ListenerEnding { listener });
            }
        }
        self.handle(Event::DrainStarted { deadline });
        self.submit();
    }

    /// The present server is told of the connections that were given away.
    fn import(&mut self, gap: u64, released: Vec<(ConnectionId, TransferState)>) {
        let renamed: Vec<_> =
            released.iter().map(|(old, _)| (*old, self.server.reserve_slot())).collect();
        self.audit.hand_over(&renamed, &self.scenario.parameters);
        self.kernel.hand_over(&renamed);
        let sourced: Vec<_> =
            renamed.iter().map(|(_, next)| (*next, self.kernel.source_of(*next))).collect();
        self.audit.admission.hand_over(&sourced);
        self.kernel.pass_time(gap);
        self.peers.act(&mut self.kernel);
        let places = u64::from(self.scenario.parameters.runtime_limits.connections_max);
        self.allowed = places.max(renamed.len() as u64);
        for ((_, connection), (_, transfer)) in renamed.into_iter().zip(released) {
            let source = self.kernel.source_of(connection);
            let event = Event::Imported { connection, source, transfer };
            self.kernel.trace.note(self.kernel.clock(), Note::Event(event));
            self.handle(event);
            self.submit();
        }
    }

    fn check_step(&mut self) {
        let mut stats = self.server.stats();
        stats.add(&self.before);
        let audit = &self.audit;
        assert_eq!(stats.traffic.accepted, audit.accepted, "counters: accepted");
        let handed_over = stats.traffic.closed[CloseReason::HandedOver as usize];
        assert_eq!(stats.traffic.closed_total() - handed_over, audit.closed, "counters: closed");
        assert_eq!(stats.traffic.refused_total(), audit.admission.refused, "counters: refused");
        if !audit.admission.held {
            let limiter = &self.scenario.parameters.limiter;
            limiter.check_invariants();
            let sources = audit.admission.sources();
            assert!(
                sources.contains(&limiter.sources()),
                "counters: {} sources",
                limiter.sources()
            );
        }
        assert_eq!(stats.traffic.bytes_in, audit.bytes_in, "counters: bytes in");
        assert_eq!(stats.traffic.bytes_out, audit.bytes_out, "counters: bytes out");
        let blocks = self.kernel.spill_blocks();
        assert_eq!(self.scenario.budget.taken(), blocks, "counters: blocks of memory");
        let places = u64::from(self.scenario.parameters.runtime_limits.connections_max);
        // At the end of a drain the parked ones are let in to be ended.
        assert!(
            self.draining || stats.connections <= self.allowed,
            "limit: more connections than places"
        );
        self.allowed = stats.connections.max(places);
    }

    fn check_ended_listeners(&self) {
        assert!(self.audit.are_ends_complete(), "rest: a listener has not ended");
        assert!(self.kernel.is_nobody_forgotten(), "rest: somebody waits for nobody");
    }

    fn check_rest(&self) {
        self.audit.quiescent();
        self.check_ended_listeners();
        let mut stats = self.server.stats();
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
        let (home, total) = self.kernel.buffers_home_and_total();
        assert_eq!(home, total, "rest: a buffer is missing");
        assert_eq!(self.kernel.spilled_bytes(), 0, "rest: bytes are spilled");
        assert_eq!(self.scenario.budget.taken(), 0, "rest: memory is taken");
        assert_eq!(self.kernel.connections_and_accepts(), (0, 0), "rest: connections, accepts");
        for peer in &self.kernel.peers {
            let Some(name) = peer.named else { continue };
            if !self.audit.is_complete(name) || !self.peers.is_owed(peer.id) || peer.broken {
                continue;
            }
            let whole = peer.read + peer.outbound() == peer.written && peer.server_finished;
            assert!(whole && !peer.server_reset, "liveness: not all came back: {peer:?}");
        }
    }

    fn left(&self) -> String {
        let open: Vec<_> = self.kernel.peers.iter().filter(|peer| !peer.is_over()).collect();
        format!("{} connections are open, {open:?}", self.audit.open_count())
    }
}
