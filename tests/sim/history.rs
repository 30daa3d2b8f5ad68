//! One history: a server, a fake kernel and a crowd of peers, all drawn from one seed, run to their
//! end.
//!
//! First chaos, then the world is healed and everything must come to rest within a bounded number
//! of turns. What must hold is checked after every event; a breach is a panic that the caller
//! catches and dresses with the seed.

use std::hash::RandomState;
use std::sync::Arc;

use echo_uring::echo::admission::{Access, Caps, Ranges, Rules, SourceBook};
use echo_uring::echo::fullness::Fullness;
use echo_uring::echo::limits::QUEUE_CHUNKS_MAX;
use echo_uring::echo::op::{
    Bequest, ConnectionId, Event, Kernel, ListenerId, Op, ReceiveMode, Timestamp,
};
use echo_uring::echo::server::{CloseReason, Keepalive, Parameters, Server, Stats, Tuning};

use crate::audit::door::Door;
use crate::audit::{Audit, Limits};
use crate::fake::budget::FakeBudget;
use crate::fake::choice::Choice;
use crate::fake::trace::Note;
use crate::fake::{FakeKernel, Faults, Settings};
use crate::peers::{Crowd, Peers};
use crate::saboteur::Saboteur;

/// Turns that a healed world may take to come to rest. Far above what any seed has needed, far
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
    /// The turn at which a drain begins, and how patient it is, in milliseconds.
    pub(crate) drain: Option<(usize, u64)>,
    /// Whether the listeners end with a drain or a hand-over: nobody else holds them.
    pub(crate) listeners_end: bool,
    /// New limits and timeouts, each at the turn at which it comes, the last one first.
    pub(crate) retunes: Vec<(usize, Tuning, u64)>,
    /// When the process is replaced by another.
    pub(crate) successions: Vec<Succession>,
    pub(crate) submit: Submit,
    /// How often a `TimePassed` comes that nobody asked for, in thousandths.
    pub(crate) idle_ticks: u16,
    /// The budget for set-aside bytes, which is the parameters', too.
    pub(crate) budget: Arc<FakeBudget>,
    /// Where the clock begins, in milliseconds.
    pub(crate) clock: u64,
    /// How often other workers take and give back memory, in thousandths.
    pub(crate) others: u16,
    /// How often another worker holds the book of sources for a turn, in thousandths.
    pub(crate) book_held: u16,
    /// The turn at which other rules come into force.
    pub(crate) new_rules: Option<(usize, Arc<Rules>)>,
    /// After healing, peers that stay are ended by the server's timeouts instead of by themselves.
    pub(crate) stayers_are_ended: bool,
    /// If a drain has begun, peers are not healed: the server must come to its end against them.
    pub(crate) stubborn: bool,
}

/// One process takes over from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Succession {
    /// The turn at which it begins.
    pub(crate) turn: usize,
    /// How long connections have to come to rest, in milliseconds.
    pub(crate) patience: u64,
    /// How long there is no process at all, in milliseconds.
    pub(crate) gap: u64,
    /// Nobody takes over: the same process takes everything back, after the gap, and drains.
    pub(crate) fails: bool,
    /// What the heir is configured with.
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
    /// The succession that is under way.
    succession: Option<Succession>,
    /// What the processes before this one counted.
    pub(crate) before: Stats,
    /// Time runs from deadline to deadline of the server, past the plans of the peers.
    hasty: bool,
    /// How many connections there may be: more than places for a while after these became
    /// fewer or another process took over.
    allowed: u64,
    /// How often the tuning changed.
    pub(crate) retuned: u64,
    /// What the first server began with.
    first_tuning: Tuning,
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
            book: Arc::new(SourceBook::new(RandomState::new())),
            budget: budget.clone(),
            fullness: Arc::new(Fullness::new(1)),
            tuning: Tuning {
                connections_max: 1 + choice.below(6) as u32,
                idle_timeout,
                stall_timeout: timeouts[choice.below(4)],
                lifetime: [None, None, None, Some(200), Some(6_000)][choice.below(5)],
                bytes_max: [None, None, None, Some(1), Some(17), Some(100)][choice.below(6)],
                keepalive: draw_keepalive(choice),
                rules: Arc::new(draw_rules(choice)),
            },
        };
        let rate = parameters.tuning.rules.caps.accepts_per_second;
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
        let patience = [0, 40, 2_000, 20_000][choice.below(4)];
        let mut scenario = Self {
            parameters,
            settings,
            crowd,
            chaos_turns: choice.below(200),
            drain: (choice.below(3) == 0).then(|| (choice.below(150), patience)),
            successions: draw_successions(choice),
            submit: [Submit::AfterEach, Submit::AfterAll][choice.below(2)],
            idle_ticks: [0, 20, 300, 1000][choice.below(4)],
            budget,
            clock: [1_000, 1_000, (1 << 32) - 3_000, (1 << 36) - 3_000, 1 << 40][choice.below(5)],
            others: [0, 0, 50, 500][choice.below(4)],
            book_held: [0, 0, 100, 700][choice.below(4)],
            new_rules: (choice.below(3) == 0).then(|| draw_new_rules(choice, rate)),
            stayers_are_ended: idle_timeout.is_some() && choice.below(2) == 0,
            stubborn: choice.below(2) == 0,
            listeners_end: choice.below(2) == 0,
            retunes: Vec::new(),
        };
        scenario.retunes = draw_retunes(choice, scenario.stayers_are_ended);
        scenario
    }
}

