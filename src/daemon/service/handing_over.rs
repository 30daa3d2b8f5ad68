//! The end of a run that is part of a restart: connections are quiesced and put into the store.

use std::time::Duration;

use super::{STOP_MARGIN, Service, Stage};
use crate::daemon::life::Phase;
use crate::daemon::{next_version, report, restart, workers};
use crate::handover::{self, ConnectionTransfer};
use crate::logging::events;
use echo_core::limits;
use echo_core::op::Timestamp;

impl Service<'_> {
    /// Starts a restart: quiesces every connection.
    pub(super) fn quiesce(&mut self) {
        // Before connections are quiesced, because it reads a file of some megabytes.
        self.next_version = next_version::version();
        self.stage = Stage::HandingOver;
        self.life.set(Phase::HandingOver);
        self.status = report::handing_over(&workers::total(&self.workers));
        let timeout = Duration::from_millis(limits::QUIESCE_MS);
        let deadline = self.plan.origin.elapsed() + timeout;
        self.end_listeners();
        for worker in &self.workers {
            worker.hand_over(Timestamp(deadline.as_millis() as u64));
        }
        self.tell_of_stop();
        self.notifier.extend_timeout(2 * timeout + STOP_MARGIN);
    }

    pub(super) fn on_worker_quiescent(
        &mut self,
        worker: usize,
        transfers: Vec<ConnectionTransfer>,
    ) {
        self.transfers.push((worker, transfers));
        if self.transfers.len() < self.workers.len() {
            return;
        }
        let configuration = self.last_valid.to_toml();
        let listeners = &self.plan.addresses;
        let version = self.next_version;
        let all = self.transfers.iter_mut().flat_map(|(_, transfers)| transfers);
        let ended = handover::end_unfit(version, all);
        if ended > 0 {
            log::warn!(
                "{} closed: the next version does not know the PROXY protocol, and their headers \
                 are not complete",
                report::count(ended as u64, "connection")
            );
        }
        match restart::store(&self.transfers, listeners, configuration, version, self.notifier) {
            Ok(()) => {
                let count: usize =
                    self.transfers.iter().map(|(_, transfers)| transfers.len()).sum();
                log::info!(
                    message_id = events::HANDED_OVER, connections = count;
                    "handed over {} to the next process",
                    report::count(count as u64, "connection")
                );
                self.returns.clear();
            }
            Err(error) => {
                log::warn!("connections cannot be handed over: {error}; draining instead");
                // The order to drain precedes the connections, so none is accepted in between.
                self.drain();
                for (worker, transfers) in std::mem::take(&mut self.transfers) {
                    // It fails only if the worker has died, which is reported in another way.
                    let _ = self.returns[worker].send(transfers);
                }
            }
        }
    }
}
