//! Many connections at once in one thread: each sends its tape in random pieces, reads at random
//! moments, and ends in its own way. Every byte that comes back is compared.
//!
//! [`run`] is a plain poll(2) loop. It works with any echo server.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::tape::{Dice, Tape};

/// When a flow sends its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With its last byte, before most of the echo has come back.
    WithLastByte,
    /// When the whole echo has come back.
    AfterEcho,
}

/// How a flow behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The seed of its bytes and its random numbers.
    pub(crate) seed: u64,
    /// How many bytes it sends.
    pub(crate) total: u64,
    /// The largest piece it sends at once; pieces are from 1 byte to this.
    pub(crate) largest_piece: u64,
    /// When it sends its end.
    pub(crate) ending: Ending,
    /// Whether some of its pieces are sent as urgent data: the last byte of each is marked.
    pub(crate) urgent: bool,
}

/// One connection on its way.
pub(crate) struct Flow {
    socket: Socket,
    plan: Plan,
    tape: Tape,
    dice: Dice,
    piece: Vec<u8>,
    piece_sent: usize,
    sent: u64,
    received: u64,
    said_end: bool,
    saw_end: bool,
    reads_from: Option<Instant>,
}

impl Flow {
    /// Uses a connection on which nothing was sent.
    pub(crate) fn new(socket: Socket, plan: Plan) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            plan,
            tape: Tape::new(plan.seed),
            dice: Dice::new(plan.seed),
            piece: Vec::new(),
            piece_sent: 0,
            sent: 0,
            received: 0,
            said_end: false,
            saw_end: false,
            reads_from: None,
        }
    }

    /// What to wait for; nothing during a pause in reading without anything to send.
    fn interest(&mut self, now: Instant) -> PollFlags {
        let mut flags = PollFlags::empty();
        if self.sent < self.plan.total {
            flags |= PollFlags::POLLOUT;
        }
        if self.reads_from.is_some_and(|moment| moment <= now) {
            self.reads_from = None;
        }
        if self.reads_from.is_none() {
            flags |= PollFlags::POLLIN;
        }
        flags
    }

    fn send(&mut self) {
        if self.sent == self.plan.total {
            return;
        }
        if self.piece_sent == self.piece.len() {
            let left = self.plan.total - self.sent;
            let length = self.dice.size(self.plan.largest_piece.min(left));
            self.piece.resize(length, 0);
            self.piece_sent = 0;
            self.tape.copy(self.sent, &mut self.piece);
        }
        let rest = &self.piece[self.piece_sent..];
        let outcome = if self.plan.urgent && self.dice.below(4) == 0 {
            self.socket.send_out_of_band(rest)
        } else {
            (&self.socket).write(rest)
        };
        match outcome {
            Ok(length) => {
                self.piece_sent += length;
                self.sent += length as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{}: send: {error}", self.describe()),
        }
    }

    fn receive(&mut self, now: Instant, buffer: &mut [u8], scratch: &mut Vec<u8>) {
        match (&self.socket).read(buffer) {
            Ok(0) => {
                assert!(self.said_end, "{}: ended before we did", self.describe());
                assert_eq!(self.received, self.plan.total, "{}: ended early", self.describe());
                self.saw_end = true;
            }
            Ok(length) => {
                let extra = self.received + length as u64 > self.sent;
                assert!(!extra, "{}: {length} bytes are more than was sent", self.describe());
                self.tape.check(self.received, &buffer[..length], scratch);
                self.received += length as u64;
                if self.dice.below(64) == 0 {
                    let rest = Duration::from_millis(self.dice.below(20));
                    self.reads_from = Some(now + rest);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{}: receive: {error}", self.describe()),
        }
    }

    fn end_if_due(&mut self) {
        let due = match self.plan.ending {
            Ending::WithLastByte => self.sent == self.plan.total,
            Ending::AfterEcho => self.received == self.plan.total,
        };
        if due && !self.said_end {
            self.socket.shutdown(Shutdown::Write).unwrap();
            self.said_end = true;
        }
    }

    fn describe(&self) -> String {
        let Self { plan, sent, received, .. } = self;
        format!("{plan:?}, {sent} sent, {received} received")
    }
}

/// Runs all `flows` to their end, within `limit`, and returns how many bytes came back in all.
pub(crate) fn run(mut flows: Vec<Flow>, limit: Duration) -> u64 {
    let start = Instant::now();
    let mut buffer = vec![0; 256 * 1024];
    let mut scratch = Vec::new();
    let mut bytes = 0;
    while !flows.is_empty() {
        let now = Instant::now();
        if now - start > limit {
            let late: Vec<String> = flows.iter().take(5).map(Flow::describe).collect();
            panic!("{} flows not done after {limit:?}, such as {late:#?}", flows.len());
        }
        for (index, ready) in ready(&mut flows, now) {
            let flow = &mut flows[index];
            if ready.intersects(PollFlags::POLLOUT) {
                flow.send();
            }
            if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                flow.receive(now, &mut buffer, &mut scratch);
            }
        }
        flows.retain_mut(|flow| {
            flow.end_if_due();
            bytes += if flow.saw_end { flow.received } else { 0 };
            !flow.saw_end
        });
    }
    bytes
}

/// Waits, 10 ms at most, for flows that can read or write; returns what each can do.
fn ready(flows: &mut [Flow], now: Instant) -> Vec<(usize, PollFlags)> {
    let interests: Vec<PollFlags> = flows.iter_mut().map(|flow| flow.interest(now)).collect();
    let waiting = interests.iter().enumerate().filter(|(_, flags)| !flags.is_empty());
    let indexes: Vec<usize> = waiting.map(|(index, _)| index).collect();
    let entry = |index: &usize| PollFd::new(flows[*index].socket.as_fd(), interests[*index]);
    let mut fds: Vec<PollFd> = indexes.iter().map(entry).collect();
    poll(&mut fds, PollTimeout::from(10_u8)).unwrap();
    let events = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    indexes.iter().copied().zip(events).filter(|(_, events)| !events.is_empty()).collect()
}
