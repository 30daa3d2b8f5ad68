//! Goal: in every state the first signal ends the run with a valid result, and the second ends the
//! process. Method: servers that hold echo-load in that state, and signals.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::program::{command, number};
use crate::servers::{Daemon, Wrong, stalling_server, wrong_server};

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(3600);

fn start(arguments: &str) -> Child {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let mut command = command(&arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, after: u64) {
    std::thread::sleep(Duration::from_millis(after));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
}

/// Signals it after this number of milliseconds, and returns its result soon afterwards.
fn interrupted(arguments: &str, after: u64) -> (Output, Value) {
    let child = start(arguments);
    signal(&child, after);
    let since = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < Duration::from_secs(20), "{arguments}: {:?}", since.elapsed());
    let result: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments}: {error}: {output:?}"));
    assert_eq!(result["interrupted"], true, "{result:#}");
    assert_eq!(result["ended"], "interrupted", "{result:#}");
    (output, result)
}

/// A listener whose queue is full: a connect to it is not answered.
fn full_backlog() -> (Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // The connect continues by itself, or not at all.
        let _ = socket.connect(&address);
        sockets.push(socket);
    }
    (sockets, address.as_socket().unwrap())
}

#[test]
fn while_all_is_well() {
    let daemon = Daemon::start();
    let (output, result) = interrupted(&format!("{} -d 1h -c 4 --json", daemon.tcp), 700);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!((0.1..20.0).contains(&number(&result, "/elapsed_seconds")), "{result:#}");
    assert!(number(&result, "/messages") > 0.0, "{result:#}");
}

#[test]
fn while_the_load_warms_up() {
    let daemon = Daemon::start();
    let options = "-d 1h --warmup 1h --rate 100 -c 4 --json";
    let (output, result) = interrupted(&format!("{} {options}", daemon.tcp), 700);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(number(&result, "/elapsed_seconds") < 0.5, "{result:#}");
}

#[test]
fn while_the_server_stalls() {
    let target = stalling_server(Duration::from_millis(300)..Duration::from_millis(1500));
    let (output, result) = interrupted(&format!("{target} -c 1 --rate 200 -d 1h --json"), 1100);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    // What was due and not sent is told, and the time that it waited.
    assert!(number(&result, "/unsent_messages") > 50.0, "{result:#}");
    assert!(number(&result, "/latency_microseconds/corrected/p90") > 500e3, "{result:#}");
}

#[test]
fn while_it_is_behind_schedule() {
    let daemon = Daemon::start();
    let (output, _) = interrupted(&format!("{} -c 4 --rate 1e9 -d 1h --json", daemon.tcp), 700);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn while_connecting() {
    let (_sockets, address) = full_backlog();
    let arguments = format!("{address} -c 4 -d 1h --timeout 1h --json");
    let (output, result) = interrupted(&arguments, 700);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(result["messages"], 0, "{result:#}");
    // Where nothing was measured the table has no values.
    let child = start(arguments.trim_end_matches(" --json"));
    signal(&child, 700);
    let table = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    for row in ["mean", "min", "p50", "p99.99", "max"] {
        let line = table.lines().find(|line| line.starts_with(&format!("{row} "))).unwrap();
        assert!(line.ends_with(" –"), "{table}");
    }
}

#[test]
fn while_finishing() {
    let target = wrong_server(Wrong::StaysOpen);
    let options = "-c 1 -d 200ms --timeout 1h --json";
    let (output, result) = interrupted(&format!("{target} {options}"), 1200);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(number(&result, "/messages") > 0.0, "{result:#}");
}

#[test]
fn while_its_output_is_not_read() {
    let daemon = Daemon::start();
    let options = "-c 1 -d 1h --interval 1ms --json-stream";
    let mut child = start(&format!("{} {options}", daemon.tcp));
    // By then the pipe is full.
    signal(&child, 1500);
    std::thread::sleep(Duration::from_millis(500));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let last = lines.by_ref().map(Result::unwrap).last().unwrap();
    let result: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&result["kind"], &result["interrupted"]), (&"result".into(), &true.into()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_second_ends_the_process() {
    let daemon = Daemon::start();
    let (_sockets, address) = full_backlog();
    let silent = stalling_server(Duration::ZERO..LONG);
    for arguments in [
        // Blocked on output: the result does not fit into the pipe.
        format!("{} -c 1 -d 1h --interval 1ms --json-stream", daemon.tcp),
        // Waiting for the last echo.
        format!("{silent} -c 1 -d 1h --timeout 1h --json"),
        format!("{address} -c 4 --mode churn -d 1h --timeout 1h --json"),
    ] {
        let mut child = start(&arguments);
        signal(&child, 1500);
        signal(&child, 700);
        let since = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{arguments}");
        assert!(since.elapsed() < Duration::from_secs(5), "{arguments}");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{arguments}");
    }
}
