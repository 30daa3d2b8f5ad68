//! The core: what an echo server decides, and nothing else.
//!
//! Pure: no syscall, no clock, no randomness, no log, no payload. Events in, operations out; the
//! same history of events always gives the same operations, so `tests/sim` can run tens of
//! thousands of histories that a kernel shows once a year.
//!
//! Reading order: [`op`] (the words), [`connection`] (one connection), [`server`] (all of them),
//! and the parts they use.

pub mod admission;
pub mod budget;
pub mod connection;
pub mod fullness;
pub mod histogram;
pub mod limits;
pub mod listener;
pub mod op;
pub mod pool;
pub mod resources;
pub mod server;
pub mod stats;
pub mod timer;
