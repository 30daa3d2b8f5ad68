//! Successive connections in one slot: a late completion of one connection does not affect the
//! next.

use std::os::unix::net::UnixStream;

use nix::sys::eventfd::EfdFlags;

use super::*;
use crate::SpillMemory;
use echo_core::op::ReceiveMode;

/// A driver with room for one connection.
pub(super) fn driver(listeners: Arc<[ListeningSocket]>) -> Driver {
    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    Driver::new(Settings {
        worker: 0,
        datagram_sockets: Vec::new(),
        listeners,
        wake: Arc::new(wake),
        memory: SpillMemory::new(1 << 20),
        buffers: BufferPlan::new([8, 0], [64, 64]),
        connections_max: 1,
        busy_poll: None,
        origin: Instant::now(),
    })
    .unwrap_or_else(|unusable| panic!("no ring: {unusable}"))
}

/// A Unix connection with this id whose end is watched for, and its peer.
fn import(driver: &mut Driver, connection: ConnectionId) -> UnixStream {
    let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
    driver.import(connection, ConnectionParts::of(OwnedFd::from(ours)));
    driver.receive_small(connection, ReceiveMode::Multishot);
    assert_eq!(driver.socket(connection).rdhup, Rdhup::Watched);
    peer
}

/// Goal: an RDHUP that is reported after its connection was closed does not affect the next
/// connection in the slot. Method: pass the completion of a poll that ends before its cancel takes
/// effect.
#[test]
fn a_stale_rdhup_does_not_reach_the_next_tenant() {
    for (result, flags) in [(libc::POLLRDHUP.into(), 0), (-libc::ECANCELED, 0)] {
        let (mut driver, mut events) = (driver(Arc::from([])), Vec::new());
        let [former, present] = [0, 1].map(|generation| ConnectionId::new(0, generation));
        let _peers = {
            let peer = import(&mut driver, former);
            driver.close(former);
            [peer, import(&mut driver, present)]
        };
        driver.take(Token::Rdhup(former), result, flags, &mut events);
        assert_eq!(driver.socket(present).rdhup, Rdhup::Watched, "after {result}");
        assert!(driver.left_polls.is_empty(), "no poll waits for it any more");
        // A completion for the present connection is handled.
        driver.take(Token::Rdhup(present), libc::POLLRDHUP.into(), 0, &mut events);
        assert_eq!(driver.socket(present).rdhup, Rdhup::Seen);
        assert_eq!(events, []);
    }
}

/// Goal: the same for the poll for room, which may report several events. An empty slot is handled
/// too.
#[test]
fn stale_events_of_the_poll_for_room_are_ignored() {
    let more = 1 << 1; // IORING_CQE_F_MORE
    let (mut driver, mut events) = (driver(Arc::from([])), Vec::new());
    let former = ConnectionId::new(0, 0);
    let _peer = import(&mut driver, former);
    driver.socket_mut(former).room = Room::Watched;
    driver.close(former);
    for (result, flags) in [(libc::POLLOUT.into(), more), (-libc::ECANCELED, 0)] {
        driver.take(Token::Writable(former), result, flags, &mut events);
    }
    driver.take(Token::Rdhup(former), -libc::ECANCELED, 0, &mut events);
    assert_eq!((events.len(), driver.left_polls.len()), (0, 0));
}
