//! One process takes over from another: a restart keeps every connection in any phase.
//!
//! The stand-in for the service manager keeps what the first daemon stores and passes it to the
//! second one. The stand-in for the bus answers that it is a restart.

use std::fs;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::bundle::Bundle;
use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{
    Listening, come_from, expect_end, expect_tape, ping, readable, send_tape, stuff,
};
use crate::tape::Tape;
use crate::udp::Bound;

const CONFIG: &str = "[server]\nworkers = 2\n[timeouts]\ndrain = \"1m\"\n";
/// With less capacity than any limit on open files permits, so that the start causes no warning.
const FEW: &str = "[server]\nworkers = 2\n[limits]\nmax-connections = 100\n";

/// A daemon with this bus.
fn start(bus: &Bus) -> Daemon {
    // Clients of the admin sockets must not delay the handover.
    let admin_sockets = vec![("agent-check", Listening::ipv4())];
    Launch { bus: bus.address(), admin_sockets, ..Launch::with_config(CONFIG) }.start()
}

/// The same, and a connection that it serves.
fn serving(bus: &Bus) -> (Daemon, Socket) {
    let daemon = start(bus);
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    (daemon, peer)
}

/// The next daemon, with this number of workers.
fn take_over(bus: &Bus, stored: Vec<OwnedFd>, listening: Vec<Listening>, workers: u32) -> Daemon {
    let config = CONFIG.replace("workers = 2", &format!("workers = {workers}"));
    Launch { bus: bus.address(), stored, listening, config, ..Launch::default() }.start()
}

