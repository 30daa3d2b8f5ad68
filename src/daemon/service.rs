//! One run of the service, from the start of the first worker to the end of the last.

mod handing_over;
mod reload;
mod stopping;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::stopping::{Settling, Stop};
use super::Failure;
use super::accepting::{self, Division};
use super::accepts::AcceptReporter;
use super::admission_policy::ip_set;
use super::datagrams::{Assigned, DatagramListener, KernelDrops, Owned};
use super::life::{self, Life, Phase};
use super::report::{self, Capacity, Connections, Datagrams, Rate, Reporter};
use super::restart;
use super::terminal::Terminal;
use super::view::{Label, Labels, View};
use super::watchdog::Watchdog;
use super::workers::{self, EventSender, Plan, Return, Worker, WorkerEvent};
use crate::admin::{self, AdminListener};
use crate::capacity;
use crate::cli::Options;
use crate::config::{Config, Identity, Kind};
use crate::handover::ConnectionTransfer;
use crate::handover::format::Version;
use crate::instance;
use crate::listen::{self, Family, Listener, Opened, Origin, SocketFile};
use crate::logging::{self, events};
use crate::metrics::{self, Shown};
use crate::systemd::Notifier;
use echo_core::admission::IpSet;
use echo_core::command::Command;
use echo_core::datagram::DatagramTraffic;
use echo_core::fullness::Fullness;
use echo_core::limits;
use echo_core::parameters::AfterIdentity;
use echo_core::stats::Stats;
use echo_ring::{self, ListeningSocket, Owner, PreparedRing, SpillMemory};

/// How often the counters are read, for the status line and for warnings.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The time that the last connections of a drain have to end.
const LINGER: Duration = Duration::from_millis(limits::LINGER_MS);
/// The time for the end besides the drain itself, for the service manager's stop timeout.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The descriptors that signals are read from.
pub(super) struct Signals {
    /// SIGTERM and SIGINT.
    ending: SignalFd,
    /// SIGHUP.
    reload: SignalFd,
    /// The announcements before SIGTERM, which are read after it.
    announcements: SignalFd,
}

/// The source of the configuration, and the log.
pub(super) struct Source<'a> {
    pub(super) options: &'a Options,
    /// The names of the inherited sockets.
    pub(super) names: &'a [String],
    pub(super) log: &'a logging::Handle,
    /// Why the configuration at the start differs from the file, if it does.
    pub(super) trouble: Option<String>,
}

/// Blocks SIGTERM, SIGINT, SIGHUP and the announcements, and makes them readable.
pub(super) fn block_signals() -> io::Result<Signals> {
    let readable = |signals: &[Signal]| {
        let signals: SigSet = signals.iter().copied().collect();
        signals.thread_block()?;
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
    };
    let ending = readable(&[Signal::SIGTERM, Signal::SIGINT])?;
    let announcements = readable(&restart::ANNOUNCEMENTS)?;
    Ok(Signals { ending, reload: readable(&[Signal::SIGHUP])?, announcements })
}

