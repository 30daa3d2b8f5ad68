//! Goal: missing echoes, at the end of a run or earlier, are reported with their exit status.
//! Method: servers that serve only some connections, stop answering, or end in different ways.

use std::time::{Duration, Instant};

use crate::program::{number, run};
use crate::servers::{Daemon, Wrong, closed_port, serves_some, stalling_server, wrong_server};

fn problems(result: &serde_json::Value) -> String {
    result["problems"].to_string()
}

#[test]
fn connections_that_are_served_too_late_are_reported() {
    for load in ["", " --rate 800"] {
        let target = serves_some(5);
        let run = run(&format!("{target} -c 8 -d 600ms{load} --json"));
        assert_eq!(run.code, Some(4), "{run:#?}");
        let result = run.json();
        assert_eq!(result["connections_without_echo"], 3, "{result:#}");
        assert!(problems(&result).contains("3 connections of 8 got no echo"), "{result:#}");
        let slowest = &result["slowest_connection"];
        assert_eq!(slowest["messages"], 0, "{result:#}");
        assert!(number(slowest, "/mean_microseconds") > 500e3, "{result:#}");
    }
}

#[test]
fn a_run_that_measured_nothing_is_incomplete() {
    let target = stalling_server(Duration::ZERO..Duration::from_millis(700));
    let run = run(&format!("{target} -c 2 -d 300ms --json"));
    assert_eq!(run.code, Some(4), "{run:#?}");
    let result = run.json();
    assert_eq!((&result["messages"], &result["late_messages"]), (&0.into(), &2.into()));
    assert!(problems(&result).contains("no message was answered"), "{result:#}");
    assert!(result["intervals"][0]["p99_microseconds"].is_null(), "{result:#}");
}

#[test]
fn a_missed_rate_is_incomplete_and_can_be_forgiven() {
    let load = |tolerance: &str| {
        let stall = Duration::from_millis(400)..Duration::from_millis(600);
        let target = stalling_server(stall);
        run(&format!("{target} -c 1 --rate 400 -d 500ms{tolerance} --json"))
    };
    let missed = load("");
    assert_eq!(missed.code, Some(4), "{missed:#?}");
    assert!(problems(&missed.json()).contains("the rate was missed"), "{missed:#?}");
    let forgiven = load(" --tolerance 50%");
    assert_eq!(forgiven.code, Some(0), "{forgiven:#?}");
    assert!(number(&forgiven.json(), "/unsent_messages") > 5.0, "{forgiven:#?}");
}

