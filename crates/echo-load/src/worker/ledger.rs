//! What every worker has, whatever it sends over: orders and events, phases, the schedule and the
//! measurements.
//!
//! It knows nothing of connections or of bytes. It counts messages:
//!
//! 1. A message becomes known when it is started (closed loop), or at its scheduled time.
//! 2. It is resolved when its outcome is known, which is recorded once.
//! 3. Messages that are known and not resolved are outstanding. At the end therefore
//!    `known == resolved`, and `scheduled = answered + late + unanswered + unsent`.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::Task;
use crate::arguments::Plan;
use crate::fault::Fault;
use crate::measure::{Fate, Measured, Wait};
use crate::orders::{Orders, Outcome, Phase, WorkerEvent};
use crate::schedule::Schedule;

/// The maximum time, in nanoseconds, that a thread waits after a send while echoes are outstanding,
/// even if further messages are scheduled. If the server keeps up, an echo wakes the thread sooner.
/// A timer wakes a process some 50 µs late anyway, and a thread that is woken for each message and
/// again for its echo sleeps twice as often as the server. (64 bytes on 64 connections, 50,000/s:
/// CPU of the client as a multiple of the server's with 0, 50, 100, 250 µs: 2.6, 1.5, 1.15, 0.96;
/// median latency 58, 69, 67, 62 µs; median lateness 20, 16, 17, 16 µs. Linux 6.18.)
const REST: u64 = 250_000;
/// The maximum number of steps into which the waiting times of unsent messages are divided, over
/// all connections of a thread: some 10 ms of work.
const UNSENT_STEPS: u64 = 1 << 20;
/// The minimum number of steps of a single connection.
const UNSENT_STEPS_MIN: u64 = 64;

/// What the main thread wants next.
pub(super) enum Order {
    /// The next phase begins.
    Enter(Phase),
    /// Send the measurements since the last report.
    Report,
    /// Look for messages that have timed out.
    Sweep,
}

/// The orders, the schedule and the measurements of one thread.
pub(super) struct Ledger {
    pub(super) plan: Arc<Plan>,
    pub(super) thread: u32,
    pub(super) schedule: Option<Schedule>,
    pub(super) phase: Phase,
    pub(super) orders: Arc<Orders>,
    events: Sender<WorkerEvent>,
    origin: Instant,
    /// Nanoseconds since the origin, when the clock was last read.
    pub(super) now: u64,
    ticks: u64,
    sweeps: u64,
    pub(super) measured: Measured,
    measured_since: u64,
    /// When the measured time began and ended.
    pub(super) window: (u64, u64),
    /// The total number of messages started.
    pub(super) started: u64,
    /// The number of messages with a known outcome.
    resolved: u64,
    /// Messages that were scheduled (or started) until the last report.
    told: u64,
    /// When this thread last sent a scheduled message.
    pub(super) sent_at: u64,
    /// The scheduled times of messages that this iteration submits and only this client delayed.
    pub(super) prompt: Vec<u64>,
    pub(super) outcome: Outcome,
}

