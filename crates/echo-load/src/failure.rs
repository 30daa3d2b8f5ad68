//! Why a run has no result.

use std::time::Duration;

use crate::status::Status;

/// The maximum time between two checks for signals.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// Why there is no result.
pub(crate) enum Failure {
    /// The user ended the run before it began.
    Interrupted,
    /// An error: the exit status and the text.
    Fatal(Status, String),
}

impl Failure {
    /// An error of usage, or of the machine.
    pub(crate) fn usage(why: impl std::fmt::Display) -> Self {
        Self::Fatal(Status::Usage, why.to_string())
    }
}
