//! The result as a table with units.

use std::fmt::Write;
use std::time::Duration;

use bytesize::ByteSize;
use hdrhistogram::Histogram;

use crate::arguments::{Mode, Plan};
use crate::fault::Kind;
use crate::measure::{Counts, Measured, per_second, quantile};
use crate::reach::named;
use crate::result::{Ended, Result};
use crate::status::Status;
use crate::units::{PERCENTILES, bytes_per_second, count, counted, time};

/// The maximum number of faults shown.
const FAULTS_SHOWN: usize = 10;

/// The whole table.
pub(crate) fn table(plan: &Plan, result: &Result) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:<12} {value}").expect("invariant: writing to a String never fails");
    };
    let total = &result.total;
    line("target", &named(&plan.target.text, result.address.as_deref()));
    line("load", &load(plan));
    let elapsed = total.elapsed.as_secs_f64();
    match result.ended {
        Ended::OnTime => line("measured", &format!("{elapsed:.3} s")),
        early => {
            let asked = plan.duration.as_secs_f64();
            line("measured", &format!("{elapsed:.3} s of {asked} s: {}", early.text()));
        }
    }
    let rate = count(total.messages_per_second());
    line("messages", &format!("{}  ({rate} messages/s)", total.counts.answered));
    line("scheduled", &balance(result));
    if plan.sends_datagrams() {
        line("datagrams", &datagrams(result));
        if let Some((mean, max)) = total.datagrams.jitter.mean_and_max() {
            let (mean, max) = (nanoseconds(mean), nanoseconds(max as f64));
            line("jitter", &format!("{mean} on average, {max} at most"));
        }
    }
    let rate = bytes_per_second(total.bytes_per_second());
    line("echoed", &format!("{}  ({rate})", ByteSize(total.bytes)));
    let mut connections = counted(result.connections_made, plan.noun());
    if plan.mode == Mode::Churn {
        let rate = count(per_second(total.connected, total.elapsed));
        connections += &format!("  ({rate} connections/s)");
    }
    line("made", &connections);
    if let Some(slowest) = &result.outcome.slowest {
        let (messages, mean) = (counted(slowest.echoes, "message"), nanoseconds(slowest.mean));
        let number = slowest.connection;
        let noun = plan.noun();
        line("slowest", &format!("{noun} {number}: {messages}, {mean} on average"));
    }
    let share = result.cpu.as_secs_f64() / elapsed.max(f64::MIN_POSITIVE);
    let per_message = match total.counts.answered {
        0 => "–".to_owned(),
        answered => format!("{:.2}", result.cpu.as_secs_f64() / answered as f64 * 1e6),
    };
    line("client CPU", &format!("{per_message} µs/message, {:.0} % of one core", share * 100.0));
    text.push('\n');
    text.push_str(&latencies(result));
    text.push('\n');
    text.push_str(&faults(plan, result));
    for loss in result.losses(plan) {
        text += &format!("{:<12} {loss}\n", "impaired");
    }
    for problem in result.problems(plan).iter().filter(|it| it.status == Status::Incomplete) {
        text += &format!("{:<12} {}\n", "incomplete", problem.text);
    }
    text
}

/// The outcome of all messages.
fn balance(result: &Result) -> String {
    let Counts { scheduled, answered, late, unanswered, unsent } = result.total.counts;
    format!(
        "{scheduled} = {answered} answered + {late} late + {unanswered} unanswered \
         + {unsent} unsent"
    )
}

/// What happened to datagrams that is not an error by itself.
fn datagrams(result: &Result) -> String {
    let (sent, datagrams) = (result.total.counts.sent(), &result.total.datagrams);
    let (lost, late, reordered) = (datagrams.lost(), datagrams.late, datagrams.reordered);
    let mut text =
        format!("{sent} sent: {lost} lost, {late} echoed after the timeout, {reordered} reordered");
    if let Some(impaired) = result.impaired().filter(|share| *share > 0.0) {
        text += &format!("  ({:.3} %)", impaired * 100.0);
    }
    let (split, drops) = (result.outcome.split_bursts, result.outcome.client_drops);
    if split > 0 {
        text += &format!("; {} sent one by one", counted(split, "burst"));
    }
    if drops > 0 {
        text +=
            &format!("; {} dropped at the receive buffers of this client", counted(drops, "echo"));
    }
    text
}

