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
use crate::handover::{self, Estate, Inheritance};
use crate::listen::BUNDLE;
use crate::logging::events;
use crate::systemd::Notifier;

/// How long the service manager may take to put away, or to forget, what it is given.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

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

/// Puts `estates` into the service manager's store, with the last valid configuration as TOML, in a
/// state of `version`. They stay open here until the process ends.
pub(super) fn store(
    estates: &[(usize, Vec<Estate>)],
    listeners: &[String],
    configuration: String,
    version: Version,
    notifier: &Notifier,
) -> io::Result<()> {
    let all = estates.iter().flat_map(|(_, estates)| estates);
    let bundles = handover::pack(version, listeners, configuration, all)?;
    let borrowed: Vec<BorrowedFd<'_>> = bundles.iter().map(AsFd::as_fd).collect();
    let stored = notifier.store(BUNDLE, &borrowed);
    stored.and_then(|()| notifier.synchronize(STORE_PATIENCE)).inspect_err(|_| {
        // Some of it may have arrived.
        notifier.forget(BUNDLE);
    })
}

/// The connections that the process before us left, shared out among `workers`.
pub(super) fn inherit(
    bundles: Vec<OwnedFd>,
    listeners: &[String],
    workers: usize,
    notifier: &Notifier,
) -> Vec<Vec<Estate>> {
    let mut shares: Vec<Vec<Estate>> = (0..workers).map(|_| Vec::new()).collect();
    if bundles.is_empty() {
        return shares;
    }
    // The store is emptied before anything is read: whatever is wrong with it, no process stumbles
    // over it twice.
    notifier.forget(BUNDLE);
    if let Err(error) = notifier.synchronize(STORE_PATIENCE) {
        log::warn!("the service manager does not answer: {error}");
    }
    let Inheritance { estates, ended, foreign, complaint } =
        handover::unpack(bundles).adopt(listeners);
    if let Some(first) = foreign.first() {
        log::warn!(
            "closed {} of the process before: no connections, the first is {first}",
            report::count(foreign.len() as u64, "descriptor")
        );
    }
    if ended > 0 {
        log::debug!("{} ended during the hand-over", report::count(ended as u64, "connection"));
    }
    let count = report::count(estates.len() as u64, "connection");
    match complaint {
        None => {
            let unsent: usize = estates.iter().map(|estate| estate.unsent.len()).sum();
            log::info!(
                message_id = events::TAKEN_OVER, connections = estates.len(), bytes = unsent;
                "took over {count} of the process before, {unsent} bytes to be sent"
            );
        }
        Some(complaint) => log::warn!(
            "the process before left a state that cannot be used: {complaint}; \
             {count} of it will be ended in order"
        ),
    }
    for (index, estate) in estates.into_iter().enumerate() {
        shares[index % workers].push(estate);
    }
    shares
}
