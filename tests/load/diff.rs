//! Goal: a regression is status 1, and only a regression. Method: a real result, made better and
//! worse by hand.

use serde_json::Value;

use crate::program::{Run, Scratch, number, run};
use crate::servers::Daemon;

/// Compares a real result with a copy of which `change` changed a figure.
fn compare(options: &str, change: impl Fn(&mut Value)) -> Run {
    let (daemon, scratch) = (Daemon::start(), Scratch::new());
    let before = run(&format!("{} -d 200ms --json", daemon.tcp)).right();
    let mut after = before.clone();
    change(&mut after);
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
fn worse_by_more_than_the_threshold_is_status_1() {
    for (pointer, factor) in [(P99, 1.2), (RATE, 0.8)] {
        let run = compare("", |result| multiply(result, pointer, factor));
        assert_eq!(run.code, Some(1), "{run:#?}");
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
fn a_first_error_is_worse_than_none() {
    let run = compare("", |result| result["errors"] = 1.into());
    assert_eq!(run.code, Some(1), "{run:#?}");
}

#[test]
fn different_loads_are_told() {
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
