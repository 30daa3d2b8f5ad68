//! The loop body of a worker.
//!
//! One [`Worker::step`]:
//!
//! 1. The commands of the daemon are carried out.
//! 2. The worker enters the kernel, which waits for an event or the next deadline.
//! 3. The events are handled, one by one; then the timers that have expired.
//! 4. The resulting operations are submitted. They reach the kernel with the next step.
//!
//! The daemon's thread and the simulator both drive this code. Threads, wake-ups and publishing
//! counters belong to the daemon.

use alloc::vec::Vec;

use crate::admission::{AcceptLog, RefusedSources};
use crate::command::Command;
use crate::datagram::{self, DatagramParameters, DatagramTraffic, Responder};
use crate::id::{ConnectionId, Timestamp};
use crate::kernel::{Cause, Kernel, Wake};
use crate::op::{Event, Op, TransferState};
use crate::parameters::Parameters;
use crate::peer::PeerAddr;
use crate::stats::{Stats, Traffic};
use crate::stream::server::Server;

/// The state of a worker after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It continues.
    Running {
        /// Whether the step brought no events.
        idle: bool,
    },
    /// The drain of a [`Command::Drain`] is over.
    Drained,
    /// Every connection is quiescent after a [`Command::HandOver`].
    Quiescent,
}

/// The core of one worker.
pub struct Worker {
    server: Server,
    /// Empty between two steps; it stays for its memory.
    events: Vec<Event>,
    /// The same.
    ops: Vec<Op>,
    /// The datagram side, in a worker with datagram sockets.
    datagrams: Option<Datagrams>,
}

/// The datagram side of a worker.
struct Datagrams {
    responder: Responder,
    /// Empty between two steps; it stays for its memory.
    events: Vec<datagram::op::Event>,
    /// The same.
    ops: Vec<datagram::op::Op>,
}

impl Worker {
    /// A worker that has not started.
    #[must_use]
    pub fn new(parameters: Parameters) -> Self {
        let (events, ops) = (Vec::new(), Vec::new());
        Self { server: Server::new(parameters), events, ops, datagrams: None }
    }

    /// The same worker, which also serves these datagram sockets.
    #[must_use]
    pub fn with_datagrams(mut self, parameters: DatagramParameters) -> Self {
        let limits = self.server.runtime_limits().clone();
        let responder = Responder::new(parameters, limits);
        self.datagrams = Some(Datagrams { responder, events: Vec::new(), ops: Vec::new() });
        self
    }

    /// The same worker, which accepts only from the listeners for which `ours` is true, in the
    /// order of their ids, until a [`Command::AcceptFrom`].
    #[must_use]
    pub fn accepting_from(mut self, ours: &[bool]) -> Self {
        self.server.accept_from(ours);
        self
    }

