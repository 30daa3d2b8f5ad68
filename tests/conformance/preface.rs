//! Scripts about PROXY headers: they are read from the front of a stream, in any pieces, without
//! any byte after them.

use std::sync::Arc;

use echo_core::admission::IpSet;
use echo_core::kernel::Kernel;
use echo_core::limits::PREFACE_BYTES_MAX;
use echo_core::op::Expectation;
use echo_core::op::{
    ConnectionId, Event, Op, PeerAddr, PeerOrigin, ReceiveEnd, ReceiveMode, Shutdown,
};
use echo_core::parameters::Parameters;
use echo_core::reason::RefuseReason;
use echo_core::worker::Worker;

use crate::bench::{Bench, Brief, accepted, name, parameters, receive};
use crate::fake::peer::{PeerId, Saying};
use crate::world::{End, ROOMY, Resets, World, header};

const CLIENT: PeerAddr = PeerAddr::Ipv4([192, 0, 2, 1]);
const ANNOUNCES: Saying = Saying::Announces(CLIENT);

fn read_preface(connection: ConnectionId) -> Op {
    Op::ReadPreface { connection, length_max: PREFACE_BYTES_MAX }
}

fn complete(connection: ConnectionId) -> Event {
    Event::PrefaceComplete { connection, peer: CLIENT, origin: PeerOrigin::Announced }
}

/// A peer that first sends this header, and is accepted.
fn accept<W: World>(bench: &mut Bench<W>, connection: ConnectionId, saying: Saying) -> PeerId {
    let peer = bench.world.connect_with(saying);
    bench.say([Op::Accept {
        listener: echo_core::op::ListenerId(0),
        connection,
        backlog: Expectation::Data,
    }]);
    assert_eq!(bench.next(), accepted(connection));
    peer
}

/// Receives and echoes the waiting `length` bytes.
fn echo<W: World>(bench: &mut Bench<W>, peer: PeerId, connection: ConnectionId, length: u32) {
    bench.say([receive(connection, ReceiveMode::WhenReadable)]);
    let (chunk, ..) = bench.received();
    assert_eq!(bench.send(connection, chunk), length);
    bench.read_all(peer, length as usize);
}

/// Goal: the header is consumed, and the bytes after it are the first that a receive returns.
pub(crate) fn a_header_is_taken_and_no_byte_behind_it<W: World>() {
    for behind in [0, 1, 500] {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = accept(&mut bench, name(0), ANNOUNCES);
        bench.say([read_preface(name(0))]);
        bench.silence();
        bench.world.write(peer, header(ANNOUNCES).len() + behind);
        assert_eq!(bench.next(), complete(name(0)));
        assert_eq!(bench.world.kernel().peer_of(name(0)), CLIENT);
        if behind > 0 {
            echo(&mut bench, peer, name(0), behind as u32);
        }
        bench.world.write(peer, 9);
        echo(&mut bench, peer, name(0), 9);
    }
}

pub(crate) fn a_header_comes_in_pieces<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), ANNOUNCES);
    let length = header(ANNOUNCES).len() as u16;
    for received in 1..length {
        bench.say([read_preface(name(0))]);
        bench.world.write(peer, 1);
        assert_eq!(bench.next(), Event::PrefacePartial { connection: name(0), received });
    }
    bench.say([read_preface(name(0))]);
    bench.world.write(peer, 6);
    assert_eq!(bench.next(), complete(name(0)));
    echo(&mut bench, peer, name(0), 5);
}

pub(crate) fn a_header_may_announce_no_client<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), Saying::Nothing);
    bench.world.write(peer, header(Saying::Nothing).len() + 3);
    bench.say([read_preface(name(0))]);
    let (connection, origin) = (name(0), PeerOrigin::Socket);
    assert_eq!(bench.next(), Event::PrefaceComplete { connection, peer: W::SOURCE, origin });
    assert_eq!(bench.world.kernel().peer_of(name(0)), W::SOURCE);
    echo(&mut bench, peer, name(0), 3);
}

pub(crate) fn an_invalid_header_is_reported<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), Saying::Nonsense);
    bench.world.write(peer, header(Saying::Nonsense).len());
    bench.say([read_preface(name(0))]);
    assert_eq!(bench.next(), Event::PrefaceInvalid { connection: name(0) });
    bench.say([Op::Close { connection: name(0) }]);
    assert_ne!(bench.end(peer), End::Open);
}

pub(crate) fn a_header_has_a_limit<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), ANNOUNCES);
    bench.world.write(peer, header(ANNOUNCES).len());
    for length_max in [1, 2, 10] {
        bench.say([Op::ReadPreface { connection: name(0), length_max }]);
        let received = length_max;
        assert_eq!(bench.next(), Event::PrefacePartial { connection: name(0), received });
    }
    bench.say([read_preface(name(0))]);
    assert_eq!(bench.next(), complete(name(0)));
}

