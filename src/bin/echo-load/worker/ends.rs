//! How connections begin and end, and what is said of those that end badly.

use std::io;
use std::net::SocketAddr;

use echo_uring::echo::op::ReceiveEnd;
use nix::errno::Errno;

use super::{
    CONNECTING_MAX, Closing, ConnectionId, Fault, Kind, Mode, News, Ordering, Phase, SUSPICION,
    State, Worker,
};
use crate::diagnosis::Case;

impl Worker {
    /// Begins to make the connections that the run starts with.
    pub(super) fn ramp_up(&mut self) {
        if self.plan.mode == Mode::Churn {
            self.tell(News::Ready);
            return;
        }
        for index in 0..self.connections.len().min(CONNECTING_MAX) {
            self.connect(index);
        }
    }

    pub(super) fn connect(&mut self, index: usize) {
        let number = self.begun * u64::from(self.plan.threads) + u64::from(self.thread);
        self.begun += 1;
        let sources = &self.plan.sources;
        let source = match sources.len() {
            0 => None,
            count => Some(SocketAddr::new(sources[(number % count as u64) as usize], 0)),
        };
        self.connections[index].begin(number, self.now);
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
        self.measured.connected += 1;
        self.orders.connected.fetch_add(1, Ordering::Relaxed);
        self.client.receive(id);
        match (self.phase, self.plan.mode) {
            (Phase::Connect, _) => {
                // Places are connected in order: the next is as far on as connects have begun.
                if (self.begun as usize) < self.connections.len() {
                    self.connect(self.begun as usize);
                } else if self.connecting == 0 {
                    self.tell(News::Ready);
                }
            }
            (Phase::Run, _) => self.start_messages(index),
            (Phase::Finish | Phase::Abort, _) => self.finish(index),
        }
    }

    pub(super) fn connect_failed(&mut self, index: usize, error: &io::Error) {
        self.connections[index].state = State::Closed;
        self.orders.live.fetch_sub(1, Ordering::Relaxed);
        let cure = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRNOTAVAIL) => {
                "; the address is not ours or its ports are used up: see --source"
            }
            Some(Errno::EMFILE) => "; raise the limit on open files (ulimit -n)",
            _ => "",
        };
        let text = format!("{error}{cure}");
        if self.phase == Phase::Connect {
            self.tell(News::Refused(text));
            return;
        }
        self.outcome.connect_failures += 1;
        self.outcome.connect_error.get_or_insert(text);
    }

    /// Ends our stream if all of it is sent; the server is to echo the rest and end, too.
    pub(super) fn finish(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if matches!(connection.state, State::Open) && !self.client.is_sending(connection.id()) {
            connection.state = State::Finishing;
            self.client.finish(connection.id());
        }
    }

    pub(super) fn receive_ended(&mut self, id: ConnectionId, reason: ReceiveEnd) {
        let index = id.slot() as usize;
        let (kind, is_end) = match reason {
            ReceiveEnd::Stopped | ReceiveEnd::Memory => {
                self.client.receive(id);
                return;
            }
            ReceiveEnd::NoBuffer => unreachable!("the client waits for buffers by itself"),
            ReceiveEnd::EndOfStream => (Kind::ClosedEarly, true),
            ReceiveEnd::Failed(_) => (Kind::Reset, false),
        };
        let connection = &self.connections[index];
        match &connection.state {
            State::Suspect(_) => self.conclude(index),
            State::Finishing if is_end && connection.missing() == 0 => {}
            State::Finishing if is_end => self.report_missing(index, Kind::Lost),
            State::Open | State::Finishing => self.report_missing(index, kind),
            State::Closed | State::Connecting | State::Closing => {
                unreachable!("{id:?} ended, which is {:?}", connection.state)
            }
        }
        self.close(index);
    }

    fn report_missing(&mut self, index: usize, kind: Kind) {
        let connection = &self.connections[index];
        self.orders.errors.fetch_add(1, Ordering::Relaxed);
        self.outcome.report(Fault {
            kind,
            connection: connection.number,
            offset: connection.received,
            length: connection.missing(),
            source: None,
        });
    }

    /// Names what is wrong with a suspect.
    fn conclude(&mut self, index: usize) {
        self.suspects.retain(|&suspect| suspect != index);
        let connection = &self.connections[index];
        let State::Suspect(suspicion) = &connection.state else { return };
        let fault = if self.plan.verify {
            let case = Case {
                pattern: self.pattern,
                connection: connection.number,
                connections: (self.begun + 1) * u64::from(self.plan.threads),
                sent: connection.sent,
                offset: connection.received,
                tail: &suspicion.tail,
            };
            case.diagnose()
        } else {
            // Unread, more bytes than were sent can be nothing else.
            Fault {
                kind: Kind::Duplicated,
                connection: connection.number,
                offset: connection.received,
                length: suspicion.tail.len() as u64,
                source: None,
            }
        };
        self.orders.errors.fetch_add(1, Ordering::Relaxed);
        self.outcome.report(fault);
    }

    /// Suspects whose stream does not end are judged by what came until now.
    pub(super) fn look_at_suspects(&mut self) {
        let mut position = 0;
        while let Some(&index) = self.suspects.get(position) {
            let state = &self.connections[index].state;
            if matches!(state, State::Suspect(it) if self.now - it.since > SUSPICION) {
                self.conclude(index);
                self.close(index);
            } else {
                position += 1;
            }
        }
    }

    fn close(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        // In a churn the next connection follows; elsewhere one that is lost stays lost.
        if !matches!(connection.state, State::Finishing) && self.plan.mode != Mode::Churn {
            self.orders.live.fetch_sub(1, Ordering::Relaxed);
        }
        connection.state = State::Closing;
        let id = connection.id();
        if self.client.close(id) == Closing::Done {
            self.closed(index);
        }
    }

    /// The place is free.
    pub(super) fn closed(&mut self, index: usize) {
        self.open -= 1;
        let connection = &mut self.connections[index];
        connection.state = State::Closed;
        let goes_on = self.phase == Phase::Run && self.plan.mode == Mode::Churn;
        if goes_on && (self.schedule.is_none() || connection.due > 0) {
            self.connect(index);
        }
    }

    /// What has not come by now does not come.
    pub(super) fn give_up_the_rest(&mut self) {
        for index in 0..self.connections.len() {
            let connection = &self.connections[index];
            match connection.state {
                State::Suspect(_) => self.conclude(index),
                State::Open | State::Finishing if connection.missing() > 0 => {
                    self.report_missing(index, Kind::Unanswered);
                }
                State::Finishing => self.outcome.left_open += 1,
                State::Open | State::Closed | State::Connecting | State::Closing => {}
            }
        }
    }
}
