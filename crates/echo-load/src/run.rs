//! The main thread: starts the workers, controls their phases, collects their measurements, and
//! reports the result.
//!
//! Every wait checks for signals, at least every [`LOOK`].

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use echo_ring::output::{self, complain};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::arguments::Plan;
use crate::failure::{Failure, LOOK};
use crate::files::Replacement;
use crate::machine;
use crate::measure::Measured;
use crate::orders::{Orders, Phase, WorkerEvent};
use crate::progress::Progress;
use crate::reach;
use crate::result::{Ended, Point, Result};
use crate::signals::Signals;
use crate::status::Status;
use crate::target::Address;
use crate::worker::{self, Task};
use crate::writer::Writer;
use crate::{hdr, json, plot, table, units};

type Attempt<T> = std::result::Result<T, Failure>;

/// Runs the plan; returns the exit status.
pub(crate) fn run(plan: Plan) -> Status {
    let done = Run::new(plan).and_then(Run::carry_out);
    match done {
        Ok(status) => status,
        Err(Failure::Fatal(status, why)) => {
            complain(&format!("echo-load: {why}"));
            status
        }
        Err(Failure::Interrupted) => Status::Incomplete,
    }
}

struct Run {
    plan: Arc<Plan>,
    orders: Arc<Orders>,
    wakes: Vec<Arc<EventFd>>,
    /// None before there are workers.
    events: Option<Receiver<WorkerEvent>>,
    signals: Signals,
    origin: Instant,
    /// When messages were last checked for timeouts.
    swept: Instant,
    progress: Progress,
    writer: Writer,
    hdr: Option<hdr::Log>,
    plot: Option<Replacement>,
    /// Errors of output files.
    unwritten: Vec<String>,
    /// The result so far.
    result: Result,
    /// The outcome of messages after the measured time.
    end: Measured,
    workers_left: usize,
}

impl Run {
    /// Checks for missing resources before anything is connected or overwritten.
    fn new(plan: Plan) -> Attempt<Self> {
        let fatal_output = |why| Failure::Fatal(Status::Output, why);
        output::check().map_err(|error| fatal_output(format!("standard output: {error}")))?;
        machine::prepare(&plan).map_err(Failure::usage)?;
        let signals = Signals::new().map_err(Failure::usage)?;
        let hdr = plan.output.hdr.as_deref().map(|path| {
            let log = hdr::Log::create(path);
            log.map_err(|error| Failure::usage(format!("--hdr {}: {error}", path.display())))
        });
        let plot = plan.output.plot.as_deref().map(|path| {
            let file = Replacement::new(path);
            file.map_err(|error| Failure::usage(format!("--plot {}: {error}", path.display())))
        });
        let writer = Writer::start()
            .map_err(|error| Failure::usage(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            progress: Progress::new(&plan),
            result: Result::new(&plan),
            end: Measured::new(plan.rate_per_second.is_some()),
            plan: Arc::new(plan),
            orders: Arc::default(),
            wakes: Vec::new(),
            events: None,
            signals,
            origin: Instant::now(),
            swept: Instant::now(),
            writer,
            hdr: hdr.transpose()?,
            plot: plot.transpose()?,
            unwritten: Vec::new(),
            workers_left: 0,
        })
    }

    fn carry_out(mut self) -> Attempt<Status> {
        let ended = self
            .reach()
            .and_then(|address| self.employ(&address))
            .and_then(|()| self.connect())
            .and_then(|()| self.measure());
        match ended {
            Ok(()) => {}
            Err(Failure::Interrupted) => self.abandon()?,
            Err(fatal) => {
                self.progress.clear();
                return Err(fatal);
            }
        }
        Ok(self.conclude())
    }

    /// Finds an address to connect to.
    fn reach(&mut self) -> Attempt<Address> {
        let addresses = reach::resolve(&self.plan, &mut self.signals)?;
        let address = reach::choose(&self.plan, addresses, &mut self.signals)?;
        self.result.address = Some(address.to_string());
        Ok(address)
    }

    /// Starts the workers, and waits until each has its resources.
    fn employ(&mut self, address: &Address) -> Attempt<()> {
        let (sender, events) = mpsc::channel();
        self.events = Some(events);
        for thread in 0..self.plan.threads {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let wake = Arc::new(EventFd::from_flags(flags).map_err(Failure::usage)?);
            self.wakes.push(wake.clone());
            let task = Task {
                plan: self.plan.clone(),
                address: address.socket.clone(),
                thread,
                wake,
                orders: self.orders.clone(),
                events: sender.clone(),
                origin: self.origin,
            };
            let broken = sender.clone();
            let work = move || {
                if let Err(fault) = worker::work(task) {
                    // It fails only if the run has failed already.
                    let _ = broken.send(WorkerEvent::Broken(fault));
                }
            };
            thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(work)
                .map_err(|error| Failure::usage(format!("cannot start a thread: {error}")))?;
            self.workers_left += 1;
        }
        let mut prepared = 0;
        while prepared < self.plan.threads {
            if let Some(WorkerEvent::Prepared) = self.hear(LOOK)? {
                prepared += 1;
            }
            if self.signals.is_interrupted() {
                return Err(Failure::Interrupted);
            }
        }
        Ok(())
    }

