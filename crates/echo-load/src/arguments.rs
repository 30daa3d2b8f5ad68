//! The command line: parses the arguments into a [`Command`]. Only this file knows clap.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::ValueHint;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use echo_ring::output::{complain, print};

use crate::announced::Source;
use crate::size::Sizes;
use crate::status::Status;
use crate::target::{Target, Transport};
use crate::values::{
    SEED_MAX, count, duration, duration_or_zero, interval, percent, rate, seed, share,
};

/// The command to run.
pub(crate) enum Command {
    /// Put load on a server.
    Load(Box<Plan>),
    /// Compare two results.
    Diff(DiffPlan),
}

/// The traffic pattern of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Keep `--depth` messages in flight on each connection
    PingPong,
    /// Bulk transfer: as ping-pong, with long messages
    Stream,
    /// Connect, one echo, close, repeat
    Churn,
    /// Hold the connections open, with occasional messages
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

/// The version of PROXY headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyVersion {
    /// A line of text; not over UDP
    V1,
    /// Binary
    V2,
}

impl ProxyVersion {
    /// The word for it, in tables and in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// The complete parameters of a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    pub(crate) connections: u32,
    pub(crate) threads: u32,
    pub(crate) sizes: Sizes,
    pub(crate) depth: u32,
    /// The number of datagrams that are sent together; 1 over streams.
    pub(crate) burst: u32,
    pub(crate) dont_fragment: bool,
    pub(crate) rate_per_second: Option<f64>,
    pub(crate) duration: Duration,
    pub(crate) warmup: Duration,
    pub(crate) interval: Duration,
    /// The maximum time for a connect or an echo.
    pub(crate) timeout: Duration,
    pub(crate) sources: Vec<IpAddr>,
    /// What connections or datagrams begin with, if they do not begin with a message.
    pub(crate) proxy: Option<ProxyVersion>,
    /// What they announce instead of their own address.
    pub(crate) proxy_source: Option<Source>,
    pub(crate) verify: bool,
    /// The share of the messages and of the time that may be missing, and the share of datagrams
    /// that may be lost, late or reordered.
    pub(crate) tolerance: f64,
    /// Whether connections that the server leaves open are an error.
    pub(crate) require_close: bool,
    pub(crate) seed: u64,
    pub(crate) output: Output,
}

impl Plan {
    /// Whether each message is a datagram, and there are flows instead of connections.
    pub(crate) fn sends_datagrams(&self) -> bool {
        self.target.transport().sends_datagrams()
    }

    /// The word for one of its connections.
    pub(crate) fn noun(&self) -> &'static str {
        if self.sends_datagrams() { "flow" } else { "connection" }
    }
}

/// Output options.
#[derive(Args, Clone, Debug)]
pub(crate) struct Output {
    /// Print the result as one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    /// Print one line of JSON for each interval, and the result as the last
    #[arg(long)]
    pub(crate) json_stream: bool,

    /// Write a histogram of latencies for each interval to FILE (HdrHistogram log, nanoseconds)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) hdr: Option<PathBuf>,

    /// Draw latency by percentile and throughput over time to FILE
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    pub(crate) plot: Option<PathBuf>,

    /// Do not show progress on a terminal
    #[arg(long)]
    pub(crate) no_progress: bool,
}

/// Two results to compare.
#[derive(Args, Clone, Debug)]
pub(crate) struct DiffPlan {
    /// The result to compare with (from --json or --json-stream)
    #[arg(value_name = "A.json", value_hint = ValueHint::FilePath)]
    pub(crate) before: PathBuf,

    /// The result to examine
    #[arg(value_name = "B.json", value_hint = ValueHint::FilePath)]
    pub(crate) after: PathBuf,

    /// Maximum change for the worse
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    pub(crate) threshold: f64,
}

