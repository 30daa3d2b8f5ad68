//! The contents of a state: connections in every phase, as this and earlier versions write them,
//! and descriptors that are not connections.
//!
//! `tests/fixtures/handover` holds a state of each release, recorded from its real daemon by
//! `ECHO_URING_BIN=PATH ECHO_RECORD=VERSION cargo test --test daemon states`.

use std::fs::{self, File};
use std::net::{Shutdown, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use echo_core::op::TransferPhase;
use echo_uring::handover::format::{self, State, Version};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::bundle::Bundle;
use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch, program};
use crate::ending::Losses;
use crate::machine::{Scratch, alone, in_company, time_limit, wait_until};
use crate::place::{Listening, Place, expect_end, expect_tape, ping, readable, send_tape, stuff};
use crate::tape::Tape;

/// No timeouts, since a recorded state has spent a long time in its file.
const PATIENT: &str = "[timeouts]\nidle = \"off\"\nstall = \"off\"\nlifetime = \"off\"\n";

fn read(bytes: &[u8]) -> State {
    format::read(&mut &*bytes, bytes.len() as u64).unwrap()
}

/// Connections in different phases.
struct Peers {
    _sockets: Vec<Socket>,
}

/// A state with connections of two listeners in every phase that can be handed over.
fn varied_state(bus: &Bus, scratch: &Scratch) -> (Vec<u8>, Peers) {
    // Long enough to stall a peer on a slow machine.
    const LIFETIME: Duration = Duration::from_secs(8);
    let config = "[server]\nworkers = 1\n[timeouts]\nlifetime = \"8s\"\n[limits]\n\
                  max-bytes = \"100KiB\"\n[tcp]\nsend-buffer = \"4KiB\"\nreceive-buffer = \"64KiB\"\n";
    let listening = vec![Listening::ipv4(), Listening::unix(&scratch.path("echo"))];
    let config = config.to_owned();
    let daemon = Launch { bus: bus.address(), listening, config, ..Launch::default() }.start();
    let [tcp, unix] = <[Place; 2]>::try_from(daemon.places()).unwrap();
    let while_it_stands_still = |act: &dyn Fn()| {
        daemon.signal(Signal::SIGSTOP);
        wait_until("the daemon to stop", time_limit(5.0), || daemon.process.is_stopped());
        act();
        daemon.signal(Signal::SIGCONT);
    };
    // These two have exceeded the lifetime at the handover. The bytes of the first arrive all at
    // once: bytes that arrive after a short send are relayed, and so never owned by the daemon.
    let flushing = tcp.connect_narrow();
    while_it_stands_still(&|| send_tape(&flushing, Tape::new(1), 0, 40_000));
    let lingering = tcp.connect();
    assert!(ping(&lingering, b"to be ended"));
    let began = Instant::now();
    while began.elapsed() < LIFETIME + Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(readable(&lingering, time_limit(5.0)), "its lifetime does not end");
    let open = unix.connect();
    assert!(ping(&open, b"and stay"));
    let silent = tcp.connect();
    assert!(ping(&silent, b"hush"));
    let slow = unix.connect_narrow();
    stuff(&slow, Tape::new(2), Duration::from_secs(1));
    // Its FIN follows more bytes than the way back has room for.
    let finishing = unix.connect();
    assert!(ping(&finishing, b"so that it is received from"));
    std::thread::sleep(Duration::from_millis(100));
    while_it_stands_still(&|| {
        send_tape(&finishing, Tape::new(3), 0, 40_000);
        finishing.shutdown(Shutdown::Write).unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    let (stored, _, lines) = daemon.export();
    assert!(lines.iter().any(|line| line.contains("handed over 6 connections")), "{lines:#?}");
    let sockets = vec![flushing, lingering, open, silent, slow, finishing];
    (Bundle::open(stored).state, Peers { _sockets: sockets })
}

/// Goal: a real state contains every phase with its data. The fixtures are recorded here.
#[test]
fn a_state_has_every_phase() {
    let _quiet = alone();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let (bytes, _peers) = varied_state(&bus, &scratch);
    if let Some(version) = std::env::var_os("ECHO_RECORD") {
        let mut name = version;
        name.push(".state");
        fs::write(fixtures().join(name), &bytes).unwrap();
    }
    let state = read(&bytes);
    if std::env::var_os("ECHO_URING_BIN").is_none() {
        assert_eq!(state.version, Version::PRESENT);
        assert!(state.head.configuration.contains("max-bytes = \"100KiB\""), "{:?}", state.head);
    }
    assert_has_all(&state);
}

fn assert_has_all(state: &State) {
    let listeners = &state.head.listeners;
    assert_eq!(listeners.len(), 2);
    assert!(listeners[0].starts_with("127.0.0.1:") && listeners[1].starts_with("unix:/"));
    let mut seen: Vec<String> = state
        .records
        .iter()
        .map(|record| {
            let transfer = record.transfer;
            assert_eq!(transfer.unsent as usize, record.unsent.len());
            assert!(transfer.received > 0 && transfer.age_ms > 0, "{transfer:?}");

            format!("{:?} {} {}", transfer.phase, transfer.listener.0, transfer.unsent > 0)
        })
        .collect();
    seen.sort();
    let mut expected = [
        "Open 1 false",
        "Open 0 false",
        "Open 1 true",
        "HalfClosed 1 true",
        "Flushing(Lifetime) 0 true",
        "Lingering(Lifetime) 0 false",
    ];
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/handover")
}

/// Both ends of a connection, the daemon's first.
fn pair(domain: Domain, scratch: &Scratch) -> (Socket, Socket) {
    let listening = match domain {
        Domain::UNIX => Listening::unix(&scratch.path("pair")),
        _ => Listening::ipv4(),
    };
    let peer = listening.place.connect();
    let (ours, _) = listening.socket.accept().unwrap();
    if domain == Domain::UNIX {
        fs::remove_file(scratch.path("pair")).unwrap();
    }
    (ours, peer)
}

/// Goal: an upgrade from each release continues every connection: unsent bytes are sent, ending
/// connections end, open ones echo. Method: the recorded state with new sockets.
#[test]
fn the_states_of_every_release_are_imported() {
    let _quiet = in_company();
    let mut versions = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let state = read(&bytes);
        assert_has_all(&state);
        versions += 1;
        let scratch = Scratch::new();
        let mut peers = Vec::new();
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for record in &state.records {
            let domain = if record.transfer.listener.0 == 0 { Domain::IPV4 } else { Domain::UNIX };
            let (ours, peer) = pair(domain, &scratch);
            if matches!(record.transfer.phase, TransferPhase::Lingering(_)) {
                ours.shutdown(Shutdown::Write).unwrap();
            }
            descriptors.push(ours.into());
            peers.push(peer);
        }
        let stored = vec![Bundle { state: bytes, descriptors }.close()];
        let daemon = Launch { stored, ..Launch::with_config(PATIENT) }.start();
        daemon.lines.wait_for("took over 6 connections", time_limit(5.0));
        for (record, peer) in state.records.iter().zip(&peers) {
            expect_bytes(peer, &record.unsent);
            match record.transfer.phase {
                TransferPhase::Open => {
                    assert!(ping(peer, b"and on"), "{path:?}: {:?}", record.transfer)
                }
                TransferPhase::Preface(_) => panic!("no fixture has connections of proxies"),
                TransferPhase::HalfClosed
                | TransferPhase::Flushing(_)
                | TransferPhase::Lingering(_) => {
                    expect_end(peer);
                }
            }
        }
        drop(peers);
        let remains = daemon.stop();
        assert_eq!(remains.counters.taken_over, 6);
    }
    assert!(versions > 0, "there is no fixture");
}

fn expect_bytes(mut socket: &Socket, expected: &[u8]) {
    let mut found = vec![0; expected.len()];
    std::io::Read::read_exact(&mut socket, &mut found).unwrap();
    assert!(found == expected, "the bytes are not the unsent ones");
}

/// Goal: a descriptor that is not a connected stream socket is closed, the others continue, and the
/// daemon can still be stopped. Method: one of each kind instead of a connection.
#[test]
fn what_is_no_connection_is_not_imported() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let daemon = Launch { bus: bus.address(), ..Launch::with_config(PATIENT) }.start();
    let strangers = strangers();
    let peers: Vec<Socket> = (0..strangers.len() + 4).map(|_| daemon.place().connect()).collect();
    assert!(peers.iter().all(|peer| ping(peer, b"here")));
    let (stored, listening, _) = daemon.export();
    let mut bundle = Bundle::open(stored);
    let count = strangers.len();
    // Their peers are not known; as many peers lose their connection.
    bundle.descriptors.truncate(4);
    bundle.descriptors.extend(strangers);
    let stored = vec![bundle.close()];
    let config = PATIENT.to_owned();
    let daemon =
        Launch { bus: bus.address(), stored, listening, config, ..Launch::default() }.start();
    let line = daemon.lines.wait_for("not connections, the first is", time_limit(5.0));
    // A socket that was never connected is treated as one whose peer has closed.
    let told = format!("warn closed {} descriptors from the previous process: ", count - 1);
    assert!(line.starts_with(&told), "{line}");
    daemon.lines.wait_for("took over 4 connections", time_limit(5.0));
    let alive = peers.iter().filter(|peer| ping(peer, b"still here")).count();
    assert_eq!(alive, 4);
    assert!(daemon.place().answers(time_limit(5.0)));
    drop(peers);
    bus.say(Answer::Job("stop"));
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    daemon.finish(Losses::None);
    assert!(began.elapsed() < time_limit(5.0), "it took {:?} to end", began.elapsed());
}

