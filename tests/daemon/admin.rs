//! Status, metrics and health of the running daemon. Their clients must not delay the echo or each
//! other.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::Socket;

use crate::daemon::{Daemon, Launch, run_to_end};
use crate::ending::Losses;
use crate::machine::{Scratch, alone, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, ping};

/// How many clients a status or metrics socket serves at a time.
const CLIENTS: usize = 32;

/// A daemon with one socket of each admin kind, and the directory of its Unix sockets.
pub(crate) fn start(config: &str) -> (Daemon, Scratch) {
    let scratch = Scratch::new();
    let admin_sockets = vec![
        ("status", Listening::unix(&scratch.path("status"))),
        ("metrics", Listening::ipv4()),
        ("agent-check", Listening::ipv4()),
    ];
    (Launch { admin_sockets, ..Launch::with_config(config) }.start(), scratch)
}

/// Everything that a new connection to `place` receives after it has sent `request`.
pub(crate) fn answer(place: &Place, request: &[u8]) -> String {
    let socket = place.connect();
    (&socket).write_all(request).unwrap();
    rest(&socket)
}

/// The rest of the answer.
fn rest(mut socket: &Socket) -> String {
    let mut text = Vec::new();
    match socket.read_to_end(&mut text) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        Ok(_) | Err(_) => String::from_utf8(text).unwrap(),
    }
}

pub(crate) fn status(daemon: &Daemon) -> Value {
    serde_json::from_str(&answer(daemon.admin_place("status"), b"")).unwrap()
}

pub(crate) fn get(daemon: &Daemon, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    answer(daemon.admin_place("metrics"), request.as_bytes())
}

#[test]
fn a_snapshot_counts_what_was_done_exactly() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("[server]\nworkers = 2\n");
    let peers: Vec<Socket> = (0..3).map(|_| daemon.place().connect()).collect();
    for peer in &peers {
        for _ in 0..5 {
            assert!(ping(peer, b"seven b"));
        }
    }
    drop(peers);
    wait_until("the connections to be closed", time_limit(10.0), || {
        status(&daemon)["total"]["connections"] == 0
    });
    let seen = status(&daemon);
    let listener = &seen["listeners"][0];
    assert_eq!(listener["protocol"], "tcp");
    for (name, expected) in [
        ("accepted", 3),
        ("bytes_received", 105),
        ("bytes_sent", 105),
        ("messages_received", 15),
        ("messages_sent", 15),
    ] {
        assert_eq!(seen["total"][name], expected, "{name}: {seen}");
        assert_eq!(listener[name], expected, "{name}: {seen}");
        let workers = seen["workers"].as_array().unwrap().iter();
        let sum: u64 = workers.map(|worker| worker[name].as_u64().unwrap()).sum();
        assert_eq!(sum, expected, "{name}: {seen}");
    }
    assert_eq!(seen["total"]["closed"]["finished"], 3, "{seen}");
    // Each worker times its first echo; with so few echoes it times no other.
    let timed = seen["total"]["residence_seconds"]["count"].as_u64().unwrap();
    assert!((1..=2).contains(&timed), "{seen}");
    assert!(seen["total"]["residence_seconds"]["p50"].as_f64().unwrap() < 10.0, "{seen}");
    assert_eq!(seen["state"], "ready");
    assert_eq!((&seen["schema"], &seen["configuration_error"]), (&2.into(), &Value::Null));
    assert_eq!(seen["workers"][1]["turning"], true);
    assert_eq!(seen["total"]["buffers"]["lent"], 0);
    daemon.stop();
}