/// The maximum number of datagrams of a burst: UDP_MAX_SEGMENTS of the kernel.
const BURST_MAX: u32 = 128;
/// The maximum size of a datagram over IPv4: 65,535 less the headers of IP and UDP.
pub(crate) const DATAGRAM_MAX: usize = 65_507;
/// The same over IPv6, whose length does not include its own header. Datagrams of Unix sockets are
/// refused beyond it as well.
pub(crate) const DATAGRAM_MAX_IPV6: usize = 65_527;

#[derive(Parser)]
#[command(
    name = "echo-load",
    version,
    about = "Load generator that checks every byte, for any plain echo server",
    after_help = "Exit status: 0 success; 1 wrong or lost echoes; 2 usage error; 3 could not \
                  connect;\n4 incomplete, or worse (diff); 5 output failed. See echo-load(1).",
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
    /// Compare two results; the exit status is 4 if the second is worse
    Diff(DiffPlan),
}

#[derive(Args)]
struct Load {
    /// The server: HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT, unix:PATH, unix-seqpacket:PATH or
    /// unix-datagram:PATH; @NAME is an abstract PATH
    #[arg(value_name = "TARGET", required = true)]
    target: Option<String>,

    /// Traffic pattern of the connections
    #[arg(long, value_enum, default_value_t = Mode::PingPong)]
    mode: Mode,

    /// Total number of connections; of flows, each with a socket of its own, for datagrams
    #[arg(short, long, value_name = "N", default_value = "1",
        value_parser = count::<16_777_216>)]
    connections: u32,

    /// Message size: 64, 4KiB, 64..4KiB (uniform) or 64:90,16KiB:10 (weighted); of
    /// datagrams from 0 to 65507 (IPv6, Unix: 65527) [default: 64; 64KiB for streams]
    #[arg(short, long, value_name = "SIZE")]
    size: Option<Sizes>,

    /// Maximum number of messages in flight per connection [default: 1; 8 for streams;
    /// N with --burst N]
    #[arg(long, value_name = "N", value_parser = count::<65_536>)]
    depth: Option<u32>,

    /// UDP: send N datagrams of a flow by one system call, which the kernel or the network card
    /// divides (GSO) [default: 1]
    #[arg(long, value_name = "N", value_parser = count::<BURST_MAX>)]
    burst: Option<u32>,

    /// UDP: forbid fragmentation; a datagram that is larger than the path MTU is not sent
    #[arg(long)]
    dont_fragment: bool,

    /// Open loop: send N messages per second in total, on a fixed schedule
    /// [default: closed loop; 10 for idle connections]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// Duration of the measurement
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,

    /// Duration of the load before the measurement
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration_or_zero)]
    warmup: Duration,

    /// Number of threads, each with a ring and its share of the connections
    #[arg(long, value_name = "N", default_value = "1", value_parser = count::<1024>)]
    threads: u32,

    /// Connect from ADDRESS; repeatable: used in turn (each address has some 28,000 ports)
    #[arg(long, value_name = "ADDRESS")]
    source: Vec<IpAddr>,

    /// Begin each connection, or over UDP each datagram, with a PROXY header, as a proxy does; the
    /// header is not echoed
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<ProxyVersion>,

    /// Announce ADDRESS (IP or IP:PORT) in PROXY headers, or the addresses of a network
    /// (10.0.0.0/8) in turn [default: that of the connection]
    #[arg(long, value_name = "ADDRESS")]
    proxy_source: Option<Source>,

    /// Count the bytes of the echoes without comparing them
    #[arg(long)]
    no_verify: bool,

    /// Maximum time for a connect or an echo; a datagram without an echo by then is lost
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,

    /// Tolerated share of scheduled messages that were never sent, of the time that a connection
    /// waits for its first echo, and of datagrams that were lost, late or reordered
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    tolerance: f64,

    /// Treat connections that the server leaves open at the end as an error
    #[arg(long)]
    require_close: bool,

    /// Time between reports
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,

    /// Seed for bytes and sizes, to repeat a run [default: random]
    #[arg(long, value_name = "N", value_parser = seed)]
    seed: Option<u64>,

    #[command(flatten)]
    output: Output,
}

