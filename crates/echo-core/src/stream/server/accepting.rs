//! Accepting: how many accepts are armed, and how a listener ends.

use alloc::vec::Vec;

use super::*;
use crate::fullness::Fullness;
use crate::limits;
use crate::reason::{AcceptError, ReceiveEnd};
use crate::stream::resources::tests::{accepted, small};

fn server(listeners: u16, capacity: u32) -> Server {
    Server::new(small(listeners, capacity))
}

fn accepts(ops: &mut Vec<Op>) -> Vec<u16> {
    let listener = |op| if let Op::Accept { listener, .. } = op { Some(listener.0) } else { None };
    ops.drain(..).filter_map(listener).collect()
}

/// Goal: no connection waits for capacity as long as clients come one by one. Method: two
/// listeners and capacity for one, turn by turn.
#[test]
fn listeners_do_not_race_for_the_last_capacity() {
    let mut server = server(2, 1);
    let (now, mut ops) = (Timestamp(1), Vec::new());
    server.start(now, &mut ops);
    server.tick(now, &mut ops);
    assert_eq!(accepts(&mut ops), [0]);
    assert_eq!(server.wake(), Wake::Now, "the other one is armed soon");
    server.tick(now, &mut ops);
    assert_eq!(accepts(&mut ops), [1]);
    assert_ne!(server.wake(), Wake::Now);
}

/// Goal: an accept is tried at once exactly while the backlog may hold a connection. A try in vain
/// costs as much as the socket of a connection.
#[test]
fn an_accept_waits_for_a_connection_when_the_backlog_was_empty() {
    let mut server = server(1, 9);
    let (now, mut ops) = (Timestamp(1), Vec::new());
    server.start(now, &mut ops);
    let mut told = Vec::new();
    let peer = PeerAddr::Unknown;
    for answer in [Some(Expectation::Data), Some(Expectation::Silence), None] {
        let accept = ops.iter().find_map(|&op| {
            let Op::Accept { connection, backlog, .. } = op else { return None };
            Some((connection, backlog))
        });
        let (connection, expected) = accept.expect("an accept is armed");
        told.push(expected);
        ops.clear();
        let event = match answer {
            Some(backlog) => Event::Accepted { connection, peer, backlog },
            None => Event::AcceptFailed { connection, error: AcceptError::Aborted },
        };
        server.handle(now, event, &mut ops);
    }
    let last = |op: &Op| matches!(op, Op::Accept { backlog: Expectation::Data, .. });
    assert!(ops.iter().any(last), "{ops:?}");
    assert_eq!(told, [Expectation::Data, Expectation::Data, Expectation::Silence]);
}

/// Goal: a worker accepts only from the listeners that it was assigned. It empties all listeners
/// that end, including those of other workers.
#[test]
fn a_worker_accepts_from_its_own_listeners() {
    let mut server = server(2, 9);
    server.accept_from(&[true, false]);
    let (now, mut ops) = (Timestamp(1), Vec::new());
    server.start(now, &mut ops);
    server.tick(now, &mut ops);
    assert_eq!(accepts(&mut ops), [0]);
    server.accept_from(&[false, true]);
    server.use_capacity(now, &mut ops);
    let connection = server.listeners.armed(ListenerId(1)).expect("the other one is armed");
    assert!(matches!(ops[..], [Op::Accept { .. }, Op::CancelAccept { .. }]), "{ops:?}");
    ops.clear();
    server.handle(now, accepted(connection, PeerAddr::Unknown), &mut ops);
    assert_eq!(accepts(&mut ops), [1]);
    let Some(canceled) = server.listeners.with_kernel(ListenerId(0)) else { panic!("canceled") };
    let error = AcceptError::Canceled;
    server.handle(now, Event::AcceptFailed { connection: canceled, error }, &mut ops);
    assert_eq!(accepts(&mut ops), [] as [u16; 0]);
    server.end_listener(now, ListenerId(0), &mut ops);
    assert!(matches!(ops[..], [Op::AcceptWaiting { listener: ListenerId(0), .. }]), "{ops:?}");
}

/// Two workers that share the capacity.
fn pair(shares: [u32; 2]) -> [Server; 2] {
    let fullness = Arc::new(Fullness::new(2));
    shares.map(|share| {
        let fullness = Arc::clone(&fullness);
        let mut server = Server::new(Parameters { fullness, ..small(1, share) });
        server.start(Timestamp(1), &mut Vec::new());
        server
    })
}

/// Accepts one more client. Returns how often all capacity was taken so far.
fn accept(server: &mut Server) -> u64 {
    let connection = server.listeners.armed(ListenerId(0)).expect("an accept is armed");
    server.handle(Timestamp(1), accepted(connection, PeerAddr::Unknown), &mut Vec::new());
    server.stats().full
}

