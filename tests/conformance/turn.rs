//! Scripts about the turn itself, and one about the whole.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echo_core::admission::SourceLimiter;
use echo_core::fullness::Fullness;
use echo_core::op::{Event, Kernel, Timestamp};
use echo_core::server::{Parameters, RuntimeLimits, Server};

use crate::bench::Bench;
use crate::world::{End, ROOMY, World};

pub(crate) fn a_turn_ends_at_its_deadline<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    for milliseconds in [1, 7, 30] {
        let deadline = bench.world.kernel().now().plus(milliseconds);
        let mut turns = 0;
        while bench.world.kernel().now() < deadline {
            let mut events = Vec::new();
            bench.world.kernel().turn(Some(deadline), &mut events).expect("the ring works");
            assert_eq!(events, []);
            turns += 1;
        }
        assert!(turns <= 2, "{turns} turns until a deadline: somebody spins");
    }
}

pub(crate) fn a_turn_in_the_past_does_not_wait<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let began = Instant::now();
    for _ in 0..100 {
        let mut events = Vec::new();
        bench.world.kernel().turn(Some(Timestamp(0)), &mut events).expect("the ring works");
        assert_eq!(events, []);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "turns in the past wait");
}

pub(crate) fn a_turn_can_be_woken<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    // Twice: the wake-up must be armed again.
    for _ in 0..2 {
        bench.world.wake_soon();
        let mut events = Vec::new();
        bench.world.kernel().turn(None, &mut events).expect("the ring works");
        assert_eq!(events, []);
    }
}

/// Goal: a deadline holds whatever was waited for before. Method: a wait for a far one is broken
/// off, and near ones follow.
pub(crate) fn a_near_deadline_holds_after_a_far_one<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let mut events = Vec::new();
    let far = bench.world.kernel().now().plus(3_600_000);
    bench.world.wake_soon();
    bench.world.kernel().turn(Some(far), &mut events).expect("the ring works");
    for milliseconds in [40, 5, 20] {
        let began = bench.world.kernel().now();
        let deadline = began.plus(milliseconds);
        let mut turns = 0;
        while bench.world.kernel().now() < deadline {
            bench.world.kernel().turn(Some(deadline), &mut events).expect("the ring works");
            turns += 1;
        }
        assert!(turns <= 2, "{turns} turns until a deadline: somebody spins");
        let waited = bench.world.kernel().now().0 - began.0;
        assert!(waited < milliseconds + 2_000, "{waited} ms instead of {milliseconds}");
    }
    assert_eq!(events, []);
}

/// The loop of `worker`, peers at its other end: everything comes back, and the drain leaves
/// nothing.
pub(crate) fn the_core_echoes_and_drains<W: World>() {
    for &receive_mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let mut server = Server::new(Parameters {
            listeners: 1,
            buffers: ROOMY.buffers,
            buffer_sizes: ROOMY.buffer_sizes,
            receive_mode,
            linger_timeout: 5_000,
            limiter: Arc::new(SourceLimiter::new(RandomState::new())),
            budget: bench.world.budget(),
            fullness: Arc::new(Fullness::new(1)),
            runtime_limits: RuntimeLimits {
                connections_max: 2,
                idle_timeout: Some(60_000),
                stall_timeout: Some(60_000),
                lifetime: None,
                bytes_max: None,
                keepalive: None,
                rules: Arc::default(),
            },
        });
        let peers = [bench.world.connect(), bench.world.connect(), bench.world.connect()];
        let mut events = vec![Event::Started];
        let (mut sent, mut echoed) = ([0; 3], [0; 3]);
        let mut finished = [false; 3];
        const TOTAL: usize = 60_000;
        let began = Instant::now();
        let mut draining = false;
        while !server.is_drained() {
            assert!(began.elapsed() < Duration::from_secs(20), "{sent:?} written, {echoed:?} back");
            step(&mut bench, &mut server, &mut events);
            for (index, peer) in peers.into_iter().enumerate() {
                echoed[index] += bench.world.read(peer, 3000);
                if sent[index] < TOTAL && sent[index] - echoed[index] < 6000 {
                    bench.world.write(peer, 1500);
                    sent[index] += 1500;
                } else if echoed[index] == TOTAL && !finished[index] && index > 0 {
                    finished[index] = true;
                    bench.world.finish(peer);
                }
            }
            if echoed == [TOTAL; 3] && !draining {
                draining = true;
                events.push(Event::DrainStarted { deadline: bench.world.kernel().now().plus(20) });
            }
            // The first peer stays until the drain ends it.
            if draining && !finished[0] && bench.world.end(peers[0]) == End::Finished {
                finished[0] = true;
                bench.world.finish(peers[0]);
            }
        }
        let stats = server.stats();
        let traffic = &stats.traffic;
        assert_eq!((traffic.bytes_in, traffic.bytes_out), (3 * TOTAL as u64, 3 * TOTAL as u64));
        assert_eq!((traffic.accepted, traffic.closed_total(), stats.buffers_lent), (3, 3, 0));
    }
}

fn step<W: World>(bench: &mut Bench<W>, server: &mut Server, events: &mut Vec<Event>) {
    let kernel = bench.world.kernel();
    let mut ops = Vec::new();
    let now = kernel.now();
    for event in events.drain(..).chain([Event::TimePassed]) {
        server.handle(now, event, &mut ops);
        server.check_invariants();
        kernel.submit(&mut ops);
    }
    kernel.turn(Some(now.plus(1)), events).expect("the ring works");
}
