//! Seqpacket connections: every message comes back as one message, whatever its length, in order,
//! and also over a restart.

use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::bus::{Answer, Bus};
use crate::daemon::{Daemon, Launch};
use crate::ending::Losses;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::place::{Listening, Place};
use crate::tape::Tape;

/// Bytes of the longest message that is echoed.
const LONGEST: usize = 1 << 20;

/// A peer that is connected to the service.
struct Peer(Socket);

impl Peer {
    fn to(service: &SockAddr) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.connect(service).unwrap();
        socket.set_read_timeout(Some(time_limit(20.0))).unwrap();
        socket.set_write_timeout(Some(time_limit(20.0))).unwrap();
        Self(socket)
    }

    fn send(&self, seed: u64, length: usize) {
        assert_eq!(self.0.send(&Tape::new(seed).bytes(0, length)).unwrap(), length);
    }

    fn comes_back(&self, seed: u64, length: usize) {
        let message = self.read().unwrap_or_else(|error| panic!("message {seed}: {error}"));
        assert_eq!(message.len(), length, "message {seed}");
        assert!(message == Tape::new(seed).bytes(0, length), "message {seed} has other bytes");
    }

    fn read(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; LONGEST + 1];
        let length = (&self.0).read(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The configuration of a service at this abstract name.
fn config(name: &str) -> String {
    format!(
        "[server]\nworkers = 2\n[timeouts]\ndrain = \"1m\"\n\
         [[listener]]\nname = \"messages\"\naddress = \"unix-seqpacket:@{name}\"\n"
    )
}

fn address(name: &str) -> SockAddr {
    SockAddr::unix(format!("\0{name}")).unwrap()
}

/// Its listeners for connections, as the status has them.
fn listeners(daemon: &Daemon) -> Vec<Value> {
    let Place::Unix(path) = daemon.admin_place("status") else { panic!("no Unix socket") };
    let mut text = String::new();
    std::os::unix::net::UnixStream::connect(path).unwrap().read_to_string(&mut text).unwrap();
    let mut status: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(status["listeners"].take()).unwrap()
}

fn start(scratch: &Scratch, name: &str) -> Daemon {
    let admin_sockets = vec![("status", Listening::unix(&scratch.path("status")))];
    Launch { config: config(name), admin_sockets, ..Launch::default() }.start()
}

#[test]
fn each_message_comes_back_as_one() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let name = format!("echo-uring-{}", scratch.path("messages").display());
    let daemon = start(&scratch, &name);
    let peer = Peer::to(&address(&name));
    // More than a small buffer holds, and than a large one: as much as the system permits.
    let mut lengths = vec![1, 0, 64, 0, 0, 16_385, 65_537, 212_000];
    peer.0.set_send_buffer_size(2 << 20).unwrap();
    let longest = (peer.0.send_buffer_size().unwrap() - 32).min(LONGEST);
    lengths.extend([longest, 3]);
    for round in 0..3 {
        for (seed, &length) in (round..).zip(&lengths) {
            peer.send(seed, length);
            peer.comes_back(seed, length);
        }
    }
    // Several in flight at once.
    (0..20).for_each(|seed| peer.send(seed, (seed as usize * 37) % 90));
    (0..20).for_each(|seed| peer.comes_back(seed, (seed as usize * 37) % 90));
    let listener = &listeners(&daemon)[0];
    assert_eq!(listener["protocol"], "unix-seqpacket");
    let messages = 3 * lengths.len() as u64 + 20;
    assert_eq!(
        (&listener["messages_received"], &listener["messages_sent"]),
        (&messages.into(), &messages.into())
    );
    drop(peer);
    daemon.stop();
}

/// The end comes after the last message, and an empty message is not the end.
#[test]
fn an_empty_message_does_not_end_a_connection() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let name = format!("echo-uring-{}", scratch.path("ends").display());
    let daemon = start(&scratch, &name);
    for lengths in [&[0, 5, 0][..], &[0, 0], &[]] {
        let peer = Peer::to(&address(&name));
        (0..).zip(lengths).for_each(|(seed, &length)| peer.send(seed, length));
        peer.0.shutdown(std::net::Shutdown::Write).unwrap();
        (0..).zip(lengths).for_each(|(seed, &length)| peer.comes_back(seed, length));
        assert_eq!(peer.read().unwrap(), b"", "the end");
    }
    let closed = |reason: &str| listeners(&daemon)[0]["closed"][reason].as_u64().unwrap();
    wait_until("the ends to be counted", time_limit(10.0), || closed("finished") == 3);
    assert_eq!(listeners(&daemon)[0]["messages_sent"], 5);
    daemon.stop();
}

