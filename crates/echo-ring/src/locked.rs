//! Locked memory: how much the kernel charges for rings, and how much is available.
//!
//! Linux up to 5.11, and from 6.14 to 7.1, charges the memory of rings and of provided-buffer rings
//! to the user, against `RLIMIT_MEMLOCK` of the process that makes them (`io_create_region` of
//! io_uring/memmap.c; seen on 6.18, 7.0 and 7.1, and not on 6.12, 7.2 and 7.3). A process with
//! `CAP_IPC_LOCK` in the first user namespace is not charged. The sum counts for all processes of
//! the user. A kernel worker gives it back some time after a ring is gone, so a process that is
//! started right after another one has ended may have to wait for it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::types::BufRingEntry;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use rustix::thread::set_thread_res_uid;

use super::ring;
use super::unusable::{Shortage, Unusable, status};

/// How long to wait for locked memory of a process that has ended but that the kernel has not given
/// back yet. `listen` waits for an address in use in the same way.
const TIMEOUT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);

/// Bytes in front of the completions in the memory of a ring (`struct io_rings` of
/// io_uring/io_uring_types.h: some 300, in whole cache lines).
const HEADER: u64 = 512;
const COMPLETION: u64 = size_of::<io_uring::cqueue::Entry>() as u64;
const SUBMISSION: u64 = size_of::<io_uring::squeue::Entry>() as u64;
const BUFFER: u64 = size_of::<BufRingEntry>() as u64;

/// Any user except root.
const NOBODY: u32 = 65_534;
/// `CAP_IPC_LOCK` of include/uapi/linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;

/// Bytes that are charged for a ring with this many entries, with a provided-buffer ring of
/// `buffers` (0 for none). Each part is whole pages.
pub(super) fn charge(submissions: u32, completions: u32, buffers: u16) -> u64 {
    in_pages(HEADER + COMPLETION * u64::from(completions))
        + in_pages(SUBMISSION * u64::from(submissions))
        + charge_of_buffers(buffers)
}

/// Bytes that are charged for a provided-buffer ring with this many buffers.
pub(super) fn charge_of_buffers(buffers: u16) -> u64 {
    in_pages(BUFFER * u64::from(buffers))
}

fn in_pages(bytes: u64) -> u64 {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096);
    bytes.next_multiple_of(page)
}

/// The hard limit in bytes for rings of this process; `None` if there is none.
#[must_use]
pub fn locked_memory_limit() -> Option<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (hard != RLIM_INFINITY && !is_exempt()).then_some(hard)
}

/// Whether this kernel charges rings at all, determined by creating a ring under a limit of 0;
/// `None` if that cannot be determined. For a process with no other thread: its limit is lowered
/// for a moment.
#[must_use]
pub fn charges_locked_memory() -> Option<bool> {
    // In a separate thread, since it gives up the privilege that exempts root.
    thread::spawn(|| {
        if is_exempt() {
            let nobody = rustix::thread::Uid::from_raw(NOBODY);
            set_thread_res_uid(nobody, nobody, nobody).ok()?;
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
        setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard).ok()?;
        let outcome = ring::build(&ring::flags(16), 8);
        setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).ok()?;
        match outcome.map_err(|error| error.raw_os_error()) {
            Ok(_) => Some(false),
            Err(Some(libc::ENOMEM)) => Some(true),
            Err(_) => None,
        }
    })
    .join()
    .ok()
    .flatten()
}

/// Whether the kernel charges this process nothing.
fn is_exempt() -> bool {
    let effective = status("CapEff");
    let effective = effective.and_then(|text| u64::from_str_radix(&text, 16).ok());
    let capable = effective.is_some_and(|set| set & (1 << CAP_IPC_LOCK) != 0);
    // Outside the first namespace, capabilities have no effect on this limit.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    capable && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Raises the soft limit to the hard one.
fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft < hard
    {
        // If the limit cannot be raised, the failure is reported when memory is missing.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// The meaning of a failed call that creates the last of `rings` rings of `each` bytes, or
/// registers its buffers.
fn understood(failure: Unusable, rings: usize, each: u64) -> Unusable {
    match failure {
        Unusable::Resources { call, error } if error.raw_os_error() == Some(libc::ENOMEM) => {
            match locked_memory_limit() {
                Some(limit) => Unusable::LockedMemory(Shortage { rings, each, limit }),
                None => Unusable::Resources { call, error },
            }
        }
        failure => failure,
    }
}

/// Creates rings one after the other, and waits for locked memory of ended processes.
pub(super) struct Maker {
    deadline: Option<Instant>,
    each: u64,
    made: usize,
}

impl Maker {
    /// For rings that are charged `each` bytes.
    pub(super) fn new(each: u64) -> Self {
        raise_limit();
        Self { deadline: None, each, made: 0 }
    }

    /// Creates one with `make`. If locked memory is missing, it tries again for a second in all,
    /// provided that the limit itself has room for the ring.
    pub(super) fn make<T>(
        &mut self,
        mut make: impl FnMut() -> Result<T, Unusable>,
    ) -> Result<T, Unusable> {
        loop {
            let failure = match make() {
                Ok(ring) => {
                    self.made += 1;
                    return Ok(ring);
                }
                Err(failure) => understood(failure, self.made + 1, self.each),
            };
            let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + TIMEOUT);
            match failure {
                Unusable::LockedMemory(shortage)
                    if shortage.may_pass() && Instant::now() < deadline =>
                {
                    thread::sleep(RETRY);
                }
                failure => return Err(failure),
            }
        }
    }
}

/// Corrects the number of wanted rings, which is not only those up to the one that failed.
pub(super) fn of_rings(failure: Unusable, rings: usize) -> Unusable {
    match failure {
        Unusable::LockedMemory(shortage) => Unusable::LockedMemory(Shortage { rings, ..shortage }),
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_charged_82_pages() {
        if sysconf(SysconfVar::PAGE_SIZE) == Ok(Some(4096)) {
            assert_eq!(charge(1024, 16384, 256), 82 * 4096);
            assert_eq!(charge(1024, 16384, 0), 81 * 4096);
            assert_eq!(charge(8, 16, 0), 2 * 4096);
        }
    }

    #[test]
    fn a_shortage_names_limit_need_and_remedy() {
        let shortage = Shortage { rings: 64, each: 335_872, limit: 8 << 20 };
        let text = shortage.to_string();
        for word in ["64 rings need 20992 KiB", "RLIMIT_MEMLOCK is 8192 KiB", "enough for 24;"] {
            assert!(text.contains(word), "{word:?} is missing: {text}");
        }
        assert!(text.ends_with("or start fewer workers or threads"), "{text}");
        assert!(!shortage.may_pass());
        assert!(Shortage { rings: 24, ..shortage }.may_pass());
    }

    #[test]
    fn what_is_no_shortage_is_not_tried_again() {
        let mut tries = 0;
        let mut maker = Maker::new(4096);
        let outcome = maker.make(|| {
            tries += 1;
            Err::<(), _>(Unusable::TooOld("a test"))
        });
        assert!(matches!(outcome, Err(Unusable::TooOld("a test"))));
        assert_eq!(tries, 1);
    }

    #[test]
    fn a_shortage_of_memory_itself_is_none_of_locked_memory() {
        if locked_memory_limit().is_none() {
            let error = std::io::Error::from_raw_os_error(libc::ENOMEM);
            let failure = Unusable::Resources { call: "a call", error };
            let failure = understood(failure, 1, 4096);
            assert!(matches!(failure, Unusable::Resources { .. }), "{failure:?}");
            assert!(failure.to_string().contains("MemoryMax="), "{failure}");
        }
    }
}