#[test]
fn http_requests_get_the_right_answers() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("");
    assert!(daemon.place().answers(time_limit(10.0)));
    let metrics = get(&daemon, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    let address = status(&daemon)["listeners"][0]["address"].clone();
    let labels = format!("listener=\"test\",protocol=\"tcp\",address={address}");
    for part in [
        "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n",
        &format!("echo_uring_sent_messages_total{{{labels}}} 1\n"),
        "echo_uring_residence_seconds_bucket{le=\"+Inf\"} 1\n",
        "echo_uring_ready 1\n",
    ] {
        assert!(metrics.contains(part), "{part:?} is missing:\n{metrics}");
    }
    for (path, part) in [
        ("/", "Content-Security-Policy: default-src 'none'; style-src 'self'"),
        ("/", "\r\nRefresh: 5\r\n"),
        ("/?pause", "<title>echo-uring: ready</title>"),
        ("/style.css", "Content-Type: text/css; charset=utf-8\r\n"),
    ] {
        let text = get(&daemon, path);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains(part), "{path}: {text}");
    }
    assert!(!get(&daemon, "/?pause").contains("\r\nRefresh: "));
    assert!(get(&daemon, "/healthz").ends_with("\r\n\r\nok\n"));
    assert!(get(&daemon, "/ready").ends_with("\r\n\r\nok\n"));
    assert!(get(&daemon, "/serving").ends_with("\r\n\r\nok\n"));
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    for (request, code) in [
        ("GET /other HTTP/1.1\r\n\r\n", "404 "),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405 "),
        ("\u{1}\u{2}\u{3}\r\n\r\n", "400 "),
        (&long, "431 "),
    ] {
        let text = answer(daemon.admin_place("metrics"), request.as_bytes());
        assert!(text.starts_with(&format!("HTTP/1.1 {code}")), "{request:.40}: {text}");
    }
    // An answer to HEAD never has a body. A proxy may send the absolute form of the target.
    let long = format!("HEAD /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9_000));
    for (request, code) in [
        ("HEAD /ready HTTP/1.0\r\n\r\n", "200 "),
        ("HEAD http://host:9100/metrics HTTP/1.1\r\nHost: host:9100\r\n\r\n", "200 "),
        ("HEAD /other HTTP/1.1\r\n\r\n", "404 "),
        (&long, "431 "),
    ] {
        let text = answer(daemon.admin_place("metrics"), request.as_bytes());
        assert!(text.starts_with(&format!("HTTP/1.1 {code}")), "{request:.40}: {text}");
        assert!(text.ends_with("\r\n\r\n"), "{request:.40} has a body: {text}");
    }
    let health = get(&daemon, "http://host:9100/healthz");
    assert!(health.ends_with("\r\n\r\nok\n"), "{health}");
    daemon.stop();
}

/// Goal: clients that send nothing or half a request, or never read, delay neither the echo nor
/// other clients, and are closed in the end.
#[test]
fn slow_clients_do_not_delay_others() {
    let _quiet = alone();
    let (daemon, _scratch) = start("");
    let mut idlers = Vec::new();
    for name in ["status", "metrics", "agent-check"] {
        for _ in 0..2 * CLIENTS {
            let socket = daemon.admin_place(name).connect();
            let _ = (&socket).write_all(b"GET /metrics HT");
            idlers.push(socket);
        }
    }
    let began = Instant::now();
    assert!(daemon.place().answers(time_limit(5.0)));
    assert_eq!(status(&daemon)["state"], "ready");
    assert!(get(&daemon, "/ready").starts_with("HTTP/1.1 200"));
    assert_eq!(answer(daemon.admin_place("agent-check"), b""), "up ready\n");
    assert!(began.elapsed() < time_limit(3.0), "it took {:?}", began.elapsed());
    let last = daemon.admin_place("metrics").connect();
    (&last).write_all(b"GET /re").unwrap();
    let text = rest(&last);
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    // The daemon has closed all of them by now, although the clients keep their ends open.
    daemon.settle();
    drop(idlers);
    daemon.stop();
}

#[test]
fn invalid_requests_do_not_affect_others() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("");
    let garbage: Vec<u8> = (0..100_000_u32).map(|index| (index * 31 % 251) as u8).collect();
    for name in ["status", "metrics", "agent-check"] {
        for _ in 0..5 {
            // The connection may be reset in the middle of the request.
            let _ = (&daemon.admin_place(name).connect()).write_all(&garbage);
        }
    }
    assert!(daemon.place().answers(time_limit(10.0)));
    assert_eq!(status(&daemon)["total"]["accepted"], 1);
    daemon.stop();
}

