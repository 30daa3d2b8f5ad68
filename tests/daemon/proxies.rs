//! Connections of proxies: a PROXY header announces the client's address, which then applies to
//! access lists and limits. A connection without a header, or from an untrusted source, is refused.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use echo_uring::handover::format::MARK;
use serde_json::Value;
use socket2::Socket;

use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch, program};
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, come_from, expect_end, ping, readable};
use crate::udp::{Bound, Client, Server};

const PROXIED: &str = "[[listener]]\nname = \"test\"\nproxy-protocol = \"require\"\n\
                       trusted-proxies = [\"127.0.0.1\", \"::1\"]\n";

/// The header of version 1 for a client at this address.
fn v1(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, us) = match client {
        SocketAddr::V4(_) => ("TCP4", "198.51.100.7"),
        SocketAddr::V6(_) => ("TCP6", "2001:db8::7"),
    };
    format!("PROXY {family} {} {us} {} 7\r\n", client.ip(), client.port()).into_bytes()
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The same of version 2, with an unknown TLV.
pub(crate) fn v2(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, mut block) = match client {
        SocketAddr::V4(client) => (0x11, [client.ip().octets(), [198, 51, 100, 7]].concat()),
        SocketAddr::V6(client) => (0x21, [client.ip().octets(), [0x20; 16]].concat()),
    };
    block.extend(client.port().to_be_bytes());
    block.extend([0, 7, 0xe0, 0, 3, 1, 2, 3]);
    let length = (block.len() as u16).to_be_bytes();
    [SIGNATURE, &[0x21, family], &length, &block].concat()
}

/// The LOCAL header of version 2, of a connection of the proxy itself.
fn local() -> Vec<u8> {
    [SIGNATURE, &[0x20, 0, 0, 0]].concat()
}

/// A connection whose first bytes are these.
fn connect(place: &Place, header: &[u8]) -> Socket {
    let socket = place.connect();
    (&socket).write_all(header).unwrap();
    socket
}

/// The connection, if one with these first bytes is permitted.
fn admitted(place: &Place, header: &[u8]) -> Option<Socket> {
    let socket = connect(place, header);
    ping(&socket, b"let me in").then_some(socket)
}

/// The snapshot that the status socket gives.
pub(crate) fn status(daemon: &Daemon) -> Value {
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut daemon.admin_place("status").connect(), &mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn start(config: &str, scratch: &Scratch) -> Daemon {
    let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
    let config = format!("{PROXIED}{config}");
    Launch { admin_sockets, ..Launch::with_config(&config) }.start()
}

/// Goal: a header of either version is accepted, in any pieces, and the bytes after it are echoed.
/// Method: whole and byte by byte, alone and with data, over TCP and Unix.
#[test]
fn headers_are_taken_and_what_follows_is_echoed() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let mut listening = vec![Listening::ipv4(), Listening::unix(&scratch.path("echo.sock"))];
    listening.extend(Listening::ipv6());
    let daemon = Launch { listening, ..Launch::with_config(PROXIED) }.start();
    let clients = ["192.0.2.1:4000", "[2001:db8::1]:4000"];
    let headers = clients.iter().flat_map(|client| [v1(client), v2(client)]).chain([local()]);
    for header in headers {
        for place in daemon.places() {
            let whole = admitted(&place, &header).expect("a valid header");
            assert!(ping(&whole, b"and on"));
            let socket = place.connect();
            for byte in &header {
                (&socket).write_all(&[*byte]).unwrap();
            }
            assert!(ping(&socket, b"byte by byte"));
            let together = place.connect();
            (&together).write_all(&[&header[..], b"with data"].concat()).unwrap();
            let mut echo = [0; 9];
            std::io::Read::read_exact(&mut &together, &mut echo).unwrap();
            assert_eq!(&echo, b"with data");
        }
    }
    let remains = daemon.stop();
    assert_eq!(remains.counters.refused, 0);
    let warned = remains.lines.iter().any(|line| line.contains("PROXY header"));
    assert!(!warned, "{remains:#?}");
}

