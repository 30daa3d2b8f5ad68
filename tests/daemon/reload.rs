//! SIGHUP: what a new configuration changes at once and what needs a restart; that an invalid one
//! changes nothing; and that no connection loses a byte.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::SockRef;

use crate::daemon::{Daemon, Launch, program};
use crate::ending::Losses;
use crate::machine::{alone, in_company, time_limit, wait_until};
use crate::manager::Notification;
use crate::place::{expect_end, expect_tape, ping, read_out, readable, send_tape};
use crate::tape::Tape;

/// Sends SIGHUP and waits for the READY=1 that ends the reload; returns the notifications.
fn reload(daemon: &Daemon) -> Vec<Notification> {
    let before = daemon.manager.received().len();
    let readies = daemon.manager.values("READY").len();
    daemon.signal(Signal::SIGHUP);
    wait_until("the end of a reload", time_limit(10.0), || {
        daemon.manager.values("READY").len() > readies
    });
    daemon.manager.received().split_off(before)
}

/// Goal: the service manager is notified, in this order, that a reload began, when, and that it
/// ended.
#[test]
fn a_reload_is_announced_dated_and_ended() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let mut times = Vec::new();
    for _ in 0..2 {
        let begin = Instant::now();
        let said = reload(&daemon);
        let first = said.iter().position(|it| it.field("RELOADING") == Some("1")).unwrap();
        let last = said.iter().position(|it| it.field("READY") == Some("1")).unwrap();
        assert!(first < last, "{said:#?}");
        let time: u64 = said[first].field("MONOTONIC_USEC").unwrap().parse().unwrap();
        times.push((begin, Instant::now(), Duration::from_micros(time)));
        assert!(said[last].field("STATUS").unwrap().contains("2 workers"), "{said:#?}");
        thread::sleep(Duration::from_millis(100));
    }
    // `Instant` uses the same clock but hides its value: the differences must be equal.
    let [(begin, end, time), (later_begin, later_end, later_time)] = times[..] else {
        unreachable!("there were two")
    };
    let apart = later_time - time;
    assert!(apart + Duration::from_micros(1) >= later_begin - end, "{times:?}");
    assert!(apart <= later_end - begin + Duration::from_micros(1), "{times:?}");
    daemon.lines.wait_for("info reloaded: nothing changed", time_limit(5.0));
    daemon.stop();
}

/// Goal: a silent connection is closed by the new timeout, also if it was connected before. The log
/// names the changes, and at each reload the changes that need a restart.
#[test]
fn new_values_take_effect_and_the_others_are_named() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\nidle = \"1h\"\n").start();
    let silent = daemon.place().connect();
    assert!(ping(&silent, b"here"));
    let config = "[server]\nworkers = 3\n[timeouts]\nidle = \"300ms\"\n[limits]\n\
                  max-connections = 5000\n[tcp]\nreceive-buffer = \"64KiB\"\n";
    fs::write(daemon.config_path(), config).unwrap();
    reload(&daemon);
    assert!(readable(&silent, time_limit(5.0)), "the silent peer was not closed");
    expect_end(&silent);
    let changed = daemon.lines.wait_for("info reloaded: ", time_limit(5.0));
    assert_eq!(changed, "info reloaded: limits.max-connections = 5000, timeouts.idle = \"300ms\"");
    let rest =
        "warn a restart is needed to apply the changes of server.workers, tcp.receive-buffer";
    daemon.lines.wait_for(rest, time_limit(5.0));
    drop(silent);
    reload(&daemon);
    daemon.lines.wait_for("info reloaded: all changed keys need a restart", time_limit(5.0));
    let times = || daemon.lines.all().iter().filter(|line| *line == rest).count();
    wait_until("the warning to come again", time_limit(5.0), || times() == 2);
    daemon.stop();
}

/// Goal: a socket keeps its buffer size over a restart of the service, so a restart is not what the
/// daemon asks for.
#[test]
fn options_for_new_sockets_are_reported_as_such() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[tcp]\nsend-buffer = \"64KiB\"\n").start();
    fs::write(daemon.config_path(), "").unwrap();
    reload(&daemon);
    let words = "warn a restart is needed, of the socket unit as well, to apply the changes of \
                 tcp.send-buffer";
    daemon.lines.wait_for(words, time_limit(5.0));
    daemon.stop();
}

