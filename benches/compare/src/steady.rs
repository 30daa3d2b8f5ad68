//! Load on connections that stay: each keeps a number of messages in flight and checks every byte
//! that comes back.
//!
//! The client is not measured, but it should not be the bottleneck either: it writes as much as
//! possible at once, so that messages in flight travel together, as with any pipelining client.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use crate::address::Address;
use crate::latency::Stopwatch;
use crate::pattern::{Pattern, STRETCH_MAX, origin};
use crate::works::Yield;

/// Silence after which bytes count as lost.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Connections from one source address: fewer than there are ports, so that connect(2) finds a free
/// one soon.
const CONNECTIONS_PER_SOURCE: usize = 4_000;

/// Events fetched by one wait.
const EVENTS_MAX: usize = 1024;

/// Bytes received at once.
pub(crate) const BUFFER_LENGTH: usize = 256 * 1024;

/// What the client does when it has nothing to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// It sleeps, as clients do, and the server's sends pay for waking it.
    Sleep,
    /// It polls continuously, so that no send has to wake it.
    Spin,
}

/// Connections to one server, and the load on them.
pub(crate) struct Steady<'a> {
    /// Reports events, with the index of their connection.
    pub(crate) epoll: Epoll,
    connections: Vec<Connection>,
    pattern: &'a Pattern,
    buffer: Vec<u8>,
    /// The most that is sent at one event.
    sent_at_once_max: u64,
    message_length: u64,
    in_flight: u64,
    waiting: Waiting,
    /// Measures the time of each echo if only one is in flight.
    stopwatch: Option<Stopwatch>,
    /// Connections of which not everything has come back yet.
    busy: usize,
}

/// Offsets count from the start of the connection; `received <= sent <= allowed`, and `allowed`
/// ends a whole message.
struct Connection {
    stream: Socket,
    origin: u64,
    allowed: u64,
    sent: u64,
    received: u64,
    /// What had been received when the slice began.
    received_before: u64,
    /// True exactly when less than allowed is sent and EPOLLOUT is asked for.
    blocked: bool,
}

impl<'a> Steady<'a> {
    /// Opens all connections.
    pub(crate) fn connect(
        address: &Address,
        pattern: &'a Pattern,
        count: usize,
        message_length: usize,
        in_flight: usize,
        waiting: Waiting,
    ) -> Result<Self, String> {
        let open = || -> io::Result<Self> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let mut connections = Vec::with_capacity(count);
            for index in 0..count {
                let first = u32::from(Ipv4Addr::new(127, 0, 0, 1));
                let source = Ipv4Addr::from(first + (index / CONNECTIONS_PER_SOURCE) as u32);
                let stream = address.connect(source, SILENCE_MAX)?;
                stream.set_nonblocking(true)?;
                epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
                connections.push(Connection::new(stream, origin(index)));
            }
            Ok(Self {
                epoll,
                connections,
                pattern,
                buffer: vec![0; BUFFER_LENGTH],
                sent_at_once_max: u64::MAX,
                message_length: message_length as u64,
                in_flight: in_flight as u64,
                waiting,
                stopwatch: (in_flight == 1).then(|| Stopwatch::new(count)),
                busy: 0,
            })
        };
        open().map_err(|error| format!("connecting: {error}"))
    }

    /// The same, which at one event receives and sends at most `length` bytes, at most
    /// [`BUFFER_LENGTH`].
    pub(crate) fn in_pieces(mut self, length: usize) -> Self {
        self.buffer.truncate(length);
        self.sent_at_once_max = length as u64;
        self
    }

    /// See [`crate::works::Client::slice`].
    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Yield, String> {
        let began = Instant::now();
        let deadline = began + duration;
        self.begin()?;
        let mut events = vec![EpollEvent::empty(); EVENTS_MAX];
        while self.busy > 0 {
            let count = self.wait(&mut events).map_err(|error| format!("waiting: {error}"))?;
            if count == 0 {
                let busy = self.busy;
                return Err(format!("{busy} connections wait for bytes that do not come back"));
            }
            self.serve(&events[..count], Instant::now() < deadline)?;
        }
        Ok(self.conclude(began.elapsed()))
    }

    /// Writes the first messages of a slice.
    pub(crate) fn begin(&mut self) -> Result<(), String> {
        self.busy = self.connections.len();
        for index in 0..self.connections.len() {
            if let Some(stopwatch) = &mut self.stopwatch {
                stopwatch.start(index);
            }
            let connection = &mut self.connections[index];
            connection.received_before = connection.received;
            connection.allowed += self.message_length * self.in_flight;
            self.write(index)?;
        }
        Ok(())
    }

    /// Receives and writes where these events say that it is possible; new messages only if there
    /// are to be more.
    pub(crate) fn serve(&mut self, events: &[EpollEvent], more: bool) -> Result<(), String> {
        for event in events {
            let index = event.data() as usize;
            let was_busy = self.connections[index].is_busy();
            self.read(index, more)?;
            self.write(index)?;
            if was_busy && !self.connections[index].is_busy() {
                self.busy -= 1;
            }
        }
        Ok(())
    }

    /// Connections of which not everything has come back yet.
    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    /// The result of a slice that took this time.
    pub(crate) fn conclude(&mut self, elapsed: Duration) -> Yield {
        let received = |connection: &Connection| connection.received - connection.received_before;
        let echoes = self.connections.iter().map(received).sum::<u64>() / self.message_length;
        let most = self.connections.iter().map(received).max().unwrap_or(0);
        let least = self.connections.iter().map(received).min().unwrap_or(0);
        let latency = self.stopwatch.as_mut().and_then(Stopwatch::reset);
        let most_over_least = Some(most as f64 / least.max(1) as f64);
        Yield { latency, most_over_least, ..Yield::of(echoes, elapsed) }
    }

    /// Events, or none after too long a silence.
    fn wait(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        match self.waiting {
            Waiting::Sleep => {
                let silence_max = EpollTimeout::try_from(SILENCE_MAX)
                    .expect("invariant: ten seconds fit into the timeout of epoll_wait(2)");
                Ok(self.epoll.wait(events, silence_max)?)
            }
            Waiting::Spin => {
                let began = Instant::now();
                loop {
                    let count = self.epoll.wait(events, EpollTimeout::ZERO)?;
                    if count > 0 || began.elapsed() > SILENCE_MAX {
                        return Ok(count);
                    }
                }
            }
        }
    }

    /// Receives once, checks, and allows as many new messages as came back whole, if there are to
    /// be more.
    fn read(&mut self, index: usize, more: bool) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let count = match connection.stream.read(&mut self.buffer) {
            Ok(0) => return Err(format!("connection {index} was closed by the server")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(format!("receiving on connection {index}: {error}")),
        };
        let offset = connection.received;
        if offset + count as u64 > connection.sent {
            return Err(format!("connection {index} gives more than it was given"));
        }
        if self.pattern.stretch(connection.origin + offset, count) != &self.buffer[..count] {
            return Err(format!("connection {index} gives other bytes after {offset}"));
        }
        connection.received += count as u64;
        let whole = connection.received / self.message_length - offset / self.message_length;
        if whole > 0
            && let Some(stopwatch) = &mut self.stopwatch
        {
            // What is allowed next is written right away, so this is also when it starts.
            stopwatch.lap(index);
        }
        if more {
            connection.allowed += whole * self.message_length;
        }
        Ok(())
    }

    /// Sends what is allowed, and asks for EPOLLOUT exactly while there is more: the socket is full,
    /// or it was enough for one event.
    fn write(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let end = connection.allowed.min(connection.sent.saturating_add(self.sent_at_once_max));
        while connection.sent < end {
            let length = (end - connection.sent).min(STRETCH_MAX as u64) as usize;
            let bytes = self.pattern.stretch(connection.origin + connection.sent, length);
            match connection.stream.write(bytes) {
                Ok(count) => connection.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("sending on connection {index}: {error}")),
            }
        }
        let blocked = connection.sent < connection.allowed;
        if blocked != connection.blocked {
            connection.blocked = blocked;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, blocked);
            self.epoll
                .modify(&connection.stream, &mut EpollEvent::new(flags, index as u64))
                .map_err(|error| format!("watching connection {index}: {error}"))?;
        }
        Ok(())
    }
}

