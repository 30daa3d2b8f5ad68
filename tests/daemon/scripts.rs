//! Requirements of an echo server, as scripts that can be run against any server.
//!
//! Each script is run against the oracle and against the daemon: see the table at the end. A script
//! has a place and must not know which server listens there.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use socket2::Socket;

use crate::daemon::Launch;
use crate::ending::Losses;
use crate::flow::{self, Ending, Flow, Plan};
use crate::machine::{Scratch, alone, in_company, time_limit};
use crate::oracle::Oracle;
use crate::place::{Listening, Place};
use crate::place::{expect_end, expect_tape, ping, read_out, reset, send_tape, stuff};
use crate::tape::{Dice, Tape};

const MIB: u64 = 1024 * 1024;

/// `count` flows of `total` bytes together, each with its own seed, size, pieces and ending.
fn flows(place: &Place, count: u64, total: u64) -> Vec<Flow> {
    let mut dice = Dice::new(count ^ total);
    let share = total / count;
    let mut left = total;
    let plan = |seed: u64| {
        let wanted = if seed + 1 == count { left } else { dice.below(2 * share).min(left) };
        left -= wanted;
        let ending = if dice.below(2) == 0 { Ending::WithLastByte } else { Ending::AfterEcho };
        Plan { seed, total: wanted, largest_piece: MIB, ending, urgent: false }
    };
    (0..count).map(plan).map(|plan| Flow::new(place.connect(), plan)).collect()
}

/// Pieces from 1 byte to 1 MiB over 256 connections, half of which end with their last byte.
fn random_pieces(place: &Place, total: u64) {
    assert_eq!(flow::run(flows(place, 256, total), time_limit(150.0)), total);
}

fn a_tenth_of_a_gibibyte(place: &Place) {
    random_pieces(place, 100 * MIB);
}

fn a_gibibyte(place: &Place) {
    random_pieces(place, 1024 * MIB);
}

/// Words of 1, 2, 3, … bytes there and back, one at a time.
fn growing_words(place: &Place) {
    let socket = place.connect();
    let tape = Tape::new(1);
    let mut at = 0;
    for length in 1..300 {
        send_tape(&socket, tape, at, at + length);
        expect_tape(&socket, tape, at, at + length);
        at += length;
    }
    drop(socket);
}

/// 64 MiB, then a FIN, to a reader that begins a second late: the server must apply backpressure,
/// lose nothing, and remember the FIN.
fn late_reader(place: &Place) {
    let socket = place.connect();
    let tape = Tape::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            send_tape(&socket, tape, 0, 64 * MIB);
            socket.shutdown(Shutdown::Write).unwrap();
        });
        thread::sleep(Duration::from_secs(1));
        expect_tape(&socket, tape, 0, 64 * MIB);
    });
    expect_end(&socket);
}

/// An end at once, after one byte, and after bytes that are read only later.
fn half_closes(place: &Place) {
    for length in [0, 1, 100, 5_000, 200_000] {
        let socket = place.connect();
        let tape = Tape::new(length);
        send_tape(&socket, tape, 0, length);
        socket.shutdown(Shutdown::Write).unwrap();
        thread::sleep(Duration::from_millis(50));
        expect_tape(&socket, tape, 0, length);
        expect_end(&socket);
    }
}

/// A reader that takes 16 KiB every few milliseconds while the sender writes as much as it can.
fn slow_reader(place: &Place) {
    let socket = place.connect_narrow();
    let tape = Tape::new(3);
    let total = 3 * MIB;
    thread::scope(|scope| {
        scope.spawn(|| {
            send_tape(&socket, tape, 0, total);
            socket.shutdown(Shutdown::Write).unwrap();
        });
        for part in 0..total / (16 * 1024) {
            thread::sleep(Duration::from_millis(3));
            expect_tape(&socket, tape, part * 16 * 1024, (part + 1) * 16 * 1024);
        }
    });
    expect_end(&socket);
}

