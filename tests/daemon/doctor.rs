//! `echo-uring doctor`: findings, remedies, exit codes, and the same as JSON.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use serde_json::Value;

use crate::daemon::{Launch, program, run_to_end};
use crate::locked::{WORKER, is_charged, limited};
use crate::machine::{Scratch, alone, time_limit};
use crate::refused::{CALLS, run_by, under_a_filter};

/// So few connections that the limit on open files suffices on every machine.
const MODEST: &str = "[limits]\nmax-connections = 10\n";

/// The exit status of `doctor` with this configuration, and its findings as JSON.
fn examined(config: &str, arguments: &[&str]) -> (i32, Value) {
    let scratch = Scratch::new();
    let path = scratch.path("echo-uring.toml");
    fs::write(&path, config).unwrap();
    let mut all = vec!["doctor", "--json", "--config", path.to_str().unwrap()];
    all.extend(arguments);
    judged(&run_to_end(&all, None))
}

fn judged(output: &Output) -> (i32, Value) {
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error} in {output:?}");
    });
    (output.status.code().unwrap(), json)
}

/// The findings of one topic that have this level, as `what | remedy`.
fn findings(json: &Value, topic: &str, level: &str) -> Vec<String> {
    let all = json["findings"].as_array().unwrap().iter();
    all.filter(|it| it["topic"] == topic && it["level"] == level)
        .map(|it| {
            let remedy = it["remedy"].as_str().unwrap_or("");
            assert_eq!(
                remedy.is_empty(),
                level == "ok",
                "a finding that is not ok has a remedy: {it}"
            );
            format!("{} | {remedy}", it["what"].as_str().unwrap())
        })
        .collect()
}

fn one(json: &Value, topic: &str, level: &str) -> String {
    let found = findings(json, topic, level);
    assert_eq!(found.len(), 1, "{topic} {level} in {json:#}");
    found.into_iter().next().unwrap()
}

#[test]
fn all_well_is_exit_0() {
    let (code, json) = examined(MODEST, &["--listen", "127.0.0.1:0"]);
    assert_eq!((code, &json["problems"]), (0, &Value::from(0)), "{json:#}");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(one(&json, "kernel", "ok").starts_with("Linux "));
    let io_uring = findings(&json, "io_uring", "ok").join("\n");
    for word in ["ACCEPT, RECV, SEND, POLL_ADD, TIMEOUT, ASYNC_CANCEL, CLOSE", "refuses all others"]
    {
        assert!(io_uring.contains(word), "{io_uring}");
    }
    assert!(one(&json, "config", "ok").contains("echo-uring.toml is valid"));
    assert!(findings(&json, "limits", "ok")[0].contains("enough"));
    assert!(findings(&json, "sockets", "ok").iter().any(|it| it.contains("can be bound")));
}

#[test]
fn people_get_a_table() {
    let output = run_to_end(&["doctor", "--listen", "127.0.0.1:0"], None);
    let text = String::from_utf8(output.stdout).unwrap();
    let topics = ["kernel ", "io_uring ", "config ", "limits ", "sockets ", "systemd ", "sandbox "];
    for topic in topics {
        assert!(text.lines().any(|line| line.starts_with(topic)), "no {topic} in\n{text}");
    }
    let verdict = text.lines().last().unwrap();
    match output.status.code() {
        Some(0) => assert_eq!(verdict, "no problems"),
        _ => assert!(verdict.contains(" problem"), "{text}"),
    }
}

/// Goal: the finding is a note, as the daemon warns and serves as many connections as it can.
#[test]
fn too_few_files_are_noted_with_a_remedy() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 100; exec \"$0\" doctor --json --listen 127.0.0.1:0"]);
    let (code, json) = judged(&command.arg(program()).output().unwrap());
    assert_eq!(code, 0);
    let note = findings(&json, "limits", "note").join("\n");
    for word in ["at most 100 ", "limits.max-connections", "ulimit -n 10"] {
        assert!(note.contains(word), "{note}");
    }
}

/// Goal: doctor and daemon calculate the same capacity: that of the daemon's warning.
#[test]
fn the_doctor_calculates_the_capacity_of_the_daemon() {
    let launch = Launch::with_config("[server]\nworkers = 3\n");
    let daemon = Launch { open_files: Some(300), ..launch }.start();
    let warning = daemon.lines.wait_for("permits only ", time_limit(5.0));
    let mut command = Command::new("/bin/sh");
    command.args([
        "-c",
        "ulimit -n 300; exec \"$0\" doctor --json --listen 127.0.0.1:0 \
         --config \"$1\"",
    ]);
    command.arg(program()).arg(daemon.config_path());
    let (_, json) = judged(&command.output().unwrap());
    let note = findings(&json, "limits", "note").join("\n");
    let (_, rest) = note.split_once("enough for ").unwrap();
    let room: u32 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(warning.contains(&format!("permits only {room};")), "{warning}\n{note}");
    daemon.stop();
}

