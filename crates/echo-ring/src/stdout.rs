//! Whether standard output was open when the program started.
//!
//! The start-up code of Rust opens /dev/null in place of standard descriptors that are closed, so
//! writing a result to such a descriptor would seem to succeed. This module checks the descriptor
//! before that code runs.

use std::sync::atomic::{AtomicBool, Ordering};

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

/// Whether standard output was closed when the program started.
#[must_use]
pub fn standard_output_was_closed() -> bool {
    WAS_CLOSED.load(Ordering::Relaxed)
}
