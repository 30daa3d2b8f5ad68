//! Scripts about datagram sockets, with their worlds: the fake, and a real ring with real UDP
//! sockets on loopback, bound to one address, to all IPv4 addresses, or to all of both families.

pub(crate) mod bench;
pub(crate) mod scripts;
pub(crate) mod world;
