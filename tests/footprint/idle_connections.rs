//! Many idle connections, held by this process.
//!
//! Each has been answered once, so that it is served and does not merely wait in the backlog.

use std::net::Ipv4Addr;

use nix::sys::resource::{Resource, getrlimit};
use socket2::Socket;

use crate::daemon::Daemon;
use crate::place::{Place, come_from, ping};

/// A generous number of descriptors that this process and the daemon need besides connections.
const FILES_SPARE: u64 = 400;

/// Connections from one source address: far fewer than there are ports, since ports of an earlier
/// test stay in TIME_WAIT for a minute.
const CONNECTIONS_PER_SOURCE: usize = 2_000;

/// How many connections the limit on open files permits, on either side.
pub(crate) fn room(daemon: &Daemon) -> usize {
    assert!(daemon.process.open_files() < FILES_SPARE as usize / 2, "the spare is too small");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The harness raises this process's soft limit up to this.
    usize::try_from(hard.min(65_536).saturating_sub(FILES_SPARE)).unwrap()
}

/// Connections that do nothing.
pub(crate) struct IdleConnections {
    place: Place,
    sockets: Vec<Socket>,
}

impl IdleConnections {
    /// No connection yet.
    pub(crate) fn new(place: &Place) -> Self {
        Self { place: place.clone(), sockets: Vec::new() }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Opens connections until there are `count`.
    pub(crate) fn grow(&mut self, count: usize) {
        while self.sockets.len() < count {
            let source = Ipv4Addr::from(
                u32::from(Ipv4Addr::new(127, 8, 6, 2))
                    + (self.sockets.len() / CONNECTIONS_PER_SOURCE) as u32,
            );
            let socket = self.place.socket();
            come_from(&socket, source.into());
            let socket = self.place.connect_with(socket);
            assert!(ping(&socket, b"good morning"), "connection {} is not served", self.count());
            self.sockets.push(socket);
        }
    }

    /// Asserts that some of them still answer, including the first and the last.
    pub(crate) fn assert_some_answer(&self) {
        let step = (self.sockets.len() / 20).max(1);
        for socket in self.sockets.iter().step_by(step).chain(self.sockets.last()) {
            assert!(ping(socket, b"still there?"), "an idle connection was forgotten");
        }
    }
}
