//! Monitoring: a snapshot as JSON on the status socket, metrics and health over HTTP, and the line
//! for HAProxy's agent-check.
//!
//! One separate thread serves all of it. The thread exists only if there is a socket for it. It
//! shares only the boards of [`crate::metrics`] with the workers. Whatever a client does (invalid
//! requests, silence, a thousand connections) costs at most the time of this thread. All answers
//! are read-only.
//!
//! The client is here too: [`client`] is the command `echo-uring status`.

pub mod client;
mod escape;
mod exposition;
mod family;
mod html;
mod http;
mod page;
pub mod process;
mod screen;
mod serve;
pub mod snapshot;
mod table;

use std::io;
use std::thread;

use socket2::Socket;

pub use serve::CLIENTS_MAX;
pub use snapshot::{Snapshot, State};

/// The service on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// One snapshot as JSON for each client.
    Status,
    /// HTTP: the page at `/`, `/metrics`, `/healthz`, `/ready`, `/serving`.
    Metrics,
    /// One line for HAProxy's agent-check for each client.
    AgentCheck,
}

/// A listening stream socket and its service.
#[derive(Debug)]
pub struct AdminListener {
    /// The service.
    pub service: Service,
    /// The socket; it is made non-blocking.
    pub socket: Socket,
}

/// `snapshot` as text for people.
#[must_use]
pub fn text(snapshot: &Snapshot) -> String {
    table::text(snapshot, None)
}

/// Starts the thread that serves `listeners` until the process ends. `gather` makes a new snapshot;
/// it may take some time if a worker is stalled.
///
/// # Errors
/// When the thread cannot be started, or a socket cannot be made non-blocking.
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
