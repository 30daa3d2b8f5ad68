//! The kernel of a history with datagrams: the kernel of the streams, and datagram sockets, with
//! the auditor and the saboteur between it and the core.

use std::collections::VecDeque;
use std::convert::Infallible;

use echo_core::datagram::op::{Event, Op};
use echo_core::kernel::{Cause, Kernel, Wake};
use echo_core::op::{self, ConnectionId, PeerAddr};

use super::audit::Audit;
use super::saboteur::Saboteur;
use crate::audited::Audited;
use crate::fake::datagrams::DatagramKernel;

/// The number of consecutive turns without a wait that are permitted although nothing is left to do
/// in the kernel and the core does nothing either.
const VAIN_TURNS_MAX: u32 = 100;

/// The kernel of a history.
pub(crate) struct Mixed {
    pub(crate) streams: Audited,
    pub(crate) datagrams: DatagramKernel,
    pub(crate) audit: Audit,
    pub(crate) saboteur: Saboteur,
    /// Events for the core, which it has not fetched.
    told: Vec<Event>,
    /// Events that are still to be audited, with whether the core gets them.
    delivered: VecDeque<(Event, bool)>,
    /// The history, oldest first.
    pub(crate) story: Vec<(u64, Note)>,
    /// Consecutive turns without any progress.
    vain_turns: u32,
    progress: bool,
    /// Turns so far.
    pub(crate) turns: u64,
}

/// One line of the history.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    Event(Event),
    Op(Op),
    World(&'static str),
}

impl Mixed {
    pub(crate) fn new(
        streams: Audited,
        datagrams: DatagramKernel,
        audit: Audit,
        saboteur: Saboteur,
    ) -> Self {
        Self {
            streams,
            datagrams,
            audit,
            saboteur,
            told: Vec::new(),
            delivered: VecDeque::new(),
            story: Vec::new(),
            vain_turns: 0,
            progress: true,
            turns: 0,
        }
    }

    pub(crate) fn note(&mut self, word: &'static str) {
        self.story.push((self.streams.kernel.clock(), Note::World(word)));
    }

    /// The last `count` lines of the history.
    pub(crate) fn tail(&self, count: usize) -> String {
        let skipped = self.story.len().saturating_sub(count);
        let lines = self.story[skipped..].iter().map(|(now, note)| match note {
            Note::Event(event) => format!("{now:>7} -> {event:?}\n"),
            Note::Op(op) => format!("{now:>7} <-   {op:?}\n"),
            Note::World(word) => format!("{now:>7}        -- {word}\n"),
        });
        lines.collect()
    }

    /// Whether a datagram will end a wait.
    pub(crate) fn is_busy(&self) -> bool {
        self.datagrams.is_busy() || !self.told.is_empty()
    }

    /// Audits the events that were suppressed, and the one that the core has handled.
    fn audit_next(&mut self, now: u64) {
        while let Some((event, is_heard)) = self.delivered.pop_front() {
            self.audit.event(now, &event);
            if is_heard {
                return;
            }
            self.audit.settle();
        }
    }

    /// A turn without a wait that brought no event is in vain.
    fn note_turn(&mut self, wake: Wake, was_busy: bool, brought: bool) {
        let is_vain = wake == Wake::Now && !was_busy && !brought && !self.progress;
        self.vain_turns = if is_vain { self.vain_turns + 1 } else { 0 };
        assert!(self.vain_turns < VAIN_TURNS_MAX, "promise: the worker spins");
        self.progress = false;
        self.turns += 1;
    }
}

impl Kernel for Mixed {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.streams.now_us()
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        self.streams.peer_of(connection)
    }

    fn trace(&mut self, cause: Cause<'_>, ops: &[op::Op]) {
        if let Cause::Command(command) = cause {
            self.audit.command(command);
            self.progress = true;
        }
        self.progress |= !ops.is_empty();
        self.streams.trace(cause, ops);
    }

    fn submit(&mut self, ops: &mut Vec<op::Op>) {
        self.streams.submit(ops);
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<op::Event>) -> Result<(), Infallible> {
        assert!(self.told.is_empty(), "promise: events are not fetched: {:?}", self.told);
        self.datagrams.enter();
        let was_busy = self.datagrams.is_busy() || self.streams.has_pending();
        let soon = if was_busy { Wake::Now } else { wake };
        let told = events.len();
        self.streams.turn(soon, events)?;
        let mut brought = Vec::new();
        self.datagrams.tell(&mut brought);
        let now = self.streams.kernel.clock();
        for event in brought.iter().copied() {
            self.story.push((now, Note::Event(event)));
            if let Event::Received { socket, buffer, datagram, .. } = &event {
                let serial = self.datagrams.serial_of(*buffer);
                self.audit.arrived(*socket, serial, datagram);
            }
            let heard = self.saboteur.event(event);
            self.delivered.push_back((event, heard.is_some()));
            self.told.extend(heard);
        }
        self.note_turn(wake, was_busy, events.len() > told || !brought.is_empty());
        Ok(())
    }

    fn take_datagrams(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.told);
    }

    fn trace_datagrams(&mut self, event: Option<&Event>, ops: &[Op]) {
        let now = self.streams.kernel.clock();
        self.progress |= !ops.is_empty();
        if event.is_some() || self.delivered.iter().all(|(_, is_heard)| !is_heard) {
            self.audit_next(now);
        }
        let mut ops = ops.to_vec();
        self.saboteur.ops(&mut ops);
        for op in &ops {
            self.story.push((now, Note::Op(*op)));
            self.audit.op(now, op);
        }
        match event {
            Some(_) => self.audit.settle(),
            None => self.audit.turn_ended(now),
        }
        self.datagrams.submit(&mut ops);
        while let Some(answer) = self.datagrams.sent.pop_front() {
            self.audit.sent(&answer);
        }
    }

    fn submit_datagrams(&mut self, ops: &mut Vec<Op>) {
        // They were submitted when they were traced, with the additions of the saboteur.
        ops.clear();
    }
}
