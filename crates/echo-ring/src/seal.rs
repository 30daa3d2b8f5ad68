//! After the last ring has been created, the process gives up the right to create another.
//!
//! A restricted ring (see `restrict`) would be of little use if an intruder in the process could
//! create an unrestricted one. Therefore, once the workers run, a seccomp filter permanently
//! refuses io_uring_setup(2) and io_uring_register(2) to all threads. io_uring_enter(2) on existing
//! rings continues to work.

use std::fmt;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

use super::ring;

/// Why the process is not sealed.
#[derive(Debug)]
pub enum Unsealed {
    /// The filter could not be created or installed, and why.
    Filter(String),
    /// It was installed, but a ring could be created nevertheless.
    Ineffective,
}

impl fmt::Display for Unsealed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(reason) => write!(formatter, "seccomp(2) takes no filter: {reason}"),
            Self::Ineffective => formatter.write_str("the seccomp filter has no effect"),
        }
    }
}

/// Refuses new rings and registrations to this process (EPERM), and checks that they are refused.
/// Also sets "no new privileges", without which a filter needs a capability.
///
/// # Errors
/// When the kernel does not accept the filter. Then nothing has changed, except possibly the
/// privileges.
pub fn seal_process() -> Result<(), Unsealed> {
    let program = filter().map_err(|error| Unsealed::Filter(error.to_string()))?;
    apply_filter_all_threads(&program).map_err(|error| Unsealed::Filter(error.to_string()))?;
    match ring::build(&ring::flags(16), 8).map_err(|error| error.kind()) {
        Err(io::ErrorKind::PermissionDenied) => Ok(()),
        _ => Err(Unsealed::Ineffective),
    }
}

/// The mark of a call of the x32 ABI (`__X32_SYSCALL_BIT` of the kernel). Such calls have the
/// architecture and, from number 424 on, the numbers of x86-64, so a filter with only the plain
/// numbers would permit them. Calls of the i386 ABI have another architecture: the filter ends the
/// process for them.
const X32_BIT: libc::c_long = 0x4000_0000;

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_register];
    let abis: &[libc::c_long] = if cfg!(target_arch = "x86_64") { &[0, X32_BIT] } else { &[0] };
    let refused = calls.iter().flat_map(|call| abis.iter().map(move |bit| call | bit));
    SeccompFilter::new(
        refused.map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The errno of a call without arguments, made by a child of this thread; none where perl(1) is
    /// missing. io_uring_setup(2) with zero entries never creates a ring.
    fn errno_of(call: libc::c_long) -> Option<i32> {
        let script = format!("$! = 0; syscall({call}, 0, 0); print $! + 0");
        let output = Command::new("perl").args(["-e", &script]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.parse().ok()
    }

    /// Goal: no ABI of this machine bypasses the filter. Method: a separate thread installs the
    /// filter, because it is permanent, and its children make the calls.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_other_abi_passes_the_filter() {
        let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_register];
        let calls = calls.into_iter().flat_map(|call| [call, call | X32_BIT]);
        if errno_of(libc::SYS_getpid).is_none() {
            println!("skipped: perl(1) is not here");
            return;
        }
        for call in calls.clone() {
            assert_ne!(errno_of(call), Some(libc::EPERM), "{call:#x} is refused already");
        }
        let sealed = std::thread::spawn(move || {
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            assert_eq!(errno_of(libc::SYS_getpid), Some(0));
            for call in calls {
                assert_eq!(errno_of(call), Some(libc::EPERM), "{call:#x}");
            }
        });
        sealed.join().unwrap();
    }
}