/// Goal: a lower capacity ends no connection, and when it is raised the waiting ones are served.
#[test]
fn capacity_follows_the_file() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[limits]\nmax-connections = 2\n").start();
    let peers = [daemon.place().connect(), daemon.place().connect()];
    assert!(peers.iter().all(|peer| ping(peer, b"here")));
    fs::write(daemon.config_path(), "[limits]\nmax-connections = 1\n").unwrap();
    reload(&daemon);
    assert!(peers.iter().all(|peer| ping(peer, b"still here")));
    let third = daemon.place().connect();
    send_tape(&third, Tape::new(3), 0, 100);
    assert!(!readable(&third, Duration::from_millis(300)), "a third one was served");
    fs::write(daemon.config_path(), "[limits]\nmax-connections = 3000\n").unwrap();
    reload(&daemon);
    expect_tape(&third, Tape::new(3), 0, 100);
    let many: Vec<_> = (0..500).map(|_| daemon.place().connect()).collect();
    assert!(many.iter().all(|peer| ping(peer, b"we too")));
    drop((peers, third, many));
    daemon.stop();
}

/// Goal: connections made after a reload have the new socket options.
#[test]
fn new_connections_get_the_new_socket_options() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let listener = daemon.place_socket();
    let listener = SockRef::from(&listener);
    assert!(listener.tcp_nodelay().unwrap());
    let config = "[tcp]\nnodelay = false\nuser-timeout = \"5s\"\n";
    fs::write(daemon.config_path(), config).unwrap();
    reload(&daemon);
    assert!(!listener.tcp_nodelay().unwrap());
    assert_eq!(listener.tcp_user_timeout().unwrap(), Some(Duration::from_secs(5)));
    daemon.stop();
}

/// Goal: the level of the log follows the file, unless the command line says otherwise.
#[test]
fn the_log_level_follows_the_file_but_not_against_the_command_line() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[log]\nlevel = \"error\"\n").start();
    assert_eq!(daemon.lines.all(), Vec::<String>::new());
    fs::write(daemon.config_path(), "[log]\nlevel = \"info\"\n").unwrap();
    reload(&daemon);
    daemon.lines.wait_for("info reloaded: log.level = \"info\"", time_limit(5.0));
    daemon.stop();
    let launch = Launch::with_config("[log]\nlevel = \"error\"\n");
    let daemon = Launch { arguments: vec!["--log-level=info".into()], ..launch }.start();
    fs::write(daemon.config_path(), "[log]\nlevel = \"warn\"\n").unwrap();
    reload(&daemon);
    daemon.lines.wait_for("info reloaded: nothing changed", time_limit(5.0));
    daemon.stop();
}

/// Goal: an invalid file changes nothing and is named with line and column in the status and, once,
/// in the log. A valid one ends this state.
#[test]
fn a_bad_file_leaves_the_old_configuration_in_force() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[timeouts]\nidle = \"400ms\"\n").start();
    fs::write(daemon.config_path(), "[timeouts]\nidle = \"1h\"\n  stall = \"soon\"\n").unwrap();
    let said = reload(&daemon);
    assert!(said[0].field("RELOADING").is_some(), "{said:#?}");
    let path = daemon.config_path();
    let trouble = format!("reload failed: {}:3:11: timeouts.stall: \"soon\"", path.display());
    let status = said.last().unwrap().field("STATUS").unwrap();
    assert!(status.starts_with(&trouble), "{status}");
    assert!(status.contains("; the old configuration is in force; 0 connections"), "{status}");
    let line = daemon.lines.wait_for("error reload failed: ", time_limit(5.0));
    assert!(line.ends_with("; the old configuration is in force"), "{line}");
    // The status, which is sent every second, still says so.
    let silent = daemon.place().connect();
    assert!(ping(&silent, b"here"));
    wait_until("the next status", time_limit(5.0), || {
        let status = daemon.manager.values("STATUS").pop().unwrap().1;
        status.contains("1 connection,") && status.starts_with(&trouble)
    });
    assert!(readable(&silent, time_limit(5.0)), "the old timeout is no longer in force");
    expect_end(&silent);
    drop(silent);
    let errors = daemon.lines.all().iter().filter(|line| line.starts_with("error")).count();
    assert_eq!(errors, 1, "{}", daemon.transcript());
    fs::write(daemon.config_path(), "").unwrap();
    let said = reload(&daemon);
    let status = said.last().unwrap().field("STATUS").unwrap();
    assert!(!status.contains("failed"), "{status}");
    fs::remove_file(daemon.config_path()).unwrap();
    let said = reload(&daemon);
    assert!(said.last().unwrap().field("STATUS").unwrap().contains("cannot be read"));
    fs::write(daemon.config_path(), "").unwrap();
    daemon.stop();
}

