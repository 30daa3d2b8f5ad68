//! Standard output in a separate thread, so that a slow or stopped reader delays neither the load
//! nor the handling of signals.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use echo_ring::output;

/// A queue of lines for standard output.
pub(crate) struct Writer {
    lines: Option<Sender<String>>,
    ended: Receiver<io::Result<()>>,
    failed: Arc<AtomicBool>,
}

impl Writer {
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start() -> io::Result<Self> {
        let (lines, queue) = mpsc::channel::<String>();
        let (tell, ended) = mpsc::channel();
        let failed = Arc::<AtomicBool>::default();
        let mark = failed.clone();
        let work = move || {
            for line in queue {
                let written = output::write(&line);
                if written.is_err() {
                    mark.store(true, Ordering::Relaxed);
                    // It fails only if the process is about to end.
                    let _ = tell.send(written);
                    return;
                }
            }
            let _ = tell.send(Ok(()));
        };
        thread::Builder::new().name("output".to_owned()).spawn(work)?;
        Ok(Self { lines: Some(lines), ended, failed })
    }

    /// Queues `line`.
    pub(crate) fn print(&self, line: &str) {
        if let Some(lines) = &self.lines {
            // It fails only after a line could not be written.
            let _ = lines.send(format!("{line}\n"));
        }
    }

    /// Whether writing has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits up to `timeout` until everything is written. None if it is not yet.
    pub(crate) fn finish(&mut self, timeout: Duration) -> Option<io::Result<()>> {
        self.lines = None;
        match self.ended.recv_timeout(timeout) {
            Ok(written) => Some(written),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(io::Error::other("the thread that writes has ended")))
            }
        }
    }
}
