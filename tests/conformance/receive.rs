//! Scripts about receiving.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use echo_core::op::{ConnectionId, Event, Op, ReceiveEnd, ReceiveMode, SizeClass};

use crate::bench::{Bench, name, receive};
use crate::fake::peer::PeerId;
use crate::world::{ROOMY, Setup, World};

fn ended(connection: ConnectionId, reason: ReceiveEnd) -> Event {
    Event::ReceiveEnded { connection, reason }
}

pub(crate) fn once_ends_with_the_first_bytes<W: World>() {
    for mode in [ReceiveMode::Now, ReceiveMode::WhenReadable] {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.say([receive(name(0), mode)]);
        bench.silence();
        bench.world.write(peer, 5);
        let ((buffer, length), armed, more) = bench.received();
        assert_eq!((buffer.class, length, armed, more), (SizeClass::Small, 5, false, false));
        bench.world.write(peer, 5);
        bench.silence();
    }
}

pub(crate) fn a_full_buffer_leaves_the_rest<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.world.write(peer, 1500);
    bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
    // The hint that more is there may be missing.
    let ((_, length), armed, _) = bench.received();
    assert_eq!((length, armed), (1024, false));
    bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
    let ((_, length), _, more) = bench.received();
    assert_eq!((length, more), (476, false));
}

pub(crate) fn multishot_continues<W: World>() {
    if !W::modes().contains(&ReceiveMode::Multishot) {
        return;
    }
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let mut armed = false;
    for _ in 0..20 {
        if !armed {
            bench.say([receive(name(0), ReceiveMode::Multishot)]);
        }
        bench.world.write(peer, 100);
        let ((buffer, length), still_armed, _) = bench.received();
        assert_eq!(length, 100);
        armed = still_armed;
        bench.say([Op::Recycle { buffer }]);
    }
    // A kernel may end a multishot receive at any time, but not every time.
    assert!(armed || !W::MULTISHOT_LASTS, "not armed after 20 small messages");
}

pub(crate) fn the_end_follows_the_bytes<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.world.write(peer, 9);
        bench.world.finish(peer);
        bench.say([receive(name(0), mode)]);
        let ((_, length), armed, _) = bench.received();
        assert_eq!(length, 9);
        assert_eq!(bench.end_of_receive(name(0), mode, armed), ReceiveEnd::EndOfStream);
        bench.silence();
    }
}

pub(crate) fn an_end_right_behind_the_bytes_is_seen<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        for slot in 0..50 {
            let peer = bench.accept(name(slot));
            bench.say([receive(name(slot), mode)]);
            bench.turn(0);
            bench.world.write(peer, 9);
            if slot % 2 == 0 {
                bench.turn(0);
            }
            bench.world.finish(peer);
            let ((buffer, length), armed, _) = bench.received();
            assert_eq!(length, 9);
            bench.say([Op::Recycle { buffer }]);
            assert_eq!(bench.end_of_receive(name(slot), mode, armed), ReceiveEnd::EndOfStream);
            bench.say([Op::Close { connection: name(slot) }]);
        }
    }
}

pub(crate) fn the_end_comes_alone<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.say([receive(name(0), mode)]);
        bench.silence();
        bench.world.finish(peer);
        assert_eq!(bench.next(), ended(name(0), ReceiveEnd::EndOfStream));
    }
}

pub(crate) fn a_large_buffer_is_taken_when_asked_for<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.world.write(peer, 3000);
    bench.say([bulk(0, ReceiveMode::Now)]);
    let ((buffer, length), ..) = bench.received();
    assert_eq!((buffer.class, length), (SizeClass::Large, 3000));
}

const MANY_BUFFERS: Setup = Setup::new([256, 0]);
const TWO_BUFFERS: Setup = Setup::new([2, 0]);

pub(crate) fn an_empty_pool_takes_nothing<W: World>() {
    use_up_and_go_on::<W>(TWO_BUFFERS);
}

/// Goal: no byte is lost when a busy kernel has no buffer. Method: as before, with enough buffers
/// to keep the kernel busy.
pub(crate) fn an_empty_roomy_pool_takes_nothing<W: World>() {
    use_up_and_go_on::<W>(ROOMY);
}

