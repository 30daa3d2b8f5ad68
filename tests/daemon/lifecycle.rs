//! From READY to the last line: notifications to the service manager, signals, and the drain.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::machine::{alone, in_company, time_limit, wait_until};
use crate::place::{expect_end, expect_silence, expect_tape, ping, read_out, send_tape, stuff};
use crate::tape::Tape;

/// The last STATUS that the service manager received.
fn last_status(daemon: &Daemon) -> String {
    daemon.manager.values("STATUS").pop().map(|(_, text)| text).unwrap_or_default()
}

#[test]
fn notifications_are_in_order_and_correct() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let ready = &daemon.manager.received()[0];
    assert_eq!(ready.field("READY"), Some("1"), "the first word was {:?}", ready.text);
    assert!(ready.field("STATUS").is_some(), "no STATUS with READY: {:?}", ready.text);

    let peers: Vec<Socket> = (0..3).map(|_| daemon.place().connect()).collect();
    for peer in &peers {
        send_tape(peer, Tape::new(1), 0, 1024 * 1024);
        expect_tape(peer, Tape::new(1), 0, 1024 * 1024);
    }
    wait_until("a STATUS with 3 connections", time_limit(10.0), || {
        last_status(&daemon) == "3 connections, 0 echoes/s, 3.1 MB echoed, 2 workers"
    });
    drop(peers);
    wait_until("a STATUS without connections", time_limit(10.0), || {
        last_status(&daemon).starts_with("0 connections, 0 echoes/s, 3.1 MB")
    });

    daemon.settle();
    daemon.signal(Signal::SIGTERM);
    wait_until("STOPPING", time_limit(10.0), || !daemon.manager.values("STOPPING").is_empty());
    let said = daemon.manager.received();
    let stopping = said.iter().find(|it| it.field("STOPPING").is_some()).unwrap();
    assert_eq!(stopping.field("STOPPING"), Some("1"));
    let status = stopping.field("STATUS").unwrap_or_default();
    assert!(status.starts_with("draining, 0 connections left"), "{:?}", stopping.text);
    for name in ["READY", "STOPPING"] {
        assert_eq!(said.iter().filter(|it| it.field(name).is_some()).count(), 1, "{said:#?}");
    }
    assert!(said.iter().all(|it| it.field("WATCHDOG").is_none()), "pings without a watchdog");
    let remains = daemon.finish(Losses::None);
    assert_eq!(remains.counters.accepted, 3);
    assert_eq!(remains.counters.bytes_in, 3 * 1024 * 1024);
    assert_eq!(remains.counters.bytes_out, 3 * 1024 * 1024);
}

#[test]
fn log_lines_report_start_listeners_ready_and_end() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 1\n[limits]\nmax-connections = 100\n";
    let daemon = Launch::with_config(config).start();
    let place = daemon.place().clone();
    let remains = daemon.stop();
    let texts: Vec<&str> = remains.lines.iter().map(String::as_str).collect();
    let crate::place::Place::Tcp(address) = place else { unreachable!("a TCP socket was given") };
    let start = format!("info echo-uring {}: starting, kernel ", env!("CARGO_PKG_VERSION"));
    assert!(texts[0].starts_with(&start), "{texts:#?}");
    assert!(texts[0].contains(", 1 worker"), "{texts:#?}");
    assert!(texts[0].contains(", receive multishot") || texts[0].contains(", receive one-shot"));
    assert_eq!(texts[1], format!("info listening on {address} (test, inherited)"));
    assert_eq!(texts[2], "info ready");
    assert!(texts[3].starts_with("info draining: 0 connections, for at most 10s"), "{texts:#?}");
    assert!(texts[4].starts_with("info stopped: accepted=0 "), "{texts:#?}");
    assert_eq!(texts.len(), 5, "{texts:#?}");
}

