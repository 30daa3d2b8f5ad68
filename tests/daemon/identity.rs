//! Which of many servers has answered: a listener that tells it in one line, if it was configured to
//! do so.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use echo_ring::IDENTITY_LENGTH_MAX;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, expect_end, ping};
use crate::proxies::{datagram, status, v2};
use crate::udp::{Bound, Client, Server};

const IDENTIFIED: &str = "[[listener]]\nname = \"test\"\nkind = \"identity\"\n";
const THEN_ECHO: &str = "identity-then-echo = true\n";

/// A line as JSON, of which it must be one object.
fn parsed(line: &[u8]) -> Value {
    assert!(line.len() <= IDENTITY_LENGTH_MAX && line.is_ascii(), "{line:?}");
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "{line:?}");
    serde_json::from_slice(line).unwrap()
}

/// Reads one line and not a byte more.
fn read_line(mut socket: &Socket) -> Value {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        socket.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    parsed(&line)
}

fn start(config: &str, scratch: &Scratch) -> Daemon {
    let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
    let mut listening = vec![Listening::ipv4(), Listening::unix(&scratch.path("echo.sock"))];
    listening.extend(Listening::ipv6());
    Launch { admin_sockets, listening, config: config.to_owned(), ..Launch::default() }.start()
}

/// The address of a socket as an identity tells it.
fn told(address: &SockAddr) -> String {
    match (address.as_socket(), address.as_pathname()) {
        (Some(address), _) => address.to_string(),
        (None, Some(path)) => format!("unix:{}", path.display()),
        (None, None) => "unix".to_owned(),
    }
}

fn figure(daemon: &Daemon, name: &str) -> u64 {
    let status = status(daemon);
    let listeners = status["listeners"].as_array().unwrap();
    listeners.iter().map(|it| it.pointer(name).and_then(Value::as_u64).unwrap()).sum()
}

/// Goal: each connection is told what is known of it, no host and no instance, and then ended in
/// order, whatever its peer sends. Method: TCP of both families and Unix, silent and talkative.
#[test]
fn a_connection_is_told_where_it_is_and_ended() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let daemon = start(IDENTIFIED, &scratch);
    let mut told_so_far = 0;
    for place in daemon.places() {
        for talks in [false, true] {
            let socket = place.connect();
            if talks {
                (&socket).write_all(&[7; 100_000]).unwrap();
            }
            let line = read_line(&socket);
            expect_end(&socket);
            let worker = line["worker"].as_u64().unwrap();
            let expected = json!({
                "listener": "test",
                "worker": worker,
                "peer": told(&socket.local_addr().unwrap()),
                "local": told(&socket.peer_addr().unwrap()),
            });
            assert_eq!(line, expected);
            told_so_far += 1;
        }
    }
    wait_until("the ends", time_limit(5.0), || {
        figure(&daemon, "/closed/identified") == told_so_far
    });
    assert_eq!(figure(&daemon, "/identities"), told_so_far);
    assert_eq!(figure(&daemon, "/bytes_sent"), 0);
    daemon.stop_with(Losses::Allowed);
}

/// Goal: a peer that continues to send and does not end is closed after the linger time.
#[test]
fn who_does_not_end_is_closed() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let daemon = start(IDENTIFIED, &scratch);
    let socket = daemon.place().connect();
    read_line(&socket);
    expect_end(&socket);
    wait_until("the close", time_limit(20.0), || {
        let _ = (&socket).write(b"still here");
        std::thread::sleep(Duration::from_millis(50));
        figure(&daemon, "/closed/identified") == 1
    });
    daemon.stop_with(Losses::Allowed);
}

/// Goal: where an echo follows, every byte comes back behind the line; the connection survives a
/// restart and is not told again. One that has been ended survives it as well.
#[test]
fn an_echo_follows_also_in_the_next_process() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let ends = Listening::ipv4();
    let ends_at = ends.place.clone();
    let config = format!(
        "{IDENTIFIED}identity-host = \"web-1\"\n{THEN_ECHO}\
         [[listener]]\nname = \"short\"\nkind = \"identity\"\n"
    );
    let launch =
        || Launch { names: vec!["test", "short"], bus: bus.address(), ..Launch::default() };
    let listening = vec![Listening::ipv4(), ends];
    let daemon = Launch { listening, config: config.clone(), ..launch() }.start();
    let place = daemon.place().clone();
    let open = place.connect();
    (&open).write_all(b"at once").unwrap();
    let line = read_line(&open);
    assert_eq!((&line["host"], &line["listener"]), (&"web-1".into(), &"test".into()));
    let mut echo = [0; 7];
    (&open).read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"at once");
    assert!(ping(&open, b"and on"));
    let ended = ends_at.connect();
    assert_eq!(read_line(&ended)["listener"], "short");
    expect_end(&ended);
    let (stored, listening, lines) = daemon.export();
    assert!(lines.iter().any(|line| line.contains("handed over 2 connections")), "{lines:#?}");
    let daemon = Launch { stored, listening, config, ..launch() }.start();
    daemon.lines.wait_for("took over 2 connections", time_limit(5.0));
    assert!(ping(&open, b"still here"));
    assert_eq!(read_line(&place.connect())["host"], "web-1");
    open.shutdown(Shutdown::Write).unwrap();
    expect_end(&open);
    drop((open, ended));
    bus.say(Answer::Job("stop"));
    daemon.stop_with(Losses::Allowed);
}