/// A message too long to be echoed as one ends its own connection, and is counted.
#[test]
fn a_message_that_is_too_long_ends_its_connection() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let name = format!("echo-uring-{}", scratch.path("long").display());
    let daemon = start(&scratch, &name);
    let (peer, other) = (Peer::to(&address(&name)), Peer::to(&address(&name)));
    peer.0.set_send_buffer_size(2 << 20).unwrap();
    if peer.0.send_buffer_size().unwrap() <= LONGEST + 32 {
        // The sysctl net.core.wmem_max forbids such a message here.
        drop((peer, other));
        daemon.stop();
        return;
    }
    peer.send(1, 100);
    peer.comes_back(1, 100);
    peer.send(2, LONGEST + 1);
    let end = peer.read();
    assert!(end.as_ref().is_ok_and(Vec::is_empty) || end.is_err(), "{} bytes", end.unwrap().len());
    let closed = || listeners(&daemon)[0]["closed"]["message-size"].as_u64().unwrap();
    wait_until("the close to be counted", time_limit(10.0), || closed() == 1);
    other.send(3, 100);
    other.comes_back(3, 100);
    drop((peer, other));
    daemon.stop();
}

#[test]
fn descriptors_that_come_along_are_closed() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let name = format!("echo-uring-{}", scratch.path("rights").display());
    let daemon = start(&scratch, &name);
    let peer = Peer::to(&address(&name));
    peer.send(0, 1);
    peer.comes_back(0, 1);
    let before = daemon.process.open_files();
    let file = std::fs::File::open("/dev/null").unwrap();
    let passed = [file.as_raw_fd(); 250];
    for seed in 0..100 {
        let (payload, rights) =
            (Tape::new(seed).bytes(0, 20), [ControlMessage::ScmRights(&passed)]);
        let (fd, payload) = (peer.0.as_raw_fd(), [IoSlice::new(&payload)]);
        let sent = sendmsg::<UnixAddr>(fd, &payload, &rights, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(20));
        peer.comes_back(seed, 20);
    }
    assert_eq!(daemon.process.open_files(), before, "of 25,000 descriptors some are open");
    drop(peer);
    daemon.stop();
}

/// Goal: a restart loses, doubles and joins no message, also if the peer does not read. Method:
/// busy, silent, stalled and half-closed peers on an inherited socket, over two restarts.
#[test]
fn every_message_survives_a_restart() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let bus = Bus::start(&scratch.path("bus"), Answer::Job("restart"));
    let name = format!("echo-uring-{}", scratch.path("restart").display());
    let listening = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    listening.bind(&address(&name)).unwrap();
    listening.listen(64).unwrap();
    let launch = |stored: Vec<OwnedFd>| {
        let strangers = vec![OwnedFd::from(listening.try_clone().unwrap())];
        let config = "[server]\nworkers = 2\n[timeouts]\ndrain = \"1m\"\n".to_owned();
        Launch { bus: bus.address(), strangers, stored, config, ..Launch::default() }.start()
    };
    let daemon = launch(Vec::new());
    let length = |seed: u64| (seed as usize * 131) % 700;
    let silent = Peer::to(&address(&name));
    silent.send(1, 9);
    silent.comes_back(1, 9);
    let stalled = Peer::to(&address(&name));
    stalled.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    // Until neither of the two sockets takes any more.
    let mut written = 0;
    while stalled.0.send(&Tape::new(written).bytes(0, length(written))).is_ok() {
        written += 1;
    }
    assert!(written > 100, "{written} messages fill two sockets");
    stalled.0.shutdown(std::net::Shutdown::Write).unwrap();
    const TOTAL: u64 = 3_000;
    let daemon = thread::scope(|scope| {
        let mut daemon = daemon;
        let busy: Vec<_> = (0..4)
            .map(|_| {
                let peer = Peer::to(&address(&name));
                scope.spawn(move || {
                    for seed in 0..TOTAL {
                        peer.send(seed, length(seed));
                        if seed >= 10 {
                            peer.comes_back(seed - 10, length(seed - 10));
                        }
                    }
                    (TOTAL - 10..TOTAL).for_each(|seed| peer.comes_back(seed, length(seed)));
                })
            })
            .collect();
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(30));
            let (stored, _, lines) = daemon.export();
            assert!(lines.iter().any(|line| line.contains("handed over ")), "{lines:#?}");
            daemon = launch(stored);
        }
        busy.into_iter().for_each(|peer| peer.join().unwrap());
        daemon
    });
    silent.send(2, 0);
    silent.comes_back(2, 0);
    (0..written).for_each(|seed| stalled.comes_back(seed, length(seed)));
    assert_eq!(stalled.read().unwrap(), b"", "the end");
    drop((silent, stalled));
    bus.say(Answer::Job("stop"));
    daemon.signal(Signal::SIGTERM);
    daemon.finish(Losses::None);
}
