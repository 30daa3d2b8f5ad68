//! The situations that a swarm has covered. A simulator that never starves a connection proves
//! nothing about starving.

use echo_core::op::{
    AcceptError, Event, Expectation, Op, PeerOrigin, PrefaceProgress, ReceiveEnd, ReceiveMode,
    SendError, Shutdown, SizeClass, TransferPhase, TransferState, When,
};
use echo_core::reason::{CloseReason, RefuseReason};
use echo_core::stats::Stats;

use crate::fake::trace::Note;
use crate::history::History;

/// The situations that must occur, besides every reason of closing.
const OCCASIONS: [&str; 58] = [
    "a multishot receive",
    "a receive that is tried at once",
    "a receive that waits",
    "a poll for bulk",
    "an offer of buffers",
    "a poll that found bytes",
    "a deferred receive",
    "a large buffer revoked",
    "a receive into a large buffer",
    "a receive canceled",
    "an accept canceled",
    "a try-send",
    "bytes spilled",
    "a FIN of our own",
    "a shutdown of both",
    "an abort",
    "a silent peer probed",
    "a receive ended by data",
    "bytes with more behind them",
    "an end of stream",
    "a receive without buffer",
    "a receive stopped",
    "a receive without memory",
    "a receive failed",
    "a try-send that took nothing",
    "spilled bytes sent",
    "a send without memory",
    "a send failed",
    "an accept canceled in time",
    "an accept whose peer was gone",
    "an accept without file or memory",
    "an accept with an unexpected error",
    "a relay that is tried at once",
    "a relay that waits for bytes",
    "a relay that waits for room",
    "bytes relayed",
    "bytes discarded",
    "an empty message relayed",
    "several messages relayed at once",
    "a send of held bytes",
    "a send canceled",
    "a skip-success send",
    "a completion needed after all",
    "a send stopped",
    "a connection imported",
    "an imported connection with spilled bytes",
    "an imported connection after our FIN",
    "an accept that does not wait",
    "an accept that found no connection",
    "a listener closed",
    "a header read",
    "a header in pieces",
    "a header with an address",
    "a header without an address",
    "an invalid header",
    "a connection imported in its header",
    "an identity told",
    "an identity that was not taken",
];

/// How often each has occurred.
pub(crate) struct Coverage {
    occasions: [u64; OCCASIONS.len()],
    closed: [u64; CloseReason::ALL.len()],
    refused: [u64; RefuseReason::ALL.len()],
    full: u64,
    refused_memory: u64,
    drained_early: u64,
    reconfigured: u64,
    divided: u64,
    taken_back: u64,
    health_checks: u64,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            occasions: [0; OCCASIONS.len()],
            closed: [0; CloseReason::ALL.len()],
            refused: [0; RefuseReason::ALL.len()],
            full: 0,
            refused_memory: 0,
            drained_early: 0,
            reconfigured: 0,
            divided: 0,
            taken_back: 0,
            health_checks: 0,
        }
    }
}

impl Coverage {
    pub(crate) fn add(&mut self, history: &History) {
        history.kernel.kernel.trace.visit(|note| {
            if let Some(index) = occasion(note) {
                self.occasions[index] += 1;
            }
        });
        let mut stats: Stats = history.worker.stats();
        stats.add(&history.before);
        for (sum, count) in self.closed.iter_mut().zip(stats.traffic.closed) {
            *sum += count;
        }
        for (sum, count) in self.refused.iter_mut().zip(stats.traffic.refused) {
            *sum += count;
        }
        self.full += stats.full;
        self.refused_memory += stats.spills_refused;
        self.reconfigured += history.reconfigured;
        self.divided += history.divided;
        self.taken_back += history.taken_back;
        self.health_checks += stats.traffic.health_checks;
        self.drained_early +=
            u64::from(history.kernel.kernel.peers.iter().any(|peer| peer.named.is_none()));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (sum, count) in self.occasions.iter_mut().zip(other.occasions) {
            *sum += count;
        }
        for (sum, count) in self.closed.iter_mut().zip(other.closed) {
            *sum += count;
        }
        for (sum, count) in self.refused.iter_mut().zip(other.refused) {
            *sum += count;
        }
        self.full += other.full;
        self.refused_memory += other.refused_memory;
        self.reconfigured += other.reconfigured;
        self.divided += other.divided;
        self.taken_back += other.taken_back;
        self.health_checks += other.health_checks;
        self.drained_early += other.drained_early;
    }

    /// Each situation with its count.
    pub(crate) fn lines(&self) -> Vec<(String, u64)> {
        let occasions = OCCASIONS.iter().map(|name| (*name).to_string()).zip(self.occasions);
        let closes = CloseReason::ALL.iter().zip(self.closed);
        let closes = closes.map(|(reason, count)| (format!("closed: {}", reason.name()), count));
        let refusals = RefuseReason::ALL.iter().zip(self.refused);
        let refusals =
            refusals.map(|(reason, count)| (format!("refused: {}", reason.name()), count));
        let rest = [
            ("all capacity taken", self.full),
            ("memory refused", self.refused_memory),
            ("a peer never accepted", self.drained_early),
            ("new limits and timeouts", self.reconfigured),
            ("a division of the listeners", self.divided),
            ("a handover that failed", self.taken_back),
            ("a health check", self.health_checks),
        ];
        let rest = rest.map(|(name, count)| (name.to_string(), count));
        occasions.chain(closes).chain(refusals).chain(rest).collect()
    }
}

