//! Idle and stall timeout: a peer that is silent or takes nothing for too long is closed; a peer
//! with a little traffic stays.

use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::Launch;
use crate::ending::Losses;
use crate::machine::{in_company, time_limit};
use crate::place::{expect_end, expect_tape, ping, read_out, readable, send_tape, stuff};
use crate::tape::Tape;

#[test]
fn a_silent_peer_is_closed_and_an_active_one_stays() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\nidle = \"1s\"\n").start();
    let start = Instant::now();
    let silent = daemon.place().connect();
    let spoke_once = daemon.place().connect();
    let talker = daemon.place().connect();
    assert!(ping(&spoke_once, b"here"));
    let mut ended = [None, None];
    while start.elapsed() < Duration::from_secs(4) {
        assert!(ping(&talker, b"still here"), "the active peer was closed");
        for (peer, end) in [&silent, &spoke_once].into_iter().zip(&mut ended) {
            if end.is_none() && readable(peer, Duration::ZERO) {
                *end = Some(start.elapsed());
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    for (peer, end) in [&silent, &spoke_once].into_iter().zip(ended) {
        let end = end.expect("closed within four seconds");
        assert!(end >= Duration::from_millis(990), "closed after only {end:?}");
        assert!(end < time_limit(3.0), "closed only after {end:?}");
        expect_end(peer);
    }
    drop(talker);
    daemon.stop();
}

#[test]
fn with_idle_off_a_silent_peer_stays() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\nidle = \"off\"\nstall = \"1s\"\n").start();
    let silent = daemon.place().connect();
    thread::sleep(Duration::from_millis(2500));
    assert!(ping(&silent, b"good morning"));
    drop(silent);
    daemon.stop();
}

#[test]
fn a_peer_that_takes_nothing_is_closed() {
    let _quiet = in_company();
    // Much longer than filling the socket takes, also on a busy machine: the timeout runs
    // meanwhile.
    let config = "[timeouts]\nstall = \"3s\"\n[tcp]\nsend-buffer = \"16KiB\"\n";
    let daemon = Launch::with_config(config).start();
    let reader = daemon.place().connect();
    let non_reader = daemon.place().connect_narrow();
    let start = Instant::now();
    stuff(&non_reader, Tape::new(1), Duration::from_millis(300));
    let stuffed = start.elapsed();
    // We do not read, so the end (a reset or a FIN behind the bytes in flight) shows in the number
    // of the daemon's open files.
    let files = daemon.process.open_files();
    while daemon.process.open_files() >= files && start.elapsed() < time_limit(10.0) {
        assert!(ping(&reader, b"all well"));
        thread::sleep(Duration::from_millis(20));
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(2_990), "closed after only {took:?}");
    assert!(took < stuffed + time_limit(5.0), "closed only after {took:?}");
    let (bytes, _) = read_out(&non_reader, time_limit(10.0));
    assert!(bytes > 0, "nothing was echoed before it stalled");
    drop((non_reader, reader));
    let remains = daemon.stop_with(Losses::Allowed);
    assert!(remains.counters.bytes_dropped > 0, "it stalled, and nothing was dropped");
}

/// 16 KiB every quarter of a second is slow, but it is progress: the connection survives three
/// times the stall timeout.
#[test]
fn a_slow_but_progressing_reader_stays() {
    let _quiet = in_company();
    let config = "[timeouts]\nstall = \"1s\"\n[tcp]\nsend-buffer = \"16KiB\"\n";
    let daemon = Launch::with_config(config).start();
    let socket = daemon.place().connect_narrow();
    let tape = Tape::new(2);
    let total = 16 * 1024 * 16;
    thread::scope(|scope| {
        scope.spawn(|| {
            send_tape(&socket, tape, 0, total);
            socket.shutdown(Shutdown::Write).unwrap();
        });
        for part in 0..16 {
            thread::sleep(Duration::from_millis(250));
            expect_tape(&socket, tape, part * 16 * 1024, (part + 1) * 16 * 1024);
        }
    });
    expect_end(&socket);
    drop(socket);
    daemon.stop();
}
