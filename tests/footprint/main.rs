//! The cost of an idle daemon: memory, wake-ups, and the time until it is ready.
//!
//! The bounds are documented for users and are the constants below; a figure beyond one of them is
//! a failure. The measurements are printed as well (`cargo test --test footprint -- --nocapture`).
//! The daemon is measured from outside, through /proc, with the harness of the black-box suite.
//! `tests/allocations.rs` tests from inside that a message costs no allocation.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

// The harness belongs to a larger suite; this one uses a part of each module.
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/daemon.rs"]
mod daemon;
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/ending.rs"]
mod ending;
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/lines.rs"]
mod lines;
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/machine.rs"]
mod machine;
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/manager.rs"]
mod manager;
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/place.rs"]
mod place;
#[allow(dead_code, reason = "shared with the black-box suite")]
#[path = "../daemon/tape.rs"]
mod tape;

mod idle_connections;
mod waits;
mod wakes;
mod workers;

use std::thread;
use std::time::{Duration, Instant};

use crate::daemon::{Daemon, Launch};
use crate::idle_connections::{IdleConnections, room};
use crate::machine::{alone, slowness};
use crate::waits::Unused;
use crate::wakes::Wakes;

/// Process memory of one idle connection, in bytes: the tables of a connection are 65 (44 in the
/// core, 12 for its timer, 8 in the driver, 1 for the time of its last keepalive probe).
const BYTES_PER_CONNECTION_MAX: f64 = 67.0;

/// Process memory of a ready daemon with two workers, in bytes.
const FIXED_BYTES_MAX: u64 = 8 << 20;

/// From the start of the process to READY=1.
const READY_MAX: Duration = Duration::from_millis(20);

/// How often an idle thread may wake in a second.
const WAKES_PER_SECOND_MAX: f64 = 1.0;

/// How much of the idle time of the processors may be accounted as waiting for I/O.
const WAITING_MAX: f64 = 0.2;

/// The range of connections over which the slope of memory is measured. Below it the steps in which
/// memory is allocated would dominate.
const SLOPE: (usize, usize) = (1_000, 19_000);

/// With fewer connections between the two ends of the slope the page size would dominate the
/// result.
const SLOPE_LENGTH_MIN: usize = 4_000;

/// Connections of a daemon whose wake-ups are counted.
const SLEEPERS: usize = 10_000;

/// How long the wake-ups are counted.
const WATCH: Duration = Duration::from_secs(5);

const TWO_WORKERS: &str = "[server]\nworkers = 2\n";

#[test]
fn an_idle_connection_costs_some_dozen_bytes() {
    let _quiet = alone();
    let daemon = Launch::with_config(TWO_WORKERS).start();
    let upper = SLOPE.1.min(room(&daemon));
    if upper < SLOPE.0 + SLOPE_LENGTH_MIN {
        println!("skipped: the limit on open files leaves room for {upper} connections only");
        return;
    }
    let mut idle = IdleConnections::new(daemon.place());
    idle.grow(SLOPE.0);
    let before = settled_memory(&daemon);
    idle.grow(upper);
    let after = settled_memory(&daemon);
    let slope = (after as f64 - before as f64) / (upper - SLOPE.0) as f64;
    println!("{before} bytes at {}, {after} at {upper}: {slope:.1} a connection", SLOPE.0);
    assert!(slope <= BYTES_PER_CONNECTION_MAX, "{slope:.1} bytes a connection");
    idle.assert_some_answer();
    drop(idle);
    daemon.stop();
}

#[test]
fn a_ready_daemon_takes_at_most_8_mib() {
    let _quiet = alone();
    let daemon = Launch::with_config(TWO_WORKERS).start();
    let bytes = settled_memory(&daemon);
    println!("{} KiB when ready with two workers", bytes / 1024);
    assert!(bytes <= FIXED_BYTES_MAX, "{bytes} bytes");
    daemon.stop();
}

#[test]
fn an_idle_daemon_sleeps() {
    let _quiet = alone();
    let daemon = Launch::with_config(TWO_WORKERS).start();
    let mut idle = IdleConnections::new(daemon.place());
    idle.grow(SLEEPERS.min(room(&daemon)));
    // It may still process the last connections, or have to send a status.
    thread::sleep(Duration::from_millis(1_500));
    let wakes = Wakes::during(daemon.process, WATCH);
    println!("{} idle connections: {wakes:?}", idle.count());
    wakes.assert_at_most(WAKES_PER_SECOND_MAX);
    idle.assert_some_answer();
    drop(idle);
    daemon.stop();
}

/// A watchdog only causes its own wake-ups: those of the main thread to notify it, and those of a
/// worker to show that it completes iterations.
#[test]
fn a_watched_daemon_wakes_for_its_watchdog_alone() {
    let _quiet = alone();
    let interval = Duration::from_secs(2);
    let launch = Launch { watchdog: Some(interval), ..Launch::with_config(TWO_WORKERS) };
    let daemon = launch.start();
    let mut idle = IdleConnections::new(daemon.place());
    idle.grow(SLEEPERS.min(1_000));
    thread::sleep(Duration::from_millis(1_500));
    let wakes = Wakes::during(daemon.process, WATCH);
    println!("with a ping each {:?}: {wakes:?}", interval / 2);
    let pings_per_second = 2.0 / interval.as_secs_f64();
    wakes.assert_at_most(WAKES_PER_SECOND_MAX + pings_per_second);
    drop(idle);
    daemon.stop();
}

/// Goal: top and /proc/pressure/io do not show a wait for a peer as a wait for a disk. Method: with
/// a worker for each processor all idle time would be accounted so. The best of five attempts
/// counts, as other programs may use disks.
#[test]
fn an_idle_daemon_does_not_wait_for_io() {
    let _quiet = alone();
    if !waits_can_be_idle() {
        println!("skipped: before Linux 6.15 a ring that waits is booked as I/O");
        return;
    }
    let workers = thread::available_parallelism().unwrap();
    let daemon = Launch::with_config(&format!("[server]\nworkers = {workers}\n")).start();
    let mut idle = IdleConnections::new(daemon.place());
    idle.grow(10 * workers.get());
    let attempts: Vec<f64> =
        (0..5).map(|_| Unused::during(Duration::from_secs(1)).waiting()).collect();
    println!("part of the unused time that is booked as waiting for I/O: {attempts:.3?}");
    let best = attempts.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(best <= WAITING_MAX, "{attempts:.3?}");
    drop(idle);
    daemon.stop();
}

/// Whether the kernel is Linux 6.15 or later.
fn waits_can_be_idle() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|it: char| !it.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
    (number(), number()) >= (6, 15)
}

/// The best of five attempts counts, as other work of the machine can only delay it.
#[test]
fn it_is_ready_within_20_ms() {
    let _quiet = alone();
    let attempt = |_| {
        let start = Instant::now();
        let daemon = Launch::with_config(TWO_WORKERS).start();
        let ready = daemon.manager.values("READY")[0].0 - start;
        daemon.stop();
        ready
    };
    let attempts: Vec<Duration> = (0..5).map(attempt).collect();
    println!("from start to READY: {attempts:?}");
    let best = attempts.iter().min().unwrap();
    assert!(*best <= READY_MAX.mul_f64(slowness()), "{attempts:?}");
}

/// Its anonymous memory when that no longer changes.
fn settled_memory(daemon: &Daemon) -> u64 {
    let mut last = daemon.process.anonymous_memory();
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(50));
        let now = daemon.process.anonymous_memory();
        if now == last {
            break;
        }
        last = now;
    }
    last
}
