//! Scripts about sending. Every read checks the bytes.

use echo_core::op::{Event, Op, ReceiveMode, SendError};

use crate::bench::{Bench, name, receive};
use crate::world::{ROOMY, World};

pub(crate) fn a_send_takes_what_there_is_room_for<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    for length in [1, 1000, 1024] {
        let chunks = bench.take(peer, name(0), length);
        for chunk in chunks {
            assert_eq!(bench.send(name(0), chunk), chunk.1);
        }
        bench.read_all(peer, length);
    }
}

pub(crate) fn what_a_full_socket_leaves_is_sent_from_the_spill<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (written, spilled) = bench.block(peer, name(0));
    bench.silence();
    let read = bench.flush(peer, name(0), spilled);
    bench.read_all(peer, written - read);
    bench.silence();
}

/// Goal: a peer that has sent FIN and does not read causes no spinning while its echo waits. (For
/// poll(2) the FIN is a permanent event.) Method: the FIN comes before, or while, a send waits.
pub(crate) fn a_finished_peer_is_waited_for_without_spinning<W: World>() {
    for ends_first in [true, false] {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        let (written, mut spilled) = bench.block(peer, name(0));
        if ends_first {
            spilled = bench.take_back(name(0), spilled);
            bench.world.finish(peer);
            bench.say([Op::SendSpilled { connection: name(0) }]);
        } else {
            bench.world.finish(peer);
        }
        bench.rest();
        let read = bench.flush(peer, name(0), spilled);
        bench.read_all(peer, written - read);
        bench.rest();
    }
}

/// Goal: an earlier wait does not make the kernel miss a later one. Method: stall and catch up
/// repeatedly, with a cancel now and then.
pub(crate) fn a_second_stall_is_waited_for<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    for round in 0..6 {
        let (written, mut spilled) = bench.block(peer, name(0));
        if round % 3 == 1 {
            spilled = bench.take_back(name(0), spilled);
            bench.say([Op::SendSpilled { connection: name(0) }]);
        }
        let read = bench.flush(peer, name(0), spilled);
        bench.read_all(peer, written - read);
        if round % 2 == 0 {
            bench.rest();
        }
    }
}

/// Goal: a cancel also stops a send that has not been submitted to the kernel yet, with one answer.
pub(crate) fn a_cancel_submitted_together_stops_a_send<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (written, mut spilled) = bench.block(peer, name(0));
    spilled = bench.take_back(name(0), spilled);
    let connection = name(0);
    bench.say([Op::SendSpilled { connection }, Op::CancelSend { connection }]);
    assert_eq!(bench.next(), Event::SendFailed { connection, error: SendError::Stopped });
    bench.rest();
    bench.say([Op::SendSpilled { connection }]);
    let read = bench.flush(peer, connection, spilled);
    bench.read_all(peer, written - read);
}

pub(crate) fn spilled_chunks_keep_their_order<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (mut written, mut spilled) = bench.block(peer, name(0));
    // More may be spilled while a send waits.
    for length in [300, 1, 700] {
        for (buffer, length) in bench.take(peer, name(0), length) {
            let connection = name(0);
            let half = length.div_ceil(2);
            bench.say([Op::Spill { connection, buffer, offset: 0, length: half }]);
            if half < length {
                let rest = length - half;
                bench.say([Op::Spill { connection, buffer, offset: half, length: rest }]);
            }
            bench.say([Op::Recycle { buffer }]);
            spilled += length;
        }
        written += length;
    }
    let read = bench.flush(peer, name(0), spilled);
    bench.read_all(peer, written - read);
}

pub(crate) fn two_connections_do_not_mix<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peers = [bench.accept(name(0)), bench.accept(name(1))];
    for round in 1..20 {
        let mut chunks = Vec::new();
        for (peer, slot) in peers.into_iter().zip(0..) {
            chunks.push((name(slot), bench.take(peer, name(slot), 10 * round)));
        }
        // The second is sent first: buffers are returned in another order than they were lent.
        for (connection, chunks) in chunks.into_iter().rev() {
            for chunk in chunks {
                assert_eq!(bench.send(connection, chunk), chunk.1);
            }
        }
        for peer in peers {
            bench.read_all(peer, 10 * round);
        }
    }
    // A stalled connection does not delay the other.
    let (written, spilled) = bench.block(peers[0], name(0));
    let chunk = bench.take(peers[1], name(1), 50)[0];
    assert_eq!(bench.send(name(1), chunk), 50);
    bench.read_all(peers[1], 50);
    let read = bench.flush(peers[0], name(0), spilled);
    bench.read_all(peers[0], written - read);
}

