//! From slices to numbers: medians of paired ratios, as a table and as JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::latency::Latency;

/// What `--json` writes.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Record {
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The arguments of the comparison.
    pub(crate) command: String,
    /// When it began.
    pub(crate) began_unix_seconds: u64,
    /// Over 1, 5 and 15 minutes, when it began.
    pub(crate) load_average_before: String,
    /// The same when it ended.
    pub(crate) load_average_after: String,
    /// Length of a usual slice.
    pub(crate) slice_seconds: f64,
    /// Rounds that counted.
    pub(crate) rounds: u32,
    /// One for each work.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Record {
    /// Writes it to a file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads what `write` wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let complaint = |error: String| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| complaint(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| complaint(error.to_string()))
    }
}

/// One server's slice in one round.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Slice {
    /// Echoes that came back.
    pub(crate) echoes: u64,
    /// From first byte to last, in seconds.
    pub(crate) elapsed_seconds: f64,
    /// CPU time of the server, in seconds.
    pub(crate) server_cpu_seconds: f64,
    /// If each connection had one message in flight.
    pub(crate) latency: Option<Latency>,
    /// Messages that did not come back and were sent again.
    #[serde(default)]
    pub(crate) lost: u64,
    /// Bytes of the most served connection over those of the least served one.
    #[serde(default)]
    pub(crate) most_over_least: Option<f64>,
}

/// One server's slices under one work, in the order of the rounds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Series {
    /// The server's label.
    pub(crate) server: String,
    /// One slice a round.
    pub(crate) slices: Vec<Slice>,
}

impl Series {
    /// Nothing yet.
    pub(crate) fn new(server: &str) -> Self {
        Self { server: server.to_owned(), slices: Vec::new() }
    }
}

/// All measurements of one work; the first series is the reference.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Outcome {
    /// The work's name.
    pub(crate) work: String,
    /// The work in words.
    pub(crate) title: String,
    /// One series a server.
    pub(crate) series: Vec<Series>,
    /// The conclusions from the series, in the same order.
    pub(crate) summaries: Vec<Summary>,
    /// Servers that did not take part, and why.
    pub(crate) notes: Vec<String>,
    /// Servers that failed, and how.
    pub(crate) failures: Vec<String>,
}

/// What is said about one server under one work.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Summary {
    /// The server's label.
    pub(crate) server: String,
    /// Median of its CPU time per echo, in microseconds.
    pub(crate) cpu_microseconds_per_echo: f64,
    /// CPU time per echo relative to the reference in the same round.
    pub(crate) cpu_ratio: Spread,
    /// Echoes per second relative to the reference in the same round.
    pub(crate) throughput_ratio: Spread,
    /// Median of echoes per second.
    pub(crate) echoes_per_second: f64,
    /// Messages of all slices that did not come back and were sent again.
    #[serde(default)]
    pub(crate) lost: u64,
    /// Median of the slices, of connections that stay.
    #[serde(default)]
    pub(crate) most_over_least: Option<f64>,
    /// Medians of the slices' percentiles.
    pub(crate) latency: Option<Latency>,
    /// The p50 of a slice relative to the reference in the same round.
    pub(crate) p50_ratio: Option<Spread>,
    /// Unfairness, p99.9 over p50 of a slice, relative to the reference in the same round.
    pub(crate) unfairness_ratio: Option<Spread>,
}

/// A sample in three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Spread {
    /// Half of the sample is above it.
    pub(crate) median: f64,
    /// A quarter of the sample is below it.
    pub(crate) lower_quartile: f64,
    /// A quarter of the sample is above it.
    pub(crate) upper_quartile: f64,
}

impl Slice {
    fn cpu_per_echo(&self) -> f64 {
        self.server_cpu_seconds / self.echoes as f64
    }

    fn throughput(&self) -> f64 {
        self.echoes as f64 / self.elapsed_seconds
    }

    /// Not a number where no latency was taken.
    fn p50(&self) -> f64 {
        self.latency.map_or(f64::NAN, |latency| latency.p50_seconds)
    }

    /// Not a number where no latency was taken.
    fn unfairness(&self) -> f64 {
        self.latency.map_or(f64::NAN, |latency| latency.p99_9_seconds / latency.p50_seconds)
    }
}

impl Spread {
    /// Of a sample that is not empty.
    fn of(mut sample: Vec<f64>) -> Self {
        assert!(!sample.is_empty(), "a comparison has at least one round");
        sample.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sample, 0.5),
            lower_quartile: quantile(&sample, 0.25),
            upper_quartile: quantile(&sample, 0.75),
        }
    }
}

/// Of all slices, or not at all: a percentile of nothing is none.
fn latency(series: &Series) -> Option<Latency> {
    let seen: Option<Vec<Latency>> = series.slices.iter().map(|slice| slice.latency).collect();
    let seen = seen?;
    let median = |figure: fn(&Latency) -> f64| Spread::of(seen.iter().map(figure).collect()).median;
    Some(Latency {
        p50_seconds: median(|latency| latency.p50_seconds),
        p99_seconds: median(|latency| latency.p99_seconds),
        p99_9_seconds: median(|latency| latency.p99_9_seconds),
    })
}

