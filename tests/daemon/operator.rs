//! Information for operators: refused and connected clients, changes that need a restart, when the
//! configuration was read, resources of the process, and the final counters.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::access::admit_from;
use crate::admin::{get, start, status};
use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch, run_to_end};
use crate::ending::Losses;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, ping};

/// The value of the only series of a metric, if there is one.
fn metric(daemon: &Daemon, name: &str) -> Option<f64> {
    let page = get(daemon, "/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

fn reload(daemon: &Daemon, config: &str) {
    fs::write(daemon.config_path(), config).unwrap();
    let before = daemon.manager.values("READY").len();
    daemon.signal(Signal::SIGHUP);
    wait_until("the end of a reload", time_limit(10.0), || {
        daemon.manager.values("READY").len() > before
    });
}

fn last_status(daemon: &Daemon) -> String {
    daemon.manager.values("STATUS").pop().map_or(String::new(), |(_, text)| text)
}

/// Goal: refused sources are named in the snapshot and in the log.
#[test]
fn refused_sources_are_named() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 2\n[access]\ndeny = [\"127.0.0.7\", \"127.0.0.8\"]\n";
    let (daemon, scratch) = start(config);
    assert_eq!(status(&daemon)["refused_sources"], Value::Array(Vec::new()));
    assert_eq!(admit_from(&daemon, [0, 7], 5).len(), 0);
    assert_eq!(admit_from(&daemon, [0, 8], 2).len(), 0);
    assert_eq!(admit_from(&daemon, [0, 9], 1).len(), 1);
    let seen = status(&daemon);
    let sources = seen["refused_sources"].as_array().unwrap();
    let shown =
        |index: usize| (sources[index]["source"].as_str(), sources[index]["count"].as_u64());
    assert_eq!(sources.len(), 2, "{seen}");
    assert_eq!(shown(0), (Some("127.0.0.7"), Some(5)), "{seen}");
    assert_eq!(shown(1), (Some("127.0.0.8"), Some(2)), "{seen}");
    assert_eq!((&sources[0]["reason"], &sources[0]["excess"]), (&"denied".into(), &0.into()));
    let line = daemon.lines.wait_for("refused by [access]", time_limit(10.0));
    assert!(line.contains("refused by [access]; the last from 127.0.0."), "{line}");
    let seen = status(&daemon);
    let warnings = seen["warnings"].as_array().unwrap();
    let text = warnings.last().unwrap()["text"].as_str().unwrap();
    assert!(line.ends_with(text), "{seen}");
    let table = run_to_end(&["status", "--socket", scratch.path("status").to_str().unwrap()], None);
    let table = String::from_utf8(table.stdout).unwrap();
    let row = table.lines().find(|line| line.starts_with("127.0.0.7")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["127.0.0.7", "denied", "5"]);
    daemon.stop();
}

/// Goal: at level debug there is one line for each connection, also after a reload to that level,
/// and at info there is none.
#[test]
fn at_debug_each_connection_has_a_line_with_its_peer() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[access]\ndeny = [\"127.0.0.7\"]\n").start();
    drop(admit_from(&daemon, [0, 3], 1));
    reload(&daemon, "[access]\ndeny = [\"127.0.0.7\"]\n[log]\nlevel = \"debug\"\n");
    drop(admit_from(&daemon, [0, 4], 2));
    assert_eq!(admit_from(&daemon, [0, 7], 1).len(), 0);
    daemon.lines.wait_for("connection from 127.0.0.7 refused at test: denied", time_limit(10.0));
    drop(admit_from(&daemon, [0, 5], 1));
    let lines = daemon.stop().lines;
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!(count("debug connection from 127.0.0.4 accepted at test"), 2, "{lines:#?}");
    // Also the connection of the last second.
    assert_eq!(count("connection from 127.0.0.5 accepted at test"), 1, "{lines:#?}");
    assert_eq!(count("connection from 127.0.0.3"), 0, "{lines:#?}");
}

/// Goal: a change that needs a restart is reported until it is reverted or the restart has
/// happened.
#[test]
fn a_pending_restart_is_reported_until_it_is_over() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("[server]\nworkers = 1\n");
    assert_eq!(metric(&daemon, "echo_uring_restart_needed"), Some(0.0));
    let loaded_at = |daemon: &Daemon| {
        metric(daemon, "echo_uring_configuration_last_reload_success_timestamp_seconds").unwrap()
    };
    let first = loaded_at(&daemon);
    assert!(first > 1.7e9, "{first}");
    reload(&daemon, "[server]\nworkers = 2\n[limits]\nmax-connections = 77\n");
    assert!(last_status(&daemon).starts_with("restart needed: server.workers; "));
    let seen = status(&daemon);
    assert_eq!(seen["restart_needed"], serde_json::json!(["server.workers"]));
    assert_eq!(metric(&daemon, "echo_uring_restart_needed"), Some(1.0));
    assert_eq!(metric(&daemon, "echo_uring_max_connections"), Some(77.0));
    let second = loaded_at(&daemon);
    assert!(second > first, "{second}");

    reload(&daemon, "[server]\nworkers = none\n");
    assert!(last_status(&daemon).contains("; restart needed: server.workers; "));
    assert_eq!(metric(&daemon, "echo_uring_configuration_last_reload_successful"), Some(0.0));
    assert_eq!(loaded_at(&daemon), second);

    reload(&daemon, "[server]\nworkers = 1\n");
    assert!(!last_status(&daemon).contains("restart"), "{}", last_status(&daemon));
    assert_eq!(metric(&daemon, "echo_uring_configuration_last_reload_successful"), Some(1.0));
    assert_eq!(status(&daemon)["restart_needed"], serde_json::json!([]));
    daemon.stop();
}

