//! The scripts about datagrams.

use std::sync::Arc;

use echo_core::command::Command;
use echo_core::datagram::op::{Event, Op, ReceiveEnd, ReplyError};
use echo_core::datagram::{DatagramParameters, SocketParameters, Unmetered};
use echo_core::kernel::Kernel;
use echo_core::op::PeerAddr;
use echo_core::parameters::Parameters;
use echo_core::worker::{Status, Worker};

use super::bench::{Bench, CANCEL, CLOSE, RECEIVE, SOCKET, ended};
use super::world::{BUFFERS, World};
use crate::bench::{Brief, parameters};
use crate::fake::budget::FakeBudget;
use echo_core::op::ReceiveMode;

/// Bytes that differ from place to place and from one datagram to another.
fn payload(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251 + seed * 7) as u8).collect()
}

pub(crate) fn a_datagram_comes_back_from_where_it_went<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.say([RECEIVE]);
    bench.silence();
    for seed in 0..4 {
        let client = bench.world.connect();
        bench.world.send(client, &payload(seed, 100));
        let (buffer, datagram, armed) = bench.received();
        assert_eq!((datagram.length, datagram.segment, datagram.count()), (100, 0, 1));
        assert_eq!((datagram.truncated, armed), (false, true));
        assert_eq!(datagram.source, bench.world.source(client));
        assert_eq!(datagram.destination, datagram.local);
        assert_eq!(datagram.local != PeerAddr::Unknown, W::TELLS_DESTINATION);
        // A connected client receives no reply from another address.
        bench.reply([buffer]);
        bench.comes_back(client, &payload(seed, 100));
    }
}

/// Any client can send one. A server that arms the receive again only after errors would not
/// receive any more.
pub(crate) fn an_empty_datagram_ends_the_receive<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    bench.say([RECEIVE]);
    for _ in 0..3 {
        bench.world.send(client, &[]);
        let (buffer, datagram, armed) = bench.received();
        assert_eq!((datagram.length, datagram.count(), armed), (0, 1, false));
        bench.reply([buffer]);
        bench.comes_back(client, &[]);
        bench.world.send(client, b"next");
        bench.silence();
        bench.say([RECEIVE]);
        let (buffer, datagram, armed) = bench.received();
        assert_eq!((datagram.length, armed), (4, true));
        bench.reply([buffer]);
        bench.comes_back(client, b"next");
    }
}

pub(crate) fn the_longest_datagram_comes_back<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    bench.say([RECEIVE]);
    for length in [W::LENGTH_MAX, 1, W::LENGTH_MAX - 1, 1_472, 1_473] {
        bench.world.send(client, &payload(length, length));
        let (buffer, datagram, _) = bench.received();
        assert_eq!((datagram.length as usize, datagram.truncated), (length, false));
        bench.reply([buffer]);
        bench.comes_back(client, &payload(length, length));
    }
}

/// A burst may be reported as one burst, as several, or as single datagrams.
pub(crate) fn a_burst_comes_back_as_it_was<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.say([RECEIVE]);
    for (segment, length) in [(1_000, 7_333), (500, 30_000), (1, 64), (1_200, 2_400), (9, 10)] {
        let client = bench.world.connect();
        let payload = payload(length, length);
        bench.world.send_burst(client, &payload, segment);
        let count = length.div_ceil(segment.into()) as u32;
        let received = bench.received_in_all(count);
        let bytes: u32 = received.iter().map(|(_, datagram)| datagram.length).sum();
        assert_eq!(bytes as usize, length);
        bench.reply(received.into_iter().map(|(buffer, _)| buffer));
        for piece in payload.chunks(segment.into()) {
            bench.comes_back(client, piece);
        }
        bench.nothing_comes_back(client);
    }
}

pub(crate) fn a_burst_can_be_sent_in_pieces<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    let payload = payload(3, 7_333);
    bench.world.send_burst(client, &payload, 1_000);
    bench.say([RECEIVE]);
    for (buffer, datagram) in bench.received_in_all(8) {
        bench.say([Op::ReplySegments { buffer }]);
        let (datagrams, bytes) = (datagram.count(), datagram.length);
        let all = Event::SegmentsReplied { buffer, datagrams, bytes, error: None };
        assert_eq!(bench.next(), all);
        bench.say([Op::Recycle { buffer }]);
    }
    for piece in payload.chunks(1_000) {
        bench.comes_back(client, piece);
    }
}

