//! The transition table, cell by cell.
//!
//! Goal: for every situation of a connection and every event that can reach it, exactly the
//! operations below follow and no others. Method: a script of events leads to each situation. Each
//! cell then applies one more event and compares operations and outcome as text. An event without a
//! cell is impossible by the contract, and must panic.
//!
//! Buffers are `b0`, `b1`, … in the order in which bytes were received. Small buffers hold 8 bytes.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

mod backlog;
mod identity;
mod preface;
mod table;

use super::*;
use crate::admission::IpSet;
use crate::op::{PeerOrigin, ReceiveMode};
use crate::parameters::{AfterIdentity, Parameters, RuntimeLimits};
use crate::stream::outbound::{Completion, Step};
use crate::stream::resources::tests::{Blocks, small};

const NOW: Timestamp = Timestamp(1_000);

/// How a connection dies here.
const DEAD: ConnectionError = ConnectionError::Reset;

/// What a script may begin with: whether the connection comes from a proxy, and what follows the
/// identity if its listener has one.
const SET_UP: [&str; 3] = ["proxied", "identity, end", "identity, echo"];

/// Events by name; `received` uses the next buffer.
const EVENTS: [&str; 33] = [
    "received",
    "received, armed",
    "end of stream",
    "no buffer",
    "stopped",
    "receive memory",
    "receive reset",
    "sent all",
    "sent part",
    "sent none",
    "spilled all",
    "spilled part",
    "send memory",
    "send reset",
    "due",
    "drain deadline",
    "drain end",
    "relayed all",
    "relayed some, room is out",
    "relayed none, room is out",
    "relayed none",
    "relayed more",
    "serve",
    "retry",
    "send stopped",
    "quiesce",
    "quiesce deadline",
    "header part",
    "header too long",
    "header announced",
    "header local",
    "header denied",
    "header invalid",
];

/// Situations by name, and the script that leads to each from an open connection with an armed
/// receive. If the script begins with `proxied`, it starts from a connection that waits for its
/// header.
const SITUATIONS: [Situation; 44] = [
    ("open", &[]),
    ("open, starved", &["no buffer"]),
    ("open, retrying", &["receive memory"]),
    ("open, trying", &["received"]),
    ("open, trying skip-success", &["received", "sent all", "received"]),
    ("open, spilled", &["received", "sent part"]),
    ("open, spilled retrying", &["received", "sent part", "send memory"]),
    ("open, spilled starved", &["received", "no buffer", "sent part"]),
    ("finishing, trying", &["received", "end of stream"]),
    ("finishing, spilled", &["received", "sent part", "end of stream"]),
    ("flushing, trying", &["received", "drain deadline"]),
    ("flushing, spilled", &["received", "sent part", "drain deadline"]),
    ("lingering", &["drain deadline"]),
    ("closing, receive", &["drain end"]),
    ("closing, trying", &["received", "drain end", "stopped"]),
    ("closing, spilled", &["received", "sent part", "drain end", "stopped"]),
    ("quiescing, open", &["quiesce"]),
    ("quiescing, trying", &["received", "quiesce"]),
    ("quiescing, spilled", &["received", "sent part", "quiesce"]),
    ("quiescing, finishing", &["received", "sent part", "end of stream", "quiesce"]),
    ("quiescing, flushing", &["received", "sent part", "drain deadline", "quiesce"]),
    ("quiescing, lingering", &["drain deadline", "quiesce"]),
    ("open, held", &["no memory", "received", "sent part"]),
    ("open, held and more", &["no memory", "received, armed", "received", "sent part"]),
    ("open, spilled and held", &["received", "sent part", "received, armed", "received"]),
    ("open, held retrying", &["no memory", "received", "sent part", "send memory"]),
    ("open, relaying", &["received", "sent part", "stopped", "spilled all"]),
    (
        "open, relay blocked",
        &["received", "sent part", "stopped", "spilled all", "relayed none, room is out"],
    ),
    ("finishing, held", &["no memory", "received", "sent part", "end of stream"]),
    ("flushing, held", &["no memory", "received", "sent part", "drain deadline"]),
    ("flushing, relay", &["received", "sent part", "stopped", "spilled all", "drain deadline"]),
    ("lingering, discarding", &["withheld", "drain deadline", "stopped"]),
    ("closing, held", &["no memory", "received", "sent part", "drain end", "stopped"]),
    ("closing, relay", &["received", "sent part", "stopped", "spilled all", "drain end"]),
    ("quiescing, held", &["no memory", "received", "sent part", "quiesce"]),
    ("quiescing, relay", &["received", "sent part", "stopped", "spilled all", "quiesce"]),
    ("preface", &["proxied"]),
    ("preface, begun", &["proxied", "header part"]),
    ("preface, retrying", &["proxied", "receive memory"]),
    ("open, untried", &["proxied", "header local"]),
    ("lingering, preface", &["proxied", "drain deadline"]),
    ("closing, preface", &["proxied", "drain end"]),
    ("refusing", &["proxied", "due"]),
    ("quiescing, preface", &["proxied", "quiesce"]),
];

