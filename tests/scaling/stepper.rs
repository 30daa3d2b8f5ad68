//! Runs threads of another process one instruction at a time (ptrace(2)), and counts what they do.
//!
//! The process is the real one, with its ring, its sandbox and its kernel; only time is different.
//! A stepped instruction takes some microseconds, so what depends on time would happen thousands
//! of times too often: see [`SLOWNESS`].
//!
//! 1. The tracer, a thread of its own, attaches to all threads. Those that were selected are
//!    stepped, the others are held until the end.
//! 2. Before each step the instruction is decoded and recorded, with the memory that it accesses.
//! 3. What the kernel does for a thread between two instructions is not seen.
//! 4. At the end all threads are let go, and continue.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::time::{ClockId, clock_gettime};

use crate::instructions::Code;
use crate::machine::Process;
use crate::sharing::{Lines, Thread};

/// By this factor the clock of stepped threads is slower than the real one. A stepped instruction
/// takes that much longer on a busy machine, and at the usual pace a worker would publish its
/// counters, which it does after 10 ms, with each echo.
const SLOWNESS: i64 = 100_000;

/// How long no thread may take a step before all of them are considered to wait.
const QUIET: Duration = Duration::from_millis(50);

/// What was counted.
#[derive(Default)]
pub(crate) struct Recording {
    /// Instructions of all threads.
    pub(crate) instructions: u64,
    /// How often each locked instruction was executed, by its address.
    pub(crate) locked: BTreeMap<u64, u64>,
    /// System calls by thread.
    pub(crate) calls: BTreeMap<Thread, u64>,
    /// The cache lines, and who has them.
    pub(crate) lines: Lines,
}

/// What the tracer has been asked for.
#[derive(Clone, Copy)]
enum Phase {
    Prepare,
    Record,
    End,
}

/// A process that is being stepped.
pub(crate) struct Stepper {
    phase: Arc<AtomicU8>,
    steps: Arc<AtomicU64>,
    tracer: JoinHandle<Recording>,
}

impl Stepper {
    /// Attaches to `process` and steps the threads with names of which `select` is true.
    pub(crate) fn attach(process: Process, select: fn(&str) -> bool) -> Self {
        let phase = Arc::new(AtomicU8::new(Phase::Prepare as u8));
        let steps = Arc::new(AtomicU64::new(0));
        let (tracer_phase, tracer_steps) = (Arc::clone(&phase), Arc::clone(&steps));
        let (attached, is_attached) = channel();
        let tracer = thread::spawn(move || {
            let mut tracer = Tracer::new(process, tracer_phase, tracer_steps);
            tracer.run(select, &attached)
        });
        is_attached.recv().expect("the tracer attaches");
        Self { phase, steps, tracer }
    }

    /// Forgets what has been recorded so far.
    pub(crate) fn begin(&self) {
        self.settle();
        self.phase.store(Phase::Record as u8, Ordering::SeqCst);
    }

    /// Waits until every stepped thread waits in the kernel.
    pub(crate) fn settle(&self) {
        let mut before = u64::MAX;
        loop {
            let now = self.steps.load(Ordering::SeqCst);
            if now == before {
                return;
            }
            before = now;
            thread::sleep(QUIET);
        }
    }

    /// Lets all threads go. `nudge` must make one of the stepped threads run.
    pub(crate) fn end(self, nudge: impl FnOnce()) -> Recording {
        self.settle();
        self.phase.store(Phase::End as u8, Ordering::SeqCst);
        nudge();
        self.tracer.join().expect("the tracer ends")
    }
}

/// The state of one thread.
#[derive(Default)]
struct State {
    /// Whether it is running, so that a stop of it will be reported.
    is_running: bool,
    /// The arguments with which it called into the code that the kernel provides for reading
    /// clocks, while it is there: the clock, and where the time is written.
    in_clock: Option<(u64, u64)>,
    /// The monotonic clock when it was attached to.
    began: i64,
}

struct Tracer {
    process: Process,
    phase: Arc<AtomicU8>,
    steps: Arc<AtomicU64>,
    threads: BTreeMap<Thread, State>,
    /// The addresses of the code that the kernel provides for reading clocks.
    vdso: Range<u64>,
    code: Code,
    recording: Recording,
}

impl Tracer {
    fn new(process: Process, phase: Arc<AtomicU8>, steps: Arc<AtomicU64>) -> Self {
        let (threads, recording) = (BTreeMap::new(), Recording::default());
        let (vdso, code) = (vdso(process), Code::of(process));
        Self { process, phase, steps, threads, vdso, code, recording }
    }

