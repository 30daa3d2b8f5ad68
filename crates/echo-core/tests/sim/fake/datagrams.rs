//! Datagram sockets of the fake: queues, a pool of buffers, and everything that a kernel may do
//! with both.
//!
//! The counterpart of [`super::FakeKernel`] for `echo_core::datagram`. It has no clock and does not
//! wait: its caller calls [`DatagramKernel::enter`] when the kernel is entered and
//! [`DatagramKernel::tell`] when that returns. A violation of the contract of the operations that a
//! kernel can detect is a panic.

use std::collections::VecDeque;

use echo_core::datagram::op::{BufferId, Event, Op, ReceiveEnd, ReplyError, SocketId};
use echo_core::datagram::{Datagram, Endpoint};
use echo_core::op::PeerAddr;

use super::choice::Choice;

/// The probability of each fault, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DatagramFaults {
    /// Something that could happen now happens later.
    pub(crate) late: u16,
    /// An event is reported later.
    pub(crate) late_event: u16,
    /// A receive ends with a datagram.
    pub(crate) disarmed: u16,
    /// A receive finds no buffer although some are free.
    pub(crate) dry: u16,
    /// A receive ends for no reason.
    pub(crate) stopped: u16,
    /// A receive finds no memory.
    pub(crate) memory: u16,
    /// A receive ends with an unexpected error.
    pub(crate) unexpected: u16,
    /// A cancel comes too late.
    pub(crate) cancel_loses: u16,
    /// The success of a reply is reported one or more turns later.
    pub(crate) late_reply: u16,
    /// A reply fails, by any error.
    pub(crate) reply_error: u16,
    /// The route carries no burst.
    pub(crate) burst_refused: u16,
    /// A datagram of a burst fails when it is sent by itself.
    pub(crate) segment_error: u16,
    /// A reply is never answered, which no kernel may do.
    pub(crate) unanswered: u16,
}

/// Bytes of every identity.
const IDENTITY_LENGTH: u32 = 40;

/// A datagram or a burst on its way in.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// Counts up over all packets of a history.
    pub(crate) serial: u64,
    pub(crate) datagram: Datagram,
    pub(crate) payload: Vec<u8>,
}

/// A datagram on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The serial of the packet that it answers.
    pub(crate) serial: u64,
    pub(crate) socket: SocketId,
    pub(crate) to: Endpoint,
    pub(crate) from: PeerAddr,
    pub(crate) payload: Vec<u8>,
}

struct Socket {
    queue: VecDeque<Packet>,
    receive: Option<Armed>,
    /// From the submission of a receive until its end has been reported.
    is_asked: bool,
}

#[derive(Clone, Copy)]
struct Armed {
    canceled: bool,
    /// It has been tried once: an empty pool then ends it, even if nothing waits.
    tried: bool,
}

enum Buffer {
    Free,
    Lent { socket: SocketId, packet: Packet },
    Replying { socket: SocketId, packet: Packet },
}

/// The receiver of events, in order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Socket(SocketId),
    Buffer(BufferId),
}

/// The datagram side of a fake kernel.
pub(crate) struct DatagramKernel {
    pub(crate) choice: Choice,
    pub(crate) faults: DatagramFaults,
    /// The sent packets, oldest first, for inspection.
    pub(crate) sent: VecDeque<Answer>,
    /// Packets that found room in a queue.
    pub(crate) arrived: u64,
    /// Packets that found a queue full.
    pub(crate) overflowed: u64,
    /// Packets that were in a queue when its socket was closed finally.
    pub(crate) forgotten: u64,
    /// The longest datagram that can be sent.
    pub(crate) length_max: usize,
    /// Turns that reported the success of a reply late.
    pub(crate) told_late: u64,
    /// Which sockets answer by an identity, so that nothing is merged there.
    pub(crate) identifies: Vec<bool>,
    queue_max: usize,
    sockets: Vec<Option<Socket>>,
    buffers: Vec<Buffer>,
    /// Free buffers that a receive may take.
    offered: VecDeque<u16>,
    /// Free buffers that are offered when the kernel is next entered.
    spare: Vec<u16>,
    /// The operations for the next entry to the kernel, in order.
    submitted: VecDeque<Op>,
    untold: Vec<(Name, VecDeque<Event>)>,
    /// Replies that were taken and have no completion.
    silent: Vec<BufferId>,
    /// Whether some of them are reported late.
    flushes: bool,
    /// Sockets that stay open in another process.
    held_elsewhere: Vec<bool>,
    /// Their queues, while no process of the simulation has them open.
    kept: Vec<VecDeque<Packet>>,
}

