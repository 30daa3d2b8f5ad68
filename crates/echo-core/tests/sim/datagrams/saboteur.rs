//! Turns a correct core into one with a planted bug, by falsifying its events and operations. The
//! counterpart of [`crate::saboteur`] for datagrams.

use echo_core::datagram::op::{BufferId, Event, Header, Op, ReceiveEnd, ReplyError};
use echo_core::datagram::{Datagram, Rates};
use echo_core::op::PeerAddr;

use super::rules::Rules;
use crate::fake::choice::Prng;

/// The bugs that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// An empty datagram is treated as one that leaves the receive armed.
    ForgetEmpty,
    /// A receive is not armed again.
    ForgetReceive,
    /// A receive is armed twice.
    TwoReceives,
    /// A receive that failed is tried again at once.
    HotRetry,
    /// A receive that found no buffer is tried again after a pause.
    PauseWithoutBuffer,
    /// The end of a receive is ignored.
    OverlookEnd,
    /// A receive is canceled although nothing ends.
    CancelAtOnce,
    /// A receive is not canceled in a drain.
    ForgetCancel,
    /// A socket is closed while it is received from.
    CloseEarly,
    /// A socket is never closed.
    ForgetClose,
    /// A buffer is never given back.
    LeakBuffer,
    /// A buffer is given back while its reply is in flight.
    RecycleEarly,
    /// A buffer is given back twice.
    RecycleTwice,
    /// A datagram is answered twice.
    ReplyTwice,
    /// A datagram is neither answered nor dropped.
    ForgetReply,
    /// A reply is sent from the previous buffer.
    SwapBuffers,
    /// A burst that is refused is not sent in pieces.
    ForgetPieces,
    /// The success of a reply is ignored.
    OverlookReply,
    /// A truncated datagram is answered.
    IgnoreTruncation,
    /// A datagram to a broadcast address is answered.
    IgnoreDestination,
    /// A source that is not a host is answered.
    IgnoreSource,
    /// The access lists are ignored.
    IgnoreAccess,
    /// The guarded ports are ignored.
    IgnorePorts,
    /// The rates are ignored.
    IgnoreRates,
    /// Every datagram is charged to another source.
    MixSources,
    /// A datagram is dropped for no reason.
    DropSome,
    /// The content of the header of a datagram is ignored.
    IgnoreHeader,
    /// A burst counts as one datagram.
    CountBurstOnce,
    /// The pieces of a burst that failed are not counted.
    ForgetFailedPieces,
    /// Every failure counts as a full send buffer.
    MixErrors,
    /// A datagram is answered by an echo in place of the identity.
    EchoUnidentified,
    /// An identity may be longer than the datagram that it answers.
    AmplifyIdentity,
    /// The kernel never answers a reply, and the core spins while it waits.
    WaitForNothing,
}

impl Bug {
    pub(crate) const ALL: [Self; 33] = [
        Self::ForgetEmpty,
        Self::ForgetReceive,
        Self::TwoReceives,
        Self::HotRetry,
        Self::PauseWithoutBuffer,
        Self::OverlookEnd,
        Self::CancelAtOnce,
        Self::ForgetCancel,
        Self::CloseEarly,
        Self::ForgetClose,
        Self::LeakBuffer,
        Self::RecycleEarly,
        Self::RecycleTwice,
        Self::ReplyTwice,
        Self::ForgetReply,
        Self::SwapBuffers,
        Self::ForgetPieces,
        Self::OverlookReply,
        Self::IgnoreTruncation,
        Self::IgnoreDestination,
        Self::IgnoreSource,
        Self::IgnoreAccess,
        Self::IgnorePorts,
        Self::IgnoreRates,
        Self::MixSources,
        Self::DropSome,
        Self::IgnoreHeader,
        Self::CountBurstOnce,
        Self::ForgetFailedPieces,
        Self::MixErrors,
        Self::EchoUnidentified,
        Self::AmplifyIdentity,
        Self::WaitForNothing,
    ];
}

/// The saboteur. Without a bug it lets everything pass.
pub(crate) struct Saboteur {
    bug: Option<Bug>,
    prng: Prng,
    /// The buffer of the last reply.
    last: Option<BufferId>,
}

impl Saboteur {
    pub(crate) fn none() -> Self {
        Self { bug: None, prng: Prng::new(0), last: None }
    }

    pub(crate) fn with(bug: Bug, seed: u64) -> Self {
        Self { bug: Some(bug), prng: Prng::new(!seed), last: None }
    }

    pub(crate) fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn strikes(&mut self) -> bool {
        self.prng.below(4) == 0
    }

    /// The configuration that the core gets.
    pub(crate) fn rules(&self, rules: &Rules) -> Rules {
        let rules = rules.clone();
        match self.bug {
            Some(Bug::IgnoreAccess) => Rules { denied: Vec::new(), allowed: Vec::new(), ..rules },
            Some(Bug::IgnorePorts) => Rules { ports: Vec::new(), ..rules },
            Some(Bug::IgnoreRates) => Rules { rates: Rates::default(), ..rules },
            Some(_) | None => rules,
        }
    }

