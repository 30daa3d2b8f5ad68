//! Every limit of the core that is not configured, with the reason for its value.

/// Chunks that may wait in a connection's queue behind the send in flight before its receive is
/// stopped.
///
/// Sends are tried at once, so a queue only builds up within one turn of the loop; 16 small buffers
/// (256 KiB) hold what a multishot receive brings in such a turn, and keep one busy connection from
/// taking all of a pool of 256.
pub const QUEUE_CHUNKS_MAX: u8 = 16;

/// After this many receives of more than a small buffer holds, a connection changes to large
/// buffers. As many smaller receives change it back. One alone may be chance.
pub const BULKY_RECEIVES_TO_GROW: u8 = 2;

/// After this many relays with bytes, none of which met a full socket, a connection that had
/// stalled is received from again.
///
/// A peer that reads in bursts stalls again soon, and a relay needs no memory when it does.
pub const PROBATION_RELAYS: u8 = 8;

/// Delay before a listener that ran out of files or memory tries again, in milliseconds. It tries
/// earlier if a connection closes.
///
/// Short enough to go unnoticed, long enough that ten tries a second cost nothing.
pub const ACCEPT_BACKOFF_MS: u64 = 100;

/// Consecutive accepts of a listener that may find their peer gone before it backs off as for lack
/// of memory.
///
/// Each such accept takes a connection out of the backlog, so an immediate retry is right, even if
/// many peers reset at once. If one of these errors ever leaves the backlog unchanged, this limit
/// bounds the cost: some 10,000 tries a second, instead of a worker that spins.
pub const ACCEPT_ABORTS_MAX: u16 = 1024;

/// Delay before a receive or send that failed because the kernel was out of memory is tried again,
/// in milliseconds.
pub const MEMORY_RETRY_MS: u64 = 100;

/// How long a peer may take to answer our FIN with its own before it is reset, in milliseconds.
///
/// Some round trips on a bad path; together with the default drain it stays below the unit's
/// `TimeoutStopSec=30s`.
pub const LINGER_MS: u64 = 5_000;

/// How long a header (PROXY protocol) may take from the beginning of its connection, in
/// milliseconds.
///
/// A proxy sends it before anything else. The specification (2.1) asks for at least 3 seconds, so
/// that a lost segment can be sent again; more time would only help attackers that hold connections
/// open.
pub const PREFACE_MS: u64 = 3_000;

/// The maximum size of a header in bytes.
///
/// A header of version 1 has at most 107 bytes, one of version 2 with addresses 52 or 232; the rest
/// is for TLVs. HAProxy sends no value of more than 1,024 bytes, and the longest that is common is
/// a certificate.
pub const PREFACE_BYTES_MAX: u16 = 4_096;

/// How long connections may take to become quiescent for a handover, in milliseconds.
///
/// Operations that wait in the kernel are canceled, so quiescing takes as long as the cancels:
/// seconds for a million connections, milliseconds for thousands.
pub const QUIESCE_MS: u64 = 5_000;

/// If a timer fires later than its moment and than the previous turn by this much, the whole
/// process was paused (SIGSTOP, a suspended machine). In milliseconds.
///
/// No turn takes this long.
pub const PAUSE_MS: u64 = 1_000;

/// How long timers wait after such a pause, in milliseconds, so that data that arrived during it is
/// served before a connection is ended for its silence.
pub const PAUSE_GRACE_MS: u64 = 1_000;

/// Finest and coarsest tick of the timer wheel, in milliseconds. An idle daemon may wake up once a
/// second.
pub const TICK_MS_MIN: u64 = 10;
/// See [`TICK_MS_MIN`].
pub const TICK_MS_MAX: u64 = 1_000;

/// The tick is this fraction of the shortest timeout, so that no timeout is more than about 6 %
/// late.
pub const TICKS_PER_TIMEOUT: u64 = 16;

/// Slots that one turn of the loop visits at the end of a drain: some ten milliseconds of work.
pub const SWEEP_SLOTS_MAX: usize = 2048;

/// While at most this many buffers are lent, messages arrive one by one, and the worker does not
/// wait for the completion of a send. That saves a turn of the loop. With more traffic the
/// completions arrive in turns that happen anyway, and buffers that are freed at once stay in the
/// cache (messages of 16 KiB cost 1 % more with a limit of 4, and 3 % without any).
pub const TRICKLE_BUFFERS_MAX: u32 = 1;

/// The residence time of one in this many sends is measured. The worker waits for the completion of
/// that send, which costs a turn of the loop if there is little traffic.
pub const SENDS_PER_TIMED: u32 = 16;

/// A peer that leaves this many probes unanswered is gone.
pub const PROBES: u8 = 4;

/// Probes follow each other at this fraction of the silence before the first one, so that a dead
/// peer is found after twice that silence.
pub const PROBE_INTERVAL_DIVISOR: u64 = 4;

/// Shortest interval between two probes, in milliseconds.
pub const PROBE_INTERVAL_MS_MIN: u64 = 1_000;

/// Time from a probe to the check whether it was answered, in milliseconds. An answer that takes
/// longer is seen at the next check.
pub const PROBE_ANSWER_MS: u64 = 2_000;

/// Interval between two bursts of probes, in milliseconds.
pub const PROBE_BURST_MS: u64 = 50;

/// Probes in one burst, over all workers.
///
/// Loopback and veth drop what exceeds `net.core.netdev_max_backlog` (1,000) before the receiving
/// side runs; each probe is answered, and the queue also carries other traffic. The result is 8,000
/// probes a second: a million peers take two minutes.
pub const PROBES_PER_BURST: u32 = 400;

const _: () = assert!(TICK_MS_MIN <= TICK_MS_MAX);
const _: () = assert!(BULKY_RECEIVES_TO_GROW >= 1);
const _: () =
    assert!(QUEUE_CHUNKS_MAX >= 1, "an empty queue could not hold the bytes of a one-shot receive");
