//! The end of the listening sockets, inherited or own: no established connection is reset.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::bus::{Answer, Bus};
use crate::daemon::Launch;
use crate::ending::Losses;
use crate::machine::{Scratch, alone, in_company, time_limit};
use crate::place::{Listening, Place, ping, reset};

/// The results of the connections.
#[derive(Debug, Default)]
struct Tally {
    served: AtomicU64,
    refused: AtomicU64,
    /// Connected, without an echo.
    lost: AtomicU64,
}

/// Clients that connect one after the other and exchange a word, until they are refused or stopped.
fn storm(place: &Place, tally: &Tally, stop: &AtomicBool) {
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    while !stop.load(Ordering::Relaxed) {
        let socket = match place.try_connect() {
            Ok(socket) => socket,
            // A closed Unix listener has no file any more.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) =>
            {
                return count(&tally.refused);
            }
            Err(error) => {
                println!("{place:?}: connect: {error}");
                return count(&tally.lost);
            }
        };
        if !ping(&socket, b"a word") {
            return count(&tally.lost);
        }
        count(&tally.served);
        // Without TIME_WAIT, or ports would run out.
        reset(socket);
    }
}

const CLIENTS: usize = 6;

/// A free port of this address; none where there is no such address.
fn free_port(address: impl Into<std::net::IpAddr>) -> Option<SocketAddr> {
    let address = SocketAddr::from((address.into(), 0));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).ok()?;
    socket.set_reuse_address(true).ok()?;
    socket.bind(&address.into()).ok()?;
    socket.local_addr().ok()?.as_socket()
}

/// Goal: a stop resets no client whose connect(2) succeeded; later clients are refused. Method:
/// storms on sockets of all kinds that the daemon made, with several workers and no lead.
#[test]
fn a_stop_resets_no_client_of_own_sockets() {
    let _quiet = alone();
    let scratch = Scratch::new();
    let mut places: Vec<Place> =
        [free_port(Ipv4Addr::new(127, 78, 0, 1)), free_port(Ipv6Addr::LOCALHOST)]
            .into_iter()
            .flatten()
            .map(Place::Tcp)
            .collect();
    places.push(Place::Unix(scratch.path("storm")));
    let mut listeners = "[timeouts]\ndrain = \"2s\"\ndrain-lead = \"0s\"\n".to_owned();
    for (index, place) in places.iter().enumerate() {
        let address = match place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(path) => format!("unix:{}", path.display()),
        };
        listeners += &format!("[[listener]]\nname = \"l{index}\"\naddress = \"{address}\"\n");
    }
    for sockets in ["shared", "per-worker"] {
        let config =
            format!("[server]\nworkers = 3\nlistening-sockets = \"{sockets}\"\n{listeners}");
        let daemon = Launch { config, ..Launch::default() }.start();
        // A connection that stays until the end of the drain.
        let last = places[0].connect();
        assert!(ping(&last, b"here"));
        let tallies: Vec<Tally> = places.iter().map(|_| Tally::default()).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (place, tally) in places.iter().zip(&tallies).cycle().take(CLIENTS * places.len()) {
                let stop = &stop;
                scope.spawn(move || storm(place, tally, stop));
            }
            thread::sleep(Duration::from_millis(300));
            daemon.signal(Signal::SIGTERM);
            thread::sleep(Duration::from_millis(200));
            assert!(ping(&last, b"still here"));
        });
        daemon.finish(Losses::Allowed);
        println!("{tallies:?}");
        for tally in &tallies {
            assert_eq!(tally.lost.load(Ordering::Relaxed), 0, "{tallies:?}");
            assert_eq!(tally.refused.load(Ordering::Relaxed), CLIENTS as u64, "{tallies:?}");
            assert!(tally.served.load(Ordering::Relaxed) > 0, "{tallies:?}");
        }
        drop(last);
    }
}

/// Goal: a connection that waits for capacity at the stop gets a slot when one is free, and an
/// echo.
#[test]
fn the_backlog_is_served_during_the_drain() {
    let _quiet = in_company();
    let address = free_port(Ipv4Addr::new(127, 78, 0, 2)).unwrap();
    let config = format!(
        "[server]\nworkers = 1\n[limits]\nmax-connections = 1\n[timeouts]\ndrain = \"1m\"\n\
         [[listener]]\nname = \"tcp\"\naddress = \"{address}\"\n"
    );
    let daemon = Launch { config, ..Launch::default() }.start();
    let place = Place::Tcp(address);
    let first = place.connect();
    assert!(ping(&first, b"here"));
    let waiting: Vec<Socket> = (0..3).map(|_| place.connect()).collect();
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(5.0));
    assert!(ping(&first, b"still here"));
    drop(first);
    for socket in waiting {
        assert!(ping(&socket, b"my turn"));
    }
    let remains = daemon.finish(Losses::None);
    assert_eq!(remains.counters.accepted, 4);
}

