//! The event loop of one thread: its ring, its connections and its measurements.
//!
//! It gets [`Orders`] from the main thread and sends [`News`]. The clock is read once an iteration,
//! so a latency includes the time that this thread spent in the meantime: it may be reported too
//! long, never too short.
//!
//! Every message is resolved exactly once, whatever happens: see `account`.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use echo_core::op::ConnectionId;
use echo_ring::Unusable;
use echo_ring::client::{Client, Closing, Event, Settings};
use nix::sys::eventfd::EventFd;
use socket2::SockAddr;

use crate::arguments::{Mode, Plan};
use crate::connection::{Connection, Message, State};
use crate::diagnosis::{Fault, Kind};
use crate::measure::{Fate, Measured, Wait};
use crate::orders::{News, Orders, Outcome, Phase};
use crate::pattern::Pattern;
use crate::schedule::Schedule;
use crate::size::Random;

mod account;
mod echoes;
mod ends;

/// The maximum number of connects in progress per thread, limited because of the server's backlog.
const CONNECTING_MAX: usize = 128;
/// The maximum number of receive buffers.
const BUFFERS_MAX: usize = 128;
/// One send collects messages up to this many bytes.
const SEND_BYTES_MAX: usize = 1 << 20;
/// How long the rest of a wrong stream is collected, in nanoseconds, and its maximum length.
const SUSPICION: u64 = 500_000_000;
const TAIL_BYTES_MAX: usize = 1 << 20;
/// How often connections with a wrong echo are checked.
const SUSPECTS_LOOK: Duration = Duration::from_millis(50);
/// In a closed loop, the delay before a reconnect after a failed connect, in nanoseconds: a server
/// that is down refuses some 100,000 connects a second.
const RETRY: u64 = 10_000_000;
/// The maximum time, in nanoseconds, that a thread waits after a send while echoes are outstanding,
/// even if further messages are scheduled. If the server keeps up, an echo wakes the thread sooner.
/// A timer wakes a process some 50 µs late anyway, and a thread that is woken for each message and
/// again for its echo sleeps twice as often as the server. (64 bytes on 64 connections, 50,000/s:
/// CPU of the client as a multiple of the server's with 0, 50, 100, 250 µs: 2.6, 1.5, 1.15, 0.96;
/// median latency 58, 69, 67, 62 µs; median lateness 20, 16, 17, 16 µs. Linux 6.18.)
const REST: u64 = 250_000;
/// The number of slots that a sweep checks in one iteration: some 100 µs.
const SWEEP_MAX: usize = 16_384;

/// The parameters of a worker.
pub(crate) struct Task {
    pub(crate) plan: Arc<Plan>,
    /// The address to connect to.
    pub(crate) address: SockAddr,
    /// Its number.
    pub(crate) thread: u32,
    /// Becomes readable when there are orders.
    pub(crate) wake: Arc<EventFd>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) news: Sender<News>,
    /// The origin of the times of the run.
    pub(crate) origin: Instant,
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
    /// Whether there are orders to read.
    woken: bool,
    news: Sender<News>,
    origin: Instant,
    /// Nanoseconds since the origin, in this iteration.
    now: u64,
    ticks: u64,
    sweeps: u64,
    /// The next slot of the sweep; beyond the last slot there is no sweep.
    sweep: usize,
    /// Since when the oldest message waits, of the slots that the sweep has checked so far.
    sweep_oldest: Option<u64>,
    measured: Measured,
    measured_since: u64,
    /// When the measured time began and ended.
    window: (u64, u64),
    /// The total number of messages started.
    started: u64,
    /// The number of messages with a known outcome.
    resolved: u64,
    /// Messages that were scheduled (or started) until the last report.
    told: u64,
    /// When this thread last sent a scheduled message.
    sent_at: u64,
    /// The scheduled times of messages that this iteration submits and only this client delayed.
    prompt: Vec<u64>,
    /// Slots that reconnect, and when, in this order.
    retries: VecDeque<(u64, usize)>,
    outcome: Outcome,
    /// The total number of connects, from which each gets its number.
    begun: u64,
    /// Slots that are not closed, and those of them that are connecting.
    open: usize,
    connecting: usize,
    /// Slots with a wrong echo.
    suspects: Vec<usize>,
}

impl Worker {
    /// Must be called on the thread of the worker.
    pub(crate) fn new(task: Task) -> Result<Self, Unusable> {
        let Task { plan, address: target, thread, wake, orders, news, origin } = task;
        let share =
            plan.connections / plan.threads + u32::from(thread < plan.connections % plan.threads);
        let (buffers, buffer_bytes) = pool(&plan, share);
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
            sweep: connections.len(),
            connections,
            schedule,
            phase: Phase::Prepare,
            orders,
            woken: false,
            news,
            origin,
            now: 0,
            ticks: 0,
            sweeps: 0,
            sweep_oldest: None,
            measured_since: 0,
            window: (0, 0),
            started: 0,
            resolved: 0,
            told: 0,
            sent_at: 0,
            prompt: Vec::new(),
            retries: VecDeque::new(),
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
        self.tell(News::Prepared);
        loop {
            let timeout = self.wait_timeout();
            self.client.wait(timeout)?;
            self.now = self.clock();
            while let Some(event) = self.client.next_event() {
                self.handle(event);
            }
            self.start_scheduled();
            self.connect_again();
            self.look_at_suspects();
            self.sweep_some();
            // Last, so that a report includes the whole iteration.
            if mem::take(&mut self.woken) {
                self.obey();
            }
            if self.phase == Phase::Abort || self.phase == Phase::Finish && self.open == 0 {
                break;
            }
        }
        self.give_up_the_rest();
        let measured = self.measured.take(Duration::ZERO);
        let outcome = mem::take(&mut self.outcome);
        self.tell(News::Finished(Box::new(measured), outcome));
        Ok(())
    }

