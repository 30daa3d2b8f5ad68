//! The terminal that the daemon was started on, if it was started by hand.
//!
//! SIGHUP has two meanings: reload the configuration and, much older, the terminal was closed. A
//! user who closes the window of a running daemon expects it to end, not to continue unseen.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use nix::libc::SI_KERNEL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::siginfo;

/// A terminal among the standard streams.
#[derive(Debug)]
pub(super) struct Terminal(OwnedFd);

impl Terminal {
    /// The terminal of this process; nothing if all streams are redirected, as with nohup(1).
    pub(super) fn of_this_process() -> Option<Self> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let stream = [
            stdin.is_terminal().then(|| stdin.as_fd()),
            stdout.is_terminal().then(|| stdout.as_fd()),
            stderr.is_terminal().then(|| stderr.as_fd()),
        ];
        let stream = stream.into_iter().flatten().next()?;
        stream.try_clone_to_owned().ok().map(Self)
    }

    /// Whether this SIGHUP means that the terminal was closed. The kernel sends one when the
    /// terminal hangs up or the shell dies. If a shell passes one on, the state of the terminal
    /// shows it.
    pub(super) fn has_gone(&self, hangup: &siginfo) -> bool {
        hangup.ssi_code == SI_KERNEL || self.is_closed()
    }

    fn is_closed(&self) -> bool {
        let mut source = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut source, PollTimeout::ZERO) == Ok(1)
            && source[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}
