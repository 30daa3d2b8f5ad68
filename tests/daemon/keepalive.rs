//! Silent peers: reachable ones stay connected, however many there are and although the network
//! loses packets. Unreachable ones are found within the configured time.
//!
//! To make a peer unreachable, a socket filter (socket(7), SO_ATTACH_FILTER) drops its incoming
//! packets before TCP processes them. This needs neither root nor a firewall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::{SockFilter, Socket};

use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::flow::{self, Ending, Flow, Plan};
use crate::machine::{alone, slowness, time_limit, wait_until};
use crate::place::{Place, come_from, expect_silence, ping};

/// Two seconds of silence, and then four probes at intervals of a second (the shortest).
const KEEPALIVE: &str = "[tcp]\nkeepalive = \"2s\"\n";
const SILENCE: Duration = Duration::from_secs(2);
const PROBES: Duration = Duration::from_secs(4);

/// Drops `percent` of the incoming packets of `socket`, at random.
fn lose(socket: &Socket, percent: u32) {
    // See linux/filter.h: SKF_AD_OFF + SKF_AD_RANDOM, BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_MOD |
    // BPF_K, BPF_JMP | BPF_JGE | BPF_K, BPF_RET | BPF_K.
    let random = (-0x1000_i32 + 56).cast_unsigned();
    let program = [
        SockFilter::new(0x20, 0, 0, random),
        SockFilter::new(0x94, 0, 0, 100),
        SockFilter::new(0x35, 0, 1, percent),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ];
    socket.attach_filter(&program).unwrap();
}

/// Opens `count` connections as quickly as possible; each has been answered once.
fn connect_peers(place: &Place, count: usize) -> Vec<Socket> {
    let connect = |index: usize| {
        let socket = place.socket();
        come_from(&socket, [127, 9, 0, 1 + (index / 2_000) as u8].into());
        place.connect_with(socket)
    };
    (0..count).map(connect).collect()
}

/// Goal: connections that were opened at the same moment stay over several silences, on a network
/// that loses one packet in 100. (The kernel's own timers would send all probes in one burst, and
/// loopback drops packets beyond 1,000.)
#[test]
fn many_silent_peers_stay() {
    let _quiet = alone();
    let daemon = Launch::with_config(KEEPALIVE).start();
    let peers = connect_peers(daemon.place(), 6_000);
    peers.iter().for_each(|socket| assert!(ping(socket, b"hello")));
    peers.iter().for_each(|socket| lose(socket, 1));
    thread::sleep(4 * SILENCE + PROBES);
    for socket in &peers {
        assert!(ping(socket, b"still there?"), "a silent peer was closed");
    }
    drop(peers);
    let remains = daemon.stop();
    assert_eq!(remains.counters.closed, 6_000);
}

/// Goal: an unreachable peer is found after the silence and the probes, and not before, also with a
/// user timeout shorter than the silence. Reachable peers stay.
#[test]
fn dead_peers_are_found_in_time() {
    let _quiet = alone();
    for user_timeout in ["off", "1s"] {
        let config = format!("{KEEPALIVE}user-timeout = \"{user_timeout}\"\n");
        let daemon = Launch::with_config(&config).start();
        let there = connect_peers(daemon.place(), 50);
        there.iter().for_each(|socket| assert!(ping(socket, b"hello")));
        // One lost answer is likely, four in a row are not.
        there.iter().for_each(|socket| lose(socket, 5));
        let gone = connect_peers(daemon.place(), 50);
        gone.iter().for_each(|socket| assert!(ping(socket, b"hello")));
        let since = Instant::now();
        gone.iter().for_each(|socket| lose(socket, 100));
        let before = daemon.process.open_files();
        thread::sleep(
            (SILENCE + PROBES - Duration::from_millis(700)).saturating_sub(since.elapsed()),
        );
        assert_eq!(daemon.process.open_files(), before, "they are closed too early");
        wait_until("the unreachable peers to be closed", time_limit(10.0), || {
            daemon.process.open_files() <= before - gone.len()
        });
        let late = since.elapsed().saturating_sub(SILENCE + PROBES);
        assert!(late < Duration::from_secs_f64(2.0 * slowness()), "{late:?} too late");
        there.iter().for_each(|socket| lose(socket, 0));
        assert!(there.iter().all(|socket| ping(socket, b"still there?")), "{user_timeout}");
        drop((there, gone));
        daemon.stop_with(Losses::Allowed);
    }
}

/// Goal: silent peers cost almost no CPU time, and Unix peers are not probed.
#[test]
fn silent_peers_cost_little() {
    let _quiet = alone();
    let daemon = Launch::with_config("[tcp]\nkeepalive = \"5s\"\n").start();
    let peers = connect_peers(daemon.place(), 2_000);
    peers.iter().for_each(|socket| assert!(ping(socket, b"hello")));
    daemon.process.assert_at_rest(Duration::from_secs(10), "with 2,000 silent peers");
    drop(peers);
    daemon.stop();
}

/// Stops and continues the daemon repeatedly while `act` runs.
fn stop_and_continue(daemon: &Daemon, act: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                daemon.signal(Signal::SIGSTOP);
                thread::sleep(Duration::from_micros(500));
                daemon.signal(Signal::SIGCONT);
                thread::sleep(Duration::from_millis(2));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Goal: no connection with urgent data hangs with unread bytes because the daemon was briefly
/// stopped. (While a signal is pending, a receive at an urgent byte returns nothing, and a
/// multishot receive then keeps sleeping.) Method: stop and continue the daemon hundreds of times.
#[test]
fn urgent_data_survive_a_stop_of_the_daemon() {
    let _quiet = alone();
    let daemon = Launch::with_config("[server]\nworkers = 1\n[tcp]\nkeepalive = \"1s\"\n").start();
    let plan = |seed: u64| {
        let ending = if seed.is_multiple_of(2) { Ending::WithLastByte } else { Ending::AfterEcho };
        Plan { seed, total: 20_000, largest_piece: 300, ending, urgent: true }
    };
    let flows: Vec<Flow> =
        (0..150).map(|seed| Flow::new(daemon.place().connect(), plan(seed))).collect();
    stop_and_continue(&daemon, || {
        assert_eq!(flow::run(flows, time_limit(60.0)), 150 * 20_000);
    });
    let socket = daemon.place().connect();
    expect_silence(&socket, Duration::from_millis(10));
    drop(socket);
    daemon.stop();
}
