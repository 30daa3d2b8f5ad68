//! A datagram socket: what it reports about each datagram, and how many the kernel dropped.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::getsockopt_impl;
use nix::sys::socket::sockopt::GetStruct;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::SockRef;

use super::control::{SPACE_GRO, SPACE_IPV4, SPACE_IPV6};
use super::identity::{Address, Facts, Identity, unix_name};
use super::peer;
use echo_core::datagram::{Datagram, Endpoint};
use echo_core::op::{BufferClass, PeerAddr};

/// A UDP or Unix datagram socket that is ready to be served. It has one owner, a worker.
#[derive(Debug)]
pub struct DatagramSocket {
    socket: OwnedFd,
    own: Endpoint,
    pub(super) layout: Layout,
    /// Whether its datagrams begin with a header (PROXY protocol).
    pub(super) headers: bool,
    /// To which no reply is sent.
    names: Arc<UnixNames>,
    /// What datagrams are answered with in place of an echo, and the address that it tells.
    pub(super) identity: Option<(Identity, Address)>,
}

/// Whether the datagrams of a socket begin with a header (PROXY protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramHeaders {
    /// They do not.
    Absent,
    /// They must. Datagrams are not merged, since each has its own header.
    Required,
}

/// The names of the Unix datagram sockets of a process.
#[derive(Debug, Default)]
pub struct UnixNames(Vec<Box<[u8]>>);

impl UnixNames {
    /// The names of those of `sockets` that are Unix sockets and have one.
    pub fn of<'a>(sockets: impl IntoIterator<Item = &'a OwnedFd>) -> Self {
        let addresses = sockets.into_iter().filter_map(|it| SockRef::from(it).local_addr().ok());
        Self(addresses.filter_map(|address| unix_name(&address)).collect())
    }
}

/// `SO_MEMINFO`, up to the dropped datagrams.
#[derive(Clone, Copy, Debug)]
struct MemInfo;

/// `SK_MEMINFO_DROPS` of include/uapi/linux/sock_diag.h.
const DROPS: usize = 8;

getsockopt_impl!(
    MemInfo,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; DROPS + 1],
    GetStruct<[u32; DROPS + 1]>
);

/// What precedes the payload in a buffer (`struct io_uring_recvmsg_out`, io_uring_enter(2)):
/// a header, the sender and control messages, each in as much room as was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Room for the address of the sender.
    pub(super) name: usize,
    /// Room for control messages.
    pub(super) control: usize,
}

/// Room for the name of a Unix socket: `sockaddr_un`.
const UNIX_NAME: usize = 110;
/// Bytes of the header.
pub(super) const HEADER: usize = 16;
/// The longest payload, that of IPv6: 65,535 less the header of UDP.
const PAYLOAD_MAX: usize = 65_527;
/// The size of a buffer: it holds any datagram.
const BUFFER_SIZE: u32 = (HEADER + size_of::<libc::sockaddr_in6>() + SPACE_IPV6 + PAYLOAD_MAX)
    .next_multiple_of(512) as u32;

/// The pool of each worker that has a socket for datagrams. For every load and every size of
/// datagrams, 32 buffers are within 5 % of the best number. More are slower, as they exceed the
/// cache. Unused parts of a buffer take no memory. On Linux 6.1, where a multishot receive has no
/// bound of its own, the pool bounds it.
pub const DATAGRAM_BUFFERS: BufferClass = BufferClass { count: 32, size: BUFFER_SIZE };

impl DatagramSocket {
    /// Prepares a bound socket. No other socket of this process is bound to a Unix name.
    ///
    /// # Errors
    /// As [`DatagramSocket::beside`].
    pub fn new(socket: OwnedFd, headers: DatagramHeaders) -> io::Result<Self> {
        let names = UnixNames::of([&socket]);
        Self::beside(&Arc::new(names), socket, headers)
    }

