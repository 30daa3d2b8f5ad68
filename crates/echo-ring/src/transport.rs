//! The transport of a connection.

/// The transport of a connection, as far as the kernel treats transports differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP: connections inherit the options of their listener.
    Tcp,
    /// A Unix stream. Connections inherit no option (seen on Linux 6.18). A multishot receive that
    /// is armed when bytes and the end of the stream already wait reports the bytes, but never the
    /// end (seen on Linux 6.18.44, related to issue 1549 of liburing). Therefore a separate poll
    /// watches for the end.
    Unix,
    /// Unix connections with message boundaries (SOCK_SEQPACKET): each send is one message, which
    /// is taken whole or not at all, and a receive without room for a whole message loses the rest
    /// of it. They are always relayed, see `driver/messages`. They inherit no option either.
    UnixSeqpacket,
}
