//! Where a server is, over TCP, UDP or a Unix socket, and how a client gets there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::veth;

/// What connections run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP on the loopback interface.
    Tcp,
    /// Unix stream sockets.
    Unix,
    /// UDP on the loopback interface.
    Udp,
    /// UDP over a pair of virtual interfaces, between two network namespaces; see `veth`.
    UdpVeth,
}

/// Where a server listens. Shown in the form that servers are told.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A UDP port.
    Udp(SocketAddr),
}

impl Address {
    /// A free address; a Unix socket gets that name. Another program could bind the port before the
    /// server does; then the server reports that and ends.
    pub(crate) fn free(transport: Transport, name: &str, directory: &Path) -> io::Result<Self> {
        match transport {
            Transport::Tcp => {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(Self::Tcp)
            }
            Transport::Unix => {
                let path = directory.join(format!("{name}.socket"));
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(Self::Unix(path)),
                }
            }
            Transport::Udp => {
                UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(Self::Udp)
            }
            // In the server's namespace there are no other programs.
            Transport::UdpVeth => {
                Ok(Self::Udp((veth::SERVER, fastrand::u16(20_000..30_000)).into()))
            }
        }
    }

    /// The address, if it has one, without its port.
    pub(crate) fn host(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }

    /// The port, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }

    /// A connection, or a connected UDP socket, in blocking mode; over TCP from `source` and with
    /// TCP_NODELAY. Reading gives up after `silence_max`.
    pub(crate) fn connect(&self, source: Ipv4Addr, silence_max: Duration) -> io::Result<Socket> {
        let (domain, kind, address) = match self {
            Self::Tcp(address) => (Domain::IPV4, Type::STREAM, SockAddr::from(*address)),
            Self::Udp(address) => (Domain::IPV4, Type::DGRAM, SockAddr::from(*address)),
            Self::Unix(path) => (Domain::UNIX, Type::STREAM, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, kind, None)?;
        if let Self::Udp(_) = self {
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        if let Self::Tcp(_) = self {
            // The port is found by connect(2), which may take one that is in use towards another
            // destination; bind(2) may not, and would run out of them.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::from((source, 0)).into())?;
            socket.set_tcp_nodelay(true)?;
        }
        socket.set_read_timeout(Some(silence_max))?;
        socket.connect(&address)?;
        Ok(socket)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}
