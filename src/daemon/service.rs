//! One run of the service, from the first worker's start to the last one's end.

mod handing_over;
mod reload;
mod stopping;

use std::hash::RandomState;
use std::io;
use std::os::fd::AsFd;
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
use super::report::{self, Places, Rate, Reporter};
use super::restart;
use super::terminal::Terminal;
use super::view::{Label, Life, View};
use super::watchdog::Watchdog;
use super::workers::{self, Desk, News, Plan, Return, Worker};
use crate::admin::{self, AdminListener, State};
use crate::capacity;
use crate::cli::Options;
use crate::config::{Config, Kind, Tcp};
use crate::handover::ConnectionTransfer;
use crate::handover::format::Version;
use crate::listen::{Family, Listener, Opened, Origin, SocketFile};
use crate::logging::{self, events};
use crate::metrics;
use crate::systemd::Notifier;
use echo_core::admission::SourceLimiter;
use echo_core::fullness::Fullness;
use echo_core::limits;
use echo_core::op::ReceiveMode;
use echo_core::server::Stats;
use echo_ring::{self, ListeningSocket, Owner, PreparedRing, SpillMemory};

/// How often the counters are looked at: for the status line, and for warnings.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What the last connections of a drain have to end.
const LINGER: Duration = Duration::from_millis(limits::LINGER_MS);
/// What the end takes beyond the drain itself, for the service manager's stop timeout.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Where signals are read.
pub(super) struct Signals {
    /// SIGTERM and SIGINT.
    ending: SignalFd,
    /// SIGHUP.
    reload: SignalFd,
    /// What is said before SIGTERM; read when that has come.
    announcements: SignalFd,
}

/// Where a configuration comes from, and where log lines go.
pub(super) struct Source<'a> {
    pub(super) options: &'a Options,
    /// The names of the inherited sockets.
    pub(super) names: &'a [String],
    pub(super) log: &'a logging::Handle,
    /// Why the start took another configuration than that of the file, if it did.
    pub(super) trouble: Option<String>,
}

/// Makes SIGTERM, SIGINT and SIGHUP readable instead of deadly, and announcements heard.
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

/// Serves until a signal, and drains.
pub(super) fn run(
    config: &Config,
    opened: Opened,
    signals: Signals,
    notifier: &Notifier,
    source: &Source<'_>,
) -> Result<(), Failure> {
    let features = echo_ring::probe().map_err(Failure::Uring)?;
    let rings = workers::prepare(config).map_err(Failure::Uring)?;
    let workers = rings.len();
    let Opened { listeners, bundles, warnings } = opened;
    let sorted = Sorted::new(listeners, &config.tcp);
    let room = room(&sorted, workers)?;
    let places = room.min(config.limits.max_connections);
    let Sorted { sockets, labels, admin_listeners, names, files } = sorted;
    let addresses = labels.iter().map(|label| label.address.clone()).collect();
    let plan = Plan {
        config,
        features,
        listeners: sockets.into(),
        names: labels.iter().map(|label| label.name.clone()).collect(),
        addresses,
        workers,
        places,
        room,
        origin: Instant::now(),
        limiter: Arc::new(SourceLimiter::new(RandomState::new())),
        memory: SpillMemory::new(config.limits.stalled_memory),
        fullness: Arc::new(Fullness::new(workers as u32)),
    };
    announce(&plan, &names, &warnings);
    let transfers = restart::import(bundles, &plan.addresses, workers, notifier);
    let service = Service::start(&plan, signals, notifier, source, rings, transfers)?;
    service.show(admin_listeners, labels)?;
    let ended = service.serve();
    // The files of our own Unix sockets go when nobody accepts any more.
    drop(files);
    ended
}

/// The listeners, each where it belongs.
#[derive(Default)]
struct Sorted {
    /// For the workers.
    sockets: Vec<ListeningSocket>,
    /// What those are called.
    labels: Vec<Label>,
    /// For those who want to see.
    admin_listeners: Vec<AdminListener>,
    /// All, for the log.
    names: Vec<String>,
    /// All that were made here.
    files: Vec<SocketFile>,
}

impl Sorted {
    fn new(listeners: Vec<Listener>, tcp: &Tcp) -> Self {
        let mut sorted = Self::default();
        for listener in listeners {
            let Listener { name, address, kind, origin, family, socket, file } = listener;
            let service = match kind {
                Kind::Echo => None,
                Kind::Status => Some(admin::Service::Status),
                Kind::Metrics => Some(admin::Service::Metrics),
                Kind::AgentCheck => Some(admin::Service::AgentCheck),
            };
            let (origin, owner) = match origin {
                Origin::Inherited => (", inherited", Owner::Another),
                Origin::Bound => ("", Owner::Us),
            };
            let what = service.map_or(String::new(), |_| format!(", {}", kind.name()));
            sorted.names.push(format!("{address} ({name}{what}{origin})"));
            sorted.files.extend(file);
            if let Some(service) = service {
                sorted.admin_listeners.push(AdminListener { service, socket: socket.into() });
                continue;
            }
            let protocol = match family {
                Family::Tcp => "tcp",
                Family::Unix => "unix",
            };
            sorted.labels.push(Label { name, address, protocol });
            sorted.sockets.push(workers::listening_socket(socket, owner, family, tcp));
        }
        sorted
    }

