//! The loop of one thread: its ring, its connections, what it measures.
//!
//! It is told when to run and when to finish through [`Orders`], and tells its [`News`]. Time is
//! read once a turn, so a latency includes whatever this thread did in the meantime: it may be told
//! too long, never too short.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use echo_uring::echo::op::ConnectionId;
use echo_uring::uring::Unusable;
use echo_uring::uring::client::{Client, Closing, Event, Settings};
use nix::sys::eventfd::EventFd;

use crate::arguments::{Mode, Plan};
use crate::connection::{Connection, Message, State};
use crate::diagnosis::{Fault, Kind};
use crate::measure::Measured;
use crate::pattern::Pattern;
use crate::schedule::Schedule;
use crate::size::Random;

mod echoes;
mod ends;

/// Connects under way at once, per thread: no more than what a server's backlog takes.
const CONNECTING_MAX: usize = 128;
/// Buffers to receive into, at most.
const BUFFERS_MAX: usize = 128;
/// One send takes up messages until it has so many bytes.
const SEND_BYTES_MAX: usize = 1 << 20;
/// How long the rest of a wrong stream is collected, in nanoseconds, and how much of it.
const SUSPICION: u64 = 500_000_000;
const TAIL_BYTES_MAX: usize = 1 << 20;
/// How often suspects are looked at.
const SUSPECTS_LOOK: Duration = Duration::from_millis(50);
/// Faults that are kept in full; the rest is counted.
const FAULTS_KEPT: usize = 100;

/// What workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Connect.
    Connect,
    /// Send and receive.
    Run,
    /// Start nothing more; half-close, wait for the rest of the echoes and for the end.
    Finish,
    /// Give up what is not finished.
    Abort,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Connect, Self::Run, Self::Finish, Self::Abort];
}

/// What the main thread tells all workers. After each change it wakes them.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    phase: AtomicU8,
    /// When the run began, in nanoseconds since its origin.
    start: AtomicU64,
    /// Counts the requests for what was measured.
    pub(crate) ticks: AtomicU64,
    /// Connections made so far, by all workers.
    pub(crate) connected: AtomicU64,
    /// Connections that still take part.
    pub(crate) live: AtomicU64,
    /// Faults found so far, by all workers.
    pub(crate) errors: AtomicU64,
}

impl Orders {
    /// Begins a phase.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Begins the run at `start`.
    pub(crate) fn run(&self, start: u64) {
        self.start.store(start, Ordering::Release);
        self.set_phase(Phase::Run);
    }

    fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }
}

/// What a worker tells the main thread.
pub(crate) enum News {
    /// All its connections stand.
    Ready,
    /// It could not connect, and why.
    Refused(String),
    /// Its ring does not work, and why.
    Broken(String),
    /// What it measured since it was last asked.
    Measured(Measured),
    /// It has ended.
    Finished(Outcome),
}

/// What a worker, and in the end the run, came to besides its measurements.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The first ones, in full.
    pub(crate) faults: Vec<Fault>,
    /// All, by kind.
    pub(crate) fault_counts: [u64; Kind::ALL.len()],
    /// Connects that failed while the run was on (churn).
    pub(crate) connect_failures: u64,
    /// Why the first of them did.
    pub(crate) connect_error: Option<String>,
    /// Messages that were due and never sent.
    pub(crate) unsent: u64,
    /// Connections that the server did not close after our FIN, though it echoed everything.
    pub(crate) left_open: u64,
}

impl Outcome {
    pub(crate) fn report(&mut self, fault: Fault) {
        self.fault_counts[fault.kind as usize] += 1;
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(fault);
        }
    }

    /// Adds what another worker came to.
    pub(crate) fn add(&mut self, other: Self) {
        for (mine, theirs) in self.fault_counts.iter_mut().zip(other.fault_counts) {
            *mine += theirs;
        }
        let room = FAULTS_KEPT - self.faults.len();
        self.faults.extend(other.faults.into_iter().take(room));
        self.connect_failures += other.connect_failures;
        self.connect_error = self.connect_error.take().or(other.connect_error);
        self.unsent += other.unsent;
        self.left_open += other.left_open;
    }

    pub(crate) fn faults_total(&self) -> u64 {
        self.fault_counts.iter().sum()
    }
}

/// One thread of the load.
pub(crate) struct Worker {
    plan: Arc<Plan>,
    thread: u32,
    client: Client,
    pattern: Pattern,
    random: Random,
    connections: Vec<Connection>,
    schedule: Option<Schedule>,
    phase: Phase,
    orders: Arc<Orders>,
    news: Sender<News>,
    origin: Instant,
    /// Nanoseconds since the origin, as of this turn.
    now: u64,
    ticks: u64,
    measured: Measured,
    measured_since: u64,
    outcome: Outcome,
    /// Connections begun in all, which gives each its number.
    begun: u64,
    /// Places that are not closed, and those of them that are connecting.
    open: usize,
    connecting: usize,
    /// Places that are suspect.
    suspects: Vec<usize>,
}

