//! A restart with an invalid file: the connections stay, the last valid configuration stays in
//! force, and all outputs report that until the file is corrected.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::bundle::Bundle;
use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch, run_to_end};
use crate::ending::Losses;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, come_from, ping};

const VALID: &str = "[server]\nworkers = 2\n[limits]\nmax-connections = 1234\n[access]\n\
                     deny = [\"127.0.0.9\"]\n";
const INVALID: &str = "[limits]\nmax-connections = 0\n";
const PROBLEM: &str = "echo-uring.toml:2:19: limits.max-connections: 0 is out of range";

/// The next daemon, with admin sockets.
fn next(bus: &Bus, daemon: Daemon, config: &str, scratch: &Scratch) -> Daemon {
    let (stored, listening, lines) = daemon.export();
    assert!(!stored.is_empty(), "nothing was stored: {lines:#?}");
    let status = scratch.path("status");
    let _ = fs::remove_file(&status);
    let admin_sockets = vec![("status", Listening::unix(&status)), ("metrics", Listening::ipv4())];
    let config = config.to_owned();
    Launch { bus: bus.address(), stored, listening, admin_sockets, config, ..Launch::default() }
        .start()
}

fn answer(daemon: &Daemon, name: &str, request: &str) -> String {
    use std::io::{Read, Write};
    let mut socket: Socket = daemon.admin_place(name).connect();
    socket.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

/// Asserts that all outputs report that the earlier configuration is in force, or that none does.
fn assert_told(daemon: &Daemon, scratch: &Scratch, told: bool) {
    let json: serde_json::Value = serde_json::from_str(&answer(daemon, "status", "")).unwrap();
    let error = json["configuration_error"].as_str().unwrap_or_default();
    assert_eq!(error.contains(PROBLEM), told, "{json}");
    assert_eq!(json["schema"], 2);
    let metrics = answer(daemon, "metrics", "GET /metrics HTTP/1.1\r\n\r\n");
    let valid = format!("\necho_uring_configuration_valid {}\n", u8::from(!told));
    assert!(metrics.contains(&valid), "{metrics}");
    let path = scratch.path("status");
    let table = run_to_end(&["status", "--socket", path.to_str().unwrap()], None);
    assert_eq!(String::from_utf8(table.stdout).unwrap().contains(PROBLEM), told);
    let status = || daemon.manager.values("STATUS").pop().unwrap().1;
    wait_until("the status", time_limit(5.0), || status().contains(PROBLEM) == told);
}

fn is_denied(daemon: &Daemon) -> bool {
    let socket = daemon.place().socket();
    come_from(&socket, "127.0.0.9".parse().unwrap());
    !ping(&daemon.place().connect_with(socket), b"let me in")
}

/// Goal: an invalid file ends no connection at a restart or at a second one, and the earlier access
/// list stays in force. A reload of a valid file ends this state.
#[test]
fn a_restart_with_an_invalid_file_keeps_connections_and_configuration() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    // The last valid configuration is not the one that the first daemon started with.
    let daemon = Launch { bus: bus.address(), ..Launch::with_config("") }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    fs::write(daemon.config_path(), VALID).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.lines.wait_for("info reloaded: access.deny", time_limit(5.0));

    let mut daemon = daemon;
    for round in 0..2 {
        daemon = next(&bus, daemon, INVALID, &scratch);
        let line = daemon.lines.wait_for("error invalid configuration: ", time_limit(5.0));
        assert!(line.contains(PROBLEM) && line.ends_with("; the last valid one is in force"));
        assert!(ping(&peer, b"still here"), "round {round}");
        assert!(is_denied(&daemon), "the access list is not in force");
        let lines = daemon.lines.all();
        assert!(lines.iter().any(|line| line.contains(" 2 workers")), "{lines:#?}");
        let ready = daemon.manager.received();
        let ready = ready.iter().find(|it| it.field("READY").is_some()).unwrap();
        assert!(ready.field("STATUS").unwrap().contains(PROBLEM), "{ready:?}");
        assert_told(&daemon, &scratch, true);
    }
    fs::write(daemon.config_path(), VALID.replace("127.0.0.9", "127.0.0.8")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.lines.wait_for("info reloaded: access.deny = [\"127.0.0.8\"]", time_limit(5.0));
    assert_told(&daemon, &scratch, false);
    assert!(!is_denied(&daemon) && ping(&peer, b"and on"));
    // A failed reload is reported in the same places.
    fs::write(daemon.config_path(), INVALID).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.lines.wait_for("error reload failed: ", time_limit(5.0));
    assert_told(&daemon, &scratch, true);
    fs::write(daemon.config_path(), VALID).unwrap();
    drop(peer);
    bus.say(Answer::Job("stop"));
    daemon.settle();
    daemon.signal(Signal::SIGTERM);
    daemon.finish(Losses::None);
}

/// Goal: a missing or unreadable file does not end connections either.
#[test]
fn a_restart_without_the_file_keeps_connections() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let daemon = Launch { bus: bus.address(), ..Launch::with_config(VALID) }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    let (stored, listening, _) = daemon.export();
    // The file is the last argument.
    let script = "for last; do :; done; rm \"$last\"; exec \"$@\"";
    let wrapper = ["/bin/sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    let launch = Launch { bus: bus.address(), stored, listening, wrapper, ..Launch::default() };
    let daemon = launch.start();
    let line = daemon.lines.wait_for("error invalid configuration: ", time_limit(5.0));
    assert!(line.contains("echo-uring.toml: cannot be read"), "{line}");
    assert!(ping(&peer, b"still here") && is_denied(&daemon));
    drop(peer);
    daemon.stop();
}

/// Goal: without connections to keep, or if no configuration was handed over with them, an invalid
/// file fails the start.
#[test]
fn an_invalid_file_without_a_kept_configuration_fails_the_start() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let launch = |stored| Launch { stored, ..Launch::with_config(INVALID) };
    launch(Vec::new()).fail().assert(78, &[PROBLEM]);
    let damages: [fn(&mut Vec<u8>); 3] =
        [|state| state[64] ^= 2, |state| state.truncate(40), Vec::clear];
    for damage in damages {
        let daemon = Launch { bus: bus.address(), ..Launch::with_config(VALID) }.start();
        let peer = daemon.place().connect();
        assert!(ping(&peer, b"here"));
        let (stored, _, _) = daemon.export();
        let mut bundle = Bundle::open(stored);
        damage(&mut bundle.state);
        launch(vec![bundle.close()]).fail().assert(78, &[PROBLEM]);
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(!ping(&peer, b"nobody is here"));
    }
    let daemon = Launch { bus: bus.address(), ..Launch::with_config(VALID) }.start();
    let (stored, _, _) = daemon.export();
    assert!(!stored.is_empty());
    launch(stored).fail().assert(78, &[PROBLEM]);
    let older = include_bytes!("../fixtures/handover/0.1.0.state").to_vec();
    let bundle = Bundle { state: older, descriptors: Vec::new() };
    launch(vec![bundle.close()]).fail().assert(78, &[PROBLEM]);
}
