//! Streams: TCP and Unix connections.
//!
//! Reading order: `phase`, `connection` with its halves `inbound` and `outbound`, then `server`,
//! which owns all connections, and the parts that it manages.

pub(crate) mod connection;
pub(crate) mod drain;
pub(crate) mod estimate;
pub(crate) mod inbound;
pub(crate) mod listeners;
pub(crate) mod outbound;
pub(crate) mod pause;
pub(crate) mod phase;
pub(crate) mod probing;
pub(crate) mod receive_policy;
pub(crate) mod resources;
pub(crate) mod server;
pub(crate) mod spill;
mod timeouts;