/// Goal: no byte lost or doubled, no connection refused or ended, over several processes with
/// different numbers of workers. Method: peers in mid-transfer, silent, stalled, half-closed.
#[test]
fn every_connection_continues_in_the_next_process() {
    let _quiet = in_company();
    const BUSY: u64 = 60;
    const TOTAL: u64 = 400_000;
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let daemon = start(&bus);
    let place = daemon.place().clone();
    let idle: Vec<Socket> = (0..20).map(|_| place.connect()).collect();
    assert!(idle.iter().all(|peer| ping(peer, b"here")));
    // All at once: each takes ten seconds where congestion control makes small windows slow, and the
    // first must not reach its stall timeout before the last is filled.
    let fill = &|seed: u64| {
        let socket = place.connect_narrow();
        let length = stuff(&socket, Tape::new(1000 + seed), Duration::from_millis(200));
        if seed.is_multiple_of(2) {
            socket.shutdown(Shutdown::Write).unwrap();
        }
        (socket, length)
    };
    let stalled: Vec<(Socket, u64)> = thread::scope(|scope| {
        let fills: Vec<_> = (0..5).map(|seed| scope.spawn(move || fill(seed))).collect();
        fills.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let middle = Barrier::new(usize::try_from(BUSY).unwrap() + 1);
    let daemon = thread::scope(|scope| {
        let mut daemon = daemon;
        for seed in 0..BUSY {
            let (place, middle) = (&place, &middle);
            scope.spawn(move || {
                let socket = place.connect();
                send_tape(&socket, Tape::new(seed), 0, TOTAL / 4);
                expect_tape(&socket, Tape::new(seed), 0, TOTAL / 8);
                middle.wait();
                let (reader, tape) = (socket.try_clone().unwrap(), Tape::new(seed));
                let reading = thread::spawn(move || {
                    expect_tape(&reader, tape, TOTAL / 8, TOTAL);
                    expect_end(&reader);
                });
                for part in 2..8 {
                    send_tape(&socket, tape, TOTAL / 8 * part, TOTAL / 8 * (part + 1));
                    thread::sleep(Duration::from_millis(60));
                }
                socket.shutdown(Shutdown::Write).unwrap();
                reading.join().unwrap();
            });
        }
        middle.wait();
        for workers in [1, 3, 2] {
            thread::sleep(Duration::from_millis(60));
            let (stored, listening, lines) = daemon.export();
            assert!(!stored.is_empty(), "nothing was stored: {lines:#?}");
            assert!(lines.iter().any(|line| line.contains("handed over ")), "{lines:#?}");
            daemon = take_over(&bus, stored, listening, workers);
            daemon.lines.wait_for("took over ", time_limit(5.0));
            // The daemon removes what is stored from the store before it reads it.
            assert!(daemon.manager.received()[0].text.contains("FDSTOREREMOVE=1"));
        }
        daemon
    });
    assert!(idle.iter().all(|peer| ping(peer, b"still here")));
    thread::scope(|scope| {
        for (seed, (socket, length)) in stalled.iter().enumerate() {
            scope.spawn(move || {
                expect_tape(socket, Tape::new(1000 + seed as u64), 0, *length);
                if seed % 2 == 0 {
                    expect_end(socket);
                }
            });
        }
    });
    drop((idle, stalled));
    bus.say(Answer::Job("stop"));
    daemon.signal(Signal::SIGTERM);
    let remains = daemon.finish(Losses::None);
    assert_eq!(remains.counters.accepted, 0, "a client had to connect again");
    assert!(remains.counters.taken_over >= 25);
}

/// A stop drains, and so does an end that cannot be distinguished from a stop.
#[test]
fn only_a_restart_hands_over() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let answers = [
        Answer::Job("stop"),
        Answer::Job(""),
        Answer::Closed,
        Answer::Mute,
        Answer::Nonsense(vec![b'l', 2, 1, 1, 255, 255, 255, 255, 0, 0, 0, 0, 9, 0, 0, 0]),
        Answer::Nonsense(vec![0; 64]),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let said = format!("{answer:?}");
        // The daemon waits some time for a bus that does not answer, and serves meanwhile.
        let limit = if matches!(answer, Answer::Mute) { 8.0 } else { 2.0 };
        let bus = Bus::start(&scratch.path(&format!("bus{index}")), answer);
        let daemon = start(&bus);
        let peer = daemon.place().connect();
        assert!(ping(&peer, b"here"));
        let signaled = Instant::now();
        daemon.signal(Signal::SIGTERM);
        daemon.lines.wait_for("info draining: 1 connection", time_limit(limit + 1.0));
        assert!(signaled.elapsed() < time_limit(limit), "{said}: {:?}", signaled.elapsed());
        assert!(ping(&peer, b"still here"), "{said}");
        drop(peer);
        let stored = daemon.manager.take_stored();
        assert!(stored.is_empty(), "{said}: something was stored");
        daemon.finish(Losses::None);
    }
}

/// Goal: if the unit's `ExecStop=` has announced by a signal what the following SIGTERM means, the
/// bus is not asked, so its answer or absence has no effect. Method: each signal with a bus that
/// answers the opposite; and both signals, which is treated as none.
#[test]
fn what_is_announced_needs_no_bus() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let (restart, stop) = (Answer::Job("restart"), Answer::Job("stop"));
    let (urgent, window) = (Signal::SIGURG, Signal::SIGWINCH);
    let cases: [(&[Signal], Option<Answer>, bool); 7] = [
        (&[urgent], Some(stop.clone()), true),
        (&[urgent], None, true),
        (&[window], Some(restart.clone()), false),
        (&[window], None, false),
        (&[urgent, window], Some(restart.clone()), true),
        (&[window, urgent], Some(stop), false),
        (&[], Some(restart), true),
    ];
    for (index, (announced, answer, kept)) in cases.into_iter().enumerate() {
        let said = format!("{announced:?}, {answer:?}");
        let path = scratch.path(&format!("bus{index}"));
        let bus = answer.map(|answer| Bus::start(&path, answer));
        let address = format!("unix:path={}", path.display());
        let daemon = Launch { bus: address, ..Launch::with_config(FEW) }.start();
        let peer = daemon.place().connect();
        assert!(ping(&peer, b"here"));
        // The signal alone starts neither an end nor a handover.
        announced.iter().for_each(|signal| daemon.signal(*signal));
        assert!(ping(&peer, b"still here"), "{said}");
        daemon.signal(Signal::SIGTERM);
        let line = if kept { "handed over 1 connection" } else { "draining: 1 connection" };
        daemon.lines.wait_for(line, time_limit(5.0));
        drop((peer, bus));
        assert_eq!(!daemon.manager.take_stored().is_empty(), kept, "{said}");
        let remains = daemon.finish(Losses::None);
        let warnings: Vec<&String> =
            remains.lines.iter().filter(|line| line.starts_with("warn ")).collect();
        assert!(warnings.is_empty(), "{said}: {warnings:?}");
    }
}

