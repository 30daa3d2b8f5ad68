//! Sends messages and receives echoes.

use super::{
    Client, Connection, ConnectionId, Message, Mode, Pattern, SEND_BYTES_MAX, State,
    TAIL_BYTES_MAX, Worker,
};
use crate::connection::Suspicion;

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
            if length >= SEND_BYTES_MAX {
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
        send(&mut self.client, connection, pattern, length);
    }

    /// Sends the message of a connection in churn mode, which began with the connect.
    pub(super) fn send_the_one(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let length = self.ledger.plan.sizes.draw(self.random.next());
        for message in &mut connection.in_flight {
            message.end = length as u64;
        }
        let pattern = self.ledger.plan.verify.then_some(self.pattern);
        send(&mut self.client, connection, pattern, length);
    }

    /// The previous send is complete: continues with the work that had to wait for it.
    pub(super) fn go_on(&mut self, index: usize) {
        if !self.ledger.phase.sends() {
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
        let mut right = false;
        match &mut connection.state {
            State::Open | State::Finishing => {
                let (number, received) = (connection.number, connection.received);
                right = u64::from(length) <= connection.missing()
                    && (!self.ledger.plan.verify || self.pattern.matches(number, received, bytes));
                if right {
                    connection.received += u64::from(length);
                } else {
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

/// Sends the next `length` bytes of the connection's stream; any bytes, without a pattern.
fn send(client: &mut Client, connection: &mut Connection, pattern: Option<Pattern>, length: usize) {
    let id = connection.id();
    let message = client.message(id);
    message.resize(length, b'x');
    if let Some(pattern) = pattern {
        pattern.fill(connection.number, connection.sent, message);
    }
    client.send(id);
    connection.sent += length as u64;
}