struct Bench {
    connection: Connection,
    resources: Resources,
    ops: Vec<Op>,
    closed: bool,
    buffers: u16,
    now: Timestamp,
    /// What followed when the connection was opened.
    opening: String,
}

impl Bench {
    fn new(script: &[&str]) -> Self {
        let parameters = small(1, 1);
        let set_up = script.iter().take_while(|word| SET_UP.contains(word)).count();
        let (set_up, script) = script.split_at(set_up);
        let proxies = set_up.contains(&"proxied").then(IpSet::default);
        let identity =
            [("identity, end", AfterIdentity::End), ("identity, echo", AfterIdentity::Echo)];
        let identity = identity.into_iter().find(|(word, _)| set_up.contains(word));
        let mut bench = Self {
            connection: Connection::free(),
            resources: Resources::new(Parameters {
                multishot: true,
                proxies: Arc::new([proxies]),
                identities: Arc::new([identity.map(|(_, after)| after)]),
                budget: Arc::new(Blocks::of(8, 1)),
                runtime_limits: RuntimeLimits {
                    idle_timeout: Some(100),
                    stall_timeout: Some(100),
                    ..parameters.runtime_limits.clone()
                },
                ..parameters
            }),
            ops: Vec::new(),
            closed: false,
            buffers: 0,
            now: NOW,
            opening: String::new(),
        };
        bench.connection.reserve(ListenerId(0));
        bench.act(|connection, context| connection.open(context));
        bench.opening = bench.outcome();
        script.iter().for_each(|event| bench.apply(event));
        bench.ops.clear();
        bench
    }

