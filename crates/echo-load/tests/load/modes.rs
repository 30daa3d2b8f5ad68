//! Goal: every mode works against the real daemon, over TCP, Unix stream and seqpacket sockets, and
//! what it counts is plausible.

use crate::program::{assert_rate, number, run};
use crate::servers::Daemon;

#[test]
fn all_modes_over_all_connections() {
    let daemon = Daemon::start();
    for target in [&daemon.tcp, &daemon.unix, &daemon.seqpacket] {
        for mode in ["ping-pong", "stream", "churn", "idle"] {
            let run = run(&format!("{target} --mode {mode} -c 8 -d 300ms --tolerance 20% --json"));
            let result = run.right();
            assert_eq!(result["settings"]["mode"], mode);
            assert_eq!(number(&result, "/connections_left_open"), 0.0, "{result:#}");
            if mode == "churn" {
                assert!(number(&result, "/connections_made") > 8.0, "{result:#}");
            }
        }
    }
}

#[test]
fn sizes_depth_threads_and_sources() {
    let daemon = Daemon::start();
    for options in [
        "--size 1",
        "--size 1..300KiB --depth 3",
        "--size 64:90,16KiB:10 --depth 16",
        "--size 7 --depth 100",
        "--size 3MiB",
        "-c 7 --threads 3 --depth 2",
        "-c 6 --source 127.0.0.2 --source 127.0.0.3",
        "--warmup 100ms",
        "-c 300",
    ] {
        run(&format!("{} {options} -d 300ms --json", daemon.tcp)).right();
    }
}

#[test]
fn a_stream_counts_whole_messages() {
    let daemon = Daemon::start();
    let options = "--mode stream -c 2 -d 500ms --json";
    let result = run(&format!("{} {options}", daemon.tcp)).right();
    let (messages, bytes) = (number(&result, "/messages"), number(&result, "/echoed_bytes"));
    // The bytes may include messages in flight at the end: 2 connections, 8 messages each.
    let rest = bytes - messages * 65536.0;
    assert!((0.0..=16.0 * 65536.0).contains(&rest), "{messages} messages, {bytes} bytes");
}

#[test]
fn an_idle_run_holds_its_connections() {
    let daemon = Daemon::start();
    let options = "--mode idle -c 500 --rate 200 -d 1s --tolerance 20% --json";
    let result = run(&format!("{} {options}", daemon.unix)).right();
    assert_rate(&result, 200.0);
}
