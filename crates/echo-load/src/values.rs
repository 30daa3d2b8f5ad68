//! The syntax of numbers, times and percentages on the command line.

use std::time::Duration;

/// The minimum time between two reports. A report takes some ten microseconds in all threads and
/// copies their histograms.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// The maximum seed that a JSON number can represent: 53 bits.
pub(crate) const SEED_MAX: u64 = (1 << 53) - 1;

/// A decimal number with or without a suffix: `20000`, `0.5`, `20k`, `1.5M`, `1e6`.
fn decimal(text: &str) -> Option<f64> {
    let (digits, factor) = match text.char_indices().last()? {
        (end, 'k' | 'K') => (&text[..end], 1e3),
        (end, 'm' | 'M') => (&text[..end], 1e6),
        (end, 'g' | 'G') => (&text[..end], 1e9),
        _ => (text, 1.0),
    };
    let is_number = digits.starts_with(|it: char| it.is_ascii_digit() || it == '.');
    let number: f64 = digits.parse().ok().filter(|_| is_number)?;
    Some(number * factor)
}

/// A whole number from 1 to `MAX`: `1000` or `20k`.
pub(crate) fn count<const MAX: u32>(text: &str) -> Result<u32, String> {
    let number = decimal(text).ok_or("use a number such as 1000 or 20k")?;
    if number.fract() != 0.0 || !(1.0..=f64::from(MAX)).contains(&number) {
        return Err(format!("it must be a whole number from 1 to {MAX}"));
    }
    Ok(number as u32)
}

/// Messages per second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate = decimal(text).ok_or("use messages per second, such as 1000 or 20k")?;
    if (0.001..=1e9).contains(&rate) {
        Ok(rate)
    } else {
        Err("it must be between 0.001 and 1e9 messages per second".to_owned())
    }
}

/// A share, as a fraction of 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let number = percent(text)?;
    if number <= 100.0 { Ok(number / 100.0) } else { Err("it must be at most 100%".to_owned()) }
}

/// A percentage.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    let number = decimal(text.strip_suffix('%').unwrap_or(text));
    number.filter(|it| it.is_finite()).ok_or_else(|| "use a percentage such as 5%".to_owned())
}

/// A seed that JSON can represent.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse::<u64>().ok().filter(|it| *it <= SEED_MAX);
    seed.ok_or_else(|| {
        format!("use a whole number up to {SEED_MAX} (53 bits, the precision of JSON)")
    })
}

/// A time longer than zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// The time between two reports.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        duration if duration < INTERVAL_MIN => Err("it must be at least 1ms".to_owned()),
        duration => Ok(duration),
    }
}

/// A time: `500ms`, `1.5s`, `1m30s`; a bare number is in seconds.
pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return humantime::parse_duration(text).map_err(|error| error.to_string()),
    };
    let number: f64 = number.parse().map_err(|_| "use a time such as 500ms, 1.5s or 1m30s")?;
    let nanoseconds = (number * seconds * 1e9).round();
    // A century: longer times would overflow when they are added.
    if nanoseconds > 3.2e18 {
        return Err("it must be less than a century".to_owned());
    }
    Ok(Duration::from_nanos(nanoseconds as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_decimals_and_suffixes() {
        assert_eq!(rate("20k"), Ok(20_000.0));
        assert_eq!(rate("1.5M"), Ok(1_500_000.0));
        assert_eq!(rate("0.5"), Ok(0.5));
        assert_eq!(rate("1e6"), Ok(1e6));
        assert_eq!(count::<65_536>("20k"), Ok(20_000));
        assert_eq!(count::<65_536>("1.5k"), Ok(1500));
        for text in ["", "k", "-1", "nan", "inf", "0", "1.5", "70k", "1x"] {
            assert!(count::<65_536>(text).is_err(), "{text}");
        }
        for text in ["", "nan", "inf", "-1", "0", "2G"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_decimals() {
        for (text, milliseconds) in
            [("0.5", 500), ("1.5s", 1500), ("2", 2000), ("500ms", 500), ("1m30s", 90_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration("0.5ms"), Ok(Duration::from_micros(500)));
        for text in ["", "0", "0s", "x", "-1s", "1.2.3s", "never", "9e99s", "99999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(interval("1us").is_err());
    }

    #[test]
    fn shares_and_seeds_have_bounds() {
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(percent("250%"), Ok(250.0));
        assert!(share("101%").is_err() && share("-1%").is_err() && percent("nan").is_err());
        assert_eq!(seed("9007199254740991"), Ok(SEED_MAX));
        assert!(seed("9007199254740992").is_err());
    }
}