/// Goal: an identity is as long as it is, and is sent if it may be so long and not otherwise.
/// Datagrams of a burst are not merged, since each has its own.
pub(crate) fn an_identity_answers_if_there_is_room_for_it<W: World>() {
    let mut bench = Bench::<W>::identifying();
    let client = bench.world.connect();
    let answer = |bench: &mut Bench<W>, buffer, length_max| {
        bench.say([Op::Identify { buffer, length_max }]);
        let event = bench.next();
        bench.say([Op::Recycle { buffer }]);
        event
    };
    bench.world.send_burst(client, &payload(1, 1_024), 512);
    bench.say([RECEIVE]);
    let mut lengths = Vec::new();
    for (buffer, datagram) in bench.received_in_all(2) {
        assert_eq!((datagram.length, datagram.segment), (512, 0));
        match answer(&mut bench, buffer, datagram.length) {
            Event::Identified { buffer: told, length } if told == buffer => lengths.push(length),
            other => panic!("{other:?}"),
        }
    }
    let [length, again] = lengths[..] else { panic!("{lengths:?}") };
    assert_eq!(length, again);
    for length_max in [length, length - 1] {
        bench.world.send(client, &payload(2, 1_000));
        let [(buffer, _)] = bench.received_in_all(1)[..] else { unreachable!("it is one") };
        let event = answer(&mut bench, buffer, length_max);
        let error = ReplyError::TooShort;
        assert_eq!(
            event,
            match length_max < length {
                true => Event::ReplyFailed { buffer, error },
                false => Event::Identified { buffer, length },
            }
        );
    }
    for _ in 0..3 {
        assert_eq!(bench.answer(client).len(), length as usize);
    }
    bench.nothing_comes_back(client);
}

pub(crate) fn more_datagrams_than_buffers_wait_in_order<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    const MORE: u16 = 8;
    for number in 0..BUFFERS + MORE {
        bench.world.send(client, &number.to_be_bytes());
    }
    bench.say([RECEIVE]);
    let mut buffers = Vec::new();
    while buffers.len() < usize::from(BUFFERS) {
        let (buffer, _, armed) = bench.received();
        buffers.push(buffer);
        if !armed {
            bench.say([RECEIVE]);
        }
    }
    assert_eq!(bench.next(), ended(ReceiveEnd::NoBuffer));
    // Without a buffer the receive ends again, and nothing is lost.
    bench.say([RECEIVE]);
    assert_eq!(bench.next(), ended(ReceiveEnd::NoBuffer));
    bench.reply(buffers);
    bench.say([RECEIVE]);
    let rest = bench.received_in_all(MORE.into());
    bench.reply(rest.into_iter().map(|(buffer, _)| buffer));
    for number in 0..BUFFERS + MORE {
        bench.comes_back(client, &number.to_be_bytes());
    }
    bench.nothing_comes_back(client);
}

pub(crate) fn several_are_answered_in_one_turn<W: World>() {
    let mut bench = Bench::<W>::new();
    let clients: Vec<usize> = (0..8).map(|_| bench.world.connect()).collect();
    for &client in &clients {
        bench.world.send(client, &payload(client, 50 + client));
    }
    bench.say([RECEIVE]);
    let received = bench.received_in_all(clients.len() as u32);
    bench.reply(received.into_iter().map(|(buffer, _)| buffer));
    for &client in &clients {
        bench.comes_back(client, &payload(client, 50 + client));
        bench.nothing_comes_back(client);
    }
}

pub(crate) fn datagrams_after_a_cancel_wait<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    bench.say([RECEIVE]);
    bench.silence();
    bench.cancel();
    let sent: Vec<Vec<u8>> = (0..3).map(|seed| payload(seed, 20)).collect();
    sent.iter().for_each(|payload| bench.world.send(client, payload));
    bench.silence();
    assert_eq!(bench.world.take_waiting(), sent);
}

/// Of the datagrams that arrive together with a cancel the kernel may report none, some or all; the
/// rest waits. The end of the receive is reported exactly once.
pub(crate) fn a_cancel_loses_no_datagram<W: World>() {
    for _ in 0..20 {
        let mut bench = Bench::<W>::new();
        let client = bench.world.connect();
        bench.say([RECEIVE]);
        bench.silence();
        for number in 0..3_u8 {
            bench.world.send(client, &[number]);
        }
        bench.say([CANCEL]);
        let mut told = 0;
        loop {
            match bench.next() {
                Event::Received { datagram, armed, .. } => {
                    told += datagram.count() as u8;
                    if !armed {
                        break;
                    }
                }
                event => {
                    assert_eq!(event, ended(ReceiveEnd::Stopped));
                    break;
                }
            }
        }
        bench.silence();
        let rest: Vec<Vec<u8>> = (told..3).map(|number| vec![number]).collect();
        assert_eq!(bench.world.take_waiting(), rest);
    }
}