fn use_up_and_go_on<W: World>(setup: Setup) {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(setup);
        let peer = bench.accept(name(0));
        let chunks: Vec<_> =
            (0..setup.buffers.small.count).map(|_| bench.take(peer, name(0), 10)[0]).collect();
        bench.world.write(peer, 10);
        bench.say([receive(name(0), mode)]);
        assert_eq!(bench.next(), ended(name(0), ReceiveEnd::NoBuffer));
        for chunk in chunks {
            assert_eq!(bench.send(name(0), chunk), 10);
            bench.read_all(peer, 10);
        }
        bench.say([receive(name(0), mode)]);
        let (chunk, ..) = bench.received();
        assert_eq!(bench.send(name(0), chunk), 10);
        bench.read_all(peer, 10);
    }
}

/// Goal: all buffers of a pool can be lent, one after another and at the same time, whatever its
/// implementation. Method: the first turn that needs many may get fewer, but not the next.
pub(crate) fn all_of_a_pool_can_be_had<W: World>() {
    const CONNECTIONS: u32 = 200;
    let mut bench = Bench::<W>::new(MANY_BUFFERS);
    let peers: Vec<_> = (0..CONNECTIONS).map(|slot| bench.accept(name(slot))).collect();
    let lent: Vec<_> = (0..256).map(|_| bench.take(peers[0], name(0), 1)[0].0).collect();
    assert_eq!(lent.iter().map(|buffer| buffer.index).collect::<BTreeSet<_>>().len(), 256);
    bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
    bench.world.write(peers[0], 1);
    assert_eq!(bench.next(), ended(name(0), ReceiveEnd::NoBuffer));
    bench.say(lent.into_iter().map(|buffer| Op::Recycle { buffer }));
    peers[1..].iter().for_each(|&peer| bench.world.write(peer, 1));
    let mut hungry: Vec<_> = (0..CONNECTIONS).map(name).collect();
    for turn in 0..2 {
        // All of them receive at once, before the driver handles the first completion.
        let receive_now = |connection| receive(connection, ReceiveMode::Now);
        bench.say(hungry.drain(..).map(receive_now));
        let mut lent = Vec::new();
        while lent.len() + hungry.len() < CONNECTIONS as usize {
            match bench.next() {
                Event::Received { buffer, .. } => lent.push(buffer),
                Event::ReceiveEnded { connection, reason: ReceiveEnd::NoBuffer } if turn == 0 => {
                    hungry.push(connection);
                }
                other => panic!("turn {turn}: bytes were expected, not {other:?}"),
            }
        }
        // Connections without a buffer are served before the next turn needs as many again.
        while let Some(connection) = hungry.pop() {
            bench.say([receive(connection, ReceiveMode::WhenReadable)]);
            lent.push(bench.received().0.0);
        }
        bench.say(lent.into_iter().map(|buffer| Op::Recycle { buffer }));
        peers.iter().for_each(|&peer| bench.world.write(peer, 1));
        hungry = (0..CONNECTIONS).map(name).collect();
    }
}

/// Goal: the buffers that a few simultaneous messages need stay in the cache, if no more buffers
/// are offered. Method: count the buffers that many turns of four messages use, at first and after
/// all have been offered.
pub(crate) fn few_buffers_of_many_go_round<W: World>() {
    let mut bench = Bench::<W>::new(MANY_BUFFERS);
    let peer = bench.accept(name(0));
    for _ in 0..2 {
        bench.say([Op::OfferBuffers { count: 32 }]);
        used_by_fours(&mut bench, peer, 100);
        let used = used_by_fours(&mut bench, peer, 200);
        // The offered buffers, and those that replace the four lent ones.
        assert!(used <= 32 + 4 || !W::FEW_BUFFERS_GO_ROUND, "{used} buffers went round");
        bench.say([Op::OfferBuffers { count: 256 }]);
        let lent: Vec<_> = (0..256).map(|_| bench.take(peer, name(0), 1)[0].0).collect();
        bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
        bench.world.write(peer, 1);
        assert_eq!(bench.next(), ended(name(0), ReceiveEnd::NoBuffer));
        bench.say(lent.into_iter().map(|buffer| Op::Recycle { buffer }));
        bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
        let ((buffer, _), ..) = bench.received();
        bench.say([Op::Recycle { buffer }]);
    }
}

/// How many buffers `turns` turns of four messages use.
fn used_by_fours<W: World>(bench: &mut Bench<W>, peer: PeerId, turns: usize) -> usize {
    let mut used = BTreeSet::new();
    for _ in 0..turns {
        let lent: Vec<_> = (0..4).map(|_| bench.take(peer, name(0), 1)[0].0).collect();
        used.extend(lent.iter().map(|buffer| buffer.index));
        bench.say(lent.into_iter().map(|buffer| Op::Recycle { buffer }));
    }
    used.len()
}

