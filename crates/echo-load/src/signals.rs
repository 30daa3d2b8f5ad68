//! The signals that end a run: the first lets it end with its result, the second ends the process.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::status::Status;

/// SIGINT and SIGTERM, from the time on at which this was made.
pub(crate) struct Signals {
    fd: SignalFd,
    interrupted: bool,
}

impl Signals {
    /// To be made before any thread is: all inherit that the signals are blocked.
    ///
    /// # Errors
    /// When the kernel gives no signalfd(2).
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

    /// Whether the user asked us to end. The second time ends the process at once.
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