/// One of each kind of descriptor that is no connection; the last one is a stream socket.
fn strangers() -> Vec<OwnedFd> {
    let (pipe, _) = std::io::pipe().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect(udp.local_addr().unwrap()).unwrap();
    let (packets, _) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
    vec![
        pipe.into(),
        udp.into(),
        connected.into(),
        packets.into(),
        File::open("/dev/null").unwrap().into(),
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0,
        TcpListener::bind("127.0.0.1:0").unwrap().into(),
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().into(),
    ]
}

/// Goal: a downgrade to a program that only reads version 1 loses no connection, and the log says
/// what is lost. Method: the daemon's own file is replaced while it runs, as dpkg does.
#[test]
fn a_state_is_written_for_the_program_that_comes_next() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let older = b"#!/bin/sh\n# no word of what it reads\n".to_vec();
    let same = fs::read(program()).unwrap();
    for (next, version) in
        [(None, Version::PRESENT), (Some(older), Version::V1), (Some(same), Version::PRESENT)]
    {
        let path = scratch.path("echo-uring");
        fs::copy(program(), &path).unwrap();
        let launch = Launch {
            program: Some(path.clone()),
            bus: bus.address(),
            ..Launch::with_config(PATIENT)
        };
        let daemon = launch.start();
        let peer = daemon.place().connect();
        assert!(ping(&peer, b"here"));
        if let Some(next) = &next {
            let unpacked = scratch.path("echo-uring.dpkg-new");
            fs::write(&unpacked, next).unwrap();
            fs::rename(&unpacked, &path).unwrap();
        }
        let (stored, listening, lines) = daemon.export();
        let bundle = Bundle::open(stored);
        assert_eq!(read(&bundle.state).version, version, "{lines:#?}");
        let warned = lines.iter().any(|line| line.starts_with("warn ") && line.contains("older"));
        assert_eq!(warned, version == Version::V1, "{lines:#?}");
        // This program can read that state as well.
        let stored = vec![bundle.close()];
        let config = PATIENT.to_owned();
        let daemon = Launch { stored, listening, config, ..Launch::default() }.start();
        assert!(ping(&peer, b"still here"));
        drop(peer);
        daemon.stop();
    }
}