impl DatagramKernel {
    /// A socket for each of `held_elsewhere`, which is whether another process has it as well.
    pub(crate) fn new(
        held_elsewhere: &[bool],
        buffers: u16,
        queue_max: usize,
        faults: DatagramFaults,
        choice: Choice,
    ) -> Self {
        let mut kernel = Self {
            choice,
            faults,
            sent: VecDeque::new(),
            arrived: 0,
            overflowed: 0,
            forgotten: 0,
            length_max: usize::MAX,
            told_late: 0,
            identifies: vec![false; held_elsewhere.len()],
            queue_max,
            sockets: held_elsewhere.iter().map(|_| None).collect(),
            buffers: (0..buffers).map(|_| Buffer::Free).collect(),
            offered: VecDeque::new(),
            spare: (0..buffers).rev().collect(),
            submitted: VecDeque::new(),
            untold: Vec::new(),
            silent: Vec::new(),
            flushes: false,
            held_elsewhere: held_elsewhere.to_vec(),
            kept: held_elsewhere.iter().map(|_| VecDeque::new()).collect(),
        };
        kernel.open();
        kernel
    }

    /// A process opens its sockets, the first or the next one.
    pub(crate) fn open(&mut self) {
        for (socket, kept) in self.sockets.iter_mut().zip(&mut self.kept) {
            assert!(socket.is_none(), "contract: a socket is open at a handover");
            let queue = std::mem::take(kept);
            *socket = Some(Socket { queue, receive: None, is_asked: false });
        }
        assert!(self.submitted.iter().all(|op| matches!(op, Op::CancelReceive { .. })));
        self.submitted.clear();
    }

    /// A packet arrives. If no process has the socket, or its queue is full, the packet is lost.
    pub(crate) fn arrive(&mut self, socket: SocketId, mut packet: Packet) -> bool {
        let index = usize::from(socket.0);
        if self.identifies[index] {
            packet.datagram.segment = 0;
        }
        let queue = match &mut self.sockets[index] {
            Some(open) => &mut open.queue,
            None if self.held_elsewhere[index] => &mut self.kept[index],
            None => return false,
        };
        if queue.len() >= self.queue_max {
            self.overflowed += 1;
            return false;
        }
        queue.push_back(packet);
        self.arrived += 1;
        true
    }

    /// How many packets wait in all sockets that are open.
    pub(crate) fn waiting(&self) -> usize {
        self.sockets.iter().flatten().map(|socket| socket.queue.len()).sum()
    }

    /// Takes the packets that wait in a socket that another process holds as well.
    pub(crate) fn take_waiting(&mut self, socket: SocketId) -> Vec<Vec<u8>> {
        let index = usize::from(socket.0);
        let open = self.sockets[index].as_mut().map(|socket| &mut socket.queue);
        let queue = open.unwrap_or(&mut self.kept[index]);
        queue.drain(..).map(|packet| packet.payload).collect()
    }

    /// How many buffers are free, and how many there are.
    pub(crate) fn free_and_total(&self) -> (usize, usize) {
        let free = self.buffers.iter().filter(|buffer| matches!(buffer, Buffer::Free)).count();
        (free, self.buffers.len())
    }

    /// The serial of the packet in a buffer that is lent.
    pub(crate) fn serial_of(&self, buffer: BufferId) -> u64 {
        match &self.buffers[usize::from(buffer.0)] {
            Buffer::Lent { packet, .. } | Buffer::Replying { packet, .. } => packet.serial,
            Buffer::Free => panic!("{buffer:?} is not lent"),
        }
    }

    /// How many sockets are open.
    pub(crate) fn open_sockets(&self) -> usize {
        self.sockets.iter().flatten().count()
    }

