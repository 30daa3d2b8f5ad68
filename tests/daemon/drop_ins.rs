//! Configurations of several files: a start and reloads with drop-ins, entries that are not regular
//! files, names of inherited sockets, and everything that `check` reports about them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch, run_to_end};
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, ping, readable};

/// Sends SIGHUP, waits for the end of the reload, and returns the status that ends it.
fn reload(daemon: &Daemon) -> String {
    let readies = daemon.manager.values("READY").len();
    daemon.signal(Signal::SIGHUP);
    wait_until("the end of a reload", time_limit(10.0), || {
        daemon.manager.values("READY").len() > readies
    });
    let last = daemon.manager.received().into_iter().rev();
    let mut ends = last.filter(|it| it.field("READY").is_some());
    ends.next().unwrap().field("STATUS").unwrap().to_owned()
}

/// Goal: at a start the later file takes precedence, and each reload reads the directory again:
/// new, changed and removed files.
#[test]
fn the_directory_is_read_at_the_start_and_at_each_reload() {
    let _quiet = in_company();
    let drop_ins = vec![
        ("20-b.toml", "[limits]\nmax-connections = 3\n".to_owned()),
        ("10-a.toml", "[limits]\nmax-connections = 2\nmax-bytes = \"4B\"\n".to_owned()),
    ];
    let launch = Launch::with_config("[limits]\nmax-connections = 1\n");
    let daemon = Launch { drop_ins, ..launch }.start();
    let peers: Vec<_> = (0..3).map(|_| daemon.place().connect()).collect();
    assert!(peers.iter().all(|peer| ping(peer, b"four")), "the last file has no precedence");
    assert!(peers.iter().all(|peer| readable(peer, time_limit(5.0))), "max-bytes has no effect");
    drop(peers);

    fs::write(daemon.drop_ins().join("30-c.toml"), "[limits]\nmax-connections = 7\n").unwrap();
    reload(&daemon);
    daemon.lines.wait_for("info reloaded: limits.max-connections = 7", time_limit(5.0));
    fs::remove_file(daemon.drop_ins().join("30-c.toml")).unwrap();
    fs::remove_file(daemon.drop_ins().join("10-a.toml")).unwrap();
    reload(&daemon);
    let line = "info reloaded: limits.max-connections = 3, limits.max-bytes = \"off\"";
    daemon.lines.wait_for(line, time_limit(5.0));
    fs::remove_dir_all(daemon.drop_ins()).unwrap();
    reload(&daemon);
    daemon.lines.wait_for("info reloaded: limits.max-connections = 1", time_limit(5.0));
    daemon.stop();
}

/// Goal: if one file is invalid, no change of any file applies, and the error names the file.
#[test]
fn an_error_in_one_file_applies_no_change() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    fs::create_dir(daemon.drop_ins()).unwrap();
    fs::write(daemon.drop_ins().join("1.toml"), "[limits]\nmax-connections = 5\n").unwrap();
    let wrong = daemon.drop_ins().join("2.toml");
    fs::write(&wrong, "[timeouts]\nidle = \"1s\"\nstal = \"1s\"\ndrain = 1\n").unwrap();
    let status = reload(&daemon);
    let expected = format!(
        "reload failed: {}:3:1: timeouts.stal: unknown key; did you mean stall? (and 1 more: see \
         echo-uring check); the old configuration is in force; ",
        wrong.display()
    );
    assert!(status.starts_with(&expected), "{status}");
    assert!(!daemon.lines.all().iter().any(|line| line.contains("info reloaded")));
    fs::remove_file(wrong).unwrap();
    assert!(!reload(&daemon).contains("failed"));
    daemon.lines.wait_for("info reloaded: limits.max-connections = 5", time_limit(5.0));
    daemon.stop();
}

/// Goal: a FIFO, as the file or as a drop-in, blocks neither the daemon nor `check`.
#[test]
fn a_fifo_is_refused_and_never_waited_for() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"before"));
    let path = daemon.config_path();
    let words = "cannot be read: it is a FIFO (a named pipe), not a regular file; ";
    let check = || {
        let output = run_to_end(&["check", "--config", path.to_str().unwrap()], None);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(78), 1), "{text}");
        text
    };
    fs::create_dir(daemon.drop_ins()).unwrap();
    for place in [path.clone(), daemon.drop_ins().join("a.toml")] {
        let _ = fs::remove_file(&place);
        mkfifo(&place, Mode::from_bits_truncate(0o600)).unwrap();
        let status = reload(&daemon);
        let expected = format!("reload failed: {}: {words}", place.display());
        assert!(status.starts_with(&expected), "{status}");
        assert!(check().contains(words));
        fs::remove_file(&place).unwrap();
        fs::write(&place, "").unwrap();
    }
    assert!(ping(&peer, b"after") && !reload(&daemon).contains("failed"));
    drop(peer);
    daemon.stop();
}

