//! The last ring has been made: the process gives up the right to make another.
//!
//! A restricted ring (see `restrict`) would be worth little if whoever got hold of the process
//! could make an open one beside it. So, once the workers run, a seccomp filter refuses
//! io_uring_setup(2) and io_uring_register(2) to all threads, for ever. io_uring_enter(2) on the
//! rings there are goes on.

use std::fmt;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

use super::ring;

/// Why the process is not sealed.
#[derive(Debug)]
pub enum Unsealed {
    /// The filter could not be made or was not taken, and why.
    Filter(String),
    /// It was taken, but a ring could be made all the same.
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

/// Refuses new rings and registrations to this process (EPERM), and sees that they are refused.
/// Also sets "no new privileges", without which a filter needs a capability.
///
/// # Errors
/// When the kernel takes no filter. Then nothing has changed, except perhaps the privileges.
pub fn seal_process() -> Result<(), Unsealed> {
    let program = filter().map_err(|error| Unsealed::Filter(error.to_string()))?;
    apply_filter_all_threads(&program).map_err(|error| Unsealed::Filter(error.to_string()))?;
    match ring::build(&ring::flags(16), 8).map_err(|error| error.kind()) {
        Err(io::ErrorKind::PermissionDenied) => Ok(()),
        _ => Err(Unsealed::Ineffective),
    }
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let refused = [libc::SYS_io_uring_setup, libc::SYS_io_uring_register];
    SeccompFilter::new(
        refused.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?
    .try_into()
}