    /// How many there are, for the arithmetic of open files.
    fn count(&self) -> capacity::Sockets {
        capacity::Sockets { echo: self.sockets.len(), admin: self.admin_listeners.len() }
    }
}

fn announce(plan: &Plan<'_>, names: &[String], warnings: &[String]) {
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned());
    let receive = match plan.receive_mode() {
        ReceiveMode::Multishot => "multishot",
        ReceiveMode::Once => "once",
    };
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
    warn_of_places(plan.config, plan.places);
}

/// Says so if there are fewer places than are configured.
fn warn_of_places(config: &Config, places: u32) {
    let wanted = config.limits.max_connections;
    if places < wanted {
        log::warn!(
            "limits.max-connections is {wanted}, but with the limit on open files only {places} \
             fit; raise LimitNOFILE= (ulimit -n)"
        );
    }
}

/// Raises the soft limit on open files to the hard one, and says how many connections fit.
fn room(sorted: &Sorted, workers: usize) -> Result<u32, Failure> {
    let system = |what| move |errno| Failure::System(what, io::Error::from(errno));
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(system("read the limit on open files"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(system("raise the limit on open files"))?;
    }
    Ok(capacity::room(hard, workers, sorted.count()))
}

/// Where the service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    /// Asked to stop: whether this is half of a restart has been asked, and all goes on.
    Asking,
    HandingOver,
    /// Asked to stop: load balancers are told, and accepting goes on until then.
    Leaving {
        until: Instant,
    },
    /// About to drain or to hand over, as soon as nobody is on the way in any more.
    Settling(Settling),
    Draining,
}

struct Service<'a> {
    plan: &'a Plan<'a>,
    /// What is in force: the plan's as reloads have changed it.
    config: Config,
    /// What the file said when it was last valid: what the next process starts with, also in the
    /// keys for which a restart is needed.
    last_valid: Config,
    source: &'a Source<'a>,
    notifier: &'a Notifier,
    signals: Signals,
    /// Where somebody started it by hand.
    terminal: Option<Terminal>,
    bell: Arc<EventFd>,
    news: Receiver<(usize, News)>,
    workers: Vec<Worker>,
    ready: usize,
    /// One for each worker, until connections have been handed over.
    returns: Vec<Return>,
    /// The connections of the workers that are quiescent.
    transfers: Vec<(usize, Vec<ConnectionTransfer>)>,
    /// Which states the next process reads, once it was looked at.
    next_version: Version,
    /// The last counters of the workers that have ended.
    done: Vec<Stats>,
    stage: Stage,
    stop: Stop,
    /// The same for those who look from outside.
    life: Life,
    status: String,
    /// Echoes of a second, when last looked at.
    echoes: u64,
    reporter: Reporter,
    rate: Rate,
    watchdog: Option<Watchdog>,
}

