//! The end of a drain with many connections.

use alloc::vec::Vec;

use super::*;
use crate::limits;
use crate::op::Shutdown;
use crate::stream::resources::tests::{accepted, small};

const CONNECTIONS: usize = 2 * limits::SWEEP_SLOTS_MAX + 1;
const LINGER: u64 = 100;

/// A server with [`CONNECTIONS`] open connections that has just been told to drain at once.
fn draining(now: Timestamp) -> Server {
    let parameters = small(1, CONNECTIONS as u32);
    let mut server = Server::new(Parameters { linger_timeout: LINGER, ..parameters });
    let mut ops = Vec::new();
    server.start(now, &mut ops);
    for _ in 0..CONNECTIONS {
        let Some(&Op::Accept { connection, .. }) = ops.last() else {
            panic!("there is capacity: {ops:?}")
        };
        ops.clear();
        let peer = PeerAddr::Unknown;
        server.handle(now, accepted(connection, peer), &mut ops);
    }
    server.drain(now, now, &mut ops);
    server
}

/// How many connections get a FIN in the next turn, and how many are reset.
fn turn(server: &mut Server, now: Timestamp) -> (usize, usize) {
    let mut ops = Vec::new();
    server.tick(now, &mut ops);
    let count = |wanted| {
        ops.iter().filter(|op| matches!(op, Op::Shutdown { how, .. } if *how == wanted)).count()
    };
    (count(Shutdown::Write), count(Shutdown::Both))
}

/// Goal: a worker with many connections ends them in several short turns, each immediately after
/// the other, so that it does not appear stalled. Method: count the FINs of each turn.
#[test]
fn the_end_of_a_drain_is_spread_over_turns() {
    let now = Timestamp(1);
    let mut server = draining(now);
    let mut turns = Vec::new();
    while server.wake().is_due(now) {
        turns.push(turn(&mut server, now));
    }
    let sweep = limits::SWEEP_SLOTS_MAX;
    assert_eq!(turns, [(sweep, 0), (sweep, 0), (1, 0)]);
    assert_eq!(server.wake(), Wake::At(now.plus(LINGER)));
    server.check_invariants();
}

/// Goal: the last peer that gets a FIN has as long to answer as the first. Method: each turn takes
/// as long as a peer may linger, as with a million connections on a slow machine.
#[test]
fn a_drain_of_many_gives_up_no_connection_before_its_time() {
    let mut now = Timestamp(1);
    let mut server = draining(now);
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(turn(&mut server, now));
        now = now.plus(LINGER);
    }
    let sweep = limits::SWEEP_SLOTS_MAX;
    let fins: Vec<usize> = turns.iter().map(|&(fins, _)| fins).collect();
    assert_eq!(fins, [sweep, sweep, 1], "every peer gets a FIN");
    let given_up: usize = turns.iter().map(|&(_, given_up)| given_up).sum();
    assert!(given_up <= sweep, "{given_up} given up, when the time of {sweep} is over");
    server.check_invariants();
}

/// Goal: the drain is over when the time since its last FIN is, and not since the first. Method:
/// FINs in three turns, a little apart; the timers of the first connections fire by themselves.
#[test]
fn a_drain_is_not_over_before_the_time_of_the_last_fin_is() {
    let mut server = draining(Timestamp(1));
    for (moment, given_up) in [(1, 0), (51, 0), (101, 0), (130, limits::SWEEP_SLOTS_MAX), (140, 0)]
    {
        assert_eq!(turn(&mut server, Timestamp(moment)).1, given_up, "at {moment}");
    }
}

/// Goal: a worker without a share of the capacity, as there are when `max-connections` is below the
/// number of workers, does not delay a drain: other workers empty the listeners that end.
#[test]
fn a_worker_without_capacity_leaves_backlogs_to_others() {
    let now = Timestamp(1);
    let mut server = Server::new(small(2, 0));
    let mut ops = Vec::new();
    server.start(now, &mut ops);
    server.end_listener(now, ListenerId(0), &mut ops);
    server.drain(now, now.plus(60_000), &mut ops);
    assert!(server.is_drained());
    server.end_listener(now, ListenerId(1), &mut ops);
    assert!(server.is_drained());
    assert_eq!(ops, [], "a listener is closed only when it is empty");
}