    fn act(&mut self, act: impl FnOnce(&mut Connection, &mut Context<'_>)) {
        let mut context = Context {
            id: ConnectionId::new(0, 0),
            listener: ListenerId(0),
            now: self.now,
            resources: &mut self.resources,
            ops: &mut self.ops,
        };
        act(&mut self.connection, &mut context);
        self.closed |= self.connection.generation() != 0;
    }

    fn apply(&mut self, event: &str) {
        self.cause(event);
        self.check_invariants();
    }

    fn check_invariants(&self) {
        if !self.closed {
            self.connection.check_invariants(&self.resources);
        }
    }

    /// Applies an event. Panics if it is impossible.
    fn cause(&mut self, event: &str) {
        let buffer = BufferId { class: SizeClass::Small, index: self.buffers };
        let (trying, unsent) = match self.connection.outbound.send() {
            Send::Idle => (5, 3),
            Send::Trying { length, .. } => (length, 3),
            Send::Spilled { spill, .. } => (5, spill.unsent()),
            Send::Held { buffer, .. } => (self.resources.pool.unsent(buffer).1, 3),
        };
        match event {
            "received" | "received, armed" => {
                self.buffers += 1;
                let armed = event == "received, armed";
                self.act(|c, context| {
                    c.on_received(context, buffer, 5, armed, Expectation::Silence)
                });
            }
            "end of stream" => self.ended(ReceiveEnd::EndOfStream),
            "no buffer" => self.ended(ReceiveEnd::NoBuffer),
            "stopped" => self.ended(ReceiveEnd::Stopped),
            "receive memory" => self.ended(ReceiveEnd::Memory),
            "receive reset" => self.ended(ReceiveEnd::Failed(DEAD)),
            "sent all" => self.act(|c, context| c.on_sent(context, trying)),
            "sent part" if matches!(self.connection.outbound.send(), Send::Held { .. }) => {
                self.act(|c, context| c.on_sent(context, 1));
            }
            "sent part" => self.act(|c, context| c.on_sent(context, trying - 3)),
            "sent none" => self.act(|c, context| c.on_sent(context, 0)),
            "spilled all" => self.act(|c, context| c.on_spilled_sent(context, unsent)),
            "spilled part" => self.act(|c, context| c.on_spilled_sent(context, 1)),
            "send memory" => self.act(|c, context| c.on_send_failed(context, SendError::Memory)),
            "send reset" => {
                self.act(|c, context| c.on_send_failed(context, SendError::Failed(DEAD)));
            }
            "relayed all" => self.relayed(5, When::Readable),
            "relayed some, room is out" => self.relayed(5, When::Writable),
            "relayed none, room is out" => self.relayed(0, When::Writable),
            "relayed none" => self.relayed(0, When::Readable),
            "relayed more" => self.relayed(5, When::Now),
            "no memory" => {
                self.resources.parameters.budget = Arc::new(Blocks::of(8, 0));
            }
            "withheld" => {
                for index in 4..8 {
                    let buffer = BufferId { class: SizeClass::Small, index };
                    self.resources.pool.lend(buffer, 1, 0);
                    self.resources.pool.hold(buffer);
                }
            }
            "due" => self.act(|c, context| c.on_deadline(context)),
            "drain deadline" => self.act(|c, context| c.on_drain_deadline(context)),
            "drain end" => self.act(|c, context| c.on_drain_end(context)),
            "send stopped" => self.act(|c, context| c.on_send_failed(context, SendError::Stopped)),
            "quiesce" => {
                self.resources.quiescing = true;
                self.act(|c, context| c.quiesce(context));
            }
            "quiesce deadline" => self.act(|c, context| c.on_quiesce_deadline(context)),
            "serve" => self.act(|c, context| c.serve(context)),
            "retry" => self.act(|c, context| c.retry(context)),
            _ => self.apply_header(event),
        }
    }

    fn apply_header(&mut self, event: &str) {
        match event {
            "header part" => self.act(|c, context| c.on_preface_partial(context, 5)),
            "header too long" => {
                let received = limits::PREFACE_BYTES_MAX;
                self.act(|c, context| c.on_preface_partial(context, received));
            }
            "header announced" => self.completed(PeerOrigin::Announced, Ok(())),
            "header local" => self.completed(PeerOrigin::Socket, Ok(())),
            "header denied" => self.completed(PeerOrigin::Announced, Err(RefuseReason::Denied)),
            "identify failed" => self.act(|c, context| c.on_identify_failed(context, DEAD)),
            "header invalid" => self.act(|c, context| c.on_preface_invalid(context)),
            _ => panic!("no event is called {event}"),
        }
    }

    fn relayed(&mut self, length: u32, next: When) {
        self.act(|connection, context| {
            connection.on_relayed(context, length, length.min(1), next);
        });
    }

    fn completed(&mut self, origin: PeerOrigin, verdict: Result<(), RefuseReason>) {
        self.act(|connection, context| connection.on_preface_complete(context, origin, verdict));
    }

    fn ended(&mut self, reason: ReceiveEnd) {
        self.act(|connection, context| connection.on_receive_ended(context, reason));
    }

    fn outcome(&self) -> String {
        let mut words: Vec<String> = self.ops.iter().map(op_text).collect();
        if self.closed {
            return words.join(", ");
        }
        let connection = &self.connection;
        let send = match connection.outbound.send() {
            Send::Idle => "Idle".into(),
            Send::Trying { buffer, length, completion: Completion::Unneeded } => {
                format!("Trying skip-success b{} {length}", buffer.index)
            }
            Send::Trying { buffer, length, .. } => format!("Trying b{} {length}", buffer.index),
            Send::Spilled { spill, step } => {
                let block_size = self.resources.block_size();
                let memory = spill.blocks(block_size) * block_size;
                format!("Spill {}/{memory} {}", spill.unsent(), step_text(step))
            }
            Send::Held { buffer, step } => {
                let (_, unsent) = self.resources.pool.unsent(buffer);
                format!("Held b{} {unsent} {}", buffer.index, step_text(step))
            }
        };
        let receive = match connection.receive() {
            Receive::Armed(Request::Multishot) => "Armed".into(),
            Receive::Armed(request) => format!("{request:?}"),
            Receive::Stopping(_) => "Stopping".into(),
            receive => format!("{receive:?}"),
        };
        let queue = match connection.outbound.queued() {
            0 => String::new(),
            count => format!(" +{count}"),
        };
        words.push(format!("-> {:?} {receive} {send}{queue}", connection.phase()));
        words.join(", ")
    }
}

fn step_text(step: Step) -> &'static str {
    match step {
        Step::Ready => "Ready",
        Step::InFlight => "Sending",
        Step::Stopping => "Stopping",
        Step::Retrying => "Retrying",
    }
}

