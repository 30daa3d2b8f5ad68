//! The figures of datagrams for operators: status, metrics, the status line, the log and the last
//! line show the same numbers.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, Launch, run_to_end};
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::Listening;

/// A client with a timeout.
fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(time_limit(10.0))).unwrap();
    socket
}

/// A daemon that inherits `udp` beside a TCP socket, and the directory of its status socket.
fn start(udp: &UdpSocket, config: &str) -> (Daemon, Scratch) {
    let scratch = Scratch::new();
    let admin_sockets =
        vec![("status", Listening::unix(&scratch.path("status"))), ("metrics", Listening::ipv4())];
    let strangers = vec![udp.try_clone().unwrap().into()];
    (Launch { admin_sockets, strangers, ..Launch::with_config(config) }.start(), scratch)
}

/// The answer of an admin socket to `request`.
fn seen(daemon: &Daemon, name: &str, request: &str) -> String {
    let mut socket = daemon.admin_place(name).connect();
    socket.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

fn listener(daemon: &Daemon) -> Value {
    let snapshot: Value = serde_json::from_str(&seen(daemon, "status", "")).unwrap();
    snapshot["datagram_listeners"][0].clone()
}

fn metrics(daemon: &Daemon) -> String {
    seen(daemon, "metrics", "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// Sends `length` bytes and receives as many.
fn echo(client: &UdpSocket, server: SocketAddr, length: usize) {
    client.send_to(&vec![b'x'; length], server).unwrap();
    let mut answer = [0; 2_048];
    assert_eq!(client.recv(&mut answer).unwrap(), length);
}

#[test]
fn datagrams_are_shown_the_same_everywhere() {
    let _quiet = in_company();
    let (udp, answered, reflector) = (client(), client(), client());
    let server = udp.local_addr().unwrap();
    let port = reflector.local_addr().unwrap().port();
    let config = format!(
        "[server]\nworkers = 1\n[datagram]\nreflect-source-ports = [{port}]\n[log]\ntarget = \
         \"stderr\"\n"
    );
    let (daemon, scratch) = start(&udp, &config);
    for length in [0, 1, 100, 1_000] {
        echo(&answered, server, length);
    }
    for _ in 0..3 {
        reflector.send_to(b"seven b", server).unwrap();
    }
    wait_until("all of them to be counted", time_limit(10.0), || {
        let shown = listener(&daemon);
        shown["datagrams_received"] == 7 && shown["datagrams_sent"] == 4
    });
    let shown = listener(&daemon);
    for (name, expected) in [
        ("datagrams_sent", 4),
        ("bytes_received", 1_101 + 21),
        ("bytes_sent", 1_101),
        ("kernel_dropped", 0),
    ] {
        assert_eq!(shown[name], expected, "{name}: {shown}");
    }
    assert_eq!(shown["dropped"]["source-port"], 3, "{shown}");
    assert_eq!(shown["address"], format!("udp:{server}"), "{shown}");

    let page = metrics(&daemon);
    let labels = format!("listener=\"test\",protocol=\"udp\",address=\"udp:{server}\"");
    for (name, more, count) in [
        ("datagrams_received_total", "", 7),
        ("datagrams_sent_total", "", 4),
        ("datagram_bytes_received_total", "", 1_122),
        ("datagram_bytes_sent_total", "", 1_101),
        ("datagrams_dropped_total", ",reason=\"source-port\"", 3),
        ("datagrams_kernel_dropped_total", "", 0),
    ] {
        let line = format!("\necho_uring_{name}{{{labels}{more}}} {count}\n");
        assert!(page.contains(&line), "{line:?} is missing:\n{page}");
    }

    let path = scratch.path("status");
    let table = run_to_end(&["status", "--socket", path.to_str().unwrap()], None);
    let table = String::from_utf8(table.stdout).unwrap();
    let address = format!("udp:{server}");
    let line = table.lines().find(|line| line.contains(&address)).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells, ["test", &address, "7", "4", "3", "0", "1101", "-"], "{table}");
    assert!(table.contains("datagrams dropped: 3 source-port"), "{table}");

    let line = daemon.lines.wait_for("3 datagrams not answered: ", time_limit(10.0));
    assert!(line.starts_with("warn ") && line.contains("reflect-source-ports"), "{line}");
    wait_until("the status line", time_limit(10.0), || {
        let said = daemon.manager.values("STATUS");
        said.iter().any(|(_, text)| text.contains("1.1 kB in datagrams (3 dropped), 1 worker"))
    });
    let datagrams = daemon.stop().counters.datagrams.unwrap();
    assert_eq!((datagrams.received, datagrams.sent, datagrams.dropped), (7, 4, 3));
    assert_eq!((datagrams.bytes_received, datagrams.bytes_sent), (1_122, 1_101));
}

/// Goal: what the kernel drops before the daemon can receive it is seen, and the warning names the
/// remedy. Method: a daemon that is stopped while more comes than its receive buffer holds.
#[test]
fn drops_of_the_kernel_are_seen() {
    let _quiet = in_company();
    let (udp, sender) = (client(), client());
    let server = udp.local_addr().unwrap();
    let (daemon, _scratch) = start(&udp, "[server]\nworkers = 1\n");
    echo(&sender, server, 4);
    daemon.signal(Signal::SIGSTOP);
    wait_until("it to stop", time_limit(10.0), || daemon.process.is_stopped());
    const SENT: u64 = 2_000;
    for _ in 0..SENT {
        sender.send_to(b"flood", server).unwrap();
    }
    daemon.signal(Signal::SIGCONT);
    let total = |shown: &Value| {
        let received = shown["datagrams_received"].as_u64().unwrap();
        (received + shown["kernel_dropped"].as_u64().unwrap(), shown["kernel_dropped"].clone())
    };
    wait_until("each to be received or dropped", time_limit(10.0), || {
        total(&listener(&daemon)).0 == SENT + 1
    });
    let (_, dropped) = total(&listener(&daemon));
    assert!(dropped.as_u64().unwrap() > 0, "the receive buffer held all of them");
    let labels = format!("listener=\"test\",protocol=\"udp\",address=\"udp:{server}\"");
    let series = format!("echo_uring_datagrams_kernel_dropped_total{{{labels}}} {dropped}\n");
    let page = metrics(&daemon);
    assert!(page.contains(&series), "{series} is missing:\n{page}");
    let line = daemon.lines.wait_for("the kernel dropped ", time_limit(10.0));
    assert!(line.contains(&format!("{dropped} datagrams")), "{line}");
    assert!(line.contains("raise ReceiveBuffer= of the socket unit"), "{line}");
    let datagrams = daemon.stop().counters.datagrams.unwrap();
    assert_eq!(Value::from(datagrams.kernel_dropped), dropped);
}

/// Goal: without a datagram listener no output mentions datagrams.
#[test]
fn without_a_listener_there_is_no_word_of_datagrams() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let admin_sockets =
        vec![("status", Listening::unix(&scratch.path("status"))), ("metrics", Listening::ipv4())];
    let daemon = Launch { admin_sockets, ..Launch::with_config("") }.start();
    assert!(daemon.place().answers(time_limit(10.0)));
    assert!(!metrics(&daemon).contains("datagram"));
    let path = scratch.path("status");
    let table = run_to_end(&["status", "--socket", path.to_str().unwrap()], None);
    assert!(!String::from_utf8(table.stdout).unwrap().contains("BY KERNEL"));
    assert!(daemon.stop().counters.datagrams.is_none());
}
