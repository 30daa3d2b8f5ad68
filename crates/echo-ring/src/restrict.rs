//! The restrictions of a ring of the daemon: the list of permitted operations, and a check that
//! nothing else is possible.
//!
//! Seccomp filters do not apply to operations of a ring: where socket(2) is refused,
//! `IORING_OP_SOCKET` succeeds. Therefore each ring of the daemon is created disabled, restricted
//! to what the driver uses (`IORING_REGISTER_RESTRICTIONS`, Linux 5.10) and only then enabled. The
//! restrictions cannot be relaxed afterwards, because the kernel accepts them only once.
//!
//! The rings of `probe` are not restricted, as they are gone before the first client connects.
//! Those of echo-load are not restricted either: it is run by hand, with the rights of its user,
//! and connects to the target that the user names.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};

use super::unusable::{Call, Unusable};

/// The operations that the driver submits, with their names. No others are permitted.
const OPERATIONS: [(u8, &str); 7] = [
    // Accepts connections from the listening sockets, which were created before the ring.
    (opcode::Accept::CODE, "ACCEPT"),
    // Reads from a connection,
    (opcode::Recv::CODE, "RECV"),
    // and writes to it.
    (opcode::Send::CODE, "SEND"),
    // Waits for bytes without holding a large buffer, for room, and for the main thread's wake-up.
    (opcode::PollAdd::CODE, "POLL_ADD"),
    // Ends a wait at the next deadline.
    (opcode::Timeout::CODE, "TIMEOUT"),
    // Cancels an accept, a receive or a poll: at the end, when idle, at a handover.
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    // Ends a connection.
    (opcode::Close::CODE, "CLOSE"),
];

/// The additional operations of a worker that serves datagrams. A message has an address and
/// control messages: it can be sent to any destination, and could carry descriptors.
const DATAGRAM_OPERATIONS: [(u8, &str); 2] = [
    // Receives datagrams from a socket, with their source addresses,
    (opcode::RecvMsg::CODE, "RECVMSG"),
    // and sends them back there, from the address that they were sent to.
    (opcode::SendMsg::CODE, "SENDMSG"),
];

/// The flags that its entries carry: receives select a buffer from the pool, and the success of a
/// close or a cancel needs no completion. Without `IO_LINK`, `IO_DRAIN`, `FIXED_FILE`, `ASYNC` and
/// `PERSONALITY` no entry can act for another user or in an order of its own.
const FLAGS: squeue::Flags = squeue::Flags::BUFFER_SELECT.union(squeue::Flags::SKIP_SUCCESS);

/// `IORING_REGISTER_ENABLE_RINGS` of include/uapi/linux/io_uring.h.
const REGISTER_ENABLE_RINGS: u8 = 12;

/// The operations of a ring for streams, and for datagrams if `with_datagrams` is set.
pub(super) fn operations(with_datagrams: bool) -> impl Iterator<Item = (u8, &'static str)> {
    OPERATIONS.into_iter().chain(DATAGRAM_OPERATIONS.into_iter().filter(move |_| with_datagrams))
}

/// Restricts a ring that was created disabled, and enables it. The buffer ring must already be
/// registered with it. From here on the calling thread owns the ring, which accepts only
/// [`OPERATIONS`] with [`FLAGS`], and [`DATAGRAM_OPERATIONS`] if it serves datagrams.
pub(super) fn restrict(ring: &IoUring, with_datagrams: bool) -> io::Result<()> {
    let mut list: Vec<Restriction> =
        operations(with_datagrams).map(|(code, _)| Restriction::sqe_op(code)).collect();
    list.push(Restriction::sqe_flags_allowed(FLAGS.bits()));
    // No registration is needed any more. A ring that is enabled refuses this one anyway, so
    // permitting it is harmless. A list without any registration might leave all of them permitted.
    list.push(Restriction::register_op(REGISTER_ENABLE_RINGS));
    ring.submitter().register_restrictions(&mut list)?;
    ring.submitter().register_enable_rings()
}

/// Tries operations that must be refused: opening a file, creating a socket, a registration; and
/// sending a message if the ring serves no datagrams.
///
/// # Errors
/// When the kernel permits one of them.
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
        // SAFETY: the only memory it points to is a literal with static lifetime.
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
    // A descriptor that was opened nevertheless is not closed: the process ends with the error.
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
        // Restrictions are accepted only once.
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
