//! The cost of the limits for each source, per datagram: the core of a worker and the daemon's rate
//! limiter, with a fake kernel.
//!
//! ```text
//! cargo bench --bench buckets
//! ```
//!
//! Each worker has a thread and gets datagrams of 64 bytes in turns of 32, as from a ring. All
//! workers see the same sources, which together send half of what they may; the clock is that of
//! the datagrams, so that it does not matter how fast the machine is. Shown is the CPU time of a
//! datagram in the core, without limits and with them, and how often a worker had to visit a
//! bucket. The kernel needs some four microseconds for the same datagram.

#![allow(missing_docs, reason = "a program")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use echo_core::admission::{SourceKey, Unlimited};
use echo_core::budget::Budget;
use echo_core::datagram::op as datagram;
use echo_core::datagram::{
    Amount, Datagram, DatagramParameters, DropReason, Endpoint, RateLimiter, Rates,
    SocketParameters,
};
use echo_core::fullness::Fullness;
use echo_core::id::ConnectionId;
use echo_core::kernel::{Kernel, Wake};
use echo_core::limits::SWEEP_SLOTS_MAX;
use echo_core::op::{BufferPlan, Event, Op};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};
use echo_core::peer::PeerAddr;
use echo_core::worker::Worker;
use echo_uring::rate_limiter::DatagramLimiter;

/// Buffers of a worker, and datagrams of a turn.
const BATCH: u16 = 32;
/// Datagrams of a worker that count.
const DATAGRAMS: u64 = 1_000_000;
/// Measurements of each cell; the least one counts, since other programs use the machine as well.
const TRIES: usize = 5;
/// The default limits.
const RATES: Rates = Rates { datagrams: Some(10_000), bytes: Some(16 << 20) };
/// What each source sends, over all workers: half of that.
const SENT_PER_SECOND: u64 = 5_000;

/// A limiter that counts its visits.
#[derive(Debug, Default)]
struct Counted {
    limiter: DatagramLimiter,
    visits: AtomicU64,
}

impl RateLimiter for Counted {
    fn take(
        &self,
        now_us: u64,
        key: SourceKey,
        rates: &Rates,
        wanted: Amount,
        least: Amount,
    ) -> Result<Amount, DropReason> {
        self.visits.fetch_add(1, Ordering::Relaxed);
        self.limiter.take(now_us, key, rates, wanted, least)
    }

    fn give_back(&self, key: SourceKey, rates: &Rates, unused: Amount) {
        self.limiter.give_back(key, rates, unused);
    }
}

/// Memory for bytes of connections, of which there are none.
#[derive(Debug)]
struct Nothing;

impl Budget for Nothing {
    fn block_size(&self) -> u32 {
        1
    }

    fn take(&self, _: u32) -> bool {
        false
    }

    fn take_beyond(&self, _: u32) -> bool {
        false
    }
}

/// Brings a batch with each turn, and takes every reply.
struct Traffic {
    sources: u32,
    /// Datagrams of all workers so far: their clock.
    all: Arc<AtomicU64>,
    clock_us: u64,
    brought: u64,
    free: Vec<u16>,
    events: VecDeque<datagram::Event>,
}

impl Kernel for Traffic {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.clock_us
    }

    fn peer_of(&self, _: ConnectionId) -> PeerAddr {
        unreachable!("there are no connections")
    }

    // Nothing of this concerns datagrams.
    fn submit(&mut self, ops: &mut Vec<Op>) {
        ops.clear();
    }

    fn turn(&mut self, _: Wake, _: &mut Vec<Event>) -> Result<(), Infallible> {
        let all = self.all.fetch_add(self.free.len() as u64, Ordering::Relaxed);
        self.clock_us = all * 1_000_000 / (SENT_PER_SECOND * u64::from(self.sources));
        while let Some(buffer) = self.free.pop() {
            let source = (self.brought % u64::from(self.sources)) as u32;
            let address = PeerAddr::Ipv4((0x0a00_0000 + source).to_be_bytes());
            let datagram = Datagram {
                source: Endpoint { address, port: 40_000 },
                destination: PeerAddr::Unknown,
                local: PeerAddr::Unknown,
                length: 64,
                header: datagram::Header::Absent,
                segment: 0,
                truncated: false,
                own: false,
            };
            self.brought += 1;
            self.events.push_back(datagram::Event::Received {
                socket: datagram::SocketId(0),
                buffer: datagram::BufferId(buffer),
                datagram,
                armed: true,
            });
        }
        Ok(())
    }

    fn take_datagrams(&mut self, events: &mut Vec<datagram::Event>) {
        events.extend(self.events.drain(..));
    }

    fn submit_datagrams(&mut self, ops: &mut Vec<datagram::Op>) {
        for op in ops.drain(..) {
            match op {
                datagram::Op::Reply { buffer } => {
                    self.events.push_back(datagram::Event::Replied { buffer });
                }
                datagram::Op::Recycle { buffer } => self.free.push(buffer.0),
                datagram::Op::Receive { .. } => {}
                other => unreachable!("{other:?}"),
            }
        }
    }
}

