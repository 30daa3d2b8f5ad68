//! Datagram sockets: which ones there are, that one worker serves each, and what happens to them in
//! a drain and a restart.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};

use crate::daemon::Launch;
use crate::ending::Losses;
use crate::machine::{alone, in_company, time_limit, wait_until};
use crate::place::{Listening, Place};
use crate::udp::{Bound, Client, OWN, Server};

/// How many sockets there are on this port of 127.0.0.1.
fn sockets_on(port: u16) -> usize {
    let wanted = format!("0100007F:{port:04X}");
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    table.lines().filter(|line| line.split_whitespace().nth(1) == Some(&*wanted)).count()
}

#[test]
fn an_own_address_has_a_socket_for_each_worker() {
    let _quiet = in_company();
    for workers in [1, 3] {
        let config = format!("[server]\nworkers = {workers}\n{OWN}");
        let server = Server::launch(Launch { config, ..Launch::default() });
        let address = server.own_addresses()[0];
        assert_eq!(sockets_on(address.port()), workers);
        // Whichever socket the kernel selects for a flow.
        let clients: Vec<Client> = (0..30).map(|_| Client::to(address)).collect();
        clients.iter().for_each(|client| client.ping(10));
        clients.iter().for_each(|client| client.ping(0));
        clients.iter().for_each(|client| client.ping(1_000));
        server.balance();
        let listeners = server.listeners();
        assert_eq!(listeners.len(), 1, "{listeners:?}");
        assert_eq!(listeners[0]["name"], "own");
        assert_eq!(listeners[0]["address"], format!("udp:{address}"));
        assert_eq!(listeners[0]["datagrams_sent"], 90);
        assert_eq!(server.warnings(), [""; 0]);
        server.stop();
        assert_eq!(sockets_on(address.port()), 0);
    }
}

/// Another program cannot bind the address and receive the datagrams. With SO_REUSEADDR on both
/// sockets it could.
#[test]
fn another_program_cannot_bind_the_address() {
    let _quiet = in_company();
    let config = format!("[server]\nworkers = 1\n{OWN}");
    let server = Server::launch(Launch { config, ..Launch::default() });
    let address = server.own_addresses()[0];
    for reuse in [false, true] {
        let intruder = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        intruder.set_reuse_address(reuse).unwrap();
        let error = intruder.bind(&address.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
    server.stop();
}

/// A daemon must not bind an address that another one serves already.
#[test]
fn an_address_in_use_is_refused() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let config = format!("[[listener]]\nname = \"u\"\naddress = \"udp:{}\"\n", bound.address);
    let refusal = Launch { config, ..Launch::default() }.fail();
    refusal.assert(69, &[&format!("udp:{}", bound.address), "in use"]);
    // Not even with several workers, whose sockets share the port.
    let config = format!("[server]\nworkers = 2\n{OWN}");
    let server = Server::launch(Launch { config, ..Launch::default() });
    let address = server.own_addresses()[0];
    let config =
        format!("[server]\nworkers = 2\n[[listener]]\nname = \"u\"\naddress = \"udp:{address}\"\n");
    let refusal = Launch { config, ..Launch::default() }.fail();
    refusal.assert(69, &[&format!("udp:{address}"), "in use"]);
    Client::to(address).ping(3);
    server.stop();
}

#[test]
fn harmful_options_are_not_set() {
    let _quiet = in_company();
    let sockets: Vec<Bound> = [Bound::ipv4(), Bound::every_ipv4()]
        .into_iter()
        .chain(Bound::ipv6())
        .chain(Bound::both())
        .collect();
    let server = Server::start(&sockets, "[server]\nworkers = 2\n");
    for Bound { socket, address } in &sockets {
        let seen = SockRef::from(socket);
        assert!(!seen.broadcast().unwrap(), "SO_BROADCAST: {address}");
        assert!(!seen.reuse_address().unwrap(), "SO_REUSEADDR: {address}");
        assert!(!getsockopt(socket, sockopt::Ipv4RecvErr).unwrap(), "IP_RECVERR: {address}");
        if address.is_ipv6() {
            assert!(!getsockopt(socket, sockopt::Ipv6RecvErr).unwrap(), "IPV6_RECVERR: {address}");
        }
    }
    server.stop();
}

/// One socket has one worker. The other workers have none, and the log names the remedy.
#[test]
fn workers_without_a_socket_are_reported() {
    let _quiet = in_company();
    let one = Bound::ipv4();
    let server = Server::start([&one], "[server]\nworkers = 3\n");
    Client::to(one.address).ping(10);
    let told = server.warnings();
    assert_eq!(told.len(), 1, "{told:?}");
    for words in [
        &format!("udp:{} (test)", one.address),
        "1 socket",
        "3 workers",
        "ReusePort=yes",
        "ListenDatagram=",
    ] {
        assert!(told[0].contains(words), "{words:?} is missing: {told:?}");
    }
    server.stop();

    for count in [3, 7] {
        let several = Bound::several(count);
        let server = Server::start(&several, "[server]\nworkers = 3\n");
        let clients: Vec<Client> = (0..40).map(|_| Client::to(several[0].address)).collect();
        clients.iter().for_each(|client| client.ping(10));
        assert_eq!(server.warnings(), [""; 0]);
        server.balance();
        let listeners = server.listeners();
        assert_eq!(listeners.len(), 1, "several sockets of one address: {listeners:?}");
        assert_eq!(listeners[0]["datagrams_sent"], 40);
        server.stop();
    }
}

/// All workers serve flows to sockets that share a port: of 64 flows, each socket gets some.
#[test]
fn flows_are_spread_over_the_workers() {
    let _quiet = alone();
    let several = Bound::several(2);
    let server = Server::start(&several, "[server]\nworkers = 2\n");
    let address = several[0].address;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                (0..16).for_each(|_| Client::to(address).converse(1_500, 16, |_| 64));
            });
        }
    });
    let spent = server.daemon.process.cpu_times_of_threads();
    let total: Duration = spent.iter().sum();
    println!("of {total:?} the threads spent {spent:?}");
    assert!(spent.iter().filter(|time| **time > total / 10).count() >= 2, "{spent:?}");
    server.stop();
}

