//! The main thread: starts the workers, takes them through the phases, asks what they measured, and
//! tells the result.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::arguments::Plan;
use crate::measure::Measured;
use crate::progress::Progress;
use crate::worker::{News, Orders, Outcome, Phase, Worker};
use crate::{EXIT_DIFFERENCE, EXIT_RIGHT, EXIT_UNCONNECTED, EXIT_USAGE};
use crate::{hdr, json, plot, table};

/// How often the main thread looks up from waiting.
const LOOK: Duration = Duration::from_millis(50);

/// Everything about a run that has ended.
pub(crate) struct Result {
    pub(crate) started_at: SystemTime,
    /// After the warm-up, until the last report.
    pub(crate) total: Measured,
    /// The reports, in order.
    pub(crate) intervals: Vec<Point>,
    pub(crate) outcome: Outcome,
    /// CPU time of this process in the measured time.
    pub(crate) cpu: Duration,
}

/// A report, without its histograms.
pub(crate) struct Point {
    /// Since the beginning of the measured time, at the end of the interval.
    pub(crate) at: Duration,
    pub(crate) messages_per_second: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

/// Runs the plan; returns the exit status.
pub(crate) fn run(plan: Plan) -> u8 {
    match Run::start(plan) {
        Ok(run) => run.carry_out(),
        Err(fault) => {
            eprintln!("echo-load: {fault}");
            EXIT_USAGE
        }
    }
}

struct Run {
    plan: Arc<Plan>,
    orders: Arc<Orders>,
    wakes: Vec<Arc<EventFd>>,
    news: Receiver<News>,
    signals: SignalFd,
    origin: Instant,
    progress: Progress,
    hdr: Option<hdr::Log>,
    interrupted: bool,
    /// Reports of workers that have ended, as they come.
    outcome: Outcome,
    workers_left: usize,
}

/// Why a run came to nothing.
enum Failure {
    /// A connection could not be made.
    Unconnected(String),
    /// The ring or a file cannot be used.
    Broken(String),
    /// The user ended it before it began.
    Interrupted,
}

fn unwritable(error: io::Error) -> Failure {
    Failure::Broken(format!("cannot write the --hdr file: {error}"))
}

impl Run {
    fn start(plan: Plan) -> std::result::Result<Self, String> {
        raise_open_files();
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        mask.thread_block().map_err(|error| format!("cannot block signals: {error}"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags)
            .map_err(|error| format!("cannot receive signals: {error}"))?;
        let hdr = match &plan.output.hdr {
            None => None,
            Some(path) => Some(
                hdr::Log::create(path)
                    .map_err(|error| format!("--hdr {}: {error}", path.display()))?,
            ),
        };
        if let Some(path) = &plan.output.plot {
            // Better now than after the run.
            std::fs::File::create(path)
                .map_err(|error| format!("--plot {}: {error}", path.display()))?;
        }
        let (tell, news) = mpsc::channel();
        let (plan, orders, origin) = (Arc::new(plan), Arc::<Orders>::default(), Instant::now());
        let mut wakes = Vec::new();
        for index in 0..plan.threads {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let wake = EventFd::from_flags(flags).map_err(|error| error.to_string())?;
            let wake = Arc::new(wake);
            wakes.push(wake.clone());
            let (plan, orders, tell) = (plan.clone(), orders.clone(), tell.clone());
            let work = move || {
                let broken = tell.clone();
                let done = Worker::new(plan, index, wake, orders, tell, origin)
                    .map_err(|unusable| unusable.to_string())
                    .and_then(|worker| worker.work().map_err(|error| error.to_string()));
                if let Err(fault) = done {
                    // If the main thread no longer listens, the run has failed already.
                    let _ = broken.send(News::Broken(fault));
                }
            };
            thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn(work)
                .map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        Ok(Self {
            progress: Progress::new(&plan),
            workers_left: wakes.len(),
            plan,
            orders,
            wakes,
            news,
            signals,
            origin,
            hdr,
            interrupted: false,
            outcome: Outcome::default(),
        })
    }

    fn carry_out(mut self) -> u8 {
        let failure = match self.connect().and_then(|()| self.measure()) {
            Ok(result) => return self.tell(&result),
            Err(failure) => failure,
        };
        self.progress.clear();
        let place = &self.plan.target.text;
        match failure {
            Failure::Unconnected(why) => {
                eprintln!("echo-load: cannot connect to {place}: {why}");
                EXIT_UNCONNECTED
            }
            Failure::Broken(why) => {
                eprintln!("echo-load: {why}");
                EXIT_USAGE
            }
            Failure::Interrupted => {
                eprintln!("echo-load: interrupted before the load began");
                EXIT_UNCONNECTED
            }
        }
    }

    /// Waits until all connections stand.
    fn connect(&mut self) -> std::result::Result<(), Failure> {
        let (mut ready, mut connected, mut since) = (0, 0, Instant::now());
        while ready < self.plan.threads {
            match self.hear(LOOK)? {
                Some(News::Ready) => ready += 1,
                Some(News::Refused(why)) => return Err(Failure::Unconnected(why)),
                Some(_) | None => {}
            }
            let now_connected = self.orders.connected.load(Ordering::Relaxed);
            self.progress.connecting(now_connected);
            if self.is_interrupted() {
                return Err(Failure::Interrupted);
            }
            if now_connected > connected {
                (connected, since) = (now_connected, Instant::now());
            } else if since.elapsed() > self.plan.patience {
                let seconds = self.plan.patience.as_secs_f64();
                let why = format!("no answer for {seconds} s, {connected} connections stand");
                return Err(Failure::Unconnected(why));
            }
        }
        Ok(())
    }

    /// The run proper, from the first message to the end of the last connection.
    fn measure(&mut self) -> std::result::Result<Result, Failure> {
        let begin = self.origin.elapsed();
        self.orders.run(begin.as_nanos() as u64);
        self.wake();
        let mut goes_on = true;
        if !self.plan.warmup.is_zero() {
            goes_on = self.pause_until(begin + self.plan.warmup);
            self.collect()?;
        }
        let started_at = SystemTime::now();
        if let Some(log) = &mut self.hdr {
            log.begin(started_at).map_err(unwritable)?;
        }
        let (cpu, begin) = (cpu_time(), self.origin.elapsed());
        let end = begin + self.plan.duration;
        let mut total = Measured::new(self.plan.rate_per_second.is_some());
        let mut intervals = Vec::new();
        let mut next = begin;
        while goes_on && next < end {
            next = end.min(next + self.plan.interval);
            goes_on = self.pause_until(next);
            let measured = self.collect()?;
            let from = total.elapsed;
            total.add_later(&measured);
            let point = Point::new(total.elapsed, &measured);
            self.report(&point, from, &measured)?;
            intervals.push(point);
        }
        let cpu = cpu_time().saturating_sub(cpu);
        self.finish()?;
        let outcome = std::mem::take(&mut self.outcome);
        Ok(Result { started_at, total, intervals, outcome, cpu })
    }

    /// Shows an interval to those who watch.
    fn report(
        &mut self,
        point: &Point,
        from: Duration,
        measured: &Measured,
    ) -> std::result::Result<(), Failure> {
        let errors = self.orders.errors.load(Ordering::Relaxed);
        self.progress.running(point, errors);
        if self.plan.output.json_stream {
            print(&json::interval(point, measured, errors).to_string());
        }
        match &mut self.hdr {
            None => Ok(()),
            Some(log) => log.write(from, measured).map_err(unwritable),
        }
    }

    /// Waits for a moment. False if there is no reason to go on.
    fn pause_until(&mut self, moment: Duration) -> bool {
        loop {
            let left = moment.saturating_sub(self.origin.elapsed());
            if left.is_zero() {
                return true;
            }
            let timeout = PollTimeout::try_from(left.min(LOOK) + Duration::from_millis(1));
            let timeout = timeout.expect("invariant: a look is shorter than the longest wait");
            let mut files = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // An error means that it was too short; the clock decides.
            let _ = poll(&mut files, timeout);
            if self.is_interrupted() || self.orders.live.load(Ordering::Relaxed) == 0 {
                return false;
            }
        }
    }

    /// Asks all workers what they measured.
    fn collect(&mut self) -> std::result::Result<Measured, Failure> {
        self.orders.ticks.fetch_add(1, Ordering::Release);
        self.wake();
        let mut sum = Measured::new(self.plan.rate_per_second.is_some());
        let mut heard = 0;
        while heard < self.plan.threads {
            if let Some(News::Measured(measured)) = self.hear(LOOK)? {
                sum.add_parallel(&measured);
                heard += 1;
            }
        }
        Ok(sum)
    }

    /// Lets the workers end their connections, and takes what they came to.
    fn finish(&mut self) -> std::result::Result<(), Failure> {
        self.progress.finishing();
        self.orders.set_phase(Phase::Finish);
        self.wake();
        let since = Instant::now();
        while self.workers_left > 0 {
            self.hear(LOOK)?;
            if since.elapsed() > self.plan.patience {
                self.orders.set_phase(Phase::Abort);
                self.wake();
            }
        }
        self.progress.clear();
        Ok(())
    }

    /// The next news, if there are any soon.
    fn hear(&mut self, patience: Duration) -> std::result::Result<Option<News>, Failure> {
        match self.news.recv_timeout(patience) {
            Ok(News::Broken(why)) => Err(Failure::Broken(why)),
            Ok(News::Finished(outcome)) => {
                self.workers_left -= 1;
                self.outcome.add(outcome);
                Ok(None)
            }
            Ok(news) => Ok(Some(news)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::Broken("all threads of the load have ended".to_owned()))
            }
        }
    }

    fn wake(&self) {
        for wake in &self.wakes {
            // It fails only if it is full of wakes that nobody has read: then one comes anyway.
            let _ = wake.write(1);
        }
    }

    /// Whether the user asked us to end. The second time ends the process at once.
    fn is_interrupted(&mut self) -> bool {
        while let Ok(Some(_)) = self.signals.read_signal() {
            if std::mem::replace(&mut self.interrupted, true) {
                std::process::exit(EXIT_DIFFERENCE.into());
            }
        }
        self.interrupted
    }

    /// Shows the result in all forms that were asked for; returns the exit status.
    fn tell(&self, result: &Result) -> u8 {
        let output = &self.plan.output;
        if output.json || output.json_stream {
            print(&json::result(&self.plan, result).to_string());
        } else {
            print(table::table(&self.plan, result).trim_end());
        }
        if let Some(path) = &output.plot
            && let Err(fault) = plot::draw(path, &self.plan, result)
        {
            eprintln!("echo-load: --plot {}: {fault}", path.display());
            return EXIT_USAGE;
        }
        if result.outcome.faults_total() > 0 {
            EXIT_DIFFERENCE
        } else if result.outcome.connect_failures > 0 {
            EXIT_UNCONNECTED
        } else {
            EXIT_RIGHT
        }
    }
}

impl Point {
    fn new(at: Duration, measured: &Measured) -> Self {
        Self {
            at,
            messages_per_second: measured.messages_per_second(),
            bytes_per_second: measured.bytes_per_second(),
            p50_ns: measured.felt().value_at_quantile(0.5),
            p99_ns: measured.felt().value_at_quantile(0.99),
        }
    }
}

/// A line on standard output. A reader that went away (`| head`) is no error of ours.
fn print(line: &str) {
    use io::Write;
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Every connection is an open file. That the limit cannot be raised shows when it is reached.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            Duration::from_secs(time.tv_sec().unsigned_abs())
                + Duration::from_micros(time.tv_usec().unsigned_abs())
        })
        .sum()
}