/// Goal: nobody is told anything without a section that says so: not by the name of a socket, and
/// not by an edited file before the restart.
#[test]
fn nothing_is_told_by_a_name_or_a_reload() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let named = Listening::unix(&scratch.path("identity"));
    let daemon =
        Launch { admin_sockets: vec![("identity", named)], ..Launch::with_config("") }.start();
    let words = |place: &Place| ping(&place.connect(), b"an echo");
    assert!(words(daemon.admin_place("identity")) && words(daemon.place()));
    fs::write(daemon.config_path(), IDENTIFIED).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.lines.wait_for("listener", time_limit(5.0));
    assert!(words(daemon.place()));
    daemon.stop();
}

/// Goal: behind a proxy the line has both addresses: that of the proxy, and what it announces.
#[test]
fn a_proxy_and_its_client_are_told_apart() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let proxied = "proxy-protocol = \"require\"\ntrusted-proxies = [\"127.0.0.1\", \"::1\"]\n";
    let config = format!("{IDENTIFIED}{proxied}[access]\ndeny = [\"192.0.2.66\"]\n");
    let daemon = start(&config, &scratch);
    for client in ["192.0.2.1:4000", "[2001:db8::1]:4000"] {
        for place in daemon.places() {
            let socket = place.connect();
            (&socket).write_all(&[&v2(client)[..], b"hello"].concat()).unwrap();
            let line = read_line(&socket);
            assert_eq!(line["announced"], client, "{line}");
            assert_eq!(line["peer"], told(&socket.local_addr().unwrap()), "{line}");
            expect_end(&socket);
        }
    }
    // A refused connection is told nothing.
    let denied = daemon.place().connect();
    (&denied).write_all(&v2("192.0.2.66:1")).unwrap();
    expect_end(&denied);
    daemon.stop_with(Losses::Allowed);
    let bound = Bound::ipv4();
    let server = Server::start([&bound], &config);
    let proxy = Client::to(bound.address);
    proxy.send(&datagram("192.0.2.1:4000", &[0; IDENTITY_LENGTH_MAX]));
    let line = parsed(&proxy.receive());
    assert_eq!(line["announced"], "192.0.2.1:4000", "{line}");
    assert_eq!(line["peer"], proxy.address().to_string(), "{line}");
    proxy.send(&datagram("192.0.2.1:4000", b"short"));
    server.wait_for_dropped("too-short", 1);
    server.balance();
    server.end();
}

/// Goal: a datagram is answered by no more bytes than it has: by the line, or not at all. Method:
/// sockets bound to one address and to all; just long enough, and one byte less; a burst.
#[test]
fn a_datagram_is_told_if_it_is_long_enough() {
    let _quiet = in_company();
    let bound: Vec<Bound> = [Some(Bound::ipv4()), Some(Bound::every_ipv4()), Bound::both()]
        .into_iter()
        .flatten()
        .collect();
    let server = Server::start(&bound, IDENTIFIED);
    for (index, bound) in bound.iter().enumerate() {
        let client = Client::to(bound.address);
        client.send(&[0; IDENTITY_LENGTH_MAX]);
        let line = client.receive();
        let told = parsed(&line);
        assert_eq!(told["local"], bound.address.to_string(), "{told}");
        assert_eq!(told["peer"], client.address().to_string(), "{told}");
        for length in [0, 1, line.len() - 1] {
            client.send(&vec![0; length]);
        }
        server.wait_for_dropped("too-short", 3 * (1 + index as u64));
        client.send(&vec![0; line.len()]);
        assert_eq!(client.receive(), line);
        client.send_burst(&[0; 2 * IDENTITY_LENGTH_MAX], IDENTITY_LENGTH_MAX as u16);
        assert_eq!([client.receive(), client.receive()], [line.clone(), line]);
        client.expect_nothing();
    }
    server.balance();
    server.end();
}

