//! What each error of each operation means. The errors that we expect are named here; the rest is
//! `Unexpected`.

use crate::echo::op::{AcceptError, ConnectionError, ReceiveEnd, SendError};

/// An accept that failed, see accept(2).
pub(super) fn of_accept(errno: i32) -> AcceptError {
    match errno {
        libc::ECANCELED => AcceptError::Canceled,
        // Linux hands pending network errors of the new socket to accept(2): the peer is gone, the
        // next one is not.
        libc::ECONNABORTED
        | libc::EINTR
        | libc::EAGAIN
        | libc::EPROTO
        | libc::ENOPROTOOPT
        | libc::ENETDOWN
        | libc::EHOSTDOWN
        | libc::ENONET
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::EPERM => AcceptError::Aborted,
        libc::EMFILE => AcceptError::ProcessFiles,
        libc::ENFILE => AcceptError::SystemFiles,
        libc::ENOMEM | libc::ENOBUFS => AcceptError::Memory,
        _ => AcceptError::Unexpected(errno),
    }
}

/// A receive that ended with an error, see recv(2). ENOBUFS is io_uring's: the buffer group is
/// empty.
pub(super) fn of_receive(errno: i32) -> ReceiveEnd {
    match errno {
        libc::ENOBUFS => ReceiveEnd::NoBuffer,
        libc::ECANCELED | libc::EINTR | libc::EAGAIN => ReceiveEnd::Stopped,
        libc::ENOMEM => ReceiveEnd::Memory,
        _ => ReceiveEnd::Failed(of_connection(errno)),
    }
}

/// A send that failed, see send(2). EAGAIN is no failure and never comes here.
pub(super) fn of_send(errno: i32) -> SendError {
    match errno {
        libc::ENOMEM | libc::ENOBUFS | libc::EINTR | libc::EAGAIN => SendError::Memory,
        libc::ECANCELED => SendError::Stopped,
        _ => SendError::Failed(of_connection(errno)),
    }
}

/// How a connection died, by the error of a receive or a send.
pub(super) fn of_connection(errno: i32) -> ConnectionError {
    match errno {
        libc::ECONNRESET
        | libc::EPIPE
        | libc::ENOTCONN
        | libc::ECONNABORTED
        | libc::ESHUTDOWN
        | libc::ECONNREFUSED => ConnectionError::Reset,
        libc::ETIMEDOUT
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::ENETDOWN
        | libc::EHOSTDOWN
        | libc::EPERM
        | libc::EPROTO
        | libc::ENOPROTOOPT
        | libc::EACCES => ConnectionError::Unreachable,
        _ => ConnectionError::Unexpected(errno),
    }
}
