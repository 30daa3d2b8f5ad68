//! Storms of peers with everything that makes the kernel wait: small socket buffers, slow readers,
//! early ends, urgent data.
//!
//! For an operation that io_uring cannot finish without blocking it makes a thread of the daemon
//! (`iou-wrk-…`). Peers could cause such threads, so no operation may need one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use socket2::Socket;

use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::flow::{self, Ending, Flow, Plan};
use crate::machine::{Process, Scratch, alone, time_limit};
use crate::oracle::Oracle;
use crate::place::{Listening, Place, reset};

/// Connections at the same time.
const PEERS: u64 = 300;

/// Bytes that each of them sends: many times what the narrow sockets hold.
const BYTES: u64 = 40_000;

const NARROW: &str = "[tcp]\nnodelay = false\nsend-buffer = \"2KiB\"\nreceive-buffer = \"2KiB\"\n";

/// A connection that holds little on its way back.
fn connect(place: &Place, seed: u64) -> Socket {
    let socket = place.socket();
    if !seed.is_multiple_of(4) {
        socket.set_recv_buffer_size(2048 + 512 * (seed as usize % 12)).unwrap();
    }
    place.connect_with(socket)
}

fn storm(places: &[Place]) {
    let flow = |seed: u64| {
        let place = &places[(seed / 2) as usize % places.len()];
        let ending = if seed.is_multiple_of(2) { Ending::WithLastByte } else { Ending::AfterEcho };
        let largest_piece = [200, 3_000, 40_000][seed as usize % 3];
        let urgent = seed % 5 < 2;
        let plan = Plan { seed, total: BYTES, largest_piece, ending, urgent };
        Flow::new(connect(place, seed), plan)
    };
    // Some close in the middle of it.
    let doomed: Vec<Socket> = (0..40).map(|seed| connect(&places[0], seed)).collect();
    for socket in &doomed {
        socket.set_nonblocking(true).unwrap();
        while socket.send(&[7; 4096]).is_ok() {}
    }
    let bytes = flow::run((0..PEERS).map(flow).collect(), time_limit(120.0));
    assert_eq!(bytes, PEERS * BYTES);
    doomed.into_iter().for_each(reset);
}

/// Runs `act` and returns the most threads that the kernel made for the daemon meanwhile.
fn kernel_threads(process: Process, act: impl FnOnce()) -> usize {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            // They end some seconds after their work.
            while !over.load(Ordering::Relaxed) {
                let names = process.names_of_threads();
                most = most.max(names.iter().filter(|name| name.starts_with("iou-")).count());
                thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        over.store(true, Ordering::Relaxed);
        let most = watch.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        most
    })
}

fn weather(config: &str) {
    let scratch = Scratch::new();
    let listening = vec![Listening::ipv4(), Listening::unix(&scratch.path("storm"))];
    let launch = Launch { listening, config: config.to_owned(), ..Launch::default() };
    let daemon: Daemon = launch.start();
    let threads = kernel_threads(daemon.process, || storm(&daemon.places()));
    assert_eq!(threads, 0, "threads that the kernel made for {config:?}");
    daemon.process.assert_at_rest(Duration::from_secs(1), "after a storm");
    daemon.stop_with(Losses::Allowed);
}

#[test]
fn no_storm_makes_a_kernel_thread() {
    let _quiet = alone();
    weather(NARROW);
    weather("[server]\nworkers = 2\n");
}

/// Connections that come and go one by one: workers race for each.
#[test]
fn no_race_for_a_connection_makes_a_kernel_thread() {
    let _quiet = alone();
    let daemon = Launch::with_config("[server]\nworkers = 8\n").start();
    let threads = kernel_threads(daemon.process, || {
        (0..4_000).for_each(|_| reset(daemon.place().connect()));
    });
    assert_eq!(threads, 0);
    daemon.stop();
}

/// The storm is valid: a server with a thread for each peer passes it.
#[test]
fn oracle() {
    let _quiet = alone();
    let listening = Listening::ipv4();
    listening.socket.set_send_buffer_size(2 * 1024).unwrap();
    listening.socket.set_recv_buffer_size(2 * 1024).unwrap();
    let oracle = Oracle::start(listening);
    storm(&[oracle.place().clone()]);
    oracle.stop();
}