/// Goal: when systemd closes the sockets after the stop, no connection is left in them to be reset.
#[test]
fn a_stop_with_the_socket_units_resets_no_client() {
    let _quiet = alone();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Ending("stop"));
    for _ in 0..2 {
        let launch = Launch::with_config("[server]\nworkers = 2\n[timeouts]\ndrain = \"2s\"\n");
        let daemon = Launch { bus: bus.address(), ..launch }.start();
        let place = daemon.place().clone();
        let last = place.connect();
        assert!(ping(&last, b"here"));
        let (tally, stop) = (Tally::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| storm(&place, &tally, &stop));
            }
            thread::sleep(Duration::from_millis(300));
            daemon.signal(Signal::SIGTERM);
            // Its end closes the sockets that the stand-in for systemd holds.
            daemon.finish(Losses::Allowed);
        });
        println!("{tally:?}");
        assert_eq!(tally.lost.load(Ordering::Relaxed), 0, "{tally:?}");
        assert_eq!(tally.refused.load(Ordering::Relaxed), CLIENTS as u64, "{tally:?}");
        drop(last);
    }
}

/// Goal: the same for a restart that keeps connections, of a daemon with sockets of its own:
/// clients that connected to the old process are served by the new one.
#[test]
fn a_restart_resets_no_client_of_own_sockets() {
    let _quiet = alone();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let place = Place::Tcp(free_port(Ipv4Addr::new(127, 78, 0, 3)).unwrap());
    let Place::Tcp(address) = &place else { unreachable!("it was made of an address") };
    let config =
        format!("[server]\nworkers = 2\n[[listener]]\nname = \"tcp\"\naddress = \"{address}\"\n");
    let start = |stored| {
        let bus = bus.address();
        Launch { config: config.clone(), bus, stored, ..Launch::default() }.start()
    };
    let mut daemon = start(Vec::new());
    for _ in 0..3 {
        let last = place.connect();
        assert!(ping(&last, b"here"));
        let (tally, stop) = (Tally::default(), AtomicBool::new(false));
        daemon = thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| storm(&place, &tally, &stop));
            }
            thread::sleep(Duration::from_millis(200));
            let (stored, _, _) = daemon.export();
            let next = start(stored);
            stop.store(true, Ordering::Relaxed);
            next
        });
        assert!(ping(&last, b"still here"));
        println!("{tally:?}");
        assert_eq!(tally.lost.load(Ordering::Relaxed), 0, "{tally:?}");
    }
    bus.say(Answer::Job("stop"));
    daemon.signal(Signal::SIGTERM);
    daemon.finish(Losses::Allowed);
}

/// Goal: a socket unit that is not stopped after all accepts again when the daemon has ended, also
/// when it was killed.
#[test]
fn a_socket_unit_that_stays_accepts_again() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Ending("stop"));
    let start = |listening| {
        let config = "[timeouts]\ndrain = \"1m\"\n".to_owned();
        Launch { listening, config, bus: bus.address(), ..Launch::default() }.start()
    };
    let daemon = start(vec![Listening::ipv4()]);
    let (place, kept) = (daemon.place().clone(), daemon.place_socket());
    let last = place.connect();
    assert!(ping(&last, b"here"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(10.0));
    // The stop of the socket unit is called off, and then the service ends.
    bus.say(Answer::Job("stop"));
    drop(last);
    daemon.finish(Losses::None);
    let began = Instant::now();
    drop(place.connect());
    assert!(began.elapsed() < Duration::from_millis(500), "it was delayed");

    bus.say(Answer::Ending("stop"));
    let again = Listening { socket: kept.into(), place: place.clone() };
    let socket = again.hand_over();
    let mut daemon = start(vec![again]);
    let last = place.connect();
    assert!(ping(&last, b"here"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(10.0));
    daemon.signal(Signal::SIGKILL);
    daemon.wait(time_limit(10.0));
    bus.say(Answer::Job(""));
    let daemon = start(vec![Listening { socket: socket.into(), place: place.clone() }]);
    let began = Instant::now();
    assert!(place.answers(time_limit(5.0)));
    assert!(began.elapsed() < Duration::from_millis(900), "it was delayed");
    daemon.stop();
}
