//! The promises of the core about datagrams, and the contract of their operations, checked for
//! every event and every operation in the order in which the core handles them.
//!
//! - A datagram that was received is answered once, or counted under one reason that applies to it.
//! - No more is sent than was received.
//! - A socket has at most one receive. A receive that ended is armed again at the end of that turn,
//!   or after a pause if it failed; never earlier, and never in a drain that is over.
//! - A buffer is given back once, when nothing uses it.
//! - A drain ends within a bounded number of turns.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use echo_core::command::Command;
use echo_core::datagram::op::{BufferId, Event, Op, ReceiveEnd, ReplyError, SocketId};
use echo_core::datagram::{Datagram, DatagramTraffic, DropReason, SocketParameters};

use super::rules::{Allowances, Rules, pieces};
use crate::fake::datagrams::Answer;

/// Turns of a drain in which a socket may still be received from.
const DRAIN_TURNS: usize = 64;
/// Turns within which a drain must be over, however late the kernel answers.
const DRAIN_TURNS_MAX: usize = 400;
/// The shortest pause after a failed receive, in milliseconds,
const PAUSE_MIN: u64 = 10;
/// and the longest.
const PAUSE_MAX: u64 = 1_000;

/// The state of the receive of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Armed,
    Canceled,
    /// To be armed when this turn ends.
    Ended,
    /// It failed at this moment.
    Failed(u64),
    Closed,
}

/// The holder of a buffer.
#[derive(Clone, Copy, Debug)]
enum Holder {
    Kernel,
    /// The core, which must decide at once.
    Arrived(Held),
    Replying(Held),
    /// The core: the reply was refused as a burst, which must be sent in pieces.
    Refused(Held),
    SendingPieces(Held),
    /// The core, which must give it back at once.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    socket: SocketId,
    datagram: Datagram,
}

/// The expected counters of the sockets of a listener.
#[derive(Clone, Default)]
struct Tally {
    counted: DatagramTraffic,
    /// Datagrams dropped, by the set of reasons that apply to them.
    dropped: BTreeMap<Vec<&'static str>, u64>,
}

/// The auditor of one worker.
pub(crate) struct Audit {
    sockets: Vec<(SocketParameters, Receiving)>,
    buffers: Vec<Holder>,
    pub(crate) rules: Rules,
    pub(crate) allowances: Rc<RefCell<Allowances>>,
    tallies: Vec<Tally>,
    /// Turns since a drain or a handover began.
    drain: Option<usize>,
    /// Pieces that may still be sent, by the serial of their packet.
    owed: BTreeMap<u64, u64>,
    /// The last packet of each socket: packets that wait in a socket keep their order.
    last: BTreeMap<SocketId, u64>,
    /// Packets that the kernel has taken out of a socket.
    pub(crate) packets: u64,
    /// Whether a socket was closed after a failure of the kernel. Packets that waited there are
    /// lost.
    pub(crate) closed_in_pause: bool,
}

impl Audit {
    pub(crate) fn new(
        sockets: &[SocketParameters],
        listeners: u16,
        buffers: u16,
        rules: Rules,
        allowances: Rc<RefCell<Allowances>>,
    ) -> Self {
        Self {
            sockets: sockets.iter().map(|socket| (*socket, Receiving::Ended)).collect(),
            buffers: (0..buffers).map(|_| Holder::Kernel).collect(),
            rules,
            allowances,
            tallies: (0..listeners).map(|_| Tally::default()).collect(),
            drain: None,
            owed: BTreeMap::new(),
            last: BTreeMap::new(),
            packets: 0,
            closed_in_pause: false,
        }
    }