/// Parses the arguments of this process. If it prints help, the version or a usage error, `Err`
/// holds the exit status.
pub(crate) fn parse() -> Result<Command, Status> {
    let parsed = Arguments::try_parse().and_then(|Arguments { verb, load }| match verb {
        Some(Verb::Diff(plan)) => Ok(Command::Diff(plan)),
        None => plan(load)
            .map(|plan| Command::Load(Box::new(plan)))
            .map_err(|fault| command().error(ErrorKind::ValueValidation, fault)),
    });
    parsed.map_err(|error| {
        let text = error.to_string();
        if error.use_stderr() {
            complain(text.trim_end());
            return Status::Usage;
        }
        match print(&text) {
            Ok(()) => Status::Fine,
            Err(error) => {
                complain(&format!("echo-load: cannot write to standard output: {error}"));
                Status::Output
            }
        }
    })
}

/// The command line as data, for the tests of completions and manual pages.
pub(crate) fn command() -> clap::Command {
    Arguments::command()
}

fn plan(load: Load) -> Result<Plan, String> {
    let mode = load.mode;
    let target = Target::parse(load.target.as_deref().ok_or("TARGET is missing")?)?;
    let is_stream = mode == Mode::Stream;
    let default_size = if is_stream { "64KiB" } else { "64" };
    let sizes = load.size.clone().map_or_else(|| default_size.parse(), Ok)?;
    check(&load, &target)?;
    match target.transport() {
        Transport::Udp => check_datagrams(&load, &sizes)?,
        Transport::UnixDatagram => {
            check_unix_datagrams(&load)?;
            check_datagrams(&load, &sizes)?;
        }
        Transport::Tcp | Transport::Unix | Transport::UnixSeqpacket => {
            check_connections(&load, &sizes)?;
        }
    }
    let burst = load.burst.unwrap_or(1);
    Ok(Plan {
        target,
        mode,
        connections: load.connections,
        threads: load.threads,
        sizes,
        depth: load.depth.unwrap_or(if is_stream { 8 } else { burst }),
        burst,
        dont_fragment: load.dont_fragment,
        rate_per_second: load.rate.or((mode == Mode::Idle).then_some(10.0)),
        duration: load.duration,
        warmup: load.warmup,
        interval: load.interval,
        timeout: load.timeout,
        sources: load.source,
        proxy: load.proxy_protocol,
        proxy_source: load.proxy_source,
        verify: !load.no_verify,
        tolerance: load.tolerance,
        require_close: load.require_close,
        seed: load.seed.unwrap_or_else(random_seed),
        output: load.output,
    })
}

/// Refuses options that contradict each other over any transport.
fn check(load: &Load, target: &Target) -> Result<(), String> {
    if load.threads > load.connections {
        return Err(format!(
            "--threads {} exceeds --connections {}: each thread needs at least one connection",
            load.threads, load.connections
        ));
    }
    if let Some(source) = load.source.first() {
        if target.transport().is_unix() {
            return Err(format!("--source {source} cannot be used with a Unix socket"));
        }
        if let Some(other) = load.source.iter().find(|it| it.is_ipv4() != source.is_ipv4()) {
            return Err(format!(
                "--source {source} and --source {other} are of different address families"
            ));
        }
    }
    check_proxy(load, target)?;
    if let (Some(hdr), Some(plot)) = (&load.output.hdr, &load.output.plot)
        && is_same_file(hdr, plot)
    {
        return Err(format!("--hdr and --plot are the same file: {}", hdr.display()));
    }
    Ok(())
}

/// Refuses PROXY headers that cannot be sent.
fn check_proxy(load: &Load, target: &Target) -> Result<(), String> {
    match (load.proxy_protocol, &load.proxy_source, target.transport()) {
        (None, Some(source), _) => Err(format!(
            "--proxy-source {source} is announced in PROXY headers: use it with --proxy-protocol"
        )),
        (Some(_), _, Transport::UnixSeqpacket | Transport::UnixDatagram) => Err(
            "--proxy-protocol is for TCP, UDP and unix:PATH: over other Unix sockets no server \
                 expects a header"
                .to_owned(),
        ),
        (Some(ProxyVersion::V1), _, Transport::Udp) => {
            Err("--proxy-protocol v1 is not defined for datagrams: use v2".to_owned())
        }
        (Some(_), None, Transport::Unix) => {
            Err("--proxy-protocol: a Unix socket has no address to \
                                                announce; use --proxy-source"
                .to_owned())
        }
        _ => Ok(()),
    }
}