/// Goal: a restart that ends connections logs a warning; a stop, or an end without connections,
/// does not.
#[test]
fn a_restart_that_ends_connections_warns() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    for (index, connected, answer) in [
        (0, true, Some(Answer::Closed)),
        (1, true, None),
        (2, false, Some(Answer::Closed)),
        (3, false, None),
        (4, true, Some(Answer::Job("stop"))),
    ] {
        let path = scratch.path(&format!("bus{index}"));
        let warned = connected && !matches!(answer, Some(Answer::Job(_)));
        let said = format!("{connected}, {answer:?}");
        let bus = answer.map(|answer| Bus::start(&path, answer));
        let address = format!("unix:path={}", path.display());
        let daemon = Launch { bus: address, ..Launch::with_config(FEW) }.start();
        let peer = connected.then(|| daemon.place().connect());
        assert!(peer.iter().all(|peer| ping(peer, b"here")));
        daemon.signal(Signal::SIGTERM);
        daemon.lines.wait_for("draining: ", time_limit(5.0));
        drop((peer, bus));
        let remains = daemon.finish(Losses::None);
        let warnings: Vec<&String> =
            remains.lines.iter().filter(|line| line.starts_with("warn ")).collect();
        assert_eq!(warnings.len(), usize::from(warned), "{said}: {warnings:?}");
        let named = |line: &&String| line.contains("1 connection") && line.contains("ExecStop=");
        assert!(warnings.iter().all(named), "{said}: {warnings:?}");
    }
}

/// Goal: a daemon that cannot hand over drains instead, and its counters continue. Method: the
/// service manager has gone when the daemon stores; the status, which is made once a second, must
/// still be correct.
#[test]
fn a_handover_that_fails_becomes_a_drain() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let mut daemon = start(&bus);
    let peers: Vec<Socket> = (0..3).map(|_| daemon.place().connect()).collect();
    // More bytes than the drain will echo.
    for _ in 0..200 {
        assert!(peers.iter().all(|peer| ping(peer, b"here")));
    }
    // So that the last status contains them.
    thread::sleep(Duration::from_millis(1200));
    daemon.manager.end();
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("connections cannot be handed over", time_limit(5.0));
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        assert!(peers.iter().all(|peer| ping(peer, b"still here")));
        thread::sleep(Duration::from_millis(100));
    }
    drop(peers);
    let remains = daemon.finish(Losses::None);
    assert_eq!(remains.counters.accepted, 3);
}

/// Goal: after a failed handover the reloaded configuration stays in force, and no new connection
/// is accepted. Method: an access list and a timeout that were not in the file at the start.
#[test]
fn a_handover_that_fails_keeps_the_reloaded_configuration() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let mut daemon = start(&bus);
    let silent = daemon.place().connect();
    assert!(ping(&silent, b"here"));
    let access = "[access]\ndeny = [\"127.0.0.9\"]\n";
    let reloaded = format!("{CONFIG}idle = \"3s\"\n{access}");
    fs::write(daemon.config_path(), reloaded).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.lines.wait_for("info reloaded: access.deny", time_limit(5.0));
    assert!(ping(&silent, b"here"));
    let begin = Instant::now();
    daemon.manager.end();
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("connections cannot be handed over", time_limit(5.0));
    daemon.lines.wait_for("info draining: 1 connection,", time_limit(5.0));
    let others = ["127.0.0.9", "127.0.0.1"].map(|source| {
        let socket = daemon.place().socket();
        come_from(&socket, source.parse().unwrap());
        let socket = daemon.place().connect_with(socket);
        send_tape(&socket, Tape::new(1), 0, 5);
        socket
    });
    assert!(readable(&silent, time_limit(10.0)), "the reloaded timeout is not in force");
    expect_end(&silent);
    let silence = begin.elapsed();
    assert!(silence > Duration::from_millis(2500), "it was closed after {silence:?}");
    for other in &others {
        assert!(!readable(other, Duration::from_millis(1)), "a new connection was accepted");
    }
    drop(silent);
    let remains = daemon.finish(Losses::None);
    assert_eq!((remains.counters.accepted, remains.counters.refused), (1, 0));
}

/// Goal: a restart keeps the connections although the previous restart has not finished. systemd then
/// sends SIGTERM while the daemon starts. Method: the start waits for the service manager.
#[test]
fn a_restart_of_a_daemon_that_is_starting_hands_over() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let (daemon, peer) = serving(&bus);
    let (stored, listening, _) = daemon.export();
    let bundle = Launch { bus: bus.address(), stored, listening, ..Launch::default() };
    let daemon = Launch { config: CONFIG.into(), holds_barriers: true, ..bundle }.spawn();
    let is_starting = || !daemon.manager.values("FDSTOREREMOVE").is_empty();
    wait_until("the store to be emptied", time_limit(20.0), is_starting);
    daemon.signal(Signal::SIGTERM);
    daemon.manager.hold_barriers(false);
    let (stored, listening, lines) = daemon.exported();
    assert!(lines.iter().any(|line| line.contains("handed over 1 connection")), "{lines:#?}");
    let daemon = take_over(&bus, stored, listening, 2);
    assert!(ping(&peer, b"still here"));
    drop(peer);
    bus.say(Answer::Job("stop"));
    daemon.stop();
}

