//! Idle and stall: who is silent too long or takes nothing too long is let go; who does a little
//! stays.

use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::Launch;
use crate::ending::Losses;
use crate::machine::{in_company, time_limit};
use crate::place::{expect_end, expect_tape, ping, read_out, readable, send_tape, stuff};
use crate::tape::Tape;

#[test]
fn a_silent_peer_is_let_go_and_a_talking_one_stays() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\nidle = \"1s\"\n").start();
    let start = Instant::now();
    let silent = daemon.place().connect();
    let spoke_once = daemon.place().connect();
    let talker = daemon.place().connect();
    assert!(ping(&spoke_once, b"here"));
    let mut ended = [None, None];
    while start.elapsed() < Duration::from_secs(4) {
        assert!(ping(&talker, b"still here"), "the talker was let go");
        for (peer, end) in [&silent, &spoke_once].into_iter().zip(&mut ended) {
            if end.is_none() && readable(peer, Duration::ZERO) {
                *end = Some(start.elapsed());
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    for (peer, end) in [&silent, &spoke_once].into_iter().zip(ended) {
        let end = end.expect("let go within four seconds");
        assert!(end >= Duration::from_millis(990), "let go after only {end:?}");
        assert!(end < time_limit(3.0), "let go only after {end:?}");
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
fn a_peer_that_takes_nothing_is_let_go() {
    let _quiet = in_company();
    // Much longer than stuffing takes, on a busy machine too: its time runs meanwhile.
    let config = "[timeouts]\nstall = \"3s\"\n[tcp]\nsend-buffer = \"16KiB\"\n";
    let daemon = Launch::with_config(config).start();
    let polite = daemon.place().connect();
    let deaf = daemon.place().connect_narrow();
    let start = Instant::now();
    stuff(&deaf, Tape::new(1), Duration::from_millis(300));
    let stuffed = start.elapsed();
    // Its end shows as a reset or an end behind what was on its way, without a read of ours: the
    // file is gone.
    let files = daemon.process.open_files();
    while daemon.process.open_files() >= files && start.elapsed() < time_limit(10.0) {
        assert!(ping(&polite, b"all well"));
        thread::sleep(Duration::from_millis(20));
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(2_990), "let go after only {took:?}");
    assert!(took < stuffed + time_limit(5.0), "let go only after {took:?}");
    let (bytes, _) = read_out(&deaf, time_limit(10.0));
    assert!(bytes > 0, "nothing was echoed before it stalled");
    drop((deaf, polite));
    let remains = daemon.stop_with(Losses::Allowed);
    assert!(remains.counters.bytes_dropped > 0, "it stalled, and nothing was dropped");
}

/// 16 KiB every quarter of a second is slow, but it is progress: three times the stall timeout
/// passes without harm.
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