/// Refuses options that make no sense on connections.
fn check_connections(load: &Load, sizes: &Sizes) -> Result<(), String> {
    if load.mode == Mode::Churn && load.depth.is_some_and(|depth| depth > 1) {
        return Err(
            "--mode churn sends one message on each connection: --depth must be 1".to_owned()
        );
    }
    if sizes.bytes_min() == 0 {
        return Err("--size 0: a connection has no empty messages; use udp://HOST:PORT, \
                    unix-datagram:PATH or a size of at least 1"
            .to_owned());
    }
    if load.burst.is_some() {
        return Err("--burst sends datagrams: use udp://HOST:PORT, or --depth for messages that \
                    are sent together"
            .to_owned());
    }
    if load.dont_fragment {
        return Err("--dont-fragment is for datagrams: use udp://HOST:PORT".to_owned());
    }
    Ok(())
}

/// Refuses options that are for UDP only.
fn check_unix_datagrams(load: &Load) -> Result<(), String> {
    if load.burst.is_some() {
        return Err(
            "--burst: only over UDP the kernel divides what is sent; use --depth".to_owned()
        );
    }
    if load.dont_fragment {
        return Err(
            "--dont-fragment: datagrams of Unix sockets are never fragmented; omit it".to_owned()
        );
    }
    Ok(())
}

/// Refuses options that make no sense without connections.
fn check_datagrams(load: &Load, sizes: &Sizes) -> Result<(), String> {
    let refused = match load.mode {
        Mode::Churn => Some("--mode churn: datagrams need no connections; use -c for flows"),
        Mode::Stream => Some("--mode stream: datagrams are not a stream; use --size and --depth"),
        Mode::PingPong | Mode::Idle if load.require_close => {
            Some("--require-close: datagrams need no connections; omit it")
        }
        Mode::PingPong | Mode::Idle => None,
    };
    if let Some(why) = refused {
        return Err(why.to_owned());
    }
    let largest = sizes.bytes_max();
    if largest > DATAGRAM_MAX_IPV6 {
        return Err(format!(
            "--size {largest}: a datagram has at most {DATAGRAM_MAX} bytes, or \
             {DATAGRAM_MAX_IPV6} over IPv6 and Unix sockets"
        ));
    }
    let Some(burst) = load.burst.filter(|burst| *burst > 1) else { return Ok(()) };
    let Some(size) = sizes.fixed().filter(|size| *size > 0) else {
        return Err(format!(
            "--burst {burst} needs datagrams of one size: use --size with one number of at least 1"
        ));
    };
    if size * burst as usize > DATAGRAM_MAX {
        return Err(format!(
            "--burst {burst}: {burst} datagrams of {size} bytes exceed the {DATAGRAM_MAX} bytes \
             that can be sent together; use --burst {} or less",
            DATAGRAM_MAX / size
        ));
    }
    match load.depth {
        Some(depth) if depth < burst => Err(format!(
            "--depth {depth} is less than --burst {burst}: a burst would never be sent; use at \
             least --depth {burst}, or none"
        )),
        _ => Ok(()),
    }
}

/// Whether both paths name the same file, which need not exist.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        path.canonicalize().or_else(|_| {
            let name = path.file_name().unwrap_or_default();
            let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
            parent.unwrap_or(Path::new(".")).canonicalize().map(|it| it.join(name))
        })
    };
    match (place(one), place(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// A seed that differs from run to run, from the random hash keys of the standard library. It has
/// as many bits as a JSON number can represent.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & SEED_MAX
}