/// Serves until a signal, then drains or hands over.
pub(super) fn run(
    config: &Config,
    opened: Opened,
    signals: Signals,
    notifier: &Notifier,
    source: &Source<'_>,
) -> Result<(), Failure> {
    let features = echo_ring::probe().map_err(Failure::Uring)?;
    let Opened { listeners, bundles, mut warnings } = opened;
    let with_datagrams = listeners.iter().any(|listener| listener.family.is_datagram());
    let rings = workers::prepare(config, with_datagrams).map_err(Failure::Uring)?;
    let workers = rings.len();
    let instance = source.options.config.as_deref().and_then(instance::of_file);
    let mut sorted = Sorted::new(listeners, config, instance, workers)?;
    let assigned = Assigned::new(&mut sorted.datagrams, workers)
        .map_err(|error| Failure::System("prepare a datagram socket", error))?;
    let room = room(&sorted, &assigned, workers)?;
    let capacity = room.min(config.limits.max_connections);
    let Sorted { sockets, labels, proxies, identities, datagrams, .. } = sorted;
    let Sorted { admin_listeners, names, files, .. } = sorted;
    let Assigned { owned, watched, ports, warnings: more } = assigned;
    warnings.extend(more);
    let datagram_proxies = datagrams.iter().map(|it| it.proxies.clone()).collect();
    let datagrams: Vec<Label> = datagrams.into_iter().map(|listener| listener.label).collect();
    let addresses: Vec<String> = labels.iter().map(|label| label.address.clone()).collect();
    let division = Division::new(&addresses, workers);
    let cpus = accepting::cpus(config, &mut warnings);
    accepting::steer(&sockets, &division, cpus.as_deref());
    let plan = Plan {
        config,
        features,
        listeners: sockets.into(),
        proxies: proxies.into(),
        identities: identities.into(),
        names: labels.iter().map(|label| label.name.clone()).collect(),
        addresses,
        datagram_listeners: datagrams.len() as u16,
        datagram_ports: ports,
        datagram_proxies,
        datagram_limiter: Arc::default(),
        kernel_drops: Arc::new(KernelDrops::new(watched)),
        workers,
        cpus,
        capacity,
        room,
        origin: Instant::now(),
        limiter: Arc::default(),
        memory: SpillMemory::new(config.limits.stalled_memory),
        fullness: Arc::new(Fullness::new(workers as u32)),
    };
    announce(&plan, &names, &warnings);
    let transfers = restart::import(bundles, &plan.addresses, workers, notifier);
    let workers = rings.into_iter().zip(owned).zip(transfers);
    let workers = workers.map(|((ring, owned), transfers)| (ring, owned, transfers)).collect();
    let labels = Labels { streams: labels, datagrams };
    let service = Service::start(&plan, division, signals, notifier, source, workers, labels)?;
    service.show(admin_listeners)?;
    let ended = service.serve();
    // The files of our own Unix sockets are removed when no worker accepts any more.
    drop(files);
    ended
}

/// The listeners, sorted by purpose.
#[derive(Default)]
struct Sorted {
    /// Echo listeners, for the workers.
    sockets: Vec<ListeningSocket>,
    /// Their names and addresses.
    labels: Vec<Label>,
    /// The proxies that each of them trusts; none where connections have no header.
    proxies: Vec<Option<IpSet>>,
    /// What follows the identity of each of them; none if it is a plain echo.
    identities: Vec<Option<AfterIdentity>>,
    /// Listeners for datagrams, for the workers.
    datagrams: Vec<DatagramListener>,
    /// Listeners for status, metrics and agent-check.
    admin_listeners: Vec<AdminListener>,
    /// The names of all, for the log.
    names: Vec<String>,
    /// The socket files that this process created.
    files: Vec<SocketFile>,
}

impl Sorted {
    /// Binds more sockets to our own addresses if each worker is to have one.
    fn new(
        listeners: Vec<Listener>,
        config: &Config,
        instance: Option<&str>,
        workers: usize,
    ) -> Result<Self, Failure> {
        let mut sorted = Self::default();
        let tcp = &config.tcp;
        for listener in listeners {
            let Listener { name, address, kind, proxies, identity, origin, family, socket, file } =
                listener;
            let service = match kind {
                Kind::Echo | Kind::Identity => None,
                Kind::Status => Some(admin::Service::Status),
                Kind::Metrics => Some(admin::Service::Metrics),
                Kind::AgentCheck => Some(admin::Service::AgentCheck),
            };
            let made = origin;
            let (origin, owner) = match origin {
                Origin::Inherited => (", inherited", Owner::Another),
                Origin::Bound => ("", Owner::Us),
            };
            let what = match kind {
                Kind::Echo => String::new(),
                _ => format!(", {}", kind.name()),
            };
            sorted.names.push(format!("{address} ({name}{what}{origin})"));
            sorted.files.extend(file);
            if let Some(service) = service {
                sorted.admin_listeners.push(AdminListener { service, socket: socket.into() });
                continue;
            }
            let after = match identity.then_echo {
                true => AfterIdentity::Echo,
                false => AfterIdentity::End,
            };
            let identity = (kind == Kind::Identity).then(|| echo_ring::Identity {
                host: identity.host.and_then(host),
                instance: instance.map(str::to_owned),
                listener: name.clone(),
            });
            let label = Label { name, address, protocol: family.name() };
            let proxies = proxies.as_deref().map(ip_set);
            if family.is_datagram() {
                sorted.add_datagrams((label, made, family), socket, proxies, identity);
                continue;
            }
            let mut sockets = vec![socket];
            if owner == Owner::Us
                && family == Family::Tcp
                && config.server.listening_sockets.are_per_worker(workers)
            {
                let more = listen::tcp_siblings(&sockets[0], &label.address, workers - 1, tcp);
                sockets.extend(more.map_err(Failure::Listen)?);
            }
            for socket in sockets {
                sorted.labels.push(label.clone());
                sorted.proxies.push(proxies.clone());
                sorted.identities.push(identity.as_ref().map(|_| after));
                let socket = workers::listening_socket(socket, owner, family, tcp);
                sorted.sockets.push(ListeningSocket { identity: identity.clone(), ..socket });
            }
        }
        Ok(sorted)
    }