pub(crate) fn an_empty_pool_hides_the_end<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(TWO_BUFFERS);
        let peer = bench.accept(name(0));
        let chunks = [bench.take(peer, name(0), 10)[0], bench.take(peer, name(0), 10)[0]];
        bench.say([receive(name(0), mode)]);
        bench.world.finish(peer);
        // It may fail before there is anything to receive, since no buffer is free.
        assert_eq!(bench.next(), ended(name(0), ReceiveEnd::NoBuffer));
        bench.say([receive(name(0), mode)]);
        assert_eq!(bench.next(), ended(name(0), ReceiveEnd::NoBuffer));
        bench.say([Op::Recycle { buffer: chunks[0].0 }, receive(name(0), mode)]);
        assert_eq!(bench.next(), ended(name(0), ReceiveEnd::EndOfStream));
    }
}

pub(crate) fn a_buffer_given_back_is_there_for_the_next_receive<W: World>() {
    let mut bench = Bench::<W>::new(TWO_BUFFERS);
    let peer = bench.accept(name(0));
    let mut last = bench.take(peer, name(0), 10)[0];
    let held = bench.take(peer, name(0), 10)[0];
    for _ in 0..10 {
        bench.world.write(peer, 10);
        bench.say([Op::Recycle { buffer: last.0 }, receive(name(0), ReceiveMode::WhenReadable)]);
        (last, ..) = bench.received();
        assert_ne!(last.0, held.0, "a lent buffer is not filled again");
    }
}

pub(crate) fn a_canceled_receive_ends<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        for _ in 0..2 {
            bench.say([receive(name(0), mode)]);
            bench.silence();
            bench.say([Op::CancelReceive { connection: name(0) }]);
            assert_eq!(bench.next(), ended(name(0), ReceiveEnd::Stopped));
        }
        // Nothing is lost: bytes that arrive now wait for the next receive.
        bench.world.write(peer, 5);
        bench.silence();
        bench.say([receive(name(0), mode)]);
        assert_eq!(bench.received().0.1, 5);
    }
}

pub(crate) fn a_cancel_loses_no_bytes<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.say([receive(name(0), mode)]);
        bench.silence();
        bench.world.write(peer, 10);
        bench.say([Op::CancelReceive { connection: name(0) }]);
        let mut chunks = Vec::new();
        loop {
            match bench.next() {
                Event::Received { buffer, length, armed, .. } => {
                    chunks.push((buffer, length));
                    if !armed {
                        break;
                    }
                }
                Event::ReceiveEnded { reason: ReceiveEnd::Stopped, .. } => break,
                other => panic!("{other:?}"),
            }
        }
        bench.silence();
        if chunks.is_empty() {
            bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
            chunks.push(bench.received().0);
        }
        assert_eq!(chunks.len(), 1);
        assert_eq!(bench.send(name(0), chunks[0]), 10);
        bench.read_all(peer, 10);
    }
}

/// Goal: a receive is carried out, whatever is submitted with it. Method: submit it after a send,
/// for bytes that are waiting already and for some that arrive later.
pub(crate) fn a_receive_behind_a_send_is_not_forgotten<W: World>() {
    for &mode in W::modes() {
        for early in [true, false] {
            let mut bench = Bench::<W>::new(ROOMY);
            let peer = bench.accept(name(0));
            let (send, buffer) = bench.echo_to_say(peer, name(0));
            if early {
                bench.world.write(peer, 7);
            }
            bench.say([send, receive(name(0), mode)]);
            if !early {
                bench.turn(0);
                bench.world.write(peer, 7);
            }
            let (mut sent, mut received) = (0, None);
            while sent == 0 || received.is_none() {
                match bench.next() {
                    Event::Sent { length, .. } => sent = length,
                    Event::Received { buffer, length, .. } => received = Some((buffer, length)),
                    other => panic!("{other:?}"),
                }
            }
            bench.say([Op::Recycle { buffer }]);
            assert_eq!(bench.send(name(0), received.expect("bytes")), 7);
            bench.read_all(peer, 17);
        }
    }
}

