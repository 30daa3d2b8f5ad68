//! The workers: one thread, one ring and one core each; what they share, and how they get orders.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::accepting::Division;
use super::admission_policy::admission_policy;
use super::datagrams::{KernelDrops, Owned};
use crate::capacity;
use crate::config::{Config, Tcp, UnixKind, Workers};
use crate::handover::ConnectionTransfer;
use crate::listen::Family;
use crate::metrics::Shown;
use crate::rate_limiter::DatagramLimiter;
use crate::source_limiter::SourceLimiter;
use crate::worker::{self, Outcome, Shared};
use echo_core::admission::{IpSet, Limiter};
use echo_core::command::Command;
use echo_core::datagram::{DatagramParameters, GuardPolicy, RateLimiter, Rates};
use echo_core::fullness::Fullness;
use echo_core::kernel::Kernel;
use echo_core::limits;
use echo_core::op::Budget;
use echo_core::op::{BufferClass, BufferPlan, ListenerId, Timestamp, TransferPhase};
use echo_core::parameters::{AfterIdentity, Deferral, Keepalive, Parameters, RuntimeLimits};
use echo_core::stats::Stats;
use echo_core::worker::Worker as Core;
use echo_ring::{
    ConnectionParts, DATAGRAM_BUFFERS, Driver, Features, ListeningSocket, Owner, PreparedRing,
    Settings, SpillMemory, Transport, Unusable, affinity, prepare_rings,
};

/// Bytes of a small buffer: it holds a typical message (a TLS record), and the unused part of a
/// buffer is never touched.
const SMALL_BUFFER_SIZE: u32 = 16 << 10;
/// The large buffers of a worker. Beyond 256 KiB bulk transfers do not get cheaper. Their number is
/// how many connections may transfer bulk at the same moment; others wait for one of the next
/// turns, or are relayed while peers that do not read hold half of them.
/// They are a stack, so buffers that the traffic does not need are never touched.
const LARGE_BUFFERS: BufferClass = BufferClass { count: 32, size: 256 << 10 };

/// Bytes of bulk that a turn receives and sends: what a small message may have to wait for. With
/// twice as many, bulk gains nothing.
const BULK_QUANTUM: u32 = 512 << 10;

/// A message from a worker to the main thread.
#[derive(Debug)]
pub(super) enum WorkerEvent {
    /// Its listeners are armed.
    Ready,
    /// It could not start.
    Unusable(Unusable),
    /// It could not be pinned to its CPU; contains the warning.
    Unpinned(String),
    /// It has no capacity left, or has some again.
    Full(bool),
    /// Its connections are quiescent and exported.
    Quiescent(Vec<ConnectionTransfer>),
    /// Its drain is over, or its connections are handed over; contains the last counters.
    Done(Box<Stats>),
    /// Its ring failed.
    Broken(String),
    /// It panicked.
    Panicked,
}

/// The way from workers to the main thread: a queue, and a descriptor that becomes readable.
#[derive(Clone)]
pub(super) struct EventSender {
    pub(super) sender: Sender<(usize, WorkerEvent)>,
    pub(super) waker: Arc<EventFd>,
}

impl EventSender {
    fn send(&self, worker: usize, event: WorkerEvent) {
        // It fails only after the main thread has ended.
        let _ = self.sender.send((worker, event));
        let _ = self.waker.write(1);
    }
}

/// The handle of a worker for other threads.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    wake: Arc<EventFd>,
}

impl Worker {
    /// Makes it run an iteration of its event loop.
    pub(super) fn wake(&self) {
        // It can only fail by overflow, after 2^64 - 2 calls without a read.
        let _ = self.wake.write(1);
    }

    /// Puts `command` into its mailbox and wakes it.
    pub(super) fn post(&self, command: Command) {
        self.shared.post(command);
        self.wake();
    }

    /// Orders it to quiesce its connections until `deadline`, and to export them.
    pub(super) fn hand_over(&self, deadline: Timestamp) {
        self.post(Command::HandOver { deadline });
    }

