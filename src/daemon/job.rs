//! The question that decides over a stop: is it half of a restart, and do the listening sockets end
//! with us?
//!
//! Units with our `ExecStop=` announce the first before the signal ([`super::restart`]). In
//! other units, and for the second, systemd is asked over the system bus ([`bus`]), by a thread of
//! its own, so that a bus or a systemd that is slow, deaf or hung holds up nothing: until there is
//! an answer, or nobody waits for it any more, the daemon serves as before.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::report;
use crate::systemd::bus::{self, Unit};

/// What an answer of the last moment may take to get here.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// A question that is under way.
pub(super) struct Question {
    answer: Receiver<io::Result<Unit>>,
    /// When no answer is waited for any more.
    pub(super) until: Instant,
}

impl Question {
    /// Asks, and rings `bell` when there is an answer.
    ///
    /// # Errors
    /// When there can be no thread that asks.
    pub(super) fn ask(bell: &Arc<EventFd>, timeout: Duration) -> io::Result<Self> {
        let (sender, answer) = channel();
        let bell = Arc::clone(bell);
        thread::Builder::new().name("question".into()).spawn(move || {
            let answer = ask_now(timeout);
            // Nobody may be waiting for it any more.
            let _ = sender.send(answer);
            let _ = bell.write(1);
        })?;
        Ok(Self { answer, until: Instant::now() + timeout + LAST_MOMENT })
    }

    /// The answer, if it is there or if it is too late for one.
    pub(super) fn answer(&self, now: Instant) -> Option<io::Result<Unit>> {
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Disconnected) => Some(Err(io::ErrorKind::BrokenPipe.into())),
            Err(TryRecvError::Empty) => {
                (now >= self.until).then(|| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

/// Asks, and waits for the answer.
pub(super) fn ask_now(timeout: Duration) -> io::Result<Unit> {
    bus::ask(&bus_path(), std::process::id(), timeout)
}

/// Whether the signal that came is half of a restart, with a store for what is to be kept. If that
/// cannot be found out it is not: a drain is right for any end, a hand-over only for this one.
pub(super) fn is_restart(answer: &io::Result<Unit>, connections: u64) -> bool {
    match answer {
        Ok(unit) => {
            let restart = matches!(unit.job.as_deref(), Some("restart" | "try-restart"));
            if restart && unit.store_max == 0 {
                log::warn!("FileDescriptorStoreMax= is 0: this restart keeps no connection");
            }
            restart && unit.store_max > 0
        }
        Err(error) => {
            let level = if connections > 0 { log::Level::Warn } else { log::Level::Debug };
            log::log!(
                level,
                "neither ExecStop= of the unit nor the system bus ({error}) tells a stop from a \
                 restart: draining; should it be a restart, it ends {}",
                report::count(connections, "connection")
            );
            false
        }
    }
}

/// `DBUS_SYSTEM_BUS_ADDRESS`, as the specification has it, if it is a path.
fn bus_path() -> PathBuf {
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let path = address.strip_prefix("unix:path=").filter(|path| !path.contains([',', ';', '%']));
    path.unwrap_or(bus::SYSTEM_BUS).into()
}