pub(crate) fn a_closed_socket_is_another_process_s<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    bench.say([RECEIVE]);
    bench.silence();
    bench.cancel();
    bench.say([CLOSE]);
    bench.world.send(client, b"late");
    bench.silence();
    assert_eq!(bench.world.take_waiting(), [b"late".to_vec()]);
}

/// If the MTU of the route is too small, only that reply fails.
pub(crate) fn a_reply_that_is_too_long_fails_alone<W: World>() {
    let mut bench = Bench::<W>::new();
    let clients = [bench.world.connect(), bench.world.connect()];
    if !bench.world.refuse_the_longest() {
        return;
    }
    bench.say([RECEIVE]);
    bench.world.send(clients[0], &payload(1, W::LENGTH_MAX));
    bench.world.send(clients[1], b"short");
    let received = bench.received_in_all(2);
    let [long, short] = [received[0].0, received[1].0];
    bench.say([Op::Reply { buffer: long }, Op::Reply { buffer: short }]);
    let failed = Event::ReplyFailed { buffer: long, error: ReplyError::Unsendable };
    let mut events = [bench.next(), bench.next()];
    events.sort_by_key(|event| *event != failed);
    assert_eq!(events, [failed, Event::Replied { buffer: short }]);
    bench.say([Op::Recycle { buffer: long }, Op::Recycle { buffer: short }]);
    bench.comes_back(clients[1], b"short");
    bench.nothing_comes_back(clients[0]);
}

/// The control messages of a datagram are truncated, its payload is not; the next datagram is
/// complete if its control messages fit.
pub(crate) fn a_datagram_without_all_control_messages_says_so<W: World>() {
    let mut bench = Bench::<W>::new();
    let client = bench.world.connect();
    bench.say([RECEIVE]);
    bench.world.send(client, b"whole");
    let (buffer, datagram, _) = bench.received();
    assert!(!datagram.truncated);
    bench.world.exceed_control();
    bench.world.send(client, b"cut");
    let (other, datagram, armed) = bench.received();
    assert_eq!((datagram.truncated, datagram.length, armed), (true, 3, true));
    bench.say([Op::Recycle { buffer: other }]);
    bench.reply([buffer]);
    bench.comes_back(client, b"whole");
}

/// The worker's loop: every datagram is answered, and the drain leaves nothing.
pub(crate) fn the_core_answers_and_drains<W: World>() {
    let mut bench = Bench::<W>::new();
    let budget = Arc::new(FakeBudget::new(16, 1_000, 0, 1));
    let parameters = Parameters { listeners: 0, ..parameters(ReceiveMode::Multishot, budget, 1) };
    let own = bench.world.own();
    let datagrams = DatagramParameters {
        sockets: vec![SocketParameters { own, listener: 0, outlives_us: false, identifies: false }],
        listeners: 1,
        buffers: BUFFERS,
        proxies: Arc::new([]),
        limiter: Arc::new(Unmetered),
    };
    let mut worker = Worker::new(parameters).with_datagrams(datagrams);
    worker.start(bench.world.kernel()).expect("the ring works");
    let clients: Vec<usize> = (0..4).map(|_| bench.world.connect()).collect();
    const ROUNDS: usize = 50;
    for round in 0..ROUNDS {
        for &client in &clients {
            bench.world.send(client, &payload(round + client, 13 * round));
            bench.world.send_burst(client, &payload(round, 1_050), 100);
        }
        // A burst is reported as one to eleven events, an answer with the next turn at the latest.
        let expected = (clients.len() * 12 * (round + 1)) as u64;
        let mut turns = 0;
        while worker.stats().datagrams.datagrams_out < expected {
            worker.step(&mut Brief(bench.world.kernel()), None).expect("the ring works");
            worker.check_invariants();
            turns += 1;
            assert!(turns < 10_000, "{:?}", worker.stats().datagrams);
        }
        for &client in &clients {
            bench.comes_back(client, &payload(round + client, 13 * round));
            for piece in payload(round, 1_050).chunks(100) {
                bench.comes_back(client, piece);
            }
        }
    }
    let deadline = bench.world.kernel().now();
    let mut command = Some(Command::Drain { deadline });
    let mut turns = 0;
    while worker.step(&mut Brief(bench.world.kernel()), command.take()).expect("the ring works")
        != Status::Drained
    {
        turns += 1;
        assert!(turns < 100, "{SOCKET:?} is not drained");
    }
    let traffic = worker.stats().datagrams;
    let datagrams = (ROUNDS * 4 * 12) as u64;
    assert_eq!((traffic.datagrams_in, traffic.datagrams_out), (datagrams, datagrams));
    assert_eq!(traffic.bytes_in, traffic.bytes_out);
    for client in clients {
        bench.nothing_comes_back(client);
    }
}