    /// Waits until all connections are established.
    fn connect(&mut self) -> Attempt<()> {
        self.orders.set_phase(Phase::Connect);
        self.wake();
        let (mut ready, mut connected, mut since) = (0, 0, Instant::now());
        while ready < self.plan.threads {
            match self.hear(LOOK)? {
                Some(WorkerEvent::Ready) => ready += 1,
                Some(WorkerEvent::Refused(why)) => return Err(self.unconnected(&why)),
                Some(_) | None => {}
            }
            let now_connected = self.orders.connected.load(Ordering::Relaxed);
            self.progress.connecting(now_connected);
            if self.signals.is_interrupted() {
                return Err(Failure::Interrupted);
            }
            if now_connected > connected {
                (connected, since) = (now_connected, Instant::now());
            } else if since.elapsed() > self.plan.timeout {
                let seconds = self.plan.timeout.as_secs_f64();
                let stand = units::counted(connected, "connection");
                return Err(
                    self.unconnected(&format!("no answer for {seconds} s, {stand} established"))
                );
            }
        }
        self.result.connections_made = self.orders.connected.load(Ordering::Relaxed);
        Ok(())
    }

    fn unconnected(&self, why: &str) -> Failure {
        let place = reach::named(&self.plan.target.text, self.result.address.as_deref());
        Failure::Fatal(Status::Unconnected, format!("cannot connect to {place}: {why}"))
    }

    /// The run itself, from the first message to the end of the last connection.
    fn measure(&mut self) -> Attempt<()> {
        let mut begin = self.origin.elapsed();
        let mut ended = None;
        if self.plan.warmup.is_zero() {
            self.orders.begin(Phase::Run, begin.as_nanos() as u64);
            self.wake();
        } else {
            self.orders.begin(Phase::WarmUp, begin.as_nanos() as u64);
            self.wake();
            self.progress.warming_up(self.plan.warmup);
            ended = self.pause_until(begin + self.plan.warmup)?;
            self.orders.set_phase(Phase::Run);
            self.wake();
            begin = self.origin.elapsed();
        }
        self.result.started_at = SystemTime::now();
        if let Some(log) = &mut self.hdr {
            log.begin(self.result.started_at);
        }
        let cpu = machine::cpu_time();
        let end = begin + self.plan.duration;
        let mut next = begin;
        self.progress.begin();
        loop {
            // Reports that could not be made in time are skipped.
            let late = self.origin.elapsed().saturating_sub(next);
            let missed = late.as_nanos() / self.plan.interval.as_nanos();
            let step = self.plan.interval.as_nanos() * (missed + 1);
            next = end.min(next + Duration::from_nanos(u64::try_from(step).unwrap_or(u64::MAX)));
            if ended.is_none() {
                ended = self.pause_until(next)?;
            }
            let is_last = ended.is_some() || next >= end;
            if is_last {
                // The end of the last interval is the end of the run, for every worker.
                self.orders.set_phase(Phase::Finish);
            }
            let measured = self.collect()?;
            self.report(&measured);
            if is_last {
                break;
            }
        }
        self.result.ended = ended.unwrap_or(Ended::OnTime);
        self.result.cpu = machine::cpu_time().saturating_sub(cpu);
        self.finish()
    }

    /// Adds an interval and reports it.
    fn report(&mut self, measured: &Measured) {
        let from = self.result.total.elapsed;
        self.result.total.add_later(measured);
        let point = Point::new(self.result.total.elapsed, measured);
        let errors = self.orders.errors.load(Ordering::Relaxed);
        self.progress.running(&point, errors);
        if self.plan.output.json_stream {
            self.writer.print(&json::interval(&point, measured, errors).to_string());
        }
        self.log(from, measured);
        self.result.intervals.push(point);
    }

    /// Writes to the --hdr file. If that fails, the run continues without it.
    fn log(&mut self, from: Duration, measured: &Measured) {
        let Some(log) = &mut self.hdr else { return };
        if let Err(error) = log.write(from, measured) {
            self.hdr = None;
            self.unwritten.push(format!("cannot write the --hdr file: {error}"));
        }
    }

