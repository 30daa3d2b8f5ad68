//! echo-uring: an echo service (RFC 862) on io_uring, run by systemd.
//!
//! The map, in reading order. Arrows point down only (`tests/tidy.rs` holds them to it):
//!
//! - [`echo_core`]: the core. Events in, operations out; pure, so that every history can be
//!   simulated. Start with [`echo_core::op`].
//! - [`echo_ring`]: the driver that carries operations out on a real ring. The only unsafe code.
//! - [`worker`]: the loop of one thread, which joins the two.
//! - [`daemon`]: start-up order, workers, signals, watchdog, drain, exit.
//! - [`admin`]: status, metrics and health of the running daemon, and the command that shows it.
//! - [`doctor`]: looks at machine, configuration and sandbox, and says what is wrong.
//! - [`capacity`]: what a daemon needs of files and memory, for those two.
//! - [`echo_ring::output`]: what programs print, and what they do when they cannot.
//! - [`cli`], [`config`], [`listen`], [`logging`], [`metrics`], [`systemd`]: the leaves, each with
//!   one outside world to know.

pub mod admin;
pub mod capacity;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod handover;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod rate_limiter;
pub mod source_limiter;
pub mod systemd;
pub mod worker;
