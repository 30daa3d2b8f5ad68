//! Compares echo servers by the CPU time they spend per echo, against the first of them as the
//! yardstick.
//!
//! All servers run at once on one core and the client on another. A round gives each server one
//! slice, in an order drawn anew; a slice ends when everything sent is back, and only then the
//! server's CPU time is read. README.md says how to read the result.

mod churn;
mod cpu;
mod pattern;
mod report;
mod servers;
mod steady;
mod works;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::utsname::uname;
use serde::Serialize;

use crate::pattern::Pattern;
use crate::report::{Outcome, Series, Slice};
use crate::servers::{Entry, Server, Stage};
use crate::works::{WORKS, Work};

/// Before each slice its connections are warmed up for one part in so many of it: windows grow, and
/// servers that adapt do so.
const WARM_UP_DIVISOR: f64 = 5.0;

/// Compares echo servers by CPU time per echo.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Length of one slice, in seconds.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Rounds that count; one more is run before them to warm up.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Servers, the yardstick first. The same one twice shows the noise.
    #[arg(long, value_delimiter = ',', default_values = ["epoll", "epoll-256k", "echo-uring"])]
    servers: Vec<String>,
    /// Works; all of them if none is named.
    #[arg(long, value_delimiter = ',')]
    works: Vec<String>,
    /// The daemon's binary.
    #[arg(long, default_value = "target/release/echo-uring")]
    daemon: PathBuf,
    /// The core that all servers share.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the client.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Writes every slice and every conclusion to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    kernel: String,
    slice_seconds: f64,
    rounds: u32,
    outcomes: Vec<Outcome>,
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("compare: {message}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(), String> {
    let works = match &arguments.works[..] {
        [] => WORKS.to_vec(),
        names => names.iter().map(|name| Work::named(name)).collect::<Result<_, _>>()?,
    };
    let seconds = Duration::try_from_secs_f64(arguments.seconds).map_err(|e| e.to_string())?;
    prepare(arguments.client_core).map_err(|error| format!("preparing: {error}"))?;
    let scratch = std::env::temp_dir().join(format!("echo-compare-{}", std::process::id()));
    fs::create_dir(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let plan = Plan {
        stage: Stage { daemon: &arguments.daemon, scratch: &scratch, core: arguments.server_core },
        cast: cast(&arguments.servers)?,
        pattern: Pattern::new(),
        duration: seconds,
        rounds: arguments.rounds,
    };
    let outcomes = plan.run_all(&works);
    // Logs and configurations are of no use any more: a complaint has quoted what matters.
    let _ = fs::remove_dir_all(&scratch);
    let record = Record {
        kernel: kernel_release(),
        slice_seconds: arguments.seconds,
        rounds: arguments.rounds,
        outcomes: outcomes?,
    };
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&record).map_err(|error| error.to_string())?;
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The client's own needs: its core, and two descriptors for every connection there may be.
fn prepare(core: usize) -> std::io::Result<()> {
    let (_, ceiling) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, ceiling, ceiling)?;
    cpu::pin(core)
}

fn kernel_release() -> String {
    uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned())
}

/// Who takes part, each under a label of its own: the second of a name is `name#2`.
fn cast(names: &[String]) -> Result<Vec<(String, &'static Entry)>, String> {
    let mut seen = HashMap::new();
    names
        .iter()
        .map(|name| {
            let times = seen.entry(name).and_modify(|times| *times += 1).or_insert(1);
            let label = if *times == 1 { name.clone() } else { format!("{name}#{times}") };
            Ok((label, Entry::named(name)?))
        })
        .collect()
}

/// What stays the same for all works.
struct Plan<'a> {
    stage: Stage<'a>,
    /// Labels and programs; the yardstick first.
    cast: Vec<(String, &'static Entry)>,
    pattern: Pattern,
    /// Length of a slice.
    duration: Duration,
    rounds: u32,
}

impl Plan<'_> {
    fn run_all(&self, works: &[Work]) -> Result<Vec<Outcome>, String> {
        println!(
            "kernel {}, {} rounds of {} ms slices, ratios against {}",
            kernel_release(),
            self.rounds,
            self.duration.as_millis(),
            self.cast[0].0
        );
        println!("{}", report::head());
        let mut outcomes = Vec::new();
        for work in works {
            let outcome = self.run(work)?;
            print!("{}", outcome.table());
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// One work on all servers, slice by slice.
    ///
    /// Every round has processes of its own. Where the memory of a process happens to lie stays
    /// with it for life: of two processes of the same program one was 4 % dearer for a whole run.
    fn run(&self, work: &Work) -> Result<Outcome, String> {
        let empty = |label: &String| Series { server: label.clone(), slices: Vec::new() };
        let mut series: Vec<Series> = self.cast.iter().map(|(label, _)| empty(label)).collect();
        let mut order: Vec<usize> = (0..series.len()).collect();
        for round in 0..=self.rounds {
            let start = |(label, entry): &(String, &Entry)| entry.start(label.clone(), &self.stage);
            let servers: Vec<Server> = self.cast.iter().map(start).collect::<Result<_, _>>()?;
            fastrand::shuffle(&mut order);
            for &index in &order {
                let server = &servers[index];
                let slice = self
                    .measure(work, server)
                    .map_err(|error| server.complaint(&format!("{}: {error}", work.name)))?;
                // Round 0 warms up the machine.
                if round > 0 {
                    series[index].slices.push(slice);
                }
            }
        }
        Ok(Outcome::new(work.name, work.title, series))
    }

    /// One slice on connections of its own, for the same reason: what the kernel happens to settle
    /// on for a connection (windows, buffer sizes) would look like a trait of the server.
    fn measure(&self, work: &Work, server: &Server) -> Result<Slice, String> {
        let mut client = work.client(server.address, &self.pattern)?;
        client.slice(self.duration.div_f64(WARM_UP_DIVISOR))?;
        let before = server.settled_cpu_time()?;
        let work = client.slice(self.duration)?;
        let after = server.settled_cpu_time()?;
        Ok(Slice {
            echoes: work.echoes,
            elapsed_seconds: work.elapsed.as_secs_f64(),
            server_cpu_seconds: (after - before).as_secs_f64(),
        })
    }
}
