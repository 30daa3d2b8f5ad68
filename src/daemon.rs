//! The daemon: start-up order, signals, readiness, reload, watchdog, drain, exit.
//!
//! The main thread is not involved in any echo. It starts the workers and then sleeps in poll(2)
//! until a signal, a worker or a timer needs attention. It may therefore block on the service
//! manager or the log without delaying an echo.

mod accepting;
mod accepts;
mod admission_policy;
mod datagrams;
mod job;
mod life;
mod next_version;
mod report;
mod request;
mod restart;
mod service;
mod terminal;
mod view;
mod watchdog;
mod workers;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use log::LevelFilter;

use crate::cli::{CheckOptions, Options};
use crate::config::{self, Config, ConfigError, Invalid, LogTarget, Overrides};
use crate::handover;
use crate::listen::{Inherited, ListenError, Listener, Opened, Origin};
use crate::logging::{self, Target, events};
use crate::systemd::Notifier;
use echo_ring::Unusable;
use echo_ring::output;

pub use request::reload;

/// `EX_SOFTWARE` of sysexits.h: a worker panicked.
const EXIT_SOFTWARE: u8 = 70;
/// `EX_OSERR` of sysexits.h: the system refused a resource.
const EXIT_SYSTEM: u8 = 71;
/// `EX_CONFIG` of sysexits.h: the configuration is invalid, or this kernel cannot run the daemon.
const EXIT_CONFIG: u8 = 78;

/// How long the daemon waits for the last log messages when it ends.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the service could not start, or failed.
#[derive(Debug)]
enum Failure {
    /// A listening socket.
    Listen(ListenError),
    /// The kernel.
    Uring(Unusable),
    /// The system refused an operation: which, and the reason.
    System(&'static str, io::Error),
    /// The ring of a worker failed: which worker, and the error.
    Ring(usize, String),
    /// A worker panicked: which.
    Panic(usize),
}

impl Failure {
    fn exit_status(&self) -> u8 {
        match self {
            Self::Listen(error) => error.exit_status(),
            // A temporary failure is worth a restart, see RestartPreventExitStatus=.
            Self::Uring(unusable) if !unusable.may_pass() => EXIT_CONFIG,
            Self::Uring(_) | Self::System(..) | Self::Ring(..) => EXIT_SYSTEM,
            Self::Panic(_) => EXIT_SOFTWARE,
        }
    }

    fn errno(&self) -> u32 {
        let code = match self {
            Self::System(_, error) => error.raw_os_error(),
            Self::Uring(unusable) => Some(unusable.errno()),
            Self::Listen(_) | Self::Ring(..) | Self::Panic(_) => None,
        };
        code.unwrap_or(nix::libc::EIO).unsigned_abs()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => error.fmt(formatter),
            Self::Uring(error) => error.fmt(formatter),
            Self::System(what, error) => write!(formatter, "cannot {what}: {error}"),
            Self::Ring(worker, error) => write!(formatter, "worker {worker}: {error}"),
            Self::Panic(worker) => write!(
                formatter,
                "worker {worker} panicked: this is a defect; please report it with the \
                 preceding messages"
            ),
        }
    }
}

/// Validates the configuration and prints the result. Errors and warnings go to standard error, all
/// of them; or all goes to standard output, as JSON.
#[must_use]
pub fn check(check: &CheckOptions) -> ExitCode {
    let CheckOptions { options, json } = check;
    let path = options.config.as_deref();
    let mut outcome = config::examine(path, &overrides(options));
    let mut status = 0;
    match &mut outcome {
        Ok(examined) => {
            examined.warnings.extend(request::too_few_files(examined, path));
            for warning in examined.warnings.iter().filter(|_| !json) {
                output::complain(&format!("echo-uring: warning: {warning}"));
            }
            if let Some(problem) = request::unreadable_to_the_service(path) {
                output::complain(&format!("echo-uring: {problem}"));
                return ExitCode::from(EXIT_CONFIG);
            }
        }
        Err(invalid) => status = invalid.exit_status(),
    }
    let printed = match &outcome {
        _ if *json => output::print(&(config::judgement(&outcome) + "\n")),
        Ok(examined) => output::print(&examined.config.to_toml()),
        Err(invalid) => {
            complain_of(invalid);
            Ok(())
        }
    };
    if let Err(error) = printed {
        output::complain(&format!("echo-uring: {}", output::unwritten(&error)));
        status = output::EXIT_OUTPUT;
    }
    ExitCode::from(status)
}

/// Says all that is wrong, a line each.
fn complain_of(invalid: &Invalid) {
    for line in invalid.lines() {
        output::complain(&format!("echo-uring: {line}"));
    }
}

