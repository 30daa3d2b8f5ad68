//! The workers: one thread, one ring, one core each; what they share and how they are told things.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::admission_policy::admission_policy;
use crate::capacity;
use crate::config::{Config, Tcp, Workers};
use crate::handover::ConnectionTransfer;
use crate::listen::Family;
use crate::metrics;
use crate::source_limiter::SourceLimiter;
use crate::worker::{self, Outcome, Shared};
use echo_core::admission::Limiter;
use echo_core::command::Command;
use echo_core::fullness::Fullness;
use echo_core::kernel::Kernel;
use echo_core::limits;
use echo_core::op::Budget;
use echo_core::op::{BufferClass, BufferPlan, Timestamp};
use echo_core::parameters::{Deferral, Keepalive, Parameters, RuntimeLimits};
use echo_core::stats::Stats;
use echo_core::worker::Worker as Core;
use echo_ring::{
    Driver, Features, ListeningSocket, Owner, PreparedRing, Settings, SpillMemory, Transport,
    Unusable, prepare_rings,
};

/// Bytes of a small buffer: they hold what is usually said at a time (a TLS record), and of a
/// buffer that is filled with less the rest is never touched.
const SMALL_BUFFER_SIZE: u32 = 16 << 10;
/// The large buffers of a worker. 256 KiB is where bulk stops getting cheaper. Their number is how
/// many connections may be in the middle of bulk at the same moment; the others get small ones for
/// once. They are a stack, so those beyond what the traffic needs are never touched.
const LARGE_BUFFERS: BufferClass = BufferClass { count: 32, size: 256 << 10 };

/// What a worker tells the main thread.
#[derive(Debug)]
pub(super) enum News {
    /// Its listeners are armed.
    Ready,
    /// It could not start.
    Unusable(Unusable),
    /// Its connections are quiescent: here they are.
    Quiescent(Vec<ConnectionTransfer>),
    /// Its drain is over, or its connections are handed over; the last counters.
    Done(Box<Stats>),
    /// Its ring broke.
    Broken(String),
    /// It panicked.
    Panicked,
}

/// Where workers put their news: a queue, and a descriptor that becomes readable.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) news: Sender<(usize, News)>,
    pub(super) bell: Arc<EventFd>,
}

impl Desk {
    fn put(&self, worker: usize, news: News) {
        // It fails only when the main thread has gone, and then nobody is left to be told.
        let _ = self.news.send((worker, news));
        let _ = self.bell.write(1);
    }
}

/// One worker, as others see it.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    wake: Arc<EventFd>,
}

impl Worker {
    /// Makes it turn its loop.
    pub(super) fn wake(&self) {
        // It can only fail by overflow, after 2^64 - 2 calls that nobody answered.
        let _ = self.wake.write(1);
    }

    /// Puts `command` into its mailbox and wakes it.
    pub(super) fn post(&self, command: Command) {
        self.shared.post(command);
        self.wake();
    }

    /// Tells it to quiesce its connections until `deadline`, and to give them away.
    pub(super) fn hand_over(&self, deadline: Timestamp) {
        self.post(Command::HandOver { deadline });
    }

    /// Tells it to stop accepting, and to end what is still open at `deadline`.
    pub(super) fn drain(&self, deadline: Timestamp) {
        self.post(Command::Drain { deadline });
    }
}

/// Where a worker's connections come back if they cannot be handed over; an order to drain must lie
/// in its mailbox by then. Dropped when they have been handed over: then the worker ends.
pub(super) type Return = Sender<Vec<ConnectionTransfer>>;

/// What all workers have in common.
pub(super) struct Plan<'a> {
    pub(super) config: &'a Config,
    pub(super) features: Features,
    pub(super) listeners: Arc<[ListeningSocket]>,
    /// What those are called.
    pub(super) names: Vec<String>,
    /// Where those listen, as printed.
    pub(super) addresses: Vec<String>,
    pub(super) workers: usize,
    pub(super) places: u32,
    /// How many connections the limit on open files allows for.
    pub(super) room: u32,
    pub(super) origin: Instant,
    /// Where all of them count connections by source.
    pub(super) limiter: Arc<SourceLimiter>,
    /// Where all of them keep what their peers did not take.
    pub(super) memory: Arc<SpillMemory>,
    /// Where all of them note whether they have places left.
    pub(super) fullness: Arc<Fullness>,
}

