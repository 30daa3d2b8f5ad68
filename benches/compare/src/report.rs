//! From slices to numbers: medians of paired ratios, as a table and as JSON.

use std::fmt::Write;

use serde::Serialize;

/// One server's slice in one round.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Slice {
    /// Echoes that came back.
    pub(crate) echoes: u64,
    /// From first byte to last, in seconds.
    pub(crate) elapsed_seconds: f64,
    /// CPU time of the server, in seconds.
    pub(crate) server_cpu_seconds: f64,
}

/// One server's slices under one work, in the order of the rounds.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Series {
    /// The server's label.
    pub(crate) server: String,
    /// One slice a round.
    pub(crate) slices: Vec<Slice>,
}

/// Everything seen under one work; the first series is the yardstick.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Outcome {
    /// The work's name.
    pub(crate) work: String,
    /// The work in words.
    pub(crate) title: String,
    /// One series a server.
    pub(crate) series: Vec<Series>,
    /// What follows from the series, in the same order.
    pub(crate) summaries: Vec<Summary>,
}

/// What is said about one server under one work.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Summary {
    /// The server's label.
    pub(crate) server: String,
    /// Median of its CPU time per echo, in microseconds.
    pub(crate) cpu_microseconds_per_echo: f64,
    /// CPU time per echo against the yardstick's in the same round.
    pub(crate) cpu_ratio: Spread,
    /// Echoes per second against the yardstick's in the same round.
    pub(crate) throughput_ratio: Spread,
    /// Median of echoes per second.
    pub(crate) echoes_per_second: f64,
}

/// A sample in three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
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

/// Between the two nearest values of a sorted sample, in proportion.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * position.fract()
}

/// Each round's ratio of a figure to the yardstick's in that round; the pairing is what cancels the
/// machine's moods.
fn paired(series: &Series, yardstick: &Series, figure: fn(&Slice) -> f64) -> Spread {
    let pairs = series.slices.iter().zip(&yardstick.slices);
    Spread::of(pairs.map(|(slice, reference)| figure(slice) / figure(reference)).collect())
}

impl Outcome {
    /// Draws the conclusions from the series; the first is the yardstick.
    pub(crate) fn new(work: &str, title: &str, series: Vec<Series>) -> Self {
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
            })
            .collect();
        Self { work: work.to_owned(), title: title.to_owned(), series, summaries }
    }

    /// The part of the table that belongs to this work.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}\n", self.title);
        for summary in &self.summaries {
            let _ = writeln!(
                text,
                "  {:<14} {:>9.2} µs {}   {:>10.0}/s {}",
                summary.server,
                summary.cpu_microseconds_per_echo,
                summary.cpu_ratio.text(),
                summary.echoes_per_second,
                summary.throughput_ratio.text(),
            );
        }
        text
    }
}

impl Spread {
    fn text(&self) -> String {
        format!("{:>6.3} ({:.3}–{:.3})", self.median, self.lower_quartile, self.upper_quartile)
    }
}

/// The head of the table.
pub(crate) fn head() -> String {
    format!(
        "  {:<14} {:>12} {:^21}   {:>12} {:^21}",
        "", "CPU/echo", "ratio (quartiles)", "echoes", "ratio (quartiles)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(cpu: f64, elapsed: f64) -> Slice {
        Slice { echoes: 100, elapsed_seconds: elapsed, server_cpu_seconds: cpu }
    }

    /// The machine is twice as slow in the second round, for both: the paired ratio must not
    /// notice.
    #[test]
    fn a_mood_of_the_machine_cancels_out() {
        let yardstick =
            Series { server: "a".into(), slices: vec![slice(1.0, 1.0), slice(2.0, 2.0)] };
        let other = Series { server: "b".into(), slices: vec![slice(0.5, 2.0), slice(1.0, 4.0)] };
        let outcome = Outcome::new("work", "title", vec![yardstick, other]);
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
