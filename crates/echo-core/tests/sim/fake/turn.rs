//! One turn of the fake: possible things happen, some of them late, and are reported, some of them
//! later.

use std::collections::VecDeque;
use std::convert::Infallible;

use echo_core::kernel::{Kernel, Wake};
use echo_core::op::Budget;
use echo_core::op::{
    AcceptError, ConnectionId, Event, Expectation, ListenerId, Op, PeerAddr, ReceiveEnd,
    ReceiveMode, SendError, SizeClass, Timestamp,
};

use super::choice::Choice;
use super::peer::{PeerId, stream};
use super::trace::Note;
use super::{FakeKernel, ListenerEnd, Socket, WaitingSend};

/// Something that may happen.
#[derive(Clone, Copy)]
enum Work {
    Accept(ConnectionId),
    Receive(ConnectionId),
    Poll(ConnectionId),
    Relay(ConnectionId),
    Preface(ConnectionId),
    Send(ConnectionId),
}

impl Kernel for FakeKernel {
    type Error = Infallible;

    fn now_us(&self) -> u64 {
        self.clock() * 1_000
    }

    fn peer_of(&self, connection: ConnectionId) -> PeerAddr {
        let peer = &self.peers[self.sockets[self.position(connection)].peer.0];
        peer.announced.unwrap_or(peer.source)
    }

    fn submit(&mut self, ops: &mut Vec<Op>) {
        for op in ops.drain(..) {
            self.perform(op);
        }
    }

    fn turn(&mut self, wake: Wake, events: &mut Vec<Event>) -> Result<(), Infallible> {
        let deadline = match wake {
            Wake::Now => Some(self.now),
            Wake::At(Timestamp(deadline)) => Some(deadline),
            Wake::Never => None,
        };
        let deadline = deadline.into_iter().chain(self.peers_act_at).min();
        self.asleep = false;
        self.pool.fill_up();
        let told = events.len();
        let faults = self.settings.faults;
        if self.choice.strikes(faults.time_jump) {
            self.now += [1, 90, 110, 5_000, 300_000, 1 << 33][self.choice.below(6)];
            self.trace.note(self.now, Note::World("the clock jumps"));
        }
        loop {
            self.work();
            if self.has_news() {
                // They are reported no later than with the next event.
                self.unawaited.clear();
            }
            self.tell_some(events);
            let busy = self.is_busy();
            if events.len() > told || self.choice.strikes(faults.spurious_wakeup) {
                return Ok(());
            }
            if !busy {
                break;
            }
            if deadline.is_some() && self.choice.strikes(faults.late) {
                break;
            }
        }
        match deadline {
            Some(deadline) => self.now = self.now.max(deadline),
            None => self.asleep = true,
        }
        Ok(())
    }
}

impl FakeKernel {
    /// Lets possible things happen, in any order, each at most a few times.
    fn work(&mut self) {
        let mut possible = self.possible();
        while !possible.is_empty() {
            let work = possible.swap_remove(self.choice.below(possible.len()));
            if self.choice.strikes(self.settings.faults.late) {
                continue;
            }
            match work {
                Work::Accept(connection) => self.accept(connection),
                Work::Poll(connection) => self.poll(connection),
                Work::Relay(connection) => self.relay(connection),
                Work::Preface(connection) => self.read_preface(connection),
                Work::Send(connection) => self.send_waiting(connection),
                Work::Receive(connection) => {
                    self.receive(connection);
                    // A multishot receive continues while there is something.
                    if self.is_possible(work) {
                        possible.push(work);
                    }
                }
            }
        }
    }

    /// Reports some of the events: in order for each connection, in any order across connections.
    fn tell_some(&mut self, events: &mut Vec<Event>) {
        let mut held = 0;
        while held < self.untold.len() {
            let pick = held + self.choice.below(self.untold.len() - held);
            let unawaited = self.unawaited.contains(&self.untold[pick].0);
            if unawaited || self.choice.strikes(self.settings.faults.late_event) {
                self.untold.swap(held, pick);
                held += 1;
                continue;
            }
            let event = self.untold[pick].1.pop_front().expect("no empty queue is kept");
            if self.untold[pick].1.is_empty() {
                self.untold.swap_remove(pick);
            }
            self.trace.note(self.now, Note::Event(event));
            events.push(event);
        }
    }

    fn is_busy(&self) -> bool {
        self.has_news() || !self.possible().is_empty()
    }

