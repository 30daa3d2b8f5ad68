//! The ring itself: set-up with the flags that improve performance, submission without loss,
//! waiting with a deadline.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{Builder, EnterFlags, IoUring, cqueue, opcode, squeue, types};
use nix::sys::eventfd::EventFd;

use super::entry;
use super::restrict;
use super::token::Token;
use super::unusable::{Call, Unusable};
use echo_core::op::Expectation;

/// Entries of the submission queue. A larger batch is handed over in pieces of this size.
pub(super) const SUBMISSIONS: u32 = 1024;

/// Entries of the completion queue: more than a turn can bring (every pooled buffer, every send),
/// so that it does not overflow; the kernel keeps completions that do not fit in a slower list.
pub(super) const COMPLETIONS: u32 = 16384;

/// A ring owned by one thread.
pub(super) struct Ring {
    inner: IoUring,
    /// The flags of a wait.
    waiting: EnterFlags,
    /// Entries that did not fit into the submission queue when the kernel did not take any.
    backlog: VecDeque<squeue::Entry>,
    /// The next alarm to be submitted points to this.
    alarm: Box<types::Timespec>,
    /// The moments of the alarms in flight, the next one last.
    alarms: Vec<Instant>,
    /// True exactly while the kernel has the poll of the eventfd that ends a wait.
    wake_armed: bool,
}

/// The required set-up flags (Linux 6.1): completions are processed on our thread when we reap
/// them, in batches, without interrupting it. Without them an echo costs 1.5 times as much.
pub(super) fn flags(completions: u32) -> Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(completions);
    builder
}

/// A ring set up with `flags`. Fails with EINVAL on kernels that are too old for them.
pub(super) fn build(flags: &Builder, submissions: u32) -> io::Result<IoUring> {
    // Without the index array a submission touches one cache line less (Linux 6.6); older kernels
    // return EINVAL.
    match flags.clone().setup_no_sqarray().build(submissions) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => flags.build(submissions),
        answer => answer,
    }
}

