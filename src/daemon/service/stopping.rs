//! A stop, from the signal to the drain or the handover.
//!
//! 1. *Asking*: a SIGTERM may be part of a restart. Our units announce which it is; otherwise only
//!    systemd knows ([`job`]), and the daemon serves as before while it queries systemd. Without a
//!    service manager this step is skipped.
//! 2. *Leaving*, if it is a stop and `timeouts.drain-lead` is set: the daemon is no longer ready,
//!    so that load balancers take notice, but still accepts.
//! 3. *Settling*: the listening sockets that end with the daemon refuse new connections, and
//!    handshakes in progress are completed (`listen::handshakes`). This takes a few milliseconds,
//!    unless there are such handshakes.
//! 4. The workers are ordered to accept the connections that wait at those sockets and close the
//!    sockets, and to drain or to quiesce. Only then is the service manager notified.
//!
//! A signal that comes before the daemon is ready stays pending until then: systemd merges a
//! restart into a start that is in progress, and sends SIGTERM without `ExecStop=`.
//!
//! A second signal skips what is left of 1 to 3; during 4 it ends the process. The time for the
//! drain begins with the signal, or with the end of the lead; and all waits for the service manager
//! together have one limit ([`MANAGER_TIMEOUT`]).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Failure, LINGER, Order, STOP_MARGIN, Service, Stage};
use crate::daemon::job::{self, Query};
use crate::daemon::life::Phase;
use crate::daemon::restart::{self, Ending};
use crate::daemon::{report, workers};
use crate::listen::{self, HANDSHAKE_TIMEOUT};
use crate::logging::events;
use crate::systemd::bus::Unit;
use echo_core::command::Command;
use echo_core::op::{ListenerId, Timestamp};
use echo_ring::{ListeningSocket, Owner, Transport};

/// How long a stop waits for the system bus, at most and at least. In between it is half of
/// `timeouts.drain`, of which it is a part.
const ASK_TIMEOUT_MAX: Duration = Duration::from_secs(5);
const ASK_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// How long after the signal all waits for the service manager end. With the default drain and the
/// time for its last connections this is less than the unit's `TimeoutStopSec=30s`. An unresponsive
/// service manager therefore costs no connection its drain.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(12);
/// How long the last query to systemd may take.
const LAST_QUERY_TIMEOUT: Duration = Duration::from_millis(200);
/// How often handshakes in progress are queried…
const HANDSHAKES_LOOK: Duration = Duration::from_millis(5);
/// …but for at most this fraction of the time: with many connections a query takes longer.
const HANDSHAKES_LOAD_DIVISOR: u32 = 4;
/// This many consecutive queries must find none: a single one may miss a SYN that another CPU was
/// processing when new connections began to be refused.
const HANDSHAKES_LOOKS: u32 = 2;

/// What follows after settling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Drain,
    HandOver,
}

/// New connections are refused, and handshakes in progress are being completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settling {
    goal: Goal,
    until: Instant,
    /// When to query again.
    pub(super) next: Instant,
    /// Consecutive queries that found none.
    clean: u32,
}

/// The state of a stop.
#[derive(Default)]
pub(super) struct Stop {
    /// When the time for the drain started.
    drain_since: Option<Instant>,
    /// The query to systemd in progress.
    query: Option<Query>,
    /// The names of listening sockets that systemd closes after the daemon ends.
    ending_names: Vec<String>,
    /// True exactly when the service manager has been notified of the stop.
    pub(super) is_told: bool,
}

impl Stop {
    /// When the wait for an answer ends.
    pub(super) fn answer_until(&self) -> Option<Instant> {
        self.query.as_ref().map(|query| query.until)
    }
}

