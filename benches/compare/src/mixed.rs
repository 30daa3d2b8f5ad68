//! Quiet lines beside a busy neighbour: the latency of a small echo.
//!
//! The client serves the quiet lines first: it checks them before each event of a neighbour. At
//! one event it handles a piece of bulk, and a quiet line that is answered meanwhile waits for the
//! client. How long depends on the server: one that sends less at a time leaves shorter pieces.
//! With small pieces the time of a quiet line is that of the server.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use crate::address::Address;
use crate::churn::Churn;
use crate::pattern::{Pattern, origin};
use crate::steady::{SILENCE_MAX, Steady, Waiting};
use crate::works::Yield;

/// Bytes of a message on a quiet line; each line has one in flight.
const QUIET_LENGTH: usize = 64;

/// Where connections that never read come from.
const SILENT_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 1);

/// What else the server has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// Connections that each keep this number of messages in flight. At one event the client
    /// receives and sends at most `piece` bytes.
    Bulk { connections: usize, message_length: usize, in_flight: usize, piece: usize },
    /// Connections that open, echo one message of 64 bytes, and close; this number at a time.
    Churn { connections: usize },
    /// Connections that write until the server takes no more, and never read.
    NeverReads { connections: usize },
}

impl Neighbour {
    /// How many connections it keeps open at a time.
    pub(crate) fn connections(self) -> usize {
        match self {
            Self::Bulk { connections, .. }
            | Self::Churn { connections }
            | Self::NeverReads { connections } => connections,
        }
    }

    /// How long its messages are.
    pub(crate) fn message_length(self) -> usize {
        match self {
            Self::Bulk { message_length, .. } => message_length,
            Self::Churn { .. } | Self::NeverReads { .. } => QUIET_LENGTH,
        }
    }

    /// How many messages of a connection are in flight at a time.
    pub(crate) fn in_flight(self) -> usize {
        match self {
            Self::Bulk { in_flight, .. } => in_flight,
            Self::Churn { .. } | Self::NeverReads { .. } => 1,
        }
    }
}

/// Quiet lines to one server, and their neighbour.
pub(crate) struct Mixed<'a> {
    quiet: Steady<'a>,
    beside: Beside<'a>,
}