/// Goal: the answer to a send that was submitted without a request for it may be late, but is never
/// missing, and the bytes are not late. Method: one answer that is requested afterwards, and one
/// that comes with the next bytes.
pub(crate) fn an_answer_that_is_not_requested_still_arrives<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    let sent = |length| Event::Sent { connection, length };

    let (buffer, length) = bench.take(peer, connection, 100)[0];
    bench.say([Op::Send { connection, buffer, length, needs_completion: false }]);
    bench.read_all(peer, 100);
    let told = bench.next_if_any().unwrap_or_else(|| {
        bench.say([Op::FlushSends]);
        bench.next()
    });
    assert_eq!(told, sent(100));
    bench.say([Op::Recycle { buffer }]);
    bench.silence();

    let (buffer, length) = bench.take(peer, connection, 50)[0];
    bench.say([
        Op::Send { connection, buffer, length, needs_completion: false },
        receive(connection, ReceiveMode::WhenReadable),
    ]);
    bench.read_all(peer, 50);
    bench.world.write(peer, 7);
    assert_eq!(bench.next(), sent(50));
    bench.say([Op::Recycle { buffer }]);
    let ((buffer, length), ..) = bench.received();
    assert_eq!(bench.send(connection, (buffer, length)), 7);
    bench.read_all(peer, 7);
}

/// Goal: a short or failed send is always reported, also without a request. Method: send without a
/// request until the socket is full, and then to a peer that has reset.
pub(crate) fn a_short_send_is_always_reported<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    let mut echoed = 0;
    let rest = 'full: loop {
        for (buffer, length) in bench.take(peer, connection, 500) {
            bench.say([Op::Send { connection, buffer, length, needs_completion: false }]);
            let told = bench.next_if_any();
            let Event::Sent { length: sent, .. } = told.unwrap_or_else(|| {
                bench.say([Op::FlushSends]);
                bench.next()
            }) else {
                panic!("the answer to a send was expected, not {told:?}")
            };
            echoed += sent as usize;
            if sent < length {
                assert!(told.is_some(), "{sent} of {length} bytes were sent, told only when asked");
                break 'full (buffer, length - sent);
            }
            bench.say([Op::Recycle { buffer }]);
        }
    };
    bench.read_all(peer, echoed);
    bench.world.reset(peer);
    bench.say([Op::Send { connection, buffer: rest.0, length: rest.1, needs_completion: false }]);
    let told = bench.next();
    assert!(matches!(told, Event::SendFailed { .. }), "to a peer that reset: {told:?}");
}

/// Goal: held bytes are sent from any offset of their pooled buffer as far as there is room, and
/// the kernel does not spin while there is none. Method: fill the socket, hold a chunk, and let the
/// peer read.
pub(crate) fn held_bytes_wait_for_room<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let connection = name(0);
    let peer = bench.accept(connection);
    let mut echoed = 0;
    let (buffer, mut offset, length) = 'full: loop {
        for (buffer, length) in bench.take(peer, connection, 900) {
            let sent = bench.send(connection, (buffer, length));
            echoed += sent as usize;
            if sent < length {
                break 'full (buffer, sent, length);
            }
        }
    };
    let held = |offset| Op::SendHeld { connection, buffer, offset, length: length - offset };
    // There may still be room for a small rest.
    bench.say([held(offset)]);
    while let Some(event) = bench.next_if_any() {
        let Event::Sent { length: sent, .. } = event else { panic!("not {event:?}") };
        offset += sent;
        echoed += sent as usize;
        if offset == length {
            return;
        }
        bench.say([held(offset)]);
    }
    bench.say([Op::CancelSend { connection }]);
    let stopped = Event::SendFailed { connection, error: SendError::Stopped };
    assert_eq!(bench.next(), stopped);
    bench.say([held(offset)]);
    bench.read_all(peer, echoed);
    while offset < length {
        let Event::Sent { length: sent, .. } = bench.next() else { panic!("there is room") };
        offset += sent;
        bench.read_all(peer, sent as usize);
        if offset < length {
            bench.say([held(offset)]);
        }
    }
    bench.say([Op::Recycle { buffer }]);
    bench.silence();
}