    /// Whether there is an unreported event that the worker may wait for.
    fn has_news(&self) -> bool {
        let is_news = |(name, events): &(ConnectionId, VecDeque<Event>)| {
            events.len() > 1 || !self.unawaited.contains(name)
        };
        self.untold.iter().any(is_news)
    }

    fn possible(&self) -> Vec<Work> {
        let accepts = self.accepts.iter().map(|accept| Work::Accept(accept.connection));
        let receives = self.sockets.iter().map(|socket| Work::Receive(socket.connection));
        let polls = self.sockets.iter().map(|socket| Work::Poll(socket.connection));
        let relays = self.sockets.iter().map(|socket| Work::Relay(socket.connection));
        let prefaces = self.sockets.iter().map(|socket| Work::Preface(socket.connection));
        let sends = self.sockets.iter().map(|socket| Work::Send(socket.connection));
        let all = accepts.chain(receives).chain(polls).chain(relays).chain(prefaces).chain(sends);
        all.filter(|work| self.is_possible(*work)).collect()
    }

    fn is_possible(&self, work: Work) -> bool {
        match work {
            Work::Accept(connection) => self.accepts.iter().any(|accept| {
                let waiting = &self.backlogs[usize::from(accept.listener.0)];
                accept.connection == connection
                    && (accept.canceled
                        || !accept.tried
                        || !waiting.is_empty()
                        || self.ends[usize::from(accept.listener.0)] == ListenerEnd::Closed)
            }),
            Work::Receive(connection) => self.sockets.iter().any(|socket| {
                let Some(receive) = &socket.receive else { return false };
                socket.connection == connection
                    && (receive.canceled || !receive.tried || self.is_readable(socket))
            }),
            Work::Poll(connection) => self.sockets.iter().any(|socket| {
                let Some(poll) = &socket.poll else { return false };
                socket.connection == connection && (poll.canceled || self.is_readable(socket))
            }),
            Work::Relay(connection) => self.sockets.iter().any(|socket| {
                let Some(relay) = &socket.relay else { return false };
                let ready = self.is_relay_ready(socket.connection, relay.when);
                socket.connection == connection && (relay.canceled || ready)
            }),
            Work::Preface(connection) => self.sockets.iter().any(|socket| {
                let Some(preface) = &socket.preface else { return false };
                socket.connection == connection && (preface.canceled || self.is_readable(socket))
            }),
            Work::Send(connection) => self.sockets.iter().any(|socket| {
                let peer = &self.peers[socket.peer.0];
                let broken = peer.error.is_some() || socket.dead || socket.write_shut;
                let ends = broken || socket.send_canceled;
                let waits = socket.connection == connection && socket.sending.is_some();
                waits && (ends || peer.room() > 0)
            }),
        }
    }

    pub(super) fn is_readable(&self, socket: &Socket) -> bool {
        let peer = &self.peers[socket.peer.0];
        let ended = peer.finished || socket.dead || socket.read_shut || peer.error.is_some();
        peer.has_inbound() || ended
    }

    fn accept(&mut self, connection: ConnectionId) {
        let index = self
            .accepts
            .iter()
            .position(|accept| accept.connection == connection)
            .expect("an accept that is possible is armed");
        let waiting = !self.backlogs[usize::from(self.accepts[index].listener.0)].is_empty();
        let accept = &mut self.accepts[index];
        let first = !std::mem::replace(&mut accept.tried, true);
        let (canceled, listener) = (accept.canceled, accept.listener);
        let faults = self.settings.faults;
        let closed = self.ends[usize::from(listener.0)] == ListenerEnd::Closed;
        let error = if canceled && !(waiting && self.choice.strikes(faults.cancel_loses)) {
            Some(AcceptError::Canceled)
        } else if closed {
            Some(AcceptError::Empty)
        } else if (first || waiting) && self.sockets.len() >= self.settings.files_max {
            Some(AcceptError::ProcessFiles)
        } else if (first || waiting) && self.choice.strikes(faults.accept_error) {
            Some(self.any_accept_error())
        } else {
            None
        };
        if let Some(error) = error {
            self.accepts.swap_remove(index);
            return self.tell(connection, Event::AcceptFailed { connection, error });
        }
        if !waiting {
            return;
        }
        self.accepts.swap_remove(index);
        let backlog = &mut self.backlogs[usize::from(listener.0)];
        let peer = backlog.pop_front().expect("a peer waits");
        let backlog = if backlog.is_empty() { Expectation::Silence } else { Expectation::Data };
        self.accept_peer(connection, peer, backlog);
    }