impl Worker {
    /// To be made on its own thread.
    pub(crate) fn new(
        plan: Arc<Plan>,
        thread: u32,
        wake: Arc<EventFd>,
        orders: Arc<Orders>,
        news: Sender<News>,
        origin: Instant,
    ) -> Result<Self, Unusable> {
        let share =
            plan.connections / plan.threads + u32::from(thread < plan.connections % plan.threads);
        let (buffers, buffer_bytes) = pool(&plan, share);
        let target = plan.target.address.clone();
        let client = Client::new(Settings { target, wake, buffers, buffer_bytes })?;
        let mut connections: Vec<Connection> = Vec::new();
        connections.resize_with(share as usize, Connection::default);
        let schedule = Schedule::new(&plan, thread, share.into());
        if let Some(schedule) = &schedule {
            for rank in 0..u64::from(share) {
                connections[schedule.connection(rank)].rank = rank;
            }
        }
        orders.live.fetch_add(share.into(), Ordering::Relaxed);
        Ok(Self {
            pattern: Pattern::new(plan.seed),
            random: Random::new(plan.seed ^ u64::from(thread) << 32),
            measured: Measured::new(schedule.is_some()),
            client,
            connections,
            schedule,
            phase: Phase::Connect,
            orders,
            news,
            origin,
            now: 0,
            ticks: 0,
            measured_since: 0,
            outcome: Outcome::default(),
            begun: 0,
            open: 0,
            connecting: 0,
            suspects: Vec::new(),
            thread,
            plan,
        })
    }

    /// Works until all is finished.
    pub(crate) fn work(mut self) -> std::io::Result<()> {
        self.ramp_up();
        loop {
            let patience = self.patience();
            self.client.wait(patience)?;
            self.now = self.origin.elapsed().as_nanos() as u64;
            while let Some(event) = self.client.next_event() {
                self.handle(event);
            }
            self.start_what_is_due();
            self.look_at_suspects();
            if self.phase == Phase::Abort || self.phase == Phase::Finish && self.open == 0 {
                break;
            }
        }
        self.give_up_the_rest();
        self.outcome.unsent = self.connections.iter().map(|it| it.due).sum();
        let outcome = std::mem::take(&mut self.outcome);
        self.tell(News::Finished(outcome));
        Ok(())
    }

    /// How long nothing needs to be done.
    fn patience(&self) -> Option<Duration> {
        let due = self.schedule.as_ref().filter(|_| self.phase == Phase::Run).map(|schedule| {
            let now = self.origin.elapsed().as_nanos() as u64;
            Duration::from_nanos(schedule.next_moment().saturating_sub(now))
        });
        let look = (!self.suspects.is_empty()).then_some(SUSPECTS_LOOK);
        due.into_iter().chain(look).min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received { connection, buffer, length, armed } => {
                self.received(connection, buffer, length, armed);
            }
            Event::Sent { connection, .. } | Event::SendFailed { connection, .. } => {
                // What a failed send means, the end of the receive tells.
                self.go_on(connection.slot() as usize);
            }
            Event::ReceiveEnded { connection, reason } => self.receive_ended(connection, reason),
            Event::Connected { connection } => self.connected(connection),
            Event::ConnectFailed { connection, error } => {
                self.connecting -= 1;
                self.open -= 1;
                self.connect_failed(connection.slot() as usize, &error);
            }
            Event::Closed { connection } => self.closed(connection.slot() as usize),
            Event::Woken => self.obey(),
        }
    }

    /// Reads the orders.
    fn obey(&mut self) {
        let ticks = self.orders.ticks.load(Ordering::Acquire);
        if ticks != self.ticks {
            self.ticks = ticks;
            let elapsed = Duration::from_nanos(self.now - self.measured_since);
            self.measured_since = self.now;
            let measured = self.measured.take(elapsed);
            self.tell(News::Measured(measured));
        }
        let phase = self.orders.phase();
        if phase <= self.phase {
            return;
        }
        self.phase = phase;
        match phase {
            Phase::Connect | Phase::Abort => {}
            Phase::Run => self.begin_run(),
            Phase::Finish => (0..self.connections.len()).for_each(|index| self.finish(index)),
        }
    }

    fn begin_run(&mut self) {
        // What it took to get here belongs to nothing that is told.
        drop(self.measured.take(Duration::ZERO));
        self.measured_since = self.now;
        if let Some(schedule) = &mut self.schedule {
            let start = self.orders.start.load(Ordering::Acquire);
            schedule.begin(start);
            // However late we hear of it: what was due since then is measured, too.
            self.measured_since = start;
            return;
        }
        for index in 0..self.connections.len() {
            match self.plan.mode {
                Mode::Churn => self.connect(index),
                Mode::PingPong | Mode::Stream | Mode::Idle => self.start_messages(index),
            }
        }
    }

    /// In an open loop: starts what the schedule asks for.
    fn start_what_is_due(&mut self) {
        if self.phase != Phase::Run {
            return;
        }
        while let Some(index) = self.schedule.as_mut().and_then(|it| it.due(self.now)) {
            self.connections[index].due += 1;
            match (self.plan.mode, &self.connections[index].state) {
                (Mode::Churn, State::Closed) => self.connect(index),
                (Mode::Churn, _) => {}
                (Mode::PingPong | Mode::Stream | Mode::Idle, _) => self.start_messages(index),
            }
        }
    }

    fn tell(&self, news: News) {
        // The main thread hears everything unless it has given up, and then it does not matter.
        let _ = self.news.send(news);
    }
}

/// The buffers to receive into: a message fits into one where that is sensible. The kernel takes
/// one after another, so their number is kept small, that they stay in the cache: since Linux 6.13
/// a turn brings some 20 completions at a time, and where it brings more than there are buffers,
/// the receives that went empty wait. (64 bytes on 1,000 connections: 0.992 times the
/// CPU of 1,024 buffers, median of six paired runs, Linux 6.18.)
fn pool(plan: &Plan, share: u32) -> (u16, u32) {
    let burst = plan.sizes.bytes_max().saturating_mul(plan.depth.min(16) as usize);
    let bytes = burst.next_power_of_two().clamp(256, 64 << 10);
    let count = (share as usize).next_power_of_two().clamp(64, BUFFERS_MAX);
    (count as u16, bytes as u32)
}
