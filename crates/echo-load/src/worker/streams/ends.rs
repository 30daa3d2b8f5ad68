//! How connections begin and end, and the reports of faults.

use std::io;
use std::net::SocketAddr;

use echo_core::op::ReceiveEnd;
use nix::errno::Errno;

use super::{
    CONNECTING_MAX, Closing, ConnectionId, Detail, Fault, Kind, Message, Mode, Ordering, Phase,
    RETRY, SUSPICION, State, Worker, WorkerEvent,
};
use crate::diagnosis::Case;

impl Worker {
    /// Starts the connects for the run.
    pub(super) fn ramp_up(&mut self) {
        if self.ledger.plan.mode == Mode::Churn {
            self.ledger.tell(WorkerEvent::Ready);
            return;
        }
        for index in 0..self.connections.len().min(CONNECTING_MAX) {
            self.connect(index);
        }
    }

    pub(super) fn connect(&mut self, index: usize) {
        let number =
            self.begun * u64::from(self.ledger.plan.threads) + u64::from(self.ledger.thread);
        self.begun += 1;
        let sources = &self.ledger.plan.sources;
        let source = match sources.len() {
            0 => None,
            count => Some(SocketAddr::new(sources[(number % count as u64) as usize], 0)),
        };
        let connection = &mut self.connections[index];
        connection.begin(number, self.ledger.now);
        if self.ledger.plan.mode == Mode::Churn {
            connection.started += 1;
            self.ledger.started += 1;
            connection.in_flight.push_back(Message { end: u64::MAX, started: self.ledger.now });
        }
        match self.client.connect(index as u32, source) {
            Ok(id) => {
                self.connections[index].id = Some(id);
                self.open += 1;
                self.connecting += 1;
            }
            Err(error) => self.connect_failed(index, &error),
        }
    }

    pub(super) fn connected(&mut self, id: ConnectionId) {
        let index = id.slot() as usize;
        self.connecting -= 1;
        self.connections[index].state = State::Open;
        self.ledger.measured.connected += 1;
        self.ledger.orders.connected.fetch_add(1, Ordering::Relaxed);
        self.client.receive(id);
        if self.ledger.plan.mode == Mode::Churn {
            // Also after the end of the run: the message has been in flight since the connect.
            self.send_the_one(index);
        } else if self.ledger.phase == Phase::Connect {
            // At once, because servers wait for it only for seconds.
            self.send_header(index);
            // Slots are connected in order, so the number of connects is the next slot.
            if (self.begun as usize) < self.connections.len() {
                self.connect(self.begun as usize);
            } else if self.connecting == 0 {
                self.ledger.tell(WorkerEvent::Ready);
            }
        } else {
            self.finish(index);
        }
    }