/// Goal: a second SIGHUP is harmless, and one during the drain changes nothing.
#[test]
fn a_sighup_is_harmless_at_any_time() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[server]\nworkers = 8\n[timeouts]\ndrain = \"1m\"\n").start();
    for _ in 0..20 {
        daemon.signal(Signal::SIGHUP);
    }
    daemon.lines.wait_for("info reloaded: nothing changed", time_limit(5.0));
    let balanced = || {
        let (begun, ended) = (daemon.manager.values("RELOADING"), daemon.manager.values("READY"));
        begun.len() + 1 == ended.len()
    };
    wait_until("each reload to end", time_limit(5.0), balanced);
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"here"));
    daemon.signal(Signal::SIGTERM);
    daemon.lines.wait_for("info draining: 1 connection", time_limit(10.0));
    daemon.signal(Signal::SIGHUP);
    daemon.lines.wait_for("info reload ignored: ", time_limit(5.0));
    assert!(ping(&peer, b"still here"));
    drop(peer);
    daemon.finish(Losses::None);
}

/// Goal: a SIGHUP before the daemon is ready, even before it has read its file, is handled once it
/// is ready. Method: the shell that executes the daemon blocks the signal and sends it to itself.
#[test]
fn a_sighup_before_ready_is_remembered() {
    let _quiet = in_company();
    let script = "kill -HUP $$; exec \"$0\" \"$@\"";
    let wrapper = ["env", "--block-signal=HUP", "/bin/sh", "-c", script];
    let wrapper = wrapper.map(str::to_owned).to_vec();
    let daemon = Launch { wrapper, ..Launch::with_config("") }.start();
    daemon.lines.wait_for("info reloaded: nothing changed", time_limit(5.0));
    let lines = daemon.lines.all();
    let at = |text: &str| lines.iter().position(|line| line.contains(text));
    assert!(at("info ready") < at("info reloaded"), "{lines:#?}");
    assert!(daemon.manager.received()[0].field("READY").is_some(), "{}", daemon.transcript());
    wait_until("the end of the reload", time_limit(5.0), || {
        daemon.manager.values("READY").len() == 2
    });
    daemon.stop();
}

/// Goal: `echo-uring reload`, as the unit runs it, ends after the daemon has announced the reload.
/// Its exit status distinguishes an invalid file from a valid one; the daemon reloads in both
/// cases.
#[test]
fn the_reload_command_of_the_unit_reports_errors() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let run = |pid: Option<u32>| {
        let mut command = Command::new(program());
        command.env_clear().arg("reload").arg("--config").arg(daemon.config_path());
        if let Some(pid) = pid {
            command.env("MAINPID", pid.to_string());
        }
        command.output().unwrap()
    };
    for round in 1..=50 {
        let output = run(Some(daemon.process.0));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        // The datagram is in our queue already; the thread that reads it may need a moment.
        wait_until("RELOADING=1", time_limit(5.0), || {
            daemon.manager.values("RELOADING").len() == round
        });
    }
    fs::write(daemon.config_path(), "[limits]\nmax-connections = 0\n").unwrap();
    let output = run(Some(daemon.process.0));
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains(":2:19: limits.max-connections: 0 is out of range"), "{words}");
    daemon.lines.wait_for("error reload failed: ", time_limit(5.0));
    let output = run(None);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    fs::write(daemon.config_path(), "").unwrap();
    daemon.stop();
}

