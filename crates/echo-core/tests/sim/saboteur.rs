//! Turns a correct core into one with a planted bug, by falsifying its events and operations.
//!
//! Stands between core and kernel. A simulator that does not find these bugs proves nothing; see
//! `planted`.

use echo_core::op::{
    BufferId, ConnectionId, Event, Op, PeerAddr, PeerOrigin, ReceiveEnd, ReceiveMode, Shutdown,
    SizeClass, TransferPhase, TransferState, When,
};
use echo_core::parameters::RuntimeLimits;

use crate::fake::choice::Prng;
use crate::fake::records::Breach;

/// The bugs that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The last byte of a buffer is silently not sent.
    DropByte,
    /// A send uses another lent buffer.
    SwapBuffers,
    /// A buffer is never given back.
    LeakBuffer,
    /// A receive is not armed again.
    ForgetReceive,
    /// A connection does not wait for bulk.
    ForgetPoll,
    /// A send follows the close.
    SendAfterClose,
    /// A short send is treated as a full one.
    IgnoreShortSend,
    /// A full send is sent again.
    DuplicateSend,
    /// A connection is never closed.
    ForgetClose,
    /// A buffer is given back before its send completes.
    RecycleEarly,
    /// An accept is not armed again.
    ForgetAccept,
    /// A connection that found no buffer is forgotten.
    ForgetWaiter,
    /// A connection is closed while the kernel still holds its receive or send.
    CloseTooEarly,
    /// The end of a stream is ignored.
    IgnoreEnd,
    /// The last spilled byte is lost.
    LoseSpilled,
    /// Spilled bytes are never sent.
    ForgetSpilled,
    /// An accept or a receive is not canceled.
    ForgetCancel,
    /// The FIN at the end of idleness or drain is not sent.
    ForgetFin,
    /// A send of spilled bytes is not canceled for a handover.
    ForgetCancelSend,
    /// The transfer state omits the end of a stream, or our own FIN.
    ForgetPhase,
    /// The transfer state has one byte too few.
    LoseUnsent,
    /// After a failed handover the limits and timeouts of the start are in force again.
    RevertLimits,
    /// A completion that is needed after all is not requested.
    ForgetAwait,
    /// A relay is not submitted.
    ForgetRelay,
    /// Bytes that are held are never sent.
    ForgetHeld,
    /// The first held byte is not sent.
    SkipHeld,
    /// A connection is counted for no source.
    ForgetSource,
    /// A connection is counted for the source of the previous one.
    MixSources,
    /// A listener that ends is closed although connections may wait.
    CloseUnlooked,
    /// Two messages are sent as one.
    MergeMessages,
    /// A message is sent in two pieces.
    SplitMessage,
    /// An empty message is not sent.
    SkipEmpty,
    /// An empty message is treated as the end.
    EndAtEmpty,
    /// A message is received into a buffer.
    OwnMessage,
    /// The next process treats messages as a stream.
    ForgetRecords,
    /// A header is not read.
    ForgetHeader,
    /// A header is treated as complete before it is.
    EndHeaderEarly,
    /// The address that a header announces is ignored.
    IgnoreAnnounced,
    /// An invalid header is treated as one that announces nothing.
    AdmitNonsense,
    /// A peer is not told the identity.
    ForgetIdentity,
    /// It is told a second time behind the first one.
    RepeatIdentity,
    /// That it was not told is overlooked.
    IgnoreUntold,
}

impl Bug {
    pub(crate) const ALL: [Self; 42] = [
        Self::DropByte,
        Self::SwapBuffers,
        Self::LeakBuffer,
        Self::ForgetReceive,
        Self::ForgetPoll,
        Self::SendAfterClose,
        Self::IgnoreShortSend,
        Self::DuplicateSend,
        Self::ForgetClose,
        Self::RecycleEarly,
        Self::ForgetAccept,
        Self::ForgetWaiter,
        Self::CloseTooEarly,
        Self::IgnoreEnd,
        Self::LoseSpilled,
        Self::ForgetSpilled,
        Self::ForgetCancel,
        Self::ForgetFin,
        Self::ForgetCancelSend,
        Self::ForgetPhase,
        Self::LoseUnsent,
        Self::RevertLimits,
        Self::ForgetAwait,
        Self::ForgetRelay,
        Self::ForgetHeld,
        Self::SkipHeld,
        Self::ForgetSource,
        Self::MixSources,
        Self::CloseUnlooked,
        Self::MergeMessages,
        Self::SplitMessage,
        Self::SkipEmpty,
        Self::EndAtEmpty,
        Self::OwnMessage,
        Self::ForgetRecords,
        Self::ForgetHeader,
        Self::EndHeaderEarly,
        Self::IgnoreAnnounced,
        Self::AdmitNonsense,
        Self::ForgetIdentity,
        Self::RepeatIdentity,
        Self::IgnoreUntold,
    ];
}

