//! The servers: the real daemon, and a plain one with one kind of fault.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::program::Scratch;
use crate::unix_servers::abstract_name;

/// The daemon of this workspace, built if necessary, in the directory of echo-load.
pub(crate) fn daemon_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_echo-load")).parent().unwrap();
        let profile = match directory.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--quiet", "--locked", "--package", "echo-uring"])
            .args(["--bin", "echo-uring", "--profile", profile])
            .status();
        assert!(built.unwrap().success(), "the daemon could not be built");
        directory.join("echo-uring")
    })
}

/// The daemon on a TCP port and Unix sockets of its own.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) tcp: String,
    pub(crate) unix: String,
    pub(crate) seqpacket: String,
    /// With an abstract name.
    pub(crate) datagram: String,
    _scratch: Scratch,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let scratch = Scratch::new();
        let config = scratch.file("config.toml", "[log]\ntarget = \"stderr\"\n");
        let unix = format!("unix:{}", scratch.path("socket").display());
        let seqpacket = format!("unix-seqpacket:{}", scratch.path("messages").display());
        let datagram = format!("unix-datagram:@{}", abstract_name());
        let mut child = Command::new(daemon_program())
            .arg("--config")
            .arg(config)
            .args(["--listen", "127.0.0.1:0", "--listen", &unix])
            .args(["--listen", &seqpacket, "--listen", &datagram])
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut tcp = None;
        loop {
            let line = lines.next().expect("the daemon ended before it was ready").unwrap();
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let port = rest.split(' ').next().unwrap();
                tcp = Some(format!("tcp://127.0.0.1:{port}"));
            }
            if line.ends_with("ready") {
                break;
            }
        }
        // Later output is ignored, but the pipe must be read.
        thread::spawn(move || lines.for_each(drop));
        Self { child, tcp: tcp.unwrap(), unix, seqpacket, datagram, _scratch: scratch }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a server does wrong. Offsets count the bytes of each connection's stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrong {
    /// Nothing: shows that the server is right otherwise.
    Nothing,
    /// One byte is left out.
    DropsByte { at: usize },
    /// Two neighbouring chunks change places.
    SwapsChunks { at: usize, length: usize },
    /// A chunk that was echoed is echoed again.
    Repeats { at: usize, length: usize },
    /// One bit is flipped.
    FlipsBit { at: usize },
    /// A chunk is exchanged with that of the other connection.
    MixesConnections { at: usize, length: usize },
    /// The stream ends in good order, too soon.
    ClosesAfter { bytes: usize },
    /// The connection is reset.
    ResetsAfter { bytes: usize },
    /// Nothing comes back from some byte on, nor does the stream end.
    FallsSilentAfter { bytes: usize },
    /// Nothing comes back from some byte on; when the client ends its stream, so does the server.
    ForgetsTheRestAfter { bytes: usize },
    /// All is right, but the stream does not end.
    StaysOpen,
    /// All is right, but once it does nothing for a while.
    PausesOnce { after: usize, pause: Duration },
}

/// Chunks that connections leave for each other.
#[derive(Default)]
struct Exchange {
    chunks: Mutex<Vec<(usize, Vec<u8>)>>,
    arrived: Condvar,
}

/// A closed port of 127.0.0.1: the socket is bound to it, so no other program gets it while the
/// socket exists. It never listens, since a child of another test may briefly have a copy of it,
/// and a copy of a listener would accept connections.
pub(crate) fn closed_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Starts a server that does this wrong; returns it as a target. It ends with the test process.
pub(crate) fn wrong_server(wrong: Wrong) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let exchange = Arc::<Exchange>::default();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let exchange = exchange.clone();
            thread::spawn(move || serve(number, stream.unwrap(), wrong, &exchange));
        }
    });
    format!("tcp://{address}")
}

