//! CPUs: the available ones, pinning a thread to one, and steering connections to it.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::SockRef;

/// The kernel's value for "no CPU" (`sk_incoming_cpu` of a new socket).
const NONE: usize = usize::MAX;

/// The CPUs that this process may use, in ascending order.
///
/// # Errors
/// If the machine has more CPUs than the set can name (1,024).
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// EINVAL if the thread may not run there, EPERM if a seccomp filter refuses it.
pub fn pin_thread(cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}

/// Makes the kernel select `socket`, of all listening sockets on its address, for connections whose
/// packets are received on `cpu` (SO_INCOMING_CPU, socket(7); Linux 6.2). None undoes it.
///
/// # Errors
/// Those of setsockopt(2).
pub fn steer(socket: BorrowedFd<'_>, cpu: Option<usize>) -> io::Result<()> {
    SockRef::from(&socket).set_cpu_affinity(cpu.unwrap_or(NONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let allowed = allowed_cpus().unwrap();
        let last = *allowed.last().expect("this thread runs somewhere");
        std::thread::spawn(move || {
            pin_thread(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
        })
        .join()
        .unwrap();
        assert_eq!(allowed_cpus().unwrap(), allowed, "other threads are not affected");
    }
}
