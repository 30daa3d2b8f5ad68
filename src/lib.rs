//! echo-uring: an echo service (RFC 862) on io_uring, run by systemd.
//!
//! The map, in reading order. Dependencies point down only (`tests/tidy.rs` checks it):
//!
//! - [`echo_core`]: the core. Events in, operations out; pure, so that histories can be simulated.
//!   Start with [`echo_core::op`].
//! - [`echo_ring`]: the driver that carries operations out on a real ring. The only unsafe code.
//! - [`worker`]: the thread of a worker, which drives the core on a ring.
//! - [`daemon`]: start-up order, workers, signals, watchdog, drain, exit.
//! - [`admin`]: status, metrics and health of the running daemon, and the command that shows it.
//! - [`doctor`]: findings about machine, configuration and sandbox, each with a remedy.
//! - [`capacity`]: how many files and how much locked memory a daemon needs.
//! - [`handover`]: connections between two processes.
//! - [`source_limiter`], [`rate_limiter`]: limits for each source, shared by all workers.
//! - [`echo_ring::output`]: printing, and the exit status if printing fails.
//! - [`cli`], [`config`], [`listen`], [`logging`], [`metrics`], [`systemd`]: the leaves. Each knows
//!   one interface to the outside.

pub mod admin;
pub mod capacity;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod handover;
pub mod instance;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod rate_limiter;
pub mod source_limiter;
pub mod systemd;
pub mod worker;
