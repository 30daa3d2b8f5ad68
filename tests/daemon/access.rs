//! Who is let in: access lists and what one source may take, with peers from many addresses of the
//! loopback network. Who is refused is told so at once, and keeps nobody out.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::daemon::{Daemon, Launch};
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, come_from, ping};

/// A connection from 127.0.`third`.`fourth`.
fn connect_from(place: &Place, [third, fourth]: [u8; 2]) -> Socket {
    let socket = place.socket();
    let source = Ipv4Addr::new(127, 0, third, fourth);
    // On a listener for both families IPv4 peers appear in their mapped form; here it is the other
    // way round.
    let source = match place {
        Place::Tcp(address) if address.is_ipv6() => IpAddr::V6(source.to_ipv6_mapped()),
        Place::Tcp(_) => IpAddr::V4(source),
        Place::Unix(path) => panic!("{path:?} has no addresses"),
    };
    come_from(&socket, source);
    place.connect_with(socket)
}

/// Whether a peer is let in; if so, its connection. Who is refused sees an end or a reset, never
/// silence.
fn admitted(socket: Socket) -> Option<Socket> {
    socket.set_read_timeout(Some(time_limit(10.0))).unwrap();
    let start = Instant::now();
    let answered = ping(&socket, b"let me in");
    assert!(start.elapsed() < time_limit(9.0), "neither let in nor refused");
    answered.then_some(socket)
}

/// How many of `count` connections from one address are let in.
pub(crate) fn admit_from(daemon: &Daemon, source: [u8; 2], count: usize) -> Vec<Socket> {
    (0..count).filter_map(|_| admitted(connect_from(daemon.place(), source))).collect()
}

fn assert_refused(remains: &crate::daemon::Remains, count: u64, word: &str) {
    assert_eq!(remains.counters.refused, count, "{remains:#?}");
    let told = remains.lines.iter().any(|line| line.starts_with("warn ") && line.contains(word));
    assert!(told, "nobody was told of {word:?}: {remains:#?}");
}

#[test]
fn a_denied_peer_is_closed_at_once_and_others_are_not() {
    let _quiet = in_company();
    let config = "[access]\ndeny = [\"127.0.7.0/24\", \"127.0.0.9\", \"::ffff:127.0.0.11\"]\n";
    let daemon = Launch::with_config(config).start();
    let mut inside = Vec::new();
    for (source, welcome) in [
        ([0, 1], true),
        ([7, 1], false),
        ([7, 255], false),
        ([0, 9], false),
        ([0, 10], true),
        ([0, 11], false),
        ([8, 0], true),
    ] {
        let socket = admitted(connect_from(daemon.place(), source));
        assert_eq!(socket.is_some(), welcome, "127.0.{source:?}");
        inside.extend(socket);
    }
    for socket in &inside {
        assert!(ping(socket, b"still here"));
    }
    daemon.lines.wait_for("refused by [access]", time_limit(10.0));
    drop(inside);
    assert_refused(&daemon.stop(), 4, "refused by [access]");
}

/// An allow list refuses the rest, of either family; but never a Unix peer.
#[test]
fn an_allow_list_lets_in_whom_it_names_and_unix_peers() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let mut listening = vec![Listening::ipv4(), Listening::unix(&scratch.path("echo.sock"))];
    listening.extend(Listening::ipv6());
    let config = "[access]\nallow = [\"127.0.1.0/24\"]\ndeny = [\"127.0.1.2\"]\n".to_owned();
    let daemon = Launch { listening, config, ..Launch::default() }.start();
    let places = daemon.places();
    assert_eq!(admit_from(&daemon, [1, 1], 2).len(), 2);
    assert_eq!(admit_from(&daemon, [1, 2], 2).len(), 0);
    assert_eq!(admit_from(&daemon, [2, 1], 2).len(), 0);
    assert!(places[1].answers(time_limit(10.0)), "a Unix peer was refused");
    if let Some(ipv6) = places.get(2) {
        assert!(admitted(ipv6.connect()).is_none(), "::1 is on no list");
    }
    daemon.stop();
}

/// On a listener that takes both families, an IPv4 peer is what it is.
#[test]
fn a_mapped_peer_is_an_ipv4_peer() {
    let _quiet = in_company();
    let Some(listening) = Listening::both() else {
        println!("skipped: this host has no IPv6");
        return;
    };
    let config = "[access]\ndeny = [\"127.0.0.3\"]\n[limits]\nmax-connections-per-source = 2\n";
    let launch = Launch { listening: vec![listening], ..Launch::with_config(config) };
    let daemon = launch.start();
    assert_eq!(admit_from(&daemon, [0, 3], 2).len(), 0);
    // A /64 would hold all of them; they are counted as IPv4 addresses.
    let [one, two] = [[0, 4], [0, 5]].map(|source| admit_from(&daemon, source, 3));
    assert_eq!((one.len(), two.len()), (2, 2));
    drop((one, two));
    daemon.stop();
}

/// The cap holds over all workers, exactly, whoever of them takes the connections; and again and
/// again.
#[test]
fn a_source_gets_its_cap_and_no_more() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 4\n[limits]\nmax-connections-per-source = 5\n";
    let daemon = Launch::with_config(config).start();
    for _ in 0..5 {
        let greedy = admit_from(&daemon, [0, 2], 20);
        assert_eq!(greedy.len(), 5);
        let modest = admit_from(&daemon, [0, 3], 4);
        assert_eq!(modest.len(), 4);
        // Who leaves makes room for one of its own.
        let mut greedy = greedy;
        drop(greedy.pop());
        wait_until("a connection of the source to be counted off", time_limit(10.0), || {
            greedy.extend(admitted(connect_from(daemon.place(), [0, 2])));
            greedy.len() == 5
        });
        assert!(greedy.iter().chain(&modest).all(|socket| ping(socket, b"still here")));
        drop((greedy, modest));
        daemon.settle();
    }
    daemon.lines.wait_for("max-connections-per-source", time_limit(10.0));
    let remains = daemon.stop();
    assert!(remains.counters.refused >= 75, "{remains:#?}");
}

