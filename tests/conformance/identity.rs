//! Scripts about identities: a line that comes before everything else, or not at all.

use echo_core::op::{ConnectionError, Event, ListenerId, Op, ReceiveMode, Shutdown};

use crate::bench::{Bench, name, receive};
use crate::world::{End, ROOMY, World};

fn identify(slot: u32) -> Op {
    Op::Identify { connection: name(slot), listener: ListenerId(0) }
}

/// Goal: the line is the first that the peer reads, and the echo behind it has every byte.
pub(crate) fn an_identity_comes_before_the_echo<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.world.write(peer, 100);
    bench.say([identify(0)]);
    bench.silence();
    assert!(bench.world.read_identity(peer), "the line came late, or not");
    bench.say([receive(name(0), ReceiveMode::WhenReadable)]);
    let (chunk, ..) = bench.received();
    assert_eq!(bench.send(name(0), chunk), 100);
    bench.read_all(peer, 100);
}

/// Goal: a FIN in the same breath comes behind the line and not before it.
pub(crate) fn an_end_follows_an_identity<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    bench.say([identify(0), Op::Shutdown { connection: name(0), how: Shutdown::Write }]);
    bench.silence();
    assert!(bench.world.read_identity(peer));
    assert_eq!(bench.end(peer), End::Finished);
}

/// Goal: who has gone is told of once, also if the connection is ended in the same breath.
pub(crate) fn an_identity_that_nobody_takes_is_told_of<W: World>() {
    for ends_at_once in [false, true] {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.world.reset(peer);
        let abort = Op::Abort { connection: name(0) };
        bench.say([identify(0)].into_iter().chain(ends_at_once.then_some(abort)));
        let (connection, error) = (name(0), ConnectionError::Reset);
        assert_eq!(bench.next(), Event::IdentifyFailed { connection, error });
        if !ends_at_once {
            bench.say([abort]);
        }
        bench.silence();
    }
}
