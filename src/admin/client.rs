//! The command `echo-uring status`: queries the daemon for a snapshot and shows it.
//!
//! It knows only the path of a socket that returns JSON.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::screen::{self, Screen};
use super::snapshot::Snapshot;
use super::table;
use echo_ring::output;

/// `EX_UNAVAILABLE` of sysexits.h: no answer.
const EXIT_UNAVAILABLE: u8 = 69;
/// `EX_OSERR` of sysexits.h.
const EXIT_SYSTEM: u8 = 71;

/// How long the daemon may take; it answers within half a second even if a worker is stalled.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of an answer, more than that of a thousand workers.
const ANSWER_MAX: u64 = 16 << 20;
/// How often `--watch` queries.
const INTERVAL: Duration = Duration::from_secs(1);

/// The daemon to query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The daemon with the status socket at this path.
    At(PathBuf),
    /// The instance of this name, at the path in `echo-uring-status@.socket`.
    Instance(String),
}

impl Daemon {
    /// The path of its status socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::At(path) => path.clone(),
            Self::Instance(name) => format!("/run/echo-uring/{name}/status.sock").into(),
        }
    }

    /// The instance suffix of its unit names.
    fn suffix(&self) -> String {
        match self {
            Self::At(_) => String::new(),
            Self::Instance(name) => format!("@{name}"),
        }
    }
}

/// The format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table.
    Table,
    /// The JSON of the daemon, unchanged.
    Json,
}

/// How often the snapshot is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Once.
    Once,
    /// Every second, until a signal, the key `q` or a closed output.
    Watch,
}

/// Why there is nothing to show.
#[derive(Debug)]
enum Failure {
    /// There is no answer, or not from the daemon.
    Daemon(io::Error),
    /// The answer is not a snapshot.
    Answer(serde_json::Error),
    /// An error of the terminal or of signals.
    System(io::Error),
    /// The output cannot be written.
    Output(io::Error),
}

impl Failure {
    /// One line with the error and the remedy.
    fn text(&self, daemon: &Daemon) -> String {
        let (path, suffix) = (daemon.socket(), daemon.suffix());
        let what = match self {
            Self::Daemon(error) if error.kind() == io::ErrorKind::PermissionDenied => format!(
                "the daemon does not answer: {error}; run this as root, or as a member of the \
                 group in SocketGroup= of echo-uring-status{suffix}.socket"
            ),
            Self::Daemon(error) => format!(
                "the daemon does not answer: {error}; check that it is running with \"systemctl \
                 status echo-uring{suffix}.service echo-uring-status{suffix}.socket\", or give its \
                 socket with --socket"
            ),
            Self::Answer(error) => {
                format!("the answer is not a status: {error}; give the status socket with --socket")
            }
            Self::System(error) => format!("cannot watch: {error}"),
            Self::Output(error) => return output::unwritten(error),
        };
        format!("{}: {what}", path.display())
    }
}

/// Shows the state of `daemon`.
#[must_use]
pub fn run(daemon: &Daemon, form: Form, times: Times) -> ExitCode {
    let socket = daemon.socket();
    let ended = match times {
        Times::Once => once(&socket, form),
        Times::Watch => watch(&socket, form),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&format!("echo-uring: {}", failure.text(daemon)));
            ExitCode::from(match failure {
                Failure::Daemon(_) | Failure::Answer(_) => EXIT_UNAVAILABLE,
                Failure::System(_) => EXIT_SYSTEM,
                Failure::Output(_) => output::EXIT_OUTPUT,
            })
        }
    }
}

fn once(socket: &Path, form: Form) -> Result<(), Failure> {
    let (text, snapshot) = ask(socket)?;
    let shown = match form {
        Form::Json => text,
        Form::Table => table::text(&snapshot, None),
    };
    output::print(&shown).map_err(Failure::Output)
}

/// The snapshot of the daemon at this path; nothing if there is no valid answer.
#[must_use]
pub fn snapshot(path: &Path) -> Option<Snapshot> {
    ask(path).ok().map(|(_, snapshot)| snapshot)
}

/// Queries the daemon; returns the answer as text and parsed.
fn ask(path: &Path) -> Result<(String, Snapshot), Failure> {
    let read = || {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let mut text = String::new();
        socket.take(ANSWER_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(Failure::Daemon)?;
    let snapshot = serde_json::from_str(&text).map_err(Failure::Answer)?;
    Ok((text, snapshot))
}

fn watch(socket: &Path, form: Form) -> Result<(), Failure> {
    let system = |errno: nix::errno::Errno| Failure::System(errno.into());
    let (text, mut last) = ask(socket)?;
    let on_screen = form == Form::Table && io::stdout().is_terminal();
    let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    let resized = on_screen.then_some(Signal::SIGWINCH);
    let signals: SigSet = ends.into_iter().chain(resized).collect();
    signals.thread_block().map_err(system)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(system)?;
    let screen = on_screen.then(Screen::new);
    let mut next = Instant::now() + INTERVAL;
    let mut shown = match form {
        Form::Json => text,
        Form::Table => table::text(&last, None),
    };
    loop {
        let written = match &screen {
            Some(screen) => screen.draw(&shown),
            None => output::write(&shown),
        };
        match written {
            Ok(()) => {}
            // A closed output ends it, as a signal does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::Output(error)),
        }
        match sleep_until(next, &signals, screen.as_ref()).map_err(system)? {
            Event::Time => {}
            Event::Resized => continue,
            Event::Key if !screen::is_ended_by_key() => continue,
            Event::Key | Event::End => return Ok(()),
        }
        next += INTERVAL;
        let (text, snapshot) = ask(socket)?;
        shown = match form {
            Form::Json => text,
            Form::Table => table::text(&snapshot, Some(&last)),
        };
        last = snapshot;
    }
}

/// Why a sleep ended.
enum Event {
    /// The time is over.
    Time,
    /// The size of the terminal has changed.
    Resized,
    /// A key was pressed.
    Key,
    /// A signal to end the command.
    End,
}

fn sleep_until(moment: Instant, signals: &SignalFd, screen: Option<&Screen>) -> nix::Result<Event> {
    let left = moment.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let stdin = io::stdin();
    let mut sources = [
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
    ];
    let count = if screen.is_some_and(Screen::has_keys) { 2 } else { 1 };
    match poll(&mut sources[..count], timeout) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Event::Time),
        Ok(_) => {}
        Err(errno) => return Err(errno),
    }
    if sources[0].any() != Some(true) {
        return Ok(Event::Key);
    }
    match signals.read_signal()? {
        Some(signal) if signal.ssi_signo == Signal::SIGWINCH as u32 => Ok(Event::Resized),
        _ => Ok(Event::End),
    }
}
