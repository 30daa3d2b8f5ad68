//! Scripts about keepalive probes.

use echo_core::kernel::Kernel;
use echo_core::op::{ConnectionId, Event, Op, Timestamp};

use crate::bench::{Bench, name, receive};
use crate::world::{ROOMY, World};

/// The kernel counts silence in ticks of up to 10 ms, and sends a probe in the next one.
const TICKS_MS: u64 = 40;

/// Probes a peer that has been silent for more than a second. Returns when the probe was sent, and
/// when the peer was last heard from.
fn ask<W: World>(bench: &mut Bench<W>, again: bool) -> (Timestamp, Timestamp) {
    let connection = name(0);
    let silent_until = bench.world.kernel().now().plus(1_100);
    while bench.world.kernel().now() < silent_until {
        bench.silence();
    }
    let asked = bench.world.kernel().now();
    bench.say([Op::Probe { connection, silent_s: 1, again }]);
    let answered = asked.plus(TICKS_MS);
    while bench.world.kernel().now() < answered {
        bench.silence();
    }
    bench.say([Op::EndProbe { connection, again }]);
    match bench.next() {
        Event::ProbeEnded { connection: whose, heard } if whose == connection => (asked, heard),
        other => panic!("what became of a probe was expected, not {other:?}"),
    }
}

pub(crate) fn a_silent_peer_that_is_there_answers<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = bench.accept(name(0));
        bench.say([receive(name(0), mode)]);
        for again in [false, true] {
            let (asked, heard) = ask(&mut bench, again);
            assert!(heard.plus(TICKS_MS) >= asked, "asked at {asked:?}, heard at {heard:?}");
            bench.rest();
        }
        bench.world.write(peer, 10);
        let ((_, length), ..) = bench.received();
        assert_eq!(length, 10);
    }
}

/// The completion of a probe is reported although its connection has been closed meanwhile.
pub(crate) fn the_end_of_a_probe_is_told_behind_a_close<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    bench.accept(name(0));
    let connection = name(0);
    bench.say([
        Op::Probe { connection, silent_s: 1, again: false },
        Op::EndProbe { connection, again: false },
        Op::Close { connection },
    ]);
    let told = bench.next();
    assert!(matches!(told, Event::ProbeEnded { .. }), "{told:?}");
    bench.rest();
    bench.accept(ConnectionId::new(0, 1));
}
