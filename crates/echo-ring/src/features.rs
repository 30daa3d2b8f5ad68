//! What the running kernel can do, found out by doing it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{Builder, IoUring, opcode, squeue, types};

use super::locked::{self, Maker};
use super::unusable::{Call, Unusable};
use super::{restrict, ring};

/// What the kernel offers beyond the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A multishot receive can be bounded in bytes (Linux 6.17), so that one talker cannot take the
    /// whole pool.
    pub bounded_multishot_receive: bool,
}

/// Tries the kernel out on a ring of its own.
///
/// # Errors
/// When io_uring cannot be used at all, and why.
pub fn probe() -> Result<Features, Unusable> {
    let mut ring = small_ring(&ring::flags(COMPLETIONS))?;
    let mut operations = io_uring::Probe::new();
    let probed = ring.submitter().register_probe(&mut operations);
    probed.map_err(|error| Unusable::from_call(Call::Register, error))?;
    for (code, name) in restrict::OPERATIONS.into_iter().chain(restrict::DATAGRAM_OPERATIONS) {
        if !operations.is_supported(code) {
            return Err(Unusable::NoOperation(name));
        }
    }
    let bounded_multishot_receive = accepts_bounded_multishot(&mut ring)
        .map_err(|error| Unusable::from_call(Call::Enter, error))?;
    Ok(Features { bounded_multishot_receive })
}

/// Entries of the rings that only try something.
const COMPLETIONS: u32 = 16;
const SUBMISSIONS: u32 = 8;

fn small_ring(flags: &Builder) -> Result<IoUring, Unusable> {
    let mut maker = Maker::new(locked::charge(SUBMISSIONS, COMPLETIONS, 0));
    maker.make(|| ring::build(flags, SUBMISSIONS).map_err(Unusable::from_setup))
}

/// What the doctor wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// What the kernel offers beyond the minimum.
    pub features: Features,
    /// Whether a submission queue goes without its index array (Linux 6.6).
    pub without_index_array: bool,
    /// Whether a worker that waits is idle and not in "iowait" (Linux 6.15).
    pub idle_waits: bool,
    /// The names of the operations that a ring of the daemon takes; others were refused.
    pub operations: String,
}

/// As [`probe`], and tries what is only faster or safer, on a ring as a daemon has it that serves
/// datagrams as well, or streams alone.
///
/// # Errors
/// When io_uring cannot be used, or a restricted ring is not restricted.
pub fn survey(with_datagrams: bool) -> Result<Survey, Unusable> {
    let features = probe()?;
    let mut flags = ring::flags(COMPLETIONS);
    flags.setup_r_disabled();
    let mut restricted = small_ring(&flags)?;
    let taken = restrict::restrict(&restricted, with_datagrams);
    taken.map_err(|error| Unusable::from_call(Call::Register, error))?;
    restrict::prove(&mut restricted, with_datagrams)?;
    Ok(Survey {
        features,
        idle_waits: ring::books_waits_as_idle(&restricted),
        without_index_array: ring::flags(16).setup_no_sqarray().build(8).is_ok(),
        operations: restrict::operations(with_datagrams)
            .map(|(_, name)| name)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// Asks for a bounded multishot receive from a buffer group that does not exist: a kernel that
/// knows the bound gets as far as finding no buffer (ENOBUFS), one that does not refuses the field
/// (EINVAL).
fn accepts_bounded_multishot(ring: &mut IoUring) -> io::Result<bool> {
    let (here, there) = UnixStream::pair()?;
    io::Write::write_all(&mut &there, b"?")?;
    let entry = multishot_receive(types::Fd(here.as_raw_fd()), 0, 1);
    // SAFETY: the entry points to no memory; `here` stays open until the ring is gone or the
    // completion reaped.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map(|completion| completion.result());
    Ok(result == Some(-libc::ENOBUFS))
}

/// `IORING_RECVSEND_POLL_FIRST` of include/uapi/linux/io_uring.h: wait for readiness before the
/// first attempt.
pub(super) const POLL_FIRST: u16 = 1;
/// `IORING_RECV_MULTISHOT` of include/uapi/linux/io_uring.h.
const MULTISHOT: u16 = 2;

/// A multishot receive from buffer group `group` that ends after `bytes_max` bytes, counted in
/// whole buffers (Linux 6.17).
pub(super) fn multishot_receive(fd: types::Fd, group: u16, bytes_max: u32) -> squeue::Entry {
    let entry = opcode::Recv::new(fd, std::ptr::null_mut(), 0)
        .ioprio(MULTISHOT | POLL_FIRST)
        .buf_group(group)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT);
    with_field(entry, OPTLEN, &bytes_max.to_ne_bytes())
}

/// An accept that waits for a connection before its first attempt, which saves that attempt: it
/// makes a socket and a file before it looks at the backlog (`do_accept` of Linux 6.18). Linux 6.10
/// or later.
pub(super) fn accept_when_readable(accept: opcode::Accept) -> squeue::Entry {
    /// `IORING_ACCEPT_POLL_FIRST` of include/uapi/linux/io_uring.h.
    const ACCEPT_POLL_FIRST: u16 = 1 << 2;
    with_field(accept.build(), IOPRIO, &ACCEPT_POLL_FIRST.to_ne_bytes())
}

/// Where in an entry `sqe->ioprio` is.
const IOPRIO: usize = 2;
/// Where in an entry `sqe->optlen` is, the total length of a multishot receive.
const OPTLEN: usize = 44;

/// Sets a field of an entry, from byte `at` on, for which the crate has no name.
fn with_field<const N: usize>(
    mut entry: squeue::Entry,
    at: usize,
    value: &[u8; N],
) -> squeue::Entry {
    const SIZE: usize = 64;
    const { assert!(size_of::<squeue::Entry>() == SIZE) };
    // SAFETY: `squeue::Entry` is a `repr(C)` wrapper of the kernel's 64-byte `struct io_uring_sqe`
    // (as asserted), all of whose bytes are initialised by the crate's zeroed constructor and which
    // holds integers only, so that every bit pattern is one. It is borrowed here alone.
    let raw = unsafe { &mut *(&raw mut entry).cast::<[u8; SIZE]>() };
    raw[at..at + N].copy_from_slice(value);
    entry
}
