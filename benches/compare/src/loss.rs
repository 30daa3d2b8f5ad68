//! Datagrams at a fixed rate: how many are lost on the way there and back when a server has half of
//! the work that it can do.
//!
//! The rate is that of an open loop: the client does not wait, so a pause of the server causes
//! losses. At half of saturation a server has time to catch up, so a loss means that a buffer was
//! too small for a pause.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::Socket;

use crate::address::{Address, Transport};
use crate::cpu;
use crate::pattern::{Pattern, origin};
use crate::servers::{Entry, Server, Stage};
use crate::steady::Waiting;
use crate::works::Work;

/// What saturates a server.
const SATURATING: &str = "udp-pipeline";

/// How long it is saturated to find its rate.
const SATURATED: Duration = Duration::from_secs(2);

/// Sockets of the client.
const FLOWS: usize = 64;

/// Bytes of a datagram.
const LENGTH: usize = 64;

/// Bytes of the number that a datagram begins with.
const NUMBER: usize = 8;

/// After the last datagram this time may pass before the rest counts as lost.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// The client sends the scheduled datagrams, receives the waiting ones, and then sleeps.
const NAP: Duration = Duration::from_micros(200);

/// How many are sent at most before the client receives.
const BATCH: u64 = 64;

/// Counts what is lost at half of saturation, over loopback.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Servers, or sets of them.
    #[arg(long, value_delimiter = ',', default_values = ["udp-sendto", "udp-mmsg", "echo-uring"])]
    servers: Vec<String>,
    /// How long datagrams are sent to each server.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Datagrams per second, instead of half of what the server can do.
    #[arg(long)]
    rate: Option<u64>,
    /// The daemon's binary.
    #[arg(long, default_value = "target/release/echo-uring")]
    daemon: std::path::PathBuf,
    /// The core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the client.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
}

/// The results of the datagrams.
struct Count {
    sent: u64,
    received: u64,
    /// The longest time between two receives of the client, which may also be delayed.
    pause: Duration,
}

/// Measures each server, and prints a line for it.
pub(crate) fn loss(arguments: &Arguments) -> Result<(), String> {
    cpu::pin(arguments.client_core).map_err(|error| format!("preparing: {error}"))?;
    let scratch = std::env::temp_dir().join(format!("echo-loss-{}", std::process::id()));
    std::fs::create_dir(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let stage = Stage {
        daemon: &arguments.daemon,
        scratch: &scratch,
        core: arguments.server_core,
        far_end: None,
    };
    let outcome = Entry::select(&arguments.servers)?
        .into_iter()
        .try_for_each(|entry| measure(entry, &stage, arguments));
    let _ = std::fs::remove_dir_all(&scratch);
    outcome
}

fn measure(entry: &Entry, stage: &Stage, arguments: &Arguments) -> Result<(), String> {
    let pattern = Pattern::new();
    let start = || entry.start(entry.name.to_owned(), stage, Transport::Udp);
    let rate = match arguments.rate {
        Some(rate) => rate,
        None => saturation(&start()?, &pattern)? / 2,
    };
    let server = start()?;
    let before = server.settled_cpu_time()?;
    let count = run(&server.address, &pattern, rate, Duration::from_secs(arguments.seconds))?;
    let spent = server.settled_cpu_time()?.saturating_sub(before);
    println!(
        "  {:<16} {rate:>7}/s for {} s: {:>9} sent, {} lost; {:.2} µs of CPU per echo, longest pause \
         of the client {:.1} ms",
        server.label,
        arguments.seconds,
        count.sent,
        count.sent - count.received,
        spent.as_secs_f64() * 1e6 / count.received.max(1) as f64,
        count.pause.as_secs_f64() * 1e3
    );
    Ok(())
}

/// Echoes per second at the most.
fn saturation(server: &Server, pattern: &Pattern) -> Result<u64, String> {
    let work = Work::select(&[SATURATING.to_owned()])?[0];
    let mut client = work.client(&server.address, pattern, Waiting::Sleep)?;
    client.slice(SATURATED / 4)?;
    let result = client.slice(SATURATED)?;
    Ok((result.echoes as f64 / result.elapsed.as_secs_f64()) as u64)
}

/// Sends at that rate, to one flow after the other, and counts what comes back.
fn run(address: &Address, pattern: &Pattern, rate: u64, length: Duration) -> Result<Count, String> {
    let open = || -> io::Result<Socket> {
        let socket = address.connect(Ipv4Addr::LOCALHOST, TIME_LIMIT)?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(4 << 20)?;
        Ok(socket)
    };
    let flows: io::Result<Vec<Socket>> = (0..FLOWS).map(|_| open()).collect();
    let flows = flows.map_err(|error| format!("opening flows: {error}"))?;
    let total = rate * length.as_secs();
    let began = Instant::now();
    let mut count = Count { sent: 0, received: 0, pause: Duration::ZERO };
    let (mut looked, mut last) = (began, began);
    while count.received < total && last.elapsed() < TIME_LIMIT {
        let now = Instant::now();
        count.pause = count.pause.max(now - looked);
        looked = now;
        let due = (now.duration_since(began).as_secs_f64() * rate as f64) as u64;
        let due = due.min(total).min(count.sent + BATCH);
        while count.sent < due {
            let flow = count.sent as usize % FLOWS;
            send_one(&flows[flow], pattern, flow, count.sent / FLOWS as u64)
                .map_err(|error| format!("sending: {error}"))?;
            count.sent += 1;
            last = now;
        }
        let before = count.received;
        for (index, flow) in flows.iter().enumerate() {
            count.received += receive_all(flow, pattern, index, count.sent)?;
        }
        if count.received == before && count.sent < due + BATCH {
            thread::sleep(NAP);
        }
    }
    Ok(count)
}

fn send_one(flow: &Socket, pattern: &Pattern, index: usize, number: u64) -> io::Result<()> {
    let mut message = [0; LENGTH];
    let (head, rest) = message.split_at_mut(NUMBER);
    head.copy_from_slice(&number.to_ne_bytes());
    rest.copy_from_slice(pattern.stretch(origin(index) + number, LENGTH - NUMBER));
    // Datagrams without room are lost as well.
    match send(flow.as_raw_fd(), &message, MsgFlags::MSG_DONTWAIT) {
        Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Receives and checks whatever is there.
fn receive_all(flow: &Socket, pattern: &Pattern, index: usize, sent: u64) -> Result<u64, String> {
    let mut buffer = [0; LENGTH + 1];
    let mut received = 0;
    loop {
        match recv(flow.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(LENGTH) => {}
            Ok(count) => return Err(format!("flow {index} gives {count} bytes")),
            Err(Errno::EAGAIN) => return Ok(received),
            Err(error) => return Err(format!("receiving on flow {index}: {error}")),
        }
        let (number, rest) =
            buffer[..LENGTH].split_first_chunk::<NUMBER>().expect("invariant: longer");
        let number = u64::from_ne_bytes(*number);
        let offset = origin(index) + number;
        if number > sent || pattern.stretch(offset, rest.len()) != rest {
            return Err(format!("flow {index} gives other bytes"));
        }
        received += 1;
    }
}