/// The saboteur. Without a bug it lets everything pass.
pub(crate) struct Saboteur {
    bug: Option<Bug>,
    prng: Prng,
    /// Lent buffers, according to the events, with the bytes in them.
    lent: Vec<(BufferId, u32)>,
    /// The send in flight of each connection: as submitted by the core, and as submitted to the
    /// kernel.
    sends: Vec<(ConnectionId, BufferId, u32, u32)>,
    /// Connections whose send has been answered, and repeated, without the core's knowledge.
    repeated: Vec<ConnectionId>,
    /// Buffers that were given back without the core's knowledge.
    recycled: Vec<BufferId>,
    /// The address of the last connection.
    peer: PeerAddr,
    /// Additional operations to submit.
    besides: Vec<Op>,
}

impl Saboteur {
    pub(crate) fn none() -> Self {
        Self::new(None, 0)
    }

    pub(crate) fn with(bug: Bug, seed: u64) -> Self {
        Self::new(Some(bug), seed)
    }

    fn new(bug: Option<Bug>, seed: u64) -> Self {
        Self {
            bug,
            prng: Prng::new(!seed),
            lent: Vec::new(),
            sends: Vec::new(),
            repeated: Vec::new(),
            recycled: Vec::new(),
            peer: PeerAddr::Unknown,
            besides: Vec::new(),
        }
    }

    /// The event that the core gets instead of `event`; none if it is suppressed.
    pub(crate) fn event(&mut self, event: Event) -> Option<Event> {
        let Some(bug) = self.bug else { return Some(event) };
        let mut told = event;
        match event {
            Event::Received { buffer, length, .. } => self.lent.push((buffer, length)),
            Event::Sent { connection, length } => {
                // A send of held bytes is not falsified here.
                let Some(index) = self.sends.iter().position(|(name, ..)| *name == connection)
                else {
                    return Some(event);
                };
                let (_, buffer, believed, given) = self.sends.swap_remove(index);
                if bug == Bug::DropByte && length == given {
                    told = Event::Sent { connection, length: believed };
                }
                if bug == Bug::IgnoreShortSend && length < given {
                    told = Event::Sent { connection, length: believed };
                }
                if bug == Bug::DuplicateSend && length == given && !self.forget_repeat(connection) {
                    self.repeated.push(connection);
                    self.besides.push(Op::Send {
                        connection,
                        buffer,
                        length,
                        needs_completion: true,
                    });
                    return None;
                }
            }
            Event::ReceiveEnded { reason: ReceiveEnd::NoBuffer, .. }
                if bug == Bug::ForgetWaiter =>
            {
                return None;
            }
            Event::ReceiveEnded { reason: ReceiveEnd::EndOfStream, .. }
                if bug == Bug::IgnoreEnd && self.strikes() =>
            {
                return None;
            }
            Event::Accepted { connection, peer, backlog } => {
                let former = std::mem::replace(&mut self.peer, peer);
                if bug == Bug::ForgetSource && self.strikes() {
                    told = Event::Accepted { connection, peer: PeerAddr::Local, backlog };
                }
                if bug == Bug::MixSources && self.strikes() {
                    told = Event::Accepted { connection, peer: former, backlog };
                }
            }
            Event::Relayed { connection, length: 0, chunks: 1.., .. } if bug == Bug::EndAtEmpty => {
                let reason = ReceiveEnd::EndOfStream;
                told = Event::ReceiveEnded { connection, reason };
            }
            Event::PrefacePartial { connection, .. } if bug == Bug::EndHeaderEarly => {
                told = unannounced(connection);
            }
            Event::PrefaceComplete { connection, .. } if bug == Bug::IgnoreAnnounced => {
                told = unannounced(connection);
            }
            Event::PrefaceInvalid { connection } if bug == Bug::AdmitNonsense => {
                told = unannounced(connection);
            }
            Event::IdentifyFailed { .. } if bug == Bug::IgnoreUntold => return None,
            Event::AcceptFailed { .. }
            | Event::IdentifyFailed { .. }
            | Event::PrefacePartial { .. }
            | Event::PrefaceComplete { .. }
            | Event::PrefaceInvalid { .. }
            | Event::ReceiveEnded { .. }
            | Event::Relayed { .. }
            | Event::SentSpilled { .. }
            | Event::SendFailed { .. }
            | Event::Readable { .. }
            | Event::ProbeEnded { .. } => {}
        }
        Some(told)
    }

