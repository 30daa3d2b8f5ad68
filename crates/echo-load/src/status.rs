//! All exit statuses. If several apply, the lowest is returned.

use std::process::ExitCode;

/// The exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Status {
    /// All echoes were correct and complete; nothing got worse.
    Fine = 0,
    /// An echo was wrong or lost.
    Faults = 1,
    /// Usage error (clap's own number), or the machine lacks a resource that the run needs.
    Usage = 2,
    /// A connection could not be made.
    Unconnected = 3,
    /// Nothing was wrong, but the result is incomplete, or worse than the one it is compared with.
    Incomplete = 4,
    /// The result could not be written.
    Output = 5,
    /// A second signal ended the process.
    Killed = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}