    /// Whether all capacity of this worker is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.server.is_full()
    }

    /// The counters, and the present values of the gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.server.stats();
        for traffic in self.datagram_traffic() {
            stats.datagrams.add(traffic);
        }
        stats
    }

    /// What the datagram sockets of each listener did, in the order of
    /// [`SocketParameters::listener`](crate::datagram::SocketParameters::listener).
    #[must_use]
    pub fn datagram_traffic(&self) -> &[DatagramTraffic] {
        self.datagrams.as_ref().map_or(&[], |datagrams| datagrams.responder.traffic())
    }

    /// What the connections of each listener did, in the order of their
    /// [`ListenerId`](crate::op::ListenerId).
    #[must_use]
    pub fn listener_traffic(&self) -> &[Traffic] {
        self.server.listener_traffic()
    }

    /// The sources whose connections were refused.
    #[must_use]
    pub fn refused_sources(&self) -> &RefusedSources {
        self.server.admission().refused_sources()
    }

    /// The last accepts, if
    /// [`AdmissionPolicy::logs_accepts`](crate::admission::AdmissionPolicy::logs_accepts) is set.
    #[must_use]
    pub fn accept_log(&self) -> &AcceptLog {
        self.server.admission().accept_log()
    }

    /// When the events of the last turn were fetched from the kernel, in microseconds since an
    /// arbitrary start.
    #[must_use]
    pub fn clock_us(&self) -> u64 {
        self.server.clock_us()
    }

    /// Arms the listeners, and does not wait. When it returns, the kernel accepts connections.
    ///
    /// # Errors
    /// When the kernel itself fails.
    pub fn start<K: Kernel>(&mut self, kernel: &mut K) -> Result<(), K::Error> {
        self.server.start(kernel.now(), &mut self.ops);
        kernel.trace(Cause::Start, &self.ops);
        kernel.submit(&mut self.ops);
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.turn(kernel);
        }
        self.turn(kernel, Wake::Now)?;
        Ok(())
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// When the kernel itself fails; the connections are lost then.
    pub fn step<K: Kernel>(
        &mut self,
        kernel: &mut K,
        commands: impl IntoIterator<Item = Command>,
    ) -> Result<Status, K::Error> {
        for command in commands {
            self.obey(kernel.now(), &command);
            kernel.trace(Cause::Command(&command), &self.ops);
            kernel.submit(&mut self.ops);
            // A new policy may count open connections.
            self.server.recount(kernel.now(), kernel);
        }
        let mut idle = true;
        // A command may have been the last condition that was missing.
        if !self.is_over() {
            let datagrams = self.datagrams.as_ref().map_or(Wake::Never, |it| it.responder.wake());
            let wake = self.server.wake().min(datagrams);
            idle = self.turn(kernel, wake)?;
        }
        if !self.are_datagrams_over() {
            return Ok(Status::Running { idle });
        }
        if self.server.is_drained() {
            // The last closes are still queued. They are submitted so that every peer sees its FIN
            // before this process ends.
            kernel.turn(Wake::Now, &mut self.events)?;
            return Ok(Status::Drained);
        }
        Ok(if self.server.is_quiescent() { Status::Quiescent } else { Status::Running { idle } })
    }

    fn is_over(&mut self) -> bool {
        self.are_datagrams_over() && (self.server.is_drained() || self.server.is_quiescent())
    }

    /// Whether no datagram socket is open any more. Without a drain or a handover one always is.
    fn are_datagrams_over(&self) -> bool {
        self.datagrams.as_ref().is_none_or(|datagrams| datagrams.responder.is_over())
    }

    /// Enters the kernel, waits until `wake`, and handles the events. Returns whether there were
    /// none.
    fn turn<K: Kernel>(&mut self, kernel: &mut K, wake: Wake) -> Result<bool, K::Error> {
        let Self { server, events, ops, datagrams } = self;
        kernel.turn(wake, events)?;
        let clock_us = kernel.now_us();
        let now = Timestamp(clock_us / 1_000);
        server.begin_turn(clock_us, kernel.overflows());
        let mut idle = events.is_empty();
        for event in events.drain(..) {
            let before = ops.len();
            server.handle(now, event, ops);
            kernel.trace(Cause::Event(&event), &ops[before..]);
        }
        if server.wake().is_due(now) {
            let before = ops.len();
            server.on_time(now, ops);
            kernel.trace(Cause::Time, &ops[before..]);
        }
        let before = ops.len();
        server.end_turn(now, ops);
        kernel.trace(Cause::TurnEnd, &ops[before..]);
        server.note_refused_headers(kernel);
        kernel.submit(ops);
        server.recount(now, kernel);
        if let Some(datagrams) = datagrams {
            idle &= datagrams.turn(kernel);
        }
        Ok(idle)
    }

    fn obey(&mut self, now: Timestamp, command: &Command) {
        let Self { server, ops, .. } = self;
        match command {
            Command::EndListeners(listeners) => {
                for &listener in &**listeners {
                    server.end_listener(now, listener, ops);
                }
            }
            Command::AcceptFrom(ours) => {
                server.accept_from(ours);
                server.use_capacity(now, ops);
            }
            &Command::Drain { deadline } => server.drain(now, deadline, ops),
            &Command::HandOver { deadline } => server.hand_over(now, deadline, ops),
            Command::Reconfigure(runtime_limits) => {
                server.reconfigure(now, (**runtime_limits).clone())
            }
        }
        let Some(Datagrams { responder, .. }) = &mut self.datagrams else { return };
        match command {
            Command::EndListeners(_) | Command::AcceptFrom(_) => {}
            Command::Drain { .. } | Command::HandOver { .. } => responder.drain(),
            Command::Reconfigure(runtime_limits) => {
                responder.reconfigure((**runtime_limits).clone());
            }
        }
    }

    /// A free slot for a connection of the previous process, or for one that could not be handed
    /// over. To be called before the worker starts, or after [`Self::release`]; [`Self::import`]
    /// must follow.
    pub fn reserve_slot(&mut self) -> ConnectionId {
        self.server.reserve_slot()
    }

    /// Takes in a connection of the previous process, or takes back one that could not be handed
    /// over. The driver has its socket and its unsent bytes. The connection stays even if it
    /// exceeds the limits.
    pub fn import<K: Kernel>(
        &mut self,
        kernel: &mut K,
        id: ConnectionId,
        peer: PeerAddr,
        transfer: TransferState,
    ) {
        self.server.import(kernel.now(), id, peer, transfer, &mut self.ops);
        kernel.trace(Cause::Import, &self.ops);
        kernel.submit(&mut self.ops);
    }

    /// Counts a connection of the previous process that ends here, because there is no memory for
    /// the bytes that are still to be sent on it.
    pub fn note_lost_in_handover(&mut self) {
        self.server.note_lost_in_handover();
    }

    /// Gives every connection away: the caller takes its socket and its unsent bytes from the
    /// driver. To be called after [`Status::Quiescent`].
    ///
    /// If they cannot be handed over, this worker takes them back as a new worker would:
    /// [`Self::reserve_slot`] and [`Self::import`] for each, then [`Command::Drain`]. Limits,
    /// timeouts, policy and counters are what they were, and nothing is accepted.
    pub fn release(&mut self, now: Timestamp) -> Vec<(ConnectionId, TransferState)> {
        self.server.release(now)
    }

    /// Panics if the state contradicts itself. For tests and simulation: it visits every slot.
    pub fn check_invariants(&self) {
        self.server.check_invariants();
        if let Some(datagrams) = &self.datagrams {
            datagrams.responder.check_invariants();
        }
    }
}

