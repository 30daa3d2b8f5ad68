//! The result as JSON. The manual page describes every member. [`SCHEMA`] changes when the meaning
//! of a member changes.

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::arguments::{Plan, ProxyVersion};
use crate::fault::{Detail, Fault, Kind, Origin};
use crate::measure::{Measured, quantile};
use crate::result::{Ended, Point, Result};
use crate::units::PERCENTILES;

/// The name and version of the schema.
pub(crate) const SCHEMA: &str = "echo-load/1";

/// The object for a run.
pub(crate) fn result(plan: &Plan, result: &Result) -> Value {
    let total = &result.total;
    let outcome = &result.outcome;
    let counts = Kind::ALL.iter().zip(outcome.fault_counts);
    let counts: Map<String, Value> =
        counts.map(|(kind, count)| (kind.word().to_owned(), count.into())).collect();
    let problems = result.problems(plan);
    json!({
        "schema": SCHEMA,
        "kind": "result",
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": humantime::format_rfc3339_millis(result.started_at).to_string(),
        "settings": settings(plan),
        "address": result.address,
        "elapsed_seconds": total.elapsed.as_secs_f64(),
        "ended": result.ended.word(),
        "interrupted": result.ended == Ended::Interrupted,
        "problems": problems.iter().map(|problem| problem.text.clone()).collect::<Vec<_>>(),
        "scheduled_messages": total.counts.scheduled,
        "messages": total.counts.answered,
        "late_messages": total.counts.late,
        "unanswered_messages": total.counts.unanswered,
        "unsent_messages": total.counts.unsent,
        "messages_per_second": total.messages_per_second(),
        "echoed_bytes": total.bytes,
        "bytes_per_second": total.bytes_per_second(),
        "connections_made": result.connections_made,
        "latency_microseconds": latencies(total),
        "client_lateness_microseconds": total.lateness.as_ref().map(latency),
        "client_cpu_seconds": result.cpu.as_secs_f64(),
        "errors": outcome.faults_total(),
        "error_counts": counts,
        "error_details": outcome.faults.iter().map(fault).collect::<Vec<_>>(),
        "datagrams": plan.sends_datagrams().then(|| datagrams(result)),
        "connect_failures": outcome.connect_failures,
        "connect_error": outcome.connect_error,
        "connections_left_open": outcome.left_open,
        "connections_without_echo": outcome.without_echo,
        "slowest_connection": outcome.slowest.as_ref().map(|slowest| json!({
            "connection": slowest.connection,
            "messages": slowest.echoes,
            "mean_microseconds": slowest.mean / 1e3,
        })),
        "intervals": result.intervals.iter().map(point).collect::<Vec<_>>(),
    })
}

/// What is known of datagrams alone.
fn datagrams(result: &Result) -> Value {
    let (datagrams, outcome) = (&result.total.datagrams, &result.outcome);
    let jitter = datagrams.jitter.mean_and_max();
    let fault = |kind: Kind| outcome.fault_counts[kind as usize];
    json!({
        "sent": result.total.counts.sent(),
        "answered": result.total.counts.answered + result.total.counts.late,
        "lost": datagrams.lost(),
        "late": datagrams.late,
        "reordered": datagrams.reordered,
        "duplicated": fault(Kind::Duplicated),
        "corrupted": fault(Kind::Corrupted),
        "truncated": fault(Kind::Truncated),
        "wrong_source": fault(Kind::WrongSource),
        "cross_talk": fault(Kind::CrossTalk),
        "impaired_percent": result.impaired().map(|share| share * 100.0),
        "jitter_microseconds": {
            "mean": jitter.map(|(mean, _)| mean / 1e3),
            "max": jitter.map(|(_, max)| max as f64 / 1e3),
        },
        "send_failures": outcome.send_failures,
        "send_error": outcome.send_error,
        "split_bursts": outcome.split_bursts,
        "silence_seconds": outcome.silence.unwrap_or(0) as f64 / 1e9,
        "client_drops": outcome.client_drops,
    })
}

