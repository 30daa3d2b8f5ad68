//! The result for people: a table, with units.

use std::fmt::Write;
use std::time::Duration;

use bytesize::ByteSize;
use hdrhistogram::Histogram;

use crate::arguments::Plan;
use crate::diagnosis::Kind;
use crate::run::Result;

/// The percentiles that are shown, and their names in JSON.
pub(crate) const PERCENTILES: [(f64, &str); 6] = [
    (50.0, "p50"),
    (75.0, "p75"),
    (90.0, "p90"),
    (99.0, "p99"),
    (99.9, "p99_9"),
    (99.99, "p99_99"),
];

/// Faults that are written out.
const FAULTS_SHOWN: usize = 10;

/// The whole table.
pub(crate) fn table(plan: &Plan, result: &Result) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:<12} {value}").expect("invariant: a string takes everything");
    };
    let total = &result.total;
    line("target", &plan.target.text);
    line("load", &load(plan));
    line("measured", &format!("{:.3} s", total.elapsed.as_secs_f64()));
    let rate = count(total.messages_per_second());
    line("messages", &format!("{}  ({rate} messages/s)", total.messages));
    let rate = bytes_per_second(total.bytes_per_second());
    line("echoed", &format!("{}  ({rate})", ByteSize(total.bytes)));
    if total.connected > 0 {
        let rate = total.connected as f64 / total.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        line("connections", &format!("{}  ({} connections/s)", total.connected, count(rate)));
    }
    let per_message = result.cpu.as_secs_f64() / total.messages.max(1) as f64 * 1e6;
    let share = result.cpu.as_secs_f64() / total.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    line("client CPU", &format!("{per_message:.2} µs/message, {:.0} % of one core", share * 100.0));
    text.push('\n');
    text.push_str(&latencies(result));
    text.push('\n');
    text.push_str(&faults(plan, result));
    text
}

fn load(plan: &Plan) -> String {
    let mut text = format!(
        "{}, {} connections, {} threads, messages of {} bytes, depth {}",
        plan.mode.word(),
        plan.connections,
        plan.threads,
        plan.sizes.text(),
        plan.depth
    );
    match plan.rate_per_second {
        Some(rate) => text += &format!(", open loop at {rate} messages/s"),
        None => text += ", closed loop",
    }
    text
}

fn latencies(result: &Result) -> String {
    let mut columns = vec![("latency", &result.total.uncorrected)];
    if let Some(corrected) = &result.total.corrected {
        columns = vec![("corrected", corrected), ("uncorrected", &result.total.uncorrected)];
    }
    let mut text = format!("{:<12}", "");
    columns.iter().for_each(|(name, _)| text += &format!(" {name:>12}"));
    text.push('\n');
    let mut row = |name: &str, value: &dyn Fn(&Histogram<u64>) -> f64| {
        text += &format!("{name:<12}");
        for (_, histogram) in &columns {
            text += &format!(" {:>12}", time(Duration::from_nanos(value(histogram) as u64)));
        }
        text.push('\n');
    };
    row("mean", &|histogram| histogram.mean());
    row("min", &|histogram| histogram.min() as f64);
    for (percentile, name) in PERCENTILES {
        let name = name.replace('_', ".");
        row(&name, &|histogram| histogram.value_at_quantile(percentile / 100.0) as f64);
    }
    row("max", &|histogram| histogram.max() as f64);
    text
}

fn faults(plan: &Plan, result: &Result) -> String {
    let outcome = &result.outcome;
    let mut text = String::new();
    if outcome.faults_total() == 0 {
        let how = if plan.verify { "every byte verified" } else { "bytes counted, not verified" };
        text += &format!("{:<12} none ({how})\n", "errors");
    } else {
        let kinds: Vec<String> = Kind::ALL
            .iter()
            .zip(outcome.fault_counts)
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{count} {}", kind.word()))
            .collect();
        text += &format!("{:<12} {}\n", "errors", kinds.join(", "));
        for fault in outcome.faults.iter().take(FAULTS_SHOWN) {
            text += &format!("{:<12} {fault}\n", "");
        }
        if outcome.faults_total() > FAULTS_SHOWN as u64 {
            text += &format!("{:<12} …\n", "");
        }
    }
    if let Some(error) = &outcome.connect_error {
        text += &format!("{:<12} {} connects: {error}\n", "failed", outcome.connect_failures);
    }
    if outcome.unsent > 0 {
        text += &format!("{:<12} {} messages were due and never sent\n", "behind", outcome.unsent);
    }
    if outcome.left_open > 0 {
        let count = outcome.left_open;
        text += &format!("{:<12} {count} connections, by the server after our FIN\n", "left open");
    }
    text
}

/// A number for people: three digits that matter, more if they stand before the point.
pub(crate) fn count(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

pub(crate) fn bytes_per_second(rate: f64) -> String {
    format!("{}/s", ByteSize(rate as u64))
}

/// A time for people.
pub(crate) fn time(time: Duration) -> String {
    match time.as_nanos() as f64 {
        nanoseconds @ 1e9.. => format!("{:.2} s", nanoseconds / 1e9),
        nanoseconds @ 1e6.. => format!("{:.2} ms", nanoseconds / 1e6),
        nanoseconds => format!("{:.1} µs", nanoseconds / 1e3),
    }
}