pub(crate) fn an_end_before_the_header_is_reported<W: World>() {
    for sent in [0, 7] {
        let mut bench = Bench::<W>::new(ROOMY);
        let peer = accept(&mut bench, name(0), ANNOUNCES);
        if sent > 0 {
            bench.world.write(peer, sent);
            bench.say([read_preface(name(0))]);
            let received = sent as u16;
            assert_eq!(bench.next(), Event::PrefacePartial { connection: name(0), received });
        }
        bench.say([read_preface(name(0))]);
        bench.world.finish(peer);
        let reason = ReceiveEnd::EndOfStream;
        assert_eq!(bench.next(), Event::ReceiveEnded { connection: name(0), reason });
    }
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), ANNOUNCES);
    bench.say([read_preface(name(0))]);
    bench.world.reset(peer);
    match bench.next() {
        Event::ReceiveEnded { reason: ReceiveEnd::Failed(_), .. } => {}
        // A Unix socket that is closed is reset only if it had unread bytes.
        Event::ReceiveEnded { reason: ReceiveEnd::EndOfStream, .. }
            if W::RESETS == Resets::WithUnreadBytes => {}
        other => panic!("the end was expected, not {other:?}"),
    }
}

pub(crate) fn a_look_for_a_header_can_be_stopped<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), ANNOUNCES);
    bench.world.write(peer, 7);
    bench.say([read_preface(name(0))]);
    assert_eq!(bench.next(), Event::PrefacePartial { connection: name(0), received: 7 });
    bench.say([read_preface(name(0))]);
    bench.silence();
    bench.say([Op::CancelReceive { connection: name(0) }]);
    let reason = ReceiveEnd::Stopped;
    assert_eq!(bench.next(), Event::ReceiveEnded { connection: name(0), reason });
    bench.world.write(peer, header(ANNOUNCES).len() - 7);
    bench.silence();
    bench.say([read_preface(name(0))]);
    assert_eq!(bench.next(), complete(name(0)));
}

pub(crate) fn a_shutdown_of_both_ends_a_look<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let _peer = accept(&mut bench, name(0), ANNOUNCES);
    bench.say([read_preface(name(0))]);
    bench.silence();
    bench.say([Op::Shutdown { connection: name(0), how: Shutdown::Both }]);
    let told = bench.next();
    assert!(matches!(told, Event::ReceiveEnded { .. }), "{told:?}");
    bench.say([Op::Close { connection: name(0) }]);
}

/// Goal: the next process continues a header where this one stopped, and knows the announced
/// address. Method: a handover after each byte of the header, and one after the header.
pub(crate) fn a_half_read_header_is_handed_over<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = accept(&mut bench, name(0), ANNOUNCES);
    let length = header(ANNOUNCES).len() as u32;
    for slot in 0..length {
        bench.world.write(peer, 1);
        bench.say([read_preface(name(slot))]);
        let event = bench.next();
        if slot + 1 < length {
            let received = slot as u16 + 1;
            assert_eq!(event, Event::PrefacePartial { connection: name(slot), received });
        } else {
            assert_eq!(event, complete(name(slot)));
        }
        bench.world.hand_over(&[(name(slot), name(slot + 1))]);
    }
    assert_eq!(bench.world.kernel().peer_of(name(length)), CLIENT);
    bench.world.write(peer, 4);
    echo(&mut bench, peer, name(length), 4);
}

/// Goal: the core with this kernel echoes the bytes after a header, and refuses a connection
/// without one. Method: three peers; one of them sends before it is accepted.
pub(crate) fn the_core_echoes_behind_a_header<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let everybody = IpSet::new(vec![([0; 4], [255; 4])], vec![([0; 16], [255; 16])]);
        let mut worker = Worker::new(Parameters {
            proxies: Arc::new([Some(everybody)]),
            ..parameters(mode, bench.world.budget(), 3)
        });
        let lengths = [ANNOUNCES, Saying::Nothing, Saying::Nonsense].map(|it| header(it).len());
        let early = bench.world.connect_with(ANNOUNCES);
        bench.world.write(early, lengths[0] + 100);
        worker.start(bench.world.kernel()).expect("the ring works");
        let [local, wrong] =
            [Saying::Nothing, Saying::Nonsense].map(|it| bench.world.connect_with(it));
        for byte in 0..lengths[1].max(lengths[2]) {
            let mut write = |peer, length| {
                if byte < length {
                    bench.world.write(peer, 1);
                }
            };
            write(local, lengths[1]);
            write(wrong, lengths[2]);
            worker.step(&mut Brief(bench.world.kernel()), None).expect("the ring works");
        }
        bench.world.write(local, 50);
        let (mut echoed, mut turns) = ([0, 0], 0);
        while echoed != [100, 50] {
            worker.step(&mut Brief(bench.world.kernel()), None).expect("the ring works");
            echoed[0] += bench.world.read(early, 1_000);
            echoed[1] += bench.world.read(local, 1_000);
            turns += 1;
            assert!(turns < 2_000, "{echoed:?} bytes came back");
        }
        worker.check_invariants();
        let traffic = worker.stats().traffic;
        assert_eq!((traffic.announced, traffic.connections()), (1, 2));
        assert_eq!(traffic.refused[RefuseReason::InvalidHeader as usize], 1);
        assert_eq!(traffic.bytes_in, 150, "headers do not count");
    }
}
