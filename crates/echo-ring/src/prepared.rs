//! Rings that are created before the threads that use them.
//!
//! The possible number of workers is known only after their rings are created: the kernel charges
//! rings to a limit that is shared with other processes of the user, so the number cannot be
//! calculated beforehand. A ring that is created disabled has no owner. Only the thread that
//! enables it may use it.

use std::ops::RangeInclusive;

use super::buffers::{BufferRing, DATAGRAM_GROUP, SMALL_GROUP};
use super::datagram_socket::DATAGRAM_BUFFERS;
use super::locked::{self, Maker};
use super::ring::{self, Ring};
use super::unusable::{Call, Unusable};
use echo_core::op::BufferClass;

/// A ring with its small buffers, for the thread of one worker.
pub struct PreparedRing {
    // Dropped first: the kernel must release the memory before it is freed.
    pub(super) ring: Ring,
    pub(super) small: BufferRing,
    /// Present in every worker of a process with a UDP listener.
    pub(super) datagrams: Option<BufferRing>,
}

/// Creates rings for as many workers as the end of `counts`, each with these small buffers, and
/// with buffers for datagrams if there are datagram sockets. If the limit on locked memory
/// (`RLIMIT_MEMLOCK`) has no room for all of them, there are fewer rings, but at least as many as
/// the start of `counts`, and at least one.
///
/// # Errors
/// When io_uring cannot be used, or there is no room for the smallest permitted number of rings.
pub fn prepare_rings(
    counts: RangeInclusive<usize>,
    buffers: BufferClass,
    with_datagrams: bool,
) -> Result<Vec<PreparedRing>, Unusable> {
    let (least, wanted) = counts.into_inner();
    let mut maker = Maker::new(locked_bytes_of_worker(buffers.count, with_datagrams));
    let mut rings = Vec::with_capacity(wanted);
    while rings.len() < wanted {
        match maker.make(|| PreparedRing::new(buffers, with_datagrams)) {
            Ok(ring) => rings.push(ring),
            Err(Unusable::LockedMemory(_)) if rings.len() >= least.max(1) => break,
            Err(failure) => return Err(locked::of_rings(failure, wanted)),
        }
    }
    Ok(rings)
}

/// Bytes that the kernel charges to `RLIMIT_MEMLOCK` for a worker with this many small buffers, and
/// with those for datagrams if it has sockets for them.
#[must_use]
pub fn locked_bytes_of_worker(buffers: u16, with_datagrams: bool) -> u64 {
    let datagrams =
        if with_datagrams { locked::charge_of_buffers(DATAGRAM_BUFFERS.count) } else { 0 };
    locked::charge(ring::SUBMISSIONS, ring::COMPLETIONS, buffers) + datagrams
}

impl PreparedRing {
    fn new(buffers: BufferClass, with_datagrams: bool) -> Result<Self, Unusable> {
        let ring = Ring::disabled().map_err(Unusable::from_setup)?;
        let register = |group, class| {
            let registered = BufferRing::register(ring.inner(), group, class);
            registered.map_err(|error| Unusable::from_call(Call::Register, error))
        };
        let small = register(SMALL_GROUP, buffers)?;
        let datagrams =
            with_datagrams.then(|| register(DATAGRAM_GROUP, DATAGRAM_BUFFERS)).transpose()?;
        Ok(Self { ring, small, datagrams })
    }

    /// A single ring.
    pub(super) fn one(buffers: BufferClass, with_datagrams: bool) -> Result<Self, Unusable> {
        let rings = prepare_rings(1..=1, buffers, with_datagrams)?;
        Ok(rings.into_iter().next().expect("invariant: one was requested"))
    }
}