    /// Prepares a bound socket of a process whose Unix datagram sockets have these `names`.
    ///
    /// On a UDP socket the kernel is told to merge the datagrams of a burst (UDP_GRO), unless each
    /// has its own header, and to report the destination of each datagram if the socket may receive
    /// on several addresses.
    ///
    /// # Errors
    /// If it is not a datagram socket, or the kernel refuses an option.
    pub fn beside(
        names: &Arc<UnixNames>,
        socket: OwnedFd,
        headers: DatagramHeaders,
    ) -> io::Result<Self> {
        let (names, headers) = (Arc::clone(names), headers == DatagramHeaders::Required);
        let address = SockRef::from(&socket).local_addr()?;
        // A receive from a non-blocking socket does not wait, not even in a ring.
        SockRef::from(&socket).set_nonblocking(false)?;
        if address.is_unix() {
            let own = Endpoint { address: PeerAddr::Local, port: 0 };
            // Without room for control messages, descriptors that are sent along do not stay open
            // here.
            let layout = Layout { name: UNIX_NAME, control: 0 };
            return Ok(Self { socket, own, layout, headers: false, names, identity: None });
        }
        let address =
            address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
        // Off as well: an inherited socket may have it on.
        setsockopt(&socket, sockopt::UdpGroSegment, &!headers)?;
        let control = match address {
            SocketAddr::V4(address) if address.ip().is_unspecified() => {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                SPACE_IPV4
            }
            SocketAddr::V6(address) if address.ip().is_unspecified() => {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                // Without it, an IPv6 address that is local only by a route (AnyIP) would be
                // refused as the source of a reply with EINVAL (ip6_datagram_send_ctl). An IPv4
                // address is not refused.
                SockRef::from(&socket).set_freebind_v6(true)?;
                SPACE_IPV6
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => SPACE_GRO,
        };
        let name = match address {
            SocketAddr::V4(_) => size_of::<libc::sockaddr_in>(),
            SocketAddr::V6(_) => size_of::<libc::sockaddr_in6>(),
        };
        let own = match address.ip().is_unspecified() {
            true => PeerAddr::Unknown,
            false => peer::of_address(address),
        };
        let own = Endpoint { address: own, port: address.port() };
        let layout = Layout { name, control };
        Ok(Self { socket, own, layout, headers, names, identity: None })
    }

    /// The same socket, whose datagrams are answered with an identity if one is named. Then none
    /// are merged, since each is answered by itself.
    ///
    /// # Errors
    /// When the kernel refuses an option.
    pub fn with_identity(mut self, identity: Option<Identity>) -> io::Result<Self> {
        let Some(identity) = identity else { return Ok(self) };
        if !self.is_unix() {
            setsockopt(&self.socket, sockopt::UdpGroSegment, &false)?;
        }
        let local = Address::of(&SockRef::from(&self.socket).local_addr()?);
        self.identity = Some((identity, local));
        Ok(self)
    }

    /// What an identity reports of a datagram with this source, which was sent to `local` if the
    /// socket is bound to several addresses.
    pub(super) fn facts(
        &self,
        name: &[u8],
        datagram: &Datagram,
        announced: Option<SocketAddr>,
    ) -> Option<Facts> {
        let (_, bound) = self.identity.as_ref()?;
        let peer = match inet(datagram.source.address, datagram.source.port) {
            Some(address) => Address::Inet(address),
            None => Address::Unix(self.unix_name_of(name).unwrap_or_default().into()),
        };
        let local = match inet(datagram.local, self.own.port) {
            Some(address) => Address::Inet(address),
            None => bound.clone(),
        };
        Some(Facts { peer, announced, local })
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_unix(&self) -> bool {
        self.own.address == PeerAddr::Local
    }

    /// Whether a datagram comes from a Unix socket of this process: its source has this name, as
    /// the kernel reports it.
    pub(super) fn is_ours(&self, name: &[u8]) -> bool {
        let name = self.unix_name_of(name);
        name.is_some_and(|name| self.names.0.iter().any(|ours| **ours == *name))
    }

    /// The name of a Unix socket in an address as the kernel tells it.
    fn unix_name_of<'a>(&self, address: &'a [u8]) -> Option<&'a [u8]> {
        let name = address.get(size_of::<libc::sa_family_t>()..).filter(|_| self.is_unix())?;
        // A path is reported with the NUL at its end.
        Some(match name {
            [first, .., 0] if *first != 0 => &name[..name.len() - 1],
            _ => name,
        })
    }

    /// The address that it is bound to.
    #[must_use]
    pub fn own(&self) -> Endpoint {
        self.own
    }

    /// How many datagrams the kernel has dropped because its receive buffer was full (SO_MEMINFO,
    /// Linux 4.12); counted modulo 2^32 since the socket was made.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub fn kernel_drops(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.socket, MemInfo)?[DROPS])
    }
}

/// Nothing of an address that is not one of IP.
fn inet(address: PeerAddr, port: u16) -> Option<SocketAddr> {
    match address {
        PeerAddr::Unknown | PeerAddr::Local => None,
        PeerAddr::Ipv4(address) => Some((address, port).into()),
        PeerAddr::Ipv6(address) => Some((address, port).into()),
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use socket2::SockAddr;

    use super::*;

    /// Goal: a socket of this process is recognized by the source that the kernel reports for its
    /// datagrams, and no other socket is. Method: paths and abstract names, in the form of a source
    /// address.
    #[test]
    fn our_own_names_are_known() {
        let pid = std::process::id();
        let path = std::env::temp_dir().join(format!("echo-uring-names-{pid}"));
        let by_path = OwnedFd::from(UnixDatagram::bind(&path).unwrap());
        let abstract_name = format!("\0echo-uring-names-{pid}");
        let other =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).unwrap();
        other.bind(&SockAddr::unix(&abstract_name).unwrap()).unwrap();
        let names = Arc::new(UnixNames::of([&by_path, &other.into()]));
        let socket = DatagramSocket::beside(&names, by_path, DatagramHeaders::Absent).unwrap();
        std::fs::remove_file(&path).unwrap();
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        let told = |name: &[u8]| socket.is_ours(&[&family[..], name].concat());
        let path = path.to_str().unwrap();
        assert!(told(format!("{path}\0").as_bytes()) && told(abstract_name.as_bytes()));
        assert!(!told(format!("{path}x\0").as_bytes()) && !told(&abstract_name.as_bytes()[1..]));
        assert!(!told(format!("{abstract_name}\0").as_bytes()), "a NUL is part of a name");
        assert!(!told(b"") && !socket.is_ours(b""));
    }
}
