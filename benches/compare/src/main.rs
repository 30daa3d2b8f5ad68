//! Compares echo servers by their CPU time per echo, relative to the first of them (the reference),
//! and makes tables and plots of the results.
//!
//! All servers run at once on one core and the client on another. A round gives each server one
//! slice, in a new random order; a slice ends when everything sent is back, and only then the
//! server's CPU time is read. README.md says how to read the result.

mod address;
mod churn;
mod comparison;
mod cpu;
mod datagrams;
mod latency;
mod loss;
mod mixed;
mod pattern;
mod plot;
mod report;
mod servers;
mod steady;
mod veth;
mod works;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Compares echo servers by CPU time per echo.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    comparison: Arguments,
}

#[derive(Subcommand)]
enum Command {
    /// Counts the datagrams that are lost at half of what a server can do.
    Loss(loss::Arguments),
    /// Prints a table of results and draws plots of them, one for each work.
    Plot {
        /// What `--json` wrote. Of a work in several files the last one counts.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The directory for the plots.
        #[arg(long, default_value = ".")]
        directory: PathBuf,
    },
}

/// How to compare.
#[derive(Args)]
struct Arguments {
    /// Length of one slice, in seconds; works with thousands of connections take several.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Rounds that count; one more is run before them to warm up.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Servers, or sets of them (usual, runtimes, all); the reference first. The same one twice
    /// shows the noise.
    #[arg(long, value_delimiter = ',', default_values = ["usual"])]
    servers: Vec<String>,
    /// Works, or sets of them (usual, crowds, others, all).
    #[arg(long, value_delimiter = ',', default_values = ["usual"])]
    works: Vec<String>,
    /// Every work on every server: `--works all --servers all`. Takes half an hour.
    #[arg(long, conflicts_with_all = ["works", "servers"])]
    all: bool,
    /// The client never sleeps, so that no send pays for waking it (not in churn).
    #[arg(long)]
    spin: bool,
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

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let outcome = match &command_line.command {
        Some(Command::Loss(arguments)) => loss::loss(arguments),
        Some(Command::Plot { files, directory }) => plot::plot(files, directory),
        None => comparison::compare(&command_line.comparison),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("compare: {message}");
            ExitCode::FAILURE
        }
    }
}