/// Sends and receives over a connection that has been quiet for longer than 2^32 ms.
#[test]
fn a_silence_of_two_months_is_handed_over() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let daemon = Launch { bus: bus.address(), ..Launch::with_config(PATIENT) }.start();
    let peer = daemon.place().connect();
    send_tape(&peer, Tape::new(1), 0, 10);
    expect_tape(&peer, Tape::new(1), 0, 10);
    let (stored, listening, _) = daemon.export();
    let mut bundle = Bundle::open(stored);
    let mut state = read(&bundle.state);
    let silence = 60 * 24 * 3_600_000;
    let record = &mut state.records[0];
    record.transfer = record.transfer.after(silence);
    state.head.configuration.clear();
    bundle.state.clear();
    let records = [record.as_ref()];
    format::write(Version::PRESENT, &state.head, &records, &mut bundle.state).unwrap();
    let stored = vec![bundle.close()];
    // A timeout of 70 days has not expired, one of 48 days has.
    let config = |idle: &str| format!("[timeouts]\nidle = \"{idle}\"\n");
    let launch = Launch {
        bus: bus.address(),
        stored,
        listening,
        config: config("70d"),
        ..Launch::default()
    };
    let daemon: Daemon = launch.start();
    assert!(!readable(&peer, Duration::from_millis(1500)), "it was ended too early");
    let (stored, listening, _) = daemon.export();
    bus.say(Answer::Job("stop"));
    let launch = Launch {
        bus: bus.address(),
        stored,
        listening,
        config: config("48d"),
        ..Launch::default()
    };
    let daemon = launch.start();
    assert!(readable(&peer, time_limit(10.0)), "its silence was forgotten");
    expect_end(&peer);
    drop(peer);
    daemon.stop();
}
