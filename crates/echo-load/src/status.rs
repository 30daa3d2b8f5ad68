//! The exit statuses, all of them. Where several apply the lowest is told.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Status {
    /// All echoes were right and nothing is missing; nothing got worse.
    Fine = 0,
    /// Something came back wrong, or was lost.
    Faults = 1,
    /// Wrong usage (clap's own number), or the machine lacks what the run needs.
    Usage = 2,
    /// A connection could not be made.
    Unconnected = 3,
    /// Nothing was wrong, but something is missing; or a verdict is against the result.
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
