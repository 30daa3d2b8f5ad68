//! The whole life of a daemon in one small test, for machines on which nothing else runs: an
//! emulator, an initramfs, an old kernel.
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
    // They are busy again when the end is announced: nothing may be lost.
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
