//! UDP servers: a correct one, and servers with one kind of fault.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt::UdpGroSegment,
};

/// What a server does wrong, with the datagrams of each flow whose number, counted from 1, is a
/// multiple of `every`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrong {
    /// Nothing: shows that the server is right otherwise.
    Nothing,
    /// It is not echoed.
    Drops { every: u64 },
    /// It is echoed twice.
    Repeats { every: u64 },
    /// It is echoed after the next one.
    Swaps { every: u64 },
    /// One bit is flipped.
    FlipsBit { every: u64, at: usize },
    /// It is cut.
    Truncates { every: u64, to: usize },
    /// It has another byte at its end.
    Extends { every: u64 },
    /// It is echoed from another port.
    AnotherPort { every: u64 },
    /// It is echoed from another address.
    AnotherAddress { every: u64 },
    /// It is echoed after a while.
    Delays { every: u64, by: Duration },
    /// It is echoed to the flow that sent before.
    MixesFlows { every: u64 },
}

impl Wrong {
    fn every(self) -> u64 {
        match self {
            Self::Nothing => u64::MAX,
            Self::Drops { every }
            | Self::Repeats { every }
            | Self::Swaps { every }
            | Self::FlipsBit { every, .. }
            | Self::Truncates { every, .. }
            | Self::Extends { every }
            | Self::AnotherPort { every }
            | Self::AnotherAddress { every }
            | Self::Delays { every, .. }
            | Self::MixesFlows { every } => every,
        }
    }
}

/// A server on one socket, with what it remembers.
struct Server {
    socket: UdpSocket,
    /// For answers from elsewhere.
    other: UdpSocket,
    counts: HashMap<SocketAddr, u64>,
    held: HashMap<SocketAddr, Vec<u8>>,
    before: Option<SocketAddr>,
}

/// Starts a server that does this wrong; returns it as a target. It ends with the test process.
pub(crate) fn datagram_server(wrong: Wrong) -> String {
    datagram_server_on("127.0.0.1", wrong)
}

/// The same on this address.
pub(crate) fn datagram_server_on(address: &str, wrong: Wrong) -> String {
    let socket = UdpSocket::bind(format!("{address}:0")).unwrap();
    // Room for a datagram of each of 200 flows while the machine is busy: the kernel grants twice
    // net.core.rmem_max, but by default no more than once net.core.rmem_default.
    socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
    let other = match wrong {
        Wrong::AnotherAddress { .. } => {
            UdpSocket::bind(("127.0.0.2", socket.local_addr().unwrap().port())).unwrap()
        }
        _ => UdpSocket::bind(format!("{address}:0")).unwrap(),
    };
    let target = format!("udp://{}", socket.local_addr().unwrap());
    let mut server =
        Server { socket, other, counts: HashMap::new(), held: HashMap::new(), before: None };
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, peer) = server.socket.recv_from(&mut buffer).unwrap();
            server.echo(wrong, &buffer[..length], peer);
        }
    });
    target
}

impl Server {
    fn echo(&mut self, wrong: Wrong, bytes: &[u8], peer: SocketAddr) {
        let count = self.counts.entry(peer).or_default();
        *count += 1;
        let before = self.before.replace(peer);
        let mut copy = bytes.to_vec();
        let (mut socket, mut to) = (&self.socket, peer);
        if (*count).is_multiple_of(wrong.every()) {
            match wrong {
                Wrong::Nothing => {}
                Wrong::Drops { .. } => return,
                Wrong::Repeats { .. } => drop(socket.send_to(&copy, to)),
                Wrong::Swaps { .. } => {
                    self.held.insert(peer, copy);
                    return;
                }
                Wrong::FlipsBit { at, .. } => copy[at] ^= 1,
                Wrong::Truncates { to, .. } => copy.truncate(to),
                Wrong::Extends { .. } => copy.push(0),
                Wrong::AnotherPort { .. } | Wrong::AnotherAddress { .. } => socket = &self.other,
                Wrong::Delays { by, .. } => {
                    let socket = socket.try_clone().unwrap();
                    thread::spawn(move || {
                        thread::sleep(by);
                        drop(socket.send_to(&copy, to));
                    });
                    return;
                }
                Wrong::MixesFlows { .. } => to = before.unwrap_or(peer),
            }
        }
        // A client that has closed is ignored.
        drop(socket.send_to(&copy, to));
        if let Some(held) = self.held.remove(&peer) {
            drop(socket.send_to(&held, peer));
        }
    }
}

/// Starts a server that receives and echoes whole bursts (GRO and GSO). It ends with the test
/// process.
pub(crate) fn burst_server() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    setsockopt(&socket, UdpGroSegment, &true).unwrap();
    let target = format!("udp://{}", socket.local_addr().unwrap());
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut control = nix::cmsg_space!(i32);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::empty();
            let received = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                flags,
            );
            let received = received.unwrap();
            let segment = received.cmsgs().unwrap().find_map(|control| match control {
                ControlMessageOwned::UdpGroSegments(bytes) => u16::try_from(bytes).ok(),
                _ => None,
            });
            let (length, peer) = (received.bytes, received.address);
            let segment = segment.as_ref().map(ControlMessage::UdpGsoSegments);
            let burst = [IoSlice::new(&buffer[..length])];
            let controls = segment.as_slice();
            let sent = sendmsg(socket.as_raw_fd(), &burst, controls, flags, peer.as_ref());
            assert_eq!(sent, Ok(length));
        }
    });
    target
}

/// Starts a server that echoes at once, but does nothing from when to when `stall` says, counted
/// from the first datagram of the load, which comes from another port than the one before the run.
/// It ends with the test process.
pub(crate) fn stalling_datagram_server(stall: Range<Duration>) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = format!("udp://{}", socket.local_addr().unwrap());
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let (mut first, mut begin) = (None, None);
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            if *first.get_or_insert(peer) != peer {
                let now = begin.get_or_insert_with(Instant::now).elapsed();
                if stall.contains(&now) {
                    thread::sleep(stall.end - now);
                }
            }
            drop(socket.send_to(&buffer[..length], peer));
        }
    });
    target
}