/// Status and metrics need a stream socket.
#[test]
fn an_inherited_udp_socket_with_an_admin_name_is_refused() {
    let _quiet = in_company();
    let Bound { socket, address } = Bound::ipv4();
    let socket = Listening { socket: socket.into(), place: Place::Tcp(address) };
    let refusal =
        Launch { admin_sockets: vec![("metrics", socket)], ..Launch::with_config("") }.fail();
    refusal.assert(69, &["fd 4", "UDP", "ListenStream=", "FileDescriptorName="]);
}

/// The datagrams that the kernel drops because the receive buffer is full are counted, and no
/// others.
#[test]
fn drops_of_the_kernel_are_counted() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let server = Server::start([&bound], "");
    let client = Client::to(bound.address);
    server.hold();
    for _ in 0..2_000 {
        client.send(&[1; 64]);
    }
    server.go_on();
    wait_until("all datagrams to be accounted for", time_limit(20.0), || {
        server.figure("datagrams_received") + server.figure("kernel_dropped") == 2_000
    });
    let lost = server.figure("kernel_dropped");
    println!("the kernel dropped {lost} of 2000");
    assert!(lost > 0, "the buffer of the socket held all of them");
    server.balance();
    server.balance();
    let answered = server.figure("datagrams_sent");
    for _ in 0..answered {
        client.receive();
    }
    client.expect_nothing();
    client.ping(10);
    server.stop();
}

/// Goal: datagrams that have arrived before the signal are answered. Method: a daemon that is
/// stopped until datagrams wait in its own sockets and the signal is pending.
#[test]
fn a_drain_answers_waiting_datagrams() {
    let _quiet = in_company();
    for _ in 0..5 {
        let config = format!("[server]\nworkers = 2\n{OWN}");
        let server = Server::launch(Launch { config, ..Launch::default() });
        let address = server.own_addresses()[0];
        let clients: Vec<Client> = (0..10).map(|_| Client::to(address)).collect();
        clients.iter().for_each(|client| client.ping(1));
        server.hold();
        for number in 0..40 {
            clients.iter().for_each(|client| client.send(&[number; 20]));
        }
        server.daemon.signal(Signal::SIGTERM);
        server.go_on();
        server.daemon.finish(Losses::None);
        for client in &clients {
            for number in 0..40 {
                assert_eq!(client.receive(), [number; 20]);
            }
            client.expect_nothing();
        }
        assert_eq!(sockets_on(address.port()), 0);
    }
}

/// Clients that keep sending do not delay the end.
#[test]
fn a_flood_does_not_delay_the_end() {
    let _quiet = alone();
    let config = format!("[server]\nworkers = 2\n{OWN}");
    let server = Server::launch(Launch { config, ..Launch::default() });
    let address = server.own_addresses()[0];
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = || {
            let client = Client::to(address);
            client.socket.set_nonblocking(true).unwrap();
            while !over.load(Ordering::Relaxed) {
                // Refused when the socket is closed; that is expected.
                let _ = client.socket.send(&[1; 100]);
            }
        };
        scope.spawn(flood);
        scope.spawn(flood);
        wait_until("the flood", time_limit(20.0), || server.figure("datagrams_received") > 1_000);
        let began = Instant::now();
        server.daemon.signal(Signal::SIGTERM);
        server.daemon.finish(Losses::None);
        let took = began.elapsed();
        over.store(true, Ordering::Relaxed);
        assert!(took < time_limit(5.0), "it ended after {took:?}");
    });
}

