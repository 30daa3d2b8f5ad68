//! How single values are spelled: what a key may hold, what is said when it does not, and how it is
//! written back.
//!
//! Every check returns the value or a phrase of the form `WHAT IS WRONG; CURE`. Nothing here knows
//! a key or a file.

use std::ops::RangeInclusive;
use std::time::Duration;

use log::LevelFilter;
use toml::Value;
use toml::de::DeValue;

use super::quantity::{self, Fault};
use super::{LogTarget, Workers, echoed};

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

/// A value as a message shows it: on one line, and short.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => echoed::quoted(text),
        DeValue::Integer(number) => echoed::bare(&number.to_string()),
        DeValue::Float(number) => echoed::bare(number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

pub(super) fn workers(value: &DeValue<'_>) -> Result<Workers, String> {
    if value.as_str() == Some("auto") {
        return Ok(Workers::Auto);
    }
    integer(value, 1..=1024, " or \"auto\"").map(Workers::Count)
}

pub(super) fn buffers(value: &DeValue<'_>) -> Result<u16, String> {
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
    value: &DeValue<'_>,
    range: RangeInclusive<i64>,
    others: &str,
) -> Result<T, String> {
    let cure = format!("use a number from {} to {}{others}", range.start(), range.end());
    let Some(number) = value.as_integer() else {
        return Err(format!("{} is not a whole number; {cure}", shown(value)));
    };
    // Of any length: what does not fit is out of every range.
    let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
    let fitting = number.filter(|number| range.contains(number));
    let converted = fitting.and_then(|number| T::try_from(number).ok());
    converted.ok_or_else(|| format!("{} is out of range; {cure}", shown(value)))
}

pub(super) fn off_or_integer(
    value: &DeValue<'_>,
    range: RangeInclusive<i64>,
) -> Result<Option<u32>, String> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    integer(value, range, " or \"off\"").map(Some)
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    let refuse = || format!("{} is neither true nor false; use true or false", shown(value));
    value.as_bool().ok_or_else(refuse)
}

pub(super) fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, String> {
    let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("{} is not known; use {}", shown(value), known.join(", "))
    })
}

pub(super) fn time(
    value: &DeValue<'_>,
    range: RangeInclusive<Duration>,
    others: &str,
) -> Result<Duration, String> {
    let cure = format!(
        "use a duration from \"{}\" to \"{}\"{others}",
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end())
    );
    within(value, quantity::duration, &range, "duration", &cure)
}

pub(super) fn off_or_time(
    value: &DeValue<'_>,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, String> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    time(value, range, " or \"off\"").map(Some)
}

/// A duration that may be "off" and has to pass `check` if it is not.
pub(super) fn off_or(
    check: impl FnOnce(Duration) -> Result<Duration, String>,
    time: Option<Duration>,
) -> Result<Option<Duration>, String> {
    time.map(check).transpose()
}

/// The kernel counts keep-alive times in seconds; rounding behind the operator's back would be a
/// lie.
pub(super) fn whole_seconds(time: Duration) -> Result<Duration, String> {
    whole(time, SECOND, "has a fraction; use whole seconds")
}

/// The same for what is counted in milliseconds.
pub(super) fn whole_milliseconds(time: Duration) -> Result<Duration, String> {
    const CURE: &str = "has a fraction of a millisecond; use whole milliseconds";
    whole(time, Duration::from_millis(1), CURE)
}

fn whole(time: Duration, unit: Duration, problem: &str) -> Result<Duration, String> {
    if time.as_nanos().is_multiple_of(unit.as_nanos()) {
        return Ok(time);
    }
    Err(format!("\"{}\" {problem}", humantime::format_duration(time)))
}

pub(super) fn size(
    value: &DeValue<'_>,
    range: RangeInclusive<u64>,
    others: &str,
) -> Result<u64, String> {
    let (low, high) = (exact_size(*range.start()), exact_size(*range.end()));
    let cure = format!("use a size from \"{low}\" to \"{high}\"{others}");
    within(value, quantity::size, &range, "size", &cure)
}

/// What `value` is read as, or what is wrong with it.
fn within<T: PartialOrd>(
    value: &DeValue<'_>,
    read: impl FnOnce(&str) -> Result<T, Fault>,
    range: &RangeInclusive<T>,
    what: &str,
    cure: &str,
) -> Result<T, String> {
    let shown = shown(value);
    match value.as_str().map_or(Err(Fault::Shape), read) {
        Ok(quantity) if range.contains(&quantity) => Ok(quantity),
        Ok(_) => Err(format!("{shown} is out of range; {cure}")),
        Err(Fault::Shape) => Err(format!("{shown} is not a {what}; {cure}")),
        Err(Fault::Meaning(problem)) => Err(format!("{shown} {problem}")),
    }
}

pub(super) fn off_or_size(
    value: &DeValue<'_>,
    range: RangeInclusive<u64>,
) -> Result<Option<u64>, String> {
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    size(value, range, " or \"off\"").map(Some)
}

pub(super) fn auto_or_size(value: &DeValue<'_>) -> Result<Option<u32>, String> {
    if value.as_str() == Some("auto") {
        return Ok(None);
    }
    let bytes = size(value, 2 * KIB..=GIB, " or \"auto\"")?;
    Ok(Some(u32::try_from(bytes).expect("invariant: the range ends below 4 GiB")))
}

pub(super) fn name(value: &DeValue<'_>) -> Result<String, String> {
    let plain = |text: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed)
    };
    let found = value.as_str().filter(plain).map(ToOwned::to_owned);
    found.ok_or_else(|| {
        format!(
            "{} is not a name; use 1 to {NAME_LENGTH_MAX} of the characters A-Z a-z 0-9 - _ .",
            shown(value)
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
