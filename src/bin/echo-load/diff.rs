//! Two results compared: what got worse, and by more than is allowed.

use std::path::Path;

use serde_json::Value;

use crate::arguments::DiffPlan;
use crate::json::SCHEMA;
use crate::{EXIT_DIFFERENCE, EXIT_RIGHT, EXIT_USAGE};

/// A figure that is compared.
struct Figure {
    /// What it is called in the table, with its unit.
    name: &'static str,
    /// Where it is in a result.
    pointer: &'static str,
    better: Better,
}

#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

const FIGURES: [Figure; 11] = [
    Figure { name: "messages/s", pointer: "/messages_per_second", better: Better::More },
    Figure { name: "bytes/s", pointer: "/bytes_per_second", better: Better::More },
    latency("p50 µs, uncorrected", "/latency_microseconds/uncorrected/p50"),
    latency("p90 µs, uncorrected", "/latency_microseconds/uncorrected/p90"),
    latency("p99 µs, uncorrected", "/latency_microseconds/uncorrected/p99"),
    latency("p99.9 µs, uncorrected", "/latency_microseconds/uncorrected/p99_9"),
    latency("p50 µs, corrected", "/latency_microseconds/corrected/p50"),
    latency("p90 µs, corrected", "/latency_microseconds/corrected/p90"),
    latency("p99 µs, corrected", "/latency_microseconds/corrected/p99"),
    latency("p99.9 µs, corrected", "/latency_microseconds/corrected/p99_9"),
    Figure { name: "errors", pointer: "/errors", better: Better::Less },
];

const fn latency(name: &'static str, pointer: &'static str) -> Figure {
    Figure { name, pointer, better: Better::Less }
}

/// Settings without which two runs are not the same load.
const SETTINGS: [&str; 6] =
    ["mode", "connections", "size_bytes", "depth", "rate_per_second", "threads"];

/// Prints the comparison; returns the exit status.
pub(crate) fn run(plan: &DiffPlan) -> u8 {
    let (before, after) = match (read(&plan.before), read(&plan.after)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(fault), _) | (_, Err(fault)) => {
            eprintln!("echo-load: {fault}");
            return EXIT_USAGE;
        }
    };
    for name in SETTINGS {
        let (one, other) = (&before["settings"][name], &after["settings"][name]);
        if one != other {
            eprintln!("echo-load: the runs differ in {name}: {one} and {other}");
        }
    }
    let mut worse = false;
    println!("{:<24} {:>14} {:>14} {:>9}", "", "before", "after", "change");
    for figure in &FIGURES {
        let number = |result: &Value| result.pointer(figure.pointer).and_then(Value::as_f64);
        let (Some(one), Some(other)) = (number(&before), number(&after)) else { continue };
        let change = change_percent(one, other);
        let loss = if figure.better == Better::More { -change } else { change };
        let verdict = if loss > plan.threshold { "  worse" } else { "" };
        worse |= loss > plan.threshold;
        println!("{:<24} {one:>14.1} {other:>14.1} {change:>+8.1}%{verdict}", figure.name);
    }
    if worse { EXIT_DIFFERENCE } else { EXIT_RIGHT }
}

fn read(path: &Path) -> Result<Value, String> {
    let named = |fault: &dyn std::fmt::Display| format!("{}: {fault}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
    // The last line: of --json the only one, of --json-stream the result.
    let last = text.trim_end().lines().last().unwrap_or_default();
    let result: Value = serde_json::from_str(last).map_err(|error| named(&error))?;
    if result["schema"] != SCHEMA || result["kind"] != "result" {
        return Err(named(&format!("this is no result of the form {SCHEMA}")));
    }
    Ok(result)
}

/// By how many per cent `after` is more than `before`.
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
