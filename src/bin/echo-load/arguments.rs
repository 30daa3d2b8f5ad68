//! The command line: arguments become a [`Command`]. The only place that knows clap.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ValueHint;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use socket2::SockAddr;

use crate::size::Sizes;

/// What the user asked for.
pub(crate) enum Command {
    /// Put load on a server.
    Load(Box<Plan>),
    /// Compare two results.
    Diff(DiffPlan),
}

/// Where the load goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// As it was written.
    pub(crate) text: String,
    /// What it resolved to.
    pub(crate) address: SockAddr,
}

/// What connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Keep `--depth` messages in flight on each connection
    PingPong,
    /// The same with long messages: bulk
    Stream,
    /// Connect, one echo, close, again
    Churn,
    /// Hold the connections open and ping one now and then
    Idle,
}

impl Mode {
    /// The word for it, in tables and in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::PingPong => "ping-pong",
            Self::Stream => "stream",
            Self::Churn => "churn",
            Self::Idle => "idle",
        }
    }
}

/// A run, with every choice made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    pub(crate) connections: u32,
    pub(crate) threads: u32,
    pub(crate) sizes: Sizes,
    pub(crate) depth: u32,
    pub(crate) rate_per_second: Option<f64>,
    pub(crate) duration: Duration,
    pub(crate) warmup: Duration,
    pub(crate) interval: Duration,
    pub(crate) patience: Duration,
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) verify: bool,
    pub(crate) seed: u64,
    pub(crate) output: Output,
}

/// Where results go.
#[derive(Args, Clone, Debug)]
pub(crate) struct Output {
    /// Print the result as one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    /// Print a line of JSON for each interval, the result as the last
    #[arg(long)]
    pub(crate) json_stream: bool,

    /// Write a histogram of latencies for each interval to FILE (HdrHistogram log, milliseconds)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) hdr: Option<PathBuf>,

    /// Draw latency by percentile and throughput over time to FILE
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    pub(crate) plot: Option<PathBuf>,

    /// Show no progress, even on a terminal
    #[arg(long)]
    pub(crate) no_progress: bool,
}

/// Two results to compare.
#[derive(Args, Clone, Debug)]
pub(crate) struct DiffPlan {
    /// The result to compare with (from --json)
    #[arg(value_name = "A.json", value_hint = ValueHint::FilePath)]
    pub(crate) before: PathBuf,

    /// The result to judge
    #[arg(value_name = "B.json", value_hint = ValueHint::FilePath)]
    pub(crate) after: PathBuf,

    /// How much worse a figure may be
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    pub(crate) threshold: f64,
}

#[derive(Parser)]
#[command(
    name = "echo-load",
    version,
    about = "Load generator that checks every byte, for any plain echo server",
    after_help = "Exit status: 0 all echoes right; 1 a difference, a lost connection or, with \
                  diff, a regression;\n2 wrong usage; 3 could not connect. See echo-load(1).",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    load: Load,
}

#[derive(Subcommand)]
enum Verb {
    /// Compare two results; the exit status is 1 if the second is worse
    Diff(DiffPlan),
}

#[derive(Args)]
struct Load {
    /// The server: tcp://HOST:PORT or unix:PATH
    #[arg(value_name = "TARGET", required = true)]
    target: Option<String>,

    /// What connections do
    #[arg(long, value_enum, default_value_t = Mode::PingPong)]
    mode: Mode,

    /// Connections in all
    #[arg(short, long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    connections: u32,

    /// Bytes of a message: 64, 4KiB, 64..4KiB (evenly) or 64:90,16KiB:10 (weights)
    /// [default: 64; 64KiB for streams]
    #[arg(short, long, value_name = "SIZE")]
    size: Option<Sizes>,

    /// Messages in flight per connection, at most [default: 1; 8 for streams]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    depth: Option<u32>,

