//! A restart that keeps every connection: the export to the next process, and the import from the
//! previous one.
//!
//! systemd does not tell a stopping process that a start will follow, nor a starting process that
//! there was a previous one. `ExecStop=` of the unit, which runs before the signal, announces the
//! former; otherwise systemd is queried ([`super::job`]). The latter follows from the store.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::report;
use crate::handover::format::Version;
use crate::handover::{self, ConnectionTransfer, Imported};
use crate::listen::BUNDLE;
use crate::logging::events;
use crate::systemd::Notifier;

/// How long the service manager may take to store or remove file descriptors.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// What `ExecStop=` of the unit announced about the SIGTERM that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Restart,
    Stop,
}

/// Signals by which `ExecStop=` announces it. A process that does not know them ignores both, such
/// as a daemon of version 0.1.0 under the unit of a later version during an upgrade.
pub(super) const ANNOUNCEMENTS: [Signal; 2] = [Signal::SIGURG, Signal::SIGWINCH];

/// The announcement since the last call; nothing if there are contradictory ones.
pub(super) fn announced(announcements: &SignalFd) -> Option<Ending> {
    let mut found = None;
    while let Ok(Some(signal)) = announcements.read_signal() {
        let ending =
            if signal.ssi_signo == Signal::SIGURG as u32 { Ending::Restart } else { Ending::Stop };
        if found.replace(ending).is_some_and(|other| other != ending) {
            return None;
        }
    }
    found
}

/// Puts `transfers` into the service manager's store, in a state of `version`, together with the
/// last valid configuration as TOML. The connections stay open here until the process ends.
pub(super) fn store(
    transfers: &[(usize, Vec<ConnectionTransfer>)],
    listeners: &[String],
    configuration: String,
    version: Version,
    notifier: &Notifier,
) -> io::Result<()> {
    let all = transfers.iter().flat_map(|(_, transfers)| transfers);
    let bundles = handover::pack(version, listeners, configuration, all)?;
    let borrowed: Vec<BorrowedFd<'_>> = bundles.iter().map(AsFd::as_fd).collect();
    let stored = notifier.store(BUNDLE, &borrowed);
    stored.and_then(|()| notifier.synchronize(STORE_TIMEOUT)).inspect_err(|_| {
        // Some of the descriptors may have been stored.
        notifier.forget(BUNDLE);
    })
}

/// The connections that the previous process left, divided among `workers`.
pub(super) fn import(
    bundles: Vec<OwnedFd>,
    listeners: &[String],
    workers: usize,
    notifier: &Notifier,
) -> Vec<Vec<ConnectionTransfer>> {
    let mut shares: Vec<Vec<ConnectionTransfer>> = (0..workers).map(|_| Vec::new()).collect();
    if bundles.is_empty() {
        return shares;
    }
    // The store is emptied before anything is read, so that an unreadable state cannot affect a
    // second process.
    notifier.forget(BUNDLE);
    if let Err(error) = notifier.synchronize(STORE_TIMEOUT) {
        log::warn!("the service manager does not answer: {error}");
    }
    let Imported { transfers, ended, foreign, complaint } =
        handover::unpack(bundles).import(listeners);
    if let Some(first) = foreign.first() {
        log::warn!(
            "closed {} from the previous process: not connections, the first is {first}",
            report::count(foreign.len() as u64, "descriptor")
        );
    }
    if ended > 0 {
        log::debug!("{} ended during the handover", report::count(ended as u64, "connection"));
    }
    let count = report::count(transfers.len() as u64, "connection");
    match complaint {
        None => {
            let unsent: usize = transfers.iter().map(|connection| connection.unsent.len()).sum();
            log::info!(
                message_id = events::TAKEN_OVER, connections = transfers.len(), bytes = unsent;
                "took over {count} from the previous process, {unsent} bytes to be sent"
            );
        }
        Some(complaint) => log::warn!(
            "the state of the previous process cannot be used: {complaint}; \
             {count} will be closed in order"
        ),
    }
    for (index, connection) in transfers.into_iter().enumerate() {
        shares[index % workers].push(connection);
    }
    shares
}
