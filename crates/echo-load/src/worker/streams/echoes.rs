//! Sends messages and receives echoes.

use super::{
    Client, Connection, ConnectionId, Message, Mode, Pattern, SEND_BYTES_MAX, State,
    TAIL_BYTES_MAX, Worker,
};
use crate::connection::Suspicion;
use crate::orders::Phase;
use crate::proxy::{Ends, stream_header};

impl Worker {
    /// Starts messages whose scheduled time has just come. If one is started, only this client has
    /// delayed it.
    pub(super) fn start_promptly(&mut self, index: usize) {
        let before = self.connections[index].started;
        self.start_messages(index);
        self.note_prompt(index, before);
    }

    /// The same in churn mode, where a message begins with its connect.
    pub(super) fn connect_promptly(&mut self, index: usize) {
        let before = self.connections[index].started;
        self.connect(index);
        self.note_prompt(index, before);
    }

    /// Records the scheduled times of the messages started since `before`; their lateness is
    /// measured at the end of the iteration.
    fn note_prompt(&mut self, index: usize, before: u64) {
        let Some(schedule) = &self.ledger.schedule else { return };
        let connection = &self.connections[index];
        let started = before..connection.started;
        self.ledger.prompt.extend(started.map(|count| schedule.moment(connection.rank, count)));
    }

    /// Starts as many messages as depth, schedule and the previous send permit.
    pub(super) fn start_messages(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !self.ledger.phase.sends() || !matches!(connection.state, State::Open) {
            return;
        }
        let room = self.ledger.plan.depth as usize - connection.in_flight.len();
        let wanted = match &self.ledger.schedule {
            Some(schedule) => {
                room.min((schedule.due_of(connection.rank) - connection.started) as usize)
            }
            None => room,
        };
        if wanted == 0 || self.client.is_sending(connection.id()) {
            return;
        }
        let mut length = 0;
        for _ in 0..wanted {
            // A send over a seqpacket socket is one message.
            if length >= SEND_BYTES_MAX || self.keeps_bounds && length > 0 {
                break;
            }
            length += match self.ledger.plan.sizes.fixed() {
                Some(length) => length,
                None => self.ledger.plan.sizes.draw(self.random.next()),
            };
            connection.started += 1;
            self.ledger.started += 1;
            let end = connection.sent + length as u64;
            connection.in_flight.push_back(Message { end, started: self.ledger.now });
        }
        let pattern = self.ledger.plan.verify.then_some(self.pattern);
        send(&mut self.client, connection, pattern, &[], length);
    }

    /// Sends the message of a connection in churn mode, which began with the connect. A PROXY
    /// header goes before it in the same send, as real proxies do it.
    pub(super) fn send_the_one(&mut self, index: usize) {
        let header = self.header(index);
        let connection = &mut self.connections[index];
        let length = self.ledger.plan.sizes.draw(self.random.next());
        for message in &mut connection.in_flight {
            message.end = length as u64;
        }
        let pattern = self.ledger.plan.verify.then_some(self.pattern);
        send(&mut self.client, connection, pattern, &header, length);
    }

    /// Sends the PROXY header of a connection, if it has one.
    pub(super) fn send_header(&mut self, index: usize) {
        let header = self.header(index);
        if !header.is_empty() {
            send(&mut self.client, &mut self.connections[index], None, &header, 0);
        }
    }

    /// The PROXY header of a connection; empty if there is none.
    fn header(&mut self, index: usize) -> Vec<u8> {
        let plan = &self.ledger.plan;
        if plan.proxy.is_none() {
            return Vec::new();
        }
        let connection = &self.connections[index];
        let (number, server) = (connection.number, self.server);
        let local = self.client.local_address(connection.id());
        stream_header(plan, Ends { number, local, server })
    }

    /// The previous send is complete: continues with the work that had to wait for it.
    pub(super) fn go_on(&mut self, index: usize) {
        if self.ledger.phase == Phase::Connect {
            // It was the PROXY header. The load begins later.
        } else if !self.ledger.phase.sends() {
            self.finish(index);
        } else if self.ledger.plan.mode != Mode::Churn {
            self.start_messages(index);
        } else if self.connections[index].in_flight.is_empty() {
            // In churn mode the connection ends after its only echo.
            self.finish(index);
        }
    }

    /// Checks received bytes.
    pub(super) fn received(&mut self, id: ConnectionId, buffer: u16, length: u32, armed: bool) {
        let index = id.slot() as usize;
        let connection = &mut self.connections[index];
        let bytes = self.client.bytes(buffer, length);
        self.ledger.measured.bytes += u64::from(length);
        let (mut right, mut is_whole) = (false, true);
        match &mut connection.state {
            State::Open | State::Finishing => {
                let (number, received) = (connection.number, connection.received);
                right = u64::from(length) <= connection.missing()
                    && (!self.ledger.plan.verify || self.pattern.matches(number, received, bytes));
                is_whole =
                    !self.keeps_bounds || connection.next_length() == Some(u64::from(length));
                if right && is_whole {
                    connection.received += u64::from(length);
                } else if !right {
                    let missing = usize::try_from(connection.missing()).unwrap_or(usize::MAX);
                    let good = match self.ledger.plan.verify {
                        true => self.pattern.matching(number, received, bytes).min(missing),
                        false => missing,
                    };
                    connection.received += good as u64;
                    let tail = bytes[good..].to_vec();
                    let suspicion = Suspicion { tail, since: self.ledger.now };
                    connection.state = State::Suspect(Box::new(suspicion));
                    self.suspects.push(index);
                    // The peer sends its remaining bytes and then ends the stream.
                    self.client.finish(id);
                }
            }
            State::Suspect(suspicion) => {
                let room = TAIL_BYTES_MAX.saturating_sub(suspicion.tail.len());
                suspicion.tail.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            State::Closed | State::Connecting | State::Closing => {
                unreachable!("bytes came on {id:?}, which is {:?}", connection.state)
            }
        }
        self.client.recycle(buffer);
        if right && !is_whole {
            self.lose_bounds(index, u64::from(length));
            return;
        }
        if !armed {
            self.client.receive(id);
        }
        if right {
            self.complete_messages(index);
        }
    }

    /// Counts the messages whose echo is complete, and starts further ones.
    fn complete_messages(&mut self, index: usize) {
        let mut completed = false;
        loop {
            let connection = &self.connections[index];
            match connection.in_flight.front() {
                Some(message) if message.end <= connection.received => self.answered(index),
                _ => break,
            }
            completed = true;
        }
        if completed {
            match self.ledger.plan.mode {
                Mode::Churn => self.finish(index),
                Mode::PingPong | Mode::Stream | Mode::Idle => self.start_messages(index),
            }
        }
    }
}

/// Sends the next `length` bytes of the connection's stream; any bytes, without a pattern. `header`
/// goes before them, and is not part of the stream.
fn send(
    client: &mut Client,
    connection: &mut Connection,
    pattern: Option<Pattern>,
    header: &[u8],
    length: usize,
) {
    let id = connection.id();
    let message = client.message(id);
    message.resize(header.len() + length, b'x');
    let (start, bytes) = message.split_at_mut(header.len());
    start.copy_from_slice(header);
    if let Some(pattern) = pattern {
        pattern.fill(connection.number, connection.sent, bytes);
    }
    client.send(id);
    connection.sent += length as u64;
}