/// Goal: messages are answered as well: of a seqpacket connection the line is one message. The name
/// that a Unix peer has chosen is escaped.
#[test]
fn unix_messages_are_told() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name).display().to_string();
    let listener = |kind: &str| {
        format!(
            "[[listener]]\nname = \"{kind}\"\naddress = \"unix-{kind}:{}\"\nkind = \"identity\"\n\
             identity-host = \"auto\"\n",
            path(kind)
        )
    };
    let config = format!("{}{THEN_ECHO}{}", listener("seqpacket"), listener("datagram"));
    let daemon = Launch { config, ..Launch::default() }.start();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    socket.connect(&SockAddr::unix(path("seqpacket")).unwrap()).unwrap();
    let mut message = [0; 1_000];
    let length = (&socket).read(&mut message).unwrap();
    let line = parsed(&message[..length]);
    assert_eq!(line["host"], host.trim());
    assert_eq!(line["local"], format!("unix:{}", path("seqpacket")));
    assert!(ping(&socket, b"a message"));
    drop(socket);
    let name = scratch.path("\"}\n\\");
    let socket = UnixDatagram::bind(&name).unwrap();
    socket.send_to(&[0; IDENTITY_LENGTH_MAX], path("datagram")).unwrap();
    let length = socket.recv(&mut message).unwrap();
    let line = parsed(&message[..length]);
    assert_eq!(line["local"], format!("unix:{}", path("datagram")));
    let shown = format!("unix:{}", name.display());
    // The path of this test may be long.
    let begin = line["peer"].as_str().unwrap().trim_end_matches("...");
    assert!(shown.starts_with(begin), "{line}");
    // One that is dropped, since fewer bytes have gone out than came in.
    socket.send_to(b"short", path("datagram")).unwrap();
    drop(socket);
    daemon.stop();
}

/// Goal: the commands of the manual work.
#[test]
fn the_commands_of_the_manual_work() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let daemon = start(IDENTIFIED, &scratch);
    let Place::Tcp(address) = daemon.place() else { panic!("the first is TCP") };
    let bound = Bound::ipv4();
    let server = Server::start([&bound], IDENTIFIED);
    let manual = fs::read_to_string("packaging/man/echo-uring.toml.5").unwrap();
    let commands = [
        format!("cat < /dev/tcp/127.0.0.1/{}", address.port()),
        format!(
            "exec 3<> /dev/udp/127.0.0.1/{}; printf '%512s' '' >&3; head -n 1 <&3",
            bound.address.port()
        ),
    ];
    let general = ["cat < /dev/tcp/192.0.2.7/7007", "printf '%512s' '' >&3; head -n 1 <&3"];
    for (command, general) in commands.iter().zip(general) {
        assert!(manual.contains(general), "the manual does not say {general}");
        let output = Command::new("bash").args(["-c", command]).output().unwrap();
        assert_eq!(parsed(&output.stdout)["listener"], "test", "{output:?}");
    }
    // One that is dropped, since fewer bytes have gone out than came in.
    Client::to(bound.address).send(b"short");
    server.wait_for_dropped("too-short", 1);
    server.end();
    daemon.stop();
}

/// Goal: what has no effect is refused with the remedy.
#[test]
fn what_has_no_effect_is_refused() {
    let _quiet = in_company();
    let echo = "[[listener]]\nname = \"test\"\n";
    let own = |address: &str| format!("{IDENTIFIED}address = \"{address}\"\n");
    let host = "identity-host = \"web-1\"\n";
    let no_effect = "of no effect; add kind = \"identity\", or remove it";
    for (config, words) in [
        (format!("{echo}{host}"), ["listener.identity-host", no_effect]),
        (format!("{echo}{THEN_ECHO}"), ["listener.identity-then-echo", no_effect]),
        (
            format!("{}{THEN_ECHO}", own("udp:127.0.0.1:0")),
            ["listener.identity-then-echo", "of no effect on datagrams"],
        ),
        (format!("{IDENTIFIED}identity-host = \"a b\"\n"), ["listener.identity-host", "\"a b\""]),
    ] {
        Launch::with_config(&config).fail().assert(78, &words);
    }
    let strangers = vec![Bound::ipv4().hand_over()];
    let config = format!("{IDENTIFIED}{THEN_ECHO}");
    let words = ["a datagram socket", "remove identity-then-echo"];
    Launch { strangers, config, ..Launch::default() }.fail().assert(69, &words);
}

/// Goal: monitoring over datagrams would be an echo of them; the start says so.
#[test]
fn monitoring_needs_streams() {
    let _quiet = in_company();
    for kind in ["status", "metrics", "agent-check"] {
        let strangers = vec![Bound::ipv4().hand_over()];
        let test = format!("[[listener]]\nname = \"test\"\nkind = \"{kind}\"\n");
        let config = format!("[[listener]]\nname = \"echo\"\n{test}");
        let words = ["inherited fd 4 is a socket with messages", "use ListenStream="];
        let (listening, names) = (vec![Listening::ipv4()], vec!["echo"]);
        let launch = Launch { listening, names, strangers, config, ..Launch::default() };
        launch.fail().assert(69, &words);
    }
}