fn op_text(op: &Op) -> String {
    match op {
        Op::Receive { mode: ReceiveMode::Multishot, .. } => "receive".into(),
        Op::Receive { .. } => "receive once".into(),
        Op::ReadPreface { .. } => "read header".into(),
        Op::Identify { .. } => "identify".into(),
        Op::CancelReceive { .. } => "cancel".into(),
        Op::Send { buffer, length, needs_completion: true, .. } => {
            format!("send b{} {length}", buffer.index)
        }
        Op::Send { buffer, length, needs_completion: false, .. } => {
            format!("send skip-success b{} {length}", buffer.index)
        }
        Op::FlushSends => "flush".into(),
        Op::Spill { buffer, offset, length, .. } => {
            format!("keep b{} {offset}+{length}", buffer.index)
        }
        Op::SendSpilled { .. } => "spill".into(),
        Op::ReleaseSpilled { length, .. } => format!("forget {length}"),
        Op::SendHeld { buffer, offset, length, .. } => {
            format!("held b{} {offset}+{length}", buffer.index)
        }
        Op::Relay { when, .. } => format!("relay {when:?}"),
        Op::Discard { when, .. } => format!("discard {when:?}"),
        Op::CancelSend { .. } => "cancel send".into(),
        Op::Recycle { buffer } => format!("free b{}", buffer.index),
        Op::Shutdown { how: Shutdown::Write, .. } => "FIN".into(),
        Op::Shutdown { how: Shutdown::Both, .. } => "shut down".into(),
        Op::Close { .. } => "close".into(),
        Op::Abort { .. } => "abort".into(),
        Op::Accept { .. }
        | Op::AcceptWaiting { .. }
        | Op::CloseListener { .. }
        | Op::CancelAccept { .. }
        | Op::ReportPeers
        | Op::OmitPeers
        | Op::OfferBuffers { .. }
        | Op::AwaitReadable { .. }
        | Op::Probe { .. }
        | Op::EndProbe { .. } => {
            unreachable!("only the server submits it")
        }
    }
}

#[test]
fn every_cell_of_the_table() {
    let all = [table::CELLS, backlog::CELLS, preface::CELLS].concat();
    assert_eq!(all.len(), SITUATIONS.len(), "a situation has no cells");
    check(&SITUATIONS, &EVENTS, &all);
}