pub(crate) fn a_cancel_in_the_same_breath_ends_it<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        let (send, buffer) = bench.echo_to_say(peer, name(0));
        let cancel = Op::CancelReceive { connection: name(0) };
        bench.say([send, receive(name(0), mode), cancel]);
        let mut told = [bench.next(), bench.next()];
        told.sort_by_key(|event| matches!(event, Event::ReceiveEnded { .. }));
        let sent = Event::Sent { connection: name(0), length: 10 };
        assert_eq!(told, [sent, ended(name(0), ReceiveEnd::Stopped)]);
        bench.say([Op::Recycle { buffer }]);
        bench.world.write(peer, 5);
        bench.silence();
        bench.say([receive(name(0), mode)]);
        assert_eq!(bench.received().0.1, 5);
    }
}

/// Goal: a turn submits the requested receives before it waits. Method: a turn with a far deadline
/// returns bytes that are waiting already.
pub(crate) fn waiting_bytes_end_a_turn<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.silence();
        bench.world.write(peer, 5);
        bench.say([receive(name(0), mode)]);
        let began = Instant::now();
        bench.turn(8_000);
        assert!(bench.has_event(), "the turn brought nothing");
        assert!(began.elapsed() < Duration::from_secs(4), "the turn waited for its deadline");
        assert_eq!(bench.received().0.1, 5);
    }
}

pub(crate) fn a_cancel_leaves_the_others<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peers = [0, 1, 2].map(|slot| bench.accept(name(slot)));
        let (send, _) = bench.echo_to_say(peers[0], name(0));
        bench.say([
            send,
            receive(name(1), mode),
            receive(name(2), mode),
            Op::CancelReceive { connection: name(1) },
        ]);
        let told = [bench.next(), bench.next()];
        assert!(told.contains(&ended(name(1), ReceiveEnd::Stopped)), "{told:?}");
        bench.silence();
        bench.world.write(peers[2], 5);
        match bench.next() {
            Event::Received { connection, length, .. } => {
                assert_eq!((connection, length), (name(2), 5));
            }
            other => panic!("bytes were expected, not {other:?}"),
        }
    }
}

fn bulk(slot: u32, mode: ReceiveMode) -> Op {
    Op::Receive { connection: name(slot), class: SizeClass::Large, mode }
}

/// Goal: a poll reports bytes and the end, consumes neither, and can be canceled.
pub(crate) fn a_poll_waits_for_bytes<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (connection, poll) = (name(0), Op::AwaitReadable { connection: name(0) });
    bench.say([poll]);
    bench.silence();
    bench.say([Op::CancelReceive { connection }]);
    assert_eq!(bench.next(), ended(connection, ReceiveEnd::Stopped));
    bench.say([poll]);
    bench.world.write(peer, 10);
    assert_eq!(bench.next(), Event::Readable { connection });
    bench.silence();
    bench.say([receive(connection, ReceiveMode::Now)]);
    let (chunk, ..) = bench.received();
    assert_eq!(bench.send(connection, chunk), 10);
    bench.read_all(peer, 10);
    bench.say([poll]);
    bench.world.finish(peer);
    assert_eq!(bench.next(), Event::Readable { connection });
    bench.say([receive(connection, ReceiveMode::Now)]);
    assert_eq!(bench.next(), ended(connection, ReceiveEnd::EndOfStream));
}

/// Goal: a large buffer of a waiting receive is returned when the receive is canceled, and serves a
/// receive that has waited with a poll.
pub(crate) fn more_wait_for_bulk_than_there_are_large_buffers<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peers = [0, 1, 2].map(|slot| bench.accept(name(slot)));
    bench.say([bulk(0, ReceiveMode::WhenReadable), bulk(1, ReceiveMode::WhenReadable)]);
    bench.say([Op::AwaitReadable { connection: name(2) }]);
    bench.silence();
    bench.world.write(peers[2], 3000);
    assert_eq!(bench.next(), Event::Readable { connection: name(2) });
    bench.say([Op::CancelReceive { connection: name(0) }]);
    assert_eq!(bench.next(), ended(name(0), ReceiveEnd::Stopped));
    bench.say([bulk(2, ReceiveMode::Now)]);
    let (chunk, ..) = bench.received();
    assert_eq!(chunk.1, 3000);
    assert_eq!(bench.send(name(2), chunk), 3000);
    bench.read_all(peers[2], 3000);
    // The other one still waits.
    bench.world.write(peers[1], 100);
    let ((buffer, length), ..) = bench.received();
    assert_eq!((buffer.class, length), (SizeClass::Large, 100));
    bench.say([Op::Recycle { buffer }]);
    bench.silence();
}