    /// Several sockets of one address and name are one listener.
    fn add_datagrams(
        &mut self,
        (label, origin, family): (Label, Origin, Family),
        socket: OwnedFd,
        proxies: Option<IpSet>,
        identity: Option<echo_ring::Identity>,
    ) {
        let same = |it: &&mut DatagramListener| {
            (&it.label.name, &it.label.address) == (&label.name, &label.address)
        };
        match self.datagrams.iter_mut().find(same) {
            Some(listener) => listener.sockets.push(socket),
            None => {
                let (is_udp, sockets) = (family == Family::Udp, vec![socket]);
                let listener =
                    DatagramListener { label, origin, is_udp, sockets, proxies, identity };
                self.datagrams.push(listener);
            }
        }
    }

    /// The number of sockets, to calculate the number of open files.
    fn count(&self, assigned: &Assigned) -> capacity::Sockets {
        let echo = self.sockets.len() + assigned.watched.len();
        capacity::Sockets { echo, admin: self.admin_listeners.len() }
    }
}

/// The name of the host as peers are told it, if it has one.
fn host(named: String) -> Option<String> {
    match &*named {
        Identity::SYSTEM => {
            let name = nix::sys::utsname::uname().ok()?.nodename().to_string_lossy().into_owned();
            Some(name).filter(|name| !name.is_empty())
        }
        _ => Some(named),
    }
}

fn announce(plan: &Plan<'_>, names: &[String], warnings: &[String]) {
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned());
    let receive = if plan.features.bounded_multishot_receive { "multishot" } else { "one-shot" };
    log::info!(
        "echo-uring {}: starting, kernel {release}, {}, receive {receive}",
        env!("CARGO_PKG_VERSION"),
        report::count(plan.workers as u64, "worker"),
    );
    for warning in warnings {
        log::warn!("{warning}");
    }
    for name in names {
        log::info!("listening on {name}");
    }
    workers::warn_if_few(plan);
    warn_of_capacity(plan.config, plan.capacity);
}

/// Warns if the limit on open files reduces the configured capacity.
fn warn_of_capacity(config: &Config, capacity: u32) {
    let wanted = config.limits.max_connections;
    if capacity < wanted {
        log::warn!(
            "limits.max-connections is {wanted}, but the limit on open files permits only \
             {capacity}; raise LimitNOFILE= (ulimit -n)"
        );
    }
}

/// Raises the soft limit on open files to the hard limit; returns how many connections it permits.
fn room(sorted: &Sorted, assigned: &Assigned, workers: usize) -> Result<u32, Failure> {
    let system = |what| move |errno| Failure::System(what, io::Error::from(errno));
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(system("read the limit on open files"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(system("raise the limit on open files"))?;
    }
    Ok(capacity::room(hard, workers, sorted.count(assigned)))
}

/// The stage of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    /// SIGTERM received: a query whether it is part of a restart is in progress; serving continues.
    Asking,
    HandingOver,
    /// The lead before a drain: not ready, so that load balancers take notice, but still accepting.
    Leaving {
        until: Instant,
    },
    /// About to drain or to hand over, when handshakes in progress are completed.
    Settling(Settling),
    Draining,
}