    /// Falsifies the transfer state of a connection.
    pub(crate) fn transfer(&mut self, transfer: &mut TransferState) {
        match self.bug {
            Some(Bug::ForgetPhase) => transfer.phase = TransferPhase::Open,
            Some(Bug::ForgetRecords) => transfer.records = false,
            Some(Bug::LoseUnsent) if transfer.unsent > 1 => transfer.unsent -= 1,
            _ => {}
        }
    }

    /// How the kernel is to violate the boundaries of messages.
    pub(crate) fn breach(&self) -> Option<Breach> {
        match self.bug? {
            Bug::MergeMessages => Some(Breach::Merge),
            Bug::SplitMessage => Some(Breach::Split),
            Bug::SkipEmpty => Some(Breach::SkipEmpty),
            _ => None,
        }
    }

    /// The limits that the core is given after a failed handover, instead of no change.
    pub(crate) fn limits_to_go_back_to(&self, first: &RuntimeLimits) -> Option<RuntimeLimits> {
        (self.bug == Some(Bug::RevertLimits)).then(|| first.clone())
    }

    /// Replaces the operations of the core by those for the kernel.
    pub(crate) fn ops(&mut self, ops: &mut Vec<Op>) {
        let Some(bug) = self.bug else { return };
        let mut said = std::mem::take(ops);
        said.append(&mut self.besides);
        for op in said {
            self.say(bug, op, ops);
        }
    }

    fn say(&mut self, bug: Bug, op: Op, ops: &mut Vec<Op>) {
        match op {
            Op::Send { connection, buffer, length, needs_completion } => {
                self.say_send(bug, connection, (buffer, length), needs_completion, ops);
            }
            Op::Recycle { buffer } => {
                self.lent.retain(|(name, _)| *name != buffer);
                let early = self.recycled.iter().position(|name| *name == buffer);
                match early {
                    Some(index) => drop(self.recycled.swap_remove(index)),
                    None if bug == Bug::LeakBuffer && self.strikes() => {}
                    None => ops.push(op),
                }
            }
            Op::Spill { connection, buffer, offset, length } => {
                let lost = u32::from(bug == Bug::LoseSpilled && length > 1 && self.strikes());
                ops.push(Op::Spill { connection, buffer, offset, length: length - lost });
            }
            Op::SendHeld { connection, buffer, offset, length }
                if bug == Bug::SkipHeld && length > 1 =>
            {
                let (offset, length) = (offset + 1, length - 1);
                ops.push(Op::SendHeld { connection, buffer, offset, length });
            }
            Op::Relay { connection, when: When::Readable, .. } if bug == Bug::OwnMessage => {
                let (class, mode) = (SizeClass::Small, ReceiveMode::WhenReadable);
                ops.push(Op::Receive { connection, class, mode });
            }
            Op::Shutdown { connection, how: Shutdown::Both } if bug == Bug::CloseTooEarly => {
                ops.push(Op::Close { connection });
            }
            Op::Close { connection } | Op::Abort { connection } if bug == Bug::SendAfterClose => {
                ops.push(op);
                let (buffer, length) = self.lent.first().copied().unwrap_or((FIRST, 1));
                ops.push(Op::Send { connection, buffer, length, needs_completion: true });
            }
            Op::AcceptWaiting { listener, .. } if bug == Bug::CloseUnlooked => {
                ops.extend([op, Op::CloseListener { listener }]);
            }
            Op::Identify { .. } if bug == Bug::RepeatIdentity => ops.extend([op, op]),
            Op::Accept { .. }
            | Op::AcceptWaiting { .. }
            | Op::CloseListener { .. }
            | Op::CancelAccept { .. }
            | Op::Identify { .. }
            | Op::ReportPeers
            | Op::OmitPeers
            | Op::OfferBuffers { .. }
            | Op::ReadPreface { .. }
            | Op::AwaitReadable { .. }
            | Op::Receive { .. }
            | Op::CancelReceive { .. }
            | Op::Relay { .. }
            | Op::Discard { .. }
            | Op::SendHeld { .. }
            | Op::ReleaseSpilled { .. }
            | Op::SendSpilled { .. }
            | Op::CancelSend { .. }
            | Op::FlushSends
            | Op::Shutdown { .. }
            | Op::Probe { .. }
            | Op::EndProbe { .. }
            | Op::Close { .. }
            | Op::Abort { .. } => {
                if !(forgets(bug, op) && self.strikes()) {
                    ops.push(op);
                }
            }
        }
    }

