//! Servers that share what a daemon must not share, to prove that the count sees it: a count that
//! could not would pass any daemon.
//!
//! A server is this test's own program, started again with [`KIND`] in its environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use socket2::Socket;

use crate::cost::Cost;
use crate::machine::{Process, alone};
use crate::place::ping;
use crate::stepper::Stepper;

/// Names the kind of the server, in its environment.
const KIND: &str = "ECHO_SCALING_CONTROL";
const ECHOES: usize = 20;

/// A counter in a line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Apart(AtomicU64);

static APART: [Apart; 2] = [Apart(AtomicU64::new(0)), Apart(AtomicU64::new(0))];

/// Two counters in one line.
#[repr(align(64))]
struct Together([AtomicU64; 2]);

static TOGETHER: Together = Together([AtomicU64::new(0), AtomicU64::new(0)]);

/// What a thread of the server counts with each echo.
fn count(kind: &str, thread: usize) {
    let own = match kind {
        "apart" => &APART[thread].0,
        "together" => &TOGETHER.0[thread],
        "locked" => {
            TOGETHER.0[0].fetch_add(1, Ordering::Relaxed);
            return;
        }
        other => panic!("no kind of server: {other}"),
    };
    own.store(own.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn echo(mut stream: TcpStream, kind: &str, thread: usize) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        count(kind, thread);
        stream.write_all(&buffer[..length]).unwrap();
    }
}

/// The server: it serves two connections, each by a thread.
fn serve(kind: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("port {}", listener.local_addr().unwrap().port());
    thread::scope(|scope| {
        for index in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let thread = thread::Builder::new().name(format!("worker-{index}"));
            thread.spawn_scoped(scope, move || echo(stream, kind, index)).unwrap();
        }
    });
}

/// A running server.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(kind: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "control::what_servers_share_is_counted", "--nocapture"])
            .env(KIND, kind)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| line.unwrap().split_once("port ")?.1.parse::<u16>().ok());
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port.unwrap())) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What an echo costs with a server of this kind.
fn measure(kind: &str) -> Cost {
    let _quiet = alone();
    let server = Server::start(kind);
    let connect = |_| Socket::from(TcpStream::connect(server.address).unwrap());
    let peers: Vec<Socket> = (0..2).map(connect).collect();
    let round = || peers.iter().for_each(|peer| assert!(ping(peer, b"word")));
    round();
    let stepper = Stepper::attach(Process(server.child.id()), |name| name.starts_with("worker-"));
    round();
    stepper.begin();
    (0..ECHOES / 2).for_each(|_| round());
    let recording = stepper.end(|| assert!(ping(&peers[0], b"word")));
    Cost::of(&recording, ECHOES)
}

/// Goal: what is shared is counted, and nothing else. The locked instructions that all servers have
/// are those of the C library around each receive and send.
#[test]
fn what_servers_share_is_counted() {
    if let Ok(kind) = std::env::var(KIND) {
        return serve(&kind);
    }
    let (apart, together, locked) = (measure("apart"), measure("together"), measure("locked"));
    println!("counters apart: {apart}\nin one line: {together}\none, locked: {locked}");
    assert_eq!((apart.calls, apart.shared, apart.moves), (2.0, 0.0, 0.0), "{apart}");
    assert_eq!((together.locked, together.shared), (apart.locked, 1.0), "{together}");
    assert_eq!((locked.locked, locked.shared), (apart.locked + 1.0, 1.0), "{locked}");
    // The first access moves nothing.
    assert!(together.moves > 0.9 && locked.moves > 0.9, "{together}\n{locked}");
}
