//! Sends datagrams, and receives their echoes.

use super::{
    Detail, Errno, EventData, EventFlags, Fate, Fault, Kind, Origin, RETRY, SocketAddr, Verdict,
    Wait, Worker, epoll, io,
};
use crate::udp::Arrival;

impl Worker {
    /// Starts messages whose scheduled time has just come. If one is started, only this client has
    /// delayed it.
    pub(super) fn start_promptly(&mut self, index: usize) {
        let before = self.flows[index].started;
        self.ledger.read_clock();
        self.start_messages(index);
        let Some(schedule) = &self.ledger.schedule else { return };
        let flow = &self.flows[index];
        let started = before..flow.started;
        self.ledger.prompt.extend(started.map(|count| schedule.moment(flow.rank, count)));
    }

    /// Starts as many messages as depth and schedule permit, in whole bursts.
    pub(super) fn start_messages(&mut self, index: usize) {
        let burst = u64::from(self.ledger.plan.burst);
        loop {
            let flow = &self.flows[index];
            if !self.ledger.phase.sends() || flow.is_blocked || flow.is_resting {
                return;
            }
            let room = u64::from(self.ledger.plan.depth) - flow.in_flight() as u64;
            let wanted = match &self.ledger.schedule {
                Some(schedule) => room.min(schedule.due_of(flow.rank) - flow.started),
                None => room,
            };
            // What is left of a burst that was sent in part comes first.
            let whole = burst - flow.started % burst;
            if wanted < whole || wanted == 0 {
                return;
            }
            let wanted = if burst > 1 { whole } else { wanted };
            if !self.send(index, wanted) {
                return;
            }
        }
    }

    /// Sends up to `wanted` datagrams by one system call. Returns whether they were sent.
    fn send(&mut self, index: usize, wanted: u64) -> bool {
        let Self { ledger, exchange, flows, .. } = self;
        let flow = &mut flows[index];
        exchange.begin(&flow.header);
        let mut sequence = flow.started;
        while sequence < flow.started + wanted && exchange.has_room() {
            let length = match ledger.plan.sizes.fixed() {
                Some(length) => length,
                None => ledger.plan.sizes.draw(self.random.next()),
            };
            self.format.fill(flow.number, sequence, exchange.add(length));
            sequence += 1;
        }
        match exchange.send(&self.sockets[index]) {
            Ok(sent) => {
                exchange.lengths().take(sent).for_each(|length| flow.sent(ledger.now, length));
                ledger.started += sent as u64;
                self.in_flight += sent as u64;
                sent > 0
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.block(index);
                false
            }
            Err(error) => {
                self.send_failed(index, error);
                false
            }
        }
    }

    /// The socket has no room: the next datagram waits until it has.
    fn block(&mut self, index: usize) {
        let flags = EventFlags::IN | EventFlags::OUT;
        let data = EventData::new_u64(index as u64);
        let modified = epoll::modify(&self.epoll, &self.sockets[index], data, flags);
        match modified {
            Ok(()) => self.flows[index].is_blocked = true,
            Err(error) => self.send_failed(index, Errno::from_raw(error.raw_os_error())),
        }
    }

    /// The socket has room again.
    pub(super) fn unblock(&mut self, index: usize) -> io::Result<()> {
        let data = EventData::new_u64(index as u64);
        epoll::modify(&self.epoll, &self.sockets[index], data, EventFlags::IN)?;
        self.flows[index].is_blocked = false;
        self.ledger.read_clock();
        self.start_messages(index);
        Ok(())
    }