    /// Completes, with the next turn, an accept that does not wait.
    pub(super) fn accept_waiting(&mut self, listener: ListenerId, connection: ConnectionId) {
        let index = usize::from(listener.0);
        assert!(self.ends[index] != ListenerEnd::No, "contract: {listener:?} has not been ended");
        self.accepts.retain(|accept| accept.connection != connection);
        let error = if self.sockets.len() >= self.settings.files_max {
            AcceptError::ProcessFiles
        } else if self.choice.strikes(self.settings.faults.accept_error) {
            self.any_accept_error()
        } else if let Some(peer) = self.backlogs[index].pop_front() {
            return self.accept_peer(connection, peer, Expectation::Data);
        } else {
            AcceptError::Empty
        };
        self.tell(connection, Event::AcceptFailed { connection, error });
    }

    fn any_accept_error(&mut self) -> AcceptError {
        const EPROTO: i32 = 71;
        [
            AcceptError::Aborted,
            AcceptError::ProcessFiles,
            AcceptError::SystemFiles,
            AcceptError::Memory,
            AcceptError::Unexpected(EPROTO),
        ][self.choice.below(5)]
    }

    fn accept_peer(&mut self, connection: ConnectionId, peer: PeerId, backlog: Expectation) {
        // A peer that is gone may be noticed by the accept, or only by the first receive or send.
        // Its address cannot be determined.
        let noticed = |choice: &mut Choice| choice.below(2) == 1;
        if self.peers[peer.0].broken && (self.reports_peers || noticed(&mut self.choice)) {
            let error = AcceptError::Aborted;
            return self.tell(connection, Event::AcceptFailed { connection, error });
        }
        self.peers[peer.0].connection = Some(connection);
        self.peers[peer.0].named = Some((self.era, connection));
        self.sockets.push(Socket {
            connection,
            peer,
            receive: None,
            poll: None,
            relay: None,
            preface: None,
            sending: None,
            send_canceled: false,
            spilled: VecDeque::new(),
            spill_begin: 0,
            spill_sent: 0,
            dead: false,
            write_shut: false,
            read_shut: false,
            heard: self.now,
        });
        let peer = if self.reports_peers { self.peers[peer.0].source } else { PeerAddr::Unknown };
        self.tell(connection, Event::Accepted { connection, peer, backlog });
    }

    fn receive(&mut self, connection: ConnectionId) {
        let index = self.position(connection);
        let readable = self.is_readable(&self.sockets[index]);
        let inbound = self.peers[self.sockets[index].peer.0].inbound();
        let faults = self.settings.faults;
        let receive = self.sockets[index].receive.as_mut().expect("a possible receive is armed");
        let first = !std::mem::replace(&mut receive.tried, true);
        let (class, eager, canceled) = (receive.class, receive.is_eager(), receive.canceled);
        let wants_buffer = readable || (first && eager);
        let end = if canceled && !(readable && self.choice.strikes(faults.cancel_loses)) {
            Some(ReceiveEnd::Stopped)
        } else if (first || readable) && self.choice.strikes(faults.receive_memory) {
            Some(ReceiveEnd::Memory)
        } else if (first || readable) && self.choice.strikes(faults.stopped) {
            Some(ReceiveEnd::Stopped)
        } else if wants_buffer
            && (!self.pool.has_room(class)
                || class == SizeClass::Small && self.choice.strikes(faults.dry))
        {
            Some(ReceiveEnd::NoBuffer)
        } else if readable && inbound == 0 {
            Some(self.end_of(index))
        } else {
            None
        };
        if let Some(reason) = end {
            self.end_receive(index);
            return self.tell(connection, Event::ReceiveEnded { connection, reason });
        }
        if readable {
            self.receive_bytes(index, class, inbound);
        }
    }

    fn end_receive(&mut self, index: usize) {
        let receive = self.sockets[index].receive.take().expect("it is armed");
        if receive.class == SizeClass::Large {
            self.pool.end_reservation();
        }
    }

