//! echo-uring: an echo service (RFC 862) on io_uring, run by systemd.

pub mod cli;
pub mod config;
pub mod echo;
pub mod listen;
pub mod logging;
pub mod systemd;
