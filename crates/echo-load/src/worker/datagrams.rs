//! The event loop of one thread over UDP or Unix datagram sockets: its sockets, one for each flow.
//!
//! The clock is read after each receive and before each send, so a latency may be reported too
//! long, by the time that this thread spent in the meantime, but never too short.
//!
//! Every message is resolved exactly once, whatever happens: see `account`.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use socket2::SockAddr;

use super::Task;
use super::ledger::{Ledger, Order};
use crate::arguments::Plan;
use crate::datagram::Format;
use crate::fault::{Detail, Fault, Kind, Origin};
use crate::flow::{Flow, Verdict};
use crate::measure::{Fate, Wait};
use crate::orders::{Phase, WorkerEvent};
use crate::pattern::Pattern;
use crate::proxy::{Ends, datagram_header};
use crate::size::Random;
use crate::udp::{self, Exchange};
use crate::unix;

mod account;
mod echoes;

/// The maximum number of sockets that one wait reports.
const EVENTS_MAX: usize = 256;
/// The number by which a wait reports that there are orders.
const WAKE: u64 = u64::MAX;
/// How long a flow waits after a send that failed, in nanoseconds: a machine without a route
/// refuses a million sends a second.
const RETRY: u64 = 10_000_000;
/// How long the sockets stay open after the last echo, in nanoseconds, so that a second echo of a
/// datagram is seen.
const LINGER: u64 = 50_000_000;
/// How often datagrams are checked for the timeout at the end.
const FINISH_LOOK: Duration = Duration::from_millis(10);

/// One thread of the load with datagrams.
pub(super) struct Worker {
    ledger: Ledger,
    server: SockAddr,
    exchange: Exchange,
    format: Format,
    random: Random,
    flows: Vec<Flow>,
    /// One for each flow; empty before the phase in which they are opened.
    sockets: Vec<OwnedFd>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    wake: Arc<EventFd>,
    /// Whether there are orders to read.
    woken: bool,
    /// Datagrams in flight, over all flows.
    in_flight: u64,
    /// When the last datagram that belongs to the run arrived, or was given up.
    last_at: u64,
    /// When the last correct echo arrived.
    last_echo_at: u64,
    /// When the newest message with an echo was sent.
    newest_echoed: u64,
    /// How long the server had been silent when the measured time ended, in nanoseconds; zero if it
    /// was not.
    silence: u64,
    /// Flows that send again after a failure, and when, in this order.
    retries: VecDeque<(u64, usize)>,
}

