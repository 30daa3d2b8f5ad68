//! The works: the loads that the client puts on a server during a slice, by name.

use std::time::Duration;

use crate::address::{Address, Transport};
use crate::churn::Churn;
use crate::datagrams::{Datagrams, Load};
use crate::latency::Latency;
use crate::mixed::{Mixed, Neighbour};
use crate::pattern::Pattern;
use crate::steady::{BUFFER_LENGTH, Steady, Waiting};
use crate::veth;

/// A kind of load.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// What it is called in the table.
    pub(crate) title: &'static str,
    /// What its connections run over.
    pub(crate) transport: Transport,
    /// Length in usual slices: many connections need longer for the same number of turns.
    pub(crate) stretch: u32,
    shape: Shape,
}

/// How the load is made.
#[derive(Clone, Copy)]
enum Shape {
    /// Connections that stay, each with this number of messages in flight.
    Steady { connections: usize, message_length: usize, in_flight: usize },
    /// Connections that open, echo one message, and close; this number at a time.
    Churn { connections: usize, message_length: usize },
    /// Quiet lines, each with one message of 64 bytes in flight, beside a neighbour.
    Mixed { quiet: usize, neighbour: Neighbour },
    /// Flows of datagrams.
    Datagrams(Load),
}

/// All works, in the order of the table.
pub(crate) const WORKS: &[Work] = &[
    ping("ping-1", "ping-pong 64 B, 1 connection", 1, 1),
    ping("ping-64", "ping-pong 64 B, 64 connections", 64, 1),
    ping("ping-1000", "ping-pong 64 B, 1,000 connections", 1_000, 1),
    ping("ping-8000", "ping-pong 64 B, 8,000 connections", 8_000, 2),
    ping("ping-16000", "ping-pong 64 B, 16,000 connections", 16_000, 4),
    steady("pipeline", "64 B × 16 in flight, 64 connections", 64, 64, 16),
    steady("middle", "16 KiB, 16 connections", 16, 16 * 1024, 1),
    steady("bulk", "64 KiB × 8 in flight, 4 connections", 4, 64 * 1024, 8),
    Work {
        name: "churn",
        title: "connect, echo 64 B, close",
        transport: Transport::Tcp,
        stretch: 1,
        shape: Shape::Churn { connections: 16, message_length: 64 },
    },
    beside_bulk(
        "beside-4",
        "20 quiet lines beside 64 KiB × 8 in flight, 4 connections",
        4,
        BUFFER_LENGTH,
    ),
    beside_bulk(
        "beside-40",
        "20 quiet lines beside 64 KiB × 8 in flight, 40 connections",
        40,
        BUFFER_LENGTH,
    ),
    beside_bulk(
        "beside-4-pieces",
        "the same beside 4, and the client handles 16 KiB of bulk at a time",
        4,
        16 * 1024,
    ),
    beside_bulk(
        "beside-40-pieces",
        "the same beside 40, and the client handles 16 KiB of bulk at a time",
        40,
        16 * 1024,
    ),
    beside(
        "beside-churn",
        "20 quiet lines beside connect, echo, close",
        Neighbour::Churn { connections: 16 },
    ),
    beside(
        "beside-stuck",
        "20 quiet lines beside 1,000 connections that never read",
        Neighbour::NeverReads { connections: 1_000 },
    ),
    Work {
        transport: Transport::Unix,
        ..ping("unix-64", "Unix stream, ping-pong 64 B, 64 connections", 64, 1)
    },
    udp("udp-1", "UDP, ping-pong 64 B, 1 flow", Load::new(1, 64, 1)),
    udp("udp-64", "UDP, ping-pong 64 B, 64 flows", Load::new(64, 64, 1)),
    udp("udp-1000", "UDP, ping-pong 64 B, 1,000 flows", Load::new(1_000, 64, 1)),
    udp("udp-pipeline", "UDP, 64 B × 16 in flight, 64 flows", Load::new(64, 64, 16)),
    udp(
        "udp-burst",
        "UDP, bursts of 32 × 1,200 B, 4 flows",
        Load { bursts: true, ..Load::new(4, 1_200, 32) },
    ),
    Work {
        transport: Transport::UdpVeth,
        ..udp(
            "udp-burst-veth",
            "UDP over veth, bursts of 32 × 1,200 B, 4 of 256 flows at a time",
            Load { bursts: true, active: 4, ..Load::new(256, 1_200, 32) },
        )
    },
    udp("udp-64k", "UDP, 65,507 B, 4 flows", Load::new(4, 65_507, 1)),
];

