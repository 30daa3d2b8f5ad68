//! UDP on loopback: every datagram comes back whole, in order, unchanged and from the address that
//! it was sent to. Datagrams that must not be answered are dropped and counted.
//!
//! `tests/namespaces` tests what loopback cannot show: routes, links, packet filters, forged
//! sources.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::Launch;
use crate::machine::{alone, in_company, time_limit, wait_until};
use crate::place::{Listening, ping};
use crate::tape::Tape;
use crate::udp::{Bound, Client, LONGEST, Server, expect_nothing};

/// A socket of each kind, with the address that a client uses and the longest payload.
fn kinds() -> Vec<(&'static str, Bound, SocketAddr, usize)> {
    let mut kinds = Vec::new();
    let one = Bound::ipv4();
    kinds.push(("one IPv4 address", one.address, one, LONGEST[0]));
    let every = Bound::every_ipv4();
    kinds.push(("every IPv4 address", every.address, every, LONGEST[0]));
    if let (Some(one), Some(both), Some(mapped)) = (Bound::ipv6(), Bound::both(), Bound::both()) {
        kinds.push(("one IPv6 address", one.address, one, LONGEST[1]));
        kinds.push(("both families, IPv6", both.address, both, LONGEST[1]));
        let address = mapped.address_at(Ipv4Addr::LOCALHOST);
        kinds.push(("both families, IPv4", address, mapped, LONGEST[0]));
    } else {
        println!("skipped: this host has no IPv6");
    }
    let order = |(kind, address, bound, longest)| (kind, bound, address, longest);
    kinds.into_iter().map(order).collect()
}

#[test]
fn every_length_comes_back_whole() {
    let _quiet = in_company();
    let kinds = kinds();
    let server = Server::start(kinds.iter().map(|kind| &kind.1), "[server]\nworkers = 2\n");
    for (kind, _, address, longest) in &kinds {
        println!("{kind}");
        let client = Client::to(*address);
        for length in (0..1_600).chain((1_600..*longest).step_by(769)) {
            client.ping(length);
        }
        for length in longest - 40..=*longest {
            client.ping(length);
        }
        client.expect_nothing();
    }
    server.balance();
    for listener in server.listeners() {
        assert_eq!(listener["datagrams_received"], listener["datagrams_sent"], "{listener}");
        assert_eq!(listener["bytes_received"], listener["bytes_sent"], "{listener}");
        assert_eq!(listener["kernel_dropped"], 0, "{listener}");
    }
    server.stop();
}

/// An empty datagram ends the receive that returns it. A server that did not arm it again would
/// receive nothing any more.
#[test]
fn empty_datagrams_are_echoed_and_do_not_stop_the_service() {
    let _quiet = in_company();
    let kinds = kinds();
    let server = Server::start(kinds.iter().map(|kind| &kind.1), "[server]\nworkers = 2\n");
    for (kind, _, address, _) in &kinds {
        println!("{kind}");
        let client = Client::to(*address);
        // Singly, several in a row, and between others.
        for _ in 0..100 {
            client.ping(0);
            client.ping(1);
        }
        for pattern in [[0, 0, 0, 0], [0, 8, 0, 0], [8, 0, 8, 0], [100, 0, 0, 9]] {
            for _ in 0..25 {
                pattern.iter().for_each(|&length| client.send(&vec![7; length]));
            }
            for _ in 0..25 {
                let lengths = pattern.map(|_| client.receive().len());
                assert_eq!(lengths, pattern, "{kind}");
            }
        }
        client.expect_nothing();
    }
    server.stop();
}

/// A burst of any shape is answered as a burst, and a client that cannot receive bursts gets single
/// datagrams.
#[test]
fn a_burst_comes_back_as_it_was() {
    let _quiet = in_company();
    let kinds = kinds();
    let server = Server::start(kinds.iter().map(|kind| &kind.1), "");
    let shapes: [(usize, u16); 8] = [
        (64 * 500, 500),
        (7 * 1_000 + 333, 1_000),
        (64, 1),
        (54 * 1_200, 1_200),
        (7 * 9_000 + 1, 9_000),
        (2 * 1_400, 1_400),
        (1_401, 1_400),
        (900, 900),
    ];
    let mut datagrams = 0;
    for (kind, _, address, _) in &kinds {
        println!("{kind}");
        let [client, plain] = [Client::to(*address), Client::to(*address)];
        client.accept_bursts();
        for (total, segment) in shapes {
            let bytes = Tape::new(1).bytes(total as u64, total);
            client.send_burst(&bytes, segment);
            let (answer, told) = client.receive_burst();
            assert!(answer == bytes, "{total} bytes by {segment}: {} came back", answer.len());
            let expected = (total > segment.into()).then_some(segment.into());
            assert_eq!(told, expected, "{total} bytes by {segment}");
            plain.send_burst(&bytes, segment);
            for sent in bytes.chunks(segment.into()) {
                assert!(plain.receive() == sent, "{total} bytes by {segment}");
                datagrams += 2;
            }
            // A single datagram after a burst.
            client.ping(100);
            datagrams += 1;
        }
    }
    server.balance();
    assert_eq!(server.figure("datagrams_received"), datagrams);
    assert_eq!(server.figure("datagrams_sent"), datagrams);
    server.stop();
}

