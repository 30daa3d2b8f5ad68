//! Where a server is, over TCP or over a Unix socket, and how a client gets there.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

/// What connections run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP on the loopback interface.
    Tcp,
    /// Unix stream sockets.
    Unix,
}

/// Where a server listens. Shown in the form that servers are told.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// An address nobody serves on; a Unix socket gets that name. Another program could take the
    /// port before the server does; then the server says so and ends.
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
        }
    }

    /// The port, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(address) => Some(address.port()),
            Self::Unix(_) => None,
        }
    }

    /// A connection in blocking mode; over TCP from `source` and with TCP_NODELAY. Reading gives up
    /// after `silence_max`.
    pub(crate) fn connect(&self, source: Ipv4Addr, silence_max: Duration) -> io::Result<Socket> {
        let (domain, address) = match self {
            Self::Tcp(address) => (Domain::IPV4, SockAddr::from(*address)),
            Self::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, Type::STREAM, None)?;
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
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}
