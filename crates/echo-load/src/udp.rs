//! Sockets over UDP, one for each flow; and for datagram sockets of any family, how several
//! datagrams are sent and received by one system call. It knows nothing of what datagrams contain.
//!
//! Sockets over UDP are not connected, because a connected one would hide datagrams from other
//! addresses than that of the server. A connected one, with another on the same port for the rest,
//! would spare the kernel a route lookup for each send, but that is little: 64 bytes on 64, on
//! 1,000 and on 64 flows with 16 in flight cost 0.94, 0.96 and 0.95 of the CPU, median of five
//! paired runs. Edge-triggered events, with receives until a socket is empty, cost 1.04, 1.01 and
//! 1.02. Linux 6.18.

use std::collections::HashSet;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg,
    recvmsg, send, sendmmsg, sendmsg, sendto, setsockopt, sockopt::UdpGroSegment,
};
use nix::sys::stat::fstat;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
};

use crate::arguments::Plan;

/// The maximum number of datagrams of one system call, besides bursts.
const BATCH: usize = 32;
/// The memory for a datagram or a merged burst of any size.
const ROOM_MAX: usize = 66_048;
/// The memory for a datagram beyond the maximum size that is sent, so that a longer one shows.
const ROOM_EXTRA: usize = 64;
/// What the kernel charges to a socket for each datagram besides its bytes, rounded up.
const OVERHEAD: usize = 1024;
/// The limits of the memory that is requested for the datagrams that wait in a socket.
const RECEIVE_BYTES_MIN: usize = 1 << 18;
const RECEIVE_BYTES_MAX: usize = 1 << 26;

/// Opens the socket of a flow, on a port of its own.
///
/// # Errors
/// When there is no port or no file descriptor left, or the source is not an address of this
/// machine.
pub(crate) fn open(
    plan: &Plan,
    server: SocketAddr,
    source: Option<IpAddr>,
) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0))?;
    socket.set_nonblocking(true)?;
    if plan.dont_fragment {
        match server {
            SocketAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
            SocketAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
        }
    }
    if plan.burst > 1 {
        // Before Linux 5.0 bursts are received datagram by datagram.
        let _ = setsockopt(&socket, UdpGroSegment, &true);
    }
    // Room for twice the datagrams in flight. Without the privilege for more, the limit is
    // net.core.rmem_max.
    let bytes = 2 * plan.depth as usize * (plan.sizes.bytes_max() + OVERHEAD);
    let bytes = bytes.clamp(RECEIVE_BYTES_MIN, RECEIVE_BYTES_MAX);
    set_socket_recv_buffer_size_force(&socket, bytes)
        .or_else(|_| set_socket_recv_buffer_size(&socket, bytes))?;
    Ok(socket)
}

/// The address of this machine from which datagrams to `server` go out, if that is known.
pub(crate) fn local_address(socket: &UdpSocket, server: SocketAddr) -> io::Result<SocketAddr> {
    let bound = socket.local_addr()?;
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    // The socket is not connected, so another one asks the kernel for the route.
    let probe = UdpSocket::bind(SocketAddr::new(bound.ip(), 0))?;
    probe.connect(server)?;
    Ok(SocketAddr::new(probe.local_addr()?.ip(), bound.port()))
}

/// How many datagrams arrived for these sockets that had no room for them. Zero if the kernel does
/// not report it.
pub(crate) fn drops(sockets: &[impl AsFd]) -> u64 {
    let inode = |socket| fstat(socket).ok().map(|status| status.st_ino);
    let inodes: HashSet<u64> = sockets.iter().filter_map(inode).collect();
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"].into_iter();
    let tables = tables.filter_map(|path| fs::read_to_string(path).ok());
    tables.map(|table| drops_in(&table, &inodes)).sum()
}

/// The drops of sockets with these inodes in a table of proc_net(5).
fn drops_in(table: &str, inodes: &HashSet<u64>) -> u64 {
    let drops = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let inode = words.nth(9)?.parse().ok()?;
        if !inodes.contains(&inode) {
            return None;
        }
        words.next_back()?.parse::<u64>().ok()
    };
    table.lines().filter_map(drops).sum()
}

/// A received datagram.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Its place in the memory.
    place: Range<usize>,
    /// Who sent it; none on a connected socket, which receives from the server alone.
    pub(crate) source: Option<SocketAddr>,
    /// Whether it had more bytes than there was memory for.
    pub(crate) is_cut: bool,
}

