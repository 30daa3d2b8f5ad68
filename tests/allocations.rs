//! A message costs no allocation: the loop of a worker runs here, on a real ring, under an
//! allocator that counts what its thread asks for.
//!
//! The core, the driver and the loop are those of the daemon; only the threads around them are not.
//! New connections, stalled ones and growing tables may allocate. So each kind of traffic is run
//! once to warm up and then again, counted. A batch may still be larger than all before, and a list
//! grow for it once, so the best of three counts. An allocation for each message would show in all
//! three.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use echo_core::admission::Unlimited;
use echo_core::command::Command;
use echo_core::fullness::Fullness;
use echo_core::limits::SWEEP_SLOTS_MAX;
use echo_core::op::{BufferPlan, Timestamp};
use echo_core::parameters::{Deferral, Parameters, RuntimeLimits};
use echo_core::stats::Stats;
use echo_core::worker::Worker;
use echo_ring::{Driver, ListeningSocket, Settings, SpillMemory, Transport, probe};
use echo_uring::worker::{self, Shared};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::SockRef;

/// The pool of a worker, as the daemon sets it up by default.
const BUFFERS: BufferPlan = BufferPlan::new([256, 4], [4 << 10, 256 << 10]);

/// Counts what threads ask for that have [`COUNTED`] set.
struct Counting;

static REQUESTS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Initialised without code, so that looking at it allocates nothing.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count_request() {
    if COUNTED.get() {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on as it came to the system's allocator, which keeps the contract;
// counting touches an atomic and a cell of this thread only, and allocates nothing.
#[allow(unsafe_code, reason = "an allocator can be given to a program in no other way")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_request();
        // SAFETY: the caller's promise about `layout`, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_request();
        // SAFETY: the caller's promise about `layout`, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, length: usize) -> *mut u8 {
        count_request();
        // SAFETY: `memory` is the system allocator's, as is all that this one hands out; the rest
        // is the caller's promise, passed on.
        unsafe { System.realloc(memory, layout, length) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` is the system allocator's, as is all that this one hands out.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Who serves, and what for.
struct Service {
    listener: TcpListener,
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
    origin: Instant,
}

impl Service {
    fn new() -> Self {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Connections inherit it, as the daemon's do.
        SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
        Self { listener, shared: Arc::default(), wake: Arc::new(wake), origin: Instant::now() }
    }

    /// What a worker does, all its life; `on_ready` as in the daemon.
    fn work(&self, multishot: bool, on_ready: impl FnOnce()) -> Stats {
        COUNTED.set(true);
        let listener = OwnedFd::from(self.listener.try_clone().unwrap());
        let listener = ListeningSocket::of(listener, Transport::Tcp);
        let memory = SpillMemory::new(64 << 20);
        let mut driver = Driver::new(Settings {
            datagram_sockets: Vec::new(),
            listeners: Arc::from([listener]),
            wake: Arc::clone(&self.wake),
            buffers: BUFFERS,
            worker: 0,
            origin: self.origin,
            connections_max: 0,
            memory: Arc::clone(&memory),
            busy_poll: None,
        })
        .unwrap();
        let mut core = Worker::new(Parameters {
            listeners: 1,
            records: Vec::new(),
            buffers: BUFFERS,
            multishot,
            deferral: Deferral::default(),
            sweep_slots_max: SWEEP_SLOTS_MAX,
            linger_timeout: 5_000,
            preface_timeout: 3_000,
            proxies: Arc::new([]),
            identities: Arc::new([]),
            limiter: Arc::new(Unlimited),
            budget: memory,
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits {
                idle_timeout: Some(3_600_000),
                stall_timeout: Some(60_000),
                ..RuntimeLimits::unlimited(1_000)
            },
        });
        worker::run(&mut driver, &mut core, &self.shared, on_ready, None).unwrap();
        let stats = core.stats();
        COUNTED.set(false);
        stats
    }

    fn end(&self) {
        let now = u64::try_from(self.origin.elapsed().as_millis()).unwrap();
        self.shared.post(Command::Drain { deadline: Timestamp(now) });
        self.wake.write(1).unwrap();
    }
}

/// A kind of traffic: connections, each with a number of messages of a length in flight, repeated a
/// number of times.
struct Traffic {
    name: &'static str,
    connections: usize,
    message: usize,
    in_flight: usize,
    times: usize,
}

const TRAFFIC: [Traffic; 4] = [
    Traffic { name: "one line", connections: 1, message: 64, in_flight: 1, times: 2_000 },
    Traffic { name: "64 lines", connections: 64, message: 64, in_flight: 1, times: 100 },
    Traffic { name: "pipelines", connections: 64, message: 64, in_flight: 16, times: 100 },
    Traffic { name: "16 KiB", connections: 16, message: 16 << 10, in_flight: 1, times: 100 },
];

impl Traffic {
    fn connect(&self, service: &Service) -> Vec<TcpStream> {
        let connect = |_| {
            let stream = TcpStream::connect(service.listener.local_addr().unwrap()).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        };
        (0..self.connections).map(connect).collect()
    }

    /// Runs it once; returns the number of messages.
    fn run(&self, streams: &mut [TcpStream]) -> usize {
        let sent: Vec<u8> = (0..self.message * self.in_flight).map(|byte| byte as u8).collect();
        let mut received = vec![0; sent.len()];
        for _ in 0..self.times {
            for stream in &mut *streams {
                stream.write_all(&sent).unwrap();
            }
            for stream in &mut *streams {
                stream.read_exact(&mut received).unwrap();
                assert_eq!(received, sent, "{}", self.name);
            }
        }
        self.times * self.connections * self.in_flight
    }
}

fn judge(multishot: bool) {
    let service = Service::new();
    let (sender, ready) = channel();
    let (found, stats) = thread::scope(|scope| {
        let worker = scope.spawn(|| service.work(multishot, || sender.send(()).unwrap()));
        ready.recv().unwrap();
        let found: Vec<(&str, usize, u64)> = TRAFFIC
            .iter()
            .map(|traffic| {
                let mut streams = traffic.connect(&service);
                let messages = traffic.run(&mut streams);
                let requests = |_| {
                    let before = REQUESTS.load(Ordering::Relaxed);
                    traffic.run(&mut streams);
                    REQUESTS.load(Ordering::Relaxed) - before
                };
                (traffic.name, messages, (0..3).map(requests).min().unwrap())
            })
            .collect();
        service.end();
        (found, worker.join().unwrap())
    });
    // Otherwise the counter counts nothing at all: setting up asks for memory.
    assert!(REQUESTS.load(Ordering::Relaxed) > 0, "the counter is blind");
    let accepted = TRAFFIC.iter().map(|traffic| traffic.connections as u64).sum::<u64>();
    assert_eq!(stats.traffic.accepted, accepted, "another client was served");
    for (name, messages, requests) in found {
        println!("multishot {multishot}, {name}: {requests} allocations for {messages} messages");
        assert_eq!(
            requests, 0,
            "multishot {multishot}, {name}: allocations for {messages} messages"
        );
    }
}

/// One test, for there is one counter.
#[test]
fn a_message_costs_no_allocation() {
    judge(false);
    if probe().unwrap().bounded_multishot_receive {
        judge(true);
    } else {
        println!("skipped: this kernel cannot bound a multishot receive");
    }
}