/// Goal: a section without an address configures the inherited socket of its name, a section with
/// an address does not, and a name without a socket is an error.
#[test]
fn a_listener_without_an_address_is_an_inherited_socket() {
    let _quiet = in_company();
    let unnamed = |name: &str, kind: &str| format!("[[listener]]\nname = \"{name}\"\n{kind}");
    let launch = |config: String| {
        let listening = vec![Listening::ipv4(), Listening::ipv4(), Listening::ipv4()];
        Launch { listening, names: vec!["lan", "balancer", "other"], config, ..Launch::default() }
    };
    let config = unnamed("balancer", "kind = \"agent-check\"\n")
        + &unnamed("other", "address = \"127.0.0.1:1\"\nkind = \"status\"\n")
        + &unnamed("lan", "");
    let daemon = launch(config.clone()).start();
    let places = daemon.places();
    let mut said = String::new();
    places[1].connect().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("up"), "{said:?}");
    for place in [&places[0], &places[2]] {
        assert!(place.answers(time_limit(10.0)), "{place:?}\n{}", daemon.transcript());
    }
    let Place::Tcp(address) = &places[1] else { unreachable!("these are of TCP") };
    let line = format!("info listening on {address} (balancer, agent-check, inherited)");
    assert!(daemon.log().contains(&line), "{}", daemon.transcript());
    daemon.stop();

    let words = "echo-uring.toml:10:1: listener: no socket of the name \"lam\" was passed; add an \
                 address, or FileDescriptorName=lam to a socket unit of this service";
    launch(config + &unnamed("lam", "")).fail().assert(78, &[words]);
    let refusal = Launch { config: unnamed("lan", ""), ..Launch::default() }.fail();
    refusal.assert(78, &[":1:1: listener: no socket of the name \"lan\" was passed; add"]);
}

/// Goal: the reload reports a name without a socket, before a start fails. A restart with such a
/// file keeps the connections.
#[test]
fn a_name_without_a_socket_ends_no_connection() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let daemon = Launch { bus: bus.address(), ..Launch::with_config("") }.start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    let config = "[[listener]]\nname = \"test\"\n[[listener]]\nname = \"lam\"\n";
    fs::write(daemon.config_path(), config).unwrap();
    let words = "echo-uring.toml:3:1: listener: no socket of the name \"lam\" was passed; ";
    let status = reload(&daemon);
    assert!(status.starts_with("reload failed: ") && status.contains(words), "{status}");
    let (stored, listening, _) = daemon.export();
    let config = config.to_owned();
    let launch = Launch { bus: bus.address(), stored, listening, config, ..Launch::default() };
    let daemon = launch.start();
    let line = daemon.lines.wait_for("error invalid configuration: ", time_limit(5.0));
    assert!(line.contains(words) && line.ends_with("; the last valid one is in force"), "{line}");
    assert!(ping(&peer, b"still here"));
    fs::write(daemon.config_path(), "[[listener]]\nname = \"test\"\n").unwrap();
    assert!(!reload(&daemon).contains("failed"));
    drop(peer);
    daemon.stop();
}

