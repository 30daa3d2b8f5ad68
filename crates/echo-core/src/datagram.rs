//! Datagrams: each one is sent back to its source, or dropped and counted by reason.
//!
//! This module and `stream` know nothing of each other. There is no connection and no timer: a
//! datagram is judged (`guard`), its source is charged for it (`rate_limit`), and it is answered
//! from the buffer that it was received into, with the addresses and control messages that came
//! with it. The core sees addresses and lengths, never a payload.
//!
//! ```text
//! Event::Received { socket, buffer, datagram, .. }
//!     -> Op::Reply { buffer }                  or Op::Recycle { buffer }, counted by reason
//!                                              or Op::Identify { buffer, .. }
//! Event::Replied { buffer }
//!     -> Op::Recycle { buffer }
//! ```
//!
//! Why a datagram service needs a guard (RFC 862 has none): a datagram has no handshake, so its
//! source may be forged. An echo service then sends to any address that the forger chooses, as much
//! as the forger sends. Two services that answer everything, once made to answer each other, never
//! stop (CERT CA-1996-01). Bytes out never exceed bytes in.

mod guard;
pub mod op;
mod rate_limit;
mod responder;
mod traffic;

pub use guard::{GuardPolicy, REFLECT_SOURCE_PORTS};
pub use op::{Datagram, Endpoint};
pub use rate_limit::{Amount, BucketTable, RateLimiter, Rates, Unmetered};
pub(crate) use responder::Responder;
pub use responder::{DatagramParameters, SocketParameters};
pub use traffic::{DatagramTraffic, DropReason};