    /// Takes the submitted operations. Operations that are not entries of a ring are done at once.
    pub(crate) fn submit(&mut self, ops: &mut Vec<Op>) {
        for op in ops.drain(..) {
            match op {
                Op::Receive { socket } => {
                    let open = self.socket(socket);
                    assert!(!open.is_asked, "contract: {socket:?} has two receives");
                    open.is_asked = true;
                    self.submitted.push_back(op);
                }
                Op::CancelReceive { socket } => {
                    self.socket(socket);
                    self.submitted.push_back(op);
                }
                Op::Reply { buffer } => {
                    self.begin_reply(buffer);
                    self.submitted.push_back(op);
                }
                Op::ReplySegments { buffer } => self.reply_segments(buffer),
                Op::Identify { buffer, length_max } => self.identify(buffer, length_max),
                Op::Recycle { buffer } => self.recycle(buffer),
                Op::Close { socket } => self.close(socket),
            }
        }
    }

    /// The kernel is entered: submitted operations are done, and possible things happen.
    pub(crate) fn enter(&mut self) {
        while let Some(index) = self.spare.pop() {
            self.offered.push_back(index);
        }
        while let Some(op) = self.submitted.pop_front() {
            self.carry_out(op);
        }
        let mut possible: Vec<SocketId> = self.possible().collect();
        while !possible.is_empty() {
            let socket = possible.swap_remove(self.choice.below(possible.len()));
            if self.choice.strikes(self.faults.late) {
                continue;
            }
            self.serve(socket);
            // A receive continues while there is something.
            if self.is_possible(socket) {
                possible.push(socket);
            }
        }
    }

    /// Whether a turn has a reason to end at once.
    pub(crate) fn is_busy(&self) -> bool {
        self.flushes || !self.untold.is_empty() || self.possible().next().is_some()
    }

    /// Reports some of the events: in order for each name, in any order across names.
    pub(crate) fn tell(&mut self, events: &mut Vec<Event>) {
        let mut held = 0;
        while held < self.untold.len() {
            let pick = held + self.choice.below(self.untold.len() - held);
            if self.choice.strikes(self.faults.late_event) {
                self.untold.swap(held, pick);
                held += 1;
                continue;
            }
            let event = self.untold[pick].1.pop_front().expect("no empty queue is kept");
            if self.untold[pick].1.is_empty() {
                self.untold.swap_remove(pick);
            }
            self.note_told(event);
            events.push(event);
        }
        self.flushes = !self.silent.is_empty() && self.choice.strikes(self.faults.late_reply);
        self.told_late += u64::from(self.flushes);
        if !self.flushes {
            for buffer in std::mem::take(&mut self.silent) {
                let event = Event::Replied { buffer };
                self.note_told(event);
                events.push(event);
            }
        }
    }

    fn note_told(&mut self, event: Event) {
        match event {
            Event::Received { armed: true, .. } => {}
            Event::Received { socket, armed: false, .. } | Event::ReceiveEnded { socket, .. } => {
                self.socket(socket).is_asked = false;
            }
            Event::Replied { buffer }
            | Event::ReplyFailed { buffer, .. }
            | Event::Identified { buffer, .. }
            | Event::SegmentsReplied { buffer, .. } => {
                let place = &mut self.buffers[usize::from(buffer.0)];
                *place = match std::mem::replace(place, Buffer::Free) {
                    Buffer::Replying { socket, packet } => Buffer::Lent { socket, packet },
                    Buffer::Free | Buffer::Lent { .. } => panic!("{buffer:?} was not replied"),
                };
            }
        }
    }

    fn socket(&mut self, socket: SocketId) -> &mut Socket {
        let open = self.sockets[usize::from(socket.0)].as_mut();
        open.unwrap_or_else(|| panic!("contract: {socket:?} is not open"))
    }

