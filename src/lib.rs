//! echo-uring: an echo service (RFC 862) on io_uring, run by systemd.

pub mod echo;
