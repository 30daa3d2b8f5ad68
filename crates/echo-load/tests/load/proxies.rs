//! Goal: with `--proxy-protocol` each connection, or each datagram, begins with a header that
//! announces the requested address, and nothing else changes. Method: servers that require a
//! header, check it, keep the announced address, and echo the rest.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use echo_proxy_header::{Parser, Peer, Progress, datagram};
use serde_json::Value;

use crate::program::{Scratch, command, run};

/// What the headers announced, each with the real address of the connection, if it has one.
type Announced = Arc<Mutex<Vec<(Peer, Option<SocketAddr>)>>>;

/// Both kinds of streams.
trait Stream: Read + Write + Send + 'static {
    fn end(&self);
}

impl Stream for TcpStream {
    fn end(&self) {
        drop(self.shutdown(Shutdown::Write));
    }
}

impl Stream for UnixStream {
    fn end(&self) {
        drop(self.shutdown(Shutdown::Write));
    }
}

/// Requires a header, and echoes the following bytes. A connection without a header is closed.
fn serve(mut stream: impl Stream, real: Option<SocketAddr>, announced: &Announced) {
    let (mut parser, mut buffer) = (Parser::new(), vec![0; 1 << 16]);
    let mut is_complete = false;
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return stream.end(),
            Ok(length) => length,
        };
        let mut bytes = &buffer[..length];
        if !is_complete {
            match parser.push(bytes) {
                Progress::Partial => continue,
                Progress::Complete { consumed, peer } => {
                    announced.lock().unwrap().push((peer, real));
                    is_complete = true;
                    bytes = &bytes[consumed..];
                }
                Progress::Invalid(fault) => panic!("the header {fault}: {}", bytes.escape_ascii()),
            }
        }
        if stream.write_all(bytes).is_err() {
            return;
        }
    }
}

fn tcp_server(address: &str) -> (String, Announced) {
    let listener = TcpListener::bind(address).unwrap();
    let target = format!("tcp://{}", listener.local_addr().unwrap());
    let announced = Announced::default();
    let kept = announced.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, kept) = (stream.unwrap(), kept.clone());
            let real = stream.peer_addr().ok();
            thread::spawn(move || serve(stream, real, &kept));
        }
    });
    (target, announced)
}

fn unix_server(scratch: &Scratch) -> (String, Announced) {
    let path = scratch.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let announced = Announced::default();
    let kept = announced.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, kept) = (stream.unwrap(), kept.clone());
            thread::spawn(move || serve(stream, None, &kept));
        }
    });
    (format!("unix:{}", path.display()), announced)
}

/// Requires a header in each datagram, and echoes the rest of it.
fn udp_server(address: &str) -> (String, Announced) {
    let socket = UdpSocket::bind(address).unwrap();
    let target = format!("udp://{}", socket.local_addr().unwrap());
    let announced = Announced::default();
    let kept = announced.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            let (consumed, peer) = datagram(&buffer[..length]).expect("it has no header");
            kept.lock().unwrap().push((peer, Some(from)));
            socket.send_to(&buffer[consumed..length], from).unwrap();
        }
    });
    (target, announced)
}

fn taken(announced: &Announced) -> Vec<(Peer, Option<SocketAddr>)> {
    std::mem::take(&mut announced.lock().unwrap())
}

