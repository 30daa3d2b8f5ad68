//! The scripts about messages. Every read checks the bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use echo_core::command::Command;
use echo_core::kernel::{Kernel, Wake};
use echo_core::op::{
    ConnectionError, ConnectionId, Event, Expectation, ListenerId, Op, PeerAddr, ReceiveEnd,
    ReceiveMode, Shutdown, When,
};
use echo_core::parameters::Parameters;
use echo_core::reason::CloseReason;
use echo_core::worker::{Status, Worker};

use super::world::World;
use crate::bench::{Brief, accepted, name, parameters};
use crate::fake::peer::PeerId;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A world, and the events that a script has not taken yet.
struct Bench<W: World> {
    world: W,
    events: VecDeque<Event>,
}

impl<W: World> Bench<W> {
    /// With a connection of this id, and its peer.
    fn accepted(connection: ConnectionId) -> (Self, PeerId) {
        let mut bench = Self { world: W::new(), events: VecDeque::new() };
        let peer = bench.world.connect();
        bench.say(Op::Accept { listener: ListenerId(0), connection, backlog: Expectation::Data });
        assert_eq!(bench.next(), accepted(connection));
        (bench, peer)
    }

    fn say(&mut self, op: Op) {
        self.world.kernel().submit(&mut vec![op]);
    }

    fn turn(&mut self, milliseconds: u64) {
        let mut events = Vec::new();
        let kernel = self.world.kernel();
        let deadline = kernel.now().plus(milliseconds);
        kernel.turn(Wake::At(deadline), &mut events).expect("the ring works");
        self.events.extend(events);
    }

    fn next(&mut self) -> Event {
        let began = Instant::now();
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(began.elapsed() < TIMEOUT, "an event was expected and none came");
            self.turn(20);
        }
    }

    fn silence(&mut self) {
        self.turn(15);
        assert_eq!(self.events.pop_front(), None, "nothing was expected");
    }

    /// Relays until there are no messages, no room, or an end. Returns how many messages were
    /// relayed, and what to wait for.
    fn relay(&mut self, connection: ConnectionId) -> (usize, Result<When, ReceiveEnd>) {
        let mut count = 0;
        loop {
            self.say(relay(connection, When::Now));
            match self.next() {
                Event::Relayed { chunks: 0, next, .. } => return (count, Ok(next)),
                Event::Relayed { chunks, .. } => count += chunks as usize,
                Event::ReceiveEnded { reason, .. } => return (count, Err(reason)),
                other => panic!("the answer to a relay was expected, not {other:?}"),
            }
        }
    }

    fn comes_back(&mut self, peer: PeerId, lengths: &[usize]) {
        for &length in lengths {
            assert_eq!(self.world.read(peer), Some(length));
        }
    }
}

fn relay(connection: ConnectionId, when: When) -> Op {
    Op::Relay { connection, when, length_max: u32::MAX }
}

pub(crate) fn each_message_comes_back_as_one<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    let lengths = [1, 10, 0, 40, 0, 0, 7, 48];
    assert!(lengths.iter().all(|&length| bench.world.write(peer, length)));
    assert_eq!(bench.relay(connection), (lengths.len(), Ok(When::Readable)));
    bench.comes_back(peer, &lengths);
    // A waiting relay gets the next one.
    for length in [0, 5] {
        bench.say(relay(connection, When::Readable));
        bench.silence();
        bench.world.write(peer, length);
        let told = bench.next();
        let one = matches!(told, Event::Relayed { chunks: 1, length: bytes, .. }
            if bytes as usize == length);
        assert!(one, "{told:?}");
        bench.comes_back(peer, &[length]);
    }
}

/// A message that is longer than what is left of a byte limit is not cut.
pub(crate) fn a_limit_does_not_cut_a_message<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    bench.world.write(peer, 20);
    bench.say(Op::Relay { connection, when: When::Now, length_max: 3 });
    let told = bench.next();
    assert!(matches!(told, Event::Relayed { length: 20, chunks: 1, .. }), "{told:?}");
    bench.comes_back(peer, &[20]);
}