    fn carry_out(&mut self, op: Op) {
        match op {
            Op::Receive { socket } => {
                self.socket(socket).receive = Some(Armed { canceled: false, tried: false });
            }
            Op::CancelReceive { socket } => {
                let open = self.sockets[usize::from(socket.0)].as_mut();
                if let Some(receive) = open.and_then(|socket| socket.receive.as_mut()) {
                    receive.canceled = true;
                }
            }
            Op::Reply { buffer } => self.reply(buffer),
            Op::ReplySegments { .. }
            | Op::Identify { .. }
            | Op::Recycle { .. }
            | Op::Close { .. } => {
                unreachable!("{op:?} is not an entry of a ring")
            }
        }
    }

    fn possible(&self) -> impl Iterator<Item = SocketId> + '_ {
        (0..self.sockets.len() as u16).map(SocketId).filter(|socket| self.is_possible(*socket))
    }

    fn is_possible(&self, socket: SocketId) -> bool {
        let Some(socket) = &self.sockets[usize::from(socket.0)] else { return false };
        let Some(receive) = socket.receive else { return false };
        receive.canceled || !receive.tried || !socket.queue.is_empty()
    }

    /// The result of an armed receive.
    fn serve(&mut self, socket: SocketId) {
        let faults = self.faults;
        let open = self.socket(socket);
        let receive = open.receive.as_mut().expect("a possible receive is armed");
        receive.tried = true;
        let (canceled, waits) = (receive.canceled, !open.queue.is_empty());
        let takes = waits && !self.offered.is_empty();
        if canceled && !(takes && self.choice.strikes(faults.cancel_loses)) {
            return self.end_receive(socket, ReceiveEnd::Stopped);
        }
        let ends = [
            (faults.stopped, ReceiveEnd::Stopped),
            (faults.memory, ReceiveEnd::Memory),
            (faults.unexpected, ReceiveEnd::Unexpected(71)),
            (faults.dry, ReceiveEnd::NoBuffer),
        ];
        for (per_mille, end) in ends {
            if self.choice.strikes(per_mille) {
                return self.end_receive(socket, end);
            }
        }
        let Some(index) = self.offered.pop_front() else {
            return self.end_receive(socket, ReceiveEnd::NoBuffer);
        };
        let Some(packet) = self.socket(socket).queue.pop_front() else {
            return self.offered.push_front(index);
        };
        let datagram = packet.datagram;
        // An empty datagram ends a receive.
        let armed = datagram.length > 0 && !self.choice.strikes(faults.disarmed);
        if !armed {
            self.socket(socket).receive = None;
        }
        let place = &mut self.buffers[usize::from(index)];
        assert!(matches!(place, Buffer::Free), "a buffer on offer is free");
        *place = Buffer::Lent { socket, packet };
        let buffer = BufferId(index);
        self.note(Name::Socket(socket), Event::Received { socket, buffer, datagram, armed });
    }

    fn end_receive(&mut self, socket: SocketId, reason: ReceiveEnd) {
        self.socket(socket).receive = None;
        self.note(Name::Socket(socket), Event::ReceiveEnded { socket, reason });
    }

    fn note(&mut self, name: Name, event: Event) {
        match self.untold.iter_mut().find(|(other, _)| *other == name) {
            Some((_, events)) => events.push_back(event),
            None => self.untold.push((name, VecDeque::from([event]))),
        }
    }

    fn begin_reply(&mut self, buffer: BufferId) {
        let place = &mut self.buffers[usize::from(buffer.0)];
        *place = match std::mem::replace(place, Buffer::Free) {
            Buffer::Lent { socket, packet } => {
                let is_open = self.sockets[usize::from(socket.0)].is_some();
                assert!(is_open, "contract: a reply from {socket:?}, which is closed");
                Buffer::Replying { socket, packet }
            }
            Buffer::Replying { .. } => panic!("contract: {buffer:?} has two replies"),
            Buffer::Free => panic!("contract: {buffer:?} is not lent"),
        };
    }

    fn replying(&self, buffer: BufferId) -> (SocketId, Packet) {
        match &self.buffers[usize::from(buffer.0)] {
            Buffer::Replying { socket, packet } => (*socket, packet.clone()),
            Buffer::Free | Buffer::Lent { .. } => panic!("{buffer:?} has no reply"),
        }
    }

    fn reply(&mut self, buffer: BufferId) {
        let (socket, packet) = self.replying(buffer);
        let too_long = pieces(&packet).iter().any(|piece| piece.len() > self.length_max);
        let refused = too_long
            || packet.datagram.segment > 0 && self.choice.strikes(self.faults.burst_refused);
        let error = match refused {
            true => Some(ReplyError::Unsendable),
            false => self.choice.strikes(self.faults.reply_error).then(|| self.draw_error()),
        };
        if let Some(error) = error {
            return self.note(Name::Buffer(buffer), Event::ReplyFailed { buffer, error });
        }
        for payload in pieces(&packet) {
            self.send(socket, &packet, payload);
        }
        if !self.choice.strikes(self.faults.unanswered) {
            self.silent.push(buffer);
        }
    }

    fn reply_segments(&mut self, buffer: BufferId) {
        self.begin_reply(buffer);
        let (socket, packet) = self.replying(buffer);
        let (mut datagrams, mut bytes, mut error) = (0, 0, None);
        for payload in pieces(&packet) {
            if self.choice.strikes(self.faults.segment_error) {
                error = Some(self.draw_error());
            } else {
                datagrams += 1;
                bytes += payload.len() as u32;
                self.send(socket, &packet, payload);
            }
        }
        let event = Event::SegmentsReplied { buffer, datagrams, bytes, error };
        self.note(Name::Buffer(buffer), event);
    }

    fn identify(&mut self, buffer: BufferId, length_max: u32) {
        self.begin_reply(buffer);
        let (socket, packet) = self.replying(buffer);
        assert!(self.identifies[usize::from(socket.0)], "contract: {socket:?} has no identity");
        let error = match length_max < IDENTITY_LENGTH {
            true => Some(ReplyError::TooShort),
            false => self.choice.strikes(self.faults.reply_error).then(|| self.draw_error()),
        };
        let event = match error {
            Some(error) => Event::ReplyFailed { buffer, error },
            None => {
                self.send(socket, &packet, vec![b'i'; IDENTITY_LENGTH as usize]);
                Event::Identified { buffer, length: IDENTITY_LENGTH }
            }
        };
        self.note(Name::Buffer(buffer), event);
    }

    fn send(&mut self, socket: SocketId, packet: &Packet, payload: Vec<u8>) {
        let Datagram { source: to, local: from, .. } = packet.datagram;
        self.sent.push_back(Answer { serial: packet.serial, socket, to, from, payload });
    }

    fn draw_error(&mut self) -> ReplyError {
        [
            ReplyError::Full,
            ReplyError::Unsendable,
            ReplyError::Unroutable,
            ReplyError::Refused,
            ReplyError::Memory,
            ReplyError::Unexpected(5),
        ][self.choice.below(6)]
    }

    fn recycle(&mut self, buffer: BufferId) {
        let place = &mut self.buffers[usize::from(buffer.0)];
        match place {
            Buffer::Lent { .. } => *place = Buffer::Free,
            Buffer::Replying { .. } => panic!("contract: {buffer:?} is recycled while in use"),
            Buffer::Free => panic!("contract: {buffer:?} is recycled twice"),
        }
        self.spare.push(buffer.0);
    }

    fn close(&mut self, socket: SocketId) {
        let replies = self.buffers.iter().any(|buffer| match buffer {
            Buffer::Replying { socket: whose, .. } => *whose == socket,
            Buffer::Free | Buffer::Lent { .. } => false,
        });
        assert!(!replies, "contract: {socket:?} is closed while it replies");
        let open = self.socket(socket);
        assert!(!open.is_asked, "contract: {socket:?} is closed while it receives");
        let queue = std::mem::take(&mut open.queue);
        let index = usize::from(socket.0);
        self.sockets[index] = None;
        if self.held_elsewhere[index] {
            self.kept[index] = queue;
        } else {
            self.forgotten += queue.len() as u64;
        }
    }
}

/// The payloads of the datagrams that a packet is made of.
fn pieces(packet: &Packet) -> Vec<Vec<u8>> {
    match packet.datagram.segment {
        0 => vec![packet.payload.clone()],
        segment => packet.payload.chunks(segment.into()).map(<[u8]>::to_vec).collect(),
    }
}
