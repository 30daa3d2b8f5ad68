//! What a connection runs over.

/// What a connection runs over, as far as the kernel treats it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP: connections inherit the options of their listener.
    Tcp,
    /// A Unix stream. Connections inherit no option (seen on Linux 6.18). And a multishot receive
    /// that is armed when bytes and the end of the stream already wait tells the bytes, but never
    /// the end (seen on Linux 6.18.44, in the family of liburing's issue 1549), so the end is
    /// watched for by itself.
    Unix,
    /// Unix connections with message boundaries (SOCK_SEQPACKET): each send is one message, which
    /// is taken whole or not at all, and a receive that has no room for a message loses the rest of
    /// it. They are always relayed, see `driver/messages`. They inherit no option either.
    UnixSeqpacket,
}