/// Peers that repeatedly stop reading for a while in the middle of bulk: they stall and catch up in
/// turn.
fn stop_and_go(place: &Place) {
    let tape = Tape::new(4);
    let total = 8 * MIB;
    let socket = place.connect_narrow();
    thread::scope(|scope| {
        scope.spawn(|| {
            send_tape(&socket, tape, 0, total);
            socket.shutdown(Shutdown::Write).unwrap();
        });
        let mut at = 0;
        let mut dice = Dice::new(4);
        while at < total {
            let next = (at + dice.size(MIB) as u64).min(total);
            expect_tape(&socket, tape, at, next);
            at = next;
            thread::sleep(Duration::from_millis(dice.below(15)));
        }
    });
    expect_end(&socket);
}

/// Resets in every state of a connection, while others run and must not notice.
fn resets_while_others_run(place: &Place) {
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let others = scope.spawn(|| {
            let total = flow::run(flows(place, 30, 60 * MIB), time_limit(90.0));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            total
        });
        let mut rounds = 0;
        while rounds < 3 || (rounds < 40 && !done.load(std::sync::atomic::Ordering::Relaxed)) {
            resets_in_every_state(place, rounds);
            rounds += 1;
        }
        assert_eq!(others.join().unwrap(), 60 * MIB);
    });
    assert!(place.answers(time_limit(10.0)));
}

fn resets_in_every_state(place: &Place, round: u64) {
    let tape = Tape::new(round);
    // Before the accept, if we are quick.
    reset(place.connect());
    // While it waits for the first byte.
    let silent = place.connect();
    thread::sleep(Duration::from_millis(round % 7));
    reset(silent);
    // With the echo on its way, and unread.
    let unread = place.connect();
    send_tape(&unread, tape, 0, 20_000);
    thread::sleep(Duration::from_millis(round % 5));
    reset(unread);
    // After an exchange.
    let used = place.connect();
    assert!(ping(&used, b"once"));
    reset(used);
    // While its send waits for room.
    let stalled = place.connect_narrow();
    stuff(&stalled, tape, Duration::from_millis(20));
    reset(stalled);
    // After its end, with the echo still to come.
    let ended = place.connect_narrow();
    stuff(&ended, tape, Duration::from_millis(5));
    ended.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(round % 3));
    reset(ended);
    // After its end was answered.
    let answered = place.connect();
    answered.shutdown(Shutdown::Write).unwrap();
    expect_end(&answered);
    reset(answered);
}

/// A peer that closes without reading its echo: its kernel resets. The next one is still served.
fn rude_closes(place: &Place) {
    for round in 0..50 {
        let socket = place.connect();
        send_tape(&socket, Tape::new(round), 0, 1 + round * 1_000);
        drop(socket);
    }
    assert!(place.answers(time_limit(10.0)));
}

/// Every seventh write is urgent. The echo is the whole stream, urgent bytes in their places.
///
/// The script reads while it sends: small writes soon fill a Unix socket, and the server correctly
/// applies backpressure to a peer that only sends.
fn urgent_bytes(place: &Place) {
    let socket = place.connect();
    socket.set_out_of_band_inline(true).unwrap();
    let tape = Tape::new(5);
    let mut dice = Dice::new(5);
    let lengths: Vec<u64> = (0..700).map(|_| dice.size(400) as u64).collect();
    let total = lengths.iter().sum();
    thread::scope(|scope| {
        let reader = scope.spawn(|| expect_tape(&socket, tape, 0, total));
        let mut at = 0;
        for (write, length) in lengths.iter().enumerate() {
            if write % 7 == 6 {
                send_urgent(&socket, &tape.bytes(at, usize::try_from(*length).unwrap()));
            } else {
                send_tape(&socket, tape, at, at + length);
            }
            at += length;
            if write % 50 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        socket.shutdown(Shutdown::Write).unwrap();
        reader.join().expect("the echo is the whole stream");
    });
    expect_end(&socket);
}

fn send_urgent(mut socket: &Socket, bytes: &[u8]) {
    let taken = socket.send_out_of_band(bytes).unwrap();
    socket.write_all(&bytes[taken..]).unwrap();
}

/// Whether Unix sockets of this kernel know urgent bytes (since 5.15, if configured).
fn unix_sockets_know_urgent_bytes() -> bool {
    let (ours, _theirs) = Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    ours.send_out_of_band(b"!").is_ok()
}

fn urgent_bytes_on_a_unix_socket(place: &Place) {
    if unix_sockets_know_urgent_bytes() {
        urgent_bytes(place);
    } else {
        println!("skipped: this kernel has no urgent bytes on Unix sockets");
    }
}

/// A thousand connections one after the other, with a word each.
fn one_after_the_other(place: &Place) {
    for _ in 0..1000 {
        let socket = place.connect();
        assert!(ping(&socket, b"hello"));
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_out(&socket, time_limit(30.0)), (0, Ok(())));
    }
}

