//! The senders of datagrams in a history: hosts, forgers and misconfigured machines.

use echo_core::datagram::op::{Header, SocketId};
use echo_core::datagram::{Datagram, Endpoint, REFLECT_SOURCE_PORTS};
use echo_core::op::PeerAddr;

use crate::fake::choice::Choice;
use crate::fake::datagrams::{DatagramKernel, Packet};

/// Number of IPv4 hosts that send. Each is one source by default.
const HOSTS: usize = 4;

/// The senders of one history.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    /// The address of each socket.
    pub(crate) sockets: Vec<Endpoint>,
    /// The probability that a socket gets packets in a turn, in thousandths.
    pub(crate) often: u16,
    /// The maximum number of these packets.
    pub(crate) most: usize,
    /// The probability that a packet is not from host to host, in thousandths.
    pub(crate) odd: u16,
    /// The probability that a packet is a burst, in thousandths.
    pub(crate) bursts: u16,
    /// The longest payload of a datagram.
    pub(crate) length_max: u32,
    /// Whether they are proxies, whose datagrams have headers.
    pub(crate) headers: bool,
    /// Packets that are sent in any case: the turn before which they are sent, counted from 1, and
    /// the destination.
    pub(crate) planned: Vec<(usize, SocketId, Datagram)>,
    /// Packets that may still be drawn.
    pub(crate) left: u64,
    /// Packets so far.
    pub(crate) sent: u64,
}

impl Clients {
    /// Sends the packets of the clients before this turn. Returns whether there were any.
    pub(crate) fn act(&mut self, turn: usize, kernel: &mut DatagramKernel) -> bool {
        let mut acted = false;
        let (now, later) = self.planned.drain(..).partition(|(when, ..)| *when == turn);
        self.planned = later;
        let now: Vec<_> = now;
        for (_, socket, datagram) in now {
            send(&mut self.sent, socket, datagram, kernel);
            acted = true;
        }
        for index in 0..self.sockets.len() {
            if self.left == 0 || !kernel.choice.strikes(self.often) {
                continue;
            }
            for _ in 0..=kernel.choice.below(self.most) {
                let datagram = self.draw(index, &mut kernel.choice);
                self.left -= 1;
                send(&mut self.sent, SocketId(index as u16), datagram, kernel);
                acted = true;
            }
        }
        acted
    }

    fn draw(&self, index: usize, choice: &mut Choice) -> Datagram {
        let own = self.sockets[index];
        let length = 1 + choice.below(self.length_max as usize) as u32;
        let local = match own.address {
            PeerAddr::Unknown => match choice.below(3) {
                0 => PeerAddr::Ipv6(ipv6(7)),
                _ => PeerAddr::Ipv4([10, 0, 0, 250 + choice.below(2) as u8]),
            },
            PeerAddr::Local | PeerAddr::Ipv4(_) | PeerAddr::Ipv6(_) => PeerAddr::Unknown,
        };
        let host = 1 + choice.below(HOSTS) as u8;
        let is_ipv6 = matches!(
            (own.address, local),
            (PeerAddr::Ipv6(_), _) | (PeerAddr::Unknown, PeerAddr::Ipv6(_))
        );
        let address =
            if is_ipv6 { PeerAddr::Ipv6(ipv6(host)) } else { PeerAddr::Ipv4([10, 0, 0, host]) };
        let source = Endpoint { address, port: 40_000 + choice.below(3) as u16 };
        let header = if self.headers { draw_header(choice) } else { Header::Absent };
        let (destination, segment) = (local, 0);
        let mut datagram = Datagram {
            source,
            destination,
            local,
            header,
            length,
            segment,
            truncated: false,
            own: false,
        };
        // Datagrams with headers are not merged.
        if !self.headers && choice.strikes(self.bursts) {
            make_burst(&mut datagram, choice);
        }
        if choice.strikes(self.odd) {
            make_odd(&mut datagram, own, choice);
        }
        datagram
    }
}

/// Of one of the hosts, mostly.
fn draw_header(choice: &mut Choice) -> Header {
    let host = 1 + choice.below(HOSTS) as u8;
    match choice.below(8) {
        0 => Header::Invalid,
        1 => Header::Unannounced,
        2 => Header::Announced(PeerAddr::Ipv6(ipv6(host))),
        _ => Header::Announced(PeerAddr::Ipv4([10, 0, 0, host])),
    }
}

/// Sends the next packet after `sent`.
fn send(sent: &mut u64, socket: SocketId, datagram: Datagram, kernel: &mut DatagramKernel) {
    *sent += 1;
    let payload = vec![*sent as u8; datagram.length as usize];
    kernel.arrive(socket, Packet { serial: *sent, datagram, payload });
}

fn ipv6(host: u8) -> [u8; 16] {
    let mut address = [0; 16];
    (address[0], address[1], address[7], address[15]) = (0x20, 1, host, host);
    address
}

/// Up to six datagrams, the last one as long as the others or shorter.
fn make_burst(datagram: &mut Datagram, choice: &mut Choice) {
    let segment = 1 + choice.below(200) as u16;
    let last = 1 + choice.below(segment.into()) as u32;
    let whole = 1 + choice.below(5) as u32;
    (datagram.segment, datagram.length) = (segment, whole * u32::from(segment) + last);
}

/// A datagram that is not sent from host to host, or is truncated.
fn make_odd(datagram: &mut Datagram, own: Endpoint, choice: &mut Choice) {
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 2, 1);
    match choice.below(14) {
        0 | 1 => (datagram.length, datagram.segment) = (0, 0),
        2 => datagram.truncated = true,
        3 => datagram.source.port = 0,
        4 => datagram.source = Endpoint { address: PeerAddr::Unknown, port: 0 },
        5 => {
            let port = REFLECT_SOURCE_PORTS[choice.below(REFLECT_SOURCE_PORTS.len())];
            datagram.source.port = port;
        }
        6 => {
            let asked = match own.address {
                PeerAddr::Unknown => datagram.local,
                PeerAddr::Local | PeerAddr::Ipv4(_) | PeerAddr::Ipv6(_) => own.address,
            };
            datagram.source = Endpoint { address: asked, port: own.port };
        }
        7 => {
            let first = [0, 224, 239, 240, 255][choice.below(5)];
            datagram.source.address = PeerAddr::Ipv4([first, 0, 0, 1]);
        }
        8 => {
            datagram.source.address = PeerAddr::Ipv6([[0; 16], group][choice.below(2)]);
        }
        9 if own.address == PeerAddr::Unknown => {
            let to_many = [[10, 0, 0, 255], [255; 4], [239, 1, 1, 1]][choice.below(3)];
            datagram.destination = PeerAddr::Ipv4(to_many);
        }
        10 if own.address == PeerAddr::Unknown => {
            (datagram.destination, datagram.local) = (PeerAddr::Ipv6(group), PeerAddr::Ipv6(group));
        }
        11 => datagram.source.address = PeerAddr::Ipv4([127, 0, 0, 1]),
        12 => {
            let mut one = [0; 16];
            one[15] = 1;
            datagram.source.address = PeerAddr::Ipv6(one);
        }
        // A forger, each time with another source.
        _ => {
            let [b, c, d] = [0, 1, 2].map(|_| choice.below(256) as u8);
            datagram.source.address = PeerAddr::Ipv4([100, b, c, d]);
        }
    }
}
