//! Listeners: sockets that the daemon inherits or binds, of all families, one or several; and those
//! that it refuses.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::daemon::{Daemon, Launch};
use crate::machine::{Scratch, alone, in_company, time_limit};
use crate::place::{Listening, Place, ping};

/// A TCP address of this host that no other process uses: all of 127.0.0.0/8 is local, and the
/// address is made from the id of this process. The socket that finds the port never listens, so
/// that a copy of it, which a child of another test may briefly have, does not block the port.
fn free_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 77, high.max(1), low.clamp(1, 254));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// The configuration of a listener at each.
fn tcp_and_unix(address: SocketAddr, path: &Path) -> String {
    format!(
        "[[listener]]\nname = \"tcp\"\naddress = \"{address}\"\n\
         [[listener]]\nname = \"local\"\naddress = \"unix:{}\"\n",
        path.display()
    )
}

fn assert_answers(daemon: &Daemon, places: &[Place]) {
    for place in places {
        for _ in 0..10 {
            assert!(place.answers(time_limit(10.0)), "{place:?}\n{}", daemon.transcript());
        }
    }
}

#[test]
fn inherited_sockets_of_all_families_at_once() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let mut listening = vec![Listening::ipv4(), Listening::unix(&scratch.path("inherited"))];
    match Listening::ipv6() {
        Some(it) => listening.insert(1, it),
        None => println!("skipped: this host has no IPv6"),
    }
    listening.push(Listening::ipv4());
    let count = listening.len();
    let config = "[server]\nworkers = 2\n".to_owned();
    let daemon = Launch { listening, config, ..Launch::default() }.start();
    assert_answers(&daemon, &daemon.places());
    let inherited = |line: &&String| line.ends_with("inherited)");
    let texts = daemon.log();
    assert_eq!(texts.iter().filter(inherited).count(), count, "{texts:#?}");
    for place in daemon.places() {
        let name = match place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(path) => format!("unix:{}", path.display()),
        };
        let line = format!("info listening on {name} (test, inherited)");
        assert!(texts.contains(&line), "{line:?} is missing: {texts:#?}");
    }
    let remains = daemon.stop();
    assert_eq!(remains.counters.accepted, 10 * count as u64);
}

/// Urgent bytes stay in the stream on every inherited socket, whatever options it had before. This
/// tests an IPv6 socket; `scripts` tests that urgent bytes are echoed.
#[test]
fn an_inherited_ipv6_socket() {
    let _quiet = in_company();
    let Some(listening) = Listening::ipv6() else {
        println!("skipped: this host has no IPv6");
        return;
    };
    let daemon = Launch { listening: vec![listening], ..Launch::default() }.start();
    let socket = daemon.place().connect();
    assert!(ping(&socket, b"before"));
    assert_eq!(socket.send_out_of_band(b"urgent").unwrap(), 6);
    let mut word = [0; 6];
    std::io::Read::read_exact(&mut &socket, &mut word).unwrap();
    assert_eq!(&word, b"urgent");
    drop(socket);
    daemon.stop();
}

#[test]
fn configured_addresses_are_bound() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = scratch.path("bound");
    let address = free_address();
    let config = tcp_and_unix(address, &path);
    let daemon = Launch { config, ..Launch::default() }.start();
    let texts = daemon.log();
    assert!(texts.contains(&format!("info listening on {address} (tcp)")), "{texts:#?}");
    let unix = format!("info listening on unix:{} (local)", path.display());
    assert!(texts.contains(&unix), "{texts:#?}");
    assert_answers(&daemon, &[Place::Tcp(address), Place::Unix(path)]);
    daemon.stop();
}

#[test]
fn listen_on_the_command_line_replaces_the_configured_addresses() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let (first, second, third) = (scratch.path("1"), scratch.path("2"), scratch.path("3"));
    let config =
        format!("[[listener]]\nname = \"first\"\naddress = \"unix:{}\"\n", first.display());
    let listen = |path: &Path| format!("--listen=unix:{}", path.display());
    let arguments = vec![listen(&second), listen(&third)];
    let daemon = Launch { config, arguments, ..Launch::default() }.start();
    assert!(!first.exists(), "the configured address was bound");
    assert_answers(&daemon, &[Place::Unix(second), Place::Unix(third)]);
    daemon.stop();
}

#[test]
fn listen_on_the_command_line_is_ignored_with_a_warning_if_sockets_are_inherited() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = scratch.path("ignored");
    let launch = Launch::with_config("");
    let arguments = vec![format!("--listen=unix:{}", path.display())];
    let daemon = Launch { arguments, ..launch }.start();
    assert!(!path.exists());
    let texts = daemon.log();
    let warned = |line: &String| line.starts_with("warn ") && line.contains("--listen");
    assert!(texts.iter().any(warned), "{texts:#?}");
    assert_answers(&daemon, &daemon.places());
    daemon.stop();
}

