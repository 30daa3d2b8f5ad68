//! Scripts about a hand-over: taking a send back, giving a connection away, going on with it.

use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use echo_core::admission::SourceLimiter;
use echo_core::fullness::Fullness;
use echo_core::op::Budget;
use echo_core::op::{Event, Kernel, Op, ReceiveMode, Timestamp};
use echo_core::server::{CloseReason, Parameters, RuntimeLimits, Server};

use crate::bench::{Bench, name, receive};
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
    // One that comes too late harms nothing.
    bench.say([Op::CancelSend { connection: name(0) }]);
    bench.silence();
}

pub(crate) fn what_one_kernel_releases_another_imports<W: World>() {
    let mut bench = Bench::<W>::new(ROOMY);
    let peer = bench.accept(name(0));
    let (written, spilled) = bench.block(peer, name(0));
    let spilled = bench.take_back(name(0), spilled);
    // Bytes that nobody received yet stay with the socket.
    bench.world.write(peer, 70);
    bench.world.hand_over(&[(name(0), name(5))]);
    bench.silence();
    bench.say([Op::SendSpilled { connection: name(5) }]);
    let read = bench.flush(peer, name(5), spilled);
    bench.read_all(peer, written - read);
    bench.say([receive(name(5), ReceiveMode::Once)]);
    let (chunk, ..) = bench.received();
    assert_eq!(bench.send(name(5), chunk), 70);
    bench.read_all(peer, 70);
}

/// Goal: byte for byte, whatever a connection is doing when its process is replaced. Method: three
/// peers, of which one reads seldom, and a handover every few turns.
pub(crate) fn the_core_hands_over_in_mid_transfer<W: World>() {
    for &mode in W::modes() {
        let mut bench = Bench::<W>::new(ROOMY);
        let peers = [bench.world.connect(), bench.world.connect(), bench.world.connect()];
        let mut server = Server::new(parameters(mode, bench.world.budget()));
        let mut events = vec![Event::Started];
        let (mut written, mut echoed) = ([0; 3], [0; 3]);
        const TOTAL: usize = 120_000;
        let (began, mut turn, mut handed_over, mut unsent) = (Instant::now(), 0, 0, 0);
        while echoed != [TOTAL; 3] {
            assert!(began.elapsed() < Duration::from_secs(20), "{written:?} in, {echoed:?} back");
            turn += 1;
            if turn % 7 == 0 && server.stats().connections == 3 {
                let deadline = bench.world.kernel().now().plus(5_000);
                events.push(Event::HandOverStarted { deadline });
            }
            step(&mut bench, &mut server, &mut events);
            if server.is_quiescent() {
                handed_over += 1;
                unsent += succeed(&mut bench, &mut server, mode, &mut events);
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
        server.check_invariants();
    }
}

fn parameters(receive_mode: ReceiveMode, budget: Arc<dyn Budget>) -> Parameters {
    Parameters {
        listeners: 1,
        runtime_limits: RuntimeLimits {
            connections_max: 3,
            idle_timeout: Some(60_000),
            stall_timeout: Some(60_000),
            lifetime: None,
            bytes_max: None,
            keepalive: None,
            rules: Arc::default(),
        },
        buffers: ROOMY.buffers,
        buffer_sizes: ROOMY.buffer_sizes,
        receive_mode,
        linger_timeout: 5_000,
        limiter: Arc::new(SourceLimiter::new(RandomState::new())),
        budget,
        fullness: Arc::new(Fullness::new(1)),
    }
}

fn step<W: World>(bench: &mut Bench<W>, server: &mut Server, events: &mut Vec<Event>) {
    let now = bench.world.kernel().now();
    let mut ops = Vec::new();
    for event in events.drain(..).chain([Event::TimePassed]) {
        server.handle(now, event, &mut ops);
        bench.world.kernel().submit(&mut ops);
    }
    let soon: Timestamp = now.plus(1);
    bench.world.kernel().turn(Some(soon), events).expect("the ring works");
}

/// Another server on another kernel goes on. Returns how many bytes it was left.
fn succeed<W: World>(
    bench: &mut Bench<W>,
    server: &mut Server,
    mode: ReceiveMode,
    events: &mut Vec<Event>,
) -> u32 {
    assert!(events.is_empty(), "a quiescent server is told nothing: {events:?}");
    let released = server.release(bench.world.kernel().now());
    let stats = server.stats();
    assert_eq!((released.len(), stats.traffic.closed[CloseReason::HandedOver as usize]), (3, 3));
    assert_eq!((stats.connections, stats.buffers_lent, stats.spilled_bytes), (0, 0, 0));
    *server = Server::new(parameters(mode, bench.world.budget()));
    let renamed: Vec<_> = released.iter().map(|(old, _)| (*old, server.reserve_slot())).collect();
    bench.world.hand_over(&renamed);
    for ((_, connection), (_, transfer)) in renamed.into_iter().zip(&released) {
        events.push(Event::Imported { connection, source: W::SOURCE, transfer: *transfer });
    }
    events.push(Event::Started);
    released.iter().map(|(_, transfer)| transfer.unsent).sum()
}