    fn clock(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// The time until the next work.
    fn wait_timeout(&mut self) -> Option<Duration> {
        if self.sweep < self.connections.len() {
            return Some(Duration::ZERO);
        }
        let due = match &self.schedule {
            Some(schedule) if self.phase.sends() => {
                let now = self.clock();
                // Operations queued in this iteration are submitted to the kernel now.
                for due in self.prompt.drain(..) {
                    self.measured.record_lateness(now.saturating_sub(due));
                }
                let rest = if self.started > self.resolved { REST } else { 0 };
                let next = schedule.next_moment().max(self.sent_at + rest);
                Some(Duration::from_nanos(next.saturating_sub(now)))
            }
            _ => None,
        };
        let look = (!self.suspects.is_empty()).then_some(SUSPECTS_LOOK);
        let retry = self.retries.front().filter(|_| self.phase.sends());
        let retry = retry.map(|&(moment, _)| Duration::from_nanos(moment.saturating_sub(self.now)));
        due.into_iter().chain(look).chain(retry).min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received { connection, buffer, length, armed } => {
                self.received(connection, buffer, length, armed);
            }
            Event::Sent { connection, .. } | Event::SendFailed { connection, .. } => {
                // After a failed send the receive ends too, with the reason.
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
            Event::Woken => self.woken = true,
        }
    }

    /// Reads the orders.
    fn obey(&mut self) {
        let (phase, ticks) = (self.orders.phase(), self.orders.ticks.load(Ordering::Acquire));
        while self.phase < phase.min(Phase::Run) && phase != Phase::Abort {
            self.enter(Phase::ALL[self.phase as usize + 1]);
        }
        if mem::replace(&mut self.ticks, ticks) != ticks {
            let measured = self.take_measured();
            self.tell(News::Measured(Box::new(measured)));
        }
        if self.phase < phase {
            self.enter(phase);
        }
        let sweeps = self.orders.sweeps.load(Ordering::Acquire);
        if mem::replace(&mut self.sweeps, sweeps) != sweeps {
            (self.sweep, self.sweep_oldest) = (0, None);
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        match phase {
            Phase::Connect => self.ramp_up(),
            // This phase is entered even without a warm-up.
            Phase::WarmUp => self.begin_load(),
            Phase::Run => self.begin_window(),
            Phase::Finish => {
                self.end_window();
                (0..self.connections.len()).for_each(|index| self.finish(index));
            }
            Phase::Prepare | Phase::Abort => {}
        }
    }

    fn begin_load(&mut self) {
        if let Some(schedule) = &mut self.schedule {
            schedule.begin(self.orders.start());
            return;
        }
        for index in 0..self.connections.len() {
            match self.plan.mode {
                Mode::Churn => self.connect(index),
                Mode::PingPong | Mode::Stream | Mode::Idle => self.start_messages(index),
            }
        }
    }

    /// In an open loop: starts scheduled messages. A connection that lags behind is visited once,
    /// however many messages it has to send.
    fn start_scheduled(&mut self) {
        if !self.phase.sends() {
            return;
        }
        let Some(schedule) = &mut self.schedule else { return };
        let (rank, count) = schedule.advance(self.now);
        if count > 0 {
            self.sent_at = self.now;
        }
        for rank in rank..rank + count {
            let Some(schedule) = &self.schedule else { return };
            let index = schedule.connection(rank % self.connections.len() as u64);
            match (self.plan.mode, &self.connections[index].state) {
                (Mode::Churn, State::Closed) if !self.connections[index].is_resting => {
                    self.connect_promptly(index);
                }
                (Mode::Churn, _) => {}
                (Mode::PingPong | Mode::Stream | Mode::Idle, _) => self.start_promptly(index),
            }
        }
    }

    fn tell(&self, news: News) {
        // It fails only if the main thread has given up, and then it does not matter.
        let _ = self.news.send(news);
    }
}

/// The number and size of receive buffers: one message fits into a buffer if that is reasonable.
/// The kernel cycles through all buffers, so their number is small to keep them in the cache. Since
/// Linux 6.13 an iteration brings some 20 completions at a time. If it brings more than there are
/// buffers, the receives without a buffer wait. (64 bytes on 1,000 connections: 0.992 times the CPU
/// of 1,024 buffers, median of six paired runs, Linux 6.18.)
fn pool(plan: &Plan, share: u32) -> (u16, u32) {
    let burst = plan.sizes.bytes_max().saturating_mul(plan.depth.min(16) as usize);
    let bytes = burst.next_power_of_two().clamp(256, 64 << 10);
    let count = (share as usize).next_power_of_two().clamp(64, BUFFERS_MAX);
    (count as u16, bytes as u32)
}