/// Blocks of memory for all that is set aside.
fn draw_budget_limit(choice: &mut Choice) -> u64 {
    [0, 1, 3, 15, 100, 100_000][choice.below(6)]
}

/// In a third of the histories limits and timeouts change, once or more often. An idle timeout that
/// is to end those who stay is never off.
fn draw_retunes(choice: &mut Choice, stayers_are_ended: bool) -> Vec<(usize, Tuning, u64)> {
    let count = [0, 0, 0, 0, 1, 3][choice.below(6)];
    let timeouts = [Some(300), Some(5_000), Some(60_000), None];
    let idle_choices = if stayers_are_ended { 3 } else { 4 };
    let mut retunes: Vec<(usize, Tuning, u64)> = (0..count)
        .map(|_| {
            let tuning = Tuning {
                connections_max: 1 + choice.below(6) as u32,
                idle_timeout: timeouts[choice.below(idle_choices)],
                stall_timeout: timeouts[choice.below(4)],
                lifetime: None,
                bytes_max: None,
                keepalive: draw_keepalive(choice),
                rules: Arc::default(),
            };
            (choice.below(150), tuning, draw_budget_limit(choice))
        })
        .collect();
    retunes.sort_by_key(|(turn, ..)| std::cmp::Reverse(*turn));
    retunes
}

fn draw_keepalive(choice: &mut Choice) -> Option<Keepalive> {
    let silence = [None, None, Some(1_000), Some(7_000), Some(60_000)][choice.below(5)];
    silence.map(|silence| Keepalive { silence, burst: 1 + choice.below(3) as u32 })
}