/// Goal: the files in use are named, and questionable settings in them are notes.
#[test]
fn drop_ins_are_read_and_oddities_are_noted() {
    let scratch = Scratch::new();
    let (path, directory) = (scratch.path("echo-uring.toml"), scratch.path("echo-uring.toml.d"));
    fs::write(&path, MODEST).unwrap();
    fs::create_dir(&directory).unwrap();
    let drop_in = directory.join("odd.toml");
    fs::write(&drop_in, "[timeouts]\nstall = \"1h\"\n").unwrap();
    let config = path.to_str().unwrap();
    let arguments = ["doctor", "--json", "--listen", "127.0.0.1:0", "--config", config];
    let (code, json) = judged(&run_to_end(&arguments, None));
    assert_eq!(code, 0, "{json:#}");
    let valid = format!("{}, {} are valid | ", path.display(), drop_in.display());
    assert_eq!(one(&json, "config", "ok"), valid);
    let note = one(&json, "config", "note");
    assert!(note.starts_with(&format!("{}:2:1: timeouts.stall: ", drop_in.display())), "{note}");
    assert!(note.ends_with(" | raise that as well"), "{note}");
}

#[test]
fn a_bad_configuration_is_a_problem_and_the_rest_is_examined() {
    let (code, json) = examined("[limits]\nmax-connections = 0\n", &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, 1);
    let problem = one(&json, "config", "problem");
    assert!(problem.contains("echo-uring.toml:2:19: limits.max-connections"), "{problem}");
    assert!(problem.contains(" | use "), "{problem}");
    assert!(!findings(&json, "io_uring", "ok").is_empty());
}

#[test]
fn an_address_that_is_taken_is_noted() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, json) = examined(MODEST, &["--listen", &address]);
    assert_eq!(code, 0);
    assert!(
        one(&json, "sockets", "note").starts_with(&format!("{address} (configured) is in use"))
    );
}

#[test]
fn an_address_of_another_machine_is_a_problem() {
    let (code, json) = examined(MODEST, &["--listen", "192.0.2.1:7777"]);
    assert_eq!(code, 1);
    assert!(one(&json, "sockets", "problem").contains("192.0.2.1:7777"));
}

#[test]
fn a_seccomp_filter_and_a_sysctl_are_distinguished() {
    let output = under_a_filter(&CALLS, nix::libc::EPERM, run_by(&[], &["doctor", "--json"]));
    let (code, json) = judged(&output);
    assert_eq!(code, 1);
    let problem = one(&json, "io_uring", "problem");
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let words: &[&str] = match sysctl.trim() {
        "0" | "" => {
            &["EPERM", "a seccomp filter refuses", "| in a container, ", "allow io_uring_setup, "]
        }
        _ => &["io_uring_disabled is", "seccomp filter"],
    };
    for word in words {
        assert!(problem.contains(word), "{word} is missing: {problem}");
    }
}

#[test]
fn a_running_daemon_is_described() {
    let daemon = Launch::with_config("").start();
    let output = run_to_end(&["doctor"], None);
    let text = String::from_utf8(output.stdout).unwrap();
    let wanted = format!("the running daemon (process {}): user ", daemon.process.0);
    assert!(text.contains(&wanted), "no {wanted:?} in\n{text}");
    let line = text.lines().find(|line| line.contains(&wanted)).unwrap();
    assert!(line.contains("new privileges no, seccomp filters "), "{line}");
    daemon.stop();
}

/// Goal: the need of locked memory is compared with the limit; the severity corresponds to the
/// daemon's behaviour.
#[test]
fn locked_memory_is_compared_with_what_the_rings_need() {
    let _quiet = alone();
    if !is_charged() {
        return;
    }
    let examined = |workers: &str, bytes: u64| {
        let scratch = Scratch::new();
        let path = scratch.path("echo-uring.toml");
        fs::write(&path, format!("{MODEST}[server]\nworkers = {workers}\n")).unwrap();
        let wrapper = limited(bytes);
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let config = path.to_str().unwrap();
        let arguments = ["doctor", "--json", "--listen", "127.0.0.1:0", "--config", config];
        judged(&run_by(&wrapper, &arguments).output().unwrap())
    };
    let (code, json) = examined("25", 8 << 20);
    assert_eq!(code, 1);
    let problem = one(&json, "limits", "problem");
    for word in ["8192 KiB", "25 workers need 8200 KiB", "does not start", "ulimit -l unlimited"] {
        assert!(problem.contains(word), "{problem}");
    }
    let (code, json) = examined("24", 8 << 20);
    assert_eq!(code, 0, "{json:#}");
    assert!(findings(&json, "limits", "ok").join("\n").contains("24 workers need 7872 KiB"));
    if std::thread::available_parallelism().unwrap().get() > 1 {
        let (code, json) = examined("\"auto\"", WORKER);
        assert_eq!(code, 0);
        assert!(one(&json, "limits", "note").contains("only 1 start"), "{json:#}");
    }
}

/// Goal: a daemon that would bind UDP addresses itself gets the receive buffer that the sysctl
/// permits; an inherited socket keeps its own.
#[test]
fn the_receive_buffer_of_a_datagram_socket_is_judged() {
    let output = run_to_end(&["doctor", "--json", "--listen", "udp:127.0.0.1:0"], None);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("UDP sockets that the daemon binds: a receive buffer of "), "{text}");
    assert!(text.contains("RECVMSG, SENDMSG; a restricted ring"), "{text}");
    let streams = run_to_end(&["doctor", "--json", "--listen", "127.0.0.1:0"], None);
    let streams = String::from_utf8(streams.stdout).unwrap();
    assert!(!streams.contains("UDP") && !streams.contains("SENDMSG"), "{streams}");
}