impl<'a> Service<'a> {
    fn start(
        plan: &'a Plan<'a>,
        signals: Signals,
        notifier: &'a Notifier,
        source: &'a Source<'a>,
        rings: Vec<PreparedRing>,
        transfers: Vec<Vec<ConnectionTransfer>>,
    ) -> Result<Self, Failure> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Failure::System("make an eventfd", errno.into()))?;
        let bell = Arc::new(bell);
        let (sender, news) = channel();
        let desk = Desk { news: sender, bell: Arc::clone(&bell) };
        let (workers, returns): (Vec<_>, Vec<_>) = rings
            .into_iter()
            .zip(transfers)
            .enumerate()
            .map(|(index, (ring, transfers))| workers::start(plan, index, &desk, ring, transfers))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| Failure::System("start a worker", error))?
            .into_iter()
            .unzip();
        let watchdog =
            notifier.watchdog_interval().map(|interval| Watchdog::new(interval, &workers));
        Ok(Self {
            plan,
            config: plan.config.clone(),
            last_valid: plan.config.clone(),
            source,
            notifier,
            signals,
            // Under a service manager a SIGHUP is a reload, and the sandbox lets no one ask.
            terminal: if notifier.has_manager() { None } else { Terminal::of_this_process() },
            bell,
            news,
            workers,
            ready: 0,
            returns,
            transfers: Vec::new(),
            next_version: Version::PRESENT,
            done: Vec::new(),
            stage: Stage::Starting,
            stop: Stop::default(),
            life: Life::new(source.trouble.clone()),
            status: String::new(),
            echoes: 0,
            reporter: Reporter::new(),
            rate: Rate::new(Instant::now()),
            watchdog,
        })
    }

    /// Lets others look in, if there is a socket to look in at.
    fn show(&self, admin_listeners: Vec<AdminListener>, labels: Vec<Label>) -> Result<(), Failure> {
        if admin_listeners.is_empty() {
            return Ok(());
        }
        let view = View::new(self.plan, self.life.clone(), labels, &self.workers);
        let started = admin::start(admin_listeners, move || view.snapshot());
        started.map_err(|error| Failure::System("serve status and metrics", error))
    }

    fn serve(mut self) -> Result<(), Failure> {
        let mut look = Instant::now() + LOOK_INTERVAL;
        loop {
            self.sleep_until(self.next_moment(look))?;
            self.notifier.flush();
            self.hear_news()?;
            if self.done.len() == self.workers.len() {
                self.let_come_again();
                self.say_goodbye();
                return Ok(());
            }
            if self.hear_signal()? == Order::EndAtOnce {
                return Ok(());
            }
            self.hear_hangup()?;
            let now = Instant::now();
            self.advance_stop(now);
            if now >= look {
                look = now + LOOK_INTERVAL;
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
        // One millisecond more, or the wait would end just before its moment and be repeated.
        let left = moment.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut sources = vec![
            PollFd::new(self.signals.ending.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
        ];
        // A reload that is asked for before we are ready waits until then.
        if self.stage != Stage::Starting {
            sources.push(PollFd::new(self.signals.reload.as_fd(), PollFlags::POLLIN));
        }
        sources.extend(self.notifier.waiting().map(|it| PollFd::new(it, PollFlags::POLLOUT)));
        match poll(&mut sources, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::System("wait for signals", errno.into())),
        }
    }

    fn hear_news(&mut self) -> Result<(), Failure> {
        // It does not block: nothing to read means nothing new.
        let _ = self.bell.read();
        while let Ok((worker, news)) = self.news.try_recv() {
            match news {
                News::Ready => self.on_worker_ready(),
                News::Quiescent(transfers) => self.on_worker_quiescent(worker, transfers),
                News::Done(stats) => self.done.push(*stats),
                News::Unusable(unusable) => return Err(Failure::Uring(unusable)),
                News::Broken(error) => return Err(Failure::Ring(worker, error)),
                News::Panicked => return Err(Failure::Panic(worker)),
            }
        }
        Ok(())
    }

    fn on_worker_ready(&mut self) {
        self.ready += 1;
        if self.ready == self.workers.len() && self.stage == Stage::Starting {
            seal();
            self.stage = Stage::Ready;
            self.life.set(State::Ready);
            let stats = workers::total(&self.workers);
            self.status = self.with_trouble(report::status(&stats, 0, self.workers.len()));
            self.notifier.ready(&self.status);
            log::info!(message_id = events::READY, workers = self.ready; "ready");
        }
    }

    fn look(&mut self, now: Instant) {
        let stats = workers::total(&self.workers);
        let places =
            Places { by_files: self.plan.room, configured: self.config.limits.max_connections };
        for line in self.reporter.lines(now, &stats, places) {
            log::warn!(
                message_id = events::TROUBLE, reason = line.reason, count = line.count;
                "{}", line.text
            );
        }
        self.echoes = self.rate.look(now, &stats);
        let status = match self.stage {
            Stage::Starting => return,
            Stage::HandingOver => report::handing_over(&stats),
            Stage::Ready | Stage::Asking => {
                self.with_trouble(report::status(&stats, self.echoes, self.workers.len()))
            }
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

    fn say_goodbye(&self) {
        let stats = metrics::total(&self.done);
        log::debug!("{stats:?}");
        let traffic = &stats.traffic;
        let buffers = workers::buffers_total(self.plan);
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
            bytes_handed_over = stats.bytes_handed_over;
            "stopped: accepted={} refused={} closed={} bytes-in={} bytes-out={} bytes-dropped={} \
             buffers-home={} buffers-total={buffers}{}",
            traffic.accepted,
            traffic.refused_total(),
            traffic.closed_total(),
            traffic.bytes_in,
            traffic.bytes_out,
            stats.bytes_dropped,
            buffers - stats.buffers_lent,
            report::handover_counts(&stats),
        );
    }
}

/// Every worker has its ring: none is made from here on.
fn seal() {
    match echo_ring::seal_process() {
        Ok(()) => log::debug!(
            "sealed: the rings refuse OPENAT, SOCKET and registrations, the process another ring"
        ),
        Err(unsealed) => log::warn!("{unsealed}: an intruder could make a ring without limits"),
    }
}

/// What a signal means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    GoOn,
    EndAtOnce,
}
