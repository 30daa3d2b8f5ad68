//! How single values are spelled: what a key may hold, what is said when it does not, and how it is
//! written back.
//!
//! Every check returns the value or a phrase of the form `WHAT IS WRONG; CURE`. Nothing here knows
//! a key or a file.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use log::LevelFilter;
use toml::Value;

use super::{LogTarget, Workers};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// As humantime counts it: 365.25 days.
pub(super) const YEAR: Duration = Duration::from_secs(31_557_600);
pub(super) const KIB: u64 = 1 << 10;
pub(super) const GIB: u64 = 1 << 30;

/// Long enough for any word, short enough for a log line.
const NAME_LENGTH_MAX: usize = 64;

pub(super) const LOG_TARGETS: [(&str, LogTarget); 3] =
    [("auto", LogTarget::Auto), ("syslog", LogTarget::Syslog), ("stderr", LogTarget::Stderr)];

pub(super) const LOG_LEVELS: [(&str, LevelFilter); 6] = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
    ("off", LevelFilter::Off),
];

pub(super) fn workers(value: &Value) -> Result<Workers, String> {
    if value.as_str() == Some("auto") {
        return Ok(Workers::Auto);
    }
    integer(value, 1..=1024, " or \"auto\"").map(Workers::Count)
}

pub(super) fn buffers(value: &Value) -> Result<u16, String> {
    let count: u16 = integer(value, 8..=32_768, "")?;
    if count.is_power_of_two() {
        return Ok(count);
    }
    let (above, below) = (count.next_power_of_two(), count.next_power_of_two() / 2);
    Err(format!("{count} is not a power of two; use {below} or {above}"))
}

/// An integer within `range`, whose bounds must fit into `T`; `others` names what else the key
/// takes.
pub(super) fn integer<T: TryFrom<i64>>(
    value: &Value,
    range: RangeInclusive<i64>,
    others: &str,
) -> Result<T, String> {
    let cure = format!("use a number from {} to {}{others}", range.start(), range.end());
    let Some(number) = value.as_integer() else {
        return Err(format!("{value} is not a whole number; {cure}"));
    };
    match T::try_from(number) {
        Ok(converted) if range.contains(&number) => Ok(converted),
        Ok(_) | Err(_) => Err(format!("{number} is out of range; {cure}")),
    }
}

pub(super) fn off_or_integer(
    value: &Value,
    range: RangeInclusive<i64>,
) -> Result<Option<u32>, String> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    integer(value, range, " or \"off\"").map(Some)
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{value} is neither true nor false; use true or false"))
}

pub(super) fn word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, String> {
    let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("{value} is not known; use {}", known.join(", "))
    })
}

pub(super) fn time(
    value: &Value,
    range: RangeInclusive<Duration>,
    others: &str,
) -> Result<Duration, String> {
    let cure = format!(
        "use a duration from \"{}\" to \"{}\"{others}",
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end())
    );
    let parsed = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    within(value, parsed, &range, "duration", &cure)
}

pub(super) fn off_or_time(
    value: &Value,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, String> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    time(value, range, " or \"off\"").map(Some)
}

/// The kernel counts keep-alive times in seconds; rounding behind the operator's back would be a
/// lie.
pub(super) fn whole_seconds(time: Option<Duration>) -> Result<Option<Duration>, String> {
    match time {
        Some(time) if time.subsec_nanos() != 0 => Err(format!(
            "\"{}\" has a fraction; use whole seconds",
            humantime::format_duration(time)
        )),
        time => Ok(time),
    }
}

pub(super) fn size(value: &Value, range: RangeInclusive<u64>, others: &str) -> Result<u64, String> {
    let (low, high) = (exact_size(*range.start()), exact_size(*range.end()));
    let cure = format!("use a size from \"{low}\" to \"{high}\"{others}");
    let parsed = value.as_str().and_then(|text| text.parse().ok()).map(|ByteSize(bytes)| bytes);
    within(value, parsed, &range, "size", &cure)
}

/// What `value` was parsed to, or what is wrong with it.
fn within<T: PartialOrd>(
    value: &Value,
    parsed: Option<T>,
    range: &RangeInclusive<T>,
    what: &str,
    cure: &str,
) -> Result<T, String> {
    match parsed {
        Some(parsed) if range.contains(&parsed) => Ok(parsed),
        Some(_) => Err(format!("{value} is out of range; {cure}")),
        None => Err(format!("{value} is not a {what}; {cure}")),
    }
}

pub(super) fn off_or_size(
    value: &Value,
    range: RangeInclusive<u64>,
) -> Result<Option<u64>, String> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    size(value, range, " or \"off\"").map(Some)
}

pub(super) fn auto_or_size(value: &Value) -> Result<Option<u32>, String> {
    if value.as_str() == Some("auto") {
        return Ok(None);
    }
    let bytes = size(value, 2 * KIB..=GIB, " or \"auto\"")?;
    Ok(Some(u32::try_from(bytes).expect("invariant: the range ends below 4 GiB")))
}

pub(super) fn name(value: &Value) -> Result<String, String> {
    let plain = |text: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
    };
    let found = value.as_str().filter(plain).map(ToOwned::to_owned);
    found.ok_or_else(|| {
        format!(
            "{value} is not a name; use 1 to {NAME_LENGTH_MAX} of the characters A-Z a-z 0-9 - _ ."
        )
    })
}

pub(super) fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

pub(super) fn number_or_off(number: Option<u32>) -> String {
    number.map_or(quoted("off"), |number| number.to_string())
}

pub(super) fn time_or_off(time: Option<Duration>) -> String {
    quoted(&time.map_or("off".to_owned(), |time| humantime::format_duration(time).to_string()))
}

pub(super) fn size_or_auto(bytes: Option<u32>) -> String {
    quoted(&bytes.map_or("auto".to_owned(), |bytes| exact_size(u64::from(bytes))))
}

pub(super) fn size_or_off(bytes: Option<u64>) -> String {
    quoted(&bytes.map_or("off".to_owned(), exact_size))
}

/// In the largest unit that needs no fraction: a rounded size would not read back as itself.
pub(super) fn exact_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}