fn worker(limiter: Arc<dyn RateLimiter>, rates: Rates) -> Worker {
    let own = Endpoint { address: PeerAddr::Ipv4([192, 0, 2, 1]), port: 7 };
    Worker::new(Parameters {
        listeners: 0,
        records: Vec::new(),
        buffers: BufferPlan::new([1, 1], [4 << 10, 256 << 10]),
        multishot: true,
        deferral: Deferral::default(),
        sweep_slots_max: SWEEP_SLOTS_MAX,
        linger_timeout: 5_000,
        preface_timeout: 3_000,
        proxies: Arc::new([]),
        identities: Arc::new([]),
        limiter: Arc::new(Unlimited),
        budget: Arc::new(Nothing),
        fullness: Arc::new(Fullness::new(1)),
        runtime_limits: RuntimeLimits { datagram_rates: rates, ..RuntimeLimits::unlimited(1) },
    })
    .with_datagrams(DatagramParameters {
        sockets: vec![SocketParameters { own, listener: 0, outlives_us: false, identifies: false }],
        listeners: 1,
        buffers: BATCH,
        proxies: Arc::new([]),
        limiter,
    })
}

/// CPU time of this thread, in nanoseconds (schedstat, lagging by a tick at most).
fn cpu_time() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("procfs");
    let first = text.split(' ').next().and_then(|field| field.parse().ok());
    first.expect("the first field is the time")
}

/// Nanoseconds and visits of a bucket for each datagram, and the share that was answered.
fn measure(workers: u64, sources: u32, rates: Rates) -> (f64, f64, f64) {
    let limiter = Arc::new(Counted::default());
    let all = Arc::new(AtomicU64::new(0));
    let (spent, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut worker = worker(Arc::clone(&limiter) as Arc<dyn RateLimiter>, rates);
                let mut traffic = Traffic {
                    sources,
                    all: Arc::clone(&all),
                    clock_us: 0,
                    brought: 0,
                    free: (0..BATCH).collect(),
                    events: VecDeque::new(),
                };
                let Ok(()) = worker.start(&mut traffic);
                let before = cpu_time();
                while traffic.brought < DATAGRAMS {
                    let Ok(_) = worker.step(&mut traffic, []);
                }
                spent.fetch_add(cpu_time() - before, Ordering::Relaxed);
                let out = worker.datagram_traffic()[0].datagrams_out;
                answered.fetch_add(out, Ordering::Relaxed);
            });
        }
    });
    let each = |sum: u64| sum as f64 / (workers * DATAGRAMS) as f64;
    let visits = limiter.visits.load(Ordering::Relaxed);
    (each(spent.into_inner()), each(visits), each(answered.into_inner()))
}

/// The least of several measurements.
fn best(workers: u64, sources: u32, rates: Rates) -> (f64, f64, f64) {
    let tries = (0..TRIES).map(|_| measure(workers, sources, rates));
    tries.min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are several")
}

fn main() {
    println!(
        "| workers | sources | without limits | with limits | bucket visits for 1,000 | answered |"
    );
    println!("|---|---|---|---|---|---|");
    for workers in [1, 8] {
        for sources in [1, 64, 1_000, 10_000] {
            let (without, _, _) = best(workers, sources, Rates::default());
            let (with, visits, answered) = best(workers, sources, RATES);
            println!(
                "| {workers} | {sources} | {without:.0} ns | {with:.0} ns | {:.1} | {:.1} % |",
                visits * 1e3,
                answered * 1e2
            );
        }
    }
}
