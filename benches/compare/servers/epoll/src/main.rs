//! The reference: a plain, careful echo server with epoll. One thread, level-triggered, one buffer
//! for all connections; the rest of a short write is kept and sent before more is read.
//!
//! It must stay plain: any optimization would have to be explained with each ratio.
//!
//! Calls per echo: `epoll_wait` (shared by a batch), `recv`, `send`. Sockets stay in blocking mode
//! and every call carries MSG_DONTWAIT, so that an accepted connection costs no call beyond
//! `accept4` and `epoll_ctl`; TCP_NODELAY is inherited from the listener.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use clap::Parser;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::Socket;

/// Events fetched by one wait.
const EVENTS_MAX: usize = 1024;

/// A plain epoll echo server, as a reference.
#[derive(Parser)]
struct Arguments {
    /// Address to listen on, such as 127.0.0.1:7777 or unix:/run/echo.
    #[arg(long)]
    listen: String,
    /// Size of the one receive buffer, in bytes.
    #[arg(long, default_value_t = 16 * 1024)]
    buffer: usize,
}

/// One client, and what it has not taken yet.
struct Connection {
    stream: Socket,
    /// Received but not yet echoed. While there is any, nothing more is read: this is the only
    /// backpressure.
    remainder: Vec<u8>,
}

/// What to do with a connection after an event.
enum Verdict {
    Keep,
    Close,
}

struct Server {
    epoll: Epoll,
    listener: Socket,
    /// By descriptor number: the kernel hands out the lowest free ones, so the table stays dense.
    connections: Vec<Option<Connection>>,
    buffer: Vec<u8>,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    echo_door::use_all_files()?;
    Server::new(&arguments.listen, arguments.buffer)?.run()
}

impl Server {
    fn new(address: &str, buffer_length: usize) -> io::Result<Self> {
        let listener = echo_door::open(address)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, interest(EpollFlags::EPOLLIN, listener.as_raw_fd()))?;
        Ok(Self { epoll, listener, connections: Vec::new(), buffer: vec![0; buffer_length] })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); EVENTS_MAX];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                outcome => outcome?,
            };
            for event in &events[..count] {
                let descriptor = event.data() as RawFd;
                if descriptor == self.listener.as_raw_fd() {
                    self.accept_all()?;
                } else {
                    self.serve(descriptor, event.events());
                }
            }
        }
    }

    fn accept_all(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let descriptor = stream.as_raw_fd();
            self.epoll.add(&stream, interest(EpollFlags::EPOLLIN, descriptor))?;
            let index = descriptor as usize;
            if index >= self.connections.len() {
                self.connections.resize_with(index + 1, || None);
            }
            self.connections[index] = Some(Connection { stream, remainder: Vec::new() });
        }
    }

    fn serve(&mut self, descriptor: RawFd, flags: EpollFlags) {
        let Some(connection) = self.connections[descriptor as usize].as_mut() else { return };
        let verdict = if connection.remainder.is_empty() {
            echo(&self.epoll, connection, &mut self.buffer)
        } else if flags.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR) {
            flush(&self.epoll, connection)
        } else {
            Verdict::Keep
        };
        if matches!(verdict, Verdict::Close) {
            // Closing the only descriptor of a socket takes it out of the epoll set as well.
            self.connections[descriptor as usize] = None;
        }
    }
}

/// Receives once and sends it back; keeps what the peer does not take.
fn echo(epoll: &Epoll, connection: &mut Connection, buffer: &mut [u8]) -> Verdict {
    let descriptor = connection.stream.as_raw_fd();
    let received = match recv(descriptor, buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => return Verdict::Close,
        Ok(count) => count,
        Err(Errno::EAGAIN | Errno::EINTR) => return Verdict::Keep,
        Err(_) => return Verdict::Close,
    };
    let sent = match send_some(descriptor, &buffer[..received]) {
        Ok(count) => count,
        Err(_) => return Verdict::Close,
    };
    if sent == received {
        return Verdict::Keep;
    }
    connection.remainder.extend_from_slice(&buffer[sent..received]);
    watch(epoll, connection, EpollFlags::EPOLLOUT)
}

/// Sends more of what was kept; listens again when nothing is left.
fn flush(epoll: &Epoll, connection: &mut Connection) -> Verdict {
    match send_some(connection.stream.as_raw_fd(), &connection.remainder) {
        Ok(count) => connection.remainder.drain(..count),
        Err(_) => return Verdict::Close,
    };
    if connection.remainder.is_empty() {
        return watch(epoll, connection, EpollFlags::EPOLLIN);
    }
    Verdict::Keep
}

/// As much as the socket takes now, which may be nothing.
fn send_some(descriptor: RawFd, bytes: &[u8]) -> nix::Result<usize> {
    match send(descriptor, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        outcome => outcome,
    }
}

fn watch(epoll: &Epoll, connection: &Connection, flags: EpollFlags) -> Verdict {
    let mut event = interest(flags, connection.stream.as_raw_fd());
    match epoll.modify(&connection.stream, &mut event) {
        Ok(()) => Verdict::Keep,
        Err(_) => Verdict::Close,
    }
}

fn interest(flags: EpollFlags, descriptor: RawFd) -> EpollEvent {
    EpollEvent::new(flags, descriptor as u64)
}
