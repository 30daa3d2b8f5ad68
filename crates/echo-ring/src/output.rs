//! Output of the programs on standard output and standard error.
//!
//! A result that cannot be written is a failure: a full disk and a closed descriptor are reported.
//! A reader that closed the pipe (`| head`) is not a failure.

use std::io::{self, Write};

use crate::standard_output_was_closed;

/// `EX_IOERR` of sysexits.h: the exit status of the daemon's commands when their output cannot be
/// written.
pub const EXIT_OUTPUT: u8 = 74;

/// Whether standard output can be written to at all.
///
/// # Errors
/// EBADF, if it was closed when the program started. Rust opens /dev/null in its place, so that
/// writing to it would seem to succeed.
pub fn check() -> io::Result<()> {
    if standard_output_was_closed() {
        // EBADF has the same number on all architectures.
        return Err(io::Error::from_raw_os_error(9));
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
