//! One thread of the load. Connections and datagrams fail in different ways, so each has its own
//! worker type: `streams`, which serves seqpacket connections too, and `datagrams`. What both have
//! in common is the `ledger`: orders and events, phases, the schedule, and the measurements.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use nix::sys::eventfd::EventFd;
use socket2::SockAddr;

use crate::arguments::Plan;
use crate::orders::{Orders, WorkerEvent};
use crate::target::Transport;

mod datagrams;
mod ledger;
mod streams;

/// The parameters of a worker.
pub(crate) struct Task {
    pub(crate) plan: Arc<Plan>,
    /// The address of the server.
    pub(crate) address: SockAddr,
    /// The index of this thread, from 0.
    pub(crate) thread: u32,
    /// Becomes readable when there are orders.
    pub(crate) wake: Arc<EventFd>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) events: Sender<WorkerEvent>,
    /// The origin of the times of the run.
    pub(crate) origin: Instant,
}

impl Task {
    /// The number of connections of this thread.
    fn share(&self) -> u32 {
        let (connections, threads) = (self.plan.connections, self.plan.threads);
        connections / threads + u32::from(self.thread < connections % threads)
    }
}

/// Carries out the task on the calling thread, until all is finished.
///
/// # Errors
/// When the machine does not provide what the worker needs, and why.
pub(crate) fn work(task: Task) -> Result<(), String> {
    match task.plan.target.transport() {
        Transport::Tcp | Transport::Unix | Transport::UnixSeqpacket => {
            let worker = streams::Worker::new(task).map_err(|unusable| unusable.to_string())?;
            worker.work().map_err(|error| error.to_string())
        }
        Transport::Udp | Transport::UnixDatagram => {
            let worker = datagrams::Worker::new(task).map_err(|error| error.to_string())?;
            worker.work().map_err(|error| error.to_string())
        }
    }
}