/// Goal: access lists and limits apply to the announced address; the proxy's own address counts
/// only for its own connections. Method: one connection too many, and those of other clients.
#[test]
fn the_announced_address_is_judged() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let config = "[access]\ndeny = [\"192.0.2.66\", \"127.0.0.0/8\"]\n\
                  [limits]\nmax-connections-per-source = 2\n";
    let daemon = start(config, &scratch);
    let place = daemon.place().clone();
    assert!(admitted(&place, &v2("192.0.2.66:1")).is_none(), "a denied client");
    let [one, two, three] =
        [1, 2, 3].map(|port| admitted(&place, &v1(&format!("192.0.2.1:{port}"))));
    assert!(one.is_some() && two.is_some() && three.is_none(), "two of each client");
    let others: Vec<_> =
        (2..8).map(|host| admitted(&place, &v2(&format!("192.0.2.{host}:1")))).collect();
    assert!(others.iter().all(Option::is_some), "other clients of the same proxy");
    assert!(admitted(&place, &local()).is_none(), "the proxy itself is denied");
    // A connection that ends makes room for another one.
    drop(one);
    wait_until("a place", time_limit(5.0), || admitted(&place, &v2("192.0.2.1:4")).is_some());
    let listener = &status(&daemon)["listeners"][0];
    assert!(listener["announced"].as_u64().unwrap() >= 11, "{listener}");
    assert_eq!(listener["refused"]["denied"], 2, "{listener}");
    assert!(listener["refused"]["source-full"].as_u64().unwrap() >= 1, "{listener}");
    drop((two, others));
    daemon.lines.wait_for("refused by [access]", time_limit(10.0));
    daemon.stop();
}

#[test]
fn a_source_that_is_not_a_trusted_proxy_is_refused() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let daemon = start("", &scratch);
    let stranger = daemon.place().socket();
    come_from(&stranger, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)));
    let stranger = daemon.place().connect_with(stranger);
    assert!(readable(&stranger, time_limit(5.0)), "it is not closed at once");
    assert!(admitted(daemon.place(), &v1("192.0.2.1:1")).is_some());
    let line = daemon.lines.wait_for("not come from a proxy in trusted-proxies", time_limit(10.0));
    assert!(line.ends_with("; the last from 127.0.0.9"), "{line}");
    assert_eq!(status(&daemon)["listeners"][0]["refused"]["untrusted"], 1);
    daemon.stop();
}

/// Goal: an invalid header ends the connection at its first wrong byte, a truncated one at its end,
/// and a missing one after three seconds; nothing of them is echoed, and who it was is known.
#[test]
fn what_is_no_header_is_refused() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let daemon = start("", &scratch);
    for wrong in [&b"G"[..], b"PROXY TCP4 192.0.2.1 192.0.2.2 1 x", b"\r\n\r\n\0\r\nQUIX"] {
        let socket = connect(daemon.place(), wrong);
        assert!(readable(&socket, time_limit(5.0)), "it does not end at once: {wrong:?}");
        assert!(!ping(&socket, b"hello"), "{wrong:?}");
    }
    let cut = connect(daemon.place(), &v2("192.0.2.1:1")[..20]);
    cut.shutdown(Shutdown::Write).unwrap();
    expect_end(&cut);
    let (silent, slow) = (daemon.place().connect(), connect(daemon.place(), b"PROXY "));
    let began = Instant::now();
    for late in [silent, slow] {
        assert!(readable(&late, time_limit(8.0)), "the missing header has no time limit");
        assert!(began.elapsed() >= Duration::from_millis(2_900), "{:?}", began.elapsed());
        expect_end(&late);
    }
    let seen = status(&daemon);
    let listener = &seen["listeners"][0];
    assert_eq!(listener["refused"]["invalid-header"], 4, "{listener}");
    assert_eq!(listener["refused"]["header-timeout"], 2, "{listener}");
    assert_eq!((&listener["bytes_received"], &listener["bytes_sent"]), (&0.into(), &0.into()));
    let source = &seen["refused_sources"][0];
    assert_eq!((&source["source"], &source["count"]), (&"127.0.0.1".into(), &6.into()), "{seen}");
    for text in ["no valid PROXY header", "no complete PROXY header within 3 seconds"] {
        let line = daemon.lines.wait_for(text, time_limit(10.0));
        assert!(line.ends_with("; the last from 127.0.0.1"), "{line}");
    }
    daemon.stop();
}