/// Peers of one source hammer from many threads; not once is the cap passed, and when they are
/// gone, nothing of them is left.
#[test]
fn a_storm_from_one_source_keeps_nobody_out() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 2\n[limits]\nmax-connections = 6\n\
                  max-connections-per-source = 3\n";
    let daemon = Launch::with_config(config).start();
    let place = daemon.place();
    thread::scope(|scope| {
        let end = Instant::now() + Duration::from_secs(3);
        for _ in 0..4 {
            scope.spawn(move || {
                while Instant::now() < end {
                    drop(admitted(connect_from(place, [0, 2])));
                }
            });
        }
        let stayers: Vec<_> =
            (0..3).filter_map(|_| admitted(connect_from(place, [0, 3]))).collect();
        assert_eq!(stayers.len(), 3, "the storm kept another source out");
        while Instant::now() < end {
            let start = Instant::now();
            assert!(stayers.iter().all(|socket| ping(socket, b"all well")));
            assert!(start.elapsed() < time_limit(2.0), "the storm held up the others");
            thread::sleep(Duration::from_millis(10));
        }
    });
    daemon.settle();
    // Everything is counted off: the whole cap is there again.
    assert_eq!(admit_from(&daemon, [0, 2], 4).len(), 3);
    daemon.stop();
}

#[test]
fn a_prefix_makes_many_addresses_one_source() {
    let _quiet = in_company();
    let config = "[limits]\nmax-connections-per-source = 2\nsource-prefix-ipv4 = 24\n";
    let daemon = Launch::with_config(config).start();
    let inside: Vec<_> = [[5, 1], [5, 2], [6, 1]]
        .map(|source| admit_from(&daemon, source, 1))
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(inside.len(), 3);
    assert_eq!(admit_from(&daemon, [5, 3], 1).len(), 0);
    assert_eq!(admit_from(&daemon, [6, 3], 1).len(), 1);
    drop(inside);
    daemon.stop();
}

#[test]
fn an_ipv6_source_has_its_cap_too() {
    let _quiet = in_company();
    let Some(listening) = Listening::ipv6() else {
        println!("skipped: this host has no IPv6");
        return;
    };
    let config = "[limits]\nmax-connections-per-source = 2\n";
    let launch = Launch { listening: vec![listening], ..Launch::with_config(config) };
    let daemon = launch.start();
    let inside: Vec<_> = (0..4).filter_map(|_| admitted(daemon.place().connect())).collect();
    assert_eq!(inside.len(), 2);
    drop(inside);
    daemon.stop();
}

#[test]
fn a_source_that_connects_too_fast_is_held_to_its_rate() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 2\n[limits]\naccepts-per-source = 10\n";
    let daemon = Launch::with_config(config).start();
    let start = Instant::now();
    let burst = admit_from(&daemon, [0, 2], 40).len();
    let took = start.elapsed();
    let most = 10 + (took.as_secs_f64() * 10.0) as usize + 1;
    assert!((10..=most).contains(&burst), "{burst} in {took:?}");
    // Others are not held to it, and it may come again.
    assert_eq!(admit_from(&daemon, [0, 3], 5).len(), 5);
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(admit_from(&daemon, [0, 2], 10).len(), 10);
    let told = daemon.lines.wait_for("limits.accepts-per-source", time_limit(10.0));
    assert!(told.starts_with("warn "), "{told}");
    daemon.stop();
}

/// Goal: a reload changes who is let in from now on, and ends nobody who is there.
#[test]
fn new_rules_are_for_those_who_come_after_them() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let mut inside = admit_from(&daemon, [0, 2], 3);
    assert_eq!(inside.len(), 3);
    let reload = |config: &str| {
        std::fs::write(daemon.config_path(), config).unwrap();
        let before = daemon.manager.values("READY").len();
        daemon.signal(nix::sys::signal::Signal::SIGHUP);
        wait_until("the end of a reload", time_limit(10.0), || {
            daemon.manager.values("READY").len() > before
        });
    };
    reload("[server]\nworkers = 2\n[access]\ndeny = [\"127.0.0.2\"]\n");
    assert_eq!(admit_from(&daemon, [0, 2], 3).len(), 0);
    assert_eq!(admit_from(&daemon, [0, 3], 1).len(), 1);
    // Who came before there was a cap counts by it all the same, until it leaves.
    reload("[server]\nworkers = 2\n[limits]\nmax-connections-per-source = 2\n");
    assert_eq!(admit_from(&daemon, [0, 2], 2).len(), 0);
    let counted = admit_from(&daemon, [0, 4], 4);
    assert_eq!(counted.len(), 2);
    inside.truncate(1);
    wait_until("a place for their source", time_limit(10.0), || {
        admit_from(&daemon, [0, 2], 1).len() == 1
    });
    reload("[server]\nworkers = 2\n");
    assert_eq!(admit_from(&daemon, [0, 2], 4).len(), 4);
    assert!(inside.iter().chain(&counted).all(|socket| ping(socket, b"still here")));
    drop((inside, counted));
    daemon.stop();
}
