//! Peers that are silent: those that are there stay, however many they are and whatever the network
//! loses; those that are gone are found in the promised time.
//!
//! A peer is taken from the network by a socket filter of its own (socket(7), SO_ATTACH_FILTER),
//! which drops what comes for it before TCP sees it. So no root and no firewall is needed.

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

/// Silence, four probes a second apart (the shortest interval), and an answer is waited for.
const KEEPALIVE: &str = "[tcp]\nkeepalive = \"2s\"\n";
const SILENCE: Duration = Duration::from_secs(2);
const PROBES: Duration = Duration::from_secs(4);

/// Drops so many of 100 packets that come for `socket`, by chance.
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

/// So many connections that have each been answered, as quickly as may be.
fn crowd(place: &Place, count: usize) -> Vec<Socket> {
    let connect = |index: usize| {
        let socket = place.socket();
        come_from(&socket, [127, 9, 0, 1 + (index / 2_000) as u8].into());
        place.connect_with(socket)
    };
    (0..count).map(connect).collect()
}

/// Goal: a crowd that came at once stays, over some silences, on a network that loses one packet in
/// 100. (With the kernel's own timers all would be asked in one burst, of which loopback drops what
/// exceeds 1,000.)
#[test]
fn a_silent_crowd_stays() {
    let _quiet = alone();
    let daemon = Launch::with_config(KEEPALIVE).start();
    let crowd = crowd(daemon.place(), 6_000);
    crowd.iter().for_each(|socket| assert!(ping(socket, b"hello")));
    crowd.iter().for_each(|socket| lose(socket, 1));
    thread::sleep(4 * SILENCE + PROBES);
    for socket in &crowd {
        assert!(ping(socket, b"still there?"), "a silent peer was given up");
    }
    drop(crowd);
    let remains = daemon.stop();
    assert_eq!(remains.counters.closed, 6_000);
}

/// Goal: who is gone is found after the silence and the probes, and not before; also with a user
/// timeout that is shorter than the silence, which ends no one who is there.
#[test]
fn who_is_gone_is_found_in_time() {
    let _quiet = alone();
    for user_timeout in ["off", "1s"] {
        let config = format!("{KEEPALIVE}user-timeout = \"{user_timeout}\"\n");
        let daemon = Launch::with_config(&config).start();
        let there = crowd(daemon.place(), 50);
        there.iter().for_each(|socket| assert!(ping(socket, b"hello")));
        // A lost answer is usual then, four in a row are not.
        there.iter().for_each(|socket| lose(socket, 5));
        let gone = crowd(daemon.place(), 50);
        gone.iter().for_each(|socket| assert!(ping(socket, b"hello")));
        let since = Instant::now();
        gone.iter().for_each(|socket| lose(socket, 100));
        let before = daemon.process.open_files();
        thread::sleep(
            (SILENCE + PROBES - Duration::from_millis(700)).saturating_sub(since.elapsed()),
        );
        assert_eq!(daemon.process.open_files(), before, "they are given up too early");
        wait_until("the peers that are gone to be given up", time_limit(10.0), || {
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

/// Goal: silent peers cost next to nothing, and a Unix peer is not asked at all.
#[test]
fn asking_is_cheap() {
    let _quiet = alone();
    let daemon = Launch::with_config("[tcp]\nkeepalive = \"5s\"\n").start();
    let crowd = crowd(daemon.place(), 2_000);
    crowd.iter().for_each(|socket| assert!(ping(socket, b"hello")));
    daemon.process.assert_at_rest(Duration::from_secs(10), "with 2,000 silent peers");
    drop(crowd);
    daemon.stop();
}

/// Stops and continues the daemon, over and over, while `act` runs.
fn pester(daemon: &Daemon, act: impl FnOnce()) {
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

/// Goal: no connection with urgent data hangs with unread bytes because the daemon was stopped for
/// a moment. (A receive that stands at an urgent byte while a signal is pending finds nothing, and
/// a multishot receive then sleeps on.) Method: stop and continue the daemon hundreds of times.
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
    pester(&daemon, || {
        assert_eq!(flow::run(flows, time_limit(60.0)), 150 * 20_000);
    });
    let socket = daemon.place().connect();
    expect_silence(&socket, Duration::from_millis(10));
    drop(socket);
    daemon.stop();
}
