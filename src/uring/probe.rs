//! What the running kernel can do, found out by doing it, and what to tell an operator whose kernel
//! cannot.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, opcode, squeue, types};

use super::{restrict, ring};

/// What the kernel offers beyond the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A multishot receive can be bounded in bytes (Linux 6.17), so that one talker cannot take the
    /// whole pool.
    pub bounded_multishot_receive: bool,
}

/// Why io_uring cannot be used here.
#[derive(Debug)]
pub enum Unusable {
    /// io_uring_setup(2) is not there (ENOSYS).
    Missing,
    /// io_uring_setup(2) is forbidden (EPERM); the value of the sysctl `kernel.io_uring_disabled`,
    /// where it can be read.
    Forbidden(Option<String>),
    /// The kernel is older than 6.1, or lacks what the text names.
    TooOld(&'static str),
    /// The kernel does not know the operation.
    NoOperation(&'static str),
    /// A ring that was restricted takes what the text names all the same.
    Unrestricted(&'static str),
    /// Something ran out.
    Resources(io::Error),
}

impl fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => formatter.write_str(
                "io_uring is not available: io_uring_setup(2) says ENOSYS; \
                 run Linux 6.1 or later with CONFIG_IO_URING=y, \
                 or allow the call in the container's seccomp profile",
            ),
            Self::Forbidden(Some(value)) if value != "0" => write!(
                formatter,
                "io_uring is disabled: sysctl kernel.io_uring_disabled is {value}; \
                 set it to 0, or to 1 and put the service's group into kernel.io_uring_group",
            ),
            Self::Forbidden(Some(_)) => formatter.write_str(
                "io_uring is forbidden: io_uring_setup(2) says EPERM \
                 though sysctl kernel.io_uring_disabled is 0; \
                 a seccomp filter refuses it: \
                 allow io_uring_setup, io_uring_enter and io_uring_register \
                 in the container's or unit's profile",
            ),
            Self::Forbidden(None) => formatter.write_str(
                "io_uring is forbidden: io_uring_setup(2) says EPERM; \
                 set sysctl kernel.io_uring_disabled to 0, \
                 or allow io_uring_setup, io_uring_enter and io_uring_register \
                 in the seccomp profile",
            ),
            Self::TooOld(missing) => {
                write!(formatter, "this kernel's io_uring lacks {missing}; run Linux 6.1 or later")
            }
            Self::NoOperation(name) => write!(
                formatter,
                "this kernel's io_uring lacks the operation {name}; run Linux 6.1 or later"
            ),
            Self::Unrestricted(what) => write!(
                formatter,
                "io_uring is not safe to use here: a restricted ring takes {what}; \
                 run a kernel whose IORING_REGISTER_RESTRICTIONS works",
            ),
            Self::Resources(error) => write!(
                formatter,
                "io_uring_setup(2) fails: {error}; \
                 raise LimitNOFILE= or the memory limit of the service",
            ),
        }
    }
}

impl Unusable {
    /// What the failure of io_uring_setup(2) means.
    pub(super) fn from_setup(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden(
                std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                    .ok()
                    .map(|value| value.trim().to_owned()),
            ),
            Some(libc::EINVAL) => Self::TooOld("SINGLE_ISSUER and DEFER_TASKRUN rings"),
            _ => Self::Resources(error),
        }
    }

    /// What the failure of registering the buffer ring means.
    pub(super) fn from_buffers(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EINVAL) => Self::TooOld("provided-buffer rings"),
            _ => Self::Resources(error),
        }
    }
}

/// Tries the kernel out on a ring of its own.
///
/// # Errors
/// When io_uring cannot be used at all, and why.
pub fn probe() -> Result<Features, Unusable> {
    let mut ring = ring::build(&ring::flags(16), 8).map_err(Unusable::from_setup)?;
    let mut operations = io_uring::Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(Unusable::Resources)?;
    for (code, name) in restrict::OPERATIONS {
        if !operations.is_supported(code) {
            return Err(Unusable::NoOperation(name));
        }
    }
    let bounded_multishot_receive =
        accepts_bounded_multishot(&mut ring).map_err(Unusable::Resources)?;
    Ok(Features { bounded_multishot_receive })
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

/// As [`probe`], and tries what is only faster or safer.
///
/// # Errors
/// When io_uring cannot be used, or a restricted ring is not restricted.
pub fn survey() -> Result<Survey, Unusable> {
    let features = probe()?;
    let mut flags = ring::flags(16);
    flags.setup_r_disabled();
    let mut restricted = ring::build(&flags, 8).map_err(Unusable::from_setup)?;
    restrict::restrict(&restricted).map_err(Unusable::from_setup)?;
    restrict::prove(&mut restricted)?;
    Ok(Survey {
        features,
        idle_waits: ring::books_waits_as_idle(&restricted),
        without_index_array: ring::flags(16).setup_no_sqarray().build(8).is_ok(),
        operations: restrict::OPERATIONS.map(|(_, name)| name).join(", "),
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
    with_total_length(entry, bytes_max)
}

/// Sets `sqe->optlen`, the total length of a multishot receive, which the crate has no name for:
/// bytes 44 to 47 of the entry.
fn with_total_length(entry: squeue::Entry, bytes: u32) -> squeue::Entry {
    const OPTLEN: usize = 44;
    const SIZE: usize = 64;
    // SAFETY: `squeue::Entry` is a `repr(C)` wrapper of the kernel's 64-byte `struct io_uring_sqe`
    // (transmute checks the size), all of whose bytes are initialised by the crate's zeroed
    // constructor.
    let mut raw: [u8; SIZE] = unsafe { std::mem::transmute(entry) };
    raw[OPTLEN..OPTLEN + 4].copy_from_slice(&bytes.to_ne_bytes());
    // SAFETY: every bit pattern is a valid `struct io_uring_sqe`: it holds integers only.
    unsafe { std::mem::transmute(raw) }
}
