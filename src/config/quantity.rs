//! Numbers with a unit: durations such as `1h 30m`, sizes such as `64KiB`.
//!
//! Parsing is strict: a number without a unit, a unit with two meanings and a fraction without an
//! exact value are refused. Nothing is guessed or rounded. Every fault is a phrase of the form
//! `PROBLEM; REMEDY` that follows the value, or empty if the value is not a quantity at all and the
//! caller knows best what to write.

use std::time::Duration;

/// Why a text is not a quantity.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not look like one, or has an unknown unit.
    Shape,
    /// It looks like one. The problem, and what to write.
    Meaning(String),
}

/// Units of time in nanoseconds. A month is 30.44 days and a year 365.25 days, as in the output.
const TIMES: [(&[&str], u64); 10] = [
    (&["ns", "nsec", "nanos"], 1),
    (&["us", "usec", "\u{b5}s"], 1_000),
    (&["ms", "msec", "millis"], 1_000_000),
    (&["s", "sec", "secs", "second", "seconds"], 1_000_000_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000_000_000),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000_000_000),
    (&["d", "day", "days"], 86_400_000_000_000),
    (&["w", "wk", "wks", "week", "weeks"], 604_800_000_000_000),
    (&["month", "months"], 2_630_016_000_000_000),
    (&["y", "yr", "yrs", "year", "years"], 31_557_600_000_000_000),
];

/// Units of size in bytes, in lower case: case does not matter.
const SIZES: [(&[&str], u64); 13] = [
    (&["b"], 1),
    (&["kb"], 1_000),
    (&["mb"], 1_000_000),
    (&["gb"], 1_000_000_000),
    (&["tb"], 1_000_000_000_000),
    (&["pb"], 1_000_000_000_000_000),
    (&["eb"], 1_000_000_000_000_000_000),
    (&["kib", "ki"], 1 << 10),
    (&["mib", "mi"], 1 << 20),
    (&["gib", "gi"], 1 << 30),
    (&["tib", "ti"], 1 << 40),
    (&["pib", "pi"], 1 << 50),
    (&["eib", "ei"], 1 << 60),
];

/// The maximum number of digits before and after the point. With the largest unit it stays below
/// 2^128.
const DIGITS_MAX: usize = 20;

/// A number and its unit as typed.
struct Term<'a> {
    number: &'a str,
    /// Empty if there is no unit.
    unit: &'a str,
}

impl<'a> Term<'a> {
    /// The term that `text` begins with, and the rest.
    fn first(text: &'a str) -> Result<(Self, &'a str), Fault> {
        let end = |text: &str, belongs: fn(char) -> bool| {
            text.find(|character| !belongs(character)).unwrap_or(text.len())
        };
        let (number, rest) =
            text.split_at(end(text, |character| character.is_ascii_digit() || character == '.'));
        let (unit, rest) = rest.trim_start().split_at(end(rest.trim_start(), char::is_alphabetic));
        if number.is_empty() { Err(Fault::Shape) } else { Ok((Self { number, unit }, rest)) }
    }

    /// The number without its point, as a multiple of `1 / scale`, and `scale`, a power of ten.
    fn exact(&self) -> Result<(u128, u128), Fault> {
        let (whole, fraction) = self.number.split_once('.').unwrap_or((self.number, "0"));
        if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
            return Err(Fault::Shape);
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        if whole.len() + fraction.len() > DIGITS_MAX {
            return Err(Fault::Meaning("has too many digits; use fewer".to_owned()));
        }
        let digits = format!("0{whole}{fraction}");
        let digits = digits.parse().map_err(|_| Fault::Shape)?;
        Ok((digits, 10_u128.pow(fraction.len() as u32)))
    }
}

/// The terms of `text`, at least one.
fn terms(text: &str) -> Result<Vec<Term<'_>>, Fault> {
    let (mut terms, mut rest) = (Vec::new(), text.trim());
    loop {
        let (term, more) = Term::first(rest)?;
        terms.push(term);
        rest = more.trim_start();
        if rest.is_empty() {
            return Ok(terms);
        }
    }
}

/// The terms again, with each unit `found` replaced by `meant`.
fn with_unit(terms: &[Term<'_>], found: &str, meant: &str) -> String {
    let spelled = |term: &Term<'_>| {
        format!("{}{}", term.number, if term.unit == found { meant } else { term.unit })
    };
    super::echoed::quoted(&terms.iter().map(spelled).collect::<Vec<_>>().join(" "))
}

/// A duration: one term or several, such as `1h 30m`. A longer duration than [`Duration`] can
/// represent becomes the longest one.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    let terms = terms(text)?;
    let mut nanoseconds = 0_u128;
    for term in &terms {
        let fault = |what: &str, remedy: String| Fault::Meaning(format!("{what}; use {remedy}"));
        if term.unit.is_empty() && terms.len() == 1 {
            return Err(fault("has no unit", with_unit(&terms, "", "s")));
        }
        if term.unit.is_empty() {
            return Err(fault("has a number without a unit", with_unit(&terms, "", "s")));
        }
        if term.unit == "M" {
            let (minutes, months) = (with_unit(&terms, "M", "m"), with_unit(&terms, "M", "month"));
            let remedy = format!("{minutes} for minutes or {months} for months");
            return Err(fault("has a unit with two meanings", remedy));
        }
        let unit = TIMES.iter().find(|(names, _)| names.contains(&term.unit));
        let (_, factor) = unit.ok_or(Fault::Shape)?;
        let (digits, scale) = term.exact()?;
        let scaled = digits * u128::from(*factor);
        if scaled % scale != 0 {
            return Err(fault("has a fraction of a nanosecond", "whole nanoseconds".to_owned()));
        }
        nanoseconds = nanoseconds.saturating_add(scaled / scale);
    }
    let seconds = u64::try_from(nanoseconds / 1_000_000_000);
    Ok(seconds.map_or(Duration::MAX, |seconds| {
        Duration::new(seconds, (nanoseconds % 1_000_000_000) as u32)
    }))
}

