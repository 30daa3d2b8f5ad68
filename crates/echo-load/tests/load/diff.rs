//! Goal: a regression is status 4, and only a regression. Method: a real result, made better and
//! worse by hand.

use serde_json::Value;

use crate::datagram_servers::{Wrong, datagram_server};
use crate::program::{Run, Scratch, number, run};
use crate::servers::Daemon;

/// Compares a real result with a copy of which `change` changed a figure.
fn compare(options: &str, change: impl Fn(&mut Value)) -> Run {
    compare_both(options, |_| (), change)
}

/// The same, where the first one is changed as well.
fn compare_both(
    options: &str,
    change_before: impl Fn(&mut Value),
    change_after: impl Fn(&mut Value),
) -> Run {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let mut before = run(&format!("{} -d 200ms --json", daemon.tcp)).right();
    let mut after = before.clone();
    change_before(&mut before);
    change_after(&mut after);
    let paths = [("a.json", before), ("b.json", after)]
        .map(|(name, result)| scratch.file(name, &format!("{result}\n")).display().to_string());
    run(&format!("diff {} {}{options}", paths[0], paths[1]))
}

fn multiply(result: &mut Value, pointer: &str, factor: f64) {
    let value = number(result, pointer) * factor;
    *result.pointer_mut(pointer).unwrap() = value.into();
}

const P99: &str = "/latency_microseconds/uncorrected/p99";
const RATE: &str = "/messages_per_second";

#[test]
fn equal_results_are_equal() {
    let run = compare("", |_| ());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
    assert!(run.stdout.contains("p99.9 µs"), "{run:#?}");
}

#[test]
fn worse_by_more_than_the_threshold_is_status_4() {
    for (pointer, factor) in [(P99, 1.2), (RATE, 0.8)] {
        let run = compare("", |result| multiply(result, pointer, factor));
        assert_eq!(run.code, Some(4), "{run:#?}");
        assert_eq!(run.stdout.matches("worse").count(), 1, "{run:#?}");
        let run = compare(" --threshold 50%", |result| multiply(result, pointer, factor));
        assert_eq!(run.code, Some(0), "{run:#?}");
    }
}

#[test]
fn a_little_worse_or_much_better_is_status_0() {
    for (pointer, factor) in [(P99, 1.04), (RATE, 0.96), (P99, 0.5), (RATE, 2.0)] {
        let run = compare("", |result| multiply(result, pointer, factor));
        assert_eq!(run.code, Some(0), "{pointer} {factor}: {run:#?}");
    }
}

#[test]
fn no_percentage_excuses_errors() {
    for name in ["errors", "unanswered_messages", "connect_failures", "connections_left_open"] {
        for (before, after) in [(0, 1), (100, 101)] {
            let set = |result: &mut Value, value: i32| result[name] = value.into();
            let run = compare_both(
                " --threshold 1000%",
                |result| set(result, before),
                |result| set(result, after),
            );
            assert_eq!(run.code, Some(4), "{name}: {run:#?}");
            assert_eq!(run.stdout.matches("worse").count(), 1, "{run:#?}");
        }
    }
}

#[test]
fn what_came_late_or_was_never_sent_counts_by_its_share() {
    for name in ["late_messages", "unsent_messages"] {
        for (share, code) in [(0.04, 0), (0.06, 4)] {
            let run = compare("", |result| {
                let scheduled = number(result, "/scheduled_messages");
                result[name] = (scheduled * share).into();
            });
            assert_eq!(run.code, Some(code), "{name} {share}: {run:#?}");
        }
    }
}

#[test]
fn runs_of_another_kind_are_refused() {
    for change in [
        |result: &mut Value| result["settings"]["mode"] = "churn".into(),
        |result: &mut Value| result["settings"]["rate_per_second"] = 1000.into(),
    ] {
        let run = compare("", change);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:#?}");
        assert!(run.stderr.contains("cannot be compared: ping-pong, closed loop and"), "{run:#?}");
    }
}

#[test]
fn any_layout_is_read() {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let stream = run(&format!("{} -d 300ms --interval 100ms --json-stream", daemon.tcp)).stdout;
    let result: Value = serde_json::from_str(stream.lines().last().unwrap()).unwrap();
    let pretty = serde_json::to_string_pretty(&result).unwrap();
    let stream = scratch.file("stream.json", &stream).display().to_string();
    let pretty = scratch.file("pretty.json", &pretty).display().to_string();
    let run = run(&format!("diff {stream} {pretty}"));
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
}

#[test]
fn results_without_figures_are_refused() {
    let nothing = compare("", |result| result["messages"] = 0.into());
    assert_eq!(nothing.code, Some(2), "{nothing:#?}");
    assert!(nothing.stderr.contains("no message was answered"), "{nothing:#?}");
    let bare = compare("", |result| {
        *result = serde_json::json!({"schema": "echo-load/1", "kind": "result"});
    });
    assert_eq!(bare.code, Some(2), "{bare:#?}");
}

#[test]
fn an_output_that_cannot_be_written_is_no_panic() {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let result = run(&format!("{} -d 200ms --json", daemon.tcp)).stdout;
    let path = scratch.file("a.json", &result).display().to_string();
    let program = env!("CARGO_BIN_EXE_echo-load");
    for (redirection, code) in [("> /dev/full", 5), (">&-", 5), ("> /dev/full 2>&1", 5)] {
        let line = format!("{program} diff {path} {path} {redirection}");
        let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{redirection}: {output:?}");
    }
}

#[test]
fn different_loads_are_reported() {
    let run = compare("", |result| result["settings"]["depth"] = 9.into());
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.stderr.contains("differ in depth"), "{run:#?}");
}

#[test]
fn what_is_no_result_is_status_2() {
    let scratch = Scratch::new();
    let other =
        scratch.file("other.json", "{\"schema\": \"something else\"}\n").display().to_string();
    let broken = scratch.file("broken.json", "{").display().to_string();
    for path in ["/nonexistent.json", &other, &broken] {
        let run = run(&format!("diff {path} {path}"));
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:#?}");
        assert!(run.stderr.contains(path), "{run:#?}");
    }
}

#[test]
fn losses_over_udp_have_the_threshold_and_another_transport_is_another_load() {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let udp = datagram_server(Wrong::Nothing);
    let file = |name: &str, result: &Value| {
        scratch.file(name, &format!("{result}\n")).display().to_string()
    };
    let before = run(&format!("{udp} -d 200ms --json")).right();
    let mut after = before.clone();
    let scheduled = number(&after, "/scheduled_messages");
    after["datagrams"]["lost"] = (scheduled * 0.1).into();
    after["unanswered_messages"] = (scheduled * 0.1).into();
    let (before, after) = (file("a.json", &before), file("b.json", &after));
    let worse = run(&format!("diff {before} {after}"));
    assert_eq!(worse.code, Some(4), "{worse:#?}");
    assert_eq!(worse.stdout.matches("worse").count(), 1, "{worse:#?}");
    let tolerated = run(&format!("diff {before} {after} --threshold 20%"));
    assert_eq!(tolerated.code, Some(0), "{tolerated:#?}");
    let tcp = file("c.json", &run(&format!("{} -d 200ms --json", daemon.tcp)).right());
    let refused = run(&format!("diff {before} {tcp}"));
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(refused.stderr.contains("datagrams"), "{refused:#?}");
}
