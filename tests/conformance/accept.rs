//! Scripts about accepting.

use echo_core::kernel::Kernel;
use echo_core::op::{AcceptError, ConnectionId, Event, Expectation, ListenerId, Op, ReceiveMode};

use crate::bench::{Bench, accepted, accepted_from, name, receive};
use crate::world::{End, ROOMY, Resets, World};

/// An accept that is tried at once, and one that waits for a connection first. The answers are the
/// same.
const BACKLOGS: [Expectation; 2] = [Expectation::Data, Expectation::Silence];

fn accept(connection: ConnectionId) -> Op {
    accept_by(connection, Expectation::Data)
}

fn accept_by(connection: ConnectionId, backlog: Expectation) -> Op {
    Op::Accept { listener: ListenerId(0), connection, backlog }
}

pub(crate) fn an_accept_waits_for_a_peer<W: World>() {
    for backlog in BACKLOGS {
        let mut bench = Bench::<W>::new(ROOMY);
        bench.say([accept_by(name(3), backlog)]);
        bench.silence();
        bench.world.connect();
        assert_eq!(bench.next(), accepted(name(3)));
        // One accept, one answer.
        bench.world.connect();
        bench.silence();
    }
}

/// Goal: a wrong expectation only costs time, and the next one is right.
pub(crate) fn an_accept_tells_what_the_backlog_holds<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let _peers = [bench.world.connect(), bench.world.connect(), bench.world.connect()];
    for (slot, left) in (0..3).zip([2, 1, 0]) {
        bench.say([accept_by(name(slot), Expectation::Silence)]);
        assert_eq!(bench.next(), accepted(name(slot)));
        let holds = left > 0 && W::tells_backlog();
        let told = if holds { Expectation::Data } else { Expectation::Silence };
        assert_eq!(bench.backlog, Some(told), "{left} wait");
    }
    bench.say([accept_by(name(3), Expectation::Data)]);
    bench.silence();
}

pub(crate) fn waiting_peers_are_accepted_in_order<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peers = [bench.world.connect(), bench.world.connect()];
    for (slot, peer) in (0..).zip(peers) {
        bench.say([accept(name(slot))]);
        assert_eq!(bench.next(), accepted(name(slot)));
        // These bytes come from this peer only.
        let chunk = bench.take(peer, name(slot), 5)[0];
        assert_eq!(bench.send(name(slot), chunk), 5);
        bench.read_all(peer, 5);
    }
}

pub(crate) fn no_free_file_leaves_the_peer_waiting<W: World>() {
    if !W::has_process_of_its_own() {
        return;
    }
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.world.connect();
    bench.world.use_up_files();
    for _ in 0..3 {
        bench.say([accept(name(0))]);
        let error = AcceptError::ProcessFiles;
        assert_eq!(bench.next(), Event::AcceptFailed { connection: name(0), error });
    }
    bench.world.free_files();
    bench.say([accept(name(0))]);
    assert_eq!(bench.next(), accepted(name(0)));
    assert_eq!(bench.take(peer, name(0), 5)[0].1, 5);
}

pub(crate) fn a_canceled_accept_answers<W: World>() {
    for backlog in BACKLOGS {
        let mut bench = Bench::<W>::new(ROOMY);
        bench.say([accept_by(name(0), backlog)]);
        bench.silence();
        bench.say([Op::CancelAccept { connection: name(0) }]);
        let error = AcceptError::Canceled;
        assert_eq!(bench.next(), Event::AcceptFailed { connection: name(0), error });
        // Its name is free again.
        let peer = bench.accept(name(0));
        assert_eq!(bench.take(peer, name(0), 5)[0].1, 5);
    }
}

pub(crate) fn a_cancel_may_lose_the_race<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.world.connect();
    bench.say([accept(name(0)), Op::CancelAccept { connection: name(0) }]);
    match bench.next() {
        Event::Accepted { .. } => {}
        Event::AcceptFailed { error: AcceptError::Canceled, .. } => {
            // The peer is still in the backlog.
            bench.say([accept(name(0))]);
            assert_eq!(bench.next(), accepted(name(0)));
        }
        other => panic!("{other:?}"),
    }
    bench.silence();
    assert_eq!(bench.take(peer, name(0), 5)[0].1, 5);
}