/// More than the 64 segments that the kernel merges by itself. A local sender may send that many.
#[test]
fn a_burst_of_128_comes_back() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let server = Server::start([&bound], "");
    let client = Client::to(bound.address);
    let bytes = Tape::new(2).bytes(0, 128 * 500);
    let fd = &client.socket;
    let control = [nix::sys::socket::ControlMessage::UdpGsoSegments(&500)];
    let slices = [std::io::IoSlice::new(&bytes)];
    let flags = nix::sys::socket::MsgFlags::empty();
    let raw = std::os::fd::AsRawFd::as_raw_fd(fd);
    if nix::sys::socket::sendmsg::<()>(raw, &slices, &control, flags, None).is_err() {
        println!("skipped: this kernel sends 64 at most");
    } else {
        for sent in bytes.chunks(500) {
            assert!(client.receive() == sent);
        }
    }
    server.stop();
}

/// On a socket for every address the reply has the destination of the request as its source. The
/// kernel's default, the address of the interface, need not be the same. A connected client
/// receives from no other address.
#[test]
fn the_reply_has_the_requested_address_as_source() {
    let _quiet = in_company();
    let (every, both) = (Bound::every_ipv4(), Bound::both());
    let server = Server::start([&every].into_iter().chain(&both), "");
    for bound in [&every].into_iter().chain(&both) {
        for last in [1, 2, 77, 254] {
            let asked = bound.address_at(Ipv4Addr::new(127, 3, 0, last));
            Client::to(asked).ping(100);
            // And from another address, to an unconnected client.
            let open = UdpSocket::bind("127.0.0.9:0").unwrap();
            open.set_read_timeout(Some(time_limit(20.0))).unwrap();
            open.send_to(b"from where?", asked).unwrap();
            let mut buffer = [0; 100];
            assert_eq!(open.recv_from(&mut buffer).unwrap(), (11, asked));
        }
    }
    server.stop();
}

/// Goal: 0 out of order, 0 lost, 0 doubled in each of four flows, with 32 datagrams in flight in
/// each. `ECHO_DATAGRAMS` sets their total number; the nightly run sends a million.
#[test]
fn the_order_of_a_flow_is_kept() {
    let _quiet = alone();
    let count = std::env::var("ECHO_DATAGRAMS").ok().and_then(|text| text.parse().ok());
    let count: u64 = count.unwrap_or(100_000);
    let bounds = Bound::several(2);
    let server = Server::start(&bounds, "[server]\nworkers = 2\n");
    let address = bounds[0].address;
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let client = Client::to(address);
                client.converse(count / 4, 32, |number| 8 + (number % 60) as usize);
            });
        }
    });
    println!("{count} datagrams in {:?}", began.elapsed());
    server.balance();
    assert_eq!(server.figure("datagrams_sent"), count / 4 * 4);
    server.stop();
}

/// Bursts of every shape between single datagrams, in one flow.
#[test]
fn bursts_and_single_datagrams_keep_their_order() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let server = Server::start([&bound], "");
    let client = Client::to(bound.address);
    for round in 0..100_u8 {
        let segment = 100 + usize::from(round);
        let bytes: Vec<u8> = (0..10).flat_map(|number| vec![number; segment]).collect();
        client.send(&[round]);
        client.send_burst(&bytes, segment as u16);
        client.send(&[]);
        client.send(&[round, round]);
        assert_eq!(client.receive(), [round]);
        for number in 0..10 {
            assert_eq!(client.receive(), vec![number; segment]);
        }
        assert!(client.receive().is_empty());
        assert_eq!(client.receive(), [round, round]);
    }
    server.stop();
}