    /// The next process serves the same sockets.
    pub(crate) fn begin_again(&mut self) {
        assert!(self.is_over(), "contract: a socket is open at a handover");
        self.sockets.iter_mut().for_each(|(_, receiving)| *receiving = Receiving::Ended);
        self.drain = None;
        self.allowances.borrow_mut().forget();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether no socket is open.
    pub(crate) fn is_over(&self) -> bool {
        self.sockets.iter().all(|(_, receiving)| *receiving == Receiving::Closed)
    }

    pub(crate) fn command(&mut self, command: &Command) {
        match command {
            Command::Drain { .. } | Command::HandOver { .. } => {
                self.drain.get_or_insert(0);
            }
            Command::EndListeners(_) | Command::AcceptFrom(_) | Command::Reconfigure(_) => {}
        }
    }

    /// New rules are in force.
    pub(crate) fn change(&mut self, rules: Rules) {
        self.rules = rules;
        self.allowances.borrow_mut().change();
    }

    fn tally(&mut self, socket: SocketId) -> &mut Tally {
        let listener = self.sockets[usize::from(socket.0)].0.listener;
        &mut self.tallies[usize::from(listener)]
    }

    fn take(&mut self, buffer: BufferId) -> Holder {
        std::mem::replace(&mut self.buffers[usize::from(buffer.0)], Holder::Done)
    }

    fn put(&mut self, buffer: BufferId, holder: Holder) {
        self.buffers[usize::from(buffer.0)] = holder;
    }

    /// The core gets this event; `serial` is that of the packet.
    pub(crate) fn event(&mut self, now: u64, event: &Event) {
        match *event {
            Event::Received { socket, buffer, datagram, armed } => {
                self.received(socket, armed);
                let former = self.take(buffer);
                assert!(matches!(former, Holder::Kernel), "fake: {buffer:?} was {former:?}");
                self.put(buffer, Holder::Arrived(Held { socket, datagram }));
                let counted = &mut self.tally(socket).counted;
                counted.datagrams_in += pieces(&datagram);
                counted.bytes_in += u64::from(datagram.length);
            }
            Event::ReceiveEnded { socket, reason } => self.receive_ended(now, socket, reason),
            Event::Replied { buffer } => {
                let Holder::Replying(held) = self.take(buffer) else {
                    panic!("fake: {buffer:?} had no reply")
                };
                let counted = &mut self.tally(held.socket).counted;
                counted.datagrams_out += pieces(&held.datagram);
                counted.bytes_out += u64::from(held.datagram.length);
            }
            Event::Identified { buffer, length } => {
                let Holder::Replying(held) = self.take(buffer) else {
                    panic!("fake: {buffer:?} had no reply")
                };
                let counted = &mut self.tally(held.socket).counted;
                counted.datagrams_out += 1;
                counted.bytes_out += u64::from(length);
            }
            Event::ReplyFailed { buffer, error } => {
                let Holder::Replying(held) = self.take(buffer) else {
                    panic!("fake: {buffer:?} had no reply")
                };
                if held.datagram.segment > 0 && error == ReplyError::Unsendable {
                    self.put(buffer, Holder::Refused(held));
                } else {
                    self.failed(held.socket, error, pieces(&held.datagram));
                }
            }
            Event::SegmentsReplied { buffer, datagrams, bytes, error } => {
                let Holder::SendingPieces(held) = self.take(buffer) else {
                    panic!("fake: {buffer:?} was not sent in pieces")
                };
                let counted = &mut self.tally(held.socket).counted;
                counted.datagrams_out += u64::from(datagrams);
                counted.bytes_out += u64::from(bytes);
                if let Some(error) = error {
                    let failed = pieces(&held.datagram) - u64::from(datagrams);
                    self.failed(held.socket, error, failed);
                }
            }
        }
    }

    fn received(&mut self, socket: SocketId, armed: bool) {
        let receiving = &mut self.sockets[usize::from(socket.0)].1;
        let is_with_kernel = matches!(receiving, Receiving::Armed | Receiving::Canceled);
        assert!(is_with_kernel, "fake: {socket:?} is {receiving:?} and receives");
        if !armed {
            *receiving = Receiving::Ended;
        }
    }

    fn receive_ended(&mut self, now: u64, socket: SocketId, reason: ReceiveEnd) {
        self.received(socket, false);
        let failed = match reason {
            ReceiveEnd::NoBuffer | ReceiveEnd::Stopped => return,
            ReceiveEnd::Memory => None,
            ReceiveEnd::Unexpected(errno) => Some(errno),
        };
        self.sockets[usize::from(socket.0)].1 = Receiving::Failed(now);
        let counted = &mut self.tally(socket).counted;
        counted.receive_failures += 1;
        counted.unexpected_errno = failed.unwrap_or(counted.unexpected_errno);
    }

    fn failed(&mut self, socket: SocketId, error: ReplyError, datagrams: u64) {
        let reason = match error {
            ReplyError::Full => DropReason::SendBuffer,
            ReplyError::Unsendable => DropReason::TooLarge,
            ReplyError::Unroutable => DropReason::Unroutable,
            ReplyError::TooShort => DropReason::TooShort,
            ReplyError::Refused => DropReason::Refused,
            ReplyError::Memory => DropReason::Memory,
            ReplyError::Unexpected(errno) => {
                self.tally(socket).counted.unexpected_errno = errno;
                DropReason::Unexpected
            }
        };
        self.dropped(socket, &[reason], datagrams);
    }

    fn dropped(&mut self, socket: SocketId, reasons: &[DropReason], datagrams: u64) {
        let names = reasons.iter().map(|reason| reason.name()).collect();
        *self.tally(socket).dropped.entry(names).or_default() += datagrams;
    }

    /// The core submits this operation.
    pub(crate) fn op(&mut self, now: u64, op: &Op) {
        match *op {
            Op::Receive { socket } => self.receive(now, socket),
            Op::CancelReceive { socket } => {
                let receiving = &mut self.sockets[usize::from(socket.0)].1;
                assert!(self.drain.is_some(), "promise: {socket:?} is canceled without a drain");
                assert_eq!(*receiving, Receiving::Armed, "contract: {socket:?} is canceled");
                *receiving = Receiving::Canceled;
            }
            Op::Reply { buffer } => self.reply(now, buffer, None),
            Op::Identify { buffer, length_max } => self.reply(now, buffer, Some(length_max)),
            Op::ReplySegments { buffer } => match self.take(buffer) {
                Holder::Refused(held) => self.put(buffer, Holder::SendingPieces(held)),
                holder => panic!("contract: pieces of {buffer:?}, which is {holder:?}"),
            },
            Op::Recycle { buffer } => self.recycle(now, buffer),
            Op::Close { socket } => self.close(socket),
        }
    }

    /// A datagram is answered by itself, or by an identity of this number of bytes at most.
    fn reply(&mut self, now: u64, buffer: BufferId, identity: Option<u32>) {
        let Holder::Arrived(held) = self.take(buffer) else {
            panic!("contract: a reply of {buffer:?}, which has not just arrived")
        };
        let SocketParameters { own, identifies, .. } = self.sockets[usize::from(held.socket.0)].0;
        let most = identifies.then_some(held.datagram.length);
        assert_eq!(identity, most, "promise: an identity in place of an echo, or more than came");
        let reasons = self.rules.reasons(&held.datagram, own);
        assert_eq!(reasons, [], "promise: {:?} is answered", held.datagram);
        self.allowances.borrow_mut().answered(&self.rules, now * 1_000, &held.datagram);
        self.put(buffer, Holder::Replying(held));
    }

    fn receive(&mut self, now: u64, socket: SocketId) {
        let (parameters, receiving) = &mut self.sockets[usize::from(socket.0)];
        match *receiving {
            Receiving::Ended => {}
            Receiving::Failed(when) => {
                assert!(now >= when + PAUSE_MIN, "promise: {socket:?} is tried again at once");
            }
            other => panic!("contract: {socket:?} is {other:?} and is armed"),
        }
        let may_receive = match self.drain {
            None => true,
            Some(turns) => turns < DRAIN_TURNS && !parameters.outlives_us,
        };
        assert!(may_receive, "promise: {socket:?} is armed in a drain");
        *receiving = Receiving::Armed;
    }

    fn recycle(&mut self, now: u64, buffer: BufferId) {
        match self.take(buffer) {
            Holder::Done => {}
            Holder::Arrived(Held { socket, datagram }) => {
                let own = self.sockets[usize::from(socket.0)].0.own;
                let mut reasons = self.rules.reasons(&datagram, own);
                if reasons.is_empty() {
                    let mut allowances = self.allowances.borrow_mut();
                    reasons = allowances.refused(&self.rules, now * 1_000, &datagram);
                }
                assert!(!reasons.is_empty(), "promise: {datagram:?} is dropped for no reason");
                self.dropped(socket, &reasons, pieces(&datagram));
            }
            holder => panic!("contract: {buffer:?} is given back, which is {holder:?}"),
        }
        self.put(buffer, Holder::Kernel);
    }

    fn close(&mut self, socket: SocketId) {
        let is_replying = self.buffers.iter().any(|holder| match holder {
            Holder::Replying(held) | Holder::SendingPieces(held) => held.socket == socket,
            Holder::Kernel | Holder::Arrived(_) | Holder::Refused(_) | Holder::Done => false,
        });
        assert!(!is_replying, "contract: {socket:?} is closed while it replies");
        assert!(self.drain.is_some(), "promise: {socket:?} is closed without a drain");
        let receiving = &mut self.sockets[usize::from(socket.0)].1;
        let has_ended = matches!(receiving, Receiving::Ended | Receiving::Failed(_));
        assert!(has_ended, "contract: {socket:?} is closed while {receiving:?}");
        self.closed_in_pause |= matches!(receiving, Receiving::Failed(_));
        *receiving = Receiving::Closed;
    }

    /// The core has submitted all operations that follow from an event.
    pub(crate) fn settle(&self) {
        for (index, holder) in self.buffers.iter().enumerate() {
            let is_settled = match holder {
                Holder::Kernel | Holder::Replying(_) | Holder::SendingPieces(_) => true,
                Holder::Arrived(_) | Holder::Refused(_) | Holder::Done => false,
            };
            assert!(is_settled, "promise: nothing is done with buffer {index}: {holder:?}");
        }
    }

    /// A turn is over.
    pub(crate) fn turn_ended(&mut self, now: u64) {
        self.settle();
        if let Some(turns) = &mut self.drain {
            *turns += 1;
            assert!(*turns < DRAIN_TURNS_MAX || self.is_over(), "promise: a drain does not end");
            return;
        }
        for (index, (_, receiving)) in self.sockets.iter().enumerate() {
            let is_served = match *receiving {
                Receiving::Armed => true,
                Receiving::Failed(when) => now < when + PAUSE_MAX,
                Receiving::Canceled | Receiving::Ended | Receiving::Closed => false,
            };
            assert!(is_served, "promise: socket {index} is {receiving:?} after a turn");
        }
    }

    /// The kernel has taken this packet out of a socket. It may be a burst of datagrams.
    pub(crate) fn arrived(&mut self, socket: SocketId, serial: u64, datagram: &Datagram) {
        self.packets += 1;
        self.owed.insert(serial, pieces(datagram));
        let last = self.last.insert(socket, serial);
        assert!(last.is_none_or(|last| last < serial), "fake: {socket:?} is out of order");
    }

    /// This packet has been sent.
    pub(crate) fn sent(&mut self, answer: &Answer) {
        let serial = answer.serial;
        let owed = self.owed.get_mut(&serial);
        let owed = owed.unwrap_or_else(|| panic!("promise: packet {serial} is answered"));
        assert!(*owed > 0, "promise: packet {serial} is answered twice");
        *owed -= 1;
    }

    /// Compares the counters of the worker, in this process and previous ones, with the model.
    pub(crate) fn check_counters(&self, told: &[DatagramTraffic]) {
        for (tally, told) in self.tallies.iter().zip(told) {
            let counted = DatagramTraffic { dropped: told.dropped, ..tally.counted.clone() };
            assert_eq!(counted, *told, "counters: datagrams");
            let dropped: u64 = tally.dropped.values().sum();
            assert_eq!(told.dropped.iter().sum::<u64>(), dropped, "counters: dropped");
            for reason in DropReason::ALL {
                let applies = |names: &&Vec<_>| names.contains(&reason.name());
                let sum = |names: &dyn Fn(&&Vec<&'static str>) -> bool| -> u64 {
                    let all = tally.dropped.iter().filter(|(key, _)| names(key));
                    all.map(|(_, count)| count).sum()
                };
                let least = sum(&|names| applies(names) && names.len() == 1);
                let most = sum(&|names| applies(names));
                let told = told.dropped[reason as usize];
                assert!((least..=most).contains(&told), "counters: {told} {reason:?}, not {most}");
            }
            assert!(told.bytes_out <= told.bytes_in, "promise: more bytes were sent than received");
        }
    }

    /// Nothing is in flight.
    pub(crate) fn check_rest(&self, told: &[DatagramTraffic]) {
        for told in told {
            let ended = told.datagrams_out + told.dropped.iter().sum::<u64>();
            assert_eq!(told.datagrams_in, ended, "rest: datagrams");
        }
        let is_home = |holder: &Holder| matches!(holder, Holder::Kernel);
        assert!(self.buffers.iter().all(is_home), "rest: a buffer is missing");
    }
}
