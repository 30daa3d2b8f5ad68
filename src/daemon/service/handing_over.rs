//! The end of a run that is half of a restart: connections come to rest and go into the store.

use std::time::Duration;

use super::{STOP_MARGIN, Service, Stage};
use crate::daemon::{report, succession, successor, workers};
use crate::echo::limits;
use crate::echo::op::Timestamp;
use crate::handover::Estate;
use crate::logging::events;
use crate::sight::State;

impl Service<'_> {
    /// A restart has begun: every connection is to come to rest.
    pub(super) fn bring_to_rest(&mut self) {
        // While echoes go on: it takes the time to read a file of some megabytes.
        self.successor = successor::version();
        self.stage = Stage::HandingOver;
        self.life.set(State::Leaving);
        self.status = report::handing_over(&workers::total(&self.workers));
        let patience = Duration::from_millis(limits::REST_MS);
        let deadline = self.plan.origin.elapsed() + patience;
        self.end_listeners();
        for worker in &self.workers {
            worker.hand_over(Timestamp(deadline.as_millis() as u64));
        }
        self.tell_of_stop();
        self.notifier.extend_timeout(2 * patience + STOP_MARGIN);
    }

    pub(super) fn on_worker_at_rest(&mut self, worker: usize, estates: Vec<Estate>) {
        self.estates.push((worker, estates));
        if self.estates.len() < self.workers.len() {
            return;
        }
        let configuration = self.last_valid.to_toml();
        let listeners = &self.plan.addresses;
        let version = self.successor;
        match succession::store(&self.estates, listeners, configuration, version, self.notifier) {
            Ok(()) => {
                let count: usize = self.estates.iter().map(|(_, estates)| estates.len()).sum();
                log::info!(
                    message_id = events::HANDED_OVER, connections = count;
                    "handed over {} to the next process",
                    report::count(count as u64, "connection")
                );
                self.returns.clear();
            }
            Err(error) => {
                log::warn!("connections cannot be handed over: {error}; draining instead");
                // The order to drain is there before they are, so nobody is accepted in between.
                self.drain();
                for (worker, estates) in std::mem::take(&mut self.estates) {
                    // It fails only when the worker has died, and that is told in another way.
                    let _ = self.returns[worker].send(estates);
                }
            }
        }
    }
}