struct Service<'a> {
    plan: &'a Plan<'a>,
    /// Which worker accepts from which socket.
    division: Division,
    /// The configuration in force: that of the plan, as changed by reloads.
    config: Config,
    /// The content of the file when it was last valid. The next process starts with it, including
    /// the keys that need a restart.
    last_valid: Config,
    source: &'a Source<'a>,
    notifier: &'a Notifier,
    signals: Signals,
    /// The terminal, if the daemon was started by hand.
    terminal: Option<Terminal>,
    waker: Arc<EventFd>,
    events: Receiver<(usize, WorkerEvent)>,
    workers: Vec<Worker>,
    ready: usize,
    /// One channel for each worker, until connections have been handed over.
    returns: Vec<Return>,
    /// The connections of quiescent workers.
    transfers: Vec<(usize, Vec<ConnectionTransfer>)>,
    /// The state version that the next process reads, once it is known.
    next_version: Version,
    /// The last counters of workers that have ended.
    done: Vec<Stats>,
    stage: Stage,
    stop: Stop,
    /// The same for the admin thread.
    life: Life,
    /// What the admin thread shows.
    view: Arc<View>,
    status: String,
    /// The echo rate per second at the last sample.
    echoes: u64,
    /// What the datagram sockets did at the last sample; none if there are no such listeners.
    datagrams: Option<Datagrams>,
    reporter: Reporter<Connections>,
    datagram_reporter: Reporter<Datagrams>,
    accept_reporter: AcceptReporter,
    rate: Rate,
    datagram_rate: Rate,
    watchdog: Option<Watchdog>,
}

impl<'a> Service<'a> {
    fn start(
        plan: &'a Plan<'a>,
        division: Division,
        signals: Signals,
        notifier: &'a Notifier,
        source: &'a Source<'a>,
        workers: Vec<(PreparedRing, Owned, Vec<ConnectionTransfer>)>,
        labels: Labels,
    ) -> Result<Self, Failure> {
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Failure::System("make an eventfd", errno.into()))?;
        let waker = Arc::new(waker);
        let (sender, events) = channel();
        let event_sender = EventSender { sender, waker: Arc::clone(&waker) };
        let (workers, returns): (Vec<_>, Vec<_>) = workers
            .into_iter()
            .enumerate()
            .map(|(index, (ring, owned, transfers))| {
                workers::start(plan, &division, index, &event_sender, ring, owned, transfers)
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| Failure::System("start a worker", error))?
            .into_iter()
            .unzip();
        let watchdog =
            notifier.watchdog_interval().map(|interval| Watchdog::new(interval, &workers));
        let limits = life::limits(plan.config, plan.capacity, plan.datagram_listeners > 0);
        let life = Life::new(source.trouble.clone(), limits);
        let view = View::new(plan, life.clone(), source.log.clone(), labels, &workers);
        Ok(Self {
            plan,
            division,
            config: plan.config.clone(),
            last_valid: plan.config.clone(),
            source,
            notifier,
            signals,
            // Under a service manager SIGHUP means a reload, and the sandbox prevents the check.
            terminal: if notifier.has_manager() { None } else { Terminal::of_this_process() },
            waker,
            events,
            workers,
            ready: 0,
            returns,
            transfers: Vec::new(),
            next_version: Version::PRESENT,
            done: Vec::new(),
            stage: Stage::Starting,
            stop: Stop::default(),
            life,
            view: Arc::new(view),
            status: String::new(),
            echoes: 0,
            datagrams: (plan.datagram_listeners > 0).then(Datagrams::default),
            reporter: Reporter::new(&report::CLASSES),
            datagram_reporter: Reporter::new(&report::DATAGRAM_CLASSES),
            accept_reporter: AcceptReporter::default(),
            rate: Rate::new(Instant::now()),
            datagram_rate: Rate::new(Instant::now()),
            watchdog,
        })
    }