/// The memory of one thread for sending and receiving.
pub(crate) struct Exchange {
    /// The address of the server; none if the sockets are connected to it.
    server: Option<SocketAddr>,
    /// The same for each datagram of a system call.
    servers: Vec<Option<SockaddrStorage>>,
    /// Whether bursts are received as one.
    merges: bool,
    /// How many datagrams are received by one system call, and the memory for each.
    batch: usize,
    room: usize,
    received: Vec<u8>,
    pub(crate) arrivals: Vec<Arrival>,
    receive_headers: MultiHeaders<SockaddrStorage>,
    send_headers: MultiHeaders<SockaddrStorage>,
    /// The datagrams to be sent, one after another, and the end of each.
    sending: Vec<u8>,
    ends: Vec<usize>,
    /// What each of them begins with, and is not echoed.
    header: Vec<u8>,
    /// Whether the kernel takes bursts as one.
    takes_bursts: bool,
    /// How many bursts it did not take.
    pub(crate) split_bursts: u64,
}

impl Exchange {
    pub(crate) fn new(plan: &Plan, server: Option<SocketAddr>) -> Self {
        let merges = plan.burst > 1;
        let batch = if merges { 1 } else { BATCH.min(plan.depth as usize) };
        let room = match batch {
            1 => ROOM_MAX,
            _ => (plan.sizes.bytes_max() + ROOM_EXTRA).next_multiple_of(64),
        };
        let send_batch = if merges { plan.burst as usize } else { BATCH };
        Self {
            server,
            servers: vec![server.map(SockaddrStorage::from); send_batch],
            merges,
            batch,
            room,
            received: vec![0; batch * room],
            arrivals: Vec::with_capacity(batch),
            receive_headers: MultiHeaders::preallocate(batch, None),
            send_headers: MultiHeaders::preallocate(send_batch, None),
            sending: Vec::new(),
            header: Vec::new(),
            ends: Vec::with_capacity(send_batch),
            takes_bursts: merges,
            split_bursts: 0,
        }
    }

    /// The bytes of an arrival.
    pub(crate) fn bytes(&self, arrival: &Arrival) -> &[u8] {
        &self.received[arrival.place.clone()]
    }

    /// Whether a datagram came from the server.
    pub(crate) fn is_from_server(&self, arrival: &Arrival) -> bool {
        // The flow label and the zone of IPv6 may differ.
        let end = |address: SocketAddr| (address.ip(), address.port());
        arrival.source.map(end) == self.server.map(end)
    }

