//! A stand-in for the service manager's end of `NOTIFY_SOCKET`: records the daemon's notifications
//! and their times.
//!
//! It keeps the descriptors that the daemon stores, and checks nothing. The protocol is described
//! in sd_notify(3).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The message with which others fill its queue.
const FILLER: &str = "x";

/// One datagram of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Notification {
    /// When it came.
    pub(crate) at: Instant,
    /// Its text: lines of the form `NAME=value`.
    pub(crate) text: String,
}

impl Notification {
    /// The value of `name` in it.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| -> Option<usize> {
            (line.strip_prefix(name)?.starts_with('=')).then_some(name.len() + 1)
        };
        self.text.lines().find_map(|line| value(line).map(|start| &line[start..]))
    }
}

/// Descriptors of barriers that are not answered yet; none are held if there is no list.
type Held = Option<Vec<OwnedFd>>;

/// Receives notifications in a thread of its own until dropped.
pub(crate) struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    received: Arc<Mutex<Vec<Notification>>>,
    stored: Arc<Mutex<Vec<OwnedFd>>>,
    held: Arc<Mutex<Held>>,
    done: Arc<AtomicBool>,
    is_paused: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    /// Listens at `path`, which must not exist.
    pub(crate) fn start(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let ours = socket.try_clone().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let done = Arc::new(AtomicBool::new(false));
        let is_paused = Arc::new(AtomicBool::new(false));
        let paused = Arc::clone(&is_paused);
        let stored = Arc::new(Mutex::new(Vec::new()));
        let held: Arc<Mutex<Held>> = Arc::default();
        let (list, stop, store) = (Arc::clone(&received), Arc::clone(&done), Arc::clone(&stored));
        let barriers = Arc::clone(&held);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                if paused.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                match receive(&socket, &mut buffer) {
                    Ok((length, descriptors)) => {
                        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        if text.contains("FDSTORE=1") {
                            store.lock().unwrap().extend(descriptors);
                        } else if text.contains("FDSTOREREMOVE=1") {
                            store.lock().unwrap().clear();
                        } else if text.contains("BARRIER=1")
                            && let Some(held) = &mut *barriers.lock().unwrap()
                        {
                            held.extend(descriptors);
                        }
                        if text == FILLER {
                            continue;
                        }
                        list.lock().unwrap().push(Notification { at: Instant::now(), text });
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => panic!("the notify socket failed: {error}"),
                }
            }
        });
        Self {
            path: path.to_owned(),
            socket: ours,
            received,
            stored,
            held,
            done,
            is_paused,
            thread: Some(thread),
        }
    }

    /// The value for `NOTIFY_SOCKET`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Stops reading, with a queue that others have filled.
    pub(crate) fn stop_reading(&self) {
        self.is_paused.store(true, Ordering::Relaxed);
        // Longer than it waits for a message.
        std::thread::sleep(Duration::from_millis(100));
        let other = UnixDatagram::unbound().unwrap();
        other.connect(&self.path).unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send(FILLER.as_bytes()).is_ok() {}
    }

    /// Reads again after `span`.
    pub(crate) fn read_again_after(&self, span: Duration) {
        let is_paused = Arc::clone(&self.is_paused);
        std::thread::spawn(move || {
            std::thread::sleep(span);
            is_paused.store(false, Ordering::Relaxed);
        });
    }

    /// Ends it. The socket is shut down and not only closed, as a child of another test may briefly
    /// have a copy, which would still receive messages.
    pub(crate) fn end(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.socket.shutdown(Shutdown::Both).unwrap();
        // Dropped after `end`, the thread has been joined already.
        let _ = std::fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }

    /// Takes the stored descriptors; the store is then empty.
    pub(crate) fn take_stored(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.stored.lock().unwrap())
    }

    /// Whether the store has descriptors.
    pub(crate) fn has_stored(&self) -> bool {
        !self.stored.lock().unwrap().is_empty()
    }

    /// From now on barriers are not answered; or they are answered again, including the held ones.
    pub(crate) fn hold_barriers(&self, hold: bool) {
        *self.held.lock().unwrap() = hold.then(Vec::new);
    }

    /// Everything that came so far, oldest first.
    pub(crate) fn received(&self) -> Vec<Notification> {
        self.received.lock().unwrap().clone()
    }

    /// The values of `name` so far, with the time of each.
    pub(crate) fn values(&self, name: &str) -> Vec<(Instant, String)> {
        let pair = |it: &Notification| it.field(name).map(|value| (it.at, value.to_owned()));
        self.received().iter().filter_map(pair).collect()
    }
}

/// The next datagram, with what came along with it.
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let got = recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    Ok((got.bytes, descriptors.collect()))
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn fields_are_found_by_their_whole_name() {
    let text = "STATUS=3 connections\nREADY=1".to_owned();
    let notification = Notification { at: Instant::now(), text };
    assert_eq!(notification.field("READY"), Some("1"));
    assert_eq!(notification.field("STATUS"), Some("3 connections"));
    assert_eq!(notification.field("STAT"), None);
}
