//! Scripts about the turn itself, and one of the core with the kernel.

use std::time::{Duration, Instant};

use echo_core::command::Command;
use echo_core::kernel::{Kernel, Wake};
use echo_core::op::Timestamp;
use echo_core::worker::{Status, Worker};

use crate::bench::{Bench, Brief, parameters};
use crate::world::{End, ROOMY, World};

pub(crate) fn a_turn_ends_at_its_deadline<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    for milliseconds in [1, 7, 30] {
        let deadline = bench.world.kernel().now().plus(milliseconds);
        let mut turns = 0;
        while bench.world.kernel().now() < deadline {
            let mut events = Vec::new();
            bench.world.kernel().turn(Wake::At(deadline), &mut events).expect("the ring works");
            assert_eq!(events, []);
            turns += 1;
        }
        assert!(turns <= 2, "{turns} turns until a deadline: it spins");
    }
}

pub(crate) fn a_turn_in_the_past_does_not_wait<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let began = Instant::now();
    for _ in 0..100 {
        let mut events = Vec::new();
        bench.world.kernel().turn(Wake::At(Timestamp(0)), &mut events).expect("the ring works");
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
        bench.world.kernel().turn(Wake::Never, &mut events).expect("the ring works");
        assert_eq!(events, []);
    }
}

/// Goal: a deadline applies whatever the previous one was. Method: a wait with a far deadline is
/// interrupted, and near ones follow.
pub(crate) fn a_near_deadline_holds_after_a_far_one<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let mut events = Vec::new();
    let far = bench.world.kernel().now().plus(3_600_000);
    bench.world.wake_soon();
    bench.world.kernel().turn(Wake::At(far), &mut events).expect("the ring works");
    for milliseconds in [40, 5, 20] {
        let began = bench.world.kernel().now();
        let deadline = began.plus(milliseconds);
        let mut turns = 0;
        while bench.world.kernel().now() < deadline {
            bench.world.kernel().turn(Wake::At(deadline), &mut events).expect("the ring works");
            turns += 1;
        }
        assert!(turns <= 2, "{turns} turns until a deadline: it spins");
        let waited = bench.world.kernel().now().0 - began.0;
        assert!(waited < milliseconds + 2_000, "{waited} ms instead of {milliseconds}");
    }
    assert_eq!(events, []);
}

/// The worker's loop with peers: every byte comes back, and the drain leaves no connection.
pub(crate) fn the_core_echoes_and_drains<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let mut worker = Worker::new(parameters(mode, bench.world.budget(), 2));
        let peers = [bench.world.connect(), bench.world.connect(), bench.world.connect()];
        worker.start(bench.world.kernel()).expect("the ring works");
        let (mut sent, mut echoed) = ([0; 3], [0; 3]);
        let mut finished = [false; 3];
        const TOTAL: usize = 60_000;
        let began = Instant::now();
        let mut draining = false;
        let mut command = None;
        loop {
            assert!(began.elapsed() < Duration::from_secs(20), "{sent:?} written, {echoed:?} back");
            let status = worker.step(&mut Brief(bench.world.kernel()), command.take());
            worker.check_invariants();
            if status.expect("the ring works") == Status::Drained {
                break;
            }
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
                let deadline = bench.world.kernel().now().plus(20);
                command = Some(Command::Drain { deadline });
            }
            // The first peer stays until the drain ends it.
            if draining && !finished[0] && bench.world.end(peers[0]) == End::Finished {
                finished[0] = true;
                bench.world.finish(peers[0]);
            }
        }
        let stats = worker.stats();
        let traffic = &stats.traffic;
        assert_eq!((traffic.bytes_in, traffic.bytes_out), (3 * TOTAL as u64, 3 * TOTAL as u64));
        assert_eq!((traffic.accepted, traffic.closed_total(), stats.buffers_lent), (3, 3, 0));
    }
}