    /// Orders it to stop accepting, and to end connections that are still open at `deadline`.
    pub(super) fn drain(&self, deadline: Timestamp) {
        self.post(Command::Drain { deadline });
    }
}

/// Returns connections to a worker if they cannot be handed over; an order to drain must be in its
/// mailbox by then. Dropped when they have been handed over: then the worker ends.
pub(super) type Return = Sender<Vec<ConnectionTransfer>>;

/// What all workers have in common.
pub(super) struct Plan<'a> {
    pub(super) config: &'a Config,
    pub(super) features: Features,
    pub(super) listeners: Arc<[ListeningSocket]>,
    /// The proxies that each of them trusts; none where connections have no header.
    pub(super) proxies: Arc<[Option<IpSet>]>,
    /// What follows the identity of each of them; none if it is a plain echo.
    pub(super) identities: Arc<[Option<AfterIdentity>]>,
    /// The names of the listeners.
    pub(super) names: Vec<String>,
    /// The addresses of the listeners, as printed.
    pub(super) addresses: Vec<String>,
    /// The number of listeners for datagrams.
    pub(super) datagram_listeners: u16,
    /// The proxies whose datagrams each of those takes; none where datagrams have no header.
    pub(super) datagram_proxies: Arc<[Option<IpSet>]>,
    /// The ports of those: no datagram from one of them is answered.
    pub(super) datagram_ports: Vec<u16>,
    /// Limits the datagrams of each source, for all workers.
    pub(super) datagram_limiter: Arc<DatagramLimiter>,
    /// The datagrams that the kernel has dropped.
    pub(super) kernel_drops: Arc<KernelDrops>,
    pub(super) workers: usize,
    /// The CPUs that the workers run on, in turn, if they are pinned.
    pub(super) cpus: Option<Vec<usize>>,
    /// How many connections all workers together serve.
    pub(super) capacity: u32,
    /// How many connections the limit on open files permits.
    pub(super) room: u32,
    pub(super) origin: Instant,
    /// Counts connections by source, for all workers.
    pub(super) limiter: Arc<SourceLimiter>,
    /// The memory for spilled bytes of all workers.
    pub(super) memory: Arc<SpillMemory>,
    /// Which workers have no capacity left.
    pub(super) fullness: Arc<Fullness>,
}

impl Plan<'_> {
    fn buffers(&self) -> BufferPlan {
        buffers(self.config)
    }

    fn parameters(&self, worker: usize) -> Parameters {
        Parameters {
            listeners: self.listeners.len() as u16,
            records: (0..)
                .map(ListenerId)
                .zip(self.listeners.iter())
                .filter(|(_, listener)| listener.transport == Transport::UnixSeqpacket)
                .map(|(id, _)| id)
                .collect(),
            buffers: self.buffers(),
            multishot: self.features.bounded_multishot_receive,
            deferral: Deferral::default(),
            sweep_slots_max: limits::SWEEP_SLOTS_MAX,
            linger_timeout: limits::LINGER_MS,
            preface_timeout: limits::PREFACE_MS,
            proxies: Arc::clone(&self.proxies),
            identities: Arc::clone(&self.identities),
            limiter: Arc::clone(&self.limiter) as Arc<dyn Limiter>,
            budget: Arc::clone(&self.memory) as Arc<dyn Budget>,
            fullness: Arc::clone(&self.fullness),
            runtime_limits: runtime_limits(self, self.config, self.capacity, worker),
        }
    }

    fn datagram_parameters(&self, owned: &Owned) -> DatagramParameters {
        DatagramParameters {
            sockets: owned.parameters.clone(),
            listeners: self.datagram_listeners,
            buffers: DATAGRAM_BUFFERS.count,
            proxies: Arc::clone(&self.datagram_proxies),
            limiter: Arc::clone(&self.datagram_limiter) as Arc<dyn RateLimiter>,
        }
    }
}