#[test]
fn a_message_that_times_out_is_seen_when_it_does() {
    let since = Instant::now();
    let target = wrong_server(Wrong::FallsSilentAfter { bytes: 640 });
    let run = run(&format!("{target} -c 1 -d 30s --timeout 400ms --interval 200ms --json-stream"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(since.elapsed() < Duration::from_secs(10), "it waited for the end");
    let lines: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let result = lines.last().unwrap();
    assert_eq!(result["error_counts"]["unanswered"], 1, "{result:#}");
    assert_eq!(result["ended"], "connections_lost", "{result:#}");
    assert!(problems(result).contains("all connections were lost"), "{result:#}");
    // Before it was given up, the stall was shown as one.
    let stalled = lines.iter().find(|line| line["messages"] == 0 && line["kind"] == "interval");
    let stalled = stalled.unwrap_or_else(|| panic!("{run:#?}"));
    assert!(stalled["p50_microseconds"].is_null(), "{stalled:#}");
    assert!(stalled["latency_microseconds"]["uncorrected"]["max"].is_null(), "{stalled:#}");
    assert_eq!(stalled["outstanding_messages"], 1, "{stalled:#}");
    assert!(number(stalled, "/longest_wait_microseconds") > 150e3, "{stalled:#}");
}

#[test]
fn a_churn_continues_after_a_message_that_timed_out() {
    let target = wrong_server(Wrong::FallsSilentAfter { bytes: 32 });
    let run = run(&format!("{target} --mode churn -c 1 -d 1s --timeout 150ms --json"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert!(number(&result, "/unanswered_messages") >= 3.0, "{result:#}");
    // A message that never came counts as the timeout at least.
    assert!(number(&result, "/latency_microseconds/uncorrected/min") >= 149e3, "{result:#}");
}

#[test]
fn the_table_has_no_value_where_nothing_was_measured() {
    let target = stalling_server(Duration::ZERO..Duration::from_millis(700));
    let run = run(&format!("{target} -c 1 --rate 1 -d 200ms --timeout 100ms"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(run.stdout.contains("1 = 0 answered + 0 late + 1 unanswered + 0 unsent"), "{run:#?}");
    assert!(run.stdout.contains("– µs/message"), "{run:#?}");
}

#[test]
fn an_orderly_end_before_everything_came_back_is_no_loss() {
    let target = wrong_server(Wrong::ForgetsTheRestAfter { bytes: 1000 });
    let run = run(&format!("{target} -c 1 -d 300ms --json"));
    assert_eq!(run.code, Some(1), "{run:#?}");
    let result = run.json();
    assert_eq!(result["error_counts"]["truncated"], 1, "{result:#}");
    assert_eq!(result["error_counts"]["lost"], 0, "{result:#}");
    assert_eq!(result["error_details"][0]["offset_bytes"], 1000, "{result:#}");
}

#[test]
fn connections_left_open_can_be_an_error() {
    let target = wrong_server(Wrong::StaysOpen);
    let load = format!("{target} -c 2 -d 200ms --timeout 300ms --json");
    let forgiven = run(&load);
    assert_eq!(forgiven.code, Some(0), "{forgiven:#?}");
    assert_eq!(forgiven.json()["connections_left_open"], 2);
    let strict = run(&format!("{load} --require-close"));
    assert_eq!(strict.code, Some(4), "{strict:#?}");
    assert!(problems(&strict.json()).contains("2 connections left open"), "{strict:#?}");
}

#[test]
fn connections_are_counted_in_every_mode() {
    let daemon = Daemon::start();
    for mode in ["ping-pong", "stream", "idle"] {
        let options =
            format!("--mode {mode} -c 8 --rate 100 --warmup 100ms -d 200ms --tolerance 50% --json");
        let result = run(&format!("{} {options}", daemon.tcp)).right();
        assert_eq!(result["connections_made"], 8, "{result:#}");
        assert!(result["slowest_connection"]["connection"].is_number(), "{result:#}");
    }
}

#[test]
fn an_unreachable_rate_ends_in_time() {
    let daemon = Daemon::start();
    for (load, kind) in [("-c 8 --rate 1e9", ""), ("-c 3 --mode churn --rate 1e9", "churn")] {
        let since = Instant::now();
        let run = run(&format!("{} {load} -d 500ms --json", daemon.tcp));
        assert!(since.elapsed() < Duration::from_secs(8), "{load}: {:?}", since.elapsed());
        let result = run.json();
        assert_eq!(run.code, Some(4), "{kind}: {result:#}");
        let scheduled = number(&result, "/scheduled_messages");
        let sum: f64 = ["messages", "late_messages", "unanswered_messages", "unsent_messages"]
            .iter()
            .map(|name| number(&result, &format!("/{name}")))
            .sum();
        assert_eq!(scheduled, sum, "{result:#}");
        let elapsed = number(&result, "/elapsed_seconds");
        assert!((scheduled - 1e9 * elapsed).abs() < 1e6, "{result:#}");
        // Almost all waited from their moment to the end: evenly from nothing to the whole time.
        let median = number(&result, "/latency_microseconds/corrected/p50") / 1e6;
        assert!((0.45 * elapsed..0.75 * elapsed).contains(&median), "{result:#}");
    }
}

#[test]
fn a_churn_outlives_refused_connects() {
    for load in ["-c 2", "-c 2 --rate 200", "-c 2 --rate 50k"] {
        let (socket, address) = closed_port();
        let server = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            socket.listen(64).unwrap();
            crate::servers::echo_on(socket.into());
        });
        let run = run(&format!("{address} --mode churn {load} -d 1200ms --json"));
        drop(server);
        assert_eq!(run.code, Some(3), "{load}: {run:#?}");
        let result = run.json();
        assert!(number(&result, "/elapsed_seconds") > 1.1, "{load}: {result:#}");
        assert_eq!(result["ended"], "on_time", "{load}: {result:#}");
        assert!(number(&result, "/messages") > 50.0, "{load}: {result:#}");
        assert!(number(&result, "/connect_failures") > 10.0, "{load}: {result:#}");
        assert!(result["connect_error"].as_str().unwrap().contains("refused"), "{result:#}");
    }
}

#[test]
fn what_the_machine_cannot_give_is_said_before_connecting() {
    let daemon = Daemon::start();
    let command = format!(
        "ulimit -n 64; exec {} {} -c 100 -d 1s",
        env!("CARGO_BIN_EXE_echo-load"),
        daemon.tcp
    );
    let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("100 connections need 118 open files, the limit is 64"), "{said}");
}
