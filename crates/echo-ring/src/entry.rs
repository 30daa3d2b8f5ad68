//! Submission entries with fields that the io-uring crate does not support.

use io_uring::{opcode, squeue, types};

/// `IORING_RECVSEND_POLL_FIRST` of include/uapi/linux/io_uring.h: wait for readiness before the
/// first attempt.
pub(super) const POLL_FIRST: u16 = 1;
/// `IORING_RECV_MULTISHOT` of include/uapi/linux/io_uring.h.
const MULTISHOT: u16 = 2;

/// A receive into a buffer of `group` that the kernel picks.
#[inline]
pub(super) fn receive(fd: types::Fd, group: u16, ioprio: u16) -> squeue::Entry {
    let receive = opcode::Recv::new(fd, std::ptr::null_mut(), 0).ioprio(ioprio).buf_group(group);
    receive.build().flags(squeue::Flags::BUFFER_SELECT)
}

/// A multishot receive from buffer group `group` that ends after `bytes_max` bytes, counted in
/// whole buffers (Linux 6.17).
pub(super) fn multishot_receive(fd: types::Fd, group: u16, bytes_max: u32) -> squeue::Entry {
    let entry = receive(fd, group, MULTISHOT | POLL_FIRST);
    with_field(entry, OPTLEN, &bytes_max.to_ne_bytes())
}

/// An accept that waits for a connection before its first attempt. That saves the attempt, which
/// creates a socket and a file before it looks at the backlog (`do_accept` of Linux 6.18). Linux
/// 6.10 or later.
pub(super) fn accept_when_readable(accept: opcode::Accept) -> squeue::Entry {
    /// `IORING_ACCEPT_POLL_FIRST` of include/uapi/linux/io_uring.h.
    const ACCEPT_POLL_FIRST: u16 = 1 << 2;
    with_field(accept.build(), IOPRIO, &ACCEPT_POLL_FIRST.to_ne_bytes())
}

/// The offset of `sqe->ioprio` in an entry.
const IOPRIO: usize = 2;
/// The offset of `sqe->optlen` in an entry, the total length of a multishot receive.
const OPTLEN: usize = 44;

/// Sets a field of an entry, at byte offset `at`, that the crate does not support.
fn with_field<const N: usize>(
    mut entry: squeue::Entry,
    at: usize,
    value: &[u8; N],
) -> squeue::Entry {
    const SIZE: usize = 64;
    const { assert!(size_of::<squeue::Entry>() == SIZE) };
    // SAFETY: `squeue::Entry` is a `repr(C)` wrapper of the kernel's 64-byte `struct io_uring_sqe`
    // (as asserted), all of whose bytes are initialised by the crate's zeroed constructor and which
    // holds integers only, so that every bit pattern is valid. The entry is borrowed mutably here.
    let raw = unsafe { &mut *(&raw mut entry).cast::<[u8; SIZE]>() };
    raw[at..at + N].copy_from_slice(value);
    entry
}
