//! The lines that a process writes to a pipe.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::machine::wait_until;

/// Collects lines in a thread of its own until the pipe ends.
pub(crate) struct Lines {
    list: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl Lines {
    /// Reads `pipe`.
    pub(crate) fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::none();
        lines.ended.store(false, Ordering::Relaxed);
        let (list, ended) = (Arc::clone(&lines.list), Arc::clone(&lines.ended));
        std::thread::spawn(move || {
            for bytes in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                list.lock().unwrap().push(text);
            }
            ended.store(true, Ordering::Relaxed);
        });
        lines
    }

    /// Nothing to read.
    pub(crate) fn none() -> Self {
        Self { list: Arc::default(), ended: Arc::new(AtomicBool::new(true)) }
    }

    /// All lines so far.
    pub(crate) fn all(&self) -> Vec<String> {
        self.list.lock().unwrap().clone()
    }

    /// Waits for a line that contains `part`.
    pub(crate) fn wait_for(&self, part: &str, limit: Duration) -> String {
        let mut found = None;
        wait_until(&format!("a line with {part:?}"), limit, || {
            found = self.all().into_iter().find(|line| line.contains(part));
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until the pipe has ended.
    pub(crate) fn wait_for_end(&self, limit: Duration) {
        wait_until("the end of stderr", limit, || self.ended.load(Ordering::Relaxed));
    }
}