    /// Receives what waits in a socket, as far as there is memory for it: see `arrivals`.
    ///
    /// # Errors
    /// When the socket has an error.
    pub(crate) fn receive(&mut self, socket: &OwnedFd) -> io::Result<()> {
        self.arrivals.clear();
        let received = match self.merges {
            true => self.receive_burst(socket),
            false => self.receive_batch(socket),
        };
        match received {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }

    fn receive_batch(&mut self, socket: &OwnedFd) -> nix::Result<()> {
        let mut rooms = self.received.chunks_exact_mut(self.room);
        let mut slices: [_; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(rooms.next().unwrap_or_default())]);
        let received = recvmmsg(
            socket.as_raw_fd(),
            &mut self.receive_headers,
            slices[..self.batch].iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        for (index, message) in received.enumerate() {
            let source = message.address.as_ref().and_then(standard);
            let start = index * self.room;
            self.arrivals.push(Arrival {
                place: start..start + message.bytes,
                source,
                is_cut: message.flags.contains(MsgFlags::MSG_TRUNC),
            });
        }
        Ok(())
    }

    /// Receives a datagram, or a burst that was merged into one.
    fn receive_burst(&mut self, socket: &OwnedFd) -> nix::Result<()> {
        // A new header for each call: the kernel leaves the length of the control messages that it
        // wrote, and a second call would have room for no more than that.
        let mut control = nix::cmsg_space!(i32);
        let mut slices = [IoSliceMut::new(&mut self.received)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok(),
            _ => None,
        });
        let (bytes, is_cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC));
        let source = message.address.as_ref().and_then(standard);
        let segment = segment.filter(|segment| *segment > 0).unwrap_or(bytes).max(1);
        // An empty datagram is one as well.
        for start in (0..bytes.max(1)).step_by(segment) {
            let place = start..bytes.min(start + segment);
            self.arrivals.push(Arrival { place, source, is_cut });
        }
        Ok(())
    }

    /// Forgets what was to be sent. What is added from now on begins with `header`.
    pub(crate) fn begin(&mut self, header: &[u8]) {
        self.sending.clear();
        self.ends.clear();
        self.header.clear();
        self.header.extend_from_slice(header);
    }

    /// Whether another datagram can be sent by the same system call.
    pub(crate) fn has_room(&self) -> bool {
        self.ends.len() < self.servers.len()
    }

    /// Adds a datagram of `length` bytes besides its header; returns them, to be written.
    pub(crate) fn add(&mut self, length: usize) -> &mut [u8] {
        self.sending.extend_from_slice(&self.header);
        let start = self.sending.len();
        self.sending.resize(start + length, b'x');
        self.ends.push(start + length);
        &mut self.sending[start..]
    }

    /// The lengths of what was added, without headers.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| end - start - self.header.len())
    }

    /// Sends what was added, and returns how many datagrams were sent.
    ///
    /// # Errors
    /// When the first of them was not sent.
    pub(crate) fn send(&mut self, socket: &OwnedFd) -> nix::Result<usize> {
        if let [_] = self.ends[..] {
            let (socket, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let sent = match &self.servers[0] {
                Some(server) => sendto(socket, &self.sending, server, flags),
                None => send(socket, &self.sending, flags),
            };
            return sent.map(|_| 1);
        }
        if self.takes_bursts {
            match self.send_burst(socket) {
                // The network card cannot divide it, a datagram is larger than the path MTU, or
                // there are too many for this kernel.
                Err(Errno::EMSGSIZE | Errno::EINVAL | Errno::EIO) => self.takes_bursts = false,
                other => return other,
            }
        }
        if self.merges {
            self.split_bursts += 1;
        }
        self.send_batch(socket)
    }

    fn send_burst(&mut self, socket: &OwnedFd) -> nix::Result<usize> {
        let segment = self.ends.first().and_then(|end| u16::try_from(*end).ok());
        let segment = segment.expect("invariant: a burst has datagrams, of at most 65,507 bytes");
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&self.sending)],
            &[ControlMessage::UdpGsoSegments(&segment)],
            MsgFlags::MSG_DONTWAIT,
            self.servers[0].as_ref(),
        );
        sent.map(|_| self.ends.len())
    }

    fn send_batch(&mut self, socket: &OwnedFd) -> nix::Result<usize> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let pieces = starts.zip(&self.ends).map(|(start, end)| &self.sending[start..*end]);
        let slices: Vec<_> = pieces.map(|piece| [IoSlice::new(piece)]).collect();
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut self.send_headers,
            slices.iter(),
            &self.servers,
            [],
            MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(sent.count())
    }
}

/// An address as the standard library has it.
fn standard(address: &SockaddrStorage) -> Option<SocketAddr> {
    let ipv4 = address.as_sockaddr_in().map(|it| SocketAddr::V4((*it).into()));
    ipv4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::V6((*it).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_found_by_inode() {
        let table = "sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt \
                     uid timeout inode ref pointer drops\n\
                     1: 0100007F:0007 00000000:0000 07 00000000:00000000 00:00000000 00000000   \
                     0        0 4711 2 0000000000000000 3\n\
                     2: 0100007F:0008 00000000:0000 07 00000000:00000000 00:00000000 00000000   \
                     0        0 4712 2 0000000000000000 40\n\
                     3: 0100007F:0009 00000000:0000 07 00000000:00000000 00:00000000 00000000   \
                     0        0 4713 2 0000000000000000 500\n";
        assert_eq!(drops_in(table, &HashSet::from([4711, 4713])), 503);
        assert_eq!(drops_in(table, &HashSet::new()), 0);
    }

    /// Goal: a datagram for which there is no room is counted. Method: one socket sends to another,
    /// which does not read.
    #[test]
    fn a_full_socket_has_drops() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets = [socket];
        assert_eq!(drops(&sockets), 0);
        let address = sockets[0].local_addr().unwrap();
        set_socket_recv_buffer_size(&sockets[0], 0).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], address).unwrap();
        }
        assert!((1..100).contains(&drops(&sockets)), "{}", drops(&sockets));
    }
}
