//! The meaning of each error of each operation. Expected errors are named here; all others are
//! `Unexpected`.

use echo_core::datagram::op::ReplyError;
use echo_core::op::{AcceptError, ConnectionError, ReceiveEnd, SendError};

/// An accept that failed, see accept(2).
pub(super) fn of_accept(errno: i32) -> AcceptError {
    match errno {
        libc::ECANCELED => AcceptError::Canceled,
        // Linux hands pending network errors of the new socket to accept(2): this peer is gone, but
        // the next one may not be. Each of these errors takes its connection out of the backlog. No
        // other errors may be listed here, because an error that leaves the backlog unchanged
        // occurs again at once: EPERM and EACCES (a security module refuses before a connection is
        // taken), EAGAIN (another process made the socket non-blocking), EINVAL (the socket no
        // longer listens).
        libc::ECONNABORTED
        | libc::EINTR
        | libc::EPROTO
        | libc::ENOPROTOOPT
        | libc::ENETDOWN
        | libc::EHOSTDOWN
        | libc::ENONET
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH => AcceptError::Aborted,
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

/// A send that failed, see send(2). EAGAIN is not a failure: callers handle it before.
pub(super) fn of_send(errno: i32) -> SendError {
    match errno {
        libc::ENOMEM | libc::ENOBUFS | libc::EINTR => SendError::Memory,
        libc::ECANCELED => SendError::Stopped,
        _ => SendError::Failed(of_connection(errno)),
    }
}

/// As [`of_send`], for a relay, which reports its end as that of a receive.
pub(super) fn of_relayed_send(errno: i32) -> ReceiveEnd {
    match of_send(errno) {
        SendError::Memory => ReceiveEnd::Memory,
        SendError::Stopped => ReceiveEnd::Stopped,
        SendError::Failed(error) => ReceiveEnd::Failed(error),
    }
}

/// Why a connection failed, by the error of a receive or a send.
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

/// Why a reply to a datagram was not sent (udp(7), ip(7), unix(7)).
pub(super) fn of_reply(errno: i32) -> ReplyError {
    match errno {
        libc::EAGAIN => ReplyError::Full,
        libc::EMSGSIZE | libc::EINVAL | libc::EIO => ReplyError::Unsendable,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL => {
            ReplyError::Unroutable
        }
        // The socket that was bound to this name is closed, or its path now leads elsewhere.
        libc::ECONNREFUSED
        | libc::ECONNRESET
        | libc::ENOENT
        | libc::ENOTDIR
        | libc::ELOOP
        | libc::EPROTOTYPE => ReplyError::Unroutable,
        libc::EPERM | libc::EACCES => ReplyError::Refused,
        libc::ENOMEM | libc::ENOBUFS => ReplyError::Memory,
        errno => ReplyError::Unexpected(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an accept that can fail repeatedly without a change of the backlog makes the listener
    /// back off. Method: all errors of accept(2), and those of security modules.
    #[test]
    fn an_accept_that_can_fail_repeatedly_is_not_taken_for_a_peer_that_left() {
        let lasting = [
            libc::EPERM,
            libc::EACCES,
            libc::EAGAIN,
            libc::EBADF,
            libc::EFAULT,
            libc::EINVAL,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::ENOTSOCK,
            libc::EOPNOTSUPP,
            libc::ENOSR,
            libc::ENOSYS,
            libc::ESOCKTNOSUPPORT,
            libc::EPROTONOSUPPORT,
            libc::ETIMEDOUT,
        ];
        for errno in lasting {
            let error = of_accept(errno);
            let retried_at_once = matches!(error, AcceptError::Aborted | AcceptError::Canceled);
            assert!(!retried_at_once, "errno {errno} is {error:?}");
        }
        assert_eq!(of_accept(libc::ECONNABORTED), AcceptError::Aborted);
    }
}
