//! Numbers, times and rates as text, and which percentiles are shown.

use std::time::Duration;

use bytesize::ByteSize;

/// The percentiles that are shown, and their names in JSON.
pub(crate) const PERCENTILES: [(f64, &str); 6] = [
    (50.0, "p50"),
    (75.0, "p75"),
    (90.0, "p90"),
    (99.0, "p99"),
    (99.9, "p99_9"),
    (99.99, "p99_99"),
];

/// `1 byte`, `2 bytes`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// A number with three significant digits, or more before the decimal point.
pub(crate) fn count(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// A rate of bytes, with a unit.
pub(crate) fn bytes_per_second(rate: f64) -> String {
    format!("{}/s", ByteSize(rate as u64))
}

/// A time with a unit.
pub(crate) fn time(time: Duration) -> String {
    match time.as_nanos() as f64 {
        nanoseconds @ 1e9.. => format!("{:.2} s", nanoseconds / 1e9),
        nanoseconds @ 1e6.. => format!("{:.2} ms", nanoseconds / 1e6),
        nanoseconds => format!("{:.1} µs", nanoseconds / 1e3),
    }
}