impl Ring {
    /// A ring for the calling thread, which is the only one that may use it.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self::of(build(&flags(COMPLETIONS), SUBMISSIONS)?))
    }

    /// A ring that takes registrations but no operations until [`Ring::seal`] enables it.
    pub(super) fn disabled() -> io::Result<Self> {
        let mut flags = flags(COMPLETIONS);
        flags.setup_r_disabled();
        Ok(Self::of(build(&flags, SUBMISSIONS)?))
    }

    fn of(inner: IoUring) -> Self {
        let (backlog, alarm, alarms) = (VecDeque::new(), Box::default(), Vec::new());
        Self { waiting: waiting(&inner), inner, backlog, alarm, alarms, wake_armed: false }
    }

    /// Enables a disabled ring for the calling thread, which is the only one that may use it from
    /// here on. Permits only the driver's operations, including those for datagrams if
    /// `with_datagrams` is set, and checks that others are refused.
    pub(super) fn seal(&mut self, with_datagrams: bool) -> Result<(), Unusable> {
        let restricted = restrict::restrict(&self.inner, with_datagrams);
        restricted.map_err(|error| Unusable::from_call(Call::Register, error))?;
        restrict::prove(&mut self.inner, with_datagrams)
    }

    /// The ring, for registrations.
    pub(super) fn inner(&self) -> &IoUring {
        &self.inner
    }

    /// Queues an entry. It reaches the kernel at the next turn at the latest.
    ///
    /// # Safety
    /// All memory that the entry points to must stay valid, and unchanged as far as the kernel
    /// reads it, until its completion has been reaped.
    // Inlined so that an entry is written field by field where the kernel reads it: copying bytes
    // that were just written in smaller pieces makes the processor wait (79 instead of 86 ns of our
    // own code an echo, with one call of `submit` a turn).
    #[inline(always)]
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller upholds the same contract.
        if !self.backlog.is_empty() || unsafe { self.inner.submission().push(&entry) }.is_err() {
            self.push_back(entry);
        }
    }

    /// Queues an entry for which the submission queue seems to have no room.
    #[cold]
    fn push_back(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        // An error loses nothing: the entries stay queued, and the next turn reports the error if
        // it persists.
        let _ = self.hand_over_backlog();
    }

    /// Accepts one connection. If the backlog is probably empty, the accept waits for a connection
    /// first, if the kernel supports that.
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, backlog: Expectation, token: Token) {
        let fd = types::Fd(listener.as_raw_fd());
        // The address of the peer is not requested.
        let accept = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut());
        let accept = accept.flags(libc::SOCK_CLOEXEC);
        let entry = match backlog {
            // This feature was added in Linux 6.10, like this kind of accept.
            Expectation::Silence if self.inner.params().is_feature_recvsend_bundle() => {
                entry::accept_when_readable(accept)
            }
            Expectation::Silence | Expectation::Data => accept.build(),
        };
        self.push_bare(entry.user_data(token.pack()));
    }

    /// Waits until `fd` is readable.
    pub(super) fn poll(&mut self, fd: BorrowedFd<'_>, token: Token) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32);
        self.push_bare(entry.build().user_data(token.pack()));
    }

    /// Waits until the peer of `fd` sends no more: it has shut down its side, or is gone.
    pub(super) fn poll_rdhup(&mut self, fd: BorrowedFd<'_>, token: Token) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLRDHUP as u32);
        self.push_bare(entry.build().user_data(token.pack()));
    }

    /// Reports each time that `fd` may have room for more bytes, and at once if it has room now.
    /// Also reports when the peer has shut down its side, or the connection is dead. Continues
    /// until it is canceled.
    pub(super) fn poll_room(&mut self, fd: BorrowedFd<'_>, token: Token) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLOUT as u32);
        self.push_bare(entry.multi(true).build().user_data(token.pack()));
    }

    /// Whether an alarm ends a wait no later than `moment`.
    pub(super) fn has_alarm_by(&self, moment: Instant) -> bool {
        self.alarms.last().is_some_and(|&next| next <= moment)
    }

    /// Ends a wait at `moment`. A wait with its own time limit starts and stops a timer, which is 4
    /// % of the cost of an echo in which neither side sleeps. An alarm is set once for all waits
    /// until then. An alarm that turns out to be too early ends one wait in vain.
    pub(super) fn set_alarm(&mut self, moment: Instant) {
        if self.has_alarm_by(moment) {
            return;
        }
        self.alarms.push(moment);
        let after = moment.saturating_duration_since(Instant::now());
        *self.alarm = types::Timespec::from(after);
        let entry = opcode::Timeout::new(&raw const *self.alarm);
        let entry = entry.build().user_data(Token::Alarm.pack());
        // SAFETY: the ring owns the memory that it points to. If the kernel reads it late, it may
        // find the moment of the next alarm, so this alarm fires early.
        unsafe { self.push(entry) };
    }

    /// The completion of the next alarm was reaped.
    pub(super) fn on_alarm(&mut self) {
        self.alarms.pop();
    }

    /// To be called before each turn: writing to `wake` ends a wait.
    pub(super) fn arm_wake(&mut self, wake: &EventFd) {
        if !std::mem::replace(&mut self.wake_armed, true) {
            self.poll(wake.as_fd(), Token::Wake);
        }
    }

    /// The completion of the poll of `wake` was reaped.
    pub(super) fn on_wake(&mut self, wake: &EventFd) {
        self.wake_armed = false;
        // The descriptor does not block. If there is nothing to read it was emptied before.
        let _ = wake.read();
    }

    /// Cancels the operation that was given `token`, if there is one.
    pub(super) fn cancel(&mut self, token: Token) {
        self.push_bare(unanswered(opcode::AsyncCancel::new(token.pack()).build()));
    }

    /// Closes `fd`.
    pub(super) fn close(&mut self, fd: OwnedFd) {
        self.push_bare(unanswered(opcode::Close::new(types::Fd(fd.into_raw_fd())).build()));
    }

    /// Queues an entry that points to no memory.
    fn push_bare(&mut self, entry: squeue::Entry) {
        // SAFETY: the callers above build entries without a pointer into our memory.
        unsafe { self.push(entry) };
    }

    /// Moves the backlog into the submission queue as it empties.
    fn hand_over_backlog(&mut self) -> io::Result<()> {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the contract of `push` for the entry holds until its completion.
            if unsafe { self.inner.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else {
                self.inner.submit()?;
            }
        }
        Ok(())
    }

    /// As [`Ring::submit_and_wait`] with a wait, but looks for completions for as long as
    /// `spin` before it sleeps: the kernel sets a flag in shared memory when it has some, so
    /// polling costs no system call, and a thread that is awake needs no wake-up.
    pub(super) fn submit_and_spin(&mut self, spin: Duration) -> io::Result<()> {
        self.hand_over_backlog()?;
        self.inner.submit()?;
        let began = Instant::now();
        loop {
            if !self.inner.completion().is_empty() {
                return Ok(());
            }
            if self.inner.submission().taskrun() {
                return self.inner.submit_and_wait(0).map(drop);
            }
            if began.elapsed() >= spin {
                return self.submit_and_wait(true);
            }
            std::hint::spin_loop();
        }
    }

    /// Hands everything to the kernel, and if it `waits`, waits for a completion: an alarm ends the
    /// wait, see [`Ring::set_alarm`].
    pub(super) fn submit_and_wait(&mut self, waits: bool) -> io::Result<()> {
        self.hand_over_backlog()?;
        if !waits {
            // The kernel also does the work that it has deferred.
            return self.inner.submit_and_wait(0).map(drop);
        }
        let submissions = self.inner.submission().len() as u32;
        let (flags, mask) = (self.waiting.bits(), None::<&libc::sigset_t>);
        // SAFETY: the queue has this many entries, and their memory is valid by the contract of
        // `push`.
        unsafe { self.inner.submitter().enter(submissions, 1, flags, mask) }.map(drop)
    }

    /// Whether the kernel has taken everything that was queued.
    pub(super) fn is_handed_over(&mut self) -> bool {
        self.backlog.is_empty() && self.inner.submission().is_empty()
    }

    /// Whether the kernel keeps completions in a slower list because the queue has no room for
    /// them. They are moved to the queue when the kernel is next entered.
    pub(super) fn has_overflowed(&mut self) -> bool {
        self.inner.submission().cq_overflow()
    }

    /// Completions that wait to be reaped, oldest first.
    pub(super) fn completions(&mut self) -> cqueue::CompletionQueue<'_> {
        self.inner.completion()
    }
}

