//! Connections with records: worlds with a real seqpacket socket and without, and the scripts.

pub(crate) mod scripts;
pub(crate) mod world;