/// A situation and the script that leads to it.
type Situation = (&'static str, &'static [&'static str]);
/// A situation, and what follows from each event that is possible in it.
type Cells = (&'static str, &'static [(&'static str, &'static str)]);

/// Whether a panic is not that of a broken contract.
fn is_arithmetic(panic: &dyn Any) -> bool {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .is_some_and(|text| text.starts_with("attempt to "))
}

/// Applies each of `events` in each of `situations`, and compares what follows with `cells`.
fn check(situations: &[Situation], events: &[&str], cells: &[Cells]) {
    let mut wrong = Vec::new();
    for ((situation, script), (name, cells)) in situations.iter().zip(cells) {
        assert_eq!(situation, name, "a situation has no cells");
        let unknown = cells.iter().find(|(event, _)| !events.contains(event));
        assert!(unknown.is_none(), "no event is called {unknown:?}");
        for &event in events {
            let expected = cells
                .iter()
                .find(|(name, _)| *name == event)
                .map_or("impossible", |&(_, outcome)| outcome);
            let mut bench = Bench::new(script);
            let outcome = match catch_unwind(AssertUnwindSafe(|| bench.cause(event))) {
                Ok(()) => {
                    bench.check_invariants();
                    bench.outcome()
                }
                Err(panic) if is_arithmetic(&*panic) => "an overflow".into(),
                Err(_) => "impossible".into(),
            };
            if outcome != expected {
                wrong.push(format!("{situation}: ({event:?}, {outcome:?}), not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cells:\n{}", wrong.len(), wrong.join("\n"));
}

/// The memory is held until the driver closes the connection, so it must stay counted until then.
/// Found by the simulator when the memory was given back too early, while the connection was still
/// closing.
#[test]
fn spilled_bytes_stay_counted_until_the_close() {
    let mut bench = Bench::new(&["received", "sent part", "drain end"]);
    assert_eq!(bench.resources.stats.spilled_bytes, 8);
    bench.apply("stopped");
    assert_eq!((bench.closed, bench.resources.stats.spilled_bytes), (false, 8));
    bench.apply("send reset");
    assert_eq!((bench.closed, bench.resources.stats.spilled_bytes), (true, 0));
    assert_eq!(bench.resources.stats.bytes_dropped, 3);
}

/// Goal: silence for which the peer is not responsible is none. Method: connections that wait for a
/// buffer or for the memory of the kernel, and one that does not.
#[test]
fn a_wait_for_memory_is_no_silence() {
    for (script, waits) in [
        (&["no buffer"][..], true),
        (&["receive memory"], true),
        (&["received", "sent part", "send memory"], true),
        (&["received", "sent part"], false),
        (&[], false),
    ] {
        let mut bench = Bench::new(script);
        bench.now = NOW.plus(90);
        let deadline = bench.connection.deadline(&bench.resources, bench.now);
        let deadline = deadline.expect("a timeout runs");
        assert_eq!(deadline == bench.now.plus(100), waits, "{script:?}: {deadline:?}");
        assert!(waits || deadline < NOW.plus(100 + 40), "{script:?}: {deadline:?}");
    }
}

/// Goal: a peer that keeps sending after our FIN is reset in time, whether its bytes are received
/// or discarded.
#[test]
fn bytes_after_our_fin_do_not_prolong_it() {
    for (script, event) in [
        (&["drain deadline"][..], "received, armed"),
        (&["withheld", "drain deadline", "stopped"], "relayed more"),
    ] {
        let mut bench = Bench::new(script);
        bench.now = NOW.plus(90);
        bench.apply(event);
        let deadline = bench.connection.deadline(&bench.resources, bench.now);
        // A time is known to a few milliseconds.
        let late = NOW.plus(100 + 40);
        assert!(deadline.is_some_and(|deadline| deadline < late), "{event}: {deadline:?}");
    }
}
