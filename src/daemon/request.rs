//! `echo-uring reload`, which the service unit runs for `systemctl reload`: makes the daemon
//! reload, and its exit status shows whether the configuration is valid.
//!
//! The daemon is signalled in any case, so that it reports an invalid file in its status and in the
//! log. This command knows only the process id of the daemon.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use super::{EXIT_SYSTEM, complain_of, overrides};
use crate::capacity::{self, Sockets};
use crate::cli::Options;
use crate::config::{self, Config, Examined};
use crate::instance;
use crate::systemd::account::Account;
use crate::systemd::units;
use echo_ring::output;

/// `EX_USAGE` of sysexits.h: command line usage error.
const EXIT_USAGE: u8 = 64;
/// How long the daemon may take to receive the signal.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often this is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Signals the process that `MAINPID` names, waits until it has received the signal, and validates
/// the configuration that `options` select.
#[must_use]
pub fn reload(options: &Options) -> ExitCode {
    let named = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok());
    let Some(pid) = named.filter(|pid| *pid > 1) else {
        output::complain(
            "echo-uring: reload: MAINPID is not set to a process id; use systemctl reload \
             echo-uring, or kill -HUP",
        );
        return ExitCode::from(EXIT_USAGE);
    };
    if let Err(errno) = kill(Pid::from_raw(pid), Signal::SIGHUP) {
        output::complain(&format!("echo-uring: reload: cannot signal process {pid}: {errno}"));
        return ExitCode::from(EXIT_SYSTEM);
    }
    let checked = config::load(options.config.as_deref(), &overrides(options));
    wait_until_received(pid);
    match checked {
        Ok(_) => ExitCode::SUCCESS,
        Err(invalid) => {
            complain_of(&invalid);
            ExitCode::from(invalid.exit_status())
        }
    }
}

/// Root can read every file, the service cannot. Returns why the service cannot read its
/// configuration, if the path of the file tells which service it belongs to.
pub(super) fn unreadable_to_the_service(path: Option<&Path>) -> Option<String> {
    // Only root can test this.
    if !Uid::effective().is_root() {
        return None;
    }
    let account = Account::of_name(&service_of(path)?)?;
    config::files(path).iter().find_map(|file| {
        let denied = account.try_reading(file).err()?;
        Some(format!("{}: {denied}", file.display()))
    })
}

/// A warning if the limit on open files allows fewer connections than are configured. The limit is
/// that of the service whose configuration this is, or else of this process. The default value of
/// `limits.max-connections` causes no warning.
pub(super) fn too_few_files(examined: &Examined, path: Option<&Path>) -> Option<String> {
    let config = &examined.config;
    let wanted = config.limits.max_connections;
    if wanted == Config::default().limits.max_connections {
        return None;
    }
    let service = service_of(path).and_then(|name| units::show(&[&name]).ok()?.into_iter().next());
    let (limit, whose) = match service.filter(units::Unit::is_loaded) {
        Some(unit) => (unit.limit("LimitNOFILE").unwrap_or(u64::MAX), unit.name().to_owned()),
        None => (getrlimit(Resource::RLIMIT_NOFILE).ok()?.1, "this process".to_owned()),
    };
    let echo = config.listeners.iter().filter(|it| !it.kind.is_monitoring()).count();
    let sockets = Sockets { echo, admin: config.listeners.len() - echo };
    let room = capacity::room(limit, capacity::workers(config), sockets);
    (room < wanted).then(|| {
        let problem = format!(
            "{wanted} do not fit: the limit on open files of {whose} is {limit}, enough for {room} \
             connections; raise LimitNOFILE= (ulimit -n) or lower this"
        );
        examined.warning("limits.max-connections", &problem)
    })
}

/// The packaged unit that reads a file of this name.
fn service_of(path: Option<&Path>) -> Option<String> {
    let file = path.unwrap_or(Path::new(config::DEFAULT_PATH));
    if file == Path::new(config::DEFAULT_PATH) {
        return Some("echo-uring.service".to_owned());
    }
    instance::of_file(file).map(|name| format!("echo-uring@{name}.service"))
}

/// Waits until the signal is no longer pending. The daemon notifies systemd of the reload before it
/// takes the signal. systemd must have that notification before this command ends, or it would
/// mistake the end of the command for the end of the reload.
fn wait_until_received(pid: i32) {
    let begin = Instant::now();
    while begin.elapsed() < TIMEOUT && is_pending(pid) == Some(true) {
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Whether SIGHUP is pending for the process; nothing if that is not visible.
fn is_pending(pid: i32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask & (1 << (Signal::SIGHUP as u32 - 1)) != 0)
}