#[test]
fn a_thousand_status_clients_do_not_stop_the_echo() {
    let _quiet = alone();
    let (daemon, _scratch) = start("[server]\nworkers = 2\n");
    let place = daemon.place().clone();
    let socket = daemon.admin_place("status").clone();
    std::thread::scope(|scope| {
        let echoes = scope.spawn(move || {
            let peer = place.connect();
            (0..2_000).filter(|_| ping(&peer, b"and on")).count()
        });
        let mut clients: Vec<Socket> = Vec::new();
        for _ in 0..1_000 {
            clients.push(socket.connect());
        }
        // Clients beyond the limit were closed; none got half an answer.
        let answers: Vec<String> = clients.iter().map(rest).filter(|it| !it.is_empty()).collect();
        for answer in &answers {
            let seen: Value = serde_json::from_str(answer).unwrap();
            assert_eq!(seen["state"], "ready");
        }
        assert!(answers.len() >= CLIENTS, "{} answers", answers.len());
        println!("{} of 1000 were answered", answers.len());
        assert_eq!(echoes.join().unwrap(), 2_000);
    });
    assert_eq!(status(&daemon)["total"]["messages_sent"], 2_000);
    daemon.stop();
}

/// Goal: a load balancer can notice the shutdown before a connection is refused (`/ready`), and one
/// without another server knows how long this one serves new connections (`/serving`).
#[test]
fn readiness_ends_before_accepting_stops() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("[timeouts]\ndrain-lead = \"2s\"\ndrain = \"20s\"\n");
    let old = daemon.place().connect();
    assert!(ping(&old, b"before"));
    assert_eq!(answer(daemon.admin_place("agent-check"), b"what?\n"), "up ready\n");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    wait_until("/ready to return 503", time_limit(1.5), || {
        get(&daemon, "/ready").starts_with("HTTP/1.1 503 ")
    });
    assert!(get(&daemon, "/ready").ends_with("leaving\n"));
    assert!(get(&daemon, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(&daemon, "/serving").starts_with("HTTP/1.1 200"));
    assert_eq!(status(&daemon)["accepting"], true);
    assert_eq!(answer(daemon.admin_place("agent-check"), b""), "drain\n");
    assert!(daemon.place().answers(time_limit(1.0)), "it does not accept any more");
    assert!(began.elapsed() < Duration::from_secs(2), "too slow: the lead time is over");
    wait_until("the drain", time_limit(10.0), || status(&daemon)["state"] == "draining");
    assert!(began.elapsed() >= Duration::from_secs(2), "after {:?}", began.elapsed());
    assert!(ping(&old, b"still echoed"));
    assert!(get(&daemon, "/ready").ends_with("draining\n"));
    let serving = get(&daemon, "/serving");
    assert!(serving.starts_with("HTTP/1.1 503 ") && serving.ends_with("draining\n"), "{serving}");
    assert_eq!(status(&daemon)["accepting"], false);
    drop(old);
    daemon.finish(Losses::None);
}

