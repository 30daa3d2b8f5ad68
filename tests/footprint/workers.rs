//! The cost of an echo with many workers: system calls and wake-ups of the whole process.
//!
//! Two CPUs cannot show how 64 workers scale. They can show that the cost of an echo does not
//! depend on the number of workers: it makes the same calls and wakes a single thread.

use std::fs;
use std::process::Command;

use crate::daemon::{Daemon, Launch};
use crate::machine::{Scratch, alone, time_limit, wait_until};
use crate::place::{Listening, ping};
use crate::wakes::switches_of_all_threads;

const WORKERS: [usize; 4] = [1, 2, 8, 64];
const ECHOES: u32 = 2_000;
/// One io_uring_enter(2) submits the send and waits for the next bytes.
const CALLS_PER_ECHO_MAX: f64 = 1.1;
/// The worker sleeps until the next bytes, and no other thread wakes.
const WAKES_PER_ECHO_MAX: f64 = 1.1;

/// A daemon with a socket for each worker.
fn start(workers: usize, wrapper: Vec<String>) -> Daemon {
    let listening = Listening::several(workers);
    let config = format!("[server]\nworkers = {workers}\nbuffers = 8\n");
    Launch { listening, config, wrapper, ..Launch::default() }.start()
}

/// Makes `echoes` echoes on one connection.
fn converse(daemon: &Daemon, echoes: u32) {
    let peer = daemon.place().connect();
    for _ in 0..echoes {
        assert!(ping(&peer, b"word"));
    }
}

/// System calls of a whole run with `echoes` echoes; none if they cannot be counted here.
fn calls(workers: usize, echoes: u32) -> Option<u64> {
    let scratch = Scratch::new();
    let path = scratch.path("calls");
    let trial = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        return None;
    }
    let words = ["strace", "-D", "-f", "-qq", "-c", "-o", path.to_str().unwrap()];
    let daemon = start(workers, words.map(str::to_owned).to_vec());
    converse(&daemon, echoes);
    daemon.stop();
    // The tracer writes when the last thread has ended.
    let mut total = None;
    wait_until("the count of system calls", time_limit(10.0), || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line = text.lines().find(|line| line.trim_end().ends_with("total"));
        total = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
        total.is_some()
    });
    total
}

#[test]
fn an_echo_costs_the_same_with_many_workers() {
    let _quiet = alone();
    for workers in WORKERS {
        let daemon = start(workers, Vec::new());
        let before = switches_of_all_threads(daemon.process);
        converse(&daemon, ECHOES);
        let wakes = switches_of_all_threads(daemon.process) - before;
        let wakes = wakes as f64 / f64::from(ECHOES);
        daemon.stop();
        let counted = calls(workers, ECHOES).zip(calls(workers, 0));
        let Some((with, without)) = counted else {
            println!("{workers} workers: {wakes:.3} wake-ups an echo; strace is not here");
            continue;
        };
        let calls = with.saturating_sub(without) as f64 / f64::from(ECHOES);
        println!("{workers} workers: {calls:.3} system calls and {wakes:.3} wake-ups an echo");
        assert!(calls <= CALLS_PER_ECHO_MAX, "{workers} workers: {calls:.3} system calls an echo");
        assert!(wakes <= WAKES_PER_ECHO_MAX, "{workers} workers: {wakes:.3} wake-ups an echo");
    }
}
