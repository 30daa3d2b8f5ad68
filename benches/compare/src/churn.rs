//! Load by short connections: connect, one echo, close, a few at a time.
//!
//! The side that closes first keeps the address pair for a minute (TIME_WAIT). That is the client,
//! as in practice. So that it does not run out of ports, each connection comes from another address
//! of the loopback network.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::address::Address;
use crate::pattern::{Pattern, origin};
use crate::works::Yield;

/// Silence after which an echo counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Addresses that connections come from, one after the other: 127.1.0.0 and up.
const SOURCES: u64 = 65_536;

/// A client of one server.
pub(crate) struct Churn<'a> {
    address: &'a Address,
    pattern: &'a Pattern,
    connections: usize,
    message_length: usize,
    /// Connections so far; chooses source and bytes of the next one.
    count: u64,
}

impl<'a> Churn<'a> {
    /// A client that opens this number of connections at a time.
    pub(crate) fn new(
        address: &'a Address,
        pattern: &'a Pattern,
        connections: usize,
        message_length: usize,
    ) -> Self {
        Self { address, pattern, connections, message_length, count: 0 }
    }

    /// See [`crate::works::Client::slice`]. One echo is one connection from its birth to its end.
    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Yield, String> {
        let began = Instant::now();
        let echoes = self.run(|| began.elapsed() >= duration)?;
        Ok(Yield::of(echoes, began.elapsed()))
    }

    /// Opens connections until it is `over`. Returns their number.
    pub(crate) fn run(&mut self, over: impl Fn() -> bool) -> Result<u64, String> {
        let mut echoes = 0;
        while !over() {
            self.batch().map_err(|error| format!("connection {}: {error}", self.count))?;
            echoes += self.connections as u64;
        }
        Ok(echoes)
    }

    fn batch(&mut self) -> io::Result<()> {
        let mut batch = Vec::with_capacity(self.connections);
        for _ in 0..self.connections {
            let mut stream = self.connect()?;
            let message = self.pattern.stretch(origin(self.count as usize), self.message_length);
            stream.write_all(message)?;
            batch.push((stream, message));
            self.count += 1;
        }
        let mut answer = vec![0; self.message_length];
        for (mut stream, message) in batch {
            stream.read_exact(&mut answer)?;
            if answer != message {
                return Err(io::Error::other("other bytes came back"));
            }
        }
        Ok(())
    }

    fn connect(&self) -> io::Result<Socket> {
        let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
        let source = Ipv4Addr::from(first + (self.count % SOURCES) as u32);
        self.address.connect(source, SILENCE_MAX)
    }
}