    /// The event that the core gets instead of `event`; none if it is suppressed.
    pub(crate) fn event(&mut self, event: Event) -> Option<Event> {
        let Some(bug) = self.bug else { return Some(event) };
        Some(match event {
            Event::Received { socket, buffer, datagram, armed } => Event::Received {
                socket,
                buffer,
                datagram: self.datagram(bug, datagram),
                armed: armed || bug == Bug::ForgetEmpty && datagram.length == 0,
            },
            Event::ReceiveEnded { socket, reason } => {
                if bug == Bug::OverlookEnd && self.strikes() {
                    return None;
                }
                Event::ReceiveEnded { socket, reason: falsified_end(bug, reason) }
            }
            Event::Replied { .. } if bug == Bug::OverlookReply && self.strikes() => return None,
            Event::Replied { .. } | Event::Identified { .. } => event,
            Event::ReplyFailed { buffer, error } => match error {
                ReplyError::Unsendable | ReplyError::TooShort => event,
                ReplyError::Full
                | ReplyError::Unroutable
                | ReplyError::Refused
                | ReplyError::Memory
                | ReplyError::Unexpected(_) => {
                    let error = if bug == Bug::MixErrors { ReplyError::Full } else { error };
                    Event::ReplyFailed { buffer, error }
                }
            },
            Event::SegmentsReplied { buffer, datagrams, bytes, error } => {
                let error = if bug == Bug::ForgetFailedPieces { None } else { error };
                Event::SegmentsReplied { buffer, datagrams, bytes, error }
            }
        })
    }

    fn datagram(&mut self, bug: Bug, datagram: Datagram) -> Datagram {
        let mut told = datagram;
        match bug {
            Bug::IgnoreTruncation => told.truncated = false,
            Bug::IgnoreDestination => told.destination = told.local,
            Bug::IgnoreSource if told.source.address == PeerAddr::Unknown => {
                told.source.address = PeerAddr::Ipv4([10, 0, 0, 1]);
            }
            Bug::IgnoreSource if told.source.port == 0 => told.source.port = 40_000,
            Bug::MixSources => {
                if let PeerAddr::Ipv4([10, b, c, _]) = told.source.address {
                    let other = 100 + self.prng.below(100) as u8;
                    told.source.address = PeerAddr::Ipv4([10, b, c, other]);
                }
            }
            Bug::DropSome if self.strikes() => told.truncated = true,
            Bug::IgnoreHeader if told.header != Header::Absent => told.header = Header::Unannounced,
            Bug::CountBurstOnce => told.segment = 0,
            _ => {}
        }
        told
    }

    /// Replaces the operations of the core by those for the kernel.
    pub(crate) fn ops(&mut self, ops: &mut Vec<Op>) {
        let Some(bug) = self.bug else { return };
        for op in std::mem::take(ops) {
            self.say(bug, op, ops);
        }
    }

    fn say(&mut self, bug: Bug, op: Op, ops: &mut Vec<Op>) {
        match op {
            Op::Receive { .. } if bug == Bug::ForgetReceive && self.strikes() => {}
            Op::Receive { .. } if bug == Bug::TwoReceives && self.strikes() => {
                ops.extend([op, op]);
            }
            Op::Receive { socket } if bug == Bug::CancelAtOnce && self.strikes() => {
                ops.extend([op, Op::CancelReceive { socket }]);
            }
            Op::CancelReceive { .. } if bug == Bug::ForgetCancel => {}
            Op::CancelReceive { socket } if bug == Bug::CloseEarly => {
                ops.extend([op, Op::Close { socket }]);
            }
            Op::Close { .. } if bug == Bug::ForgetClose => {}
            Op::Recycle { .. } if bug == Bug::LeakBuffer && self.strikes() => {}
            Op::Recycle { .. } if bug == Bug::RecycleTwice && self.strikes() => {
                ops.extend([op, op]);
            }
            Op::Reply { buffer } => self.say_reply(bug, buffer, ops),
            Op::Identify { buffer, .. } if bug == Bug::EchoUnidentified => {
                ops.push(Op::Reply { buffer });
            }
            Op::Identify { buffer, length_max } if bug == Bug::AmplifyIdentity => {
                ops.push(Op::Identify { buffer, length_max: length_max + 1 });
            }
            Op::ReplySegments { buffer } if bug == Bug::ForgetPieces => {
                ops.push(Op::Recycle { buffer });
            }
            Op::Receive { .. }
            | Op::CancelReceive { .. }
            | Op::Close { .. }
            | Op::Recycle { .. }
            | Op::Identify { .. }
            | Op::ReplySegments { .. } => ops.push(op),
        }
    }

    fn say_reply(&mut self, bug: Bug, buffer: BufferId, ops: &mut Vec<Op>) {
        let reply = Op::Reply { buffer };
        let last = self.last.replace(buffer);
        match (bug, last) {
            (Bug::ForgetReply, _) if self.strikes() => {}
            (Bug::ReplyTwice, _) if self.strikes() => ops.extend([reply, reply]),
            (Bug::RecycleEarly, _) if self.strikes() => {
                ops.extend([reply, Op::Recycle { buffer }]);
            }
            (Bug::SwapBuffers, Some(buffer)) if self.strikes() => {
                ops.push(Op::Reply { buffer });
            }
            _ => ops.push(reply),
        }
    }
}

fn falsified_end(bug: Bug, reason: ReceiveEnd) -> ReceiveEnd {
    match reason {
        ReceiveEnd::Memory | ReceiveEnd::Unexpected(_) if bug == Bug::HotRetry => {
            ReceiveEnd::Stopped
        }
        ReceiveEnd::NoBuffer if bug == Bug::PauseWithoutBuffer => ReceiveEnd::Memory,
        ReceiveEnd::NoBuffer
        | ReceiveEnd::Stopped
        | ReceiveEnd::Memory
        | ReceiveEnd::Unexpected(_) => reason,
    }
}
