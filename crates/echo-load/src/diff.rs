//! Compares two results: which figures got worse by more than the threshold.

use std::path::Path;

use echo_ring::output::{complain, print};
use serde_json::{Deserializer, Value};

use crate::arguments::DiffPlan;
use crate::json::SCHEMA;
use crate::status::Status;

/// A figure that is compared.
struct Figure {
    /// Its name in the table, with its unit.
    name: &'static str,
    /// Its location in a result.
    pointer: &'static str,
    /// When it is worse.
    worse: Worse,
}

#[derive(Clone, Copy, PartialEq)]
enum Worse {
    /// If it is less, by more than the threshold.
    Less,
    /// If it is more, by more than the threshold.
    More,
    /// If its share of the scheduled messages is more, by more percentage points than the
    /// threshold.
    Share,
    /// If it is more, by any amount.
    AnyMore,
}

const FIGURES: [Figure; 20] = [
    figure("messages/s", "/messages_per_second", Worse::Less),
    figure("bytes/s", "/bytes_per_second", Worse::Less),
    figure("p50 µs, uncorrected", "/latency_microseconds/uncorrected/p50", Worse::More),
    figure("p90 µs, uncorrected", "/latency_microseconds/uncorrected/p90", Worse::More),
    figure("p99 µs, uncorrected", "/latency_microseconds/uncorrected/p99", Worse::More),
    figure("p99.9 µs, uncorrected", "/latency_microseconds/uncorrected/p99_9", Worse::More),
    figure("p50 µs, corrected", "/latency_microseconds/corrected/p50", Worse::More),
    figure("p90 µs, corrected", "/latency_microseconds/corrected/p90", Worse::More),
    figure("p99 µs, corrected", "/latency_microseconds/corrected/p99", Worse::More),
    figure("p99.9 µs, corrected", "/latency_microseconds/corrected/p99_9", Worse::More),
    figure("late", "/late_messages", Worse::Share),
    figure("unsent", "/unsent_messages", Worse::Share),
    figure("unanswered", "/unanswered_messages", Worse::AnyMore),
    figure("datagrams lost", "/datagrams/lost", Worse::Share),
    figure("datagrams late", "/datagrams/late", Worse::Share),
    figure("datagrams reordered", "/datagrams/reordered", Worse::Share),
    figure("jitter µs", "/datagrams/jitter_microseconds/mean", Worse::More),
    figure("errors", "/errors", Worse::AnyMore),
    figure("connect failures", "/connect_failures", Worse::AnyMore),
    figure("left open", "/connections_left_open", Worse::AnyMore),
];

const fn figure(name: &'static str, pointer: &'static str, worse: Worse) -> Figure {
    Figure { name, pointer, worse }
}

/// Settings that must be equal for two runs to be the same load.
const SETTINGS: [&str; 8] = [
    "connections",
    "size_bytes",
    "depth",
    "burst",
    "dont_fragment",
    "rate_per_second",
    "threads",
    "verify",
];

/// Prints the comparison; returns the exit status.
pub(crate) fn run(plan: &DiffPlan) -> Status {
    let results = read(&plan.before).and_then(|before| Ok((before, read(&plan.after)?)));
    let results = results.and_then(|(before, after)| {
        let kinds = [&before, &after].map(kind);
        match kinds[0] == kinds[1] {
            true => Ok((before, after)),
            false => Err(format!("the runs cannot be compared: {} and {}", kinds[0], kinds[1])),
        }
    });
    let (before, after) = match results {
        Ok(results) => results,
        Err(fault) => {
            complain(&format!("echo-load: {fault}"));
            return Status::Usage;
        }
    };
    let settings = [&before["settings"], &after["settings"]];
    for name in SETTINGS {
        let [one, other] = settings.map(|it| &it[name]);
        // Results of earlier versions lack some of them.
        if one != other && settings.iter().all(|it| it.get(name).is_some()) {
            complain(&format!("echo-load: the runs differ in {name}: {one} and {other}"));
        }
    }
    let (text, is_worse) = compare(&before, &after, plan.threshold);
    let verdict = if is_worse { Status::Incomplete } else { Status::Fine };
    match print(&text) {
        Ok(()) => verdict,
        Err(error) => {
            complain(&format!("echo-load: cannot write to standard output: {error}"));
            if is_worse { verdict } else { Status::Output }
        }
    }
}