    fn say_send(
        &mut self,
        bug: Bug,
        connection: ConnectionId,
        (buffer, length): (BufferId, u32),
        needs_completion: bool,
        ops: &mut Vec<Op>,
    ) {
        let dropped = u32::from(bug == Bug::DropByte && length > 1 && self.strikes());
        let other = self.lent.iter().find(|(name, held)| *name != buffer && *held >= length);
        let given = match other {
            Some(&(other, _)) if bug == Bug::SwapBuffers => other,
            _ => buffer,
        };
        self.sends.push((connection, buffer, length, length - dropped));
        ops.push(Op::Send {
            connection,
            buffer: given,
            length: length - dropped,
            needs_completion,
        });
        if bug == Bug::RecycleEarly && self.strikes() {
            self.recycled.push(buffer);
            ops.push(Op::Recycle { buffer });
        }
    }

    fn forget_repeat(&mut self, connection: ConnectionId) -> bool {
        let index = self.repeated.iter().position(|name| *name == connection);
        index.map(|index| self.repeated.swap_remove(index)).is_some()
    }

    fn strikes(&mut self) -> bool {
        self.prng.below(4) == 0
    }
}

/// A complete header that announces no address.
fn unannounced(connection: ConnectionId) -> Event {
    Event::PrefaceComplete { connection, peer: PeerAddr::Local, origin: PeerOrigin::Socket }
}

const FIRST: BufferId = BufferId { class: SizeClass::Small, index: 0 };

/// Whether this bug is the omission of `op`.
fn forgets(bug: Bug, op: Op) -> bool {
    match op {
        Op::Accept { .. } | Op::AcceptWaiting { .. } => bug == Bug::ForgetAccept,
        Op::CancelAccept { .. } | Op::CancelReceive { .. } => bug == Bug::ForgetCancel,
        Op::Receive { .. } => bug == Bug::ForgetReceive,
        Op::ReadPreface { .. } => bug == Bug::ForgetHeader,
        Op::Identify { .. } => bug == Bug::ForgetIdentity,
        Op::AwaitReadable { .. } => bug == Bug::ForgetPoll,
        Op::Relay { .. } | Op::Discard { .. } => bug == Bug::ForgetRelay,
        Op::SendHeld { .. } => bug == Bug::ForgetHeld,
        Op::SendSpilled { .. } => bug == Bug::ForgetSpilled,
        Op::CancelSend { .. } => bug == Bug::ForgetCancelSend,
        Op::Shutdown { how: Shutdown::Write, .. } => bug == Bug::ForgetFin,
        Op::Close { .. } | Op::Abort { .. } => bug == Bug::ForgetClose,
        Op::FlushSends => bug == Bug::ForgetAwait,
        Op::ReportPeers
        | Op::OmitPeers
        | Op::OfferBuffers { .. }
        | Op::CloseListener { .. }
        | Op::Send { .. }
        | Op::Spill { .. }
        | Op::ReleaseSpilled { .. }
        | Op::Recycle { .. }
        | Op::Probe { .. }
        | Op::EndProbe { .. }
        | Op::Shutdown { .. } => false,
    }
}