/// Goal: a health check of a proxy is counted and causes no warning. Method: the checks of HAProxy:
/// a bare connection, with and without a reset, and a LOCAL header.
#[test]
fn health_checks_are_no_fault() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let daemon = start("", &scratch);
    let bare = daemon.place().connect();
    let reset = daemon.place().connect();
    reset.set_linger(Some(Duration::ZERO)).unwrap();
    // A connection that is reset before its accept does not count.
    wait_until("both to be accepted", time_limit(5.0), || {
        status(&daemon)["total"]["connections"] == 2
    });
    drop((bare, reset));
    let spoken_for = connect(daemon.place(), &local());
    spoken_for.shutdown(Shutdown::Write).unwrap();
    expect_end(&spoken_for);
    // These are no health checks: something was echoed.
    let client = admitted(daemon.place(), &v1("192.0.2.1:1"));
    let own = admitted(daemon.place(), &local());
    drop((client, own));
    wait_until("the ends", time_limit(5.0), || status(&daemon)["total"]["connections"] == 0);
    let seen = status(&daemon);
    assert_eq!(seen["listeners"][0]["health_checks"], 3, "{seen}");
    assert_eq!(seen["listeners"][0]["announced"], 1, "{seen}");
    let remains = daemon.stop();
    let warned = remains.lines.iter().any(|line| line.contains("PROXY header"));
    assert!(!warned, "{remains:#?}");
}

/// Goal: in the next process each connection still counts for its client, and a partly received
/// header is continued. Method: a limit for each client, and a restart.
#[test]
fn the_next_process_knows_the_clients() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let config = format!("{PROXIED}[limits]\nmax-connections-per-source = 2\n");
    let daemon = Launch { bus: bus.address(), ..Launch::with_config(&config) }.start();
    let place = daemon.place().clone();
    let open = admitted(&place, &v2("192.0.2.1:1")).expect("the first of this client");
    let header = v1("192.0.2.1:2");
    let half = connect(&place, &header[..20]);
    let silent = place.connect();
    std::thread::sleep(Duration::from_millis(200));
    let (stored, listening, lines) = daemon.export();
    assert!(lines.iter().any(|line| line.contains("handed over 3 connections")), "{lines:#?}");
    let launch = Launch { bus: bus.address(), stored, listening, config, ..Launch::default() };
    let daemon = launch.start();
    daemon.lines.wait_for("took over 3 connections", time_limit(5.0));
    assert!(ping(&open, b"still here"));
    (&half).write_all(&header[20..]).unwrap();
    assert!(ping(&half, b"here as well"));
    (&silent).write_all(&v1("192.0.2.1:3")).unwrap();
    assert!(!ping(&silent, b"one too many"), "the third of this client");
    assert!(admitted(&place, &v2("192.0.2.2:1")).is_some());
    drop((open, half));
    bus.say(Answer::Job("stop"));
    daemon.stop();
}

/// Goal: a downgrade to a program without PROXY support ends a connection in the middle of its
/// header in order, and keeps the others. Method: the daemon's own file is replaced while it runs.
#[test]
fn an_older_program_gets_the_connections_it_supports() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let path = scratch.path("echo-uring");
    fs::copy(program(), &path).unwrap();
    let launch = Launch { bus: bus.address(), ..Launch::with_config(PROXIED) };
    let daemon = Launch { program: Some(path.clone()), ..launch }.start();
    let open = admitted(daemon.place(), &v2("192.0.2.1:1")).unwrap();
    let half = connect(daemon.place(), &v1("192.0.2.1:2")[..20]);
    std::thread::sleep(Duration::from_millis(200));
    let older = MARK.replace(|digit: char| digit.is_ascii_digit(), "2");
    fs::write(scratch.path("echo-uring.dpkg-new"), older).unwrap();
    fs::rename(scratch.path("echo-uring.dpkg-new"), &path).unwrap();
    let (stored, listening, lines) = daemon.export();
    let told = "warn 1 connection closed: the next version does not know the PROXY protocol";
    assert!(lines.iter().any(|line| line.starts_with(told)), "{lines:#?}");
    expect_end(&half);
    let config = PROXIED.to_owned();
    let daemon = Launch { stored, listening, config, ..Launch::default() }.start();
    daemon.lines.wait_for("took over 2 connections", time_limit(5.0));
    assert!(ping(&open, b"still here"));
    drop((open, half));
    daemon.stop();
}

