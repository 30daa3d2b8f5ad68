//! What an echo costs with 1, 2, 8 and 64 workers, counted instruction by instruction: locked
//! instructions, system calls, and cache lines that one worker writes and another one touches.
//!
//! Two CPUs cannot show how 64 workers scale. They can show what a worker does with each echo that
//! would slow down others: with any number of workers it must be nothing. The real daemon is
//! stepped through some echoes (`stepper`), each instruction is decoded (`instructions`), and each
//! access to memory changes which thread would have the cache line (`sharing`). What the kernel
//! does is not counted. That the count can fail is shown by servers that share a line on purpose
//! (`control`).
//!
//! `cargo test --test scaling -- --nocapture` prints the tables.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

// The stage serves a larger suite than this one; each room is used in part.
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

mod control;
mod cost;
mod instructions;
mod names;
mod sharing;
mod stepper;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use socket2::Socket;

use crate::cost::Cost;
use crate::daemon::{Daemon, Launch};
use crate::machine::alone;
use crate::names::Names;
use crate::place::{Listening, ping};
use crate::sharing::Thread;
use crate::stepper::{Recording, Stepper, names};

const WORKERS: [usize; 4] = [1, 2, 8, 64];
/// Echoes that are stepped through, if there are not more workers than half of that.
const ECHOES_MIN: usize = 32;
/// Echoes on each connection before: tables have their size, and the way of receiving is chosen.
const WARM_UP: usize = 10;
/// One io_uring_enter(2) submits the send and waits for the next bytes. Now and then an iteration
/// takes one more.
const CALLS_MAX: f64 = 1.25;
/// How many more instructions an echo may take with many workers than with one.
const GROWTH_MAX: f64 = 1.25;

/// A daemon with a socket for each worker, and as many arenas of malloc(3) as on a machine with a
/// CPU for each: on fewer CPUs several threads would have to share one.
fn start(workers: usize, limits: &str) -> Daemon {
    let listening = Listening::several(workers);
    let config = format!("[server]\nworkers = {workers}\nbuffers = 8\n[limits]\n{limits}");
    let arenas = ["env", "GLIBC_TUNABLES=glibc.malloc.arena_max=512"];
    let wrapper = arenas.map(str::to_owned).to_vec();
    Launch { listening, config, wrapper, ..Launch::default() }.start()
}

fn is_worker(name: &str) -> bool {
    name.starts_with("worker-")
}

fn echo(peer: &Socket) {
    assert!(ping(peer, b"word"));
}

fn attach(daemon: &Daemon) -> Stepper {
    let stepper = Stepper::attach(daemon.process, is_worker);
    stepper.begin();
    stepper
}

/// The instructions that are locked, and those that write a line which another thread touches, for
/// a message.
fn culprits(recording: &Recording, names: &Names) -> String {
    let shared: Vec<_> = recording.lines.iter().filter(|(_, line)| line.is_shared()).collect();
    let writers = shared.iter().flat_map(|(_, line)| &line.writers);
    let functions = names.functions(&recording.locked.keys().chain(writers).copied().collect());
    let mut text = String::new();
    for (instruction, count) in &recording.locked {
        writeln!(text, "{count} locked: {}", functions[instruction]).unwrap();
    }
    for (address, line) in shared {
        let place = names.place(address);
        writeln!(text, "{place}: written {} times, moved {} times", line.writes, line.moves)
            .unwrap();
        for instruction in &line.writers {
            writeln!(text, "    by {}", functions[instruction]).unwrap();
        }
    }
    text
}

/// How often each worker has slept, by its name.
fn sleeps(daemon: &Daemon) -> BTreeMap<String, u64> {
    let sleeps = |(thread, name): (Thread, String)| {
        let path = format!("/proc/{}/task/{thread}/status", daemon.process.0);
        let status = fs::read_to_string(path).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        (name, count.trim().parse().unwrap())
    };
    names(daemon.process).into_iter().filter(|(_, name)| is_worker(name)).map(sleeps).collect()
}

