//! The command `echo-uring status`: asks the daemon for a snapshot and shows it.
//!
//! It knows the daemon only as a path that answers JSON.

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

/// `EX_UNAVAILABLE` of sysexits.h: nobody answers.
const EXIT_UNAVAILABLE: u8 = 69;
/// `EX_OSERR` of sysexits.h.
const EXIT_SYSTEM: u8 = 71;

/// How long the daemon may take; it answers within half a second even if a worker hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More than a thousand workers fill.
const ANSWER_MAX: u64 = 16 << 20;
/// How often `--watch` looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Whoever answers at this path.
    At(PathBuf),
    /// The instance of this name, where `echo-uring-status@.socket` has it.
    Instance(String),
}

impl Daemon {
    fn socket(&self) -> PathBuf {
        match self {
            Self::At(path) => path.clone(),
            Self::Instance(name) => format!("/run/echo-uring/{name}/status.sock").into(),
        }
    }

    /// What the names of its units end with.
    fn suffix(&self) -> String {
        match self {
            Self::At(_) => String::new(),
            Self::Instance(name) => format!("@{name}"),
        }
    }
}

/// How the snapshot is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Table,
    /// As it comes.
    Json,
}

/// How often it is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// Now.
    Once,
    /// Every second, until a signal, the key `q` or the end of the reader.
    Watch,
}

/// Why there is nothing to show.
#[derive(Debug)]
enum Failure {
    /// Nobody answers, or something else does.
    Daemon(io::Error),
    /// The answer is no snapshot.
    Answer(serde_json::Error),
    /// The terminal or the signals.
    System(io::Error),
    /// The state cannot be printed.
    Output(io::Error),
}

impl Failure {
    /// One line about what is wrong with `daemon`, and what to do about it.
    fn text(&self, daemon: &Daemon) -> String {
        let (path, suffix) = (daemon.socket(), daemon.suffix());
        let what = match self {
            Self::Daemon(error) if error.kind() == io::ErrorKind::PermissionDenied => format!(
                "the daemon does not answer: {error}; ask as root, or as a member of the group \
                 that SocketGroup= of echo-uring-status{suffix}.socket names"
            ),
            Self::Daemon(error) => format!(
                "the daemon does not answer: {error}; see whether it runs with \"systemctl status \
                 echo-uring{suffix}.service echo-uring-status{suffix}.socket\", or name its \
                 socket with --socket"
            ),
            Self::Answer(error) => {
                format!("the answer is no status: {error}; name its socket with --socket")
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

/// What the daemon at this path says of itself; nothing if nobody answers, or something else does.
#[must_use]
pub fn snapshot(path: &Path) -> Option<Snapshot> {
    ask(path).ok().map(|(_, snapshot)| snapshot)
}

/// One answer, as it came and as it is meant.
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
            // A reader that went away ends it, as a signal does.
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

/// What a sleep ends with.
enum Event {
    /// Its time is over.
    Time,
    /// The terminal has another size.
    Resized,
    /// A key was pressed.
    Key,
    /// A signal wants the end.
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