    /// Starts the admin thread, if there is a socket for it.
    fn show(&self, admin_listeners: Vec<AdminListener>) -> Result<(), Failure> {
        if admin_listeners.is_empty() {
            return Ok(());
        }
        let view = Arc::clone(&self.view);
        let started = admin::start(admin_listeners, move || view.snapshot());
        started.map_err(|error| Failure::System("serve status and metrics", error))
    }

    fn serve(mut self) -> Result<(), Failure> {
        let mut look = Instant::now() + REPORT_INTERVAL;
        loop {
            self.sleep_until(self.next_moment(look))?;
            self.notifier.flush();
            self.handle_news()?;
            if self.done.len() == self.workers.len() {
                self.reopen_kept_listeners();
                self.log_final_counters();
                return Ok(());
            }
            if self.handle_signal()? == Order::EndAtOnce {
                return Ok(());
            }
            self.handle_sighup()?;
            let now = Instant::now();
            self.advance_stop(now);
            if now >= look {
                look = now + REPORT_INTERVAL;
                self.look(now);
            }
            if let Some(watchdog) = &mut self.watchdog
                && now >= watchdog.next
            {
                watchdog.check(now, &self.workers, self.notifier);
            }
        }
    }

    fn next_moment(&self, look: Instant) -> Instant {
        let ping = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let next = match self.stage {
            Stage::Leaving { until } => Some(until),
            Stage::Settling(settling) => Some(settling.next),
            Stage::Starting
            | Stage::Ready
            | Stage::Asking
            | Stage::HandingOver
            | Stage::Draining => None,
        };
        ping.into_iter().chain(next).chain(self.stop.answer_until()).fold(look, Instant::min)
    }