/// A connection to each worker. The kernel chooses the worker of a connection, and who sleeps after
/// each echo on it is the one.
fn one_for_each_worker(daemon: &Daemon, workers: usize) -> Vec<Socket> {
    let mut peers = BTreeMap::new();
    while peers.len() < workers {
        let before = sleeps(daemon);
        let peer = daemon.place().connect();
        (0..WARM_UP).for_each(|_| echo(&peer));
        let after = sleeps(daemon).into_iter();
        let (worker, _) = after.max_by_key(|(name, count)| count - before[name]).unwrap();
        peers.entry(worker).or_insert(peer);
    }
    daemon.process.assert_at_rest(Duration::from_millis(100), "after the warm-up");
    peers.into_values().collect()
}

/// The cost of an echo with this number of workers, and the code that causes it.
fn cost_of_an_echo(workers: usize) -> (Cost, String) {
    let daemon = start(workers, "");
    let peers = one_for_each_worker(&daemon, workers);
    // Each worker has two, so that a line that moves from one to another moves back.
    let count = ECHOES_MIN.max(2 * workers);
    let stepper = attach(&daemon);
    peers.iter().cycle().take(count).for_each(echo);
    let recording = stepper.end(|| echo(&peers[0]));
    let culprits = culprits(&recording, &Names::of(daemon.process));
    drop(peers);
    daemon.stop();
    (Cost::of(&recording, count), culprits)
}

/// Goal: see the head of this file.
#[test]
fn an_echo_shares_nothing_with_other_workers() {
    let _quiet = alone();
    let mut first: Option<Cost> = None;
    for workers in WORKERS {
        let (cost, culprits) = cost_of_an_echo(workers);
        println!("{workers} workers, an echo: {cost}\n{culprits}");
        let first = *first.get_or_insert(cost);
        assert_eq!(cost.locked, 0.0, "{workers} workers: {cost}\n{culprits}");
        assert_eq!(cost.shared, 0.0, "{workers} workers: {cost}\n{culprits}");
        assert!(cost.calls <= CALLS_MAX, "{workers} workers: {cost}");
        let growth = cost.instructions / first.instructions;
        assert!(growth <= GROWTH_MAX, "{workers} workers: {cost}, one: {first}");
    }
}

/// Connections that are stepped through.
const CONNECTIONS: usize = 16;
/// The lock of a shard of the source limiter is taken and released at accept and at close. To wait
/// for it takes more, if two connections overlap.
const LOCKED_IF_LIMITED_MAX: f64 = 5.0;
/// Lines that these two visits of the shard write, if all connections come from one source: 7 to 9,
/// depending on where its tables are in memory.
const SHARED_IF_LIMITED_MAX: f64 = 12.0;

/// What a connection with one echo costs.
fn cost_of_a_connection(workers: usize, limits: &str) -> (Cost, String) {
    let daemon = start(workers, limits);
    let visit = || echo(&daemon.place().connect());
    (0..workers * WARM_UP).for_each(|_| visit());
    daemon.settle();
    let stepper = attach(&daemon);
    for _ in 0..CONNECTIONS {
        visit();
        stepper.settle();
    }
    // It only connects: its first system call ends the recording.
    let mut last = None;
    let recording = stepper.end(|| last = Some(daemon.place().connect()));
    let culprits = culprits(&recording, &Names::of(daemon.process));
    drop(last);
    daemon.stop();
    (Cost::of(&recording, CONNECTIONS), culprits)
}

/// Goal: accept and close touch nothing that workers share, except a shard of the source limiter if
/// sources are limited. Method: all connections come from one source, which is the worst case.
#[test]
fn a_connection_shares_the_source_limiter_alone() {
    let _quiet = alone();
    for workers in [1, 8] {
        let (cost, culprits) = cost_of_a_connection(workers, "");
        println!("{workers} workers, a connection: {cost}\n{culprits}");
        assert_eq!((cost.locked, cost.shared), (0.0, 0.0), "{workers} workers: {cost}\n{culprits}");
        let limits = "max-connections-per-source = 1000\n";
        let (cost, culprits) = cost_of_a_connection(workers, limits);
        println!("{workers} workers, a connection, sources limited: {cost}\n{culprits}");
        assert!(cost.locked <= LOCKED_IF_LIMITED_MAX, "{workers} workers: {cost}\n{culprits}");
        assert!(cost.shared <= SHARED_IF_LIMITED_MAX, "{workers} workers: {cost}\n{culprits}");
    }
}