/// The object for an interval.
pub(crate) fn interval(at: &Point, measured: &Measured, errors: u64) -> Value {
    let mut object = point(at);
    object["schema"] = SCHEMA.into();
    object["kind"] = "interval".into();
    object["interval_seconds"] = measured.elapsed.as_secs_f64().into();
    object["messages"] = measured.counts.answered.into();
    object["echoed_bytes"] = measured.bytes.into();
    object["connections_made"] = measured.connected.into();
    object["latency_microseconds"] = latencies(measured);
    object["errors"] = errors.into();
    object
}

fn settings(plan: &Plan) -> Value {
    json!({
        "target": plan.target.text,
        "transport": plan.target.transport().word(),
        "mode": plan.mode.word(),
        "connections": plan.connections,
        "threads": plan.threads,
        "size_bytes": plan.sizes.text(),
        "depth": plan.depth,
        "burst": plan.burst,
        "dont_fragment": plan.dont_fragment,
        "rate_per_second": plan.rate_per_second,
        "duration_seconds": plan.duration.as_secs_f64(),
        "warmup_seconds": plan.warmup.as_secs_f64(),
        "interval_seconds": plan.interval.as_secs_f64(),
        "timeout_seconds": plan.timeout.as_secs_f64(),
        "sources": plan.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "proxy_protocol": plan.proxy.map(ProxyVersion::word),
        "proxy_source": plan.proxy_source.as_ref().map(ToString::to_string),
        "verify": plan.verify,
        "tolerance_percent": plan.tolerance * 100.0,
        "require_close": plan.require_close,
        "seed": plan.seed,
    })
}

fn point(point: &Point) -> Value {
    json!({
        "at_seconds": point.at.as_secs_f64(),
        "messages_per_second": point.messages_per_second,
        "bytes_per_second": point.bytes_per_second,
        "p50_microseconds": point.p50_ns.map(|it| it as f64 / 1e3),
        "p99_microseconds": point.p99_ns.map(|it| it as f64 / 1e3),
        "outstanding_messages": point.outstanding,
        "longest_wait_microseconds": point.longest_wait_ns as f64 / 1e3,
    })
}

fn latencies(measured: &Measured) -> Value {
    json!({
        "uncorrected": latency(&measured.uncorrected),
        "corrected": measured.corrected.as_ref().map(latency),
    })
}

/// If nothing was measured, the values are null.
fn latency(histogram: &Histogram<u64>) -> Value {
    let known = |microseconds: f64| (!histogram.is_empty()).then_some(microseconds);
    let mut object = json!({
        "count": histogram.len(),
        "mean": known(histogram.mean() / 1e3),
        "min": known(histogram.min() as f64 / 1e3),
        "max": known(histogram.max() as f64 / 1e3),
    });
    for (percentile, name) in PERCENTILES {
        let value = quantile(histogram, percentile / 100.0);
        object[name] = value.map(|nanoseconds| nanoseconds as f64 / 1e3).into();
    }
    object
}

fn fault(fault: &Fault) -> Value {
    let mut object = json!({
        "kind": fault.kind.word(),
        "connection": fault.connection,
        "sequence": null,
        "source_connection": null,
        "source_offset_bytes": null,
        "source_address": null,
        "text": fault.to_string(),
    });
    match fault.detail {
        Detail::Bytes { offset, length, source } => {
            object["offset_bytes"] = offset.into();
            object["length_bytes"] = length.into();
            object["source_connection"] = source.map(|place| place.connection).into();
            object["source_offset_bytes"] = source.map(|place| place.offset).into();
        }
        Detail::Message { offset, length, .. } => {
            object["offset_bytes"] = offset.into();
            object["length_bytes"] = length.into();
        }
        Detail::Datagram { sequence, offset, length, origin, .. } => {
            object["sequence"] = sequence.into();
            object["offset_bytes"] = offset.into();
            object["length_bytes"] = length.into();
            match origin {
                Origin::Flow(flow) => object["source_connection"] = flow.into(),
                Origin::Address(address) => {
                    object["source_address"] = address.to_string().into();
                }
                Origin::Own | Origin::AnotherRun => {}
            }
        }
    }
    object
}