/// Goal: "all capacity was taken" is counted exactly when no worker has any left. A worker without
/// free capacity does not count while another has some, nor does one without any share.
#[test]
fn capacity_is_taken_when_no_worker_has_any() {
    let mut workers = pair([2, 1]);
    assert_eq!(accept(&mut workers[1]), 0, "the other one has room for two");
    assert_eq!(accept(&mut workers[0]), 0);
    assert_eq!(accept(&mut workers[0]), 1, "now they are all taken");

    let mut workers = pair([1, 0]);
    assert_eq!(workers.each_ref().map(|worker| worker.stats().full), [0, 0], "none is free");
    assert_eq!(accept(&mut workers[0]), 1);
    // Capacity becomes free, and is taken once more.
    for capacity in [2, 1] {
        let parameters = small(1, capacity);
        workers[0].reconfigure(Timestamp(2), parameters.runtime_limits);
        workers[0].tick(Timestamp(2), &mut Vec::new());
    }
    assert_eq!(workers[0].stats().full, 2);

    let mut workers = pair([1, 0]);
    let deadline = Timestamp(100);
    workers[1].drain(Timestamp(2), deadline, &mut Vec::new());
    assert_eq!(accept(&mut workers[0]), 0, "one that drains has not taken capacity");
}

#[test]
fn with_room_all_are_armed_at_once() {
    let mut server = server(3, 3);
    let mut ops = Vec::new();
    server.start(Timestamp(1), &mut ops);
    assert_eq!(accepts(&mut ops), [0, 1, 2]);
}

/// Goal: an accept that finds its peer gone is armed again at once, but not without end.
#[test]
fn accepts_that_keep_finding_their_peer_gone_back_off() {
    let mut server = server(1, 4);
    let (now, mut ops) = (Timestamp(1), Vec::new());
    server.start(now, &mut ops);
    let mut tries = 0;
    while let Some(Op::Accept { connection, .. }) = ops.pop() {
        tries += 1;
        let error = AcceptError::Aborted;
        server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
        server.tick(now, &mut ops);
    }
    assert_eq!(tries, limits::ACCEPT_ABORTS_MAX);
    assert_eq!(server.wake(), Wake::At(now.plus(limits::ACCEPT_BACKOFF_MS)));
}

/// The operations on the listener, one at a time.
fn only(ops: &mut Vec<Op>) -> Op {
    let op = ops.pop().expect("an operation");
    assert!(ops.is_empty(), "{op:?} and {ops:?}");
    op
}

/// Goal: a listener that ends is emptied and then closed, even if a drain or handover begins
/// meanwhile. The drain is not over before that. After a repeated command the listener is examined
/// again.
#[test]
fn a_listener_that_ends_is_emptied_and_closed() {
    let mut server = server(1, 1);
    let (now, mut ops) = (Timestamp(1), Vec::new());
    server.start(now, &mut ops);
    let Op::Accept { listener, connection, .. } = only(&mut ops) else { panic!("an accept") };
    server.end_listener(now, listener, &mut ops);
    assert_eq!(only(&mut ops), Op::CancelAccept { connection });
    server.drain(now, now.plus(1_000), &mut ops);
    let error = AcceptError::Canceled;
    server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
    let Op::AcceptWaiting { connection, .. } = only(&mut ops) else { panic!("it is emptied") };
    server.handle(now, accepted(connection, PeerAddr::Unknown), &mut ops);
    // It has taken all capacity: the next one waits in the backlog until it is free.
    assert!(ops.iter().all(|op| matches!(op, Op::Receive { .. })), "{ops:?}");
    ops.clear();
    let reason = ReceiveEnd::EndOfStream;
    server.handle(now, Event::ReceiveEnded { connection, reason }, &mut ops);
    let Some(Op::AcceptWaiting { connection, .. }) = ops.pop() else { panic!("{ops:?}") };
    assert!(!server.is_drained(), "a connection may wait");
    ops.clear();
    let error = AcceptError::Empty;
    server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
    assert_eq!(only(&mut ops), Op::CloseListener { listener });
    assert!(server.is_drained());
    server.end_listener(now, listener, &mut ops);
    assert!(matches!(only(&mut ops), Op::AcceptWaiting { .. }));
    assert!(!server.is_drained());
}

/// Goal: another worker may close a listener before this one gets the command to end it. This
/// worker then neither spins nor waits for that listener.
#[test]
fn a_listener_that_another_worker_has_closed_is_left_alone() {
    let mut server = server(1, 1);
    let (now, mut ops) = (Timestamp(1), Vec::new());
    server.start(now, &mut ops);
    let Op::Accept { listener, connection, .. } = only(&mut ops) else { panic!("an accept") };
    let error = AcceptError::Empty;
    server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
    assert_eq!(ops, []);
    server.end_listener(now, listener, &mut ops);
    let Op::AcceptWaiting { connection, .. } = only(&mut ops) else { panic!("it is emptied") };
    server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
    assert_eq!(only(&mut ops), Op::CloseListener { listener });
    assert_eq!(server.stats().unexpected_errors, 0);
}