/// A size in bytes: one term. A size that does not fit into 64 bits becomes the largest that does.
pub(super) fn size(text: &str) -> Result<u64, Fault> {
    let terms = terms(text)?;
    let [term] = &terms[..] else { return Err(Fault::Shape) };
    let fault = |what: &str, remedy: String| Err(Fault::Meaning(format!("{what}; use {remedy}")));
    let unit = term.unit.to_ascii_lowercase();
    if unit.is_empty() {
        let (bytes, kibibytes) = (with_unit(&terms, "", "B"), with_unit(&terms, "", "KiB"));
        return fault("has no unit", format!("{bytes} or {kibibytes}"));
    }
    if ["k", "m", "g", "t", "p", "e"].contains(&&*unit) {
        let letter = unit.to_ascii_uppercase();
        let binary = with_unit(&terms, term.unit, &format!("{letter}iB"));
        let decimal = with_unit(&terms, term.unit, &format!("{letter}B"));
        let remedy = format!("{binary} (steps of 1024) or {decimal} (steps of 1000)");
        return fault("has a unit with two meanings", remedy);
    }
    let unit = SIZES.iter().find(|(names, _)| names.contains(&&*unit));
    let (_, factor) = unit.ok_or(Fault::Shape)?;
    let (digits, scale) = term.exact()?;
    let scaled = digits * u128::from(*factor);
    let bytes = scaled / scale;
    if scaled % scale != 0 {
        let remedy = format!("\"{bytes}B\" or \"{}B\"", bytes + 1);
        return fault("is not a whole number of bytes", remedy);
    }
    Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nanoseconds, or the problem.
    fn time(text: &str) -> Result<u128, Fault> {
        duration(text).map(|duration| duration.as_nanos())
    }

    #[test]
    fn durations_are_exact() {
        const SECOND: u128 = 1_000_000_000;
        for (text, nanoseconds) in [
            ("0s", 0),
            ("1ns", 1),
            ("1.5us", 1_500),
            ("1h 30m", 5_400 * SECOND),
            ("1h30m", 5_400 * SECOND),
            (" 1 h  30 min ", 5_400 * SECOND),
            ("1year", 31_557_600 * SECOND),
            ("0.000000001s", 1),
            ("00001s", SECOND),
            ("1.000000000000000000000000s", SECOND),
            ("18446744073709551615s", u128::from(u64::MAX) * SECOND),
        ] {
            assert_eq!(time(text), Ok(nanoseconds), "{text}");
        }
        for text in ["18446744073709551615s 500ms 500ms", "99999999999999999999years 1s"] {
            assert_eq!(duration(text), Ok(Duration::MAX), "{text}");
        }
        for text in ["", "s", "1.s", ".5s", "1..5s", "-1s", "1e3s", "1lightyear", "1s,", "\u{661}s"]
        {
            assert_eq!(time(text), Err(Fault::Shape), "{text}");
        }
        for text in ["0.5ns", "1.0000000001s"] {
            assert!(matches!(time(text), Err(Fault::Meaning(_))), "{text}");
        }
    }

    /// Goal: each spelling of a unit in version 0.1 is still accepted, with the same meaning.
    /// Method: compare with the crate that parsed durations then. `M` alone is refused: see
    /// [`duration`].
    #[test]
    fn every_unit_of_time_means_what_it_meant() {
        for (names, nanoseconds) in TIMES {
            for name in names {
                let text = format!("3{name}");
                assert_eq!(time(&text), Ok(3 * u128::from(nanoseconds)), "{text}");
                let before = humantime::parse_duration(&text).expect("a unit of that crate");
                assert_eq!(duration(&text), Ok(before), "{text}");
            }
        }
    }

    #[test]
    fn sizes_are_exact() {
        for (text, bytes) in [
            ("0B", 0),
            ("64KiB", 65_536),
            ("64kib", 65_536),
            ("64 Ki", 65_536),
            ("64kB", 64_000),
            ("1.5MiB", 1_572_864),
            ("9007199254740993B", 9_007_199_254_740_993),
            ("16EiB", u64::MAX),
            ("99999999999999999999EiB", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "B", "KiB", "1MiB 1KiB", ".5KiB", "5.KiB", "1e3B", "-1B", "1XB", "0x10B"] {
            assert_eq!(size(text), Err(Fault::Shape), "{text}");
        }
        for text in ["1", "1K", "1m", "1.9B", "0.1KiB"] {
            assert!(matches!(size(text), Err(Fault::Meaning(_))), "{text}");
        }
    }
}