/// Names that stand for several works.
const SETS: &[(&str, &[&str])] = &[
    ("usual", &["ping-1", "ping-64", "ping-1000", "pipeline", "bulk", "churn"]),
    (
        "udp",
        &["udp-1", "udp-64", "udp-1000", "udp-pipeline", "udp-burst", "udp-burst-veth", "udp-64k"],
    ),
    ("crowds", &["ping-8000", "ping-16000"]),
    ("others", &["middle", "unix-64"]),
    (
        "beside",
        &[
            "beside-4",
            "beside-40",
            "beside-4-pieces",
            "beside-40-pieces",
            "beside-churn",
            "beside-stuck",
        ],
    ),
];

const fn steady(
    name: &'static str,
    title: &'static str,
    connections: usize,
    message_length: usize,
    in_flight: usize,
) -> Work {
    let shape = Shape::Steady { connections, message_length, in_flight };
    Work { name, title, transport: Transport::Tcp, stretch: 1, shape }
}

const fn ping(name: &'static str, title: &'static str, connections: usize, stretch: u32) -> Work {
    Work { stretch, ..steady(name, title, connections, 64, 1) }
}

const fn beside(name: &'static str, title: &'static str, neighbour: Neighbour) -> Work {
    let shape = Shape::Mixed { quiet: 20, neighbour };
    Work { name, title, transport: Transport::Tcp, stretch: 2, shape }
}

const fn beside_bulk(
    name: &'static str,
    title: &'static str,
    connections: usize,
    piece: usize,
) -> Work {
    let (message_length, in_flight) = (64 * 1024, 8);
    beside(name, title, Neighbour::Bulk { connections, message_length, in_flight, piece })
}

const fn udp(name: &'static str, title: &'static str, load: Load) -> Work {
    let shape = Shape::Datagrams(load);
    Work { name, title, transport: Transport::Udp, stretch: 1, shape }
}

/// The result of one slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yield {
    /// Whole messages that came back.
    pub(crate) echoes: u64,
    /// From the first byte sent to the last byte back.
    pub(crate) elapsed: Duration,
    /// If each connection has one message in flight.
    pub(crate) latency: Option<Latency>,
    /// Messages that did not come back and were sent again.
    pub(crate) lost: u64,
    /// Bytes of the most served connection over those of the least served one.
    pub(crate) most_over_least: Option<f64>,
}

impl Yield {
    /// This number of messages in that time.
    pub(crate) fn of(echoes: u64, elapsed: Duration) -> Self {
        Self { echoes, elapsed, latency: None, lost: 0, most_over_least: None }
    }
}