/// The index in [`OCCASIONS`] of the situation in this note.
fn occasion(note: &Note) -> Option<usize> {
    let name = match note {
        Note::Op(op) => of_op(op),
        Note::Event(event) => of_event(event),
        Note::Import(transfer) => of_import(transfer),
        Note::World(word) => OCCASIONS.contains(word).then_some(*word),
        Note::Peer(..) => None,
    }?;
    Some(OCCASIONS.iter().position(|occasion| *occasion == name).expect("it is in the list"))
}

fn of_op(op: &Op) -> Option<&'static str> {
    Some(match op {
        Op::Receive { class: SizeClass::Large, .. } => "a receive into a large buffer",
        Op::Receive { mode: ReceiveMode::Multishot, .. } => "a multishot receive",
        Op::Receive { mode: ReceiveMode::Now, .. } => "a receive that is tried at once",
        Op::Receive { mode: ReceiveMode::WhenReadable, .. } => "a receive that waits",
        Op::ReadPreface { .. } => "a header read",
        Op::Identify { .. } => "an identity told",
        Op::AwaitReadable { .. } => "a poll for bulk",
        Op::OfferBuffers { .. } => "an offer of buffers",
        Op::CancelReceive { .. } => "a receive canceled",
        Op::CancelAccept { .. } => "an accept canceled",
        Op::Send { needs_completion: true, .. } => "a try-send",
        Op::Send { needs_completion: false, .. } => "a skip-success send",
        Op::FlushSends => "a completion needed after all",
        Op::Spill { .. } => "bytes spilled",
        Op::Relay { when: When::Now, .. } => "a relay that is tried at once",
        Op::Relay { when: When::Readable, .. } => "a relay that waits for bytes",
        Op::Relay { when: When::Writable, .. } => "a relay that waits for room",
        Op::Discard { .. } => "bytes discarded",
        Op::SendHeld { .. } => "a send of held bytes",
        Op::CancelSend { .. } => "a send canceled",
        Op::Shutdown { how: Shutdown::Write, .. } => "a FIN of our own",
        Op::Shutdown { how: Shutdown::Both, .. } => "a shutdown of both",
        Op::Abort { .. } => "an abort",
        Op::Probe { again: false, .. } => "a silent peer probed",
        Op::AcceptWaiting { .. } => "an accept that does not wait",
        Op::CloseListener { .. } => "a listener closed",
        Op::Accept { .. }
        | Op::ReportPeers
        | Op::OmitPeers
        | Op::SendSpilled { .. }
        | Op::ReleaseSpilled { .. }
        | Op::Probe { .. }
        | Op::EndProbe { .. }
        | Op::Recycle { .. }
        | Op::Close { .. } => return None,
    })
}

fn of_import(transfer: &TransferState) -> Option<&'static str> {
    Some(match transfer {
        TransferState { phase: TransferPhase::Preface(PrefaceProgress::Begun), .. } => {
            "a connection imported in its header"
        }
        TransferState { unsent: 1.., .. } => "an imported connection with spilled bytes",
        TransferState { phase: TransferPhase::Lingering(_), .. } => {
            "an imported connection after our FIN"
        }
        _ => "a connection imported",
    })
}

fn of_event(event: &Event) -> Option<&'static str> {
    Some(match event {
        Event::Received { armed: false, .. } => "a receive ended by data",
        Event::Received { rest: Expectation::Data, .. } => "bytes with more behind them",
        Event::ReceiveEnded { reason, .. } => match reason {
            ReceiveEnd::EndOfStream => "an end of stream",
            ReceiveEnd::NoBuffer => "a receive without buffer",
            ReceiveEnd::Stopped => "a receive stopped",
            ReceiveEnd::Memory => "a receive without memory",
            ReceiveEnd::Failed(_) => "a receive failed",
        },
        Event::Relayed { length: 0, chunks: 1.., .. } => "an empty message relayed",
        Event::Relayed { chunks: 2.., .. } => "several messages relayed at once",
        Event::Relayed { length: 1.., .. } => "bytes relayed",
        Event::Sent { length: 0, .. } => "a try-send that took nothing",
        Event::SentSpilled { .. } => "spilled bytes sent",
        Event::SendFailed { error: SendError::Memory, .. } => "a send without memory",
        Event::SendFailed { error: SendError::Stopped, .. } => "a send stopped",
        Event::SendFailed { error: SendError::Failed(_), .. } => "a send failed",
        Event::AcceptFailed { error, .. } => match error {
            AcceptError::Canceled => "an accept canceled in time",
            AcceptError::Aborted => "an accept whose peer was gone",
            AcceptError::Empty => "an accept that found no connection",
            AcceptError::ProcessFiles | AcceptError::SystemFiles | AcceptError::Memory => {
                "an accept without file or memory"
            }
            AcceptError::Unexpected(_) => "an accept with an unexpected error",
        },
        Event::PrefacePartial { .. } => "a header in pieces",
        Event::PrefaceComplete { origin: PeerOrigin::Announced, .. } => "a header with an address",
        Event::PrefaceComplete { .. } => "a header without an address",
        Event::PrefaceInvalid { .. } => "an invalid header",
        Event::IdentifyFailed { .. } => "an identity that was not taken",
        Event::Readable { .. } => "a poll that found bytes",
        Event::Accepted { .. }
        | Event::Received { .. }
        | Event::Relayed { .. }
        | Event::Sent { .. }
        | Event::ProbeEnded { .. } => return None,
    })
}