/// What the outcome of a wait means when its completions have been reaped; `idle` if there were
/// none.
///
/// # Errors
/// When io_uring_enter(2) failed in a way that no retry remedies.
pub(super) fn outcome(waited: io::Result<()>, idle: bool) -> io::Result<()> {
    let Err(error) = waited else { return Ok(()) };
    match error.raw_os_error() {
        Some(libc::EINTR) => Ok(()),
        // The kernel is out of memory or requires its completions to be reaped first. Nothing is
        // lost: entries that were not taken are still queued. If there was nothing to reap either,
        // wait a moment.
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
            if idle {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        }
        _ => Err(error),
    }
}

/// Flags of a wait. By default the kernel accounts a wait as waiting for I/O: an idle daemon would
/// show as 100 % iowait in top(1) and as pressure in /proc/pressure/io. From Linux 6.15 on a flag
/// prevents that.
fn waiting(ring: &IoUring) -> EnterFlags {
    if books_waits_as_idle(ring) {
        EnterFlags::GETEVENTS | EnterFlags::NO_IOWAIT
    } else {
        EnterFlags::GETEVENTS
    }
}

/// Whether the kernel can account a wait for completions as idle instead of I/O (Linux 6.15).
pub(super) fn books_waits_as_idle(ring: &IoUring) -> bool {
    ring.params().is_feature_no_iowait()
}

/// Marks an entry whose success needs no completion.
fn unanswered(entry: squeue::Entry) -> squeue::Entry {
    entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(Token::Unanswered.pack())
}
