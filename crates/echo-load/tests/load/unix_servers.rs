//! Servers on seqpacket and Unix datagram sockets: a correct one, and servers with one kind of
//! fault.

use std::collections::HashMap;
use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};

/// What a server does wrong, with the messages of each connection or flow whose number, counted
/// from 1, is a multiple of `every`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrong {
    /// Nothing: shows that the server is right otherwise.
    Nothing,
    /// It comes back as one message with the next.
    Merges { every: u64 },
    /// It comes back as two messages.
    Splits { every: u64 },
    /// It does not come back.
    Drops { every: u64 },
    /// It comes back twice.
    Repeats { every: u64 },
    /// It comes back after the next one.
    Swaps { every: u64 },
    /// One bit is flipped.
    FlipsBit { every: u64, at: usize },
    /// It is cut.
    Truncates { every: u64, to: usize },
    /// It has another byte at its end.
    Extends { every: u64 },
}

impl Wrong {
    fn every(self) -> u64 {
        match self {
            Self::Nothing => u64::MAX,
            Self::Merges { every }
            | Self::Splits { every }
            | Self::Drops { every }
            | Self::Repeats { every }
            | Self::Swaps { every }
            | Self::FlipsBit { every, .. }
            | Self::Truncates { every, .. }
            | Self::Extends { every } => every,
        }
    }
}

/// What a server remembers of a connection or a flow.
#[derive(Default)]
struct Memory {
    count: u64,
    held: Option<Vec<u8>>,
}

impl Memory {
    /// The messages that are sent back for a message.
    fn answers(&mut self, wrong: Wrong, message: &[u8]) -> Vec<Vec<u8>> {
        self.count += 1;
        let mut copy = message.to_vec();
        if let Some(held) = self.held.take() {
            return match wrong {
                Wrong::Merges { .. } => vec![[held, copy].concat()],
                _ => vec![copy, held],
            };
        }
        if !self.count.is_multiple_of(wrong.every()) {
            return vec![copy];
        }
        match wrong {
            Wrong::Nothing => {}
            Wrong::Merges { .. } | Wrong::Swaps { .. } => {
                self.held = Some(copy);
                return Vec::new();
            }
            Wrong::Splits { .. } => {
                let rest = copy.split_off(copy.len() / 2);
                return vec![copy, rest];
            }
            Wrong::Drops { .. } => return Vec::new(),
            Wrong::Repeats { .. } => return vec![copy.clone(), copy],
            Wrong::FlipsBit { at, .. } => copy[at] ^= 1,
            Wrong::Truncates { to, .. } => copy.truncate(to),
            Wrong::Extends { .. } => copy.push(0),
        }
        vec![copy]
    }
}

/// An abstract name that nothing else has.
pub(crate) fn abstract_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("echo-load-test-{}-{count}", std::process::id())
}

/// Starts a seqpacket server that does this wrong; returns it as a target. It ends with the test
/// process.
pub(crate) fn seqpacket_server(wrong: Wrong) -> String {
    let name = abstract_name();
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    listener.bind(&SockAddr::unix(format!("\0{name}")).unwrap()).unwrap();
    listener.listen(128).unwrap();
    thread::spawn(move || {
        loop {
            let (connection, _) = listener.accept().unwrap();
            thread::spawn(move || serve(&connection, wrong));
        }
    });
    format!("unix-seqpacket:@{name}")
}

/// Serves a connection until it ends. Failures here are for the client to detect.
fn serve(connection: &Socket, wrong: Wrong) {
    let mut memory = Memory::default();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let mut reader = connection;
        match reader.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                for answer in memory.answers(wrong, &buffer[..length]) {
                    if connection.send(&answer).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Starts a datagram server that does this wrong; returns it as a target. It ends with the test
/// process.
pub(crate) fn unix_datagram_server(wrong: Wrong) -> String {
    let name = abstract_name();
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    thread::spawn(move || {
        let mut flows: HashMap<Vec<u8>, Memory> = HashMap::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            let name = peer.as_abstract_name().expect("a client has an abstract name");
            let memory = flows.entry(name.to_vec()).or_default();
            for answer in memory.answers(wrong, &buffer[..length]) {
                // A client that has closed is ignored.
                drop(socket.send_to_addr(&answer, &peer));
            }
        }
    });
    format!("unix-datagram:@{name}")
}