/// The kind of a run. Runs of different kinds cannot be compared.
fn kind(result: &Value) -> String {
    let settings = &result["settings"];
    let mode = settings["mode"].as_str().unwrap_or("no mode");
    let is_closed = settings["rate_per_second"].is_null();
    let over = if sends_datagrams(result) { ", datagrams" } else { "" };
    format!("{mode}, {} loop{over}", if is_closed { "closed" } else { "open" })
}

/// Whether it is the result of a run with datagrams.
fn sends_datagrams(result: &Value) -> bool {
    result["datagrams"].is_object()
}

/// The table, and whether anything is worse.
fn compare(before: &Value, after: &Value, threshold: f64) -> (String, bool) {
    let mut is_worse = false;
    let mut text = format!("{:<24} {:>14} {:>14} {:>9}\n", "", "before", "after", "change");
    // Losses of datagrams are expected; they have figures of their own.
    let counts = |figure: &&Figure| figure.name != "unanswered" || !sends_datagrams(after);
    for figure in FIGURES.iter().filter(counts) {
        let number = |result: &Value| result.pointer(figure.pointer).and_then(Value::as_f64);
        let share = |result: &Value, number: f64| {
            let scheduled = result["scheduled_messages"].as_f64().unwrap_or(0.0);
            number / scheduled.max(1.0) * 100.0
        };
        let (Some(one), Some(other)) = (number(before), number(after)) else { continue };
        let change = change_percent(one, other);
        let worse = match figure.worse {
            Worse::Less => -change > threshold,
            Worse::More => change > threshold,
            Worse::Share => share(after, other) - share(before, one) > threshold,
            Worse::AnyMore => other > one,
        };
        is_worse |= worse;
        let verdict = if worse { "  worse" } else { "" };
        let name = figure.name;
        text += &format!("{name:<24} {one:>14.1} {other:>14.1} {change:>+8.1}%{verdict}\n");
    }
    (text, is_worse)
}

/// Reads the result from a file, in the format of `--json` or `--json-stream`, with any layout.
fn read(path: &Path) -> Result<Value, String> {
    let named = |fault: &dyn std::fmt::Display| format!("{}: {fault}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
    let values = Deserializer::from_str(&text).into_iter::<Value>();
    let values: Vec<Value> = values.collect::<Result<_, _>>().map_err(|error| named(&error))?;
    let result = values.into_iter().rfind(|value| value["kind"] == "result");
    let result = result.filter(|result| result["schema"] == SCHEMA);
    let result =
        result.ok_or_else(|| named(&format!("it contains no result with schema {SCHEMA}")))?;
    let figures = FIGURES.iter().filter(|figure| result.pointer(figure.pointer).is_some());
    if figures.count() == 0 || !result["messages"].is_number() {
        return Err(named(&"the result has no figures"));
    }
    if result["messages"].as_f64() == Some(0.0) {
        return Err(named(&"no message was answered in that run"));
    }
    Ok(result)
}

/// The change from `before` to `after` in percent.
fn change_percent(before: f64, after: f64) -> f64 {
    if before == after {
        0.0
    } else if before == 0.0 {
        f64::INFINITY
    } else {
        (after - before) / before * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_relative_to_before() {
        assert_eq!(change_percent(100.0, 95.0), -5.0);
        assert_eq!(change_percent(100.0, 110.0), 10.0);
        assert_eq!(change_percent(0.0, 0.0), 0.0);
        assert_eq!(change_percent(0.0, 1.0), f64::INFINITY);
    }
}
