//! echo-uring: an echo service (RFC 862) on io_uring, run by systemd.

pub mod echo;
pub mod metrics;
#[allow(unsafe_code)]
pub mod uring;
pub mod worker;