impl Ledger {
    /// The ledger of a worker with this task; its connections take part from now on.
    pub(super) fn new(task: &Task) -> Self {
        let share = task.share();
        task.orders.live.fetch_add(share.into(), Ordering::Relaxed);
        let schedule = Schedule::new(&task.plan, task.thread, share.into());
        Self {
            plan: task.plan.clone(),
            thread: task.thread,
            measured: Measured::new(schedule.is_some()),
            schedule,
            phase: Phase::Prepare,
            orders: task.orders.clone(),
            events: task.events.clone(),
            origin: task.origin,
            now: 0,
            ticks: 0,
            sweeps: 0,
            measured_since: 0,
            window: (0, 0),
            started: 0,
            resolved: 0,
            told: 0,
            sent_at: 0,
            prompt: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn clock(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Reads the clock.
    pub(super) fn read_clock(&mut self) {
        self.now = self.clock();
    }

    pub(super) fn tell(&self, event: WorkerEvent) {
        // It fails only if the main thread has given up, and then it does not matter.
        let _ = self.events.send(event);
    }

    /// The timeout in nanoseconds.
    pub(super) fn timeout(&self) -> u64 {
        self.plan.timeout.as_nanos() as u64
    }

    /// The next order, if there is one.
    pub(super) fn next_order(&mut self) -> Option<Order> {
        let (phase, ticks) = (self.orders.phase(), self.orders.ticks.load(Ordering::Acquire));
        if self.phase < phase.min(Phase::Run) && phase != Phase::Abort {
            self.phase = Phase::ALL[self.phase as usize + 1];
            return Some(Order::Enter(self.phase));
        }
        if mem::replace(&mut self.ticks, ticks) != ticks {
            return Some(Order::Report);
        }
        if self.phase < phase {
            self.phase = phase;
            return Some(Order::Enter(phase));
        }
        let sweeps = self.orders.sweeps.load(Ordering::Acquire);
        (mem::replace(&mut self.sweeps, sweeps) != sweeps).then_some(Order::Sweep)
    }

    /// The time until the next scheduled message is to be sent; None in a closed loop. Called last
    /// in an iteration: what it started is submitted to the kernel now.
    pub(super) fn until_next_send(&mut self) -> Option<Duration> {
        if !self.phase.sends() {
            return None;
        }
        let schedule = self.schedule.as_ref()?;
        let now = self.origin.elapsed().as_nanos() as u64;
        for due in self.prompt.drain(..) {
            self.measured.record_lateness(now.saturating_sub(due));
        }
        let rest = if self.started > self.resolved { REST } else { 0 };
        let next = schedule.next_moment().max(self.sent_at + rest);
        Some(Duration::from_nanos(next.saturating_sub(now)))
    }

    /// Advances the schedule. Returns the turns of the connections with newly scheduled messages:
    /// the first of them and their number.
    pub(super) fn advance(&mut self) -> (u64, u64) {
        if !self.phase.sends() {
            return (0, 0);
        }
        let Some(schedule) = &mut self.schedule else { return (0, 0) };
        let fresh = schedule.advance(self.now);
        if fresh.1 > 0 {
            self.sent_at = self.now;
        }
        fresh
    }

    /// Messages that were started or scheduled.
    fn known(&self) -> u64 {
        self.schedule.as_ref().map_or(self.started, Schedule::due)
    }

    /// Sends the measurements since the last report. The oldest outstanding message has waited
    /// since `oldest`.
    pub(super) fn report(&mut self, oldest: Option<u64>) {
        let known = self.known();
        self.measured.counts.scheduled = known - self.told;
        self.told = known;
        self.measured.outstanding = known - self.resolved;
        self.measured.longest_wait = match oldest {
            Some(since) if known > self.resolved => self.now.saturating_sub(since),
            _ => 0,
        };
        let elapsed = Duration::from_nanos(self.now.saturating_sub(self.measured_since));
        self.measured_since = self.now;
        let measured = self.measured.take(elapsed);
        self.tell(WorkerEvent::Measured(Box::new(measured)));
    }

    /// Begins the measured time. Messages that are already waiting belong to it.
    pub(super) fn begin_window(&mut self) {
        drop(self.measured.take(Duration::ZERO));
        self.told = self.resolved;
        // Even if this order arrives late, all messages since the load began are measured.
        let whole = self.schedule.is_some() && self.plan.warmup.is_zero();
        self.measured_since = if whole { self.orders.start() } else { self.now };
        self.window = (self.measured_since, self.now);
    }

    /// Ends the measured time.
    pub(super) fn end_window(&mut self) {
        self.window.1 = self.now;
        self.prompt.clear();
    }

    /// Records the outcome of a message.
    pub(super) fn resolve(&mut self, fate: Fate, wait: Wait) {
        self.resolved += 1;
        self.measured.record(fate, wait);
    }

    /// Reports a fault.
    pub(super) fn blame(&mut self, fault: Fault) {
        self.orders.errors.fetch_add(1, Ordering::Relaxed);
        self.outcome.report(fault);
    }

    /// Resolves the messages that were scheduled on one of `connections` and never sent: all after
    /// the first `started`. Each waited from its scheduled time until `until`. The scheduled times
    /// are evenly spaced, so if there are very many, neighbours are grouped.
    pub(super) fn resolve_unsent(&mut self, rank: u64, started: u64, until: u64) {
        let Some(schedule) = &self.schedule else { return };
        let longest = until as f64 - schedule.moment(rank, started) as f64;
        let (step, connections) = (schedule.step(), schedule.connections());
        let count = schedule.due_of(rank) - started;
        let steps = (UNSENT_STEPS / connections).max(UNSENT_STEPS_MIN);
        let group = count.div_ceil(steps).max(1);
        let mut at = 0;
        while at < count {
            let members = group.min(count - at);
            let middle = at as f64 + (members - 1) as f64 / 2.0;
            let wait = (longest - middle * step).max(0.0);
            self.measured.record_unsent(wait as u64, members);
            at += members;
        }
        self.resolved += count;
    }

    /// The end of the work: what was measured after the last report, and all other results.
    pub(super) fn finish(mut self) {
        assert_eq!(self.known(), self.resolved, "a message was counted twice or not at all");
        let measured = self.measured.take(Duration::ZERO);
        let outcome = mem::take(&mut self.outcome);
        self.tell(WorkerEvent::Finished(Box::new(measured), Box::new(outcome)));
    }
}
