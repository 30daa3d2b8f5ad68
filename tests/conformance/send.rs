//! Scripts about sending. That the bytes are the right ones is checked by every read.

use echo_uring::echo::op::{ConnectionId, Event, Op};

use crate::bench::{Bench, name};
use crate::fake::peer::PeerId;
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

/// Sends set-aside bytes while the peer reads. Each answer may be any part of them.
fn flush<W: World>(bench: &mut Bench<W>, peer: PeerId, connection: ConnectionId, mut aside: u32) {
    let mut read = 0;
    while aside > 0 {
        bench.say([Op::SendAside { connection }]);
        let sent = loop {
            read += bench.world.read(peer, 4096);
            match bench.next_if_any() {
                Some(Event::SentAside { length, .. }) => break length,
                None => {}
                Some(other) => panic!("{other:?}"),
            }
        };
        assert!((1..=aside).contains(&sent), "{sent} of {aside} bytes were sent");
        aside -= sent;
    }
    assert!(read > 0, "there was room without reading");
}

pub(crate) fn what_a_full_socket_leaves_is_sent_from_aside<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (written, aside) = bench.fill(peer, name(0));
    bench.say([Op::SendAside { connection: name(0) }]);
    // It waits for room: for a part it may find some at once, but not again and again.
    let mut left = aside;
    while let Some(event) = bench.next_if_any() {
        let Event::SentAside { length, .. } = event else { panic!("{event:?}") };
        left -= length;
        if left == 0 {
            break;
        }
        bench.say([Op::SendAside { connection: name(0) }]);
    }
    let mut read = 0;
    while left > 0 {
        read += bench.world.read(peer, 4096);
        if let Some(event) = bench.next_if_any() {
            let Event::SentAside { length, .. } = event else { panic!("{event:?}") };
            assert!(length >= 1, "an answer without progress");
            left -= length;
            if left > 0 {
                bench.say([Op::SendAside { connection: name(0) }]);
            }
        }
    }
    bench.read_all(peer, written - read);
}

pub(crate) fn set_aside_pieces_keep_their_order<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (mut written, mut aside) = bench.fill(peer, name(0));
    for length in [300, 1, 700] {
        for (buffer, length) in bench.take(peer, name(0), length) {
            let connection = name(0);
            let half = length.div_ceil(2);
            bench.say([Op::SetAside { connection, buffer, offset: 0, length: half }]);
            if half < length {
                let rest = length - half;
                bench.say([Op::SetAside { connection, buffer, offset: half, length: rest }]);
            }
            bench.say([Op::Recycle { buffer }]);
            aside += length;
        }
        written += length;
    }
    let mut counted = 0;
    while aside > 0 {
        counted += bench.world.read(peer, 4096);
        bench.say([Op::SendAside { connection: name(0) }]);
        loop {
            match bench.next_if_any() {
                Some(Event::SentAside { length, .. }) => {
                    assert!(length >= 1 && length <= aside, "{length} of {aside} bytes");
                    aside -= length;
                    break;
                }
                None => counted += bench.world.read(peer, 4096),
                Some(other) => panic!("{other:?}"),
            }
        }
    }
    bench.read_all(peer, written - counted);
}

pub(crate) fn two_connections_do_not_mix<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peers = [bench.accept(name(0)), bench.accept(name(1))];
    for round in 1..20 {
        let mut chunks = Vec::new();
        for (peer, slot) in peers.into_iter().zip(0..) {
            chunks.push((name(slot), bench.take(peer, name(slot), 10 * round)));
        }
        // The second answers first: buffers come home in another order than they were lent.
        for (connection, chunks) in chunks.into_iter().rev() {
            for chunk in chunks {
                assert_eq!(bench.send(connection, chunk), chunk.1);
            }
        }
        for peer in peers {
            bench.read_all(peer, 10 * round);
        }
    }
    let (written, aside) = bench.fill(peers[0], name(0));
    flush(&mut bench, peers[0], name(0), aside);
    let chunk = bench.take(peers[1], name(1), 50)[0];
    assert_eq!(bench.send(name(1), chunk), 50);
    bench.read_all(peers[1], 50);
    assert!(written > 0, "something was echoed");
}
