//! Scripts about ends: resets, shutdowns, closes.

use echo_core::op::{ConnectionError, Event, Op, ReceiveEnd, ReceiveMode, SendError, Shutdown};

use crate::bench::{Bench, name, receive};
use crate::world::{End, ROOMY, Resets, World};

const RESET: ReceiveEnd = ReceiveEnd::Failed(ConnectionError::Reset);
const BROKEN: SendError = SendError::Failed(ConnectionError::Reset);

fn assert_receive_ended(event: Event, allowed: &[ReceiveEnd]) {
    match event {
        Event::ReceiveEnded { reason, .. } if allowed.contains(&reason) => {}
        other => panic!("one of {allowed:?} was expected, not {other:?}"),
    }
}

/// What a receive reports when the peer resets: where only unread bytes make a reset, it may look
/// like an end.
fn reset_seen<W: World>() -> &'static [ReceiveEnd] {
    match W::RESETS {
        Resets::Always => &[RESET],
        Resets::WithUnreadBytes => &[RESET, ReceiveEnd::EndOfStream],
    }
}

pub(crate) fn a_reset_ends_a_receive<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.say([receive(name(0), mode)]);
        bench.silence();
        bench.world.reset(peer);
        assert_receive_ended(bench.next(), reset_seen::<W>());
        bench.silence();
        bench.say([Op::Close { connection: name(0) }]);
        bench.silence();
    }
}

pub(crate) fn a_reset_ends_a_waiting_send<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.block(peer, name(0));
    bench.world.reset(peer);
    assert_eq!(bench.next(), Event::SendFailed { connection: name(0), error: BROKEN });
    bench.say([Op::Abort { connection: name(0) }]);
    bench.silence();
}

pub(crate) fn a_dead_connection_is_reported_once<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (buffer, length) = bench.take(peer, name(0), 10)[0];
    bench.world.reset(peer);
    bench.say([Op::Send { connection: name(0), buffer, length, needs_completion: true }]);
    assert_eq!(bench.next(), Event::SendFailed { connection: name(0), error: BROKEN });
    // Once the error has been reported, a receive may see nothing but the end.
    bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
    assert_receive_ended(bench.next(), &[RESET, ReceiveEnd::EndOfStream]);
    bench.say([Op::Send { connection: name(0), buffer, length, needs_completion: true }]);
    assert_eq!(bench.next(), Event::SendFailed { connection: name(0), error: BROKEN });
    bench.say([Op::Recycle { buffer }, Op::Close { connection: name(0) }]);
    bench.silence();
}

pub(crate) fn a_shutdown_of_both_ends_a_receive<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        bench.accept(name(0));
        bench.say([receive(name(0), mode)]);
        bench.silence();
        bench.say([Op::Shutdown { connection: name(0), how: Shutdown::Both }]);
        assert_receive_ended(bench.next(), &[ReceiveEnd::EndOfStream]);
        bench.say([Op::Close { connection: name(0) }]);
        bench.silence();
    }
}

pub(crate) fn a_shutdown_of_both_ends_a_receive_behind_a_send<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        let (send, buffer) = bench.echo_to_say(peer, name(0));
        bench.say([
            send,
            receive(name(0), mode),
            Op::Shutdown { connection: name(0), how: Shutdown::Both },
        ]);
        // It may overtake the send.
        for event in [bench.next(), bench.next()] {
            match event {
                Event::Sent { .. } | Event::SendFailed { .. } => {}
                other => assert_receive_ended(other, &[ReceiveEnd::EndOfStream]),
            }
        }
        bench.say([Op::Recycle { buffer }, Op::Close { connection: name(0) }]);
        bench.silence();
    }
}

pub(crate) fn a_shutdown_of_both_ends_a_waiting_send<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.block(peer, name(0));
    bench.say([Op::Shutdown { connection: name(0), how: Shutdown::Both }]);
    assert_eq!(bench.next(), Event::SendFailed { connection: name(0), error: BROKEN });
    bench.say([Op::Abort { connection: name(0) }]);
    bench.silence();
}

pub(crate) fn a_shutdown_of_writing_leaves_the_receive<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        let chunk = bench.take(peer, name(0), 10)[0];
        assert_eq!(bench.send(name(0), chunk), 10);
        bench.say([receive(name(0), mode)]);
        bench.silence();
        bench.say([Op::Shutdown { connection: name(0), how: Shutdown::Write }]);
        bench.silence();
        bench.read_all(peer, 10);
        assert_eq!(bench.end(peer), End::Finished);
        bench.world.write(peer, 10);
        let (_, armed, _) = bench.received();
        bench.world.finish(peer);
        if !armed {
            bench.say([receive(name(0), mode)]);
        }
        assert_receive_ended(bench.next(), &[ReceiveEnd::EndOfStream]);
    }
}

pub(crate) fn a_close_is_seen_after_the_last_byte<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let chunk = bench.take(peer, name(0), 1000)[0];
    assert_eq!(bench.send(name(0), chunk), 1000);
    bench.say([Op::Close { connection: name(0) }]);
    bench.silence();
    bench.read_all(peer, 1000);
    assert_eq!(bench.end(peer), End::Finished);
}

pub(crate) fn a_close_with_unread_input_resets<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.world.write(peer, 10);
    bench.say([Op::Close { connection: name(0) }]);
    assert_eq!(bench.end(peer), End::Reset);
}

pub(crate) fn an_abort_resets<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.say([Op::Abort { connection: name(0) }]);
    let end = bench.end(peer);
    match W::RESETS {
        Resets::Always => assert_eq!(end, End::Reset),
        Resets::WithUnreadBytes => assert_eq!(end, End::Finished),
    }
}

pub(crate) fn a_peer_that_closed_does_not_take_more<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let chunks = [bench.take(peer, name(0), 10)[0], bench.take(peer, name(0), 10)[0]];
    bench.world.close(peer);
    bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
    assert_receive_ended(bench.next(), &[ReceiveEnd::EndOfStream]);
    // TCP learns from the answer to these bytes that the peer is closed; a Unix socket knows at
    // once.
    let (connection, (buffer, length)) = (name(0), chunks[0]);
    bench.say([Op::Send { connection, buffer, length, needs_completion: true }]);
    let failed = Event::SendFailed { connection, error: BROKEN };
    let first = bench.next();
    assert!([Event::Sent { connection, length: 10 }, failed].contains(&first), "{first:?}");
    let (buffer, length) = chunks[1];
    bench.say([Op::Send { connection, buffer, length, needs_completion: true }]);
    assert_eq!(bench.next(), failed);
}
