//! echo-load tested from outside: with the real daemon there must be no fault, and the faults of
//! servers that are wrong on purpose must be found, each by its kind.
//!
//! `program` runs echo-load, `servers` has the daemon and the wrong servers, `datagram_servers`
//! those over UDP, `unix_servers` those on seqpacket and Unix datagram sockets; the rest are tests,
//! `client` those of the driver beneath. Nothing here measures speed. Run it with `cargo test -p
//! echo-load`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod client;
mod datagram_servers;
mod datagrams;
mod diff;
mod ends;
mod faults;
mod law;
mod locked;
mod modes;
mod names;
mod open_loop;
mod outputs;
mod program;
mod proxies;
mod servers;
mod signals;
mod unix_messages;
mod unix_servers;
mod usage;
mod writing;
