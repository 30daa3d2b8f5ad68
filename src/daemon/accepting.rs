//! Which worker accepts from which listening socket.
//!
//! - An address with one socket: all workers accept from it, in turn.
//! - An address with several sockets (SO_REUSEPORT): the kernel selects one for each connection.
//!   With as many sockets as workers or more, each socket has one worker, and each worker has one
//!   socket at least. With fewer, each worker has one socket, which it shares with some others.
//! - The sockets of workers without capacity are accepted from by all workers. (Those without
//!   capacity accept from none.)
//!
//! A listener that ends is emptied by all workers.

use std::os::fd::AsFd;
use std::sync::Arc;

use echo_ring::{ListeningSocket, Transport, affinity};

use crate::config::Config;

/// The CPUs that the workers are pinned to, in turn, if they are to be.
pub(super) fn cpus(config: &Config, warnings: &mut Vec<String>) -> Option<Vec<usize>> {
    if !config.server.pin_workers {
        return None;
    }
    match affinity::allowed_cpus() {
        Ok(cpus) => Some(cpus),
        Err(error) => {
            warnings.push(format!("workers are not pinned: cannot list the CPUs: {error}"));
            None
        }
    }
}

/// Makes the kernel select the socket of a worker for connections whose packets are received on the
/// worker's CPU. Without pinned workers it undoes what an earlier process may have set on inherited
/// sockets.
pub(super) fn steer(sockets: &[ListeningSocket], division: &Division, cpus: Option<&[usize]>) {
    for (index, socket) in sockets.iter().enumerate() {
        let Some(owner) = division.owner(index) else { continue };
        if socket.transport == Transport::Tcp {
            let cpu = cpus.map(|cpus| cpus[owner % cpus.len()]);
            // Without it the kernel selects by its hash, which is correct as well.
            let _ = affinity::steer(socket.socket.as_fd(), cpu);
        }
    }
}

/// The division of the listening sockets among the workers.
pub(super) struct Division {
    /// The sockets of each address, by their listener ids.
    addresses: Vec<Vec<usize>>,
    sockets: usize,
    /// For each worker, whether it is full.
    full: Vec<bool>,
}

impl Division {
    /// Of sockets at these addresses, in the order of their listener ids.
    pub(super) fn new(addresses: &[String], workers: usize) -> Self {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (socket, address) in addresses.iter().enumerate() {
            match groups.iter_mut().find(|group| addresses[group[0]] == *address) {
                Some(group) => group.push(socket),
                None => groups.push(vec![socket]),
            }
        }
        Self { addresses: groups, sockets: addresses.len(), full: vec![false; workers] }
    }

    /// Whether there is an address with several sockets.
    pub(super) fn is_divided(&self) -> bool {
        self.addresses.iter().any(|sockets| sockets.len() > 1)
    }

    /// The worker to which a socket belongs alone, if its address has as many as there are workers.
    pub(super) fn owner(&self, socket: usize) -> Option<usize> {
        let workers = self.full.len();
        let group = self.addresses.iter().find(|group| group.contains(&socket))?;
        let index = group.iter().position(|&other| other == socket)?;
        (group.len() > 1 && group.len() >= workers).then_some(index % workers)
    }

    /// From which sockets a worker accepts, in the order of their listener ids.
    pub(super) fn of_worker(&self, worker: usize) -> Arc<[bool]> {
        let workers = self.full.len();
        let mut ours = vec![false; self.sockets];
        for group in &self.addresses {
            for (index, &socket) in group.iter().enumerate() {
                let mut owners = (0..workers).filter(|&it| owns(group.len(), workers, index, it));
                let abandoned = owners.clone().all(|it| self.full[it]);
                ours[socket] = abandoned || owners.any(|it| it == worker);
            }
        }
        ours.into()
    }

    /// Notes whether a worker is full. True if workers may have to accept from other sockets.
    pub(super) fn note(&mut self, worker: usize, full: bool) -> bool {
        let changed = self.full[worker] != full;
        self.full[worker] = full;
        changed && self.is_divided()
    }
}

/// Whether the socket at `index` of the sockets of an address belongs to a worker, alone or not.
fn owns(sockets: usize, workers: usize, index: usize, worker: usize) -> bool {
    if sockets >= workers { index % workers == worker } else { worker % sockets == index }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn division(sockets: &[usize], workers: usize) -> Division {
        let address = |(number, &count): (usize, &usize)| vec![format!("[::1]:{number}"); count];
        let addresses: Vec<String> = sockets.iter().enumerate().flat_map(address).collect();
        Division::new(&addresses, workers)
    }

    /// Goal: every socket has a worker, and every worker a socket of each address, for all numbers
    /// of them, while any workers but one are full.
    #[test]
    fn every_socket_has_a_worker() {
        for (sockets, workers) in (1..=9).flat_map(|sockets| (1..=9).map(move |it| (sockets, it))) {
            let mut division = division(&[sockets, 1], workers);
            for full in 0..workers {
                let ours: Vec<_> = (0..workers).map(|worker| division.of_worker(worker)).collect();
                let case = format!("{sockets} sockets, {workers} workers, {full} full");
                let able = |socket: usize| (full..workers).any(|worker| ours[worker][socket]);
                assert!((0..=sockets).all(able), "{case}: nobody accepts from one");
                for worker in &ours {
                    assert!(worker[..sockets].contains(&true) && worker[sockets], "{case}");
                }
                division.note(full, true);
            }
        }
    }

    #[test]
    fn with_enough_sockets_each_has_one_worker() {
        let division = division(&[4, 1], 2);
        assert!(division.is_divided());
        assert_eq!(*division.of_worker(0), [true, false, true, false, true]);
        assert_eq!(*division.of_worker(1), [false, true, false, true, true]);
        let owners = [0, 1, 2, 3, 4].map(|socket| division.owner(socket));
        assert_eq!(owners, [Some(0), Some(1), Some(0), Some(1), None]);
    }

    #[test]
    fn one_socket_is_shared() {
        let mut division = division(&[1, 1], 64);
        assert!(!division.is_divided() && !division.note(3, true));
        assert_eq!(*division.of_worker(63), [true, true]);
        assert_eq!(division.owner(0), None);
    }
}