fn against_oracle(script: fn(&Place), listening: Listening) {
    let oracle = Oracle::start(listening);
    script(oracle.place());
    oracle.stop();
}

fn against_daemon(script: fn(&Place), listening: Listening, losses: Losses) {
    // Two workers even on one CPU, to find errors between workers.
    let config = "[server]\nworkers = 2\n".to_owned();
    let daemon = Launch { listening: vec![listening], config, ..Launch::default() }.start();
    script(daemon.place());
    daemon.stop_with(losses);
}

macro_rules! table {
    ($($name:ident: $quiet:ident, $losses:ident, $script:ident;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn oracle() {
                let _quiet = $quiet();
                against_oracle(table!(@oracle $script), Listening::ipv4());
            }

            #[test]
            fn oracle_on_a_unix_socket() {
                let _quiet = $quiet();
                let scratch = Scratch::new();
                let listening = Listening::unix(&scratch.path("socket"));
                against_oracle(table!(@unix $script), listening);
            }

            #[test]
            fn daemon() {
                let _quiet = $quiet();
                against_daemon($script, Listening::ipv4(), Losses::$losses);
            }

            #[test]
            fn daemon_on_a_unix_socket() {
                let _quiet = $quiet();
                let scratch = Scratch::new();
                let listening = Listening::unix(&scratch.path("socket"));
                against_daemon(table!(@unix $script), listening, Losses::$losses);
            }
        }
    )*};
    // The oracle needs no gibibyte to prove the script, nor does the second family of sockets.
    (@oracle a_gibibyte) => { a_tenth_of_a_gibibyte };
    (@oracle $script:ident) => { $script };
    (@unix a_gibibyte) => { a_tenth_of_a_gibibyte };
    (@unix urgent_bytes) => { urgent_bytes_on_a_unix_socket };
    (@unix $script:ident) => { $script };
}

table! {
    // test: company it keeps, what may be lost, script
    random_pieces_over_256_connections: alone, None, a_gibibyte;
    words_of_every_size: in_company, None, growing_words;
    late_reader_of_64_mebibytes: in_company, None, late_reader;
    half_close: in_company, None, half_closes;
    reader_that_is_slow: in_company, None, slow_reader;
    reader_that_stops_and_goes: in_company, None, stop_and_go;
    reset_in_every_state: in_company, Allowed, resets_while_others_run;
    close_without_reading: in_company, Allowed, rude_closes;
    urgent_data: in_company, None, urgent_bytes;
    many_in_turn: in_company, None, one_after_the_other;
}

/// The scripts can fail: they detect a server that loses urgent bytes, as most servers do.
#[test]
fn a_server_that_loses_urgent_bytes_is_found_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::Tcp(listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut reader = socket.try_clone().unwrap();
        drop(std::io::copy(&mut reader, &mut socket));
    });
    let verdict = std::panic::catch_unwind(|| urgent_bytes(&place));
    assert!(verdict.is_err(), "urgent bytes were lost, and the script passed");
    server.join().unwrap();
}

/// The scripts can fail: they detect a server that drops one byte in a hundred thousand.
#[test]
fn a_server_that_drops_a_byte_is_found_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::Tcp(listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut kept = vec![0; 100_000];
        std::io::Read::read_exact(&mut socket, &mut kept).unwrap();
        kept.remove(60_000);
        drop(socket.write_all(&kept));
        drop(socket.shutdown(Shutdown::Write));
    });
    let verdict = std::panic::catch_unwind(|| {
        let socket = place.connect();
        send_tape(&socket, Tape::new(6), 0, 100_000);
        expect_tape(&socket, Tape::new(6), 0, 100_000);
    });
    let message = *verdict.unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("byte 60000 differs"), "{message}");
    server.join().unwrap();
}