/// Goal: a hundred reloads, every second one with other limits and timeouts and every tenth with a
/// invalid file, while 20,000 messages a second are echoed: no connection ends, no byte is lost.
#[test]
fn a_hundred_reloads_under_load_lose_no_byte() {
    let _quiet = alone();
    const PEERS: u64 = 40;
    const WORD: u64 = 64;
    const A_SECOND: u64 = 20_000;
    let variants = [
        "[timeouts]\nidle = \"20s\"\nstall = \"30s\"\n[limits]\nmax-connections = 41\n",
        "[timeouts]\nidle = \"2h\"\n[limits]\nmax-connections = 9000\nstalled-memory = \"1MiB\"\n",
        "[timeouts]\nidle = \"off\"\nstall = \"off\"\n[tcp]\nnodelay = false\n[limits]\nmax-connections = 7\n",
    ];
    let daemon = Launch::with_config(variants[0]).start();
    let place = daemon.place().clone();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (words, span) = thread::scope(|scope| {
        let talk = |seed| {
            let (socket, tape, done) = (place.connect(), Tape::new(seed), &done);
            // As many words at once as one peer sends in ten milliseconds.
            let batch = A_SECOND / 100 / PEERS * WORD;
            scope.spawn(move || {
                let (begin, mut offset, mut batches) = (Instant::now(), 0, 0);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    send_tape(&socket, tape, offset, offset + batch);
                    expect_tape(&socket, tape, offset, offset + batch);
                    offset += batch;
                    batches += 1;
                    let due = begin + Duration::from_millis(10) * batches;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                socket.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(read_out(&socket, time_limit(10.0)), (0, Ok(())));
                offset / WORD
            })
        };
        let begin = Instant::now();
        let talkers: Vec<_> = (1..=PEERS).map(talk).collect();
        thread::sleep(Duration::from_millis(200));
        for round in 0..100 {
            let bad = round % 10 == 9;
            let text = if bad { "[limits" } else { variants[round % variants.len()] };
            fs::write(daemon.config_path(), text).unwrap();
            let said = reload(&daemon);
            let status = said.last().unwrap().field("STATUS").unwrap();
            assert_eq!(status.starts_with("reload failed"), bad, "{status}");
            thread::sleep(Duration::from_millis(20));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let words: u64 = talkers.into_iter().map(|it| it.join().unwrap()).sum();
        (words, begin.elapsed())
    });
    let rate = words as f64 / span.as_secs_f64();
    println!("{words} words in {span:?}, {rate:.0} a second");
    fs::write(daemon.config_path(), "").unwrap();
    let remains = daemon.stop();
    assert_eq!(remains.counters.accepted, PEERS);
    assert_eq!(remains.counters.bytes_out, words * WORD);
}

/// Goal: no file ends the running daemon, and its error is a line that the service manager accepts.
/// Method: files that once ended it, and one that is large and broken.
#[test]
fn an_unexpected_file_ends_no_connection() {
    let _quiet = in_company();
    let daemon = Launch::with_config("").start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"before"));
    let long = format!("[log]\ntarget = \"{}\\n\"\n", "x".repeat(500_000));
    for (config, words) in [
        ("[[access.allow]]\n", ":1:1: access.allow: "),
        ("[timeouts]\nidle = \"18446744073709551615s 500ms 500ms\"\n", "is out of range"),
        (&long, "\u{2026}\" is not known"),
    ] {
        fs::write(daemon.config_path(), config).unwrap();
        let said = reload(&daemon);
        let status = said.last().unwrap().field("STATUS").unwrap().to_owned();
        assert!(status.contains(words), "{status}");
        assert!(status.len() <= 1024, "{} bytes: {status}", status.len());
        daemon.lines.wait_for(words, time_limit(5.0));
        assert!(ping(&peer, b"after"));
    }
    // The message about a valid one is equally short.
    let many: Vec<String> =
        (0..20_000_u32).map(|n| format!("\"10.0.{}.{}\"", n / 250, n % 250)).collect();
    let config = format!("[access]\ndeny = [{}]\n", many.join(", "));
    fs::write(daemon.config_path(), config).unwrap();
    reload(&daemon);
    let line = daemon.lines.wait_for("reloaded: access.deny = [\"10.0.0.0\", ", time_limit(5.0));
    assert!(line.len() < 200 && line.ends_with('\u{2026}'), "{line}");
    drop(peer);
    daemon.stop();
}
