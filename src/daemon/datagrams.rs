//! The datagram sockets: which worker owns which.
//!
//! A socket has one owner, since two rings on one socket reorder the datagrams of a flow. An
//! address that was bound here has a socket for each worker, and the kernel spreads flows over them
//! (SO_REUSEPORT). Inherited sockets are spread over the workers; with fewer sockets than workers
//! some serve none.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use echo_core::datagram::SocketParameters;
use echo_ring::DatagramSocket;

use super::report;
use super::view::Label;
use crate::listen::{self, Origin};

/// An address at which datagrams are received, with the sockets that were passed or bound for it.
pub(super) struct DatagramListener {
    pub(super) label: Label,
    pub(super) origin: Origin,
    pub(super) sockets: Vec<OwnedFd>,
}

/// The sockets of one worker.
#[derive(Default)]
pub(super) struct Owned {
    pub(super) sockets: Vec<Arc<DatagramSocket>>,
    pub(super) parameters: Vec<SocketParameters>,
}

/// A socket for those that look at it. Its owner closes it.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) listener: usize,
    pub(super) socket: Weak<DatagramSocket>,
}

/// The sockets of all workers.
#[derive(Default)]
pub(super) struct Assigned {
    /// One for each worker.
    pub(super) owned: Vec<Owned>,
    pub(super) watched: Vec<Watched>,
    /// Our own ports: nothing is answered to them.
    pub(super) ports: Vec<u16>,
    /// One line each.
    pub(super) warnings: Vec<String>,
}

impl Assigned {
    /// Gives every socket an owner among so many workers, and own addresses as many sockets.
    ///
    /// # Errors
    /// When the system refuses a socket or an option.
    pub(super) fn new(listeners: &mut [DatagramListener], workers: usize) -> io::Result<Self> {
        let mut assigned = Self::default();
        assigned.owned.resize_with(workers, Owned::default);
        let mut next = 0;
        for (index, listener) in listeners.iter_mut().enumerate() {
            let count = listener.sockets.len();
            match (listener.origin, listener.sockets.first()) {
                (Origin::Bound, Some(first)) => {
                    let more = listen::siblings(first, workers - count.min(workers))?;
                    listener.sockets.extend(more);
                }
                (Origin::Inherited, _) if count < workers => {
                    assigned.warnings.push(too_few(listener, workers));
                }
                _ => {}
            }
            for socket in listener.sockets.drain(..) {
                let socket = Arc::new(DatagramSocket::new(socket)?);
                assigned.ports.push(socket.own().port);
                let socket_index = Arc::downgrade(&socket);
                assigned.watched.push(Watched { listener: index, socket: socket_index });
                let owned = &mut assigned.owned[next % workers];
                next += 1;
                owned.parameters.push(SocketParameters {
                    own: socket.own(),
                    listener: index as u16,
                    outlives_us: listener.origin == Origin::Inherited,
                });
                owned.sockets.push(socket);
            }
        }
        Ok(assigned)
    }
}

fn too_few(listener: &DatagramListener, workers: usize) -> String {
    format!(
        "{} ({}) has {}, so only as many of the {workers} workers serve it; for more, repeat \
         ListenDatagram= in the socket unit, with ReusePort=yes",
        listener.label.address,
        listener.label.name,
        report::count(listener.sockets.len() as u64, "socket"),
    )
}
