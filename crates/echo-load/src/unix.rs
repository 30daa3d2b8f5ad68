//! Unix sockets that keep the bounds of messages: seqpacket and datagram sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{UnixAddr, bind};
use rustix::net::sockopt::socket_send_buffer_size;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::arguments::Plan;

/// What the kernel requires in the send buffer besides the bytes of a message
/// (`unix_dgram_sendmsg` in net/unix/af_unix.c).
const OVERHEAD: usize = 32;

/// Opens the socket of a flow: connected, so that it is told when the queue of the server has room
/// again, and with an abstract name of the kernel's choice (autobind, unix(7)), so that it can be
/// answered. From others than the server it receives nothing: the kernel refuses their datagrams.
///
/// # Errors
/// When nothing is bound to the address of the server, or there is no file descriptor left.
pub(crate) fn open(server: &SockAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
    socket.connect(server)?;
    Ok(socket.into())
}

/// Refuses messages that are too long for the send buffer of a socket, whose size is
/// net.core.wmem_default: the kernel would refuse each with EMSGSIZE.
///
/// # Errors
/// A text with the maximum.
pub(crate) fn check_size(plan: &Plan) -> Result<(), String> {
    let size = plan.sizes.bytes_max();
    let buffer = Socket::new(Domain::UNIX, plan.target.transport().socket_type(), None)
        .and_then(|socket| Ok(socket_send_buffer_size(&socket)?))
        .map_err(|error| format!("cannot open a socket: {error}"))?;
    let max = buffer.saturating_sub(OVERHEAD);
    if size > max {
        return Err(format!(
            "--size {size}: over this socket a message has at most {max} bytes \
             (net.core.wmem_default)"
        ));
    }
    Ok(())
}
