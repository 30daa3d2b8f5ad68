//! The core: the decisions of an echo server, and nothing else.
//!
//! Pure: no system call, no clock, no randomness, no lock, no log, no payload. Events in,
//! operations out; the same history of events always gives the same operations, so the simulator
//! (`tests/sim`) can run tens of thousands of histories of a kind that a real kernel produces once
//! a year.
//!
//! Reading order: [`op`] (events and operations), [`kernel`] (the interface to the driver),
//! [`worker`] (the loop), `stream` (connections), [`datagram`], [`admission`], and the parts that
//! they use.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod admission;
pub mod budget;
pub mod buffer_offer;
pub mod buffer_pool;
pub mod command;
pub mod datagram;
pub mod fullness;
pub mod histogram;
pub mod id;
pub mod kernel;
pub mod limits;
pub mod op;
pub mod parameters;
pub mod peer;
pub mod reason;
pub mod stats;
mod stream;
pub mod timer_wheel;
pub mod worker;