/// Goal: the JSON has the same: every key with its value, warnings, and errors with their
/// positions.
#[test]
fn check_prints_json_for_programs() {
    let scratch = Scratch::new();
    let path = scratch.path("echo-uring.toml");
    let check = |config: &str| -> (Option<i32>, Value) {
        fs::write(&path, config).unwrap();
        let arguments = ["check", "--json", "--config", path.to_str().unwrap()];
        let output = run_to_end(&arguments, None);
        assert!(output.stderr.is_empty(), "{output:?}");
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    };
    let text = "[server]\nbuffers = 64\n[timeouts]\nstall = \"2m\"\n[access]\ndeny = [\"::1\"]\n\
                [[listener]]\nname = \"a\"\naddress = 'unix:/run/\"\\ä'\n\
                [[listener]]\nname = \"b\"\n";
    let (code, json) = check(text);
    assert_eq!((code, &json["valid"], &json["errors"]), (Some(0), &json!(true), &json!([])));
    assert!(json["warnings"][0].as_str().unwrap().contains(":4:1: timeouts.stall: "), "{json}");
    let configuration = json["configuration"].as_object().unwrap();
    let sections: Vec<&str> = configuration.keys().map(String::as_str).collect();
    assert_eq!(
        sections,
        ["access", "datagram", "limits", "listener", "log", "server", "tcp", "timeouts"]
    );
    let server = json!({
        "workers": "auto", "buffers": 64, "busy-poll": "off", "listening-sockets": "auto",
        "pin-workers": false,
    });
    assert_eq!(configuration["server"], server);
    assert_eq!(configuration["access"], json!({ "allow": [], "deny": ["::1"] }));
    assert_eq!(configuration["tcp"]["nodelay"], json!(true));
    let listeners = json!([
        {
            "name": "a", "address": "unix:/run/\"\\ä", "kind": "echo",
            "proxy-protocol": "off", "trusted-proxies": [],
            "identity-host": "off", "identity-then-echo": false
        },
        { "name": "b", "kind": "echo", "proxy-protocol": "off", "trusted-proxies": [],
            "identity-host": "off", "identity-then-echo": false },
    ]);
    assert_eq!(configuration["listener"], listeners);

    let (code, json) = check("[log]\nlevel = \"\\n\"\n[limit]\n");
    assert_eq!(
        (code, &json["valid"], &json["configuration"]),
        (Some(78), &json!(false), &json!(null))
    );
    let problem = "unknown section; did you mean [limits]?";
    let second = json!({
        "file": path.to_str(), "line": 3, "column": 2, "key": "limit", "problem": problem
    });
    assert_eq!((json["errors"].as_array().unwrap().len(), &json["errors"][1]), (2, &second));
}

/// Goal: `check` reads the same files as the daemon and reports all errors and all warnings. A
/// warning is no failure.
#[test]
fn check_reports_all_errors_and_warnings() {
    let scratch = Scratch::new();
    let path = scratch.path("echo-uring.toml");
    let directory = scratch.path("echo-uring.toml.d");
    let check = |limit: &str| {
        let script = format!("{limit} exec \"$0\" check --config \"$1\"");
        let output = Command::new("/bin/sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_echo-uring")])
            .arg(&path)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    fs::create_dir(&directory).unwrap();
    let file = "[timeouts]\nstall = \"2m\"\n[access]\nallow = [\"::1\"]\n[datagram]\n\
                datagrams-per-source = \"off\"\nbytes-per-source = \"off\"\n";
    fs::write(&path, file).unwrap();
    let drop_in = directory.join("a.toml");
    fs::write(&drop_in, "[limits]\nmax-connections = 5000\n[access]\ndeny = [\"::/0\"]\n").unwrap();
    let (code, printed, warned) = check("ulimit -n 100;");
    assert_eq!(code, Some(0), "{warned}");
    assert!(printed.contains("max-connections = 5000\n"), "{printed}");
    let (path, drop_in) = (path.display(), drop_in.display());
    let expected = [
        format!("echo-uring: warning: {drop_in}:4:1: access.deny: no client can connect over TCP"),
        format!("echo-uring: warning: {path}:2:1: timeouts.stall: \"2m\" is never reached"),
        format!("echo-uring: warning: {path}:6:1: datagram.datagrams-per-source: \"off\", as "),
        format!("echo-uring: warning: {drop_in}:2:1: limits.max-connections: 5000 do not fit: "),
    ];
    let lines: Vec<&str> = warned.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{warned}");
    for (line, expected) in lines.iter().zip(&expected) {
        assert!(line.starts_with(expected), "{expected} is not how this begins: {line}");
    }

    fs::write(path.to_string(), "[log]\nlevel = 1\nlevle = 2\n").unwrap();
    fs::write(drop_in.to_string(), "[log]\ntarget = 3\n").unwrap();
    symlink("missing", directory.join("b.toml")).unwrap();
    let (code, printed, wrong) = check("");
    assert_eq!((code, printed.as_str(), wrong.lines().count()), (Some(78), "", 1), "{wrong}");
    assert!(wrong.contains("b.toml: cannot be read: it is a symbolic link"), "{wrong}");
    fs::remove_file(directory.join("b.toml")).unwrap();
    let (code, printed, wrong) = check("");
    assert_eq!((code, printed.as_str(), wrong.lines().count()), (Some(78), "", 3), "{wrong}");
    for (line, place) in wrong.lines().zip([
        format!("{path}:2:9: log.level: 1 is not known"),
        format!("{path}:3:1: log.levle: unknown key; did you mean level?"),
        format!("{drop_in}:2:10: log.target: 3 is not known"),
    ]) {
        assert!(line.starts_with(&format!("echo-uring: {place}")), "{line}");
    }
}
