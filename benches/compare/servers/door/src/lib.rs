//! The common set-up of all servers: read arguments, raise the limit on open files, open the
//! listening socket.
//!
//! It must not know how connections are served; in that the servers differ.

use std::io;
use std::net::{SocketAddr, TcpListener};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// What every peer is told.
#[derive(Clone, Copy, Debug, Parser)]
#[command(about = "An echo server, as a peer to be compared with")]
pub struct Arguments {
    /// Address to listen on, such as 127.0.0.1:7777.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Size of a receive buffer, in bytes.
    #[arg(long, default_value_t = 16 * 1024)]
    pub buffer: usize,
}

/// The arguments of this process, with the limit on open files raised as far as it goes.
///
/// # Errors
/// When the limit cannot be read or set. Wrong arguments end the process.
pub fn arguments() -> io::Result<Arguments> {
    let arguments = Arguments::parse();
    use_all_files()?;
    Ok(arguments)
}

/// Raises the limit on open files as far as it goes.
///
/// # Errors
/// When it cannot be read or set.
pub fn use_all_files() -> io::Result<()> {
    let (_, ceiling) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, ceiling, ceiling)?)
}

/// A listening socket in blocking mode at `HOST:PORT` or `unix:PATH`.
///
/// # Errors
/// When there is no such address, or it cannot be had.
pub fn open(address: &str) -> io::Result<Socket> {
    match address.strip_prefix("unix:") {
        Some(path) => listen(Domain::UNIX, &SockAddr::unix(path)?),
        None => {
            let address: SocketAddr = address.parse().map_err(io::Error::other)?;
            listen(Domain::for_address(address), &address.into())
        }
    }
}

/// TCP_NODELAY, which connections inherit, is for TCP alone.
fn listen(domain: Domain, address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if domain != Domain::UNIX {
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

impl Arguments {
    /// A listening socket in blocking mode, with TCP_NODELAY, which its connections inherit.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn listener(&self) -> io::Result<TcpListener> {
        Ok(listen(Domain::for_address(self.listen), &self.listen.into())?.into())
    }
}
