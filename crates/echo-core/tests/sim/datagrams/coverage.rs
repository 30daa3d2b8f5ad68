//! The situations that a swarm of datagram histories has covered.

use echo_core::datagram::DropReason;
use echo_core::datagram::op::{Event, Op, ReceiveEnd, ReplyError};

use super::history::History;
use super::mixed::Note;

/// The situations that must occur, besides every reason to drop a datagram.
const OCCASIONS: [&str; 29] = [
    "an empty datagram",
    "a burst",
    "a truncated datagram",
    "a receive ended by a datagram",
    "a receive that continues after its cancel",
    "a cancel that came too late",
    "a receive without buffer",
    "a receive stopped",
    "a receive without memory",
    "a receive with an unexpected error",
    "a receive canceled",
    "a reply that found the buffer full",
    "a reply refused as a burst",
    "a reply without route",
    "a reply refused by a filter",
    "a reply without memory",
    "a reply with an unexpected error",
    "pieces sent, all of them",
    "pieces sent, some of them",
    "pieces sent, none of them",
    "a reply reported a turn later",
    "a socket closed",
    "a full socket",
    "a handover",
    "a handover that failed",
    "other rules",
    "a history with streams",
    "an identity sent",
    "a request too short for the identity",
];

/// How often each has occurred.
pub(crate) struct Coverage {
    occasions: [u64; OCCASIONS.len()],
    dropped: [u64; DropReason::ALL.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        Self { occasions: [0; OCCASIONS.len()], dropped: [0; DropReason::ALL.len()] }
    }
}

impl Coverage {
    fn met(&mut self, name: &str, times: u64) {
        let index = OCCASIONS.iter().position(|occasion| *occasion == name);
        self.occasions[index.expect("it is in the list")] += times;
    }

    pub(crate) fn add(&mut self, history: &History) {
        let mut canceled = Vec::new();
        for (_, note) in &history.kernel.story {
            match note {
                Note::Op(Op::CancelReceive { socket }) => {
                    canceled.push(*socket);
                    self.met("a receive canceled", 1);
                }
                Note::Op(Op::Close { socket }) => {
                    canceled.retain(|other| other != socket);
                    self.met("a socket closed", 1);
                }
                Note::Op(
                    Op::Receive { .. }
                    | Op::Reply { .. }
                    | Op::ReplySegments { .. }
                    | Op::Identify { .. }
                    | Op::Recycle { .. },
                ) => {}
                Note::Event(event) => {
                    if let Event::Received { socket, armed, .. } = event
                        && canceled.contains(socket)
                    {
                        let continues = "a receive that continues after its cancel";
                        self.met(if *armed { continues } else { "a cancel that came too late" }, 1);
                    }
                    of_event(event).iter().for_each(|name| self.met(name, 1));
                }
                Note::World(_) => {}
            }
        }
        self.met("a reply reported a turn later", history.kernel.datagrams.told_late);
        self.met("a full socket", history.kernel.datagrams.overflowed);
        self.met("a handover", history.handed_over);
        self.met("a handover that failed", history.taken_back);
        self.met("other rules", history.changed);
        self.met("a history with streams", u64::from(history.scenario.peers > 0));
        let dropped = history.worker.stats().datagrams.dropped;
        self.dropped.iter_mut().zip(dropped).for_each(|(sum, count)| *sum += count);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let pairs = self.occasions.iter_mut().zip(other.occasions);
        pairs.for_each(|(sum, count)| *sum += count);
        let pairs = self.dropped.iter_mut().zip(other.dropped);
        pairs.for_each(|(sum, count)| *sum += count);
    }

    /// Each situation with its count.
    pub(crate) fn lines(&self) -> Vec<(String, u64)> {
        let occasions = OCCASIONS.iter().map(|name| (*name).to_string()).zip(self.occasions);
        let dropped = DropReason::ALL.iter().zip(self.dropped);
        let dropped = dropped.map(|(reason, count)| (format!("dropped: {}", reason.name()), count));
        occasions.chain(dropped).collect()
    }
}

fn of_event(event: &Event) -> Vec<&'static str> {
    match *event {
        Event::Received { datagram, armed, .. } => [
            (datagram.length == 0, "an empty datagram"),
            (datagram.segment > 0, "a burst"),
            (datagram.truncated, "a truncated datagram"),
            (!armed && datagram.length > 0, "a receive ended by a datagram"),
        ]
        .into_iter()
        .filter(|(applies, _)| *applies)
        .map(|(_, name)| name)
        .collect(),
        Event::ReceiveEnded { reason, .. } => vec![match reason {
            ReceiveEnd::NoBuffer => "a receive without buffer",
            ReceiveEnd::Stopped => "a receive stopped",
            ReceiveEnd::Memory => "a receive without memory",
            ReceiveEnd::Unexpected(_) => "a receive with an unexpected error",
        }],
        Event::Replied { .. } => Vec::new(),
        Event::Identified { .. } => vec!["an identity sent"],
        Event::ReplyFailed { error, .. } => vec![match error {
            ReplyError::Full => "a reply that found the buffer full",
            ReplyError::Unsendable => "a reply refused as a burst",
            ReplyError::Unroutable => "a reply without route",
            ReplyError::TooShort => "a request too short for the identity",
            ReplyError::Refused => "a reply refused by a filter",
            ReplyError::Memory => "a reply without memory",
            ReplyError::Unexpected(_) => "a reply with an unexpected error",
        }],
        Event::SegmentsReplied { datagrams: 0, .. } => vec!["pieces sent, none of them"],
        Event::SegmentsReplied { error: Some(_), .. } => vec!["pieces sent, some of them"],
        Event::SegmentsReplied { error: None, .. } => vec!["pieces sent, all of them"],
    }
}