/// The header of version 2 of a datagram, in front of `payload`.
pub(crate) fn datagram(client: &str, payload: &[u8]) -> Vec<u8> {
    let mut header = v2(client);
    // Over UDP instead of TCP.
    header[13] += 1;
    [&header, payload].concat()
}

/// Goal: the payload goes back to the proxy without its header, limits apply to the announced
/// client, and a datagram that has no header or is not from a proxy is dropped. Method: each case,
/// with a limit that a client soon exceeds; bursts are not merged.
#[test]
fn datagrams_have_headers_of_their_own() {
    let _quiet = in_company();
    let bound = Bound::ipv4();
    let config = format!(
        "{PROXIED}[access]\ndeny = [\"192.0.2.66\"]\n[datagram]\ndatagrams-per-source = 128\n"
    );
    let server = Server::start([&bound], &config);
    let proxy = Client::to(bound.address);
    for client in ["192.0.2.1:4000", "[2001:db8::1]:4000"] {
        for payload in [&b"echo this"[..], b"", &[7; 1_000]] {
            proxy.send(&datagram(client, payload));
            assert_eq!(proxy.receive(), payload);
        }
    }
    // Too many of one client, and then one of another.
    for sent in [106, 206, 306, 406] {
        // This many fit into a receive buffer of any size.
        (0..100).for_each(|_| proxy.send(&datagram("192.0.2.2:1", b"flood")));
        wait_until("the flood", time_limit(5.0), || server.figure("datagrams_received") == sent);
    }
    assert!(server.dropped("source-datagrams") > 0, "{:?}", server.listeners());
    server.balance();
    (6..server.figure("datagrams_sent")).for_each(|_| assert_eq!(proxy.receive(), b"flood"));
    // Two of one length, in one burst of the proxy.
    let [one, two] = ["192.0.2.5:1", "192.0.2.6:1"].map(|client| datagram(client, b"burst"));
    proxy.send_burst(&[&one[..], &two].concat(), one.len() as u16);
    assert_eq!([proxy.receive(), proxy.receive()], [b"burst", b"burst"]);
    proxy.send(&local());
    assert_eq!(proxy.receive(), b"");
    proxy.send(&datagram("192.0.2.66:1", b"denied"));
    server.wait_for_dropped("denied", 1);
    for wrong in [&b"no header"[..], &v1("192.0.2.1:1"), &datagram("192.0.2.9:1", b"")[..20]] {
        proxy.send(wrong);
    }
    server.wait_for_dropped("invalid-header", 3);
    let stranger = UdpSocket::bind("127.0.0.9:0").unwrap();
    stranger.send_to(&datagram("192.0.2.7:1", b"who"), bound.address).unwrap();
    server.wait_for_dropped("untrusted", 1);
    proxy.expect_nothing();
    server.daemon.lines.wait_for("from a proxy dropped: no valid PROXY header", time_limit(10.0));
    server.balance();
    server.end();
}

/// Goal: a configuration that cannot work is refused with the remedy.
#[test]
fn proxies_must_be_named() {
    let _quiet = in_company();
    let (before, _) = PROXIED.split_once("trusted").unwrap();
    for (config, words) in [
        (before.to_owned(), ["listener.trusted-proxies", "missing"]),
        (PROXIED.replace("require", "off"), ["listener.trusted-proxies", "has no effect"]),
        (
            PROXIED.replace("\n\n", "\n") + "kind = \"metrics\"\n",
            ["listener.proxy-protocol", "an echo or an identity"],
        ),
    ] {
        Launch::with_config(&config).fail().assert(78, &words);
    }
}
