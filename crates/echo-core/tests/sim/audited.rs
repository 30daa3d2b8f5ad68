//! The kernel of a history: the fake, with the auditor and the saboteur between it and the core.
//!
//! The worker runs its own loop on it. Each event is audited before the operations that follow from
//! it, which `Kernel::trace` reports. The saboteur falsifies events and operations here.

use std::collections::VecDeque;
use std::convert::Infallible;

use echo_core::kernel::Cause;
use echo_core::kernel::{Kernel, Wake};
use echo_core::op::{ConnectionId, Event, Op, PeerAddr, ReceiveMode};

use crate::audit::Audit;
use crate::fake::trace::Note;
use crate::fake::{FakeKernel, concerns_the_living};
use crate::saboteur::Saboteur;

/// How many events a turn brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// One, so that its operations reach the kernel before the next event.
    OneByOne,
    /// All.
    Together,
}

/// The kernel of a history.
pub(crate) struct Audited {
    pub(crate) kernel: FakeKernel,
    pub(crate) audit: Audit,
    pub(crate) saboteur: Saboteur,
    pub(crate) delivery: Delivery,
    /// Events that the fake has reported and that have not been delivered.
    pending: VecDeque<Event>,
    /// Events that have been delivered or suppressed and are still to be audited, with whether the
    /// core gets them.
    delivered: VecDeque<(Event, bool)>,
    /// The operations of the core that the saboteur lets pass.
    asked: Vec<Op>,
}

impl Audited {
    pub(crate) fn new(
        kernel: FakeKernel,
        audit: Audit,
        saboteur: Saboteur,
        delivery: Delivery,
    ) -> Self {
        let (pending, delivered, asked) = (VecDeque::new(), VecDeque::new(), Vec::new());
        Self { kernel, audit, saboteur, delivery, pending, delivered, asked }
    }

    /// Every connection gets its next id, for the next process.
    pub(crate) fn hand_over(&mut self, renamed: &[(ConnectionId, ConnectionId)]) {
        // The result of a probe or an identity only concerns the old process.
        self.pending.retain(|event| !concerns_the_living(event));
        assert!(
            self.pending.is_empty(),
            "contract: not reported at a handover: {:?}",
            self.pending
        );
        self.kernel.hand_over(renamed);
    }

    /// Whether there are events that have not been delivered.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Audits the events that were suppressed, and the one that the core has handled.
    fn audit_next(&mut self) {
        let now = self.kernel.clock();
        while let Some((event, is_heard)) = self.delivered.pop_front() {
            self.audit.event(now, &event);
            if is_heard {
                return;
            }
            self.audit.settle();
        }
    }

    fn audit_overlooked(&mut self) {
        if self.delivered.iter().all(|(_, is_heard)| !is_heard) {
            self.audit_next();
        }
    }
}

impl Kernel for Audited {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.kernel.now_us()
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        self.kernel.peer_of(connection)
    }

    fn trace(&mut self, cause: Cause<'_>, ops: &[Op]) {
        let now = self.kernel.clock();
        match cause {
            Cause::Start | Cause::Import => {}
            Cause::Command(command) => self.audit.command(command),
            Cause::Event(_) => self.audit_next(),
            Cause::Time => {
                self.audit_overlooked();
                self.audit.time_passed(now);
            }
            Cause::TurnEnd => {
                self.audit_overlooked();
                for op in ops {
                    self.note_policy(op);
                }
            }
        }
        let mut ops = ops.to_vec();
        self.saboteur.ops(&mut ops);
        for op in &ops {
            self.audit.op(now, op);
        }
        self.audit.settle();
        self.asked.append(&mut ops);
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        ops.clear();
        self.kernel.submit(&mut self.asked);
        assert!(self.asked.is_empty(), "the kernel takes all");
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), Infallible> {
        if self.pending.is_empty() {
            let mut told = Vec::new();
            self.kernel.turn(wake, &mut told)?;
            self.pending.extend(told);
        }
        let count = match self.delivery {
            Delivery::OneByOne => self.pending.len().min(1),
            Delivery::Together => self.pending.len(),
        };
        for event in self.pending.drain(..count) {
            let told = self.saboteur.event(event);
            self.delivered.push_back((event, told.is_some()));
            events.extend(told);
        }
        Ok(())
    }
}

impl Audited {
    /// For the statistics of a swarm: the decisions of the core at the end of a turn.
    fn note_policy(&mut self, op: &Op) {
        let word = match op {
            Op::Receive { mode: ReceiveMode::Now, .. } => "a deferred receive",
            Op::CancelReceive { .. } => "a large buffer revoked",
            _ => return,
        };
        self.kernel.trace.note(self.kernel.clock(), Note::World(word));
    }
}