/// If a client has closed before its echo arrives, the kernel sends an ICMP error. It must not stop
/// the socket, which serves other clients.
#[test]
fn closed_clients_do_not_affect_others() {
    let _quiet = in_company();
    let (one, every) = (Bound::ipv4(), Bound::every_ipv4());
    let server = Server::start([&one, &every], "[server]\nworkers = 1\n");
    let clients = [&one, &every].map(|bound| Client::to(bound.address));
    for _ in 0..100 {
        for (bound, client) in [&one, &every].into_iter().zip(&clients) {
            Client::to(bound.address).send(b"and away");
            client.ping(50);
        }
    }
    server.balance();
    assert_eq!(server.figure("datagrams_sent"), 400);
    assert_eq!(server.warnings(), [""; 0]);
    server.stop();
}

/// A continuous stream of datagrams must not delay a connection of the same worker.
#[test]
fn a_flood_delays_no_connection() {
    let _quiet = alone();
    let bound = Bound::ipv4();
    let listening = vec![Listening::ipv4()];
    let config = "[server]\nworkers = 1\n".to_owned();
    let strangers = vec![bound.hand_over()];
    let server = Server::launch(Launch { listening, strangers, config, ..Launch::default() });
    let over = std::sync::atomic::AtomicBool::new(false);
    let (over, address) = (&over, bound.address);
    let mut slowest = Duration::ZERO;
    thread::scope(|scope| {
        scope.spawn(move || {
            let client = Client::to(address);
            client.socket.set_nonblocking(true).unwrap();
            let bytes = vec![1; 200];
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                // Datagrams beyond the receive buffer are lost; a flood expects that.
                let _ = client.socket.send(&bytes);
            }
        });
        wait_until("the flood", time_limit(20.0), || server.figure("datagrams_received") > 10_000);
        let peer = server.daemon.place().connect();
        for _ in 0..200 {
            let began = Instant::now();
            assert!(ping(&peer, b"still served"));
            slowest = slowest.max(began.elapsed());
        }
        drop(peer);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("the slowest echo took {slowest:?}");
    assert!(slowest < time_limit(1.0), "an echo took {slowest:?}");
    server.stop();
}

/// Connections must not delay datagrams of the same worker either.
#[test]
fn connections_delay_no_datagram() {
    let _quiet = alone();
    let bound = Bound::ipv4();
    let listening = vec![Listening::ipv4()];
    let config = "[server]\nworkers = 1\n".to_owned();
    let strangers = vec![bound.hand_over()];
    let server = Server::launch(Launch { listening, strangers, config, ..Launch::default() });
    let place = server.daemon.place();
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let peer = place.connect();
                let tape = Tape::new(seed);
                thread::scope(|inner| {
                    inner.spawn(|| crate::place::send_tape(&peer, tape, 0, 50_000_000));
                    crate::place::expect_tape(&peer, tape, 0, 50_000_000);
                });
            });
        }
        Client::to(bound.address).converse(2_000, 16, |_| 100);
    });
    server.stop();
}

/// Without datagrams the daemon is idle.
#[test]
fn silent_sockets_cost_nothing() {
    let _quiet = alone();
    let bounds = Bound::several(4);
    let server = Server::start(&bounds, "[server]\nworkers = 2\n");
    Client::to(bounds[0].address).ping(0);
    server.daemon.process.assert_at_rest(Duration::from_millis(500), "silent sockets");
    server.stop();
}

/// Goal: two echo services do not answer each other. Method: the test holds the socket of one of
/// them and sends a datagram from it, as an attacker with a forged source could.
#[test]
fn two_echo_services_on_one_port_do_not_answer_each_other() {
    let _quiet = in_company();
    let (one, two) = loop {
        let one = Bound::ipv4();
        if let Some(two) = Bound::at(one.address_at(Ipv4Addr::new(127, 0, 0, 2))) {
            break (one, two);
        }
    };
    let servers = [&one, &two].map(|bound| Server::start([bound], ""));
    one.socket.send_to(b"forged", two.address).unwrap();
    servers[1].wait_for_dropped("source-port", 1);
    two.socket.send_to(b"forged", one.address).unwrap();
    servers[0].wait_for_dropped("source-port", 1);
    for server in &servers {
        server.balance();
        assert_eq!((server.figure("datagrams_received"), server.figure("datagrams_sent")), (1, 0));
    }
    servers.into_iter().for_each(|server| drop(server.stop()));
}