/// Goal: datagrams that wait in an inherited socket are left to the next process. Method: as above;
/// none may be lost or answered twice.
#[test]
fn datagrams_waiting_in_an_inherited_socket_are_left_to_the_next_process() {
    let _quiet = in_company();
    for _ in 0..5 {
        let bounds = Bound::several(2);
        let server = Server::start(&bounds, "[server]\nworkers = 2\n");
        let clients: Vec<Client> = (0..4).map(|_| Client::to(bounds[0].address)).collect();
        clients.iter().for_each(|client| client.ping(1));
        server.hold();
        for number in 0..20 {
            clients.iter().for_each(|client| client.send(&[number; 20]));
        }
        server.daemon.signal(Signal::SIGTERM);
        server.go_on();
        server.daemon.finish(Losses::None);
        for number in 20..40 {
            clients.iter().for_each(|client| client.send(&[number; 20]));
        }
        let server = Server::start(&bounds, "[server]\nworkers = 2\n");
        for client in &clients {
            for number in 0..40 {
                assert_eq!(client.receive(), [number; 20]);
            }
            client.expect_nothing();
        }
        server.stop();
    }
}

/// Ten restarts under load: every datagram is echoed, in order, once. Datagrams that arrive between
/// two processes wait in the socket, which holds 256 small ones by default; here at most 64 are in
/// flight.
#[test]
fn restarts_lose_nothing_that_the_socket_holds() {
    let _quiet = alone();
    let bounds = Bound::several(2);
    let address = bounds[0].address;
    let (over, echoed) = (AtomicBool::new(false), AtomicU64::new(0));
    let (over, echoed) = (&over, &echoed);
    let start = || Server::start(&bounds, "[server]\nworkers = 2\n");
    let server = thread::scope(|scope| {
        let mut server = start();
        for _ in 0..4 {
            scope.spawn(move || {
                let client = Client::to(address);
                while !over.load(Ordering::Relaxed) {
                    client.converse(64, 16, |number| 8 + (number % 40) as usize);
                    echoed.fetch_add(64, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..10 {
            let before = echoed.load(Ordering::Relaxed);
            wait_until("echoes", time_limit(20.0), || {
                echoed.load(Ordering::Relaxed) > before + 1_000
            });
            server.end();
            server = start();
        }
        over.store(true, Ordering::Relaxed);
        server
    });
    println!("{} echoed in all", echoed.load(Ordering::Relaxed));
    assert_eq!(server.figure("kernel_dropped"), 0);
    server.stop();
}

/// A daemon without a stream socket, with one, and with a configured address of each kind.
#[test]
fn datagrams_and_connections_are_served_side_by_side() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let listening = vec![Listening::ipv4()];
    let strangers = vec![bound.hand_over()];
    let server = Server::launch(Launch { listening, strangers, ..Launch::default() });
    assert!(server.daemon.place().answers(time_limit(10.0)));
    Client::to(bound.address).ping(77);
    server.stop();

    // An address at which no other test has connections, so that the port is free for TCP as well.
    let free = UdpSocket::bind((Ipv4Addr::new(127, 80, 0, 1), 0)).unwrap();
    let tcp = free.local_addr().unwrap();
    drop(free);
    let both = format!("[[listener]]\nname = \"t\"\naddress = \"{tcp}\"\n{OWN}");
    let udp = format!("[[listener]]\nname = \"u\"\naddress = \"udp:{tcp}\"\n");
    for config in [udp.clone(), both.clone(), format!("{both}{udp}")] {
        let server = Server::launch(Launch { config, ..Launch::default() });
        for address in server.own_addresses() {
            Client::to(address).ping(77);
        }
        let lines = server.daemon.log();
        if lines.contains(&format!("info listening on {tcp} (t)")) {
            assert!(Place::Tcp(tcp).answers(time_limit(10.0)));
        }
        server.stop();
    }
}

/// The order of a flow is also kept on a configured address and with several workers.
#[test]
fn the_order_of_a_flow_is_kept_on_own_sockets() {
    let _quiet = alone();
    let config = format!("[server]\nworkers = 4\n{OWN}");
    let server = Server::launch(Launch { config, ..Launch::default() });
    let address: SocketAddr = server.own_addresses()[0];
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                Client::to(address).converse(5_000, 32, |number| 8 + (number % 9) as usize * 100);
            });
        }
    });
    server.balance();
    assert_eq!(server.figure("datagrams_sent"), 20_000);
    server.stop();
}