    /// The next datagram was refused; it is never sent.
    fn send_failed(&mut self, index: usize, error: Errno) {
        let Self { ledger, flows, .. } = self;
        let flow = &mut flows[index];
        let remedy = match error {
            Errno::EMSGSIZE if ledger.plan.dont_fragment => {
                "; it is larger than the path MTU: use a smaller --size, or omit --dont-fragment"
            }
            Errno::EMSGSIZE => "; use a smaller --size",
            Errno::EACCES => "; it is a broadcast address",
            Errno::EPERM => "; a firewall of this machine rejects it",
            _ => "",
        };
        ledger.outcome.send_failures += 1;
        ledger.outcome.send_error.get_or_insert_with(|| {
            format!("{}{remedy}", io::Error::from_raw_os_error(error as i32))
        });
        let due = ledger.schedule.as_ref().map(|it| it.moment(flow.rank, flow.started));
        let wait = Wait { scheduled: due.map(|it| ledger.now.saturating_sub(it)), sent: None };
        flow.skip();
        ledger.started += 1;
        ledger.resolve(Fate::Unsent, wait);
        flow.is_resting = true;
        self.retries.push_back((ledger.now + RETRY, index));
    }

    /// Lets the flows send again whose delay after a failure is over.
    pub(super) fn send_again(&mut self) {
        while let Some(&(moment, index)) = self.retries.front() {
            if moment > self.ledger.now {
                return;
            }
            self.retries.pop_front();
            self.flows[index].is_resting = false;
            self.ledger.read_clock();
            self.start_messages(index);
        }
    }

    /// Receives what waits in the socket of a flow.
    pub(super) fn receive(&mut self, index: usize) {
        // The error of a socket is that of a datagram, which is lost.
        let _ = self.exchange.receive(&self.sockets[index]);
        self.ledger.read_clock();
        self.expire(index);
        for at in 0..self.exchange.arrivals.len() {
            let arrival = self.exchange.arrivals[at].clone();
            self.judge(index, &arrival);
        }
        self.start_messages(index);
    }

    /// Counts a received datagram.
    fn judge(&mut self, index: usize, arrival: &Arrival) {
        let bytes = self.exchange.bytes(arrival);
        let length = bytes.len();
        let verdict = self.flows[index].receive(&self.format, bytes);
        self.last_at = self.ledger.now;
        let is_from_server = self.exchange.is_from_server(arrival);
        if is_from_server {
            self.ledger.measured.bytes += length as u64;
        }
        match verdict {
            Verdict::Echo { message, reordered } if is_from_server && !arrival.is_cut => {
                self.ledger.measured.datagrams.reordered += u64::from(reordered);
                self.answered(index, message);
            }
            Verdict::Late if is_from_server => self.ledger.measured.datagrams.late += 1,
            Verdict::Forgotten if is_from_server => {}
            _ => {
                let source = arrival.source.filter(|_| !is_from_server);
                self.blame(index, verdict, length, source);
            }
        }
    }

    /// Reports a wrong datagram of `length` bytes, from `source` if that is not the server. If it
    /// is the echo of a message, that has failed.
    fn blame(&mut self, index: usize, verdict: Verdict, length: usize, source: Option<SocketAddr>) {
        let (mut kind, mut origin, mut offset) = (Kind::Corrupted, Origin::Own, 0);
        let (mut sequence, mut message) = (None, None);
        match verdict {
            // It has more bytes than there was memory for.
            Verdict::Echo { message: it, .. } => {
                (sequence, message, offset) = (Some(it.sequence), Some(it), it.length);
            }
            Verdict::Duplicated { sequence: it } => {
                (kind, sequence) = (Kind::Duplicated, Some(it));
            }
            Verdict::Truncated { sequence: it, message: of } => {
                (kind, sequence, message, offset) = (Kind::Truncated, Some(it), of, length);
            }
            Verdict::Corrupted { sequence: it, message: of, offset: at } => {
                (sequence, message, offset) = (it, of, at);
            }
            Verdict::Foreign { flow } => {
                (kind, origin) = (Kind::CrossTalk, flow.map_or(Origin::AnotherRun, Origin::Flow));
            }
            Verdict::Late | Verdict::Forgotten => {}
        }
        if let Some(source) = source {
            (kind, origin) = (Kind::WrongSource, Origin::Address(source));
        }
        let sent = message.map(|message| message.length);
        self.ledger.blame(Fault {
            kind,
            connection: self.flows[index].number,
            detail: Detail::Datagram { sequence, offset, length, sent, origin },
        });
        if let Some(message) = message {
            self.failed(index, message, self.ledger.timeout());
        }
    }
}
