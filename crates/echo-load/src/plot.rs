//! The result as a chart: latency by percentile at the top, throughput over time below. Only this
//! file knows the plotting crate.

use std::error::Error;

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Color, DrawingArea, IntoDrawingArea, IntoLogRange, LineSeries, PathElement,
    RGBColor, SVGBackend, WHITE,
};

use crate::arguments::Plan;
use crate::result::Result as Load;
use crate::units::count;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 720;
const BLUE: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const ORANGE: RGBColor = RGBColor(0xd6, 0x62, 0x0e);
/// The percentile axis counts nines: 1 is 90 %, 2 is 99 %. This is its maximum.
const NINES_MAX: f64 = 5.0;
const STEPS: u32 = 500;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The chart of a result, as SVG.
pub(crate) fn draw(plan: &Plan, load: &Load) -> Result<String, Box<dyn Error>> {
    let mut picture = String::new();
    {
        let area = SVGBackend::with_string(&mut picture, (WIDTH, HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let (above, below) = area.split_vertically(HEIGHT / 2);
        latency(&above, plan, load)?;
        throughput(&below, load)?;
        area.present()?;
    }
    Ok(picture)
}

fn latency(area: &Area, plan: &Plan, load: &Load) -> Result<(), Box<dyn Error>> {
    let total = &load.total;
    let mut lines = vec![("latency", &total.uncorrected, BLUE)];
    if let Some(corrected) = &total.corrected {
        lines = vec![("corrected", corrected, ORANGE), ("uncorrected", &total.uncorrected, BLUE)];
    }
    let most = lines.iter().map(|line| line.1.max()).max().unwrap_or(0);
    let least = lines.iter().map(|line| line.1.min()).min().unwrap_or(0);
    let (low, high) = (microseconds(least).max(0.1) * 0.8, microseconds(most).max(1.0) * 1.25);
    let title = format!("{}: {}, latency by percentile", plan.target.text, plan.mode.word());
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..NINES_MAX, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("latency, microseconds")
        .x_labels(NINES_MAX as usize + 1)
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|value| count(*value))
        .y_labels(6)
        .max_light_lines(0)
        .draw()?;
    for (name, histogram, colour) in lines {
        let series = LineSeries::new(curve(histogram), colour.stroke_width(2));
        let key = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour);
        chart.draw_series(series)?.label(name).legend(key);
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}

/// Latency in microseconds over nines, as far as the number of messages permits.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let known = (histogram.len().max(1) as f64).log10().min(NINES_MAX);
    let points = (0..=STEPS).map(|step| known * f64::from(step) / f64::from(STEPS));
    points
        .map(|nines| {
            let quantile = 1.0 - 10_f64.powf(-nines);
            (nines, microseconds(histogram.value_at_quantile(quantile)).max(0.1))
        })
        .collect()
}

fn throughput(area: &Area, load: &Load) -> Result<(), Box<dyn Error>> {
    let end = load.total.elapsed.as_secs_f64().max(0.001);
    let most = load.intervals.iter().map(|point| point.messages_per_second).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("throughput over time", ("sans-serif", 18))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..end, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("messages per second")
        .x_label_formatter(&|value| count(*value))
        .y_label_formatter(&|value| count(*value))
        .y_labels(6)
        .max_light_lines(0)
        .draw()?;
    // Each interval is a step as wide as it lasted.
    let mut line = Vec::new();
    let mut from = 0.0;
    for point in &load.intervals {
        let to = point.at.as_secs_f64();
        line.extend([(from, point.messages_per_second), (to, point.messages_per_second)]);
        from = to;
    }
    chart.draw_series(LineSeries::new(line, BLUE.stroke_width(2)))?;
    Ok(())
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// `0.0` is p0, `1.0` is p90, `2.0` is p99, and so on.
fn percentile(nines: f64) -> String {
    let decimals = (nines.round() as usize).saturating_sub(2);
    format!("p{:.decimals$}", 100.0 * (1.0 - 10_f64.powf(-nines)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_have_names() {
        let names: Vec<String> = (0..=5).map(|nines| percentile(f64::from(nines))).collect();
        assert_eq!(names, ["p0", "p90", "p99", "p99.9", "p99.99", "p99.999"]);
    }
}
