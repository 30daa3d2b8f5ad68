//! Small tests of the whole service, for machines on which nothing else can be run: an emulator, an
//! initramfs, an old kernel.
//!
//! It needs this program, the daemon (named by `ECHO_URING_BIN` if it is not where Cargo built it),
//! `/bin/sh`, `/tmp`, `/proc` and a loopback interface: `daemon-… smoke:: --test-threads=1`.
//! `ECHO_URING_TEST_SLOWNESS` stretches the deadlines.

use std::net::Shutdown;

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::daemon::Launch;
use crate::ending::Losses;
use crate::flow::{self, Ending, Flow, Plan};
use crate::machine::{alone, time_limit};
use crate::place::{expect_end, expect_tape, ping, send_tape};
use crate::tape::Tape;
use crate::udp::{Bound, Client, LONGEST, Server};

const PEERS: u64 = 1000;

#[test]
fn a_thousand_connections_are_echoed_and_drained() {
    let _quiet = alone();
    let daemon = Launch::with_config("[server]\nworkers = 2\n[timeouts]\ndrain = \"5m\"\n").start();
    let peers: Vec<Socket> = (0..PEERS).map(|_| daemon.place().connect()).collect();
    for (seed, peer) in (0..).zip(&peers) {
        send_tape(peer, Tape::new(seed), 0, 1_000);
    }
    for (seed, peer) in (0..).zip(&peers) {
        expect_tape(peer, Tape::new(seed), 0, 1_000);
    }
    // They are busy again when the drain begins: nothing may be lost.
    for (seed, peer) in (0..).zip(&peers) {
        send_tape(peer, Tape::new(seed), 1_000, 2_000);
    }
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: ", time_limit(20.0));
    for (seed, peer) in (0..).zip(&peers) {
        send_tape(peer, Tape::new(seed), 2_000, 3_000);
        peer.shutdown(Shutdown::Write).unwrap();
    }
    for (seed, peer) in (0..).zip(&peers) {
        expect_tape(peer, Tape::new(seed), 1_000, 3_000);
        expect_end(peer);
    }
    drop(peers);
    let remains = daemon.finish(Losses::None);
    assert_eq!(remains.counters.accepted, PEERS);
    assert_eq!(remains.counters.bytes_out, PEERS * 3_000);
}

#[test]
fn bulk_is_exact() {
    let _quiet = alone();
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let plan = |seed| {
        let ending = if seed % 2 == 0 { Ending::WithLastByte } else { Ending::AfterEcho };
        Plan { seed, total: 500_000, largest_piece: 256 * 1024, ending, urgent: false }
    };
    let flows = (0..40).map(|seed| Flow::new(daemon.place().connect(), plan(seed))).collect();
    assert_eq!(flow::run(flows, time_limit(60.0)), 40 * 500_000);
    assert!(ping(&daemon.place().connect(), b"the last word"));
    daemon.stop();
}

/// Goal: on every kernel an empty datagram ends no more than one receive, a burst comes back as a
/// burst, and many waiting datagrams are answered in order and delay no connection, whether the
/// kernel bounds a multishot receive (since 6.12) or the pool does. Method: a daemon that is
/// stopped until the socket is full.
#[test]
fn datagrams_come_back_whole_and_in_order() {
    let _quiet = alone();
    let sockets = [Bound::ipv4(), Bound::every_ipv4()];
    let strangers = sockets.iter().map(Bound::hand_over).collect();
    let launch = Launch::with_config("[server]\nworkers = 1\n");
    let server = Server::launch(Launch { strangers, ..launch });
    for bound in &sockets {
        let client = Client::to(bound.address);
        for length in [0, 0, 1, 1_472, 0, LONGEST[0], 0, 9] {
            client.ping(length);
        }
        for (total, segment) in [(10_000, 1_000), (64 * 100, 100), (2_500, 1_200)] {
            let bytes = Tape::new(3).bytes(0, total);
            client.send_burst(&bytes, segment);
            for sent in bytes.chunks(segment.into()) {
                assert!(client.receive() == sent, "{total} bytes by {segment}");
            }
        }
        client.accept_bursts();
        let bytes = Tape::new(4).bytes(0, 5_001);
        client.send_burst(&bytes, 1_000);
        assert!(client.receive_burst() == (bytes, Some(1_000)), "it is no longer a burst");
    }
    let clients = [0, 1].map(|index: usize| Client::to(sockets[index].address));
    let peer = server.daemon.place().connect();
    for _ in 0..3 {
        server.hold();
        for number in 0..200 {
            // Every tenth is empty.
            let length = if number % 10 == 9 { 0 } else { 20 };
            clients.iter().for_each(|client| client.send(&vec![number; length]));
        }
        send_tape(&peer, Tape::new(5), 0, 1_000);
        server.go_on();
        expect_tape(&peer, Tape::new(5), 0, 1_000);
        for client in &clients {
            for number in 0..200 {
                let length = if number % 10 == 9 { 0 } else { 20 };
                assert_eq!(client.receive(), vec![number; length]);
            }
        }
    }
    clients.iter().for_each(|client| client.converse(1_000, 32, |_| 64));
    drop(peer);
    assert_eq!(server.figure("kernel_dropped"), 0);
    server.stop();
}