/// The pooled buffers of each worker.
fn buffers(config: &Config) -> BufferPlan {
    let small = BufferClass { count: config.server.buffers, size: SMALL_BUFFER_SIZE };
    BufferPlan { small, large: LARGE_BUFFERS, bulk_quantum: BULK_QUANTUM }
}

/// The runtime limits of `config` for worker number `index` of those of `plan`, if all workers
/// together have this `capacity`.
pub(super) fn runtime_limits(
    plan: &Plan<'_>,
    config: &Config,
    capacity: u32,
    index: usize,
) -> RuntimeLimits {
    let count = plan.workers;
    let reflect = config.datagram.reflect_source_ports.iter().chain(&plan.datagram_ports);
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    RuntimeLimits {
        connections_max: share(u64::from(capacity), count, index) as u32,
        idle_timeout: config.timeouts.idle.map(milliseconds),
        stall_timeout: config.timeouts.stall.map(milliseconds),
        lifetime: config.timeouts.lifetime.map(milliseconds),
        bytes_max: config.limits.max_bytes,
        keepalive: config.tcp.keepalive.map(|it| Keepalive::new(milliseconds(it), count)),
        admission: Arc::new(admission_policy(config)),
        datagram_guard: GuardPolicy::new(reflect.copied()),
        datagram_rates: Rates {
            datagrams: config.datagram.datagrams_per_source,
            bytes: config.datagram.bytes_per_source,
        },
    }
}

/// The share of worker number `index` of `count` in `total`; the shares add up to `total`.
fn share(total: u64, count: usize, index: usize) -> u64 {
    let (count, index) = (count as u64, index as u64);
    total / count + u64::from(index < total % count)
}

/// Makes the rings of all workers. If there is not enough locked memory, an automatic number of
/// workers is reduced; a configured number is an error.
pub(super) fn prepare(
    config: &Config,
    with_datagrams: bool,
) -> Result<Vec<PreparedRing>, Unusable> {
    let wanted = capacity::workers(config);
    let least = match config.server.workers {
        Workers::Auto => 1,
        Workers::Count(_) => wanted,
    };
    prepare_rings(least..=wanted, buffers(config).small, with_datagrams)
}

/// Warns if the limit on locked memory permits fewer workers than there are CPUs.
pub(super) fn warn_if_few(plan: &Plan<'_>) {
    let wanted = capacity::workers(plan.config);
    if plan.workers < wanted {
        log::warn!(
            "only {} of {wanted} workers (one for each CPU) can start: their rings need {} KiB of \
             locked memory, and RLIMIT_MEMLOCK leaves this user less; set LimitMEMLOCK=infinity in \
             the unit (ulimit -l unlimited)",
            plan.workers,
            capacity::locked_bytes(plan.config, wanted, plan.datagram_listeners > 0).div_ceil(1024),
        );
    }
}

/// Starts worker number `index`.
pub(super) fn start(
    plan: &Plan<'_>,
    division: &Division,
    index: usize,
    event_sender: &EventSender,
    ring: PreparedRing,
    owned: Owned,
    transfers: Vec<ConnectionTransfer>,
) -> io::Result<(Worker, Return)> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let shared = Arc::new(Shared::default());
    let parameters = plan.parameters(index);
    let connections_max = parameters.runtime_limits.connections_max;
    let core = Core::new(parameters).accepting_from(&division.of_worker(index));
    let core = match owned.sockets.is_empty() {
        true => core,
        false => core.with_datagrams(plan.datagram_parameters(&owned)),
    };
    let settings = Settings {
        listeners: Arc::clone(&plan.listeners),
        datagram_sockets: owned.sockets,
        wake: Arc::clone(&wake),
        buffers: plan.buffers(),
        connections_max,
        memory: Arc::clone(&plan.memory),
        busy_poll: plan.config.server.busy_poll,
        origin: plan.origin,
        worker: index,
    };
    let (returns, returned) = channel();
    let thread_shared = Arc::clone(&shared);
    let event_sender = event_sender.clone();
    let cpu = plan.cpus.as_ref().map(|cpus| cpus[index % cpus.len()]);
    let is_divided = division.is_divided();
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let guard = PanicGuard { event_sender: &event_sender, index };
        if let Some(cpu) = cpu
            && let Err(error) = affinity::pin_thread(cpu)
        {
            let warning = format!(
                "worker {index} cannot be pinned to CPU {cpu}: {error}; in a unit, permit it with \
                 SystemCallFilter=sched_setaffinity"
            );
            event_sender.send(index, WorkerEvent::Unpinned(warning));
        }
        let post = Post {
            shared: &thread_shared,
            event_sender: &event_sender,
            index,
            is_divided,
            returned,
        };
        let event = match Driver::with_ring(ring, settings) {
            Ok(driver) => work(driver, core, transfers, &post),
            Err(unusable) => WorkerEvent::Unusable(unusable),
        };
        drop(guard);
        event_sender.send(index, event);
    })?;
    Ok((Worker { shared, wake }, returns))
}