/// Goal: during a handover no new connection is served, so `/ready` and `/serving` return 503, and
/// also after it has failed. Method: a slow service manager.
#[test]
fn during_a_handover_the_service_is_not_ready() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let admin_sockets = vec![("metrics", Listening::ipv4())];
    let launch = Launch { bus: bus.address(), admin_sockets, ..Launch::with_config(CONFIG) };
    let mut daemon = launch.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    let verdict = |path: &str| {
        let socket = daemon.admin_place("metrics").connect();
        send_all(&socket, format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
        read_all(&socket)
    };
    let probes = ["/ready", "/serving"];
    assert!(probes.iter().all(|path| verdict(path).starts_with("HTTP/1.1 200 ")));
    daemon.manager.hold_barriers(true);
    daemon.signal(Signal::SIGTERM);
    wait_until("something to be stored", time_limit(5.0), || daemon.manager.has_stored());
    for _ in 0..3 {
        for answer in probes.map(verdict) {
            let refused = answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("leaving\n");
            assert!(refused, "{answer}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    daemon.manager.hold_barriers(false);
    assert_eq!(daemon.wait(time_limit(10.0)).code(), Some(0), "{}", daemon.transcript());
    daemon.lines.wait_for("handed over 1 connection", time_limit(5.0));
}

fn send_all(mut socket: &Socket, bytes: &[u8]) {
    std::io::Write::write_all(&mut socket, bytes).unwrap();
}

fn read_all(mut socket: &Socket) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut socket, &mut text).unwrap();
    text
}

/// Goal: connections continue although the next process has no stream listener: its last one was
/// removed from the configuration, and only UDP is left.
#[test]
fn connections_outlive_the_last_stream_listener() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let (daemon, peer) = serving(&bus);
    let (stored, _, _) = daemon.export();
    let datagrams = Bound::ipv4();
    let (strangers, config) = (vec![datagrams.hand_over()], CONFIG.to_owned());
    let daemon =
        Launch { bus: bus.address(), stored, strangers, config, ..Launch::default() }.start();
    assert!(ping(&peer, b"still here"));
    drop(peer);
    bus.say(Answer::Job("stop"));
    daemon.settle();
    daemon.signal(Signal::SIGTERM);
    daemon.finish(Losses::None);
}

/// How the state is damaged between the two processes.
type Damage = fn(&mut Vec<u8>);

/// If the state cannot be read, its connections get a FIN and the service starts.
#[test]
fn an_unreadable_state_is_ended_in_order() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let damages: [(&str, Damage); 5] = [
        ("version", |state| state[16] += 7),
        ("no state", |state| state[0] = b'E'),
        ("checksum", |state| state[64] ^= 2),
        ("cut short", |state| state.truncate(70)),
        ("no state", Vec::clear),
    ];
    for (complaint, damage) in damages {
        let daemon = start(&bus);
        let peers: Vec<Socket> = (0..3).map(|_| daemon.place().connect()).collect();
        assert!(peers.iter().all(|peer| ping(peer, b"here")));
        let (stored, listening, _) = daemon.export();
        let mut bundle = Bundle::open(stored);
        damage(&mut bundle.state);
        let stored = vec![bundle.close()];
        let daemon = take_over(&bus, stored, listening, 2);
        let line = daemon.lines.wait_for("cannot be used", time_limit(5.0));
        assert!(line.starts_with("warn ") && line.contains("3 connections"), "{line}");
        if complaint != "no state" && complaint != "cut short" {
            assert!(line.contains(complaint), "{line}");
        }
        peers.iter().for_each(expect_end);
        drop(peers);
        assert!(daemon.place().answers(time_limit(10.0)));
        bus.say(Answer::Job("stop"));
        daemon.settle();
        daemon.signal(Signal::SIGTERM);
        daemon.finish(Losses::None);
        bus.say(Answer::Job("restart"));
    }
}
