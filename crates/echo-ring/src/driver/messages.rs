//! Relaying the messages of a Unix seqpacket connection: one at a time, each whole.
//!
//! 1. A receive peeks at the next message (`MSG_PEEK`), which gives its length.
//! 2. A send takes all of it, or nothing.
//! 3. A receive without room removes the message from the queue: the kernel drops what does not
//!    fit.
//!
//! Therefore no message is cut, however long it is, and none needs memory of ours for longer than
//! these three system calls. If the peer does not read, messages wait in our receive queue, where
//! they count against the send buffer of the peer itself.
//!
//! # Empty messages
//! A receive returns 0 bytes for an empty message, as for the end. But a message comes with the
//! credentials of its sender if they are requested (`SO_PASSCRED`, unix(7); see
//! [`ListeningSocket::equip`](crate::ListeningSocket::equip)); without room for them it is marked
//! `MSG_CTRUNC`, and the end is not (Linux 6.1, 6.12 and 6.18, tests/kernels). `POLLRDHUP` (the
//! peer has shut down its side) could not distinguish the two: the peer may have sent a message
//! before.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg, send};
use socket2::SockRef;

use super::relay::Moved;
use crate::errno;
use echo_core::op::{ConnectionError, ReceiveEnd, When};

/// Bytes of the longest message that is echoed. An unprivileged peer cannot send longer ones if
/// net.core.wmem_max is at most half of it. Its default is 212,992.
pub(super) const LENGTH_MAX: usize = 1 << 20;

/// Echoes the next message, which fits into `scratch` if it can be echoed at all.
pub(super) fn echo(socket: BorrowedFd<'_>, scratch: &mut [u8]) -> Result<Moved, ReceiveEnd> {
    let Some(length) = look(socket, scratch)? else { return Ok(Moved::nothing(When::Readable)) };
    let message = scratch.get(..length).ok_or(TOO_LONG)?;
    match send_whole(socket, message) {
        Ok(()) => take(socket, length),
        Err(Errno::AGAIN) => Ok(Moved::nothing(When::Writable)),
        Err(Errno::MSGSIZE) => Err(TOO_LONG),
        Err(error) => Err(errno::of_relayed_send(error.raw_os_error())),
    }
}

const TOO_LONG: ReceiveEnd = ReceiveEnd::Failed(ConnectionError::MessageSize);

/// Drops the next message.
pub(super) fn forget(socket: BorrowedFd<'_>) -> Result<Moved, ReceiveEnd> {
    match look(socket, &mut [])? {
        Some(length) => take(socket, length),
        None => Ok(Moved::nothing(When::Readable)),
    }
}

/// The length of the next message, which is copied as far as there is room; none if no message
/// waits.
fn look(socket: BorrowedFd<'_>, scratch: &mut [u8]) -> Result<Option<usize>, ReceiveEnd> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let mut control = RecvAncillaryBuffer::new(&mut []);
    let seen = recvmsg(socket, &mut [IoSliceMut::new(scratch)], &mut control, flags);
    match seen {
        Ok(seen) if seen.bytes == 0 && !seen.flags.contains(ReturnFlags::CTRUNC) => {
            Err(ReceiveEnd::EndOfStream)
        }
        Ok(seen) => Ok(Some(seen.bytes)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(Errno::NOBUFS) => Err(ReceiveEnd::Memory),
        Err(error) => Err(errno::of_receive(error.raw_os_error())),
    }
}

/// Sends a message whole, and enlarges the send buffer if the buffer is too small for the message
/// alone.
fn send_whole(socket: BorrowedFd<'_>, message: &[u8]) -> Result<(), Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match send(socket, message, flags) {
        Err(Errno::MSGSIZE) => {
            // The kernel doubles the value (socket(7)), unless net.core.wmem_max limits it. Then
            // the message is refused again.
            let _ = SockRef::from(&socket).set_send_buffer_size(message.len());
            send(socket, message, flags).map(drop)
        }
        outcome => outcome.map(drop),
    }
}

/// Takes the next message, of this length, out of the queue.
fn take(socket: BorrowedFd<'_>, length: usize) -> Result<Moved, ReceiveEnd> {
    loop {
        match recv(socket.as_fd(), &mut [0_u8; 0], RecvFlags::DONTWAIT) {
            Ok(_) => return Ok(Moved { length, chunks: 1, next: When::Now }),
            Err(Errno::INTR) => {}
            Err(error) => {
                let error = errno::of_connection(error.raw_os_error());
                return Err(ReceiveEnd::Failed(error));
            }
        }
    }
}