impl Datagrams {
    /// Handles the events of the last turn. Returns whether there were none and no operation is in
    /// flight.
    fn turn<K: Kernel>(&mut self, kernel: &mut K) -> bool {
        let Self { responder, events, ops } = self;
        kernel.take_datagrams(events);
        let idle = events.is_empty();
        let clock_us = kernel.now_us();
        for event in events.drain(..) {
            let before = ops.len();
            responder.handle(clock_us, event, ops);
            kernel.trace_datagrams(Some(&event), &ops[before..]);
        }
        let before = ops.len();
        responder.end_turn(Timestamp(clock_us / 1_000), ops);
        kernel.trace_datagrams(None, &ops[before..]);
        if !ops.is_empty() {
            kernel.submit_datagrams(ops);
        }
        idle && !responder.is_replying()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::resources::tests::small;

    /// A kernel in which nothing happens; it notes how it is waited for.
    #[derive(Default)]
    struct Silent {
        waits: Vec<Wake>,
    }

    impl Kernel for Silent {
        type Error = ();

        fn now_us(&self) -> u64 {
            1_000
        }

        fn peer_of(&self, _: ConnectionId) -> PeerAddr {
            PeerAddr::Unknown
        }

        fn submit(&mut self, ops: &mut Vec<Op>) {
            ops.clear();
        }

        fn turn(&mut self, wake: Wake, _: &mut Vec<Event>) -> Result<(), ()> {
            self.waits.push(wake);
            Ok(())
        }
    }

    /// Goal: a worker for which a command was the last missing condition does not wait for an event
    /// that never comes. Method: it has neither connections nor listeners.
    #[test]
    fn what_a_command_completes_is_not_waited_for() {
        let deadline = Timestamp(60_000);
        let commands = [
            (Command::Drain { deadline }, Status::Drained),
            (Command::HandOver { deadline }, Status::Quiescent),
        ];
        for (command, expected) in commands {
            let mut worker = Worker::new(small(1, 4)).accepting_from(&[false]);
            let mut kernel = Silent::default();
            assert_eq!(worker.start(&mut kernel), Ok(()));
            assert_eq!(worker.step(&mut kernel, [command]), Ok(expected));
            assert!(kernel.waits.iter().all(|&wake| wake == Wake::Now), "{:?}", kernel.waits);
        }
    }

    #[test]
    fn a_worker_shows_what_its_server_knows() {
        for (capacity, is_full) in [(0, true), (4, false)] {
            let mut worker = Worker::new(small(2, capacity)).accepting_from(&[false, false]);
            let mut kernel = Silent::default();
            assert_eq!(worker.start(&mut kernel), Ok(()));
            assert!(matches!(worker.step(&mut kernel, []), Ok(Status::Running { .. })));
            assert_eq!((worker.clock_us(), worker.is_full()), (1_000, is_full));
            assert_eq!((worker.listener_traffic().len(), worker.datagram_traffic().len()), (2, 0));
            worker.note_lost_in_handover();
            assert_eq!(worker.stats().unexpected_errors, 1);
        }
    }
}