enum Beside<'a> {
    /// With an epoll of its own, and one that watches both.
    Bulk(Box<Steady<'a>>, Epoll),
    Churn(Churn<'a>),
    NeverReads(#[expect(dead_code, reason = "they are held open")] Vec<Socket>),
}

impl<'a> Mixed<'a> {
    /// Opens all connections.
    pub(crate) fn connect(
        address: &'a Address,
        pattern: &'a Pattern,
        quiet: usize,
        neighbour: Neighbour,
    ) -> Result<Self, String> {
        let beside = match neighbour {
            Neighbour::Bulk { connections, message_length, in_flight, piece } => {
                let waiting = Waiting::Sleep;
                let bulk = Steady::connect(
                    address,
                    pattern,
                    connections,
                    message_length,
                    in_flight,
                    waiting,
                )?
                .in_pieces(piece);
                let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
                Beside::Bulk(Box::new(bulk), both.map_err(|error| format!("epoll: {error}"))?)
            }
            Neighbour::Churn { connections } => {
                Beside::Churn(Churn::new(address, pattern, connections, QUIET_LENGTH))
            }
            Neighbour::NeverReads { connections } => {
                let silent = (0..connections).map(|index| never_read(address, pattern, index));
                let silent: io::Result<Vec<Socket>> = silent.collect();
                Beside::NeverReads(
                    silent.map_err(|error| format!("one that never reads: {error}"))?,
                )
            }
        };
        let quiet = Steady::connect(address, pattern, quiet, QUIET_LENGTH, 1, Waiting::Sleep)?;
        if let Beside::Bulk(bulk, both) = &beside {
            for epoll in [&quiet.epoll.0, &bulk.epoll.0] {
                let added = both.add(epoll, EpollEvent::new(EpollFlags::EPOLLIN, 0));
                added.map_err(|error| format!("epoll: {error}"))?;
            }
        }
        Ok(Self { quiet, beside })
    }

    /// See [`crate::works::Client::slice`]. Beside bulk one echo is one message of bulk, beside
    /// anything else one of a quiet line; the times are those of quiet lines.
    pub(crate) fn slice(&mut self, duration: Duration) -> Result<Yield, String> {
        let quiet = &mut self.quiet;
        match &mut self.beside {
            Beside::Bulk(bulk, both) => beside_bulk(quiet, bulk, both, duration),
            Beside::Churn(churn) => beside_churn(quiet, churn, duration),
            Beside::NeverReads(_) => quiet.slice(duration),
        }
    }
}

/// A connection that has written as much as is taken within a tenth of a second of silence.
fn never_read(address: &Address, pattern: &Pattern, index: usize) -> io::Result<Socket> {
    let mut socket = address.connect(SILENT_SOURCE, SILENCE_MAX)?;
    socket.set_nonblocking(true)?;
    let bytes = pattern.stretch(origin(index), 64 * 1024);
    // Half a megabyte is more than the buffers of two sockets hold by default, and a thousand such
    // connections still fit into the kernel's memory for TCP.
    for _ in 0..8 {
        match socket.write(bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(socket)
}

fn beside_bulk(
    quiet: &mut Steady,
    bulk: &mut Steady,
    both: &Epoll,
    duration: Duration,
) -> Result<Yield, String> {
    let began = Instant::now();
    let deadline = began + duration;
    quiet.begin()?;
    bulk.begin()?;
    let mut events = vec![EpollEvent::empty(); 64];
    let waiting = |error| format!("waiting: {error}");
    loop {
        let more = Instant::now() < deadline;
        let count = quiet.epoll.wait(&mut events, EpollTimeout::ZERO).map_err(waiting)?;
        quiet.serve(&events[..count], more)?;
        let one = &mut events[..1];
        let count = bulk.epoll.wait(one, EpollTimeout::ZERO).map_err(waiting)?;
        bulk.serve(&one[..count], more)?;
        let (quiet, bulk) = (quiet.busy(), bulk.busy());
        if quiet + bulk == 0 {
            break;
        }
        if count == 0 {
            let silence = EpollTimeout::try_from(SILENCE_MAX).expect("ten seconds fit");
            if both.wait(&mut events, silence).map_err(waiting)? == 0 {
                return Err(format!("{quiet} quiet lines and {bulk} of bulk get no bytes back"));
            }
        }
    }
    let elapsed = began.elapsed();
    let times = quiet.conclude(elapsed);
    Ok(Yield { latency: times.latency, ..bulk.conclude(elapsed) })
}

/// The neighbour is another thread on the client's core.
fn beside_churn(
    quiet: &mut Steady,
    churn: &mut Churn,
    duration: Duration,
) -> Result<Yield, String> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| churn.run(|| over.load(Ordering::Relaxed)));
        let result = quiet.slice(duration);
        over.store(true, Ordering::Relaxed);
        neighbour.join().map_err(|_| "churn panicked".to_owned())??;
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steady::tests::serve_one;

    /// A slice ends with its last byte, also if that is one of a quiet line: no event of bulk follows
    /// then that could be waited for.
    #[test]
    fn a_slice_ends_with_its_last_byte() {
        let pattern = Pattern::new();
        let (connections, message_length, in_flight, piece) = (0, 64, 1, 64);
        let neighbour = Neighbour::Bulk { connections, message_length, in_flight, piece };
        let address = serve_one(|_| {});
        let mut client = Mixed::connect(&address, &pattern, 1, neighbour).unwrap();
        let result = client.slice(Duration::from_millis(20)).unwrap();
        assert!(result.latency.is_some());
    }
}