impl Connection {
    fn new(stream: Socket, origin: u64) -> Self {
        let (allowed, sent, received, received_before) = (0, 0, 0, 0);
        Self { stream, origin, allowed, sent, received, received_before, blocked: false }
    }

    /// Not everything allowed has come back yet.
    fn is_busy(&self) -> bool {
        self.received < self.allowed
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Serves one connection; `spoil` may change what goes back.
    pub(crate) fn serve_one(spoil: fn(&mut Vec<u8>)) -> Address {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let mut answer = buffer[..count].to_vec();
                spoil(&mut answer);
                if answer.is_empty() || stream.write_all(&answer).is_err() {
                    break;
                }
            }
        });
        address
    }

    fn verdict(spoil: fn(&mut Vec<u8>)) -> Result<Yield, String> {
        let pattern = Pattern::new();
        let mut client =
            Steady::connect(&serve_one(spoil), &pattern, 1, 64, 4, Waiting::Sleep).unwrap();
        client.slice(Duration::from_millis(20))
    }

    /// The client must be able to pass a server before it may fail one.
    #[test]
    fn an_honest_server_yields_echoes() {
        assert!(verdict(|_| {}).unwrap().echoes >= 4);
    }

    /// Messages that are received and sent in pieces are whole in the end.
    #[test]
    fn pieces_yield_echoes() {
        let pattern = Pattern::new();
        let client = Steady::connect(&serve_one(|_| {}), &pattern, 1, 64, 4, Waiting::Sleep);
        let mut client = client.unwrap().in_pieces(48);
        assert!(client.slice(Duration::from_millis(20)).unwrap().echoes >= 4);
    }

    /// Each kind of fault is detected: a comparison must not reward a server for one.
    #[test]
    fn a_server_that_is_wrong_is_found_out() {
        let complaint = |spoil| verdict(spoil).unwrap_err();
        assert!(complaint(|answer| answer[7] ^= 1).contains("other bytes"));
        assert!(complaint(|answer| *answer = answer.split_off(1)).contains("other bytes"));
        assert!(complaint(|answer| answer.push(0)).contains("more than it was given"));
        assert!(complaint(Vec::clear).contains("closed by the server"));
    }
}
