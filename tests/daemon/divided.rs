//! Several listening sockets on one address, and which worker accepts from which socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::machine::{Scratch, alone, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, expect_end, ping};

/// An address that no other program uses.
fn free_address(last: u8) -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 79, 0, last), 0)).into()).unwrap();
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// A daemon with a socket for each of its workers at `address`, and with `more` in its
/// configuration.
fn own(scratch: &Scratch, address: SocketAddr, workers: usize, more: &str) -> Daemon {
    let config = format!(
        "[server]\nworkers = {workers}\nlistening-sockets = \"per-worker\"\n{more}\n\
         [[listener]]\nname = \"tcp\"\naddress = \"{address}\"\n"
    );
    let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
    Launch { config, admin_sockets, ..Launch::default() }.start()
}

fn status(daemon: &Daemon) -> Value {
    let Place::Unix(path) = daemon.admin_place("status") else { panic!("no Unix socket") };
    let mut text = String::new();
    let mut socket = std::os::unix::net::UnixStream::connect(path).unwrap();
    std::io::Read::read_to_string(&mut socket, &mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// How many connections each worker has accepted.
fn accepted(daemon: &Daemon) -> Vec<u64> {
    let status = status(daemon);
    let workers = status["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker["accepted"].as_u64().unwrap()).collect()
}

/// Listening TCP sockets of this host at an address, by /proc/net/tcp.
fn listening_at(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("an IPv4 address") };
    let [a, b, c, d] = address.ip().octets();
    let wanted = format!(" {d:02X}{c:02X}{b:02X}{a:02X}:{:04X} 00000000:0000 0A ", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().filter(|line| line.contains(&wanted)).count()
}

/// Goal: every socket is served, whatever the numbers of sockets and workers. Several sockets of
/// one address are one listener in the status.
#[test]
fn every_socket_of_an_address_is_served() {
    let _quiet = in_company();
    for (sockets, workers) in [(4, 2), (2, 3), (3, 3)] {
        let scratch = Scratch::new();
        let listening = Listening::several(sockets);
        let place = listening[0].place.clone();
        let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
        let config = format!("[server]\nworkers = {workers}\n");
        let daemon = Launch { listening, admin_sockets, config, ..Launch::default() }.start();
        let peers: Vec<Socket> = (0..120).map(|_| place.connect()).collect();
        assert!(peers.iter().all(|peer| ping(peer, b"here")), "{}", daemon.transcript());
        let accepted = accepted(&daemon);
        // Of workers that share a socket some may accept none of so few connections.
        let serving = accepted.iter().filter(|&&count| count > 0).count();
        assert!(serving >= sockets.min(workers), "{sockets} sockets: {accepted:?}");
        let listeners = status(&daemon)["listeners"].as_array().unwrap().clone();
        assert_eq!(listeners.len(), 1, "{listeners:?}");
        assert_eq!(listeners[0]["accepted"], 120);
        drop(peers);
        daemon.stop();
    }
}

/// Goal: a configured address has a socket for each worker if so configured, and one otherwise. In
/// both cases another process cannot bind the address.
#[test]
fn an_own_address_has_a_socket_for_each_worker() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let address = free_address(1);
    let daemon = own(&scratch, address, 3, "");
    assert_eq!(listening_at(address), 3);
    let place = Place::Tcp(address);
    let peers: Vec<Socket> = (0..90).map(|_| place.connect()).collect();
    assert!(peers.iter().all(|peer| ping(peer, b"here")));
    assert!(accepted(&daemon).iter().all(|&count| count > 0), "{:?}", accepted(&daemon));
    let config = format!("[[listener]]\nname = \"tcp\"\naddress = \"{address}\"\n");
    Launch { config: config.clone(), ..Launch::default() }.fail().assert(69, &["in use"]);
    drop(peers);
    daemon.stop();
    let config = format!("[server]\nworkers = 3\n{config}");
    let daemon = Launch { config, ..Launch::default() }.start();
    assert_eq!(listening_at(address), 1, "few workers share one socket");
    daemon.stop();
}

/// Goal: no connection waits for a full worker while another one has capacity. Method: as many
/// connections as the capacity, and a kernel that does not know which worker has a free slot.
#[test]
fn a_full_worker_leaves_its_socket_to_the_others() {
    let _quiet = in_company();
    let limits = "[limits]\nmax-connections = 8";
    for last in 2..7 {
        let scratch = Scratch::new();
        let address = free_address(last);
        let daemon = own(&scratch, address, 4, limits);
        let place = Place::Tcp(address);
        // One after the other: of two that race for the last slot of a worker, one waits there.
        let mut peers: Vec<Socket> = Vec::new();
        for _ in 0..8 {
            peers.push(place.connect());
            assert!(ping(&peers[peers.len() - 1], b"here"), "{}", daemon.transcript());
        }
        assert_eq!(accepted(&daemon), [2; 4]);
        drop(peers);
        daemon.stop();
    }
    // With fewer slots than workers some workers have none from the beginning.
    let scratch = Scratch::new();
    let address = free_address(7);
    let daemon = own(&scratch, address, 4, "[limits]\nmax-connections = 1");
    for _ in 0..12 {
        assert!(Place::Tcp(address).answers(time_limit(10.0)), "{}", daemon.transcript());
    }
    daemon.stop();
}

/// Goal: closing one of several sockets loses no connection in its backlog. Method: the daemon is
/// stopped (SIGSTOP) while clients connect and the signal to end is sent.
#[test]
fn a_stop_serves_every_backlog() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let address = free_address(8);
    let daemon = own(&scratch, address, 3, "[timeouts]\ndrain = \"10s\"");
    daemon.signal(Signal::SIGSTOP);
    let place = Place::Tcp(address);
    let mut peers: Vec<Socket> = (0..40).map(|_| place.connect()).collect();
    for peer in &mut peers {
        std::io::Write::write_all(peer, b"word").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    }
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGCONT);
    for peer in &mut peers {
        let mut word = [0; 4];
        std::io::Read::read_exact(peer, &mut word).unwrap();
        assert_eq!(&word, b"word");
        expect_end(peer);
    }
    drop(peers);
    daemon.finish(Losses::None);
    assert_eq!(listening_at(address), 0);
}

