//! The signals that end a run: the first ends it with its result, the second ends the process.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::status::Status;

/// SIGINT and SIGTERM, blocked and readable.
pub(crate) struct Signals {
    fd: SignalFd,
    interrupted: bool,
}

impl Signals {
    /// Must be called before any thread is started, so that all threads inherit the signal mask.
    ///
    /// # Errors
    /// When there can be no signalfd(2).
    pub(crate) fn new() -> Result<Self, String> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        mask.thread_block().map_err(|error| format!("cannot block signals: {error}"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&mask, flags)
            .map_err(|error| format!("cannot receive signals: {error}"))?;
        Ok(Self { fd, interrupted: false })
    }

    /// Whether a signal has arrived. The second signal ends the process at once.
    pub(crate) fn is_interrupted(&mut self) -> bool {
        while let Ok(Some(_)) = self.fd.read_signal() {
            if std::mem::replace(&mut self.interrupted, true) {
                std::process::exit(i32::from(Status::Killed as u8));
            }
        }
        self.interrupted
    }
}

impl AsFd for Signals {
    /// Readable when there is a signal.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