    fn run(&mut self, select: fn(&str) -> bool, attached: &Sender<()>) -> Recording {
        for (thread, name) in names(self.process) {
            let pid = Pid::from_raw(thread);
            ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).expect(
                "ptrace(2) has to be permitted: see /proc/sys/kernel/yama/ptrace_scope, or the \
                 seccomp profile of the container",
            );
            ptrace::interrupt(pid).unwrap();
            next_stop(Some(thread));
            let mut state = State::default();
            if select(&name) {
                // An interrupted worker has a turn without events. It is not stepped, but runs to
                // its next system call, which is to wait again.
                ptrace::syscall(pid, None).unwrap();
                next_stop(Some(thread));
                ptrace::step(pid, None).unwrap();
                state = State { is_running: true, began: clock(), ..state };
            }
            self.threads.insert(thread, state);
        }
        attached.send(()).unwrap();
        let mut is_recording = false;
        loop {
            let (thread, stop) = next_stop(None);
            self.state(thread).is_running = false;
            self.steps.fetch_add(1, Ordering::SeqCst);
            let phase = self.phase.load(Ordering::SeqCst);
            if phase == Phase::End as u8 {
                self.let_go();
                return std::mem::take(&mut self.recording);
            }
            if phase == Phase::Record as u8 && !is_recording {
                is_recording = true;
                self.recording = Recording::default();
            }
            let signal = match stop {
                Stop::Step | Stop::Other => {
                    self.record(thread);
                    None
                }
                Stop::Signal(signal) => Some(signal),
            };
            self.state(thread).is_running = true;
            ptrace::step(Pid::from_raw(thread), signal).unwrap();
        }
    }

    fn state(&mut self, thread: Thread) -> &mut State {
        self.threads.get_mut(&thread).expect("no thread begins meanwhile")
    }

    /// Records the instruction that `thread` is about to execute.
    fn record(&mut self, thread: Thread) {
        let registers = ptrace::getregs(Pid::from_raw(thread)).unwrap();
        self.slow_the_clock(thread, &registers);
        let instruction = self.code.at(registers.rip);
        let recording = &mut self.recording;
        recording.instructions += 1;
        if instruction.is_locked {
            *recording.locked.entry(registers.rip).or_default() += 1;
        }
        let calls = recording.calls.entry(thread).or_default();
        *calls += u64::from(instruction.is_call);
        for (address, bytes, access) in instruction.accesses(&registers) {
            let turn = (thread, *calls);
            recording.lines.touch(turn, access, (address, bytes), registers.rip);
        }
    }

    /// When `thread` has read the monotonic clock, sets the time that it has read back to what it
    /// would be if no more time had passed than without a tracer.
    fn slow_the_clock(&mut self, thread: Thread, registers: &user_regs_struct) {
        let is_inside = self.vdso.contains(&registers.rip);
        let state = self.threads.get_mut(&thread).expect("it was attached to");
        if is_inside {
            state.in_clock.get_or_insert((registers.rdi, registers.rsi));
            return;
        }
        let Some((clock, at)) = state.in_clock.take() else { return };
        if clock != libc::CLOCK_MONOTONIC as u64 {
            return;
        }
        let began = state.began;
        let (thread, seconds, nanoseconds) = (Pid::from_raw(thread), at, at + 8);
        let read = |address: u64| ptrace::read(thread, address as *mut _).unwrap();
        let write = |address: u64, value| ptrace::write(thread, address as *mut _, value).unwrap();
        let now = read(seconds) * 1_000_000_000 + read(nanoseconds);
        let now = began + (now - began) / SLOWNESS;
        write(seconds, now / 1_000_000_000);
        write(nanoseconds, now % 1_000_000_000);
    }

    /// Detaches from all threads. One may be let go only after it has reported its step, otherwise
    /// the signal of that step would end the process.
    fn let_go(&mut self) {
        for (&thread, state) in &self.threads {
            let pid = Pid::from_raw(thread);
            if state.is_running {
                ptrace::interrupt(pid).unwrap();
                loop {
                    let signal = match next_stop(Some(thread)).1 {
                        Stop::Step => break,
                        Stop::Signal(signal) => Some(signal),
                        Stop::Other => None,
                    };
                    ptrace::step(pid, signal).unwrap();
                }
            }
            ptrace::detach(pid, None).unwrap();
        }
    }
}

/// Why a thread has stopped.
enum Stop {
    /// It has taken its step.
    Step,
    /// A signal is to be delivered to it.
    Signal(Signal),
    /// It was interrupted, or is about to enter the kernel for the first time.
    Other,
}

/// The next stop of `thread`, or of any.
fn next_stop(thread: Option<Thread>) -> (Thread, Stop) {
    // Without the last flag a process might be taken that another test waits for.
    let options = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    match waitpid(thread.map(Pid::from_raw), Some(options)) {
        Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)) => (pid.as_raw(), Stop::Step),
        Ok(WaitStatus::Stopped(pid, signal)) => (pid.as_raw(), Stop::Signal(signal)),
        Ok(WaitStatus::PtraceEvent(pid, ..) | WaitStatus::PtraceSyscall(pid)) => {
            (pid.as_raw(), Stop::Other)
        }
        other => panic!("instead of a step: {other:?}"),
    }
}

/// The threads of a process, and their names.
pub(crate) fn names(process: Process) -> BTreeMap<Thread, String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.0)).unwrap();
    let name = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).unwrap();
        let number = task.file_name().to_str().unwrap().parse().unwrap();
        (number, name.trim_end().to_owned())
    };
    tasks.map(|task| name(task.unwrap())).collect()
}

/// The monotonic clock, in nanoseconds.
fn clock() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Where the code is that the kernel provides for reading clocks.
fn vdso(process: Process) -> Range<u64> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.0)).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).expect("x86-64 has one");
    let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
    u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
}