#[test]
fn status_is_sent_once_a_second_at_most() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        assert!(daemon.place().answers(time_limit(10.0)));
        thread::sleep(Duration::from_millis(5));
    }
    let moments: Vec<Instant> = daemon.manager.values("STATUS").iter().map(|(at, _)| *at).collect();
    assert!(moments.len() >= 3, "{} in three seconds of change", moments.len());
    for pair in moments[1..].windows(2) {
        let gap = pair[1] - pair[0];
        // A delay by a busy machine makes the next interval shorter.
        assert!(gap > Duration::from_millis(500), "two within {gap:?}");
    }
    // One wait until the last change is reported, and one in which nothing is sent.
    thread::sleep(Duration::from_millis(2500));
    let settled = daemon.manager.received().len();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.manager.received().len(), settled, "a STATUS without a change");
    daemon.stop();
}

#[test]
fn the_watchdog_is_notified_at_half_its_interval() {
    let _quiet = alone();
    let interval = Duration::from_secs(1);
    let launch = Launch::with_config("[server]\nworkers = 3\n");
    let daemon = Launch { watchdog: Some(interval), ..launch }.start();
    let start = Instant::now();
    thread::sleep(Duration::from_secs(5));
    let moments: Vec<Instant> =
        daemon.manager.values("WATCHDOG").into_iter().map(|(at, _)| at).collect();
    let first = daemon.manager.received().remove(0);
    assert!(first.field("READY").is_some(), "notified before it was ready: {first:?}");
    assert!((9..=12).contains(&moments.len()), "{} pings in 5 s", moments.len());
    for pair in moments.windows(2) {
        assert!(pair[1] - pair[0] < interval, "the watchdog would have expired");
    }
    assert!(moments[0] - start < interval);
    daemon.stop();
}

/// A worker that has finished its drain completes no more iterations. The watchdog must still be
/// notified, and the worker must not be reported as stalled: the others may drain for
/// `timeouts.drain`.
#[test]
fn the_watchdog_is_notified_while_the_last_worker_drains() {
    let _quiet = alone();
    let interval = Duration::from_secs(1);
    let launch = Launch::with_config("[server]\nworkers = 3\n[timeouts]\ndrain = \"1m\"\n");
    let daemon = Launch { watchdog: Some(interval), ..launch }.start();
    let last = daemon.place().connect();
    assert!(ping(&last, b"here"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(10.0));
    let began = Instant::now();
    thread::sleep(5 * interval);
    let pings = daemon.manager.values("WATCHDOG");
    let pings = pings.iter().filter(|(at, _)| *at > began).count();
    assert!(pings >= 9, "{pings} pings in five intervals of the drain: {}", daemon.transcript());
    assert!(ping(&last, b"still here"));
    drop(last);
    let remains = daemon.finish(Losses::None);
    let alarm = remains.lines.iter().find(|line| line.contains("is stalled"));
    assert_eq!(alarm, None, "a worker hangs");
}

#[test]
fn a_second_signal_ends_at_once() {
    let _quiet = in_company();
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let mut daemon = Launch::with_config("[timeouts]\ndrain = \"1m\"\n").start();
        let peer = daemon.place().connect();
        assert!(ping(&peer, b"here"));
        daemon.signal(first);
        daemon.lines.wait_for("info draining: 1 connection", time_limit(10.0));
        assert!(ping(&peer, b"still here"));
        daemon.signal(second);
        let status = daemon.wait(time_limit(3.0));
        daemon.lines.wait_for_end(time_limit(5.0));
        assert_eq!(status.code(), Some(0), "{}", daemon.transcript());
        let last = daemon.lines.all().pop().unwrap();
        assert_eq!(last, "warn second signal: ending at once");
    }
}