    pub(super) fn connect_failed(&mut self, index: usize, error: &io::Error) {
        let remedy = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRNOTAVAIL) => {
                "; the source address is not local or its ports are exhausted: see --source"
            }
            Some(Errno::EMFILE) => "; raise the limit on open files (ulimit -n)",
            _ => "",
        };
        self.not_connected(index, format!("{error}{remedy}"));
    }

    /// A connect has taken longer than the timeout.
    pub(super) fn give_up_connecting(&mut self, index: usize) {
        self.connecting -= 1;
        let id = self.connections[index].id();
        self.not_connected(index, "no answer within the timeout".to_owned());
        self.connections[index].state = State::Closing;
        if self.client.close(id) == Closing::Done {
            self.closed(index);
        }
    }

    /// Handles a failed connect of a slot with the reason `why`. In churn mode it is retried until
    /// the end of the run.
    fn not_connected(&mut self, index: usize, why: String) {
        self.connections[index].state = State::Closed;
        if self.ledger.phase == Phase::Connect {
            self.ledger.tell(WorkerEvent::Refused(why));
            return;
        }
        self.ledger.outcome.connect_failures += 1;
        self.ledger.outcome.connect_error.get_or_insert(why);
        self.fail_messages(index, self.ledger.timeout());
        self.connections[index].is_resting = true;
        // An open loop follows its schedule, but not within this iteration: it might fail forever.
        let rest = if self.ledger.schedule.is_some() { 0 } else { RETRY };
        self.retries.push_back((self.ledger.now + rest, index));
    }

    /// Reconnects the slots whose delay after a failure is over.
    pub(super) fn connect_again(&mut self) {
        for _ in 0..self.retries.len() {
            match self.retries.front() {
                Some(&(moment, index)) if moment <= self.ledger.now => {
                    self.retries.pop_front();
                    self.connections[index].is_resting = false;
                    self.follow(index);
                }
                _ => return,
            }
        }
    }

    /// Half-closes a connection if everything is sent. The server should echo the rest and close.
    pub(super) fn finish(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if matches!(connection.state, State::Open) && !self.client.is_sending(connection.id()) {
            connection.state = State::Finishing;
            self.client.finish(connection.id());
        }
    }

    pub(super) fn receive_ended(&mut self, id: ConnectionId, reason: ReceiveEnd) {
        let index = id.slot() as usize;
        let is_reset = self.connections[index].is_reset;
        let (kind, is_end) = match reason {
            ReceiveEnd::Stopped | ReceiveEnd::Memory => {
                self.client.receive(id);
                return;
            }
            ReceiveEnd::NoBuffer => unreachable!("the client waits for buffers by itself"),
            ReceiveEnd::EndOfStream if is_reset => (Kind::Reset, false),
            ReceiveEnd::EndOfStream => (Kind::ClosedEarly, true),
            ReceiveEnd::Failed(_) => (Kind::Reset, false),
        };
        let connection = &self.connections[index];
        match &connection.state {
            State::Suspect(_) => self.conclude(index),
            State::Finishing if is_end && connection.missing() == 0 => {}
            State::Finishing if is_end => self.report_missing(index, Kind::Truncated),
            State::Open | State::Finishing => self.report_missing(index, kind),
            State::Closed | State::Connecting | State::Closing => {
                unreachable!("{id:?} ended, which is {:?}", connection.state)
            }
        }
        self.close(index);
    }

    /// Abandons a connection because of a fault of the server.
    pub(super) fn lose(&mut self, index: usize, kind: Kind) {
        self.report_missing(index, kind);
        self.close(index);
    }

    /// Abandons a connection because a message did not come back as one: `length` bytes did, all of
    /// them correct.
    pub(super) fn lose_bounds(&mut self, index: usize, length: u64) {
        let connection = &self.connections[index];
        let sent = connection.next_length().expect("invariant: correct bytes are of a message");
        self.ledger.blame(Fault {
            kind: Kind::Boundary,
            connection: connection.number,
            detail: Detail::Message { offset: connection.received, length, sent },
        });
        self.close(index);
    }

    pub(super) fn report_missing(&mut self, index: usize, kind: Kind) {
        let connection = &self.connections[index];
        self.ledger.blame(Fault {
            kind,
            connection: connection.number,
            detail: Detail::Bytes {
                offset: connection.received,
                length: connection.missing(),
                source: None,
            },
        });
    }

    /// Diagnoses a wrong echo.
    pub(super) fn conclude(&mut self, index: usize) {
        self.suspects.retain(|&suspect| suspect != index);
        let connection = &self.connections[index];
        let State::Suspect(suspicion) = &connection.state else { return };
        let fault = if self.ledger.plan.verify {
            let case = Case {
                pattern: self.pattern,
                connection: connection.number,
                connections: (self.begun + 1) * u64::from(self.ledger.plan.threads),
                sent: connection.sent,
                offset: connection.received,
                tail: &suspicion.tail,
            };
            case.diagnose()
        } else {
            // Without verification, more bytes than were sent count as duplicated.
            Fault {
                kind: Kind::Duplicated,
                connection: connection.number,
                detail: Detail::Bytes {
                    offset: connection.received,
                    length: suspicion.tail.len() as u64,
                    source: None,
                },
            }
        };
        self.ledger.blame(fault);
    }

    /// Diagnoses wrong echoes whose stream does not end, with the bytes received so far.
    pub(super) fn look_at_suspects(&mut self) {
        let mut position = 0;
        while let Some(&index) = self.suspects.get(position) {
            let state = &self.connections[index].state;
            if matches!(state, State::Suspect(it) if self.ledger.now - it.since > SUSPICION) {
                self.conclude(index);
                self.close(index);
            } else {
                position += 1;
            }
        }
    }

    fn close(&mut self, index: usize) {
        self.fail_messages(index, self.ledger.timeout());
        let connection = &mut self.connections[index];
        // In churn mode the next connection follows; in other modes a lost connection is not
        // replaced.
        if !matches!(connection.state, State::Finishing) && self.ledger.plan.mode != Mode::Churn {
            self.ledger.orders.live.fetch_sub(1, Ordering::Relaxed);
        }
        connection.state = State::Closing;
        let id = connection.id();
        if self.client.close(id) == Closing::Done {
            self.closed(index);
        }
    }

    /// The slot is free.
    pub(super) fn closed(&mut self, index: usize) {
        self.open -= 1;
        self.connections[index].state = State::Closed;
        self.follow(index);
    }

    /// In churn mode: starts the next connection of a slot, if it is scheduled.
    fn follow(&mut self, index: usize) {
        let connection = &self.connections[index];
        let is_free = matches!(connection.state, State::Closed) && !connection.is_resting;
        if !is_free || !self.ledger.phase.sends() || self.ledger.plan.mode != Mode::Churn {
            return;
        }
        let is_due = match &self.ledger.schedule {
            Some(schedule) => schedule.due_of(connection.rank) > connection.started,
            None => true,
        };
        if is_due {
            self.connect(index);
        }
    }
}
