//! Limits of one connection: its lifetime and its bytes. When either is reached, the peer gets the
//! rest of its echo, exact to the byte, and a FIN.

use std::io::Read;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::Launch;
use crate::ending::Losses;
use crate::machine::{in_company, time_limit};
use crate::place::{expect_end, expect_tape, ping, read_out, send_tape};
use crate::tape::Tape;

#[test]
fn a_connection_ends_at_its_lifetime_busy_or_not() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\nlifetime = \"1s\"\n").start();
    let start = Instant::now();
    let silent = daemon.place().connect();
    let talker = daemon.place().connect();
    while ping(&talker, b"still here") {
        assert!(start.elapsed() < time_limit(5.0), "the connection does not end");
        thread::sleep(Duration::from_millis(20));
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(990), "ended after only {took:?}");
    expect_end(&silent);
    let took = start.elapsed();
    assert!(took < time_limit(3.0), "ended only after {took:?}");
    // Every connection has its own lifetime.
    assert!(daemon.place().answers(time_limit(10.0)));
    drop((silent, talker));
    daemon.stop_with(Losses::Allowed);
}

/// A peer that does not read when its lifetime ends still gets the rest of its echo.
#[test]
fn the_end_of_a_lifetime_loses_no_echo() {
    let _quiet = in_company();
    let config = "[timeouts]\nlifetime = \"1s\"\n[tcp]\nsend-buffer = \"16KiB\"\n";
    let daemon = Launch::with_config(config).start();
    let slow = daemon.place().connect_narrow();
    let tape = Tape::new(3);
    send_tape(&slow, tape, 0, 16 * 1024);
    thread::sleep(Duration::from_millis(1500));
    expect_tape(&slow, tape, 0, 16 * 1024);
    expect_end(&slow);
    drop(slow);
    daemon.stop();
}

#[test]
fn a_peer_gets_its_bytes_and_not_one_more() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[limits]\nmax-bytes = \"1000B\"\n").start();
    let tape = Tape::new(4);
    for sent in [999, 1000, 1001, 60_000] {
        let socket = daemon.place().connect();
        send_tape(&socket, tape, 0, sent);
        expect_tape(&socket, tape, 0, sent.min(1000));
        if sent < 1000 {
            socket.shutdown(Shutdown::Write).unwrap();
        }
        expect_end(&socket);
    }
    // The same in many small pieces.
    let mut socket = daemon.place().connect();
    for piece in 0..100 {
        assert!(ping(&socket, b"ten bytes!"), "ended after {piece} pieces");
    }
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
    drop(socket);
    let counters = daemon.stop_with(Losses::Allowed).counters;
    assert_eq!(counters.bytes_out, 999 + 4 * 1000);
    assert_eq!(counters.bytes_dropped, 1 + 59_000);
}

/// A limit much larger than the buffers, reached in the middle of bulk.
#[test]
fn bulk_is_cut_at_the_very_byte() {
    let _quiet = in_company();
    const LIMIT: u64 = 5_000_001;
    let daemon = Launch::with_config(&format!("[limits]\nmax-bytes = \"{LIMIT}B\"\n")).start();
    let socket = daemon.place().connect();
    let tape = Tape::new(5);
    thread::scope(|scope| {
        scope.spawn(|| {
            send_tape(&socket, tape, 0, 2 * LIMIT);
            socket.shutdown(Shutdown::Write).unwrap();
        });
        expect_tape(&socket, tape, 0, LIMIT);
        assert_eq!(read_out(&socket, time_limit(10.0)), (0, Ok(())));
    });
    drop(socket);
    let counters = daemon.stop_with(Losses::Allowed).counters;
    assert_eq!((counters.bytes_out, counters.bytes_dropped), (LIMIT, LIMIT));
}
