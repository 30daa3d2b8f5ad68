//! Access lists and limits for each source, with peers from many addresses of the loopback network.
//! A refused connection is closed at once, and does not delay other clients.

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
    // A listener for both families sees IPv4 peers in their mapped form. Here the mapped address is
    // converted back.
    let source = match place {
        Place::Tcp(address) if address.is_ipv6() => IpAddr::V6(source.to_ipv6_mapped()),
        Place::Tcp(_) => IpAddr::V4(source),
        Place::Unix(path) => panic!("{path:?} has no addresses"),
    };
    come_from(&socket, source);
    place.connect_with(socket)
}

/// The connection, if the peer is permitted. A refused peer sees an end or a reset, never silence.
fn admitted(socket: Socket) -> Option<Socket> {
    socket.set_read_timeout(Some(time_limit(10.0))).unwrap();
    let start = Instant::now();
    let answered = ping(&socket, b"let me in");
    assert!(start.elapsed() < time_limit(9.0), "neither permitted nor refused");
    answered.then_some(socket)
}

/// The permitted ones of `count` connections from one address.
pub(crate) fn admit_from(daemon: &Daemon, source: [u8; 2], count: usize) -> Vec<Socket> {
    (0..count).filter_map(|_| admitted(connect_from(daemon.place(), source))).collect()
}

fn assert_refused(remains: &crate::daemon::Remains, count: u64, word: &str) {
    assert_eq!(remains.counters.refused, count, "{remains:#?}");
    let told = remains.lines.iter().any(|line| line.starts_with("warn ") && line.contains(word));
    assert!(told, "no line has {word:?}: {remains:#?}");
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

/// An allow list refuses all other addresses of both families, but no Unix peer.
#[test]
fn an_allow_list_permits_its_networks_and_unix_peers() {
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

/// A listener for both families treats an IPv4 peer as IPv4.
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
    // One /64 would contain all of them; they are counted as IPv4 addresses.
    let [one, two] = [[0, 4], [0, 5]].map(|source| admit_from(&daemon, source, 3));
    assert_eq!((one.len(), two.len()), (2, 2));
    drop((one, two));
    daemon.stop();
}

/// The limit applies exactly and over all workers, whichever of them accepts, and repeatedly.
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
        // A connection that ends makes room for another one of the same source.
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

/// Peers of one source connect from many threads. The limit is never exceeded, and when they have
/// closed, none of them is counted any more.
#[test]
fn a_storm_from_one_source_blocks_no_other_source() {
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
        assert_eq!(stayers.len(), 3, "the storm blocked another source");
        while Instant::now() < end {
            let start = Instant::now();
            assert!(stayers.iter().all(|socket| ping(socket, b"all well")));
            assert!(start.elapsed() < time_limit(2.0), "the storm delayed the others");
            thread::sleep(Duration::from_millis(10));
        }
    });
    daemon.settle();
    // All of them are counted off: the whole limit is available again.
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
    // Other sources are not limited by it, and after a while this source may connect again.
    assert_eq!(admit_from(&daemon, [0, 3], 5).len(), 5);
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(admit_from(&daemon, [0, 2], 10).len(), 10);
    let told = daemon.lines.wait_for("limits.accepts-per-source", time_limit(10.0));
    assert!(told.starts_with("warn "), "{told}");
    daemon.stop();
}

/// Goal: a reload changes which new connections are permitted, and ends no established connection.
#[test]
fn new_rules_apply_to_new_connections() {
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
    // A connection from before the limit existed is counted as well, until it ends.
    reload("[server]\nworkers = 2\n[limits]\nmax-connections-per-source = 2\n");
    assert_eq!(admit_from(&daemon, [0, 2], 2).len(), 0);
    let counted = admit_from(&daemon, [0, 4], 4);
    assert_eq!(counted.len(), 2);
    inside.truncate(1);
    wait_until("capacity for their source", time_limit(10.0), || {
        admit_from(&daemon, [0, 2], 1).len() == 1
    });
    reload("[server]\nworkers = 2\n");
    assert_eq!(admit_from(&daemon, [0, 2], 4).len(), 4);
    assert!(inside.iter().chain(&counted).all(|socket| ping(socket, b"still here")));
    drop((inside, counted));
    daemon.stop();
}