/// Serves until a signal ends it.
#[must_use]
pub fn serve(options: &Options) -> ExitCode {
    // Inherited sockets come first. They are identified by their numbers, which descriptors opened
    // below must not use. Taking them also changes the environment, which only one thread may do.
    let inherited = crate::listen::inherit();
    let notifier = Notifier::from_env();
    // Signals are blocked before the first thread starts, so that every thread inherits the mask
    // and signals stay pending. They are blocked before the configuration is read, so that no
    // reload request is lost.
    let signals = match service::block_signals() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format_args!("cannot block signals: {error}"));
            return ExitCode::from(EXIT_SYSTEM);
        }
    };
    let bundles = inherited.as_ref().map_or(&[][..], |inherited| &inherited.bundles);
    let names = inherited.as_ref().map_or(Vec::new(), Inherited::names);
    let Loaded { config, trouble } = match load_or_keep(options, bundles, &names) {
        Ok(loaded) => loaded,
        Err(error) => {
            complain(&error);
            notifier.failed(nix::libc::EINVAL.unsigned_abs(), &error.to_string());
            notifier.finish();
            return ExitCode::from(error.exit_status());
        }
    };
    let opened = inherited
        .and_then(|found| crate::listen::open_beside(found, &config.listeners, &config.tcp));
    let log = match logging::start(target(config.log.target), config.log.level) {
        Ok(log) => log,
        Err(error) => {
            complain(&error);
            return ExitCode::from(EXIT_SYSTEM);
        }
    };
    let ended = opened
        .map_err(Failure::Listen)
        .map(|opened| with_warning_of_ignored_listen(opened, options))
        .and_then(|opened| {
            if let Some(trouble) = &trouble {
                log::error!(message_id = events::CONFIGURATION_KEPT; "{trouble}");
            }
            let source = service::Source { options, names: &names, log: &log, trouble };
            service::run(&config, opened, signals, &notifier, &source)
        });
    let status = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure, config.log.level);
            notifier.failed(failure.errno(), &failure.to_string());
            ExitCode::from(failure.exit_status())
        }
    };
    notifier.finish();
    log.finish(LOG_TIMEOUT);
    status
}

fn with_warning_of_ignored_listen(mut opened: Opened, options: &Options) -> Opened {
    let inherited = |listener: &&Listener| listener.origin == Origin::Inherited;
    let inherited = || opened.listeners.iter().filter(inherited);
    let (any, any_of_echo) =
        (inherited().next().is_some(), inherited().any(|it| !it.kind.is_monitoring()));
    for (option, is_ignored) in [
        // Sockets for monitoring alone do not replace those that echo.
        ("--listen", any_of_echo && !options.listen.is_empty()),
        ("--metrics", any && options.metrics.is_some()),
        ("--status", any && options.status.is_some()),
    ] {
        if is_ignored {
            let warning = "is ignored, because the service manager has passed sockets";
            opened.warnings.push(format!("{option} {warning}"));
        }
    }
    opened
}

/// Prints an error to standard error when there is no log yet.
fn complain(what: &dyn fmt::Display) {
    logging::complain(&format!("echo-uring: {what}"));
}

/// Reports a failure, even if logging is off.
fn say(failure: &Failure, level: LevelFilter) {
    if level == LevelFilter::Off {
        complain(failure);
    } else {
        let status = failure.exit_status();
        log::error!(message_id = events::FAILED, status; "echo-uring: {failure}");
    }
}

/// The configuration of the files; `names` are those of the inherited sockets.
fn load(options: &Options, names: &[String]) -> Result<Config, Invalid> {
    let examined = config::examine(options.config.as_deref(), &overrides(options))?;
    examined.require_sockets(names)?;
    Ok(examined.config)
}

/// What the command line says over the file.
fn overrides(options: &Options) -> Overrides {
    let Options { config: _, listen, metrics, status, log_level } = options.clone();
    Overrides { listen, metrics, status, log_level }
}

/// The configuration at the start.
struct Loaded {
    config: Config,
    /// Why this differs from the file, if it does.
    trouble: Option<String>,
}

/// The configuration of the file. If it is invalid and the previous process has left connections in
/// `bundles`, the last valid configuration, because a failed start would end all of them.
fn load_or_keep(
    options: &Options,
    bundles: &[OwnedFd],
    names: &[String],
) -> Result<Loaded, Invalid> {
    let error = match load(options, names) {
        Ok(config) => return Ok(Loaded { config, trouble: None }),
        // The command line comes from the unit. No other source has its meaning.
        Err(error) if matches!(error.errors[..], [ConfigError::CommandLine { .. }]) => {
            return Err(error);
        }
        Err(error) => error,
    };
    let Some(kept) = handover::configuration(bundles) else { return Err(error) };
    let name = Path::new("(kept configuration)");
    let Ok(config) = config::restore(&kept, name, &overrides(options)) else { return Err(error) };
    let trouble = format!("invalid configuration: {error}; the last valid one is in force");
    Ok(Loaded { config, trouble: Some(trouble) })
}

fn target(target: LogTarget) -> Target {
    match target {
        LogTarget::Auto => Target::Auto,
        LogTarget::Syslog => Target::Syslog,
        LogTarget::Stderr => Target::Stderr,
    }
}
