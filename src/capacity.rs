//! How many open files and how much locked memory a daemon needs: one calculation for the daemon
//! and the doctor.
//!
//! It calculates only: it reads no limit and raises none.

use crate::admin;
use crate::config::{Config, Workers};

/// Descriptors that are neither connections nor listed below: standard streams, log, notify and
/// signal sockets, and a reserve.
const FILES_SPARE: u64 = 32;
/// Descriptors of one worker: its ring and its eventfd.
const FILES_PER_WORKER: u64 = 2;

/// The sockets that a daemon listens on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Those that echo.
    pub echo: usize,
    /// Those that serve status and metrics.
    pub admin: usize,
}

/// The number of workers of `config` on this machine.
#[must_use]
pub fn workers(config: &Config) -> usize {
    match config.server.workers {
        // The CPUs that this process may use, by affinity and by CPU quota.
        Workers::Auto => std::thread::available_parallelism().map_or(1, usize::from),
        Workers::Count(count) => usize::from(count),
    }
}

/// Descriptors that `workers` need with these sockets, without echo connections.
#[must_use]
pub fn files_besides_connections(workers: usize, sockets: Sockets) -> u64 {
    let admin = sockets.admin * (1 + admin::CLIENTS_MAX);
    FILES_SPARE + FILES_PER_WORKER * workers as u64 + (sockets.echo + admin) as u64
}

/// How many connections fit below a limit on open files, at least one.
#[must_use]
pub fn room(files_max: u64, workers: usize, sockets: Sockets) -> u32 {
    let room = files_max.saturating_sub(files_besides_connections(workers, sockets)).max(1);
    u32::try_from(room).unwrap_or(u32::MAX)
}

/// Bytes of locked memory that the kernel charges for the rings of `workers`, with or without
/// buffers for datagrams.
#[must_use]
pub fn locked_bytes(config: &Config, workers: usize, with_datagrams: bool) -> u64 {
    let each = echo_ring::locked_bytes_of_worker(config.server.buffers, with_datagrams);
    each * workers as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_and_what_fits_add_up() {
        let sockets = Sockets { echo: 2, admin: 1 };
        let besides = files_besides_connections(4, sockets);
        assert_eq!(besides, 32 + 4 * 2 + 2 + 33);
        assert_eq!(room(besides + 1000, 4, sockets), 1000);
        assert_eq!(room(besides, 4, sockets), 1, "at least one connection fits");
        assert_eq!(room(u64::MAX, 4, sockets), u32::MAX);
    }
}