    /// Waits until a moment, or for a reason to end the run early.
    fn pause_until(&mut self, moment: Duration) -> Attempt<Option<Ended>> {
        loop {
            let left = moment.saturating_sub(self.origin.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.sweep();
            let timeout = PollTimeout::try_from(left.min(self.look()) + Duration::from_millis(1));
            let timeout = timeout.expect("invariant: a look is shorter than the longest wait");
            let mut files = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // An error only shortens the wait; the clock decides.
            let _ = poll(&mut files, timeout);
            if self.signals.is_interrupted() {
                return Ok(Some(Ended::Interrupted));
            }
            if self.orders.live.load(Ordering::Relaxed) == 0 {
                return Ok(Some(Ended::Lost));
            }
            if self.writer.has_failed() {
                return Ok(Some(Ended::Unread));
            }
            // Only errors arrive without a request.
            self.hear(Duration::ZERO)?;
        }
    }

    /// How often to check: a timeout should be detected soon.
    fn look(&self) -> Duration {
        LOOK.min(self.plan.timeout / 8).max(Duration::from_millis(1))
    }

    /// Makes the workers check for timeouts from time to time.
    fn sweep(&mut self) {
        let pause = (self.plan.timeout / 16).min(Duration::from_millis(250));
        if self.swept.elapsed() >= pause {
            self.swept = Instant::now();
            self.orders.sweeps.fetch_add(1, Ordering::Release);
            self.wake();
        }
    }

    /// Collects the measurements of all workers.
    fn collect(&mut self) -> Attempt<Measured> {
        self.orders.ticks.fetch_add(1, Ordering::Release);
        self.wake();
        let mut sum = Measured::new(self.plan.rate_per_second.is_some());
        let mut heard = 0;
        while heard < self.plan.threads {
            if let Some(WorkerEvent::Measured(measured)) = self.hear(LOOK)? {
                sum.add_parallel(&measured);
                heard += 1;
            }
            // The first signal ends the run at the next check, the second at once.
            self.signals.is_interrupted();
        }
        Ok(sum)
    }

    /// Makes the workers end their connections, and collects their results.
    fn finish(&mut self) -> Attempt<()> {
        self.progress.finishing();
        let since = Instant::now();
        let was_interrupted = self.signals.is_interrupted();
        while self.workers_left > 0 {
            self.hear(LOOK)?;
            let interrupted = self.signals.is_interrupted();
            if interrupted {
                self.result.ended = Ended::Interrupted;
            }
            if since.elapsed() > self.plan.timeout || interrupted && !was_interrupted {
                self.orders.set_phase(Phase::Abort);
                self.wake();
            }
        }
        self.end.elapsed = since.elapsed();
        let end = std::mem::replace(&mut self.end, Measured::new(false));
        if !end.felt().is_empty() {
            self.log(self.result.total.elapsed, &end);
        }
        if self.result.total.connected > 0 {
            self.result.connections_made += self.result.total.connected;
        }
        self.result.total.add_end(&end);
        self.progress.clear();
        Ok(())
    }

    /// The user ended the run before the load began.
    fn abandon(&mut self) -> Attempt<()> {
        self.orders.set_phase(Phase::Abort);
        self.wake();
        while self.workers_left > 0 {
            self.hear(LOOK)?;
            self.signals.is_interrupted();
        }
        self.result.ended = Ended::Interrupted;
        self.progress.clear();
        Ok(())
    }

    /// The next message of a worker, if one arrives within `timeout`.
    fn hear(&mut self, timeout: Duration) -> Attempt<Option<WorkerEvent>> {
        let Some(events) = &self.events else { return Ok(None) };
        match events.recv_timeout(timeout) {
            Ok(WorkerEvent::Broken(why)) => Err(Failure::usage(why)),
            Ok(WorkerEvent::Finished(end, outcome)) => {
                self.workers_left -= 1;
                self.end.add_end(&end);
                self.result.outcome.add(*outcome);
                Ok(None)
            }
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::usage("all threads of the load have ended"))
            }
        }
    }

    fn wake(&self) {
        for wake in &self.wakes {
            // It fails only if wake-ups are pending, and then another is not needed.
            let _ = wake.write(1);
        }
    }

    /// Writes the result in all requested formats; returns the exit status.
    fn conclude(mut self) -> Status {
        let output = &self.plan.output;
        if output.json || output.json_stream {
            self.writer.print(&json::result(&self.plan, &self.result).to_string());
        } else {
            self.writer.print(table::table(&self.plan, &self.result).trim_end());
        }
        if let (Some(file), Some(path)) = (&mut self.plot, &output.plot) {
            let drawn = plot::draw(&self.plan, &self.result)
                .and_then(|picture| Ok(file.write(picture.as_bytes())?));
            if let Err(fault) = drawn {
                self.unwritten.push(format!("--plot {}: {fault}", path.display()));
            }
        }
        let written = loop {
            if let Some(written) = self.writer.finish(LOOK) {
                break written;
            }
            self.signals.is_interrupted();
        };
        match written {
            // A reader that closes the output early is not an error.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                self.unwritten.push(format!("cannot write to standard output: {error}"));
            }
            _ => {}
        }
        self.unwritten.iter().for_each(|fault| complain(&format!("echo-load: {fault}")));
        let problems = self.result.problems(&self.plan);
        let unwritten = (!self.unwritten.is_empty()).then_some(Status::Output);
        let statuses = problems.iter().map(|problem| problem.status).chain(unwritten);
        statuses.min().unwrap_or(Status::Fine)
    }
}
