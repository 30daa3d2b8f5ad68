//! Results as tables in Markdown, and for each work a plot of the ratios of all servers.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::latency::Latency;
use crate::report::{Outcome, Record, Spread, Summary};

/// Width of a plot, in pixels.
const WIDTH: u32 = 720;

/// Height of one server's line in a plot, in pixels.
const LINE: u32 = 24;

/// Ratios beyond this are cut off and written out, so that the others stay readable.
const RATIO_MAX: f64 = 2.0;

const FONT: &str = "sans-serif";
const OURS: &str = "echo-uring";
const ACCENT: RGBColor = RGBColor(0, 90, 160);
const QUIET: RGBColor = RGBColor(150, 150, 150);

/// Prints the table and writes a plot for each work into the directory.
pub(crate) fn plot(files: &[PathBuf], directory: &Path) -> Result<(), String> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for file in files {
        let record = Record::read(file)?;
        println!(
            "<!-- kernel {}, `compare {}`, begun at {} (Unix time), load average {} before and {} \
             after -->",
            record.kernel,
            record.command,
            record.began_unix_seconds,
            record.load_average_before,
            record.load_average_after
        );
        for outcome in record.outcomes {
            outcomes.retain(|other| other.work != outcome.work);
            outcomes.push(outcome);
        }
    }
    print!("{}{}", matrix(&outcomes), growth(&outcomes));
    for outcome in &outcomes {
        println!("\n{}", table(outcome));
        let path = directory.join(format!("{}.svg", outcome.work));
        draw(outcome, &path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The median ratios of all servers in all works.
fn matrix(outcomes: &[Outcome]) -> String {
    let mut servers: Vec<&str> = Vec::new();
    for summary in outcomes.iter().flat_map(|outcome| &outcome.summaries) {
        if !servers.contains(&summary.server.as_str()) {
            servers.push(&summary.server);
        }
    }
    let works: Vec<_> = outcomes.iter().map(|outcome| format!("`{}`", outcome.work)).collect();
    let mut text = format!("\n| server | {} |\n|---|", works.join(" | "));
    text.push_str(&"---|".repeat(works.len()));
    for server in servers {
        let ratio = |outcome: &Outcome| {
            let summary = outcome.summaries.iter().find(|summary| summary.server == server);
            summary.map_or("–".to_owned(), |summary| format!("{:.2}", summary.cpu_ratio.median))
        };
        let ratios: Vec<_> = outcomes.iter().map(ratio).collect();
        let _ = write!(text, "\n| {server} | {} |", ratios.join(" | "));
    }
    text.push('\n');
    text
}

/// One work in Markdown.
fn table(outcome: &Outcome) -> String {
    let mut text = format!(
        "**{}**\n\n| server | CPU per echo | ratio (quartiles) | p50 | ratio | p99.9 | p99.9 over p50, ratio |\n\
         |---|---|---|---|---|---|---|\n",
        outcome.title
    );
    for summary in &outcome.summaries {
        let time = |figure: fn(&Latency) -> f64| {
            let milliseconds = |latency: Latency| format!("{:.2} ms", figure(&latency) * 1e3);
            summary.latency.map_or("–".to_owned(), milliseconds)
        };
        let spread = |spread: Spread| spread.text().trim().to_owned();
        let _ = writeln!(
            text,
            "| {} | {:.2} µs | {} | {} | {} | {} | {} |",
            summary.server,
            summary.cpu_microseconds_per_echo,
            spread(summary.cpu_ratio),
            time(|latency| latency.p50_seconds),
            summary.p50_ratio.map_or("–".to_owned(), spread),
            time(|latency| latency.p99_9_seconds),
            summary.unfairness_ratio.map_or("–".to_owned(), spread),
        );
    }
    for note in outcome.notes.iter().chain(&outcome.failures) {
        let _ = writeln!(text, "\nWithout {}", note.replace('\n', " "));
    }
    text
}

/// The cost of an echo with many connections over that with 64, for each server.
fn growth(outcomes: &[Outcome]) -> String {
    let find = |work: &str| outcomes.iter().find(|outcome| outcome.work == work);
    let (Some(few), Some(many)) = (find("ping-64"), find("ping-16000")) else {
        return String::new();
    };
    let mut text = String::from(
        "\n**Growth of the cost from 64 to 16,000 connections**\n\n| server | times |\n|---|---|\n",
    );
    for summary in &many.summaries {
        let same = |other: &&Summary| other.server == summary.server;
        if let Some(small) = few.summaries.iter().find(same) {
            let times = summary.cpu_microseconds_per_echo / small.cpu_microseconds_per_echo;
            let _ = writeln!(text, "| {} | {times:.2} |", summary.server);
        }
    }
    text
}

/// A bar for each server as long as its ratio, with its quartiles.
fn draw(outcome: &Outcome, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let count = outcome.summaries.len();
    let area = SVGBackend::new(path, (WIDTH, 70 + LINE * count as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let reference = outcome.summaries.first().map_or("", |summary| summary.server.as_str());
    let caption = format!("{}: server CPU per echo, {reference} = 1", outcome.title);
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, (FONT, 15))
        .margin(6)
        .x_label_area_size(22)
        .y_label_area_size(100)
        .build_cartesian_2d(0.0..RATIO_MAX, (0..count - 1).into_segmented())?;
    let name = |position: &SegmentValue<usize>| match position {
        SegmentValue::CenterOf(index) => {
            outcome.summaries.get(count - 1 - index).map_or("", |it| it.server.as_str()).to_owned()
        }
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(count)
        .y_label_formatter(&name)
        .x_label_formatter(&|ratio| format!("{ratio:.1}"))
        .label_style((FONT, 12))
        .draw()?;
    for (index, summary) in outcome.summaries.iter().rev().enumerate() {
        let ratio = summary.cpu_ratio;
        let color = if summary.server == OURS { ACCENT } else { QUIET };
        let top =
            if index + 1 == count { SegmentValue::Last } else { SegmentValue::Exact(index + 1) };
        let corners = [(0.0, SegmentValue::Exact(index)), (ratio.median.min(RATIO_MAX), top)];
        let mut bar = Rectangle::new(corners, color.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        let whisker = [ratio.lower_quartile, ratio.upper_quartile]
            .map(|end| (end.min(RATIO_MAX), SegmentValue::CenterOf(index)));
        chart.draw_series([PathElement::new(whisker, BLACK)])?;
        let style = (FONT, 12).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
        let text = format!("{:.2}", ratio.median);
        // Inside of a long bar, where there is room.
        let (place, style) = if ratio.median > RATIO_MAX * 0.9 {
            (RATIO_MAX * 0.98, style.color(&WHITE))
        } else {
            (ratio.upper_quartile.max(ratio.median) + 0.09, style)
        };
        chart.draw_series([Text::new(text, (place, SegmentValue::CenterOf(index)), style)])?;
    }
    let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Last)];
    chart.draw_series([PathElement::new(one, BLACK.mix(0.4))])?;
    area.present()?;
    Ok(())
}