/// The addresses that were announced, without ports, each once.
fn addresses(announced: &[(Peer, Option<SocketAddr>)]) -> Vec<String> {
    let mut addresses: Vec<String> = announced
        .iter()
        .map(|(peer, _)| match peer {
            Peer::Announced(address) => address.ip().to_string(),
            Peer::Real => "real".to_owned(),
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

#[test]
fn every_connection_begins_with_its_own_address() {
    for (address, version) in [("127.0.0.1:0", "v1"), ("127.0.0.1:0", "v2"), ("[::1]:0", "v2")] {
        let (target, announced) = tcp_server(address);
        for mode in ["ping-pong -c 4 --depth 3", "stream -c 2", "churn -c 2", "idle -c 5 --rate 50"]
        {
            let options = format!("--proxy-protocol {version} --mode {mode} -d 200ms --json");
            let result = run(&format!("{target} {options}")).right();
            assert_eq!(result["settings"]["proxy_protocol"], version);
            assert_eq!(result["settings"]["proxy_source"], Value::Null);
            let announced = taken(&announced);
            // Connects that were in flight at the end are not counted: in churn mode, up to two.
            let made = result["connections_made"].as_u64().unwrap();
            assert!((made..=made + 2).contains(&(announced.len() as u64)), "{mode}: {made}");
            for (peer, real) in announced {
                assert_eq!(Some(peer), real.map(Peer::Announced), "{mode}");
            }
        }
    }
}

#[test]
fn connections_announce_the_addresses_of_a_network_in_turn() {
    let (target, announced) = tcp_server("127.0.0.1:0");
    let options = "--proxy-protocol v2 --proxy-source 10.0.0.0/30 -c 8 --threads 2 -d 200ms --json";
    let result = run(&format!("{target} {options}")).right();
    assert_eq!(result["settings"]["proxy_source"], "10.0.0.0/30");
    let eight = taken(&announced);
    assert_eq!(eight.len(), 8);
    assert_eq!(addresses(&eight), ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    // The port is still that of the connection.
    for (peer, real) in eight {
        let Peer::Announced(address) = peer else { panic!("{peer:?}") };
        assert_eq!(address.port(), real.unwrap().port());
    }
    let options = "--proxy-protocol v1 --proxy-source [2001:db8::1]:7 -c 2 -d 200ms --json";
    run(&format!("{target} {options}")).right();
    let expected = Peer::Announced("[2001:db8::1]:7".parse().unwrap());
    assert!(taken(&announced).iter().all(|(peer, _)| *peer == expected));
}

#[test]
fn unix_sockets_announce_what_is_given() {
    let scratch = Scratch::new();
    let (target, announced) = unix_server(&scratch);
    for version in ["v1", "v2"] {
        let options = format!("--proxy-protocol {version} --proxy-source 10.0.0.1:80");
        for mode in ["ping-pong", "churn"] {
            run(&format!("{target} {options} --mode {mode} -c 3 -d 200ms --json")).right();
            let expected = Peer::Announced("10.0.0.1:80".parse().unwrap());
            let announced = taken(&announced);
            assert!(announced.len() >= 3, "{announced:?}");
            assert!(announced.iter().all(|(peer, _)| *peer == expected), "{announced:?}");
        }
    }
}

#[test]
fn every_datagram_begins_with_a_header() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (target, announced) = udp_server(address);
        for options in ["-c 3", "-c 2 --depth 8 --size 0..100", "-c 2 --burst 8 --size 500"] {
            let options = format!("{options} --proxy-protocol v2 -d 200ms --json");
            let result = run(&format!("{target} {options}")).right();
            let mut announced = taken(&announced);
            // A health check, as it were.
            assert_eq!(announced.remove(0).0, Peer::Real);
            let sent = result["datagrams"]["sent"].as_u64().unwrap();
            assert!(announced.len() as u64 >= sent, "{} of {sent}", announced.len());
            for (peer, real) in announced {
                assert_eq!(Some(peer), real.map(Peer::Announced), "{options}");
            }
        }
    }
    let (target, announced) = udp_server("127.0.0.1:0");
    let options = "--proxy-protocol v2 --proxy-source 2001:db8::/126 -c 4 -d 200ms --json";
    run(&format!("{target} {options}")).right();
    let expected = ["2001:db8::", "2001:db8::1", "2001:db8::2", "2001:db8::3", "real"];
    assert_eq!(addresses(&taken(&announced)), expected);
}

/// The largest datagrams leave no room for a header.
#[test]
fn headers_count_where_datagrams_are_limited() {
    let (target, _) = udp_server("127.0.0.1:0");
    let proxy = "--proxy-protocol v2 -d 200ms";
    run(&format!("{target} {proxy} --size 65479 --json")).right();
    for (options, expected) in [
        ("--size 65480", "at most 65507 bytes with its header"),
        ("--size 65455 --proxy-source ::1", ""),
        ("--size 65456 --proxy-source ::1", "at most 65507 bytes with its header"),
        ("--size 1200 --burst 54", "use --burst 53 or less"),
    ] {
        let run = run(&format!("{target} {proxy} {options}"));
        let code = if expected.is_empty() { 0 } else { 2 };
        assert_eq!(run.code, Some(code), "{options}: {run:#?}");
        assert!(run.stderr.contains(expected), "{options}: {run:#?}");
    }
}

/// Servers only wait some seconds for a header, so it is sent before the first message.
#[test]
fn the_header_does_not_wait_for_a_message() {
    let (target, announced) = tcp_server("127.0.0.1:0");
    let options = "--mode idle --rate 0.001 -c 20 -d 10s --proxy-protocol v2";
    let arguments: Vec<&str> = [target.as_str()].into_iter().chain(options.split(' ')).collect();
    let mut child = command(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    let since = Instant::now();
    while announced.lock().unwrap().len() < 20 {
        assert!(since.elapsed() < Duration::from_secs(8), "{:?}", announced.lock().unwrap());
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A server that expects no header echoes it: bytes that do not belong to the stream.
///
/// With a seed, because the first bytes of a stream without one are, once in 256 runs, those of a
/// header.
#[test]
fn a_header_that_is_echoed_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp://{}", listener.local_addr().unwrap());
    thread::spawn(move || crate::servers::echo_on(listener));
    for mode in ["ping-pong", "churn"] {
        for version in ["v1", "v2"] {
            let options =
                format!("--seed 1 --proxy-protocol {version} --mode {mode} -d 300ms --json");
            let run = run(&format!("{target} {options}"));
            assert_eq!(run.code, Some(1), "{run:#?}");
            let fault = &run.json()["error_details"][0];
            assert_eq!(fault["kind"], "corrupted", "{fault:#}");
            assert_eq!(fault["offset_bytes"], 0, "{fault:#}");
        }
    }
}

#[test]
fn nonsense_is_refused_with_a_remedy() {
    for (arguments, expected) in [
        ("udp://127.0.0.1:7 --proxy-protocol v1", "use v2"),
        ("127.0.0.1:7 --proxy-source 10.0.0.1", "use it with --proxy-protocol"),
        ("unix:/tmp/x --proxy-protocol v2", "use --proxy-source"),
        ("127.0.0.1:7 --proxy-protocol v2 --proxy-source 10.0.0.1/8", "use 10.0.0.0/8"),
        ("127.0.0.1:7 --proxy-protocol v2 --proxy-source localhost", "use an IP address"),
        ("127.0.0.1:7 --proxy-protocol v3", "v1"),
    ] {
        let run = run(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{arguments}: {run:#?}");
        assert!(run.stderr.contains(expected), "{arguments}: {run:#?}");
    }
}
