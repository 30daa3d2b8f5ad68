//! What programs say on standard output and standard error.
//!
//! A result that cannot be written is a failure: a full disk and a closed descriptor are told. A
//! reader that went away (`| head`) is none, it has what it wanted.

use std::io::{self, Write};

use crate::standard_output_was_closed;

/// `EX_IOERR` of sysexits.h: what the daemon's commands end with when they cannot be heard.
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
/// When it could not be written, but for a reader that went away.
pub fn print(text: &str) -> io::Result<()> {
    match write(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// As [`print()`], for callers that have to know that the reader went away.
///
/// # Errors
/// When it could not be written.
pub fn write(text: &str) -> io::Result<()> {
    check()?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// What is said when [`print()`] fails.
#[must_use]
pub fn unwritten(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

/// Writes a line to standard error. A failure cannot be reported, and is ignored.
pub fn complain(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
