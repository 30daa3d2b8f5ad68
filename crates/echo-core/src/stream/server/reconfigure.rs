//! The effect of changed limits and timeouts on open and future connections.

use super::*;
use crate::admission::IpSet;
use crate::limits;
use crate::op::Shutdown;
use crate::parameters::RuntimeLimits;
use crate::reason::{AcceptError, ConnectionError, ReceiveEnd};
use crate::stream::resources::tests::{accepted, small};

const HOUR: u64 = 3_600_000;

fn runtime_limits(connections_max: usize, idle_timeout: Option<u64>) -> RuntimeLimits {
    RuntimeLimits { idle_timeout, ..RuntimeLimits::unlimited(connections_max as u32) }
}

/// A server with `connections` connections, all accepted at `now`.
fn server_with(
    now: Timestamp,
    connections: usize,
    runtime_limits: RuntimeLimits,
) -> (Server, Vec<Op>) {
    let parameters = small(1, runtime_limits.connections_max);
    let mut server =
        Server::new(Parameters { linger_timeout: 16_000, runtime_limits, ..parameters });
    let mut ops = Vec::new();
    server.start(now, &mut ops);
    for _ in 0..connections {
        accept(&mut server, now, &mut ops);
    }
    (server, ops)
}

fn accept(server: &mut Server, now: Timestamp, ops: &mut Vec<Op>) {
    let armed = ops.iter().rev().find_map(|op| {
        if let Op::Accept { connection, .. } = op { Some(*connection) } else { None }
    });
    let connection = armed.expect("an accept is armed");
    ops.clear();
    server.handle(now, accepted(connection, PeerAddr::Unknown), ops);
}

fn is_accept(op: &Op) -> bool {
    matches!(op, Op::Accept { .. })
}

/// How many connections each turn at `now` ended, until the server has nothing more to do.
fn ends(server: &mut Server, now: Timestamp) -> Vec<usize> {
    let mut counts = Vec::new();
    while server.wake().is_due(now) {
        let mut ops = Vec::new();
        server.tick(now, &mut ops);
        let is_fin = |op: &&Op| matches!(op, Op::Shutdown { how: Shutdown::Write, .. });
        counts.push(ops.iter().filter(is_fin).count());
    }
    server.check_invariants();
    counts
}

/// Goal: a shorter timeout ends many connections that have been silent for longer, and no single
/// turn does much of that work.
#[test]
fn a_shorter_timeout_ends_many_connections_in_short_turns() {
    const CONNECTIONS: usize = 2 * limits::SWEEP_SLOTS_MAX + 1;
    let (mut server, _) =
        server_with(Timestamp(0), CONNECTIONS, runtime_limits(CONNECTIONS, Some(HOUR)));
    let now = Timestamp(50_000);
    ends(&mut server, now);
    server.reconfigure(now, runtime_limits(CONNECTIONS, Some(40_000)));
    assert_eq!(ends(&mut server, now), [limits::SWEEP_SLOTS_MAX, limits::SWEEP_SLOTS_MAX, 1]);
}

/// Goal: a connection that has time left by the new timeout stays until then and no longer,
/// regardless of the resolution of the wheel before. Method: every pair of timeouts, including the
/// one that is off.
#[test]
fn a_new_timeout_is_kept_to_a_fraction_of_it() {
    let timeouts = [Some(200), Some(3_000), Some(50_000), Some(HOUR), None];
    for before in timeouts {
        for after in timeouts.into_iter().flatten() {
            let (mut server, _) = server_with(Timestamp(0), 3, runtime_limits(5, before));
            let moment = Timestamp(100);
            ends(&mut server, moment);
            server.reconfigure(moment, runtime_limits(5, Some(after)));
            let mut ended_at = None;
            while ended_at.is_none() {
                let next = match server.wake() {
                    Wake::Now => moment,
                    Wake::At(next) => next.max(moment),
                    Wake::Never => panic!("no timer is set"),
                };
                let count: usize = ends(&mut server, next).iter().sum();
                ended_at = (count == 3).then_some(next.0);
            }
            let late = ended_at.expect("it ended").checked_sub(after);
            let late = late.unwrap_or_else(|| panic!("{before:?} to {after}: too early"));
            // A tick, and the rounding of moments to the 16 ms in which progress is counted.
            let tolerance = (after / 16).clamp(10, 1_000) + 32;
            assert!(late <= tolerance, "{before:?} to {after}: {late} ms late");
        }
    }
}