/// A killed daemon leaves the file of its Unix socket, and for some milliseconds the kernel still
/// listens on it.
#[test]
fn a_restart_after_a_kill_can_bind_again() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = scratch.path("killed");
    let address = free_address();
    let config = tcp_and_unix(address, &path);
    let mut killed = Launch { config: config.clone(), ..Launch::default() }.start();
    killed.signal(Signal::SIGKILL);
    killed.wait(time_limit(10.0));
    assert!(path.exists());
    let daemon = Launch { config, ..Launch::default() }.start();
    assert_answers(&daemon, &[Place::Tcp(address), Place::Unix(path)]);
    daemon.stop();
}

/// A bound TCP port is free again at once, even with connections in TIME_WAIT.
#[test]
fn a_restart_can_bind_again_at_once() {
    let _quiet = in_company();
    let config = format!("[[listener]]\nname = \"tcp\"\naddress = \"{}\"\n", free_address());
    for _ in 0..3 {
        let daemon = Launch { config: config.clone(), ..Launch::default() }.start();
        let address = config.split('"').nth(3).unwrap().parse().unwrap();
        let peer = Place::Tcp(address).connect();
        assert!(ping(&peer, b"here"));
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        crate::place::expect_end(&peer);
        drop(peer);
        daemon.stop();
    }
}

fn refuse(stranger: impl Into<OwnedFd>, words: &[&str]) {
    let _quiet = in_company();
    let launch = Launch::with_config("");
    let refusal = Launch { strangers: vec![stranger.into()], ..launch }.fail();
    refusal.assert(69, words);
}

#[test]
fn an_inherited_datagram_socket_without_an_address_is_refused() {
    refuse(UnixDatagram::unbound().unwrap(), &["4", "without an address"]);
}

#[test]
fn an_inherited_socket_that_does_not_listen_is_refused() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap();
    refuse(socket, &["4", "listen"]);
}

#[test]
fn an_inherited_connection_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    refuse(client, &["4", "listen"]);
}

/// Goal: the daemon does not use one of its own descriptors as an inherited one. Method:
/// `LISTEN_FDS` announces more sockets than there are, as after an error in a script.
#[test]
fn a_descriptor_that_was_not_passed_is_refused() {
    let _quiet = in_company();
    for missing in [1, 3, 40] {
        let refusal = Launch { missing, ..Launch::with_config("") }.fail();
        refusal.assert(69, &["inherited fd 4 is not open; pass listening TCP and Unix sockets"]);
    }
}

#[test]
fn an_inherited_regular_file_is_refused() {
    let scratch = Scratch::new();
    refuse(File::create(scratch.path("file")).unwrap(), &["4", "socket"]);
}

#[test]
fn sockets_meant_for_another_process_are_not_taken() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = scratch.path("own");
    let config = format!("[[listener]]\nname = \"own\"\naddress = \"unix:{}\"\n", path.display());
    let listening = vec![Listening::ipv4()];
    let addressee = Some(std::process::id());
    let daemon = Launch { listening, config, addressee, ..Launch::default() }.start();
    assert!(Place::Unix(path).answers(time_limit(10.0)));
    assert!(!daemon.place().answers(Duration::from_millis(300)));
    daemon.stop();
}

#[test]
fn an_address_in_use_is_refused() {
    let _quiet = in_company();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = format!("[[listener]]\nname = \"taken\"\naddress = \"{address}\"\n");
    let refusal = Launch { config, ..Launch::default() }.fail();
    refusal.assert(69, &[&address.to_string(), "in use"]);
}

#[test]
fn a_unix_path_in_use_is_refused_and_one_left_behind_is_taken_over() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = scratch.path("taken");
    let config = format!("[[listener]]\nname = \"u\"\naddress = \"unix:{}\"\n", path.display());
    let owner = Listening::unix(&path);
    let refusal = Launch { config: config.clone(), ..Launch::default() }.fail();
    refusal.assert(69, &[&format!("unix:{}", path.display())]);
    assert!(path.exists(), "the socket of another program was removed");

    drop(owner);
    let daemon = Launch { config, ..Launch::default() }.start();
    assert_answers(&daemon, &[Place::Unix(path.clone())]);
    daemon.stop();
    assert!(!path.exists(), "the socket it bound was left behind");
}

/// One worker for each CPU is of no use if one of them gets all connections. (In a burst a worker
/// that is awake may accept all of them before the other wakes; that depends on the scheduler and
/// is not tested here. For the same reason the best of three attempts counts.)
#[test]
fn connections_that_come_one_by_one_are_spread_over_the_workers() {
    let _quiet = alone();
    let mut attempts = Vec::new();
    while attempts.last() != Some(&2) {
        assert!(attempts.len() < 3, "how many of two workers had work: {attempts:?}");
        attempts.push(busy_of_two_workers());
    }
}

/// How many threads have a fair share of the work with forty connections.
fn busy_of_two_workers() -> usize {
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let connect = |_| {
        std::thread::sleep(Duration::from_millis(10));
        daemon.place().connect()
    };
    let peers: Vec<Socket> = (0..40).map(connect).collect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert!(peers.iter().all(|peer| ping(peer, b"one of many words")));
    }
    let spent = daemon.process.cpu_times_of_threads();
    let total: Duration = spent.iter().sum();
    println!("of {total:?} the threads spent {spent:?}");
    drop(peers);
    daemon.stop();
    spent.iter().filter(|time| **time > total / 10).count()
}
