//! The works: what the client does to a server during a slice, by name.

use std::net::SocketAddr;
use std::time::Duration;

use crate::churn::Churn;
use crate::pattern::Pattern;
use crate::steady::Steady;

/// A kind of load.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What it is called in the table.
    pub(crate) title: &'static str,
    shape: Shape,
}

/// How the load is made.
#[derive(Clone, Copy)]
enum Shape {
    /// Connections that stay, each with so many messages under way.
    Steady { connections: usize, message_length: usize, in_flight: usize },
    /// Connections that come, echo one message, and go; so many at a time.
    Churn { connections: usize, message_length: usize },
}

/// All works, in the order of the table.
pub(crate) const WORKS: &[Work] = &[
    Work {
        name: "ping-1",
        title: "ping-pong 64 B, 1 connection",
        shape: Shape::Steady { connections: 1, message_length: 64, in_flight: 1 },
    },
    Work {
        name: "ping-64",
        title: "ping-pong 64 B, 64 connections",
        shape: Shape::Steady { connections: 64, message_length: 64, in_flight: 1 },
    },
    Work {
        name: "ping-1000",
        title: "ping-pong 64 B, 1,000 connections",
        shape: Shape::Steady { connections: 1_000, message_length: 64, in_flight: 1 },
    },
    Work {
        name: "pipeline",
        title: "64 B × 16 in flight, 64 connections",
        shape: Shape::Steady { connections: 64, message_length: 64, in_flight: 16 },
    },
    Work {
        name: "bulk",
        title: "64 KiB × 8 in flight, 4 connections",
        shape: Shape::Steady { connections: 4, message_length: 64 * 1024, in_flight: 8 },
    },
    Work {
        name: "churn",
        title: "connect, echo 64 B, close",
        shape: Shape::Churn { connections: 16, message_length: 64 },
    },
];

/// What came of one slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yield {
    /// Whole messages that came back.
    pub(crate) echoes: u64,
    /// From the first byte sent to the last byte back.
    pub(crate) elapsed: Duration,
}

/// One work in progress on one server. Connections that stay are kept as long as this is.
pub(crate) enum Client<'a> {
    /// See [`Steady`].
    Steady(Steady<'a>),
    /// See [`Churn`].
    Churn(Churn<'a>),
}

impl Work {
    /// The work of that name.
    pub(crate) fn named(name: &str) -> Result<Self, String> {
        WORKS.iter().copied().find(|work| work.name == name).ok_or_else(|| {
            let known: Vec<_> = WORKS.iter().map(|work| work.name).collect();
            format!("no work is called {name}; there are {}", known.join(", "))
        })
    }

    /// Connects to a server.
    pub(crate) fn client<'a>(
        &self,
        address: SocketAddr,
        pattern: &'a Pattern,
    ) -> Result<Client<'a>, String> {
        match self.shape {
            Shape::Steady { connections, message_length, in_flight } => {
                Steady::connect(address, pattern, connections, message_length, in_flight)
                    .map(Client::Steady)
            }
            Shape::Churn { connections, message_length } => {
                Ok(Client::Churn(Churn::new(address, pattern, connections, message_length)))
            }
        }
    }
}

impl Client<'_> {
    /// Works for that long, then waits until everything sent is back. An error says what the server
    /// did wrong.
    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Yield, String> {
        match self {
            Client::Steady(steady) => steady.slice(duration),
            Client::Churn(churn) => churn.slice(duration),
        }
    }
}
