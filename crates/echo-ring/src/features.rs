//! The features of the running kernel, determined by trying them.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{Builder, IoUring, types};

use super::locked::{self, Maker};
use super::unusable::{Call, Unusable};
use super::{entry, restrict, ring};

/// Features of the kernel beyond the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A multishot receive can be bounded in bytes (Linux 6.17), so that one busy connection cannot
    /// take the whole pool.
    pub bounded_multishot_receive: bool,
}

/// Tries the features of the kernel on a separate ring.
///
/// # Errors
/// When io_uring cannot be used at all, and why.
pub fn probe() -> Result<Features, Unusable> {
    let mut ring = small_ring(&ring::flags(COMPLETIONS))?;
    let bounded_multishot_receive = accepts_bounded_multishot(&mut ring)
        .map_err(|error| Unusable::from_call(Call::Enter, error))?;
    Ok(Features { bounded_multishot_receive })
}

/// Entries of the rings that are only used to try features.
const COMPLETIONS: u32 = 16;
const SUBMISSIONS: u32 = 8;

fn small_ring(flags: &Builder) -> Result<IoUring, Unusable> {
    let mut maker = Maker::new(locked::charge(SUBMISSIONS, COMPLETIONS, 0));
    maker.make(|| ring::build(flags, SUBMISSIONS).map_err(Unusable::from_setup))
}

/// The features that `echo-uring doctor` reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Features of the kernel beyond the minimum.
    pub features: Features,
    /// Whether a submission queue goes without its index array (Linux 6.6).
    pub without_index_array: bool,
    /// Whether a worker that waits is idle and not in "iowait" (Linux 6.15).
    pub idle_waits: bool,
    /// The names of the operations that a ring of the daemon accepts. Others were refused.
    pub operations: String,
}

/// As [`probe`], and also tries features that are only faster or safer, on a ring like the
/// daemon's: for streams, and for datagrams if `with_datagrams` is set.
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

/// Submits a bounded multishot receive from a buffer group that does not exist. A kernel that
/// supports the bound fails for lack of a buffer (ENOBUFS); an older one refuses the field
/// (EINVAL).
fn accepts_bounded_multishot(ring: &mut IoUring) -> io::Result<bool> {
    let (here, there) = UnixStream::pair()?;
    io::Write::write_all(&mut &there, b"?")?;
    let entry = entry::multishot_receive(types::Fd(here.as_raw_fd()), 0, 1);
    // SAFETY: the entry points to no memory; `here` stays open until the ring is gone or the
    // completion reaped.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map(|completion| completion.result());
    Ok(result == Some(-libc::ENOBUFS))
}