impl Worker {
    pub(super) fn new(task: Task) -> io::Result<Self> {
        let ledger = Ledger::new(&task);
        let share = task.share();
        let Task { plan, address: server, thread, wake, .. } = task;
        let mut flows: Vec<Flow> = Vec::new();
        flows.resize_with(share as usize, Flow::default);
        for (index, flow) in flows.iter_mut().enumerate() {
            flow.number = index as u64 * u64::from(plan.threads) + u64::from(thread);
        }
        if let Some(schedule) = &ledger.schedule {
            for rank in 0..u64::from(share) {
                flows[schedule.connection(rank)].rank = rank;
            }
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let (flow_count, bytes_max) = (plan.connections.into(), plan.sizes.bytes_max());
        Ok(Self {
            exchange: Exchange::new(&plan, server.as_socket()),
            format: Format::new(Pattern::new(plan.seed), flow_count, bytes_max, plan.verify),
            random: Random::new(plan.seed ^ u64::from(thread) << 32),
            ledger,
            server,
            flows,
            sockets: Vec::new(),
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            wake,
            woken: false,
            in_flight: 0,
            last_at: 0,
            last_echo_at: 0,
            newest_echoed: 0,
            silence: 0,
            retries: VecDeque::new(),
        })
    }

    /// Works until all is finished.
    pub(super) fn work(mut self) -> io::Result<()> {
        self.ledger.tell(WorkerEvent::Prepared);
        loop {
            let timeout = self.wait_timeout();
            self.wait(timeout)?;
            self.ledger.read_clock();
            for index in 0..self.events.len() {
                let event = self.events[index];
                self.handle(event)?;
            }
            self.start_scheduled();
            self.send_again();
            // Last, so that a report includes the whole iteration.
            if mem::take(&mut self.woken) {
                self.obey();
            }
            match self.ledger.phase {
                Phase::Abort => break,
                Phase::Finish => {
                    self.sweep();
                    if self.in_flight == 0 && self.ledger.now >= self.last_at + LINGER {
                        break;
                    }
                }
                Phase::Prepare | Phase::Connect | Phase::WarmUp | Phase::Run => {}
            }
        }
        self.give_up_the_rest();
        self.ledger.finish();
        Ok(())
    }

    /// The time until the next work.
    fn wait_timeout(&mut self) -> Option<Duration> {
        let due = self.ledger.until_next_send();
        let finish = (self.ledger.phase == Phase::Finish).then_some(FINISH_LOOK);
        let retry = self.retries.front().filter(|_| self.ledger.phase.sends());
        let now = self.ledger.now;
        let retry = retry.map(|&(moment, _)| Duration::from_nanos(moment.saturating_sub(now)));
        due.into_iter().chain(finish).chain(retry).min()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn handle(&mut self, event: epoll::Event) -> io::Result<()> {
        let (number, flags) = (event.data.u64(), event.flags);
        if number == WAKE {
            // It fails only if it has been read already.
            let _ = self.wake.read();
            self.woken = true;
            return Ok(());
        }
        let index = number as usize;
        if flags.contains(EventFlags::OUT) {
            self.unblock(index)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::ERR) {
            self.receive(index);
        }
        Ok(())
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
                Order::Sweep => self.sweep(),
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        match phase {
            Phase::Connect => match self.open() {
                Ok(()) => self.ledger.tell(WorkerEvent::Ready),
                Err(why) => self.ledger.tell(WorkerEvent::Refused(why)),
            },
            // This phase is entered even without a warm-up.
            Phase::WarmUp => self.begin_load(),
            Phase::Run => self.begin_window(),
            Phase::Finish => self.end_window(),
            Phase::Prepare | Phase::Abort => {}
        }
    }

    /// Opens a socket for each flow.
    fn open(&mut self) -> Result<(), String> {
        let plan = &self.ledger.plan;
        let sources = &plan.sources;
        for flow in &mut self.flows {
            let source: Option<IpAddr> = match sources.len() {
                0 => None,
                count => Some(sources[(flow.number % count as u64) as usize]),
            };
            let opened = match self.server.as_socket() {
                Some(server) => open_udp(plan, flow, server, source),
                None => unix::open(&self.server),
            };
            let opened = opened.and_then(|socket| {
                let data = EventData::new_u64(self.sockets.len() as u64);
                epoll::add(&self.epoll, &socket, data, EventFlags::IN)?;
                Ok(socket)
            });
            self.sockets.push(opened.map_err(|error| {
                let remedy = match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EADDRINUSE) => "; the ports are exhausted: see --source",
                    Some(Errno::EADDRNOTAVAIL) => "; the source address is not local",
                    Some(Errno::EMFILE) => "; raise the limit on open files (ulimit -n)",
                    _ => "",
                };
                format!("{error}{remedy}")
            })?);
        }
        let opened = self.sockets.len() as u64;
        self.ledger.measured.connected += opened;
        self.ledger.orders.connected.fetch_add(opened, Ordering::Relaxed);
        Ok(())
    }

    fn begin_load(&mut self) {
        if let Some(schedule) = &mut self.ledger.schedule {
            schedule.begin(self.ledger.orders.start());
            return;
        }
        for index in 0..self.flows.len() {
            self.ledger.read_clock();
            self.start_messages(index);
        }
    }

    /// In an open loop: starts scheduled messages. A flow that lags behind is visited once, however
    /// many messages it has to send.
    fn start_scheduled(&mut self) {
        let (rank, count) = self.ledger.advance();
        for rank in rank..rank + count {
            let Some(schedule) = &self.ledger.schedule else { return };
            let index = schedule.connection(rank % self.flows.len() as u64);
            self.start_promptly(index);
        }
    }
}

/// Opens the socket of a flow over UDP, and writes the PROXY header of its datagrams.
fn open_udp(
    plan: &Plan,
    flow: &mut Flow,
    server: SocketAddr,
    source: Option<IpAddr>,
) -> io::Result<OwnedFd> {
    let socket = udp::open(plan, server, source)?;
    let local = Some(udp::local_address(&socket, server)?);
    flow.header = datagram_header(plan, Ends { number: flow.number, local, server: Some(server) });
    Ok(socket.into())
}