/// One work in progress on one server. Connections that stay are kept as long as this is.
pub(crate) enum Client<'a> {
    /// See [`Steady`].
    Steady(Steady<'a>),
    /// See [`Churn`].
    Churn(Churn<'a>),
    /// See [`Mixed`].
    Mixed(Box<Mixed<'a>>),
    /// See [`Datagrams`].
    Datagrams(Datagrams<'a>),
}

impl Work {
    /// The works of these names; `all`, or a set's name, stands for several. In the order of the
    /// table, each once.
    pub(crate) fn select(names: &[String]) -> Result<Vec<Self>, String> {
        let mut wanted: Vec<&str> = Vec::new();
        for name in names {
            match SETS.iter().find(|(set, _)| set == name) {
                Some((_, members)) => wanted.extend(*members),
                None if name == "all" => wanted.extend(WORKS.iter().map(|work| work.name)),
                None if WORKS.iter().any(|work| work.name == name) => wanted.push(name),
                None => return Err(unknown(name)),
            }
        }
        Ok(WORKS.iter().filter(|work| wanted.contains(&work.name)).copied().collect())
    }

    /// How many connections it keeps open at a time.
    pub(crate) fn connections(&self) -> usize {
        match self.shape {
            Shape::Steady { connections, .. } | Shape::Churn { connections, .. } => connections,
            Shape::Mixed { quiet, neighbour } => quiet + neighbour.connections(),
            Shape::Datagrams(load) => load.flows,
        }
    }

    /// How long its messages are.
    pub(crate) fn message_length(&self) -> usize {
        match self.shape {
            Shape::Steady { message_length, .. } | Shape::Churn { message_length, .. } => {
                message_length
            }
            Shape::Mixed { neighbour, .. } => neighbour.message_length(),
            Shape::Datagrams(load) => load.message_length,
        }
    }

    /// How many messages of a connection are in flight at a time.
    pub(crate) fn in_flight(&self) -> usize {
        match self.shape {
            Shape::Steady { in_flight, .. } => in_flight,
            Shape::Churn { .. } => 1,
            Shape::Mixed { neighbour, .. } => neighbour.in_flight(),
            Shape::Datagrams(load) => load.in_flight,
        }
    }

    /// Connects to a server.
    pub(crate) fn client<'a>(
        &self,
        address: &'a Address,
        pattern: &'a Pattern,
        waiting: Waiting,
    ) -> Result<Client<'a>, String> {
        match self.shape {
            Shape::Steady { connections, message_length, in_flight } => {
                Steady::connect(address, pattern, connections, message_length, in_flight, waiting)
                    .map(Client::Steady)
            }
            Shape::Churn { connections, message_length } => {
                Ok(Client::Churn(Churn::new(address, pattern, connections, message_length)))
            }
            Shape::Mixed { quiet, neighbour } => {
                let mixed = Mixed::connect(address, pattern, quiet, neighbour)?;
                Ok(Client::Mixed(Box::new(mixed)))
            }
            Shape::Datagrams(load) => {
                let first = match self.transport {
                    Transport::UdpVeth => Some(veth::CLIENT),
                    Transport::Tcp | Transport::Unix | Transport::Udp => None,
                };
                Datagrams::open(address, pattern, load, first, waiting).map(Client::Datagrams)
            }
        }
    }
}

fn unknown(name: &str) -> String {
    let works: Vec<_> = WORKS.iter().map(|work| work.name).collect();
    let sets: Vec<_> = SETS.iter().map(|(set, _)| *set).collect();
    format!(
        "no work is called {name}; there are {}, and the sets {} and all",
        works.join(", "),
        sets.join(", ")
    )
}

impl Client<'_> {
    /// Makes load for that long, then waits until everything sent is back. An error says what the
    /// server did wrong.
    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Yield, String> {
        match self {
            Client::Steady(steady) => steady.slice(duration),
            Client::Churn(churn) => churn.slice(duration),
            Client::Mixed(mixed) => mixed.slice(duration),
            Client::Datagrams(datagrams) => datagrams.slice(duration),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set must only name existing works, and a name given twice is one work.
    #[test]
    fn sets_are_made_of_works() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Work::select(&names).map(|works| works.len())
        };
        for (set, members) in SETS {
            assert_eq!(names(&[set]), Ok(members.len()), "{set}");
        }
        assert_eq!(names(&["bulk", "usual", "bulk"]), Ok(6));
        assert_eq!(names(&["all"]), Ok(WORKS.len()));
        assert!(names(&["ping-2"]).unwrap_err().contains("ping-2"));
    }
}
