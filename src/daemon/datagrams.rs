//! The datagram sockets: which worker owns which.
//!
//! A socket has one owner, since two rings on one socket reorder the datagrams of a flow. An
//! address that was bound here has a socket for each worker, and the kernel spreads flows over them
//! (SO_REUSEPORT). Inherited sockets are spread over the workers; with fewer sockets than workers
//! some serve none.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use echo_core::admission::IpSet;
use echo_core::datagram::SocketParameters;
use echo_ring::{DatagramHeaders, DatagramSocket, Identity, UnixNames};

use super::report;
use super::view::Label;
use crate::listen::{self, Origin};

/// An address at which datagrams are received, with the sockets that were passed or bound for it.
pub(super) struct DatagramListener {
    pub(super) label: Label,
    pub(super) origin: Origin,
    /// Whether it is UDP, of whose address there may be several sockets.
    pub(super) is_udp: bool,
    pub(super) sockets: Vec<OwnedFd>,
    /// The proxies whose datagrams it takes; none if they have no header.
    pub(super) proxies: Option<IpSet>,
    /// What its datagrams are answered with, if not by themselves.
    pub(super) identity: Option<Identity>,
}

/// The sockets of one worker.
#[derive(Default)]
pub(super) struct Owned {
    pub(super) sockets: Vec<Arc<DatagramSocket>>,
    pub(super) parameters: Vec<SocketParameters>,
}

/// A socket for those that look at it. Its owner closes it.
#[derive(Debug)]
pub(super) struct Watched {
    listener: usize,
    socket: Weak<DatagramSocket>,
    drops: Continued,
    /// The number at the start of this process.
    at_start: u64,
}

impl Watched {
    fn new(listener: usize, socket: &Arc<DatagramSocket>) -> Self {
        let socket = Arc::downgrade(socket);
        let mut watched = Self { listener, socket, drops: Continued::default(), at_start: 0 };
        watched.look();
        watched.at_start = watched.drops.total;
        watched
    }

    fn look(&mut self) {
        if let Some(Ok(drops)) = self.socket.upgrade().map(|socket| socket.kernel_drops()) {
            self.drops.advance(drops);
        }
    }
}

/// A number that the kernel counts modulo 2^32, continued beyond that.
#[derive(Debug, Default)]
struct Continued {
    last: u32,
    total: u64,
}

impl Continued {
    fn advance(&mut self, now: u32) {
        self.total += u64::from(now.wrapping_sub(self.last));
        self.last = now;
    }
}

/// How many datagrams the kernel has dropped because a receive buffer was full.
///
/// The kernel counts them for each socket, modulo 2^32, from the moment that the socket was made,
/// and forgets the number with the socket. Here the number is continued: it is read once a second
/// at least, so it never wraps unnoticed (2^32 datagrams a second exceed any link), and the last
/// one stays after the end of a socket. What is dropped between that reading and the end is
/// missing.
#[derive(Debug, Default)]
pub(super) struct KernelDrops(Mutex<Vec<Watched>>);

impl KernelDrops {
    pub(super) fn new(sockets: Vec<Watched>) -> Self {
        Self(Mutex::new(sockets))
    }

    /// Reads the numbers of the sockets that are open.
    pub(super) fn update(&self) {
        drop(self.look());
    }

    /// For each listener (their number is `listeners`), since its sockets were made. Inherited
    /// sockets may be older than this process: what was dropped while no daemon ran is included.
    pub(super) fn by_listener(&self, listeners: usize) -> Vec<u64> {
        let mut sums = vec![0; listeners];
        for watched in self.look().iter() {
            sums[watched.listener] += watched.drops.total;
        }
        sums
    }

    /// For all of them, since the start of this process.
    pub(super) fn since_start(&self) -> u64 {
        self.look().iter().map(|watched| watched.drops.total - watched.at_start).sum()
    }

