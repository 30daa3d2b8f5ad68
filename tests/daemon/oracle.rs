//! The simplest correct echo server: a thread for each connection, with blocking calls.
//!
//! It validates the tests: a script that fails against it is wrong. Its only special option is
//! SO_OOBINLINE on the listening socket; without it urgent bytes are removed from the stream.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Socket;

use crate::machine::{time_limit, wait_until};
use crate::place::{Listening, Place};

/// A running oracle.
pub(crate) struct Oracle {
    place: Place,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<JoinHandle<()>>>>,
}

impl Oracle {
    /// Serves `listening` until stopped.
    pub(crate) fn start(listening: Listening) -> Self {
        let Listening { socket, place } = listening;
        socket.set_out_of_band_inline(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let thread = std::thread::spawn(move || accept_until(&stop, &socket));
        Self { place, done, thread: Some(thread) }
    }

    /// The place of its listening socket.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Ends it after all clients have closed. No connection may be left.
    pub(crate) fn stop(mut self) {
        self.done.store(true, Ordering::Relaxed);
        for connection in self.thread.take().unwrap().join().unwrap() {
            wait_until("the oracle's last connection to end", time_limit(10.0), || {
                connection.is_finished()
            });
            connection.join().unwrap();
        }
    }
}

fn accept_until(stop: &AtomicBool, listener: &Socket) -> Vec<JoinHandle<()>> {
    let mut connections = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((socket, _)) => {
                let thread = std::thread::Builder::new().stack_size(128 * 1024);
                connections.push(thread.spawn(move || echo(&socket)).unwrap());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                crate::place::readable(listener, Duration::from_millis(20));
            }
            // A peer may close before it is accepted; that is no failure.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}"),
        }
    }
    connections
}

/// Echoes until the peer closes, resets or fails.
fn echo(mut socket: &Socket) {
    socket.set_nonblocking(false).unwrap();
    // Connections of a Unix socket do not inherit it.
    socket.set_out_of_band_inline(true).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = socket.read(&mut buffer) {
        if length == 0 {
            // A failure here means that the peer has closed already.
            drop(socket.shutdown(Shutdown::Write));
            return;
        }
        if socket.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