/// In half of the histories nobody takes over; in the others up to three, one from the other.
fn draw_successions(choice: &mut Choice) -> Vec<Succession> {
    let count = [0, 0, 0, 1, 1, 3][choice.below(6)];
    let mut successions: Vec<Succession> = (0..count)
        .map(|_| Succession {
            turn: choice.below(150),
            patience: [0, 30, 5_000, 5_000, 5_000][choice.below(5)],
            gap: [0, 1, 200, 4_000][choice.below(4)],
            fails: choice.below(4) == 0,
            connections_max: 1 + choice.below(6) as u32,
            budget_limit: draw_budget_limit(choice),
            receive_mode: [ReceiveMode::Multishot, ReceiveMode::Once][choice.below(2)],
        })
        .collect();
    successions.sort_by_key(|succession| std::cmp::Reverse(succession.turn));
    successions
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
            connections_max: parameters.tuning.connections_max as usize,
            listeners: usize::from(parameters.listeners),
            small_buffers: usize::from(parameters.buffers[0]),
            chunks_max: usize::from(QUEUE_CHUNKS_MAX),
            idle_timeout: parameters.tuning.idle_timeout,
            stall_timeout: parameters.tuning.stall_timeout,
            linger_timeout: parameters.linger_timeout,
            lifetime: parameters.tuning.lifetime,
            bytes_max: parameters.tuning.bytes_max,
        };
        let budget = Arc::clone(&scenario.budget);
        let mut kernel = FakeKernel::new(scenario.settings, budget, choice);
        kernel.pass_time(scenario.clock - kernel.clock());
        Self {
            server: Server::new(parameters.clone()),
            kernel,
            audit: Audit::new(limits, Door::new(Rules::clone(&parameters.tuning.rules))),
            peers,
            saboteur,
            submitted: Vec::new(),
            draining: false,
            succession: None,
            before: Stats::default(),
            hasty: false,
            allowed: u64::from(scenario.parameters.tuning.connections_max),
            retuned: 0,
            first_tuning: parameters.tuning.clone(),
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
            self.retune_if_due();
            self.begin_succession_if_due();
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
        self.scenario.book_held = 0;
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
        self.audit.door.held = self.kernel.choice.strikes(self.scenario.book_held);
        if self.audit.door.held {
            let book = Arc::clone(&self.scenario.parameters.book);
            let acted = book.while_held(|| self.free_turn());
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
        // Whoever counts a source that comes back finds its page free, within so many tries.
        let held = self.audit.door.held;
        let rests = self.server.is_at_rest();
        let succeeds = rests && self.succession.is_some_and(|it| !(it.fails && held));
        if succeeds {
            self.succeed();
        }
        acted || succeeds || self.succession.is_some()
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
        if let Some((turn, patience)) = self.scenario.drain
            && turn <= self.turns
        {
            self.begin_drain(patience);
        }
    }

    fn retune_if_due(&mut self) {
        let turns = self.turns;
        let due = self.scenario.retunes.pop_if(|(turn, ..)| *turn <= turns);
        let Some((_, tuning, budget_limit)) = due else {
            return;
        };
        self.scenario.budget.set_limit(budget_limit);
        // Who is let in, for how long and with how much stays as it was.
        let Tuning { connections_max, keepalive, idle_timeout, stall_timeout, .. } = tuning;
        let tuning = Tuning {
            connections_max,
            keepalive,
            idle_timeout,
            stall_timeout,
            ..self.scenario.parameters.tuning.clone()
        };
        let now = self.kernel.clock();
        self.kernel.trace.note(now, Note::World("new limits and timeouts"));
        self.retuned += 1;
        self.allowed = self.server.stats().connections.max(u64::from(tuning.connections_max));
        self.audit.retune(&tuning);
        self.scenario.parameters.tuning = tuning.clone();
        self.server.retune(Timestamp(now), tuning);
    }

    fn change_rules_if_due(&mut self) {
        let Some((_, rules)) = self.scenario.new_rules.take_if(|(turn, _)| *turn <= self.turns)
        else {
            return;
        };
        self.kernel.trace.note(self.kernel.clock(), Note::World("other rules are in force"));
        let inside: Vec<_> = self.audit.open_connections();
        let inside: Vec<_> = inside.into_iter().map(|id| (id, self.kernel.source_of(id))).collect();
        self.audit.door.change(Rules::clone(&rules), &inside);
        let tuning = Tuning { rules, ..self.scenario.parameters.tuning.clone() };
        self.scenario.parameters.tuning = tuning.clone();
        let now = self.kernel.now();
        self.server.retune(now, tuning);
        for connection in self.server.take_uncounted() {
            self.server.count_source(now, connection, self.kernel.source_of(connection));
        }
    }

    fn begin_drain(&mut self, patience: u64) {
        // During a hand-over a drain would come too late.
        if !self.draining && self.succession.is_none() {
            self.draining = true;
            self.kernel.trace.note(self.kernel.clock(), Note::World("a drain begins"));
            let deadline = Timestamp(self.kernel.clock() + patience);
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

    fn begin_succession_if_due(&mut self) {
        if self.draining || self.succession.is_some() {
            return;
        }
        let turns = self.turns;
        let Some(succession) = self.scenario.successions.pop_if(|next| next.turn <= turns) else {
            return;
        };
        self.succession = Some(succession);
        self.kernel.trace.note(self.kernel.clock(), Note::World("a hand-over begins"));
        let deadline = Timestamp(self.kernel.clock() + succession.patience);
        self.end_listeners();
        self.handle(Event::HandOverStarted { deadline });
        self.submit();
    }

    /// The old process ends and the next one begins; the world does not stop in between.
    fn succeed(&mut self) {
        let succession = self.succession.take().expect("somebody takes over");
        self.check_ended_listeners();
        let mut estate = self.server.release(self.kernel.now());
        self.server.check_invariants();
        for (_, bequest) in &mut estate {
            self.saboteur.bequest(bequest);
            *bequest = bequest.after(succession.gap);
        }
        if succession.fails {
            return self.take_back(succession, estate);
        }
        self.kernel.reopen_listeners();
        self.audit.reopen_listeners();
        self.before.add(&self.server.stats());
        self.scenario.parameters.tuning.connections_max = succession.connections_max;
        self.scenario.budget.set_limit(succession.budget_limit);
        self.scenario.parameters.receive_mode = succession.receive_mode;
        self.scenario.parameters.book = Arc::new(SourceBook::new(RandomState::new()));
        self.audit.door.held = false;
        self.server = Server::new(self.scenario.parameters.clone());
        self.audit.door.forget_buckets();
        self.adopt(succession.gap, estate);
        self.handle(Event::Started);
        self.submit();
    }

    /// The hand-over has failed. The same server goes on with what it gave away, by the limits,
    /// timeouts and rules of now, and drains.
    fn take_back(&mut self, succession: Succession, estate: Vec<(ConnectionId, Bequest)>) {
        self.audit.begin_to_take_back();
        self.draining = true;
        self.taken_back += 1;
        if let Some(tuning) = self.saboteur.tuning_to_go_back_to(&self.first_tuning) {
            self.server.retune(self.kernel.now(), tuning);
        }
        let slots = self.audit.slots();
        self.adopt(succession.gap, estate);
        self.audit.keep_slots(slots);
        let deadline = Timestamp(self.kernel.clock() + succession.patience);
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
    fn adopt(&mut self, gap: u64, estate: Vec<(ConnectionId, Bequest)>) {
        let heirs: Vec<_> =
            estate.iter().map(|(old, _)| (*old, self.server.reserve_slot())).collect();
        self.audit.succeed(&heirs, &self.scenario.parameters);
        self.kernel.succeed(&heirs);
        let sourced: Vec<_> =
            heirs.iter().map(|(_, heir)| (*heir, self.kernel.source_of(*heir))).collect();
        self.audit.door.succeed(&sourced);
        self.kernel.pass_time(gap);
        self.peers.act(&mut self.kernel);
        let places = u64::from(self.scenario.parameters.tuning.connections_max);
        self.allowed = places.max(heirs.len() as u64);
        for ((_, connection), (_, bequest)) in heirs.into_iter().zip(estate) {
            let source = self.kernel.source_of(connection);
            let event = Event::Adopted { connection, source, bequest };
            self.kernel.trace.note(self.kernel.clock(), Note::Event(event));
            self.handle(event);
            self.submit();
        }
    }

    fn check_step(&mut self) {
        let mut stats = self.server.stats();
        stats.add(&self.before);
        let audit = &self.audit;
        assert_eq!(stats.traffic.accepted, audit.accepted, "books: accepted");
        let handed_over = stats.traffic.closed[CloseReason::HandedOver as usize];
        assert_eq!(stats.traffic.closed_total() - handed_over, audit.closed, "books: closed");
        assert_eq!(stats.traffic.refused_total(), audit.door.refused, "books: refused");
        if !audit.door.held {
            let book = &self.scenario.parameters.book;
            book.check_invariants();
            let sources = audit.door.sources();
            assert!(sources.contains(&book.sources()), "books: {} sources", book.sources());
        }
        assert_eq!(stats.traffic.bytes_in, audit.bytes_in, "books: bytes in");
        assert_eq!(stats.traffic.bytes_out, audit.bytes_out, "books: bytes out");
        let blocks = self.kernel.aside_blocks();
        assert_eq!(self.scenario.budget.taken(), blocks, "books: blocks of memory");
        let places = u64::from(self.scenario.parameters.tuning.connections_max);
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
        self.audit.at_rest();
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
        assert_eq!(self.kernel.aside_bytes(), 0, "rest: bytes are set aside");
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
