//! Output of the programs on standard output and standard error.
//!
//! A result that cannot be written is a failure: a full disk and a closed descriptor are reported.
//! A reader that closed the pipe (`| head`) is not a failure.
//!
//! The start-up code of Rust opens /dev/null in place of standard descriptors that are closed, so
//! writing a result to such a descriptor would seem to succeed. Therefore standard output is
//! checked before that code runs.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether standard output was closed when the program started.
static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

// SAFETY: the C library calls each pointer in this section once, on the only thread, before main;
// `look` expects no more than that, and takes no argument (further ones are ignored).
#[unsafe(link_section = ".init_array")]
#[used]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: F_GETFD takes no argument, touches no memory, and fails with EBADF if there is no
    // such descriptor.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    WAS_CLOSED.store(flags < 0, Ordering::Relaxed);
}

/// `EX_IOERR` of sysexits.h: the exit status of the daemon's commands when their output cannot be
/// written.
pub const EXIT_OUTPUT: u8 = 74;

/// Whether standard output can be written to at all.
///
/// # Errors
/// EBADF, if it was closed when the program started.
pub fn check() -> io::Result<()> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(())
}

/// Writes `text` to standard output, all of it.
///
/// # Errors
/// When it could not be written, except when the reader closed the pipe.
pub fn print(text: &str) -> io::Result<()> {
    match write(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// As [`print()`], for callers that need to know that the reader closed the pipe.
///
/// # Errors
/// When it could not be written.
pub fn write(text: &str) -> io::Result<()> {
    check()?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The message when [`print()`] fails.
#[must_use]
pub fn unwritten(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

/// Writes a line to standard error. A failure cannot be reported, and is ignored.
pub fn complain(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
