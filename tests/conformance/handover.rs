//! Scripts about a handover: canceling a send, releasing a connection, continuing it.

use std::time::{Duration, Instant};

use echo_core::command::Command;
use echo_core::kernel::Kernel;
use echo_core::op::{CloseReason, Op, ReceiveMode};
use echo_core::worker::{Status, Worker};

use crate::bench::{Bench, Brief, name, parameters, receive};
use crate::world::{ROOMY, World};

pub(crate) fn a_canceled_send_loses_no_bytes<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (written, mut spilled) = bench.block(peer, name(0));
    for _ in 0..3 {
        spilled = bench.take_back(name(0), spilled);
        bench.silence();
        bench.say([Op::SendSpilled { connection: name(0) }]);
    }
    let read = bench.flush(peer, name(0), spilled);
    bench.read_all(peer, written - read);
    // A cancel that comes too late has no effect.
    bench.say([Op::CancelSend { connection: name(0) }]);
    bench.silence();
}

pub(crate) fn what_one_kernel_releases_another_imports<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (written, spilled) = bench.block(peer, name(0));
    let spilled = bench.take_back(name(0), spilled);
    // Bytes that were not received yet stay in the socket.
    bench.world.write(peer, 70);
    bench.world.hand_over(&[(name(0), name(5))]);
    bench.silence();
    bench.say([Op::SendSpilled { connection: name(5) }]);
    let read = bench.flush(peer, name(5), spilled);
    bench.read_all(peer, written - read);
    bench.say([receive(name(5), ReceiveMode::WhenReadable)]);
    let (chunk, ..) = bench.received();
    assert_eq!(bench.send(name(5), chunk), 70);
    bench.read_all(peer, 70);
}

/// Goal: the echo is exact whatever a connection is doing when its process is replaced. Method:
/// three peers, one of which seldom reads, and a handover every few turns.
pub(crate) fn the_core_hands_over_in_mid_transfer<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peers = [bench.world.connect(), bench.world.connect(), bench.world.connect()];
        let mut worker = Worker::new(parameters(mode, bench.world.budget(), 3));
        worker.start(bench.world.kernel()).expect("the ring works");
        let mut command = None;
        let (mut written, mut echoed) = ([0; 3], [0; 3]);
        const TOTAL: usize = 120_000;
        let (began, mut turn, mut handed_over, mut unsent) = (Instant::now(), 0, 0, 0);
        while echoed != [TOTAL; 3] {
            assert!(began.elapsed() < Duration::from_secs(20), "{written:?} in, {echoed:?} back");
            turn += 1;
            if turn % 7 == 0 && worker.stats().connections == 3 {
                let deadline = bench.world.kernel().now().plus(5_000);
                command = Some(Command::HandOver { deadline });
            }
            let status = worker.step(&mut Brief(bench.world.kernel()), command.take());
            if status.expect("the ring works") == Status::Quiescent {
                handed_over += 1;
                unsent += succeed(&mut bench, &mut worker, mode);
            }
            for (index, peer) in peers.into_iter().enumerate() {
                // The first one reads late.
                if index > 0 || turn % 20 == 0 || written[0] == TOTAL {
                    echoed[index] += bench.world.read(peer, 9000);
                }
                let under_way = written[index] - echoed[index];
                if written[index] < TOTAL && under_way < [30_000, 9000, 9000][index] {
                    bench.world.write(peer, 1500);
                    written[index] += 1500;
                }
            }
        }
        assert!(handed_over > 5, "only {handed_over} handovers");
        assert!(unsent > 0, "no byte was ever left to the next process");
        worker.check_invariants();
    }
}

/// Another worker on another kernel continues. Returns how many unsent bytes it got.
fn succeed<W: World>(bench: &mut Bench<W>, worker: &mut Worker, mode: ReceiveMode) -> u32 {
    let released = worker.release(bench.world.kernel().now());
    let stats = worker.stats();
    assert_eq!((released.len(), stats.traffic.closed[CloseReason::HandedOver as usize]), (3, 3));
    assert_eq!((stats.connections, stats.buffers_lent, stats.spilled_bytes), (0, 0, 0));
    *worker = Worker::new(parameters(mode, bench.world.budget(), 3));
    let renamed: Vec<_> = released.iter().map(|(old, _)| (*old, worker.reserve_slot())).collect();
    bench.world.hand_over(&renamed);
    for ((_, connection), (_, transfer)) in renamed.into_iter().zip(&released) {
        worker.import(bench.world.kernel(), connection, W::SOURCE, *transfer);
    }
    worker.start(bench.world.kernel()).expect("the ring works");
    released.iter().map(|(_, transfer)| transfer.unsent).sum()
}