/// With ports of the set the exchange ends at the first service whose set has the other's port. Two
/// sockets of one daemon never answer each other, whatever their ports.
#[test]
fn services_on_ports_of_the_set_do_not_answer_each_other() {
    let _quiet = in_company();
    let [one, two, three] = [Bound::ipv4(), Bound::every_ipv4(), Bound::ipv4()];
    let ports = format!("[datagram]\nreflect-source-ports = [9, {}]\n", one.address.port());
    let first = Server::start([&one, &three], "");
    let second = Server::start([&two], &ports);
    one.socket.send_to(b"forged", two.address).unwrap();
    second.wait_for_dropped("source-port", 1);
    assert_eq!(first.figure("datagrams_received"), 0);
    // The first one answers, as its set does not have the port; the second one does not.
    two.socket.send_to(b"forged", one.address).unwrap();
    second.wait_for_dropped("source-port", 2);
    first.balance();
    second.balance();
    assert_eq!((first.figure("datagrams_received"), first.figure("datagrams_sent")), (1, 1));
    assert_eq!((second.figure("datagrams_received"), second.figure("datagrams_sent")), (2, 0));
    for (from, to) in [(&one, &three), (&three, &one)] {
        from.socket.send_to(b"forged", to.address).unwrap();
    }
    first.wait_for_dropped("source-port", 2);
    first.balance();
    assert_eq!(first.figure("datagrams_sent"), 1);
    first.stop();
    second.stop();
}

/// A datagram whose source is the socket's own address.
#[test]
fn a_socket_does_not_answer_itself() {
    let _quiet = in_company();
    let sockets: Vec<Bound> =
        [Bound::ipv4(), Bound::every_ipv4()].into_iter().chain(Bound::both()).collect();
    let server = Server::start(&sockets, "");
    for bound in &sockets {
        bound.socket.send_to(b"to myself", bound.address).unwrap();
    }
    server.wait_for_dropped("own-address", sockets.len() as u64);
    assert_eq!(server.figure("datagrams_sent"), 0);
    server.stop();
}

#[test]
fn broadcast_and_multicast_are_not_answered() {
    let _quiet = in_company();
    let every = Bound::every_ipv4();
    let server = Server::start([&every], "");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_broadcast(true).unwrap();
    for _ in 0..10 {
        client.send_to(b"everyone", every.address_at(Ipv4Addr::new(127, 255, 255, 255))).unwrap();
    }
    server.wait_for_dropped("destination", 10);
    expect_nothing(&client);
    assert_eq!(server.figure("bytes_sent"), 0);
    server.stop();
}

#[test]
fn access_lists_apply_and_a_reload_changes_them() {
    let _quiet = in_company();
    let (every, both) = (Bound::every_ipv4(), Bound::both());
    let sockets: Vec<&Bound> = [&every].into_iter().chain(&both).collect();
    let deny = "[access]\ndeny = [\"127.0.7.0/24\"]\n";
    let server = Server::start(sockets.iter().copied(), deny);
    let client = |bound: &Bound, third| {
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, third, 1), 0));
        Client::from(source, bound.address_at(Ipv4Addr::LOCALHOST))
    };
    let mut dropped = 0;
    for bound in &sockets {
        let [denied, other] = [7, 8].map(|third| client(bound, third));
        denied.send(b"let me in");
        dropped += 1;
        server.wait_for_dropped("denied", dropped);
        denied.expect_nothing();
        other.ping(10);
    }
    server.reload("[access]\nallow = [\"127.0.7.0/24\"]\n");
    for bound in &sockets {
        let [allowed, other] = [7, 8].map(|third| client(bound, third));
        other.send(b"let me in");
        dropped += 1;
        server.wait_for_dropped("denied", dropped);
        other.expect_nothing();
        allowed.ping(10);
    }
    server.reload("");
    for bound in &sockets {
        client(bound, 8).ping(10);
    }
    server.stop();
}

#[test]
fn a_reload_changes_the_ports_that_are_not_answered() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let server = Server::start([&bound], "");
    let [one, two] = [Client::to(bound.address), Client::to(bound.address)];
    one.ping(9);
    let port = one.address().port();
    server.reload(&format!("[datagram]\nreflect-source-ports = [{port}]\n"));
    one.send(b"no answer");
    server.wait_for_dropped("source-port", 1);
    one.expect_nothing();
    two.ping(9);
    server.reload("[datagram]\nreflect-source-ports = []\n");
    one.ping(9);
    // Our own port stays in the set.
    bound.socket.send_to(b"forged", Bound::ipv4().address).unwrap();
    let other = Bound::at(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 3), bound.address.port())));
    if let Some(other) = other {
        other.socket.send_to(b"forged", bound.address).unwrap();
        server.wait_for_dropped("source-port", 2);
        expect_nothing(&other.socket);
    }
    server.stop();
}