impl Plan<'_> {
    fn buffers(&self) -> BufferPlan {
        buffers(self.config)
    }

    fn parameters(&self, worker: usize) -> Parameters {
        Parameters {
            listeners: self.listeners.len() as u16,
            buffers: self.buffers(),
            multishot: self.features.bounded_multishot_receive,
            deferral: Deferral::default(),
            sweep_slots_max: limits::SWEEP_SLOTS_MAX,
            linger_timeout: limits::LINGER_MS,
            limiter: Arc::clone(&self.limiter) as Arc<dyn Limiter>,
            budget: Arc::clone(&self.memory) as Arc<dyn Budget>,
            fullness: Arc::clone(&self.fullness),
            runtime_limits: runtime_limits(self.config, self.places, self.workers, worker),
        }
    }
}

/// The pooled buffers of each worker.
fn buffers(config: &Config) -> BufferPlan {
    let small = BufferClass { count: config.server.buffers, size: SMALL_BUFFER_SIZE };
    BufferPlan { small, large: LARGE_BUFFERS }
}

/// What `config` comes to for worker number `index` of `count`, if all of them together have
/// `places` connections.
pub(super) fn runtime_limits(
    config: &Config,
    places: u32,
    count: usize,
    index: usize,
) -> RuntimeLimits {
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    RuntimeLimits {
        connections_max: share(u64::from(places), count, index) as u32,
        idle_timeout: config.timeouts.idle.map(milliseconds),
        stall_timeout: config.timeouts.stall.map(milliseconds),
        lifetime: config.timeouts.lifetime.map(milliseconds),
        bytes_max: config.limits.max_bytes,
        keepalive: config.tcp.keepalive.map(|it| Keepalive::new(milliseconds(it), count)),
        admission: Arc::new(admission_policy(config)),
    }
}

/// What worker number `index` of `count` gets of `total`; the shares add up to it.
fn share(total: u64, count: usize, index: usize) -> u64 {
    let (count, index) = (count as u64, index as u64);
    total / count + u64::from(index < total % count)
}

/// Makes the rings of all workers. Where there is not enough locked memory for them an automatic
/// number of workers is as many as fit; a number that was configured is meant.
pub(super) fn prepare(config: &Config) -> Result<Vec<PreparedRing>, Unusable> {
    let wanted = capacity::workers(config);
    let least = match config.server.workers {
        Workers::Auto => 1,
        Workers::Count(_) => wanted,
    };
    prepare_rings(least..=wanted, buffers(config).small)
}

/// Says so if fewer workers fit into the locked memory than there are CPUs.
pub(super) fn warn_if_few(plan: &Plan<'_>) {
    let wanted = capacity::workers(plan.config);
    if plan.workers < wanted {
        log::warn!(
            "of {wanted} workers, one for each CPU, only {} fit: their rings need {} KiB of locked \
             memory, and RLIMIT_MEMLOCK leaves this user less; set LimitMEMLOCK=infinity in the \
             unit (ulimit -l unlimited)",
            plan.workers,
            capacity::locked_bytes(plan.config, wanted).div_ceil(1024),
        );
    }
}

/// Starts worker number `index`.
pub(super) fn start(
    plan: &Plan<'_>,
    index: usize,
    desk: &Desk,
    ring: PreparedRing,
    transfers: Vec<ConnectionTransfer>,
) -> io::Result<(Worker, Return)> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let shared = Arc::new(Shared::default());
    let parameters = plan.parameters(index);
    let connections_max = parameters.runtime_limits.connections_max;
    let settings = Settings {
        listeners: Arc::clone(&plan.listeners),
        wake: Arc::clone(&wake),
        buffers: plan.buffers(),
        connections_max,
        memory: Arc::clone(&plan.memory),
        busy_poll: plan.config.server.busy_poll,
        origin: plan.origin,
    };
    let (returns, returned) = channel();
    let thread_shared = Arc::clone(&shared);
    let desk = desk.clone();
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let guard = PanicGuard { desk: &desk, index };
        let post = Post { shared: &thread_shared, desk: &desk, index, returned };
        let news = match Driver::with_ring(ring, settings) {
            Ok(driver) => work(driver, parameters, transfers, &post),
            Err(unusable) => News::Unusable(unusable),
        };
        drop(guard);
        desk.put(index, news);
    })?;
    Ok((Worker { shared, wake }, returns))
}