/// 200 peers in the middle of bulk at the signal: each byte comes back, and then a FIN, not a
/// reset.
#[test]
fn a_drain_loses_no_byte_of_busy_connections() {
    let _quiet = in_company();
    const PEERS: u64 = 200;
    const TOTAL: u64 = 300_000;
    let daemon = Launch::with_config("[server]\nworkers = 2\n[timeouts]\ndrain = \"1m\"\n").start();
    let place = daemon.place().clone();
    let middle = Barrier::new(usize::try_from(PEERS).unwrap() + 1);
    let remains = thread::scope(|scope| {
        for seed in 0..PEERS {
            let (place, middle) = (&place, &middle);
            scope.spawn(move || {
                let socket = place.connect();
                let tape = Tape::new(seed);
                send_tape(&socket, tape, 0, TOTAL / 2);
                expect_tape(&socket, tape, 0, TOTAL / 4);
                middle.wait();
                send_tape(&socket, tape, TOTAL / 2, TOTAL);
                socket.shutdown(Shutdown::Write).unwrap();
                expect_tape(&socket, tape, TOTAL / 4, TOTAL);
                expect_end(&socket);
            });
        }
        middle.wait();
        daemon.signal(Signal::SIGTERM);
        daemon.finish(Losses::None)
    });
    assert_eq!(remains.counters.bytes_out, PEERS * TOTAL);
}

/// During a drain no new connection is accepted: it waits in the backlog for the next process.
#[test]
fn new_connections_wait_during_a_drain() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\ndrain = \"1m\"\n").start();
    let old = daemon.place().connect();
    assert!(ping(&old, b"here"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(10.0));
    // The workers get the command a moment after the log line.
    thread::sleep(Duration::from_millis(300));
    let new = daemon.place().connect();
    send_tape(&new, Tape::new(1), 0, 100);
    expect_silence(&new, Duration::from_millis(500));
    assert!(ping(&old, b"still here"));
    drop(old);
    let place = daemon.place().clone();
    let started = Instant::now();
    let remains = daemon.finish(Losses::None);
    assert!(started.elapsed() < time_limit(5.0), "it waited although no connection was left");
    assert_eq!(remains.counters.accepted, 1, "{place:?}");
}

/// At the deadline a peer that keeps sending gets its echo up to then and a FIN, not a reset. A
/// peer that never reads and a silent one cannot delay the end of the process.
#[test]
fn at_the_deadline_of_the_drain_each_peer_gets_an_end() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\ndrain = \"2s\"\n").start();
    let silent = daemon.place().connect();
    let non_reader = daemon.place().connect_narrow();
    let talker = daemon.place().connect();
    assert!(ping(&silent, b"here") && ping(&talker, b"here"));
    stuff(&non_reader, Tape::new(3), Duration::from_millis(300));
    daemon.signal(Signal::SIGTERM);
    let start = Instant::now();

    let talk = thread::spawn(move || talk_until_ended(&talker));
    let quiet = thread::spawn(move || read_out(&silent, time_limit(20.0)));
    daemon.finish(Losses::Allowed);
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500), "it did not wait: {took:?}");
    // The peer that never reads has five seconds to answer the end before it is cut off.
    assert!(took < Duration::from_secs(7) + time_limit(3.0), "it waited too long: {took:?}");
    let (words, end) = talk.join().unwrap();
    assert!(words > 10, "only {words} words");
    assert_eq!(end, None, "the talker saw no orderly end");
    assert_eq!(quiet.join().unwrap(), (0, Ok(())), "the silent one saw no orderly end");
    drop(non_reader);
}

/// Sends words and reads them back until the end; returns how many came back, and the error if it
/// was not an orderly end.
fn talk_until_ended(mut socket: &Socket) -> (u64, Option<ErrorKind>) {
    let tape = Tape::new(2);
    let mut words = 0;
    loop {
        if let Err(error) = socket.write_all(&tape.bytes(words * 8, 8)) {
            return (words, Some(error.kind()));
        }
        let mut word = [0; 8];
        let mut have = 0;
        while have < word.len() {
            match std::io::Read::read(&mut socket, &mut word[have..]) {
                Ok(0) => return (words, None),
                Ok(length) => {
                    tape.check(words * 8 + have as u64, &word[have..have + length], &mut vec![]);
                    have += length;
                }
                Err(error) => return (words, Some(error.kind())),
            }
        }
        words += 1;
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn without_a_service_manager_the_end_is_the_same() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    assert!(daemon.place().answers(time_limit(10.0)));
    daemon.settle();
    daemon.signal(Signal::SIGINT);
    daemon.finish(Losses::None);
}