    /// A poll for bytes finds some, or was canceled.
    fn poll(&mut self, connection: ConnectionId) {
        let index = self.position(connection);
        let readable = self.is_readable(&self.sockets[index]);
        let poll = self.sockets[index].poll.take().expect("a possible poll is armed");
        let lost = readable && self.choice.strikes(self.settings.faults.cancel_loses);
        let event = if poll.canceled && !lost {
            Event::ReceiveEnded { connection, reason: ReceiveEnd::Stopped }
        } else {
            Event::Readable { connection }
        };
        self.tell(connection, event);
    }

    /// The result of a receive from a socket that is readable without a byte in it.
    pub(super) fn end_of(&mut self, index: usize) -> ReceiveEnd {
        let socket = &mut self.sockets[index];
        match self.peers[socket.peer.0].error.take() {
            Some(error) => {
                socket.dead = true;
                ReceiveEnd::Failed(error)
            }
            None => ReceiveEnd::EndOfStream,
        }
    }

    fn receive_bytes(&mut self, index: usize, class: SizeClass, inbound: usize) {
        let faults = self.settings.faults;
        let mut length = inbound.min(self.pool.size(class));
        if length > 1 && self.choice.strikes(faults.short_receive) {
            length = 1 + self.choice.below(length - 1);
        }
        let socket = &mut self.sockets[index];
        let (connection, peer) = (socket.connection, socket.peer);
        let receive = socket.receive.as_ref().expect("a possible receive is armed");
        let ends = receive.mode != ReceiveMode::Multishot || receive.canceled;
        let armed = !ends && !self.choice.strikes(faults.disarmed);
        if !armed {
            self.end_receive(index);
        }
        let from = self.peers[peer.0].taken;
        let bytes = (from..from + length).map(|offset| stream(peer, offset));
        let buffer = self.pool.take(class, bytes).expect("room was seen a moment ago");
        self.peers[peer.0].taken += length;
        self.sockets[index].heard = self.now;
        let rest = match length < inbound && !self.choice.strikes(faults.no_hint) {
            true => Expectation::Data,
            false => Expectation::Silence,
        };
        let length = length as u32;
        self.tell(connection, Event::Received { connection, buffer, length, armed, rest });
    }

    fn send_waiting(&mut self, connection: ConnectionId) {
        let faults = self.settings.faults;
        let socket = self.socket(connection);
        let (peer, canceled) = (socket.peer, std::mem::take(&mut socket.send_canceled));
        let sending = socket.sending.take().expect("a possible send waits");
        let peer = &self.peers[peer.0];
        let ready = peer.room() > 0 || peer.error.is_some();
        let error = if canceled && !(ready && self.choice.strikes(faults.cancel_loses)) {
            Some(SendError::Stopped)
        } else if self.choice.strikes(faults.send_memory) {
            Some(SendError::Memory)
        } else {
            self.send_error(connection).map(SendError::Failed)
        };
        if let Some(error) = error {
            return self.tell(connection, Event::SendFailed { connection, error });
        }
        let event = match sending {
            WaitingSend::Spilled => self.send_spilled(connection),
            WaitingSend::Held { buffer, offset, length } => {
                let bytes = self.pool.bytes(buffer, offset, length).to_vec();
                let length = self.fit(connection, bytes.len());
                let length = if self.choice.strikes(faults.would_block) { 0 } else { length };
                self.deliver_to_peer(connection, &bytes[..length]);
                Event::Sent { connection, length: length as u32 }
            }
        };
        self.tell(connection, event);
    }

    fn send_spilled(&mut self, connection: ConnectionId) -> Event {
        let spilled = self.socket(connection).spilled.len();
        let length = self.fit(connection, spilled);
        let socket = self.socket(connection);
        socket.spill_sent = length;
        let bytes: Vec<u8> = socket.spilled.iter().take(length).copied().collect();
        self.deliver_to_peer(connection, &bytes);
        Event::SentSpilled { connection, length: length as u32 }
    }

    pub(super) fn release_spilled(&mut self, connection: ConnectionId, length: u32) {
        let before = self.spill_blocks();
        let block = self.budget.block_size() as usize;
        let socket = self.socket(connection);
        let sent = std::mem::take(&mut socket.spill_sent);
        assert_eq!(sent, length as usize, "contract: {connection:?} forgets other bytes");
        socket.spilled.drain(..sent);
        socket.spill_begin = if socket.spilled.is_empty() { 0 } else { socket.spill_begin + sent };
        socket.spill_begin %= block;
        self.budget.give_back(before - self.spill_blocks());
    }
}
