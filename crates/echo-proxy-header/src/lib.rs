//! Headers of the PROXY protocol, versions 1 and 2: a resumable parser, and a writer.
//!
//! Pure: no system call, no allocation, no unsafe code, no panic on any input. The parser judges
//! bytes only. Time limits, trust in the sender, and what an address is used for are decided by its
//! caller.
//!
//! The source of each rule is beside the code that follows it, in the notation of s2n-quic: `//=`
//! names the section, `//#` quotes it. The specification is `doc/proxy-protocol.txt` of HAProxy,
//! <https://www.haproxy.org/download/3.4/doc/proxy-protocol.txt>, in the version of 2026-04-27.
//! Where it leaves a choice, the decision is beside the quotation.
//!
//! ```
//! use echo_proxy_header::{Parser, Peer, Progress};
//!
//! let mut parser = Parser::new();
//! assert_eq!(parser.push(b"PROXY TCP4 192.0.2.1 192."), Progress::Partial);
//! let peer = Peer::Announced("192.0.2.1:4000".parse()?);
//! let progress = parser.push(b"0.2.7 4000 7\r\nhello");
//! assert_eq!(progress, Progress::Complete { consumed: 14, peer });
//! # Ok::<(), core::net::AddrParseError>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

mod binary;
mod checksum;
mod fault;
mod header;
mod line;
mod parser;
mod write;

pub use binary::datagram;
pub use fault::Fault;
pub use header::{HEADER_LEN_MAX, Peer, Transport, V1_LEN_MAX};
pub use parser::{Parser, Progress, STATE_LEN};
pub use write::{WRITTEN_LEN_MAX, write_v1, write_v2, write_v2_local};