/// What a worker's thread has besides its ring and its core.
struct Post<'a> {
    shared: &'a Shared,
    desk: &'a Desk,
    index: usize,
    returned: Receiver<Vec<ConnectionTransfer>>,
}

/// The parameters go into the one core of this worker: whatever a reload changes is changed
/// there, and there is nothing else to go back to.
fn work(
    mut driver: Driver,
    parameters: Parameters,
    transfers: Vec<ConnectionTransfer>,
    post: &Post<'_>,
) -> News {
    let mut core = Core::new(parameters);
    import(&mut driver, &mut core, transfers);
    let ready = || post.desk.put(post.index, News::Ready);
    let mut outcome = worker::run(&mut driver, &mut core, post.shared, ready);
    if matches!(outcome, Ok(Outcome::Quiescent)) {
        let released = release(&mut driver, &mut core);
        let released_at = driver.now();
        post.desk.put(post.index, News::Quiescent(released));
        // Nothing comes back once they have been handed over.
        if let Ok(returned) = post.returned.recv() {
            let elapsed = driver.now().0 - released_at.0;
            let returned =
                returned.into_iter().map(|connection| connection.after(elapsed)).collect();
            import(&mut driver, &mut core, returned);
            outcome = worker::resume(&mut driver, &mut core, post.shared);
        }
    }
    match outcome {
        Ok(Outcome::Drained | Outcome::Quiescent) => News::Done(Box::new(core.stats())),
        Err(error) => News::Broken(error.to_string()),
    }
}

/// Lets a worker that has not started yet, or has given its own away, go on with these connections.
fn import(driver: &mut Driver, core: &mut Core, transfers: Vec<ConnectionTransfer>) {
    for ConnectionTransfer { socket, transfer, unsent } in transfers {
        if !driver.take_memory_for(&unsent) {
            core.note_lost_in_handover();
            continue;
        }
        let connection = core.reserve_slot();
        let peer = driver.import(connection, socket, &unsent);
        core.import(driver, connection, peer, transfer);
    }
}

/// Takes every connection from a worker whose connections are quiescent.
fn release(driver: &mut Driver, core: &mut Core) -> Vec<ConnectionTransfer> {
    let released = core.release(driver.now());
    let transfers = released.into_iter().map(|(connection, transfer)| {
        let (socket, unsent) = driver.release(connection);
        ConnectionTransfer { socket, transfer, unsent }
    });
    transfers.collect()
}

/// Tells of a panic where panics unwind; the release profile aborts the process instead.
struct PanicGuard<'a> {
    desk: &'a Desk,
    index: usize,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.desk.put(self.index, News::Panicked);
        }
    }
}

/// How long a look at the counters waits for a worker in the middle of a long turn; then its last
/// figures have to do.
const LOOK_TIMEOUT: Duration = Duration::from_millis(50);

/// How often somebody who waits for workers looks whether they are done.
const LOOK: Duration = Duration::from_micros(200);

/// Waits until every worker is done, no longer than `timeout`, and says of each whether it is.
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

/// The sum of what the workers have counted up to now. It wakes only those who have more to show
/// than their boards do, so an idle worker sleeps on.
pub(super) fn total(workers: &[Worker]) -> Stats {
    for worker in workers {
        if worker.shared.board.ask() {
            worker.wake();
        }
    }
    // Who has ended shows its last figures and answers nobody.
    wait_for(workers, LOOK_TIMEOUT, |_, worker| {
        worker.shared.board.has_answered() || worker.shared.has_ended()
    });
    let shown = workers.iter().map(|worker| worker.shared.board.read().stats);
    metrics::total(&shown.collect::<Vec<_>>())
}

/// The pooled buffers of one worker.
pub(super) fn buffers_of_worker(plan: &Plan<'_>) -> u64 {
    let BufferPlan { small, large } = plan.buffers();
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
            Family::Unix => Transport::Unix,
        },
        receive_buffer: tcp.receive_buffer,
        send_buffer: tcp.send_buffer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_turn_is_not_waited_for_for_ever() {
        let worker = || Worker { shared: Arc::default(), wake: Arc::new(EventFd::new().unwrap()) };
        let workers = [worker(), worker()];
        let timeout = Duration::from_millis(20);
        let began = Instant::now();
        assert_eq!(wait_for(&workers, timeout, |index, _| index == 1), [false, true]);
        assert!(began.elapsed() >= timeout);
        assert_eq!(wait_for(&workers, Duration::from_secs(3_600), |_, _| true), [true, true]);
    }
}