/// Goal: a timeout that is switched off ends no connection, although timers for it are set.
#[test]
fn a_timeout_switched_off_ends_no_connection() {
    let (mut server, _) = server_with(Timestamp(0), 3, runtime_limits(5, Some(1_000)));
    server.reconfigure(Timestamp(999), runtime_limits(5, None));
    // The second moment looks like a pause of the process.
    for moment in [HOUR, HOUR + limits::PAUSE_GRACE_MS] {
        assert_eq!(ends(&mut server, Timestamp(moment)).iter().sum::<usize>(), 0);
    }
    assert_eq!(server.wake(), Wake::Never);
}

/// Goal: less capacity ends no connection, but none is accepted until there is room by the new
/// number.
#[test]
fn less_capacity_ends_no_connection_and_more_is_used_at_once() {
    let now = Timestamp(0);
    let (mut server, mut ops) = server_with(now, 3, runtime_limits(4, None));
    assert!(ops.iter().any(is_accept), "there is room for a fourth");
    server.reconfigure(now, runtime_limits(2, None));
    ops.clear();
    server.tick(now, &mut ops);
    let Some(&Op::CancelAccept { connection }) = ops.first() else {
        panic!("the accept is canceled: {ops:?}")
    };
    assert_eq!(server.stats().connections, 3);
    let error = AcceptError::Canceled;
    ops.clear();
    server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
    assert!(!ops.iter().any(is_accept), "three are more than two: {ops:?}");
    for (slot, is_room) in [(0, false), (1, true)] {
        let connection = ConnectionId::new(slot, 0);
        let reason = ReceiveEnd::Failed(ConnectionError::Reset);
        server.handle(now, Event::ReceiveEnded { connection, reason }, &mut ops);
        assert_eq!(ops.iter().any(is_accept), is_room, "{:?}", server.stats().connections);
    }
    server.reconfigure(now, runtime_limits(1_000, None));
    server.tick(now, &mut ops);
    for _ in 1..1_000 {
        accept(&mut server, now, &mut ops);
    }
    assert_eq!(server.stats().connections, 1_000);
    assert!(!ops.iter().any(is_accept), "all capacity is taken again: {ops:?}");
    server.check_invariants();
}

/// Goal: no timeout is late by more than a sixteenth, a second, or the shortest tick.
#[test]
fn the_tick_is_a_fraction_of_the_shortest_timeout() {
    let tick = |change: fn(&mut Parameters)| {
        let mut parameters = Parameters { linger_timeout: 80_000, ..small(1, 1) };
        change(&mut parameters);
        parameters.tick_ms()
    };
    assert_eq!(tick(|_| ()), 1_000);
    assert_eq!(tick(|it| it.linger_timeout = 8_000), 500);
    assert_eq!(tick(|it| it.runtime_limits.idle_timeout = Some(1_600)), 100);
    assert_eq!(tick(|it| it.runtime_limits.stall_timeout = Some(3_200)), 200);
    assert_eq!(tick(|it| it.runtime_limits.lifetime = Some(320)), 20);
    assert_eq!(
        tick(|it| it.runtime_limits.keepalive = Some(Keepalive { silence: 4_800, burst: 1 })),
        300
    );
    assert_eq!(tick(|it| it.linger_timeout = 16), 10);
    // The time for a header counts only where there is one.
    assert_eq!(tick(|it| it.preface_timeout = 1_600), 1_000);
    assert_eq!(
        tick(|it| {
            it.preface_timeout = 1_600;
            it.proxies = Arc::new([Some(IpSet::default())]);
        }),
        100
    );
}
