//! The black-box suite: the real daemon, tested from outside, by what its peers, its service
//! manager and the kernel see.
//!
//! - Tools of the tests: `machine`, `tape`, `place`, `flow`, `bundle`, `udp`.
//! - `daemon`, `manager`, `lines`, `ending` start the daemon and check its end.
//! - `oracle` is a server simple enough to be correct. The `scripts` are checked against it.
//! - Every other module has the tests of one subject.
//!
//! The suite needs no root, no service manager, no fixed port and no network.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod access;
mod admin;
mod admin_datagrams;
mod allowances;
mod bundle;
mod bus;
mod command_line;
mod daemon;
mod datagram_sockets;
mod datagrams;
mod divided;
mod doctor;
mod drop_ins;
mod ending;
mod faults;
mod flow;
mod handover;
mod identity;
mod keepalive;
mod kept_configuration;
mod lifecycle;
mod limits;
mod lines;
mod listeners;
mod locked;
mod logs;
mod machine;
mod manager;
mod manager_faults;
mod operator;
mod oracle;
mod overload;
mod place;
mod proxies;
mod refused;
mod reload;
mod scripts;
mod sealed;
mod smoke;
mod states;
mod stopping;
mod storms;
mod tape;
mod terminal;
mod timeouts;
mod udp;
mod units;
mod unix_datagrams;
mod unix_messages;