fn load(plan: &Plan) -> String {
    let mut text = format!(
        "{}, {}, {}, messages of {}, depth {}",
        plan.mode.word(),
        counted(plan.connections.into(), plan.noun()),
        counted(plan.threads.into(), "thread"),
        match plan.sizes.fixed() {
            Some(bytes) => counted(bytes as u64, "byte"),
            None => format!("{} bytes", plan.sizes.text()),
        },
        plan.depth
    );
    if plan.burst > 1 {
        text += &format!(", bursts of {}", plan.burst);
    }
    if let Some(version) = plan.proxy {
        text += &format!(", PROXY {}", version.word());
    }
    if let Some(source) = &plan.proxy_source {
        text += &format!(" from {source}");
    }
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
    if let Some(lateness) = &result.total.lateness {
        columns.push(("client late", lateness));
    }
    let mut text = format!("{:<12}", "");
    columns.iter().for_each(|(name, _)| text += &format!(" {name:>12}"));
    text.push('\n');
    let mut row = |name: &str, value: &dyn Fn(&Histogram<u64>) -> f64| {
        text += &format!("{name:<12}");
        for (_, histogram) in &columns {
            // If nothing was measured there is no value.
            let known = !histogram.is_empty();
            let value = if known { nanoseconds(value(histogram)) } else { "–".to_owned() };
            text += &format!(" {value:>12}");
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
    text + &dominance(&result.total)
}

/// A note if the corrected latencies describe this client more than the server.
fn dominance(total: &Measured) -> String {
    let (Some(corrected), Some(lateness)) = (&total.corrected, &total.lateness) else {
        return String::new();
    };
    let dominated = [(0.5, "p50"), (0.99, "p99")].into_iter().filter(|&(at, _)| {
        let (felt, late) = (quantile(corrected, at), quantile(lateness, at));
        matches!((felt, late), (Some(felt), Some(late)) if late > felt / 2)
    });
    let names: Vec<&str> = dominated.map(|(_, name)| name).collect();
    if names.is_empty() {
        return String::new();
    }
    let names = names.join(" and ");
    format!("{:<12} the lateness of this client is more than half of corrected {names}\n", "note")
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
        let failed = counted(outcome.connect_failures, "connect");
        text += &format!("{:<12} {failed}: {error}\n", "failed");
    }
    if outcome.left_open > 0 {
        let left = counted(outcome.left_open, "connection");
        text += &format!("{:<12} {left}, not closed by the server after our FIN\n", "left open");
    }
    text
}

fn nanoseconds(nanoseconds: f64) -> String {
    time(Duration::from_nanos(nanoseconds as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Fate, Wait};

    /// A hundred messages with a corrected latency of 100 µs each: the client delayed `late` of
    /// them by 60 µs, and the others by 40 µs.
    fn measured(late: usize) -> Measured {
        let mut measured = Measured::new(true);
        for index in 0..100 {
            let wait = Wait { scheduled: Some(100_000), sent: Some(50_000) };
            measured.record(Fate::Answered, wait);
            measured.record_lateness(if index < late { 60_000 } else { 40_000 });
        }
        measured
    }

    /// Goal: the note names exactly the percentiles that the client dominates.
    #[test]
    fn a_late_client_is_noted() {
        assert_eq!(dominance(&measured(0)), "");
        assert!(dominance(&measured(10)).ends_with("more than half of corrected p99\n"));
        assert!(dominance(&measured(90)).ends_with("more than half of corrected p50 and p99\n"));
        assert_eq!(dominance(&Measured::new(true)), "", "nothing was measured");
        assert_eq!(dominance(&Measured::new(false)), "", "a closed loop has no schedule");
    }
}
