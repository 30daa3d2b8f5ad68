//! One slot, tenant after tenant, on a real ring: what is told late of the last one must not reach
//! the next one.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use echo_uring::echo::op::{ConnectionId, Event, Kernel, Op, ReceiveEnd, ReceiveMode};
use echo_uring::uring::{Driver, Settings};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::bench::receive;
use crate::real;
use crate::world::ROOMY;

struct Stage {
    driver: Driver,
}

impl Stage {
    fn new() -> Self {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let driver = Driver::new(Settings {
            listeners: Arc::from([]),
            wake: Arc::new(wake.expect("an eventfd")),
            buffers: ROOMY.buffers,
            buffer_sizes: ROOMY.buffer_sizes,
            connections_max: 0,
            busy_poll: None,
            origin: Instant::now(),
        });
        Self { driver: driver.unwrap_or_else(|unusable| panic!("no ring: {unusable}")) }
    }

    /// A new connection of this name, and its peer.
    fn adopt(&mut self, connection: ConnectionId) -> UnixStream {
        let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
        self.driver.adopt(connection, OwnedFd::from(ours), &[]);
        peer
    }

    fn say(&mut self, op: Op) {
        self.driver.submit(&mut vec![op]);
    }

    /// What happens in the next 20 ms.
    fn watch(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let deadline = self.driver.now().plus(20);
        while self.driver.now() < deadline {
            self.driver.turn(Some(deadline), &mut events).expect("the ring works");
        }
        events
    }

    /// Receives multishot until told to stop. Whether it would have gone on after its first bytes.
    fn lasts(&mut self, connection: ConnectionId, peer: &mut UnixStream) -> bool {
        self.say(receive(connection, ReceiveMode::Multishot));
        peer.write_all(b"x").expect("an empty socket has room");
        let events = self.watch();
        let [Event::Received { buffer, armed, .. }] = events[..] else {
            panic!("a byte was expected, not {events:?}")
        };
        self.say(Op::Recycle { buffer });
        if armed {
            self.say(Op::CancelReceive { connection });
            let stopped = Event::ReceiveEnded { connection, reason: ReceiveEnd::Stopped };
            assert_eq!(self.watch(), [stopped]);
        }
        armed
    }
}

/// Goal: that the peer of a former tenant hung up changes nothing for the present one. Method: the
/// news of it wait in the kernel while the slot changes hands.
#[test]
fn a_stale_hang_up_does_not_reach_the_next_tenant() {
    if !real::modes().contains(&ReceiveMode::Multishot) {
        return;
    }
    let mut stage = Stage::new();
    for generation in 0..20 {
        let connection = ConnectionId::new(0, generation);
        let mut peer = stage.adopt(connection);
        for _ in 0..2 {
            let lasts = stage.lasts(connection, &mut peer);
            assert!(lasts, "{connection:?} is received from as if its peer had hung up");
        }
        drop(peer);
        stage.say(Op::Close { connection });
    }
}

/// The same for a peer that shut down only, and for a connection that is given away: its socket
/// lives on.
#[test]
fn a_hang_up_of_a_connection_that_was_given_away_is_nobodys() {
    if !real::modes().contains(&ReceiveMode::Multishot) {
        return;
    }
    let mut stage = Stage::new();
    for generation in 0..20 {
        let connection = ConnectionId::new(0, generation);
        let mut peer = stage.adopt(connection);
        for _ in 0..2 {
            assert!(stage.lasts(connection, &mut peer), "{connection:?}");
        }
        peer.shutdown(std::net::Shutdown::Write).expect("an open socket");
        let (socket, unsent) = stage.driver.release(connection);
        assert!(unsent.is_empty());
        drop(socket);
    }
}