/// Goal: a listener that ends yields all connections of its backlog, and reports which one was the
/// last. Afterwards no peer can connect.
pub(crate) fn a_listener_that_ends_is_emptied<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peers = [bench.world.connect(), bench.world.connect()];
    bench.world.end_listener();
    let listener = ListenerId(0);
    for (slot, peer) in (0..).zip(peers) {
        bench.say([Op::AcceptWaiting { listener, connection: name(slot) }]);
        assert_eq!(bench.next(), accepted(name(slot)));
        let chunk = bench.take(peer, name(slot), 5)[0];
        assert_eq!(bench.send(name(slot), chunk), 5);
        bench.read_all(peer, 5);
    }
    let connection = name(2);
    let nobody = Event::AcceptFailed { connection, error: AcceptError::Empty };
    // A further accept gets the same answer, whether the listener is closed or not.
    for _ in 0..2 {
        bench.say([Op::AcceptWaiting { listener, connection }]);
        assert_eq!(bench.next(), nobody);
        bench.say([Op::CloseListener { listener }]);
        assert!(bench.world.refuses());
    }
    bench.silence();
}

/// Goal: an accept that waits when another worker closes the listener is answered.
pub(crate) fn an_armed_accept_ends_with_the_listener<W: World>() {
    for backlog in BACKLOGS {
        let mut bench = Bench::<W>::new(ROOMY);
        let connection = name(0);
        bench.say([accept_by(connection, backlog)]);
        bench.silence();
        bench.world.end_listener();
        bench.say([Op::CloseListener { listener: ListenerId(0) }]);
        let error = AcceptError::Empty;
        assert_eq!(bench.next(), Event::AcceptFailed { connection, error });
    }
}

/// Goal: from the moment at which sources are requested they are reported, also by an accept that
/// was armed before.
pub(crate) fn a_source_is_told_when_asked_for<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    bench.accept(name(0));
    assert_eq!(bench.world.kernel().peer_of(name(0)), W::SOURCE, "it was accepted before");
    bench.say([accept(name(1))]);
    bench.silence();
    bench.say([Op::ReportPeers]);
    for slot in 1..3 {
        let peer = bench.world.connect();
        if slot > 1 {
            bench.say([accept(name(slot))]);
        }
        assert_eq!(bench.next(), accepted_from(name(slot), W::SOURCE));
        assert_eq!(bench.take(peer, name(slot), 5)[0].1, 5);
    }
    bench.say([Op::OmitPeers]);
    bench.accept(name(3));
}

/// Goal: a peer that reset before it was accepted has no source any more. It is reported as gone,
/// and the connection id is free again.
pub(crate) fn a_source_that_is_gone_is_no_connection<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    bench.say([Op::ReportPeers]);
    let peer = bench.world.connect();
    bench.world.reset(peer);
    bench.say([accept(name(0))]);
    match (W::RESETS, bench.next()) {
        (Resets::Always, event) => {
            let error = AcceptError::Aborted;
            assert_eq!(event, Event::AcceptFailed { connection: name(0), error });
        }
        (Resets::WithUnreadBytes, event) => {
            assert_eq!(event, accepted_from(name(0), W::SOURCE));
            bench.say([Op::Close { connection: name(0) }]);
        }
    }
    bench.say([Op::OmitPeers]);
    bench.accept(name(0));
}

pub(crate) fn a_slot_serves_one_connection_after_another<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    for generation in 0..3 {
        let connection = ConnectionId::new(0, generation);
        let peer = bench.accept(connection);
        let chunk = bench.take(peer, connection, 7)[0];
        assert_eq!(bench.send(connection, chunk), 7);
        bench.world.finish(peer);
        bench.say([receive(connection, ReceiveMode::WhenReadable)]);
        assert!(matches!(bench.next(), Event::ReceiveEnded { .. }));
        bench.say([Op::Close { connection }]);
        bench.read_all(peer, 7);
        assert_eq!(bench.end(peer), End::Finished);
    }
    bench.silence();
}
