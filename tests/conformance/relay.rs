//! Scripts about relaying: an echo that leaves bytes that it cannot send in the socket. Every read
//! checks the bytes.

use echo_core::op::{ConnectionId, Event, Op, ReceiveEnd, Shutdown, When};

use crate::bench::{Bench, name};
use crate::fake::peer::PeerId;
use crate::world::{End, ROOMY, Resets, World};

fn relay(connection: ConnectionId, when: When) -> Op {
    Op::Relay { connection, when, length_max: u32::MAX }
}

fn stopped(connection: ConnectionId) -> Event {
    Event::ReceiveEnded { connection, reason: ReceiveEnd::Stopped }
}

/// The result of a relay: how many bytes, and what to wait for.
fn relayed<W: World>(bench: &mut Bench<W>) -> (usize, When) {
    match bench.next() {
        Event::Relayed { length, next, .. } => (length as usize, next),
        other => panic!("the answer to a relay was expected, not {other:?}"),
    }
}

/// The peer writes without reading until a relay finds no room. Returns how many bytes were written
/// and how many of them were relayed.
fn fill<W: World>(bench: &mut Bench<W>, peer: PeerId) -> (usize, usize) {
    let (mut written, mut echoed) = (0, 0);
    for _ in 0..4000 {
        bench.world.write(peer, 500);
        written += 500;
        while echoed < written {
            bench.say([relay(name(0), When::Readable)]);
            let (length, next) = relayed(bench);
            echoed += length;
            if next == When::Writable {
                // There may still be room for a small rest.
                bench.say([relay(name(0), When::Writable)]);
                match bench.next_if_any() {
                    None => return (written, echoed),
                    Some(Event::Relayed { length, .. }) => echoed += length as usize,
                    Some(other) => panic!("room was waited for: {other:?}"),
                }
            }
        }
    }
    panic!("the socket of a peer that does not read was never full");
}

pub(crate) fn bytes_are_relayed_when_they_come<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    for length in [1, 10, 24] {
        bench.say([relay(connection, When::Readable)]);
        bench.silence();
        bench.world.write(peer, length);
        assert_eq!(relayed(&mut bench), (length, When::Readable));
        bench.read_all(peer, length);
    }
    // A relay that does not wait reports that there is nothing.
    bench.say([relay(connection, When::Now)]);
    assert_eq!(relayed(&mut bench), (0, When::Readable));
    bench.world.write(peer, 5);
    bench.say([relay(connection, When::Now)]);
    assert_eq!(relayed(&mut bench), (5, When::Readable));
    bench.read_all(peer, 5);
}

pub(crate) fn a_relay_takes_no_more_than_asked_for<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    bench.world.write(peer, 20);
    for left in [13, 6] {
        bench.say([Op::Relay { connection, when: When::Readable, length_max: 7 }]);
        assert_eq!(relayed(&mut bench), (7, When::Now));
        bench.read_all(peer, 7);
        assert!(left > 0);
    }
    bench.say([Op::Relay { connection, when: When::Now, length_max: 7 }]);
    assert_eq!(relayed(&mut bench), (6, When::Readable));
    bench.read_all(peer, 6);
}

/// Goal: bytes without room on the way back stay in the receive queue, and are relayed when there
/// is room. Method: fill the socket, check that nothing happens, and let the peer read everything.
pub(crate) fn a_relay_takes_no_more_than_there_is_room_for<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    let (written, mut echoed) = fill(&mut bench, peer);
    bench.silence();
    let mut read = 0;
    while read < written {
        read += bench.world.read(peer, 4096);
        if let Some(event) = bench.next_if_any() {
            let Event::Relayed { length, next, .. } = event else { panic!("not {event:?}") };
            echoed += length as usize;
            bench.say([relay(connection, next)]);
        }
    }
    assert_eq!(echoed, written);
    bench.say([Op::CancelReceive { connection }]);
    assert_eq!(bench.next(), stopped(connection));
}

pub(crate) fn a_relay_ends_with_the_stream<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    bench.world.write(peer, 9);
    bench.world.finish(peer);
    bench.say([relay(connection, When::Readable)]);
    assert_eq!(relayed(&mut bench).0, 9);
    bench.read_all(peer, 9);
    bench.say([relay(connection, When::Readable)]);
    let end = Event::ReceiveEnded { connection, reason: ReceiveEnd::EndOfStream };
    assert_eq!(bench.next(), end);
    bench.say([Op::Close { connection }]);
    assert_eq!(bench.end(peer), End::Finished);
}

pub(crate) fn a_relay_can_be_stopped<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    bench.say([relay(connection, When::Readable), Op::CancelReceive { connection }]);
    assert_eq!(bench.next(), stopped(connection));
    let (written, echoed) = fill(&mut bench, peer);
    bench.say([Op::CancelReceive { connection }]);
    assert_eq!(bench.next(), stopped(connection));
    bench.silence();
    // Nothing was lost: a receive finds the rest.
    bench.read_all(peer, echoed);
    let mut left = written - echoed;
    while left > 0 {
        bench.say([relay(connection, When::Now)]);
        let (length, _) = relayed(&mut bench);
        bench.read_all(peer, length);
        left -= length;
    }
}

pub(crate) fn discarded_bytes_are_gone<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    bench.say([Op::Shutdown { connection, how: Shutdown::Write }]);
    bench.say([Op::Discard { connection, when: When::Readable }]);
    bench.silence();
    bench.world.write(peer, 12);
    assert_eq!(relayed(&mut bench), (12, When::Readable));
    bench.say([Op::Discard { connection, when: When::Now }]);
    assert_eq!(relayed(&mut bench), (0, When::Readable));
    bench.world.finish(peer);
    bench.say([Op::Discard { connection, when: When::Readable }]);
    let end = Event::ReceiveEnded { connection, reason: ReceiveEnd::EndOfStream };
    assert_eq!(bench.next(), end);
    assert_eq!(bench.end(peer), End::Finished);
}

pub(crate) fn a_reset_ends_a_relay<W: World>() {
    for blocked in [false, true] {
        let mut bench = Bench::<W>::new(ROOMY);
        let connection = name(0);
        let peer = bench.accept(connection);
        if blocked {
            fill(&mut bench, peer);
        } else {
            bench.say([relay(connection, When::Readable)]);
        }
        bench.world.reset(peer);
        // Bytes received before the reset may still be relayed; then the end is reported.
        loop {
            match bench.next() {
                Event::Relayed { next, .. } => bench.say([relay(connection, next)]),
                Event::ReceiveEnded { reason: ReceiveEnd::Failed(_), .. } => break,
                // A Unix socket that is closed is reset only if it had unread bytes.
                Event::ReceiveEnded { reason: ReceiveEnd::EndOfStream, .. }
                    if W::RESETS == Resets::WithUnreadBytes =>
                {
                    break;
                }
                other => panic!("the end of a relay was expected, not {other:?}"),
            }
        }
    }
}

pub(crate) fn a_shutdown_of_both_ends_a_relay<W: World>() {
    for blocked in [false, true] {
        let mut bench = Bench::<W>::new(ROOMY);
        let connection = name(0);
        let peer = bench.accept(connection);
        if blocked {
            fill(&mut bench, peer);
        } else {
            bench.say([relay(connection, When::Readable)]);
        }
        bench.say([Op::Shutdown { connection, how: Shutdown::Both }]);
        let told = bench.next();
        assert!(matches!(told, Event::ReceiveEnded { .. }), "{told:?}");
    }
}