/// Goal: without a lead accepting stops with the signal, and both probes say so.
#[test]
fn without_a_lead_both_probes_fail_at_once() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("[timeouts]\ndrain = \"20s\"\n");
    let old = daemon.place().connect();
    assert!(ping(&old, b"before"));
    assert!(get(&daemon, "/serving").starts_with("HTTP/1.1 200"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("draining: ", time_limit(10.0));
    for path in ["/ready", "/serving"] {
        let verdict = get(&daemon, path);
        assert!(verdict.starts_with("HTTP/1.1 503 "), "{path}: {verdict}");
    }
    drop(old);
    daemon.finish(Losses::None);
}

#[test]
fn a_second_signal_skips_the_announcement() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("[timeouts]\ndrain-lead = \"1h\"\n");
    let old = daemon.place().connect();
    assert!(ping(&old, b"before"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("leaving: ", time_limit(10.0));
    assert!(get(&daemon, "/serving").starts_with("HTTP/1.1 200"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("draining: ", time_limit(10.0));
    assert!(get(&daemon, "/serving").starts_with("HTTP/1.1 503 "));
    drop(old);
    daemon.finish(Losses::None);
}

/// Goal: the status command works while an upgrade has replaced it but not the daemon. Method: the
/// answer of 0.1.0, which has no schema number.
#[test]
fn the_status_command_understands_every_release() {
    let scratch = Scratch::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/status");
    let mut releases = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let fixture = entry.unwrap().path();
        let version = fixture.file_stem().unwrap().to_str().unwrap().to_owned();
        let answer = std::fs::read_to_string(&fixture).unwrap();
        let path = scratch.path("status");
        let listener = UnixListener::bind(&path).unwrap();
        for json in [false, true] {
            let arguments = ["status", "--socket", path.to_str().unwrap(), "--json"];
            let shown = std::thread::scope(|scope| {
                scope.spawn(|| listener.accept().unwrap().0.write_all(answer.as_bytes()).unwrap());
                run_to_end(&arguments[..if json { 4 } else { 3 }], None)
            });
            let text = String::from_utf8(shown.stdout).unwrap();
            assert!(shown.status.success(), "{version}: {shown:?}", shown = shown.stderr);
            let heading = format!("echo-uring {version}: ready, up 0 s, 5 connections ");
            assert_eq!(text == answer, json, "{text}");
            assert_eq!(text.starts_with(&heading), !json, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        releases += 1;
    }
    assert!(releases > 0, "there is no fixture");
}

#[test]
fn the_status_command_shows_a_table_or_json() {
    let _quiet = in_company();
    let (daemon, scratch) = start("");
    assert!(daemon.place().answers(time_limit(10.0)));
    let path = scratch.path("status");
    let socket = ["status", "--socket", path.to_str().unwrap()];
    let table = run_to_end(&socket, None);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(table.status.success() && text.contains(": ready, up "), "{text}");
    let line = text.lines().find(|line| line.starts_with("test ")).unwrap();
    assert!(line.contains("127.0.0.1:"), "{text}");
    let json = run_to_end(&[&socket[..], &["--json"]].concat(), None);
    let seen: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(seen["total"]["accepted"], 1);
    for options in ["", "--json", "--watch", "--watch --json"] {
        let line = format!("\"$0\" status --socket {} {options} > /dev/full", path.display());
        let program = env!("CARGO_BIN_EXE_echo-uring");
        let unheard = std::process::Command::new("sh").args(["-c", &line, program]).output();
        assert_eq!(unheard.unwrap().status.code(), Some(74), "{options}");
    }
    daemon.stop();
    let nobody = run_to_end(&socket, None);
    let text = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!(nobody.status.code(), Some(69), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("does not answer") && text.contains("systemctl status"), "{text}");
}

/// Goal: the command asks an instance at the path of its own socket unit. If there is no answer, it
/// names the units to examine. Method: an instance that does not exist.
#[test]
fn an_instance_that_does_not_answer_is_named_by_its_units() {
    let refused = |arguments: &[&str]| {
        let ended = run_to_end(&[&["status"], arguments].concat(), None);
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let (code, text) = refused(&["--instance", "no-such"]);
    assert_eq!((code, text.lines().count()), (Some(69), 1), "{text}");
    assert!(text.contains("/run/echo-uring/no-such/status.sock: "), "{text}");
    assert!(text.contains("echo-uring@no-such.service echo-uring-status@no-such.socket"), "{text}");
    for wrong in ["", "../lab", "a/b", "a_b", "abcdefghijklmnopqrstu"] {
        let (code, text) = refused(&["--instance", wrong]);
        let rule = "the name of an instance has 1 to 20 letters, digits and hyphens";
        assert!(code == Some(64) && text.contains(rule), "{wrong}: {text}");
    }
    let both = refused(&["--instance", "lab", "--socket", "/run/status.sock"]);
    assert_eq!(both.0, Some(64), "{}", both.1);
}
