//! The ring: the only package with unsafe code, and the only one that accesses pointers or payload.
//!
//! It carries out the operations of [`echo_core::op`] on a real ring and turns completions into
//! events. It makes no decisions: the core decides what to receive, send or close. Its public
//! functions are sound for any caller, including a buggy core: they panic rather than give the
//! kernel memory that is not ours.
//!
//! Reading order: [`driver`] (operations and events), `ring` (set-up, submission, waiting), `token`
//! (`user_data`), `buffers` (the pools), `spill` (spilled bytes and their memory),
//! `datagram_socket` and `control` (what comes with a datagram), `errno` (what each error means),
//! `peer` (where connections come from), `identity` (the line that tells a peer where it has
//! arrived), `prepared` (rings that have no thread yet), `locked` (the
//! memory that rings are charged for), [`mod@features`] (what this kernel can
//! do), `unusable` (why it cannot), `restrict` and `seal` (what rings and process may not do),
//! [`output`] (what programs print), [`affinity`] (threads and connections on CPUs).
//! [`client`] is the other end, used by echo-load.

pub mod affinity;
mod buffers;
pub mod client;
mod control;
mod datagram_socket;
pub mod driver;
mod entry;
mod errno;
pub mod features;
mod identity;
mod listening;
mod locked;
pub mod output;
mod own_lines;
mod peer;
mod prepared;
mod restrict;
mod ring;
mod seal;
mod spill;
mod token;
mod transport;
mod unusable;

pub use datagram_socket::{DATAGRAM_BUFFERS, DatagramHeaders, DatagramSocket, UnixNames};
pub use driver::{ConnectionParts, Driver, DriverError, Settings};
pub use features::{Features, Survey, probe, survey};
pub use identity::{IDENTITY_LENGTH_MAX, Identity};
pub use listening::{ListeningSocket, Owner};
pub use locked::{charges_locked_memory, locked_memory_limit};
pub use prepared::{PreparedRing, locked_bytes_of_worker, prepare_rings};
pub use seal::{Unsealed, seal_process};
pub use spill::SpillMemory;
pub use transport::Transport;
pub use unusable::{Call, Obstacle, Shortage, Unusable};