/// Echoes what `output` makes of all received bytes. Failures here are for the client to detect.
fn serve(number: usize, mut stream: TcpStream, wrong: Wrong, exchange: &Exchange) {
    stream.set_nodelay(true).unwrap();
    let (mut came, mut written) = (Vec::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = stream.read(&mut buffer) {
        came.extend_from_slice(&buffer[..length]);
        let answer = output(number, &came, length == 0, wrong, exchange);
        if let Wrong::PausesOnce { after, pause } = wrong
            && written < after
            && answer.len() >= after
        {
            thread::sleep(pause);
        }
        if stream.write_all(&answer[written..]).is_err() {
            return;
        }
        written = answer.len();
        match wrong {
            Wrong::ResetsAfter { bytes } if written == bytes => {
                let linger = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                linger.unwrap();
                return;
            }
            Wrong::ClosesAfter { bytes } if written == bytes => {
                stream.shutdown(Shutdown::Write).unwrap();
                // Continues to read, as closing with unread bytes would be a reset.
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
                return;
            }
            Wrong::FallsSilentAfter { bytes } if written == bytes => {
                thread::sleep(Duration::from_secs(60));
            }
            _ => {}
        }
        if length == 0 {
            if matches!(wrong, Wrong::StaysOpen) {
                thread::sleep(Duration::from_secs(60));
            }
            return;
        }
    }
}

/// Echoes whatever comes on each connection of a listener, until the process ends.
pub(crate) fn echo_on(listener: TcpListener) {
    for stream in listener.incoming() {
        thread::spawn(move || echo(&stream.unwrap(), || {}));
    }
}

/// Echoes on a connection; does `before` before each piece.
fn echo(mut stream: &TcpStream, mut before: impl FnMut()) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                before();
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        }
    }
}

/// Starts a server that echoes at once, but does nothing from when to when `stall` says, counted
/// from the first byte that comes. It ends with the test process.
pub(crate) fn stalling_server(stall: Range<Duration>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let begin = Arc::new(OnceLock::new());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (begin, stall) = (begin.clone(), stall.clone());
            thread::spawn(move || {
                let wait = || {
                    let now = begin.get_or_init(Instant::now).elapsed();
                    if stall.contains(&now) {
                        thread::sleep(stall.end - now);
                    }
                };
                echo(&stream.unwrap(), wait);
            });
        }
    });
    format!("tcp://{address}")
}

/// Starts a server that echoes on the first `count` connections, and on others when one of those
/// has ended. It ends with the test process.
pub(crate) fn serves_some(count: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let free = Arc::new((Mutex::new(count), Condvar::new()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (places, freed) = &*free;
            let mut places = freed.wait_while(places.lock().unwrap(), |it| *it == 0).unwrap();
            *places -= 1;
            let free = free.clone();
            thread::spawn(move || {
                echo(&stream.unwrap(), || {});
                *free.0.lock().unwrap() += 1;
                free.1.notify_one();
            });
        }
    });
    format!("tcp://{address}")
}

/// All that is to be echoed when `came` has come: what was echoed before is a part of it.
fn output(number: usize, came: &[u8], ended: bool, wrong: Wrong, exchange: &Exchange) -> Vec<u8> {
    let mut all = came.to_vec();
    match wrong {
        Wrong::Nothing | Wrong::PausesOnce { .. } | Wrong::StaysOpen => {}
        Wrong::DropsByte { at } if all.len() > at => drop(all.remove(at)),
        Wrong::SwapsChunks { at, length } if all.len() >= at + 2 * length => {
            all[at..at + 2 * length].rotate_left(length);
        }
        Wrong::SwapsChunks { at, .. } if !ended => all.truncate(at),
        Wrong::Repeats { at, length } if all.len() >= at => {
            let chunk = all[at - length..at].to_vec();
            drop(all.splice(at..at, chunk));
        }
        Wrong::FlipsBit { at } if all.len() > at => all[at] ^= 1,
        Wrong::MixesConnections { at, length } if all.len() >= at + length => {
            let other = exchange.swap(number, &all[at..at + length]);
            all[at..at + length].copy_from_slice(&other);
        }
        Wrong::MixesConnections { at, .. } if !ended => all.truncate(at),
        Wrong::ClosesAfter { bytes }
        | Wrong::ResetsAfter { bytes }
        | Wrong::FallsSilentAfter { bytes }
        | Wrong::ForgetsTheRestAfter { bytes } => all.truncate(bytes),
        _ => {}
    }
    all
}

impl Exchange {
    /// Leaves a chunk and takes that of another connection, when there is one.
    fn swap(&self, number: usize, chunk: &[u8]) -> Vec<u8> {
        let mut chunks = self.chunks.lock().unwrap();
        if chunks.iter().all(|(owner, _)| *owner != number) {
            chunks.push((number, chunk.to_vec()));
            self.arrived.notify_all();
        }
        loop {
            if let Some((_, other)) = chunks.iter().find(|(owner, _)| *owner != number) {
                return other.clone();
            }
            chunks = self.arrived.wait(chunks).unwrap();
        }
    }
}
