//! Starts the real daemon as a service manager does, watches it, and ends it with the checks that
//! are common to all tests.
//!
//! The daemon inherits listening sockets as descriptors 3, 4, …. A shell sets `LISTEN_PID`, since
//! only the child itself knows its process id, and then executes the daemon. The environment is
//! empty otherwise, so that the daemon uses the stand-ins and no real service manager or journal.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ending::{Counters, Losses};
use crate::lines::Lines;
use crate::machine::{Process, Scratch, time_limit, wait_until};
use crate::manager::Manager;
use crate::place::{Listening, Place};

/// The daemon under test: the program that Cargo built, or that `ECHO_URING_BIN` names.
pub(crate) fn program() -> PathBuf {
    let named = std::env::var_os("ECHO_URING_BIN").map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_echo-uring")))
}

/// How the daemon is to be started.
#[derive(Default)]
pub(crate) struct Launch {
    /// Listening sockets that the daemon inherits.
    pub(crate) listening: Vec<Listening>,
    /// Status, metrics and agent-check sockets that it inherits after those, with their names.
    pub(crate) admin_sockets: Vec<(&'static str, Listening)>,
    /// How many more descriptors `LISTEN_FDS` announces than are passed.
    pub(crate) missing: usize,
    /// Other descriptors that it inherits after those, instead of sockets.
    pub(crate) strangers: Vec<OwnedFd>,
    /// What the service manager has in its descriptor store.
    pub(crate) stored: Vec<OwnedFd>,
    /// Where it finds the system bus.
    pub(crate) bus: String,
    /// The text of its configuration file.
    pub(crate) config: String,
    /// Drop-ins beside that file: their names and texts.
    pub(crate) drop_ins: Vec<(&'static str, String)>,
    /// The names of the listening sockets, where not all are called `test`.
    pub(crate) names: Vec<&'static str>,
    /// Further arguments.
    pub(crate) arguments: Vec<String>,
    /// The value for `WATCHDOG_USEC`.
    pub(crate) watchdog: Option<Duration>,
    /// How long the service manager does not read at first, with a full queue.
    pub(crate) not_reading_for: Option<Duration>,
    /// Whether the service manager answers no barrier at first.
    pub(crate) holds_barriers: bool,
    /// The limit on open files that it starts with, hard and soft.
    pub(crate) open_files: Option<u32>,
    /// A command that runs it, such as a tracer. The process started must become the daemon.
    pub(crate) wrapper: Vec<String>,
    /// Where its stderr goes instead of to [`Lines`].
    pub(crate) stderr: Option<Stdio>,
    /// The process that `LISTEN_PID` names instead of the daemon.
    pub(crate) addressee: Option<u32>,
    /// The file to run instead of [`program`].
    pub(crate) program: Option<PathBuf>,
}

impl Launch {
    /// With one listening socket on 127.0.0.1 and this configuration.
    pub(crate) fn with_config(config: &str) -> Self {
        let listening = vec![Listening::ipv4()];
        Self { listening, config: config.to_owned(), ..Self::default() }
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(self) -> Daemon {
        let daemon = self.spawn();
        let limit = time_limit(20.0);
        let start = Instant::now();
        while daemon.manager.values("READY").is_empty() {
            let gone = daemon.process.open_files() == 0;
            if gone || start.elapsed() > limit {
                panic!("the daemon did not get ready:\n{}", daemon.transcript());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.measured()
    }

    /// Starts it and waits until it ends by itself, which must happen soon and before it is ready.
    pub(crate) fn fail(self) -> Refusal {
        let mut daemon = self.spawn();
        let status = daemon.wait(time_limit(20.0));
        assert!(daemon.manager.values("READY").is_empty(), "it was ready before it refused");
        daemon.lines.wait_for_end(time_limit(5.0));
        let lines = daemon.lines.all();
        Refusal { code: status.code(), lines, config_path: daemon.scratch.path("echo-uring.toml") }
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(mut self) -> Daemon {
        let scratch = Scratch::new();
        let config_path = scratch.path("echo-uring.toml");
        fs::write(&config_path, &self.config).unwrap();
        for (name, text) in &self.drop_ins {
            let directory = scratch.path("echo-uring.toml.d");
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(name), text).unwrap();
        }
        let manager = Manager::start(&scratch.path("notify"));
        manager.hold_barriers(self.holds_barriers);
        if let Some(span) = self.not_reading_for {
            manager.stop_reading();
            manager.read_again_after(span);
        }
        let mut inherited: Vec<OwnedFd> = self.listening.iter().map(Listening::hand_over).collect();
        inherited.extend(self.admin_sockets.iter().map(|(_, socket)| socket.hand_over()));
        inherited.append(&mut self.strangers);
        let stored = self.stored.len();
        inherited.append(&mut self.stored);

        let mut command = match self.wrapper.split_first() {
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg("/bin/sh");
                command
            }
            None => Command::new("/bin/sh"),
        };
        let script = self.script(inherited.len(), stored);
        let program = self.program.clone().unwrap_or_else(program);
        command.arg("-c").arg(script).arg(program).arg("--config").arg(&config_path);
        command.args(&self.arguments).env_clear().env("NOTIFY_SOCKET", manager.path());
        command.env("RUST_BACKTRACE", "1").env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let mapping = |(index, parent_fd)| FdMapping { parent_fd, child_fd: 3 + index };
        command.fd_mappings((0_i32..).zip(inherited).map(mapping).collect()).unwrap();
        let collected = self.stderr.is_none();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(self.stderr.unwrap_or_else(Stdio::piped));

        let mut child = command.spawn().unwrap();
        // The command still holds the inherited descriptors. The daemon must have the only copies.
        drop(command);
        let lines =
            if collected { Lines::read(child.stderr.take().unwrap()) } else { Lines::none() };
        let process = Process(child.id());
        let (listening, admin_sockets) = (self.listening, self.admin_sockets);
        Daemon { child, process, lines, manager, listening, admin_sockets, files: 0, scratch }
    }

    /// What the shell does before it executes the daemon.
    fn script(&self, sockets: usize, stored: usize) -> String {
        // The soft limit that a service manager sets. The daemon raises it itself.
        let mut script = "ulimit -S -n 1024; ".to_owned();
        if let Some(limit) = self.open_files {
            write!(script, "ulimit -n {limit}; ").unwrap();
        }
        if let Some(interval) = self.watchdog {
            let micros = interval.as_micros();
            write!(script, "export WATCHDOG_USEC={micros} WATCHDOG_PID=$$; ").unwrap();
        }
        if sockets > 0 {
            let mut names = self.names.clone();
            names.resize(self.listening.len(), "test");
            names.extend(self.admin_sockets.iter().map(|(name, _)| *name));
            names.resize(sockets - stored, "test");
            names.resize(sockets, "bundle");
            let names = names.join(":");
            let addressee = self.addressee.map_or("$$".to_owned(), |pid| pid.to_string());
            let promised = sockets + self.missing;
            write!(script, "export LISTEN_FDS={promised} LISTEN_FDNAMES={names} ").unwrap();
            write!(script, "LISTEN_PID={addressee}; ").unwrap();
        }
        script + "exec \"$0\" \"$@\""
    }
}

/// The result of a start that had to fail.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The exit status; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it wrote to stderr.
    pub(crate) lines: Vec<String>,
    /// Where its configuration file was.
    pub(crate) config_path: PathBuf,
}

impl Refusal {
    /// Asserts the exit status, and that there is one line, which contains each of `words`.
    pub(crate) fn assert(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.lines.len(), 1, "one line was expected: {self:#?}");
        let line = &self.lines[0];
        for word in words {
            assert!(line.contains(word), "{word:?} is missing: {self:#?}");
        }
        // Once the log is open the line begins with its level, as every other line.
        let line = line.strip_prefix("error ").unwrap_or(line);
        assert!(line.starts_with("echo-uring: "), "it does not begin with the name: {self:#?}");
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    /// The process, by its pid.
    pub(crate) process: Process,
    /// What it writes to stderr.
    pub(crate) lines: Lines,
    /// The service manager, which records its notifications.
    pub(crate) manager: Manager,
    listening: Vec<Listening>,
    admin_sockets: Vec<(&'static str, Listening)>,
    files: usize,
    /// Removed after the daemon has ended.
    scratch: Scratch,
}

/// What a daemon has left after an orderly end.
#[derive(Debug)]
pub(crate) struct Remains {
    /// The counters of its last line.
    pub(crate) counters: Counters,
    /// All lines that it wrote to stderr.
    pub(crate) lines: Vec<String>,
}

impl Daemon {
    /// Its log lines so far, at least those until it was ready: the service manager may hear of that
    /// before this process has read the log.
    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.wait_for("info ready", time_limit(20.0));
        self.lines.all()
    }

    /// The place of the first inherited socket.
    pub(crate) fn place(&self) -> &Place {
        &self.listening[0].place
    }

    /// The places of all inherited sockets.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.listening.iter().map(|it| it.place.clone()).collect()
    }

    /// The place of the status, metrics or agent-check socket of this name.
    pub(crate) fn admin_place(&self, name: &str) -> &Place {
        let socket = self.admin_sockets.iter().find(|(known, _)| *known == name);
        &socket.unwrap().1.place
    }

    /// Measures the number of open files at rest: the least of several counts, as a notification
    /// briefly opens one.
    fn measured(mut self) -> Self {
        let look = |_| {
            std::thread::sleep(Duration::from_millis(2));
            self.process.open_files()
        };
        self.files = (0..5).map(look).min().unwrap();
        self
    }

    /// A second handle of the first inherited socket.
    pub(crate) fn place_socket(&self) -> OwnedFd {
        self.listening[0].hand_over()
    }

    /// The directory of its drop-ins, which may not exist.
    pub(crate) fn drop_ins(&self) -> PathBuf {
        self.scratch.path("echo-uring.toml.d")
    }

    /// Its configuration file, for a test to rewrite before a reload.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.scratch.path("echo-uring.toml")
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits until it has no more open files than at the start: every connection is closed.
    pub(crate) fn settle(&self) {
        let limit = time_limit(20.0);
        let start = Instant::now();
        while self.process.open_files() > self.files {
            if start.elapsed() > limit {
                let (now, files) = (self.process.describe_files(), self.files);
                panic!("files leaked; there were {files}, now:\n{now}\n{}", self.transcript());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// After all clients have closed: checks that nothing leaked, ends the daemon and checks its
    /// end. No byte may be lost.
    pub(crate) fn stop(self) -> Remains {
        self.stop_with(Losses::None)
    }

    /// The same if some bytes could not be echoed: peers reset, stalled, or wrote after the end.
    pub(crate) fn stop_with(self, losses: Losses) -> Remains {
        self.settle();
        self.signal(Signal::SIGTERM);
        self.finish(losses)
    }

    /// Waits for the end of a daemon that exports its connections. Returns what it stored with the
    /// service manager, its listening sockets, and its log lines.
    pub(crate) fn export(self) -> (Vec<OwnedFd>, Vec<Listening>, Vec<String>) {
        self.signal(Signal::SIGTERM);
        self.exported()
    }

    /// The same for a daemon that was signaled.
    pub(crate) fn exported(mut self) -> (Vec<OwnedFd>, Vec<Listening>, Vec<String>) {
        let status = self.wait(time_limit(20.0));
        self.lines.wait_for_end(time_limit(5.0));
        assert_eq!(status.code(), Some(0), "{}", self.transcript());
        (self.manager.take_stored(), std::mem::take(&mut self.listening), self.lines.all())
    }

    /// Waits for the end of a daemon that was signaled to stop, and checks it.
    pub(crate) fn finish(mut self, losses: Losses) -> Remains {
        let status = self.wait(time_limit(30.0));
        self.lines.wait_for_end(time_limit(5.0));
        let transcript = self.transcript();
        assert_eq!(status.code(), Some(0), "{transcript}");
        let lines = self.lines.all();
        let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
        let counters = Counters::judge(&texts, losses);
        let counters = counters.unwrap_or_else(|fault| panic!("{fault}\n{transcript}"));
        Remains { counters, lines }
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon to end", limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// All its output, for a message.
    pub(crate) fn transcript(&self) -> String {
        let mut text = String::from("--- stderr\n");
        for line in self.lines.all() {
            writeln!(text, "{line}").unwrap();
        }
        text.push_str("--- notifications\n");
        for notification in self.manager.received() {
            writeln!(text, "{:?}", notification.text).unwrap();
        }
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            if std::thread::panicking() {
                eprintln!("{}", self.transcript());
            }
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Runs the daemon's program to its end with these arguments alone and an empty environment.
pub(crate) fn run_to_end(arguments: &[&str], directory: Option<&Path>) -> std::process::Output {
    let mut command = Command::new(program());
    command.args(arguments).env_clear().stdin(Stdio::null());
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    command.output().unwrap()
}