    /// Open loop: send N messages per second in all, on schedule, however slow the answers
    /// [default: as fast as they come; 10 for idle connections]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// How long to measure
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,

    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration_or_zero)]
    warmup: Duration,

    /// Threads, each with a ring and its share of the connections
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,

    /// Connect from ADDRESS; repeatable: connections take turns (each has some 28,000 ports)
    #[arg(long, value_name = "ADDRESS")]
    source: Vec<IpAddr>,

    /// Do not compare the echoes with what was sent, only count bytes
    #[arg(long)]
    no_verify: bool,

    /// How long to wait for connections to be made, and for the last echoes at the end
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,

    /// Time between reports
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,

    /// What bytes and sizes are made from, to repeat a run [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    output: Output,
}

/// Reads the arguments of this process. On wrong usage, and for help and version, it prints and
/// ends the process.
pub(crate) fn parse() -> Command {
    let Arguments { verb, load } = Arguments::parse();
    match verb {
        Some(Verb::Diff(plan)) => Command::Diff(plan),
        None => Command::Load(Box::new(
            plan(load)
                .unwrap_or_else(|fault| command().error(ErrorKind::ValueValidation, fault).exit()),
        )),
    }
}

/// The command line as data: what completions and manual pages are made from.
pub(crate) fn command() -> clap::Command {
    Arguments::command()
}

fn plan(load: Load) -> Result<Plan, String> {
    let mode = load.mode;
    let target = target(&load.target.ok_or("TARGET is missing")?)?;
    let is_stream = mode == Mode::Stream;
    let default_size = if is_stream { "64KiB" } else { "64" };
    let sizes = load.size.map_or_else(|| default_size.parse(), Ok)?;
    if load.threads > load.connections {
        return Err(format!("{} threads share {} connections", load.threads, load.connections));
    }
    if mode == Mode::Churn && load.depth.is_some_and(|depth| depth > 1) {
        return Err("--mode churn has one message on each connection: --depth is 1".to_owned());
    }
    if let Some(source) = load.source.iter().find(|source| !fits(source, &target.address)) {
        return Err(format!("--source {source} is of another family than {}", target.text));
    }
    Ok(Plan {
        target,
        mode,
        connections: load.connections,
        threads: load.threads,
        sizes,
        depth: load.depth.unwrap_or(if is_stream { 8 } else { 1 }),
        rate_per_second: load.rate.or((mode == Mode::Idle).then_some(10.0)),
        duration: load.duration,
        warmup: load.warmup,
        interval: load.interval,
        patience: load.timeout,
        sources: load.source,
        verify: !load.no_verify,
        seed: load.seed.unwrap_or_else(random_seed),
        output: load.output,
    })
}

fn target(text: &str) -> Result<Target, String> {
    let wrong = |why: &str| format!("TARGET {text:?}: {why}; write tcp://HOST:PORT or unix:PATH");
    let address = if let Some(path) = text.strip_prefix("unix:") {
        SockAddr::unix(path).map_err(|error| wrong(&error.to_string()))?
    } else if let Some(place) = text.strip_prefix("tcp://") {
        let place = place.trim_end_matches('/');
        let mut found = place.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
        found.next().ok_or_else(|| wrong("the name has no address"))?.into()
    } else if text.starts_with("udp://") {
        return Err(wrong("UDP is not there yet"));
    } else {
        return Err(wrong("what is it"));
    };
    Ok(Target { text: text.to_owned(), address })
}

fn fits(source: &IpAddr, target: &SockAddr) -> bool {
    target.as_socket().is_some_and(|it: SocketAddr| it.is_ipv4() == source.is_ipv4())
}

fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map(|it| Duration::from_secs(it.into()));
    seconds.or_else(|_| humantime::parse_duration(text)).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write messages per second, such as 1000")?;
    if (0.001..=1e9).contains(&rate) {
        Ok(rate)
    } else {
        Err("it must be between 0.001 and 1e9 messages per second".to_owned())
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse::<f64>();
    number.ok().filter(|it| *it >= 0.0).ok_or_else(|| "write a percentage, such as 5%".to_owned())
}

/// A number that differs from run to run: the standard library's hash keys are random.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