/// Goal: the standard process metrics and the limits are exported.
#[test]
fn the_process_and_its_limits_are_metrics() {
    let _quiet = in_company();
    let (daemon, _scratch) = start("[limits]\naccepts-per-source = 9000\n");
    let files = metric(&daemon, "process_open_fds").unwrap() as usize;
    // The connection of the scrape and the directory of descriptors are open as well.
    let others = daemon.process.open_files();
    assert!((others..others + 4).contains(&files), "{files} instead of {others}");
    for (name, least) in [
        ("process_cpu_seconds_total", 0.0001),
        ("process_max_fds", 1024.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_virtual_memory_bytes", 1e6),
        ("process_threads", 3.0),
        ("process_start_time_seconds", 1.7e9),
        ("echo_uring_max_stalled_bytes", 64.0 * 1024.0 * 1024.0),
        ("echo_uring_max_accepts_per_source", 9000.0),
    ] {
        let value = metric(&daemon, name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(value >= least, "{name} {value}");
    }
    for absent in ["max_connections_per_source", "max_datagrams_per_source"] {
        assert_eq!(metric(&daemon, &format!("echo_uring_{absent}")), None, "{absent}");
    }
    daemon.stop();
}

/// Goal: connections and bytes from the previous process are counted.
#[test]
fn a_handover_is_counted() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let config = "[server]\nworkers = 2\n";
    let daemon = Launch { bus: bus.address(), ..Launch::with_config(config) }.start();
    let peers: Vec<_> = (0..3).map(|_| daemon.place().connect()).collect();
    assert!(peers.iter().all(|peer| ping(peer, b"before")));
    let (stored, listening, _) = daemon.export();
    let admin_sockets =
        vec![("status", Listening::unix(&scratch.path("status"))), ("metrics", Listening::ipv4())];
    let launch =
        Launch { bus: bus.address(), stored, listening, admin_sockets, ..Launch::default() };
    let daemon = launch.start();
    assert!(peers.iter().all(|peer| ping(peer, b"after")));
    let total = &status(&daemon)["total"];
    assert_eq!((&total["taken_over"], &total["accepted"]), (&3.into(), &0.into()), "{total}");
    let page = get(&daemon, "/metrics");
    let series = |line: &&str| line.starts_with("echo_uring_taken_over_connections_total{");
    let lines: Vec<&str> = page.lines().filter(series).collect();
    assert!(lines.len() == 1 && lines[0].ends_with(" 3"), "{lines:?}");
    assert_eq!(metric(&daemon, "echo_uring_taken_over_bytes_total"), Some(0.0));
    drop(peers);
    wait_until("the end of the connections", time_limit(10.0), || {
        status(&daemon)["total"]["connections"] == 0
    });
    daemon.signal(Signal::SIGTERM);
    daemon.finish(Losses::None);
}

/// Goal: a command line, as in a container, can enable probes and a status.
#[test]
fn the_command_line_serves_metrics_and_status() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let [metrics, socket] = ["metrics", "status"].map(|name| scratch.path(name));
    let words = [
        "--listen".to_owned(),
        "127.0.0.1:0".to_owned(),
        "--metrics".to_owned(),
        format!("unix:{}", metrics.display()),
        "--status".to_owned(),
        socket.display().to_string(),
    ];
    let daemon = Launch { arguments: words.to_vec(), ..Launch::default() }.start();
    let text = crate::admin::answer(
        &crate::place::Place::Unix(metrics),
        b"GET /ready HTTP/1.1\r\nHost: test\r\n\r\n",
    );
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    let shown = run_to_end(&["status", "--socket", socket.to_str().unwrap()], None);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains(": ready, up ") && text.contains("command-line-1"), "{text}");
    daemon.stop();
}

/// Goal: with sockets of the service manager no others are opened, and ignored options are
/// reported.
#[test]
fn inherited_sockets_win_over_the_command_line() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let metrics = scratch.path("metrics");
    let arguments = vec!["--metrics".to_owned(), format!("unix:{}", metrics.display())];
    let daemon =
        Launch { arguments, listening: vec![Listening::ipv4()], ..Launch::default() }.start();
    let line = daemon.lines.wait_for("--metrics is ignored", time_limit(5.0));
    assert!(line.starts_with("warn "), "{line}");
    assert!(!metrics.exists());
    daemon.stop();
}

/// Goal: sockets for monitoring do not replace those that echo, so --listen is not ignored beside
/// them, and no warning says so.
#[test]
fn an_inherited_socket_for_monitoring_leaves_listen_in_force() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
    let arguments = ["--listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
    let listening = Vec::new();
    let daemon = Launch { arguments, listening, admin_sockets, ..Launch::default() }.start();
    daemon.lines.wait_for("(command-line-1)", time_limit(5.0));
    let lines = daemon.log();
    assert!(!lines.iter().any(|line| line.contains("is ignored")), "{lines:#?}");
    daemon.stop();
}

/// Goal: at level debug the final figures are logged in the form of `status`, before the last line.
#[test]
fn the_final_figures_are_readable() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[log]\nlevel = \"debug\"\n").start();
    let peer = daemon.place().connect();
    assert!(ping(&peer, b"twelve bytes"));
    drop(peer);
    daemon.settle();
    daemon.signal(Signal::SIGTERM);
    let lines = daemon.finish(Losses::None).lines;
    let row = lines.iter().find(|line| line.starts_with("debug test ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().skip(3).collect();
    assert_eq!(cells, ["0", "1", "1", "0", "1", "12", "-"], "{lines:#?}");
    assert!(lines.iter().any(|line| line == "debug closed: 1 finished"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("Stats {")), "{lines:#?}");
}