/// The end comes after the last message. An empty message is not the end, wherever it is.
pub(crate) fn an_empty_message_is_not_the_end<W: World>() {
    let connection = name(0);
    for lengths in [&[0, 3, 0][..], &[0], &[0, 0, 5], &[]] {
        let (mut bench, peer) = Bench::<W>::accepted(connection);
        assert!(lengths.iter().all(|&length| bench.world.write(peer, length)));
        bench.world.finish(peer);
        let told = bench.relay(connection);
        assert_eq!(told, (lengths.len(), Err(ReceiveEnd::EndOfStream)), "{lengths:?}");
        bench.comes_back(peer, lengths);
        bench.say(Op::Close { connection });
    }
}

pub(crate) fn the_longest_message_comes_back<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    for length in [W::LENGTH_MAX, 1, W::LENGTH_MAX / 4] {
        assert!(bench.world.write(peer, length), "{length}");
        assert_eq!(bench.relay(connection), (1, Ok(When::Readable)));
        bench.comes_back(peer, &[length]);
    }
}

pub(crate) fn a_longer_message_is_reported_and_not_truncated<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    assert!(bench.world.write(peer, 4) && bench.world.write(peer, W::LENGTH_MAX + 1));
    let too_long = ReceiveEnd::Failed(ConnectionError::MessageSize);
    assert_eq!(bench.relay(connection), (1, Err(too_long)));
    bench.comes_back(peer, &[4]);
    assert_eq!(bench.world.read(peer), None, "nothing of it came back");
    bench.say(Op::Abort { connection });
}

/// Messages without room on the way back stay in the receive queue, and are relayed when there is
/// room.
pub(crate) fn messages_wait_for_room<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    let (mut written, mut relayed) = (0, 0);
    let blocked = loop {
        assert!(bench.world.write(peer, 1 + written % 40), "a socket that is never full");
        written += 1;
        let (count, next) = bench.relay(connection);
        relayed += count;
        if next == Ok(When::Writable) {
            break written;
        }
    };
    assert!(relayed == blocked - 1, "{relayed} of {blocked}");
    // Some more of them, in our queue.
    while written < blocked + 5 && bench.world.write(peer, 1 + written % 40) {
        written += 1;
    }
    bench.say(relay(connection, When::Writable));
    bench.silence();
    let mut read = 0;
    while read < written {
        while let Some(length) = bench.world.read(peer) {
            assert_eq!(length, 1 + read % 40);
            read += 1;
        }
        if read < written {
            match bench.next() {
                Event::Relayed { next, .. } => bench.say(relay(connection, next)),
                other => panic!("the answer to a relay was expected, not {other:?}"),
            }
        }
    }
    // The relay of the last message.
    let told = bench.next();
    assert!(matches!(told, Event::Relayed { chunks: 1, .. }), "{told:?}");
    bench.silence();
}

pub(crate) fn discarded_messages_are_gone<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    bench.say(Op::Shutdown { connection, how: Shutdown::Write });
    for length in [12, 0, 3] {
        bench.say(Op::Discard { connection, when: When::Readable });
        bench.silence();
        bench.world.write(peer, length);
        let told = bench.next();
        assert!(matches!(told, Event::Relayed { chunks: 1, .. }), "{told:?}");
    }
    bench.world.finish(peer);
    bench.say(Op::Discard { connection, when: When::Readable });
    let end = Event::ReceiveEnded { connection, reason: ReceiveEnd::EndOfStream };
    assert_eq!(bench.next(), end);
}

