//! The query that a stop depends on: is it part of a restart, and do the listening sockets stop
//! too?
//!
//! Units with our `ExecStop=` announce the former before the signal ([`super::restart`]). In other
//! units, and for the latter, systemd is queried over the system bus ([`bus`]). A separate thread
//! does so, so that a slow or unresponsive bus or systemd delays nothing: until there is an answer,
//! or the query times out, the daemon serves as before.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::report;
use crate::systemd::bus::{self, Unit};

/// Additional time for an answer that comes just before the timeout.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// A query in progress.
pub(super) struct Query {
    answer: Receiver<io::Result<Unit>>,
    /// When the wait for an answer ends.
    pub(super) until: Instant,
}

impl Query {
    /// Starts the query, and signals `waker` when there is an answer.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn ask(waker: &Arc<EventFd>, timeout: Duration) -> io::Result<Self> {
        let (sender, answer) = channel();
        let waker = Arc::clone(waker);
        thread::Builder::new().name("query".into()).spawn(move || {
            let answer = ask_now(timeout);
            // The wait may have ended.
            let _ = sender.send(answer);
            let _ = waker.write(1);
        })?;
        Ok(Self { answer, until: Instant::now() + timeout + LAST_MOMENT })
    }

    /// The answer, or an error after the timeout; nothing while the query is in progress.
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

/// Sends the query and waits for the answer.
pub(super) fn ask_now(timeout: Duration) -> io::Result<Unit> {
    bus::ask(&bus_path(), std::process::id(), timeout)
}

/// Whether the signal is part of a restart, and there is a store for the connections. If this is
/// unknown the result is false: a drain is correct for any end, a handover only for a restart.
pub(super) fn is_restart(answer: &io::Result<Unit>, connections: u64) -> bool {
    match answer {
        Ok(unit) => {
            let restart = matches!(unit.job.as_deref(), Some("restart" | "try-restart"));
            if restart && unit.store_max == 0 {
                log::warn!("FileDescriptorStoreMax= is 0: this restart keeps no connections");
            }
            restart && unit.store_max > 0
        }
        Err(error) => {
            let level = if connections > 0 { log::Level::Warn } else { log::Level::Debug };
            log::log!(
                level,
                "cannot tell a stop from a restart: ExecStop= of the unit sent no signal, and the \
                 system bus gave no answer ({error}); draining, so a restart will close {}",
                report::count(connections, "connection")
            );
            false
        }
    }
}

/// The path in `DBUS_SYSTEM_BUS_ADDRESS` (D-Bus specification), or the standard one.
fn bus_path() -> PathBuf {
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let path = address.strip_prefix("unix:path=").filter(|path| !path.contains([',', ';', '%']));
    path.unwrap_or(bus::SYSTEM_BUS).into()
}