    fn look(&self) -> MutexGuard<'_, Vec<Watched>> {
        let mut sockets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter_mut().for_each(Watched::look);
        sockets
    }
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
    /// Gives every socket an owner among this number of workers, and own addresses as many sockets.
    ///
    /// # Errors
    /// When the system refuses a socket or an option.
    pub(super) fn new(listeners: &mut [DatagramListener], workers: usize) -> io::Result<Self> {
        let mut assigned = Self::default();
        assigned.owned.resize_with(workers, Owned::default);
        let mut next = 0;
        let mut fewest: Option<(usize, String)> = None;
        let names = UnixNames::of(listeners.iter().flat_map(|listener| &listener.sockets));
        let names = Arc::new(names);
        for (index, listener) in listeners.iter_mut().enumerate() {
            let count = listener.sockets.len();
            match (listener.origin, listener.sockets.first()) {
                // Of a Unix address there is one socket, so one worker serves it.
                _ if !listener.is_udp => {}
                (Origin::Bound, Some(first)) => {
                    let more = listen::siblings(first, workers - count.min(workers))?;
                    listener.sockets.extend(more);
                }
                (Origin::Inherited, _)
                    if fewest.as_ref().is_none_or(|(least, _)| count < *least) =>
                {
                    fewest = Some((count, too_few(listener, workers)));
                }
                _ => {}
            }
            let headers = match listener.proxies {
                None => DatagramHeaders::Absent,
                Some(_) => DatagramHeaders::Required,
            };
            for socket in listener.sockets.drain(..) {
                let socket = DatagramSocket::beside(&names, socket, headers)?;
                let socket = Arc::new(socket.with_identity(listener.identity.clone())?);
                assigned.ports.extend(listener.is_udp.then_some(socket.own().port));
                assigned.watched.push(Watched::new(index, &socket));
                let owned = &mut assigned.owned[next % workers];
                next += 1;
                owned.parameters.push(SocketParameters {
                    own: socket.own(),
                    listener: index as u16,
                    outlives_us: listener.origin == Origin::Inherited,
                    identifies: listener.identity.is_some(),
                });
                owned.sockets.push(socket);
            }
        }
        let is_any_without = assigned.owned.iter().any(|owned| owned.sockets.is_empty());
        let warning = fewest.filter(|_| is_any_without);
        assigned.warnings.extend(warning.map(|(_, warning)| warning));
        Ok(assigned)
    }
}

/// Some workers serve no datagrams; this listener has the fewest sockets.
fn too_few(listener: &DatagramListener, workers: usize) -> String {
    format!(
        "{} ({}) has {}, so only as many of the {workers} workers serve it; for more, repeat \
         ListenDatagram= in the socket unit, with ReusePort=yes",
        listener.label.address,
        listener.label.name,
        report::count(listener.sockets.len() as u64, "socket"),
    )
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_number_is_continued_beyond_its_end() {
        let mut drops = Continued::default();
        for (now, total) in [(5, 5), (5, 5), (u32::MAX, 0xffff_ffff), (3, 0x1_0000_0003)] {
            drops.advance(now);
            assert_eq!(drops.total, total);
        }
    }

    /// Goal: drops from before the start are shown for the listener and not as those of this
    /// process, and a number stays when its socket has gone.
    #[test]
    fn drops_outlive_their_socket() {
        let (socket, client) = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap()).into();
        let flood = || {
            for _ in 0..2_000 {
                client.send_to(b"?", socket.local_addr().unwrap()).unwrap();
            }
        };
        flood();
        let shared = socket.try_clone().unwrap().into();
        let socket_of_worker = DatagramSocket::new(shared, DatagramHeaders::Absent);
        let socket_of_worker = Arc::new(socket_of_worker.unwrap());
        let before = u64::from(socket_of_worker.kernel_drops().unwrap());
        let drops = KernelDrops::new(vec![Watched::new(1, &socket_of_worker)]);
        assert!(before > 0, "the receive buffer of this machine holds 2,000 datagrams");
        assert_eq!((drops.by_listener(2), drops.since_start()), (vec![0, before], 0));
        flood();
        assert_eq!((drops.by_listener(2), drops.since_start()), (vec![0, before + 2_000], 2_000));
        drop(socket_of_worker);
        flood();
        assert_eq!(drops.since_start(), 2_000);
    }
}