    fn sleep_until(&self, moment: Instant) -> Result<(), Failure> {
        // One millisecond more, or the wait would end just before the moment and be repeated.
        let left = moment.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut sources = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        // What is requested before the daemon is ready stays pending until then.
        if self.stage != Stage::Starting {
            sources.push(PollFd::new(self.signals.ending.as_fd(), PollFlags::POLLIN));
            sources.push(PollFd::new(self.signals.reload.as_fd(), PollFlags::POLLIN));
        }
        sources.extend(self.notifier.waiting().map(|it| PollFd::new(it, PollFlags::POLLOUT)));
        match poll(&mut sources, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::System("wait for signals", errno.into())),
        }
    }

    fn handle_news(&mut self) -> Result<(), Failure> {
        // This does not block; it fails if there is nothing to read.
        let _ = self.waker.read();
        while let Ok((worker, event)) = self.events.try_recv() {
            match event {
                WorkerEvent::Ready => self.on_worker_ready(),
                WorkerEvent::Unpinned(warning) => log::warn!("{warning}"),
                WorkerEvent::Full(full) => self.on_worker_full(worker, full),
                WorkerEvent::Quiescent(transfers) => self.on_worker_quiescent(worker, transfers),
                WorkerEvent::Done(stats) => self.done.push(*stats),
                WorkerEvent::Unusable(unusable) => return Err(Failure::Uring(unusable)),
                WorkerEvent::Broken(error) => return Err(Failure::Ring(worker, error)),
                WorkerEvent::Panicked => return Err(Failure::Panic(worker)),
            }
        }
        Ok(())
    }

    fn on_worker_ready(&mut self) {
        self.ready += 1;
        if self.ready == self.workers.len() && self.stage == Stage::Starting {
            seal();
            self.stage = Stage::Ready;
            self.life.set(Phase::Ready);
            self.status = self.life.with_standing(self.serving(&workers::total(&self.workers)));
            self.notifier.ready(&self.status);
            log::info!(message_id = events::READY, workers = self.ready; "ready");
        }
    }

    /// The sockets of workers that are full are accepted from by the others.
    fn on_worker_full(&mut self, worker: usize, full: bool) {
        if self.division.note(worker, full) {
            for (index, worker) in self.workers.iter().enumerate() {
                worker.post(Command::AcceptFrom(self.division.of_worker(index)));
            }
        }
    }

    fn look(&mut self, now: Instant) {
        let Shown { stats, datagram_listeners, refused_sources, .. } =
            workers::shown(&self.workers);
        self.accept_reporter.log(&self.workers, &self.plan.names);
        self.echoes = self.rate.look(now, stats.traffic.chunks_out);
        self.look_at_datagrams(now, &datagram_listeners);
        let capacity =
            Capacity { by_files: self.plan.room, configured: self.config.limits.max_connections };
        let seen = Connections { stats, capacity, refused_sources };
        let mut lines = self.reporter.lines(now, &seen);
        if let Some(datagrams) = &self.datagrams {
            lines.extend(self.datagram_reporter.lines(now, datagrams));
        }
        for line in lines {
            log::warn!(
                message_id = events::TROUBLE, reason = line.reason, count = line.count;
                "{}", line.text
            );
        }
        let stats = seen.stats;
        let status = match self.stage {
            Stage::Starting => return,
            Stage::HandingOver => report::handing_over(&stats),
            Stage::Ready | Stage::Asking => self.life.with_standing(self.serving(&stats)),
            Stage::Leaving { .. } => report::leaving(&stats),
            Stage::Settling(_) => return,
            Stage::Draining => {
                self.look_after_listeners();
                report::draining(&stats)
            }
        };
        if status != self.status {
            self.notifier.status(&status);
            self.status = status;
        }
    }

    /// The status while serving, with the rates of the last sample.
    fn serving(&self, stats: &Stats) -> String {
        report::status(stats, self.echoes, self.datagrams.as_ref(), self.workers.len())
    }

    fn look_at_datagrams(&mut self, now: Instant, listeners: &[DatagramTraffic]) {
        let Some(datagrams) = &mut self.datagrams else { return };
        let mut traffic = DatagramTraffic::default();
        listeners.iter().for_each(|listener| traffic.add(listener));
        let rate = self.datagram_rate.look(now, traffic.datagrams_out);
        let kernel_drops = self.plan.kernel_drops.since_start();
        *datagrams = Datagrams { traffic, kernel_drops, rate };
    }

    fn log_final_counters(&mut self) {
        let stats = metrics::total(&self.done);
        let listeners = workers::published(&self.workers).datagram_listeners;
        self.look_at_datagrams(Instant::now(), &listeners);
        self.accept_reporter.log(&self.workers, &self.plan.names);
        if log::log_enabled!(log::Level::Debug) {
            admin::text(&self.view.snapshot()).lines().for_each(|line| log::debug!("{line}"));
        }
        let traffic = &stats.traffic;
        let buffers = workers::buffers_total(self.plan);
        let datagrams = self.datagrams.clone().unwrap_or_default();
        log::info!(
            message_id = events::STOPPED,
            accepted = traffic.accepted,
            refused = traffic.refused_total(),
            closed = traffic.closed_total(),
            bytes_in = traffic.bytes_in,
            bytes_out = traffic.bytes_out,
            bytes_dropped = stats.bytes_dropped,
            taken_over = traffic.taken_over,
            bytes_taken_over = stats.bytes_taken_over,
            bytes_handed_over = stats.bytes_handed_over,
            datagrams_in = datagrams.traffic.datagrams_in,
            datagrams_out = datagrams.traffic.datagrams_out,
            datagrams_dropped = datagrams.traffic.dropped_total(),
            kernel_dropped = datagrams.kernel_drops;
            "stopped: accepted={} refused={} closed={} bytes-in={} bytes-out={} bytes-dropped={} \
             buffers-home={} buffers-total={buffers}{}{}",
            traffic.accepted,
            traffic.refused_total(),
            traffic.closed_total(),
            traffic.bytes_in,
            traffic.bytes_out,
            stats.bytes_dropped,
            buffers - stats.buffers_lent,
            report::handover_counts(&stats),
            self.datagrams.as_ref().map_or(String::new(), Datagrams::final_counts),
        );
    }
}

/// Every worker has its ring: no further one is needed.
fn seal() {
    match echo_ring::seal_process() {
        Ok(()) => log::debug!(
            "sealed: the rings refuse OPENAT, SOCKET and registrations; no further ring can be made"
        ),
        Err(unsealed) => log::warn!("{unsealed}: an intruder could create an unrestricted ring"),
    }
}

/// How the main loop continues after a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    GoOn,
    EndAtOnce,
}