/// A stopped relay loses nothing, and another process finds the waiting messages.
pub(crate) fn messages_are_left_to_the_next_process<W: World>() {
    let connection = name(0);
    let (mut bench, peer) = Bench::<W>::accepted(connection);
    bench.say(relay(connection, When::Readable));
    bench.silence();
    bench.say(Op::CancelReceive { connection });
    let stopped = Event::ReceiveEnded { connection, reason: ReceiveEnd::Stopped };
    assert_eq!(bench.next(), stopped);
    let lengths = [5, 0, 30, 1];
    assert!(lengths.iter().all(|&length| bench.world.write(peer, length)));
    let next = name(3);
    bench.world.hand_over(&[(connection, next)]);
    assert_eq!(bench.relay(next), (lengths.len(), Ok(When::Readable)));
    bench.comes_back(peer, &lengths);
}

/// The worker's loop: every message comes back as one message, also over handovers. A message that
/// is too long ends only its own connection.
pub(crate) fn the_core_echoes_messages<W: World>() {
    let connection = |bench: &mut Bench<W>, worker: &mut Worker| {
        let released = worker.release(bench.world.kernel().now());
        *worker = Worker::new(with_records(&bench.world));
        let renamed: Vec<_> =
            released.iter().map(|(old, _)| (*old, worker.reserve_slot())).collect();
        bench.world.hand_over(&renamed);
        for ((_, next), (_, transfer)) in renamed.into_iter().zip(released) {
            assert!(transfer.records && transfer.unsent == 0, "{transfer:?}");
            worker.import(bench.world.kernel(), next, PeerAddr::Local, transfer);
        }
        worker.start(bench.world.kernel()).expect("the ring works");
    };
    let mut bench = Bench { world: W::new(), events: VecDeque::new() };
    let mut worker = Worker::new(with_records(&bench.world));
    worker.start(bench.world.kernel()).expect("the ring works");
    let peers = [(); 3].map(|()| bench.world.connect());
    let (mut written, mut read) = ([0; 3], [0; 3]);
    const TOTAL: usize = 400;
    let length = |number: usize| (number * 7) % 41;
    let (began, mut turn, mut handovers) = (Instant::now(), 0, 0);
    let mut command = None;
    while read != [TOTAL; 3] {
        assert!(began.elapsed() < 2 * TIMEOUT, "{written:?} written, {read:?} back");
        turn += 1;
        if turn % 40 == 0 && worker.stats().connections == 3 {
            let deadline = bench.world.kernel().now().plus(5_000);
            command = Some(Command::HandOver { deadline });
        }
        let status = worker.step(&mut Brief(bench.world.kernel()), command.take());
        worker.check_invariants();
        if status.expect("the ring works") == Status::Quiescent {
            handovers += 1;
            connection(&mut bench, &mut worker);
        }
        for (index, peer) in peers.into_iter().enumerate() {
            let wants = written[index] < TOTAL && written[index] - read[index] < 10;
            if wants && bench.world.write(peer, length(written[index])) {
                written[index] += 1;
            }
            // The first one reads late.
            while (index > 0 || turn % 8 == 0)
                && let Some(bytes) = bench.world.read(peer)
            {
                assert_eq!(bytes, length(read[index]), "{peer:?}, message {}", read[index]);
                read[index] += 1;
            }
        }
    }
    assert!(handovers > 3, "only {handovers} handovers");
    let stats = worker.stats();
    assert_eq!(stats.traffic.chunks_in, stats.traffic.chunks_out);
    assert!(bench.world.write(peers[0], W::LENGTH_MAX + 1));
    let too_long = CloseReason::MessageSize as usize;
    while worker.stats().traffic.closed[too_long] == 0 {
        assert!(began.elapsed() < 2 * TIMEOUT, "a message that is too long was not noticed");
        worker.step(&mut Brief(bench.world.kernel()), None).expect("the ring works");
    }
    assert_eq!(worker.stats().connections, 2);
}

fn with_records<W: World>(world: &W) -> Parameters {
    let parameters = parameters(ReceiveMode::WhenReadable, world.budget(), 4);
    Parameters { records: vec![ListenerId(0)], ..parameters }
}