impl Service<'_> {
    pub(super) fn handle_signal(&mut self) -> Result<Order, Failure> {
        if self.stage == Stage::Starting {
            // Ready, it can tell a restart from a stop.
            return Ok(Order::GoOn);
        }
        let signal = self.signals.ending.read_signal();
        let signal = signal.map_err(|errno| Failure::System("read a signal", errno.into()))?;
        let Some(signal) = signal else { return Ok(Order::GoOn) };
        match self.stage {
            Stage::Draining | Stage::HandingOver => {
                log::warn!("second signal: ending at once");
                return Ok(Order::EndAtOnce);
            }
            Stage::Settling(Settling { goal, .. }) => self.finish_settling(goal),
            Stage::Starting => unreachable!("no signal is read before the daemon is ready"),
            Stage::Asking | Stage::Leaving { .. } => {
                self.begin_stop();
                self.stop.drain_since = Some(Instant::now());
                self.settle(Goal::Drain);
            }
            // SIGINT comes from a terminal, not from a service manager.
            Stage::Ready
                if self.notifier.has_manager() && signal.ssi_signo == Signal::SIGTERM as u32 =>
            {
                match restart::announced(&self.signals.announcements) {
                    Some(Ending::Restart) => {
                        self.begin_stop();
                        self.settle(Goal::HandOver);
                    }
                    Some(Ending::Stop) => {
                        self.leave();
                        self.ask_about_sockets();
                    }
                    None => self.ask(),
                }
            }
            Stage::Ready => self.leave(),
        }
        Ok(Order::GoOn)
    }

    /// Handles answers and deadlines; to be called in each iteration of the main loop.
    pub(super) fn advance_stop(&mut self, now: Instant) {
        if let Some(answer) = self.stop.query.as_ref().and_then(|query| query.answer(now)) {
            self.stop.query = None;
            self.handle_answer(&answer);
        }
        match self.stage {
            Stage::Leaving { until } if now >= until => {
                self.stop.drain_since = Some(now);
                self.settle(Goal::Drain);
            }
            Stage::Settling(settling) if now >= settling.next => self.advance_settling(settling),
            _ => {}
        }
    }

    fn begin_stop(&mut self) {
        let now = Instant::now();
        if self.stop.drain_since.is_none() {
            self.stop.drain_since = Some(now);
            self.notifier.limit_waits(now + MANAGER_TIMEOUT);
        }
    }

    fn ask(&mut self) {
        self.begin_stop();
        let timeout = self.config.timeouts.drain / 2;
        let timeout = timeout.clamp(ASK_TIMEOUT_MIN, ASK_TIMEOUT_MAX);
        match Query::ask(&self.waker, timeout) {
            Ok(query) => {
                self.stop.query = Some(query);
                self.stage = Stage::Asking;
            }
            Err(error) => {
                log::warn!("cannot query whether this is a restart: {error}; draining");
                self.leave();
            }
        }
    }

    fn handle_answer(&mut self, answer: &io::Result<Unit>) {
        if let Ok(unit) = answer {
            self.stop.ending_names.clone_from(&unit.ending_sockets);
        }
        match self.stage {
            Stage::Asking => {
                let connections = workers::total(&self.workers).connections;
                if job::is_restart(answer, connections) {
                    self.settle(Goal::HandOver);
                } else {
                    self.leave();
                }
            }
            Stage::Draining => self.end_listeners(),
            Stage::Starting
            | Stage::Ready
            | Stage::Leaving { .. }
            | Stage::Settling(_)
            | Stage::HandingOver => {}
        }
    }

    /// Starts a stop: keeps accepting for the lead time, so that load balancers take notice.
    pub(super) fn leave(&mut self) {
        self.begin_stop();
        let lead = self.config.timeouts.drain_lead;
        if lead.is_zero() {
            return self.settle(Goal::Drain);
        }
        self.stage = Stage::Leaving { until: Instant::now() + lead };
        self.life.set(Phase::Lead);
        self.status = report::leaving(&workers::total(&self.workers));
        self.tell_of_stop();
        self.notifier.extend_timeout(lead + self.drain_time() + STOP_MARGIN);
        log::info!(
            "leaving: no longer ready, still accepting for {}s; a second signal starts the drain",
            lead.as_secs_f64()
        );
    }

    fn settle(&mut self, goal: Goal) {
        if goal == Goal::Drain {
            self.life.set(Phase::Draining);
        }
        self.refuse_new_connections(goal);
        let now = Instant::now();
        let (until, next) = (now + HANDSHAKE_TIMEOUT, now);
        self.stage = Stage::Settling(Settling { goal, until, next, clean: 0 });
        if !self.ending().any(|(_, listener)| listener.transport == Transport::Tcp) {
            self.finish_settling(goal);
        }
    }

    fn advance_settling(&mut self, settling: Settling) {
        let Settling { goal, until, clean, .. } = settling;
        let began = Instant::now();
        let (clean, pause) = match self.is_any_half_open() {
            Some(open) => (if open { 0 } else { clean + 1 }, HANDSHAKES_LOOK),
            // Unknown: wait for the full time.
            None => (0, HANDSHAKE_TIMEOUT),
        };
        let now = Instant::now();
        if now >= until || clean >= HANDSHAKES_LOOKS {
            return self.finish_settling(goal);
        }
        let next = now + pause.max((now - began) * HANDSHAKES_LOAD_DIVISOR);
        self.stage = Stage::Settling(Settling { next: next.min(until), clean, ..settling });
    }

    /// Whether a handshake with an ending listener is in progress, if that is known.
    fn is_any_half_open(&self) -> Option<bool> {
        for (_, listener) in self.ending() {
            match (listener.owner, listener.transport) {
                (_, Transport::Unix | Transport::UnixSeqpacket) => {}
                // It may belong to another network namespace, which cannot be queried.
                (Owner::Another, Transport::Tcp) => return None,
                (Owner::Us, Transport::Tcp) => {
                    if listen::is_any_half_open(listener.socket.as_fd()).ok()? {
                        return Some(true);
                    }
                }
            }
        }
        Some(false)
    }

    fn finish_settling(&mut self, goal: Goal) {
        // The workers are about to close their sockets.
        self.plan.kernel_drops.update();
        match goal {
            Goal::Drain => self.drain(),
            Goal::HandOver => self.quiesce(),
        }
    }

    /// The maximum duration of a drain, including the time that its last connections have to end.
    fn drain_time(&self) -> Duration {
        self.config.timeouts.drain + LINGER
    }

    pub(super) fn drain(&mut self) {
        let now = Instant::now();
        // The time of a failed handover does not count.
        let since = match (self.stage, self.stop.drain_since) {
            (Stage::Settling(_), Some(since)) => since,
            _ => now,
        };
        let timeout = self.config.timeouts.drain;
        let deadline = (since + timeout).saturating_duration_since(self.plan.origin);
        let stats = workers::total(&self.workers);
        self.stage = Stage::Draining;
        self.life.set(Phase::Draining);
        self.end_listeners();
        for worker in &self.workers {
            worker.drain(Timestamp(deadline.as_millis() as u64));
        }
        self.status = report::draining(&stats);
        self.tell_of_stop();
        self.notifier.extend_timeout(self.drain_time() + STOP_MARGIN);
        log::info!(
            message_id = events::DRAINING, connections = stats.connections;
            "draining: {}, for at most {}s, then {}s for the last ones to end",
            report::count(stats.connections, "connection"),
            timeout.as_secs_f64(),
            LINGER.as_secs_f64()
        );
    }

    /// Sends the status to the service manager, and the notification of the stop if it is the
    /// first.
    pub(super) fn tell_of_stop(&mut self) {
        if std::mem::replace(&mut self.stop.is_told, true) {
            self.notifier.status(&self.status);
        } else {
            self.notifier.stopping(&self.status);
        }
    }

    /// The listeners that end with the daemon: its own, and those that systemd is about to close.
    fn ending(&self) -> impl Iterator<Item = (ListenerId, &ListeningSocket)> {
        let all = (0..).map(ListenerId).zip(self.plan.listeners.iter());
        all.filter(|(_, listener)| listener.ending.load(Ordering::Relaxed))
    }

    /// Makes the listeners that end with the daemon refuse new connections.
    fn refuse_new_connections(&self, goal: Goal) {
        for (listener, name) in self.plan.listeners.iter().zip(&self.plan.names) {
            let ends = listener.owner == Owner::Us || self.stop.ending_names.contains(name);
            if !ends || listener.ending.swap(true, Ordering::Release) {
                continue;
            }
            let socket = listener.socket.as_fd();
            let closed = match (listener.transport, listener.owner, goal) {
                // The only way would be to close it, which would end the socket of systemd.
                (Transport::Unix | Transport::UnixSeqpacket, Owner::Another, _) => continue,
                (Transport::Unix | Transport::UnixSeqpacket, Owner::Us, _) => listener.turn_away(),
                (Transport::Tcp, Owner::Another, _) => listen::refuse_new(socket),
                // Clients retransmit their SYN, and the next process may accept them then.
                (Transport::Tcp, Owner::Us, Goal::HandOver) => {
                    listen::refuse_new(socket).or_else(|_| listener.turn_away())
                }
                (Transport::Tcp, Owner::Us, Goal::Drain) => {
                    listener.turn_away().or_else(|_| listen::refuse_new(socket))
                }
            };
            if let Err(error) = closed {
                log::warn!(
                    "{name}: clients that connect in the last moment may be reset: the kernel \
                     does not permit refusing new connections before the socket closes: {error}"
                );
            }
        }
    }

    /// Orders the workers to accept the connections that wait at listeners that end with the
    /// daemon. Each call repeats this, because more may have come to inherited listeners in the
    /// meantime.
    pub(super) fn end_listeners(&self) {
        self.refuse_new_connections(Goal::Drain);
        let ending: Arc<[ListenerId]> = self.ending().map(|(listener, _)| listener).collect();
        if ending.is_empty() {
            return;
        }
        for worker in &self.workers {
            worker.post(Command::EndListeners(Arc::clone(&ending)));
        }
    }

    /// Runs every second of a drain. The socket units may be stopped after the job of the service
    /// has begun (`systemctl stop` handles one unit after the other).
    pub(super) fn look_after_listeners(&mut self) {
        if !self.stop.ending_names.is_empty() {
            self.end_listeners();
        }
        self.ask_about_sockets();
    }

    fn ask_about_sockets(&mut self) {
        let inherited = self.plan.listeners.iter().any(|it| it.owner == Owner::Another);
        if inherited && self.notifier.has_manager() && self.stop.query.is_none() {
            // A query that fails is repeated a second later.
            self.stop.query = Query::ask(&self.waker, ASK_TIMEOUT_MAX).ok();
        }
    }

    /// The last step: if systemd no longer intends to close a socket, it accepts new connections
    /// again.
    pub(super) fn reopen_kept_listeners(&self) {
        let is_theirs = |listener: &ListeningSocket| {
            listener.owner == Owner::Another && listener.transport == Transport::Tcp
        };
        if !self.ending().any(|(_, listener)| is_theirs(listener)) {
            return;
        }
        let Ok(unit) = job::ask_now(LAST_QUERY_TIMEOUT) else { return };
        for (index, listener) in self.ending() {
            let name = &self.plan.names[usize::from(index.0)];
            if is_theirs(listener) && !unit.ending_sockets.contains(name) {
                listen::admit_new(listener.socket.as_fd());
            }
        }
    }
}