/// The connections of a worker thread to the main thread.
struct Post<'a> {
    shared: &'a Shared,
    event_sender: &'a EventSender,
    index: usize,
    /// Whether the main thread is to hear when the worker is full.
    is_divided: bool,
    returned: Receiver<Vec<ConnectionTransfer>>,
}

/// `core` is the only one of this worker. A reload changes its parameters there, and no other copy
/// exists.
fn work(
    mut driver: Driver,
    mut core: Core,
    transfers: Vec<ConnectionTransfer>,
    post: &Post<'_>,
) -> WorkerEvent {
    import(&mut driver, &mut core, transfers);
    let ready = || post.event_sender.send(post.index, WorkerEvent::Ready);
    let on_full = |full| post.event_sender.send(post.index, WorkerEvent::Full(full));
    let on_full: Option<&dyn Fn(bool)> = if post.is_divided { Some(&on_full) } else { None };
    let mut outcome = worker::run(&mut driver, &mut core, post.shared, ready, on_full);
    if matches!(outcome, Ok(Outcome::Quiescent)) {
        let released = release(&mut driver, &mut core);
        let released_at = driver.now();
        post.event_sender.send(post.index, WorkerEvent::Quiescent(released));
        // Nothing is returned once they have been handed over.
        if let Ok(returned) = post.returned.recv() {
            let elapsed = driver.now().0 - released_at.0;
            let returned =
                returned.into_iter().map(|connection| connection.after(elapsed)).collect();
            import(&mut driver, &mut core, returned);
            outcome = worker::resume(&mut driver, &mut core, post.shared);
        }
    }
    match outcome {
        Ok(Outcome::Drained | Outcome::Quiescent) => WorkerEvent::Done(Box::new(core.stats())),
        Err(error) => WorkerEvent::Broken(error.to_string()),
    }
}

/// Imports connections into a worker that has not started yet, or has exported its own.
fn import(driver: &mut Driver, core: &mut Core, transfers: Vec<ConnectionTransfer>) {
    for ConnectionTransfer { socket, transfer, announced, preface, unsent } in transfers {
        if !driver.take_memory_for(&unsent) {
            core.note_lost_in_handover();
            continue;
        }
        let connection = core.reserve_slot();
        let parts = ConnectionParts { socket, unsent, announced, preface };
        let peer = driver.import(connection, parts);
        core.import(driver, connection, peer, transfer);
    }
}

/// Exports every connection of a quiescent worker.
fn release(driver: &mut Driver, core: &mut Core) -> Vec<ConnectionTransfer> {
    let released = core.release(driver.now());
    let transfers = released.into_iter().map(|(connection, transfer)| {
        let ConnectionParts { socket, unsent, announced, preface } = driver.release(connection);
        // The rest of the header of a connection that is being ended is of no use.
        let is_read = matches!(transfer.phase, TransferPhase::Preface(_));
        let preface = if is_read { preface } else { Box::default() };
        ConnectionTransfer { socket, transfer, announced, preface, unsent }
    });
    transfers.collect()
}