/// Goal: the next process serves the connections that wait in a backlog between two processes,
/// whatever its number of workers.
#[test]
fn a_restart_with_another_number_of_workers_serves_every_backlog() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let mut listening = Listening::several(4);
    let place = listening[0].place.clone();
    let mut stored = Vec::new();
    let mut peers: Vec<Socket> = Vec::new();
    for workers in [1, 3, 8, 2] {
        peers.extend((0..20).map(|_| place.connect()));
        let config = format!("[server]\nworkers = {workers}\n");
        let daemon =
            Launch { bus: bus.address(), stored, listening, config, ..Launch::default() }.start();
        assert!(peers.iter().all(|peer| ping(peer, b"here")), "{}", daemon.transcript());
        (stored, listening, _) = daemon.export();
    }
}

/// Goal: with pinned workers a connection is served on the CPU that receives its packets. Method:
/// over loopback that is the CPU of the client.
#[test]
fn pinned_workers_serve_their_cpu() {
    let _quiet = alone();
    let allowed = sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    if cpus.len() < 2 || !steers_by_cpu() {
        println!("skipped: one CPU, or a kernel before 6.2");
        return;
    }
    let scratch = Scratch::new();
    let address = free_address(9);
    let daemon = own(&scratch, address, 2, "pin-workers = true");
    for (worker, &cpu) in cpus[..2].iter().enumerate() {
        let before = accepted(&daemon);
        thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).unwrap();
            let peers: Vec<Socket> = (0..40).map(|_| Place::Tcp(address).connect()).collect();
            assert!(peers.iter().all(|peer| ping(peer, b"here")));
        })
        .join()
        .unwrap();
        let now = accepted(&daemon);
        assert_eq!(now[worker] - before[worker], 40, "CPU {cpu}: {before:?} {now:?}");
    }
    daemon.stop();
    // Without pinning the kernel's default selection applies again to an inherited socket.
    let listening = Listening::several(2);
    for socket in &listening {
        socket.socket.set_cpu_affinity(cpus[0]).unwrap();
    }
    let sockets: Vec<Socket> = listening.iter().map(|it| it.socket.try_clone().unwrap()).collect();
    let config = "[server]\nworkers = 2\n".to_owned();
    let daemon = Launch { listening, config, ..Launch::default() }.start();
    wait_until("the sockets to be reset", Duration::from_secs(5), || {
        sockets.iter().all(|socket| socket.cpu_affinity().is_ok_and(|cpu| cpu != cpus[0]))
    });
    assert!(sockets.iter().all(|socket| socket.as_raw_fd() > 0));
    daemon.stop();
}

/// Whether the kernel selects among sockets of one address by CPU (Linux 6.2).
fn steers_by_cpu() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse().unwrap_or(0_u32));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next()) >= (6, 2)
}
