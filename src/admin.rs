//! What monitoring asks for: a snapshot as JSON on the status socket, metrics and health over HTTP,
//! and the one word that HAProxy's agent-check wants.
//!
//! One thread of its own serves all of it; the thread exists only if there is a socket for it. It
//! shares nothing with an echo but the boards of [`crate::metrics`]. Whatever a client does
//! (garbage, silence, a thousand connections), it costs the others at most the time of this thread.
//! Nothing can be changed here: every answer is a reading.
//!
//! The other end is here too: [`client`] is the command `echo-uring status`.

pub mod client;
mod exposition;
mod http;
mod screen;
mod serve;
pub mod snapshot;
mod table;

use std::io;
use std::thread;

use socket2::Socket;

pub use serve::CLIENTS_MAX;
pub use snapshot::{Snapshot, State};

/// What is served at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// One snapshot as JSON to everybody who connects.
    Status,
    /// HTTP: `/metrics`, `/healthz`, `/ready`.
    Metrics,
    /// One line for HAProxy's agent-check to everybody who connects.
    AgentCheck,
}

/// A listening stream socket and what is served there.
#[derive(Debug)]
pub struct AdminListener {
    /// What is served.
    pub service: Service,
    /// The socket; it is made non-blocking.
    pub socket: Socket,
}

/// Starts the thread that serves at `listeners` until the process ends. `gather` makes a new
/// snapshot; it may take its time when a worker hangs.
///
/// # Errors
/// When the system gives no thread, or a socket cannot be made non-blocking.
pub fn start(
    listeners: Vec<AdminListener>,
    gather: impl Fn() -> Snapshot + Send + 'static,
) -> io::Result<()> {
    for listener in &listeners {
        listener.socket.set_nonblocking(true)?;
    }
    let thread = thread::Builder::new().name("admin".to_owned());
    thread.spawn(move || serve::serve(listeners, gather)).map(drop)
}
