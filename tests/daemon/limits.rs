//! Capacity: max-connections and the limit on open files. A connection beyond the capacity waits in
//! the backlog, established and unanswered; none is accepted and then dropped; and a full daemon
//! sleeps.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::daemon::{Daemon, Launch, Remains};
use crate::machine::{in_company, time_limit, wait_until};
use crate::place::{Listening, readable, send_tape};
use crate::tape::Tape;

/// A client that has sent its word and may still be waiting for the answer.
struct Client {
    socket: Socket,
}

impl Client {
    fn connect(daemon: &Daemon, number: usize) -> Self {
        let places = daemon.places();
        let socket = places[number % places.len()].connect();
        send_tape(&socket, Tape::new(9), 0, 32);
        Self { socket }
    }

    /// Whether the answer has arrived. An end instead of an answer is a panic: the connection was
    /// accepted and then dropped.
    fn answered(&self) -> bool {
        if !readable(&self.socket, Duration::ZERO) {
            return false;
        }
        let mut word = [std::mem::MaybeUninit::uninit(); 32];
        let length = self.socket.peek(&mut word).expect("an answer, not a reset");
        assert_ne!(length, 0, "it was accepted and then dropped");
        true
    }
}

fn answered(clients: &[Client]) -> usize {
    clients.iter().filter(|client| client.answered()).count()
}

/// Waits until the number of answered clients has not changed for a while, and returns it.
fn settled(clients: &[Client]) -> usize {
    let start = Instant::now();
    let mut last = (Instant::now(), answered(clients));
    while last.0.elapsed() < Duration::from_millis(700) {
        assert!(start.elapsed() < time_limit(30.0), "the number of answers does not settle");
        thread::sleep(Duration::from_millis(20));
        let now = answered(clients);
        if now != last.1 {
            last = (Instant::now(), now);
        }
    }
    last.1
}

/// Connects twice as many clients as there are slots; then closes the served ones one by one until
/// all have been served.
fn fill_and_empty(
    daemon: Daemon,
    clients: usize,
    places: std::ops::RangeInclusive<usize>,
    may_wait: bool,
) -> Remains {
    let mut clients: Vec<Client> =
        (0..clients).map(|number| Client::connect(&daemon, number)).collect();
    let inside = settled(&clients);
    assert!(places.contains(&inside), "{inside} of {} have a slot", clients.len());
    daemon.process.assert_at_rest(Duration::from_secs(1), "while it is full");

    while !clients.is_empty() {
        let waiting = clients.len() - answered(&clients);
        // One closes; another that waited is answered soon.
        let leaver = clients.iter().position(Client::answered).expect("a client is served");
        drop(clients.swap_remove(leaver));
        let left = Instant::now();
        let served = || clients.len() - answered(&clients) < waiting.max(1);
        while !served() && left.elapsed() < time_limit(1.0) {
            thread::sleep(Duration::from_millis(5));
        }
        // A connection that lost the race of two listeners for the last slot of a worker waits for
        // a slot of this worker, even if another worker has a free one.
        assert!(may_wait || served(), "no client was served when a slot became free");
    }
    assert!(daemon.place().answers(time_limit(10.0)));
    daemon.stop()
}

fn twenty_slots(workers: u32, listeners: usize) {
    let _quiet = in_company();
    let config = format!("[server]\nworkers = {workers}\n[limits]\nmax-connections = 20\n");
    let listening = (0..listeners).map(|_| Listening::ipv4()).collect();
    let daemon = Launch { listening, config, ..Launch::default() }.start();
    fill_and_empty(daemon, 40, 20..=20, workers > 1 && listeners > 1);
}

#[test]
fn twenty_slots_with_one_worker() {
    twenty_slots(1, 1);
}

#[test]
fn twenty_slots_with_two_workers() {
    twenty_slots(2, 1);
}

#[test]
fn twenty_slots_with_two_listeners() {
    twenty_slots(1, 2);
}

#[test]
fn twenty_slots_with_two_workers_and_two_listeners() {
    twenty_slots(2, 2);
}

#[test]
fn one_slot() {
    let _quiet = in_company();
    let config = "[server]\nworkers = 1\n[limits]\nmax-connections = 1\n";
    fill_and_empty(Launch::with_config(config).start(), 4, 1..=1, false);
}

/// Goal: with fewer slots than workers all slots are used, and exhaustion is not reported before it
/// occurs. Method: three workers, one of them without a slot; a reload gives it some.
#[test]
fn fewer_slots_than_workers() {
    let _quiet = in_company();
    let config = |places| format!("[server]\nworkers = 3\n[limits]\nmax-connections = {places}\n");
    let daemon = Launch::with_config(&config(2)).start();
    let none = "capacity exhausted";
    let one = Client::connect(&daemon, 0);
    wait_until("an answer", time_limit(5.0), || one.answered());
    // The daemon checks the counters once a second.
    thread::sleep(Duration::from_millis(2_500));
    assert!(!daemon.log().iter().any(|line| line.contains(none)), "{}", daemon.transcript());
    let clients: Vec<Client> = (0..3).map(|number| Client::connect(&daemon, number)).collect();
    assert_eq!(settled(&clients), 1);
    let line = daemon.lines.wait_for(none, time_limit(5.0));
    assert!(line.contains("exhausted 1 time (2 connections now)"), "{line}");
    assert!(line.ends_with("; raise limits.max-connections"), "{line}");
    fs::write(daemon.config_path(), config(4)).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("all answers", time_limit(5.0), || answered(&clients) == 3);
    drop((one, clients));
    daemon.stop();
}

fn fill_few_files(workers: u32) {
    let _quiet = in_company();
    let launch = Launch::with_config(&format!("[server]\nworkers = {workers}\n"));
    let daemon = Launch { open_files: Some(128), ..launch }.start();
    let left = 128 - daemon.process.open_files();
    // Some are reserved for short use: a notification, opening the log.
    let range = left.saturating_sub(32)..=left;
    let remains = fill_and_empty(daemon, 200, range, false);
    let told = remains.lines.iter().find(|line| line.contains("capacity exhausted")).unwrap();
    assert!(told.contains("; raise LimitNOFILE="), "the limit that it met is not named: {told}");
}

#[test]
fn open_files_run_out_with_one_worker() {
    fill_few_files(1);
}

/// The limit is lowered while the daemon runs, below its capacity: accept fails in the kernel.
#[test]
fn open_files_run_out_after_a_lowered_limit() {
    let _quiet = in_company();
    let daemon = Launch::with_config("[server]\nworkers = 2\n").start();
    let limit = daemon.process.open_files() + 20;
    if !daemon.process.limit_open_files(limit) {
        println!("skipped: prlimit(1) is not here");
        drop(daemon);
        return;
    }
    // An accept that is already armed uses the old limit, once.
    fill_and_empty(daemon, 50, 15..=25, false);
}

#[test]
fn open_files_run_out_with_two_workers() {
    fill_few_files(2);
}
