//! A restart that keeps every connection: what this process leaves to the next, and what it finds
//! of the one before.
//!
//! systemd says neither at the stop that a start will follow, nor at the start that one went
//! before. So the first is told by `ExecStop=` of the unit, which runs before the signal, or else
//! asked for ([`super::job`]), and the second is found in the store.

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

/// How long the service manager may take to put away, or to forget, what it is given.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the unit's `ExecStop=` said of the SIGTERM that it comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Restart,
    Stop,
}

/// Signals by which `ExecStop=` says it. Both are ignored by a process that does not know of them,
/// such as a daemon of version 0.1.0 that meets the unit of a later one during an upgrade.
pub(super) const ANNOUNCEMENTS: [Signal; 2] = [Signal::SIGURG, Signal::SIGWINCH];

/// What was announced since the last look; nothing if it is contradictory.
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

/// Puts `transfers` into the service manager's store, with the last valid configuration as TOML, in
/// a state of `version`. They stay open here until the process ends.
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
        // Some of it may have arrived.
        notifier.forget(BUNDLE);
    })
}

/// The connections that the process before us left, shared out among `workers`.
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
    // The store is emptied before anything is read: whatever is wrong with it, no process stumbles
    // over it twice.
    notifier.forget(BUNDLE);
    if let Err(error) = notifier.synchronize(STORE_TIMEOUT) {
        log::warn!("the service manager does not answer: {error}");
    }
    let Imported { transfers, ended, foreign, complaint } =
        handover::unpack(bundles).import(listeners);
    if let Some(first) = foreign.first() {
        log::warn!(
            "closed {} of the process before: no connections, the first is {first}",
            report::count(foreign.len() as u64, "descriptor")
        );
    }
    if ended > 0 {
        log::debug!("{} ended during the hand-over", report::count(ended as u64, "connection"));
    }
    let count = report::count(transfers.len() as u64, "connection");
    match complaint {
        None => {
            let unsent: usize = transfers.iter().map(|connection| connection.unsent.len()).sum();
            log::info!(
                message_id = events::TAKEN_OVER, connections = transfers.len(), bytes = unsent;
                "took over {count} of the process before, {unsent} bytes to be sent"
            );
        }
        Some(complaint) => log::warn!(
            "the process before left a state that cannot be used: {complaint}; \
             {count} of it will be ended in order"
        ),
    }
    for (index, connection) in transfers.into_iter().enumerate() {
        shares[index % workers].push(connection);
    }
    shares
}