/// The median of all slices, if each has one.
fn most_over_least(series: &Series) -> Option<f64> {
    let seen: Option<Vec<f64>> = series.slices.iter().map(|slice| slice.most_over_least).collect();
    Some(Spread::of(seen?).median)
}

/// Between the two nearest values of a sorted sample, in proportion.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * position.fract()
}

/// Each round's ratio of a figure to that of the reference in the same round. The pairing cancels
/// variations of the machine.
fn paired(series: &Series, reference: &Series, figure: fn(&Slice) -> f64) -> Spread {
    let pairs = series.slices.iter().zip(&reference.slices);
    Spread::of(pairs.map(|(slice, reference)| figure(slice) / figure(reference)).collect())
}

impl Outcome {
    /// Draws the conclusions from the series; the first is the reference.
    pub(crate) fn new(
        work: &str,
        title: &str,
        series: Vec<Series>,
        notes: Vec<String>,
        failures: Vec<String>,
    ) -> Self {
        let each = |series: &Series, figure: fn(&Slice) -> f64| {
            Spread::of(series.slices.iter().map(figure).collect()).median
        };
        let summaries = series
            .iter()
            .map(|one| Summary {
                server: one.server.clone(),
                cpu_microseconds_per_echo: each(one, Slice::cpu_per_echo) * 1e6,
                cpu_ratio: paired(one, &series[0], Slice::cpu_per_echo),
                throughput_ratio: paired(one, &series[0], Slice::throughput),
                echoes_per_second: each(one, Slice::throughput),
                lost: one.slices.iter().map(|slice| slice.lost).sum(),
                most_over_least: most_over_least(one),
                latency: latency(one),
                p50_ratio: latency(one).map(|_| paired(one, &series[0], Slice::p50)),
                unfairness_ratio: latency(one).map(|_| paired(one, &series[0], Slice::unfairness)),
            })
            .collect();
        let (work, title) = (work.to_owned(), title.to_owned());
        Self { work, title, series, summaries, notes, failures }
    }

    /// The part of the table that belongs to this work.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for summary in &self.summaries {
            let _ = write!(
                text,
                "  {:<16} {:>9.2} µs {}   {:>10.0}/s {}",
                summary.server,
                summary.cpu_microseconds_per_echo,
                summary.cpu_ratio.text(),
                summary.echoes_per_second,
                summary.throughput_ratio.text(),
            );
            let none = || format!("  {:>9} {:>9} {:>9}", "", "", "");
            text.push_str(&summary.latency.map_or_else(none, |latency| latency.text()));
            if let Some(ratio) = summary.most_over_least {
                let _ = write!(text, "  {ratio:>8.2}");
            }
            if summary.lost > 0 {
                let _ = write!(text, "  {} lost", summary.lost);
            }
            text.push('\n');
        }
        text
    }
}

impl Spread {
    /// For tables in plain text.
    pub(crate) fn text(&self) -> String {
        format!("{:>6.3} ({:.3}–{:.3})", self.median, self.lower_quartile, self.upper_quartile)
    }
}

/// The head of the table.
pub(crate) fn head() -> String {
    format!(
        "  {:<16} {:>12} {:^21}   {:>12} {:^21}  {:>9} {:>9} {:>9}  {:>8}",
        "",
        "CPU/echo",
        "ratio (quartiles)",
        "echoes",
        "ratio (quartiles)",
        "p50",
        "p99",
        "p99.9",
        "max/min",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(cpu: f64, elapsed: f64) -> Slice {
        Slice {
            echoes: 100,
            elapsed_seconds: elapsed,
            server_cpu_seconds: cpu,
            latency: None,
            lost: 0,
            most_over_least: None,
        }
    }

    /// The machine is twice as slow in the second round, for both: the paired ratio must not
    /// notice.
    #[test]
    fn a_mood_of_the_machine_cancels_out() {
        let reference =
            Series { server: "a".into(), slices: vec![slice(1.0, 1.0), slice(2.0, 2.0)] };
        let other = Series { server: "b".into(), slices: vec![slice(0.5, 2.0), slice(1.0, 4.0)] };
        let outcome = Outcome::new("work", "title", vec![reference, other], Vec::new(), Vec::new());
        let expected =
            |ratio| Spread { median: ratio, lower_quartile: ratio, upper_quartile: ratio };
        assert_eq!(outcome.summaries[1].cpu_ratio, expected(0.5));
        assert_eq!(outcome.summaries[1].throughput_ratio, expected(0.5));
        assert_eq!(outcome.summaries[0].cpu_ratio, expected(1.0));
    }

    /// Quartiles lie between the values, in proportion.
    #[test]
    fn a_spread_is_median_and_quartiles() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.5, lower_quartile: 1.75, upper_quartile: 3.25 });
    }
}
