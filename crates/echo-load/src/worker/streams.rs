//! The event loop of one thread over TCP, Unix stream and seqpacket sockets: its ring and its
//! connections.
//!
//! The clock is read once an iteration, so a latency includes the time that this thread spent in
//! the meantime: it may be reported too long, never too short.
//!
//! Every message is resolved exactly once, whatever happens: see `account`.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use echo_core::op::ConnectionId;
use echo_ring::Unusable;
use echo_ring::client::{Client, Closing, Event, Settings};
use socket2::Type;

use super::Task;
use super::ledger::{Ledger, Order};
use crate::arguments::{Mode, Plan};
use crate::connection::{Connection, Message, State};
use crate::fault::{Detail, Fault, Kind};
use crate::measure::{Fate, Wait};
use crate::orders::{Phase, WorkerEvent};
use crate::pattern::Pattern;
use crate::size::Random;
use crate::target::Transport;

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
/// The number of slots that a sweep checks in one iteration: some 100 µs.
const SWEEP_MAX: usize = 16_384;

/// One thread of the load.
pub(super) struct Worker {
    ledger: Ledger,
    client: Client,
    /// The address of the server; none for a Unix socket.
    server: Option<SocketAddr>,
    /// Whether each message is sent as one and must come back as one.
    keeps_bounds: bool,
    pattern: Pattern,
    random: Random,
    connections: Vec<Connection>,
    /// Whether there are orders to read.
    woken: bool,
    /// The next slot of the sweep; beyond the last slot there is no sweep.
    sweep: usize,
    /// Since when the oldest message waits, of the slots that the sweep has checked so far.
    sweep_oldest: Option<u64>,
    /// Slots that reconnect, and when, in this order.
    retries: VecDeque<(u64, usize)>,
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
    pub(super) fn new(task: Task) -> Result<Self, Unusable> {
        let share = task.share();
        let (buffers, buffer_bytes) = pool(&task.plan, share);
        let mut connections: Vec<Connection> = Vec::new();
        connections.resize_with(share as usize, Connection::default);
        let ledger = Ledger::new(&task);
        if let Some(schedule) = &ledger.schedule {
            for rank in 0..u64::from(share) {
                connections[schedule.connection(rank)].rank = rank;
            }
        }
        let Task { plan, address: target, thread, wake, .. } = task;
        let socket_type = plan.target.transport().socket_type();
        Ok(Self {
            server: target.as_socket(),
            client: Client::new(Settings { target, socket_type, wake, buffers, buffer_bytes })?,
            keeps_bounds: socket_type == Type::SEQPACKET,
            pattern: Pattern::new(plan.seed),
            random: Random::new(plan.seed ^ u64::from(thread) << 32),
            ledger,
            sweep: connections.len(),
            connections,
            woken: false,
            sweep_oldest: None,
            retries: VecDeque::new(),
            begun: 0,
            open: 0,
            connecting: 0,
            suspects: Vec::new(),
        })
    }

    /// Works until all is finished.
    pub(super) fn work(mut self) -> std::io::Result<()> {
        self.ledger.tell(WorkerEvent::Prepared);
        loop {
            let timeout = self.wait_timeout();
            self.client.wait(timeout)?;
            self.ledger.read_clock();
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
            if self.ledger.phase == Phase::Abort
                || self.ledger.phase == Phase::Finish && self.open == 0
            {
                break;
            }
        }
        self.give_up_the_rest();
        self.ledger.finish();
        Ok(())
    }

    /// The time until the next work.
    fn wait_timeout(&mut self) -> Option<Duration> {
        if self.sweep < self.connections.len() {
            return Some(Duration::ZERO);
        }
        let due = self.ledger.until_next_send();
        let look = (!self.suspects.is_empty()).then_some(SUSPECTS_LOOK);
        let retry = self.retries.front().filter(|_| self.ledger.phase.sends());
        let retry =
            retry.map(|&(moment, _)| Duration::from_nanos(moment.saturating_sub(self.ledger.now)));
        due.into_iter().chain(look).chain(retry).min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Received { connection, buffer, length, armed } => {
                self.received(connection, buffer, length, armed);
            }
            Event::Sent { connection, .. } => self.go_on(connection.slot() as usize),
            Event::SendFailed { connection, error } => {
                // The receive ends too.
                let index = connection.slot() as usize;
                self.connections[index].is_reset |= error.kind() == ErrorKind::ConnectionReset;
                self.go_on(index);
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

    /// Carries out the orders.
    fn obey(&mut self) {
        while let Some(order) = self.ledger.next_order() {
            match order {
                Order::Enter(phase) => self.enter(phase),
                Order::Report => {
                    let oldest = self.oldest();
                    self.ledger.report(oldest);
                }
                Order::Sweep => (self.sweep, self.sweep_oldest) = (0, None),
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
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
        if let Some(schedule) = &mut self.ledger.schedule {
            schedule.begin(self.ledger.orders.start());
            return;
        }
        for index in 0..self.connections.len() {
            match self.ledger.plan.mode {
                Mode::Churn => self.connect(index),
                Mode::PingPong | Mode::Stream | Mode::Idle => self.start_messages(index),
            }
        }
    }

    /// In an open loop: starts scheduled messages. A connection that lags behind is visited once,
    /// however many messages it has to send.
    fn start_scheduled(&mut self) {
        let (rank, count) = self.ledger.advance();
        for rank in rank..rank + count {
            let Some(schedule) = &self.ledger.schedule else { return };
            let index = schedule.connection(rank % self.connections.len() as u64);
            match (self.ledger.plan.mode, &self.connections[index].state) {
                (Mode::Churn, State::Closed) if !self.connections[index].is_resting => {
                    self.connect_promptly(index);
                }
                (Mode::Churn, _) => {}
                (Mode::PingPong | Mode::Stream | Mode::Idle, _) => self.start_promptly(index),
            }
        }
    }
}

/// The number and size of receive buffers: one message fits into a buffer if that is reasonable.
/// The kernel cycles through all buffers, so their number is small to keep them in the cache. Since
/// Linux 6.13 an iteration brings some 20 completions at a time. If it brings more than there are
/// buffers, the receives without a buffer wait. (64 bytes on 1,000 connections: 0.992 times the CPU
/// of 1,024 buffers, median of six paired runs, Linux 6.18.)
fn pool(plan: &Plan, share: u32) -> (u16, u32) {
    let bytes = if plan.target.transport() == Transport::UnixSeqpacket {
        // A receive brings one message, and a message that is too long must show as such.
        (plan.sizes.bytes_max() + 1).next_power_of_two().max(256)
    } else {
        let burst = plan.sizes.bytes_max().saturating_mul(plan.depth.min(16) as usize);
        burst.next_power_of_two().clamp(256, 64 << 10)
    };
    let count = (share as usize).next_power_of_two().clamp(64, BUFFERS_MAX);
    (count as u16, bytes as u32)
}
