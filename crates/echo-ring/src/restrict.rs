//! What a ring of the daemon may do: the list, and the proof that nothing else is possible.
//!
//! A ring walks past every seccomp filter: where socket(2) is refused, `IORING_OP_SOCKET` succeeds.
//! So each of the daemon's rings is created disabled, restricted to what the driver uses
//! (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10) and only then enabled. Nothing can widen it again:
//! the kernel takes restrictions once.
//!
//! The rings of `probe` are not restricted, as they are gone before the first client comes; nor are
//! those of echo-load, which runs with its user's rights by hand and connects where it is told.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};

use super::unusable::{Call, Unusable};

/// The operations that the driver submits, and nothing else; with their names.
pub(super) const OPERATIONS: [(u8, &str); 7] = [
    // Takes connections from the listening sockets, which were there before the ring.
    (opcode::Accept::CODE, "ACCEPT"),
    // Reads from a connection,
    (opcode::Recv::CODE, "RECV"),
    // and writes to it.
    (opcode::Send::CODE, "SEND"),
    // Waits for bytes without holding a large buffer, for room, and for the main thread's wake-up.
    (opcode::PollAdd::CODE, "POLL_ADD"),
    // Ends a wait at the next deadline.
    (opcode::Timeout::CODE, "TIMEOUT"),
    // Takes back an accept, a receive or a poll: at the end, when idle, at a hand-over.
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    // Ends a connection.
    (opcode::Close::CODE, "CLOSE"),
];

/// The same, in addition, of a worker that serves datagrams. A message has control messages and an
/// address: it may go anywhere, and might carry descriptors.
pub(super) const DATAGRAM_OPERATIONS: [(u8, &str); 2] = [
    // Takes datagrams from a socket, with where they came from,
    (opcode::RecvMsg::CODE, "RECVMSG"),
    // and sends them back there, from the address that was asked.
    (opcode::SendMsg::CODE, "SENDMSG"),
];

/// The flags that its entries carry: receives choose a buffer from the pool, and nothing needs to
/// hear that a close or a cancel succeeded. Without `IO_LINK`, `IO_DRAIN`, `FIXED_FILE`, `ASYNC`
/// and `PERSONALITY` no entry can act for another user or in an order of its own.
const FLAGS: squeue::Flags = squeue::Flags::BUFFER_SELECT.union(squeue::Flags::SKIP_SUCCESS);

/// `IORING_REGISTER_ENABLE_RINGS` of include/uapi/linux/io_uring.h.
const REGISTER_ENABLE_RINGS: u8 = 12;

/// The operations of a ring that serves datagrams as well, or streams alone.
pub(super) fn operations(with_datagrams: bool) -> impl Iterator<Item = (u8, &'static str)> {
    OPERATIONS.into_iter().chain(DATAGRAM_OPERATIONS.into_iter().filter(move |_| with_datagrams))
}

/// Restricts a ring that was created disabled, and enables it. What is to be registered with it
/// (the buffer ring) must have been: from here on the calling thread owns it, and it takes nothing
/// but [`OPERATIONS`] with [`FLAGS`], and [`DATAGRAM_OPERATIONS`] if it serves datagrams.
pub(super) fn restrict(ring: &IoUring, with_datagrams: bool) -> io::Result<()> {
    let mut list: Vec<Restriction> =
        operations(with_datagrams).map(|(code, _)| Restriction::sqe_op(code)).collect();
    list.push(Restriction::sqe_flags_allowed(FLAGS.bits()));
    // No registration is needed any more. This one is refused by a ring that is enabled already, so
    // it opens nothing; a list without any might leave all of them open.
    list.push(Restriction::register_op(REGISTER_ENABLE_RINGS));
    ring.submitter().register_restrictions(&mut list)?;
    ring.submitter().register_enable_rings()
}

/// Tries what must be impossible: to open a file, to make a socket, to register something; and to
/// send a message without datagrams.
///
/// # Errors
/// When the kernel lets one of them happen.
pub(super) fn prove(ring: &mut IoUring, with_datagrams: bool) -> Result<(), Unusable> {
    let (opens, makes) = (0, 1);
    let here = types::Fd(libc::AT_FDCWD);
    let mut forbidden = vec![
        opcode::OpenAt::new(here, c"/dev/null".as_ptr()).flags(libc::O_CLOEXEC).build(),
        opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0).build(),
    ];
    if !with_datagrams {
        forbidden.push(opcode::SendMsg::new(types::Fd(-1), std::ptr::null()).build());
    }
    let forbidden_count = forbidden.len();
    for (entry, token) in forbidden.into_iter().zip(opens..) {
        // SAFETY: the only memory it points to is a literal, which lives for ever.
        unsafe { ring.submission().push(&entry.user_data(token)) }
            .expect("invariant: three entries fit into an empty queue");
    }
    while ring.completion().len() < forbidden_count {
        match ring.submit_and_wait(forbidden_count) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(Unusable::from_call(Call::Enter, error));
            }
            _ => {}
        }
    }
    // What was opened all the same is not closed: the process ends with the error.
    for completion in ring.completion() {
        if completion.result() != -libc::EACCES {
            return Err(Unusable::Unrestricted(match completion.user_data() {
                token if token == opens => "OPENAT",
                token if token == makes => "SOCKET",
                _ => "SENDMSG",
            }));
        }
    }
    let registered = ring.submitter().register_probe(&mut io_uring::Probe::new());
    match registered.map_err(|error| error.raw_os_error()) {
        Err(Some(libc::EACCES)) => Ok(()),
        _ => Err(Unusable::Unrestricted("a registration")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring;
    use super::*;

    #[test]
    fn a_restricted_ring_passes_the_proof() {
        let mut ring = ring::build(ring::flags(16).setup_r_disabled(), 8).unwrap();
        restrict(&ring, false).unwrap();
        prove(&mut ring, false).unwrap();
        // Once is for ever.
        assert!(restrict(&ring, false).is_err());
        prove(&mut ring, false).unwrap();
    }

    #[test]
    fn an_open_ring_does_not() {
        let mut ring = ring::build(&ring::flags(16), 8).unwrap();
        assert!(matches!(prove(&mut ring, true), Err(Unusable::Unrestricted("OPENAT" | "SOCKET"))));
    }

    #[test]
    fn a_ring_with_one_operation_too_many_does_not() {
        for (code, name) in [(opcode::OpenAt::CODE, "OPENAT"), (opcode::Socket::CODE, "SOCKET")] {
            let mut ring = ring::build(ring::flags(16).setup_r_disabled(), 8).unwrap();
            let mut list = [Restriction::sqe_op(code), Restriction::register_op(12)];
            ring.submitter().register_restrictions(&mut list).unwrap();
            ring.submitter().register_enable_rings().unwrap();
            match prove(&mut ring, true) {
                Err(Unusable::Unrestricted(found)) => assert_eq!(found, name),
                other => panic!("{name} went unnoticed: {other:?}"),
            }
        }
    }

    #[test]
    fn a_flag_that_is_not_listed_is_refused() {
        let mut ring = ring::build(ring::flags(16).setup_r_disabled(), 8).unwrap();
        restrict(&ring, false).unwrap();
        let entry = opcode::AsyncCancel::new(1).build().flags(squeue::Flags::ASYNC);
        // SAFETY: it points to no memory.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().map(|it| it.result()), Some(-libc::EACCES));
    }
}