/// Reports a panic if panics unwind; the release profile aborts the process instead.
struct PanicGuard<'a> {
    event_sender: &'a EventSender,
    index: usize,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.event_sender.send(self.index, WorkerEvent::Panicked);
        }
    }
}

/// How long a query of the counters waits for a worker in a long iteration; after that its last
/// published counters are used.
const LOOK_TIMEOUT: Duration = Duration::from_millis(50);

/// How often a wait for workers checks whether they are done.
const LOOK: Duration = Duration::from_micros(200);

/// Waits until every worker is done, at most `timeout`; returns for each whether it is.
pub(super) fn wait_for(
    workers: &[Worker],
    timeout: Duration,
    is_done: impl Fn(usize, &Worker) -> bool,
) -> Vec<bool> {
    let began = Instant::now();
    loop {
        let done: Vec<bool> =
            workers.iter().enumerate().map(|(index, worker)| is_done(index, worker)).collect();
        if done.iter().all(|done| *done) || began.elapsed() >= timeout {
            return done;
        }
        thread::sleep(LOOK);
    }
}

/// The sum of the current counters of all workers. It wakes only workers whose boards are out of
/// date, so an idle worker is not woken.
pub(super) fn shown(workers: &[Worker]) -> Shown {
    for worker in workers {
        if worker.shared.board.ask() {
            worker.wake();
        }
    }
    // A worker that has ended shows its last counters and does not answer.
    wait_for(workers, LOOK_TIMEOUT, |_, worker| {
        worker.shared.board.has_answered() || worker.shared.has_ended()
    });
    published(workers)
}

/// The same, of connections alone.
pub(super) fn total(workers: &[Worker]) -> Stats {
    shown(workers).stats
}

/// The sum of the counters that the workers have published: the final ones, if all have ended.
pub(super) fn published(workers: &[Worker]) -> Shown {
    let mut sum = Shown::default();
    for worker in workers {
        sum.add(&worker.shared.board.read());
    }
    sum
}

/// The pooled buffers of one worker.
pub(super) fn buffers_of_worker(plan: &Plan<'_>) -> u64 {
    let BufferPlan { small, large, .. } = plan.buffers();
    u64::from(small.count) + u64::from(large.count)
}

/// All pooled buffers of all workers.
pub(super) fn buffers_total(plan: &Plan<'_>) -> u64 {
    buffers_of_worker(plan) * plan.workers as u64
}

/// A listening socket for the driver.
pub(super) fn listening_socket(
    socket: OwnedFd,
    owner: Owner,
    family: Family,
    tcp: &Tcp,
) -> ListeningSocket {
    ListeningSocket {
        socket,
        owner,
        ending: AtomicBool::new(false),
        transport: match family {
            Family::Tcp => Transport::Tcp,
            Family::Unix(UnixKind::Stream) => Transport::Unix,
            Family::Unix(UnixKind::Seqpacket) => Transport::UnixSeqpacket,
            Family::Udp | Family::Unix(UnixKind::Datagram) => {
                unreachable!("a datagram socket does not listen")
            }
        },
        receive_buffer: tcp.receive_buffer,
        send_buffer: tcp.send_buffer,
        identity: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the configuration, which knows nothing of the core, has the core's default.
    #[test]
    fn the_ports_that_are_not_answered_are_those_of_the_core() {
        let ports = Config::default().datagram.reflect_source_ports;
        assert_eq!(GuardPolicy::new(ports), GuardPolicy::default());
    }

    #[test]
    fn the_wait_for_a_stalled_worker_ends() {
        let worker = || Worker { shared: Arc::default(), wake: Arc::new(EventFd::new().unwrap()) };
        let workers = [worker(), worker()];
        let timeout = Duration::from_millis(20);
        let began = Instant::now();
        assert_eq!(wait_for(&workers, timeout, |index, _| index == 1), [false, true]);
        assert!(began.elapsed() >= timeout);
        assert_eq!(wait_for(&workers, Duration::from_secs(3_600), |_, _| true), [true, true]);
    }
}
