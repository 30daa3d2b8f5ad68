//! The one table of the configuration: each key with its section, type, range, default, effect and
//! text.
//!
//! 1. `section!` makes of each entry the field of [`Config`], its default, and a [`Key`].
//! 2. A file is read by means of [`SECTIONS`]: the keys, and the type of each.
//! 3. The output of `check`, the report of a reload, the shipped file and the key sections of the
//!    manual are derived from it (the latter two by `tests/generated`).
//!
//! A new key therefore needs one entry here, and its use elsewhere.
//!
//! A text is plain English that begins with the purpose of the key. Its first part is in the
//! shipped file and in the manual, the second part only in the manual. Range, default and effect
//! are added to it, so a text does not repeat them.

use std::time::Duration;

use Type::{Address, Flag, Name, Networks, Number, Or, Ports, PowerOfTwo, Size, Time, Word};
use log::LevelFilter;

use super::value::{
    Field, KINDS, LISTENING_SOCKETS, LOG_LEVELS, LOG_TARGETS, NO_HOST, PROXY_PROTOCOL, Type, Value,
};
use super::{Config, ListeningSockets, LogTarget, Network, Workers};

const MICROSECOND: Duration = Duration::from_micros(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// As defined by humantime: 365.25 days.
const YEAR: Duration = Duration::from_secs(31_557_600);
const TEN_MS: Duration = Duration::from_millis(10);
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// More than a machine holds.
const CONNECTIONS_MAX: u64 = 4_194_304;

/// The default of `datagram.reflect-source-ports`. The same as in the core, where the reasons are.
const REFLECT_SOURCE_PORTS: [u16; 17] =
    [7, 13, 17, 19, 37, 53, 69, 111, 123, 137, 161, 389, 500, 520, 1900, 5353, 11211];

/// When a new value of a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// With a reload.
    AtReload,
    /// With the next start.
    AtRestart,
    /// With the next start, but "auto" only when the listening socket is created again: a socket
    /// that was once given a size never returns to the kernel's own tuning.
    AtSocketRestart,
}

/// A section of the file.
#[derive(Debug)]
pub struct Section {
    /// As in `limits`.
    pub name: &'static str,
    /// Its purpose; may be empty.
    pub text: &'static str,
    /// What the manual adds.
    pub more: &'static str,
    /// Its keys, in the order of the file.
    pub keys: &'static [Key],
}

impl Section {
    /// Its header in a file: `[limits]`, `[[listener]]`.
    #[must_use]
    pub fn header(&self) -> String {
        if self.is_list() { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }

    /// Whether there may be several such sections.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.name == LISTENER.name
    }
}

/// A key of the file.
#[derive(Debug)]
pub struct Key {
    /// As in `max-connections`.
    pub name: &'static str,
    /// As in `limits.max-connections`.
    pub path: &'static str,
    /// Its type.
    pub holds: Type,
    /// When a new value takes effect.
    pub effect: Effect,
    /// Its purpose.
    pub text: &'static str,
    /// What the manual adds; may be empty.
    pub more: &'static str,
    /// Its field of [`Config`]; none for a key of a listener, of which there are several.
    pub(super) cell: Option<Cell>,
}

/// Where a value is kept.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) value: fn(&Config) -> Value,
    /// Panics if the value is not of the key's type.
    pub(super) set: fn(&mut Config, Value),
}

impl Key {
    /// Its value in `config`, in the syntax of the file; none for a key of a listener.
    pub(super) fn spelled(&self, config: &Config) -> Option<String> {
        self.cell.as_ref().map(|cell| self.holds.spelled(&(cell.value)(config)))
    }
}

/// All sections, in the order of the file.
pub static SECTIONS: [Section; 8] = [
    Server::SECTION,
    LISTENER,
    Access::SECTION,
    Limits::SECTION,
    Timeouts::SECTION,
    Datagram::SECTION,
    Tcp::SECTION,
    Log::SECTION,
];

/// A struct of [`Config`], its default, and its [`Section`].
macro_rules! section {
    (
        $(#[$attribute:meta])*
        $struct:ident in $place:ident is $section:literal, $about:literal, $above:literal;
        $($key:literal, $field:ident: $type:ty = $default:expr, $holds:expr, $effect:ident,
            $text:literal, $more:literal;)*
    ) => {
        $(#[$attribute])*
        #[allow(rustdoc::broken_intra_doc_links, reason = "the texts name sections in brackets")]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $struct {
            $(#[doc = $text] pub $field: $type,)*
        }

        impl Default for $struct {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }

        impl $struct {
            const SECTION: Section = Section {
                name: $section,
                text: $about,
                more: $above,
                keys: &[$(Key {
                    name: $key,
                    path: concat!($section, ".", $key),
                    holds: $holds,
                    effect: Effect::$effect,
                    text: $text,
                    more: $more,
                    cell: Some(Cell {
                        value: |config| config.$place.$field.value(),
                        set: |config, value| config.$place.$field = Field::of(value),
                    }),
                }),*],
            };
        }
    };
}

section! {
    /// `[server]`: the shape of the process.
    Server in server is "server", "", "";

    "workers", workers: Workers = Workers::Auto, Or(&Number(1, 1024), "auto"), AtRestart,
    "How many worker threads serve connections, each with an io_uring of its own. \"auto\" is one \
     for each CPU that the process may run on (CPUAffinity= is honoured). More workers than CPUs \
     gain nothing.",
    "\"auto\" starts fewer if the limit on locked memory has no room for all of them, see section \
     LIMITS of echo-uring(8).";

    "buffers", buffers: u16 = 256, PowerOfTwo(8, 32_768), AtRestart,
    "How many pooled buffers of 16 KiB each worker has. They are lent for short times only and are \
     not tied to connections, and only their filled parts take memory. With too few, busy \
     connections wait for each other.",
    "No connection is lost by that. The number need not follow the number of connections.";

    "busy-poll", busy_poll: Option<Duration> = None,
    Or(&Time(MICROSECOND, TEN_MS, Duration::from_nanos(1)), "off"), AtRestart,
    "How long an idle worker polls for work before it sleeps. \"200us\" reduces the round trip of \
     a connection with little traffic to 0.3 of that of an epoll server, at the price of a CPU \
     that is busy for this time after each message. Only for machines with a spare CPU for each \
     worker.",
    "A worker that does not sleep need not be woken, which is most of the round trip.";

    "listening-sockets", listening_sockets: ListeningSockets = ListeningSockets::Auto,
    Word(&LISTENING_SOCKETS), AtRestart,
    "How many listening sockets the daemon binds for each TCP address. \"shared\" is one: all \
     workers accept from it, in turn. \"per-worker\" is one for each worker (SO_REUSEPORT): \
     workers that accept do not wait for each other. \"auto\" is \"per-worker\" with 16 workers or \
     more.",
    "With several sockets the kernel selects one for each connection by a hash of its addresses, \
     so a few connections may be spread unevenly. A worker that has no capacity left shares its \
     socket with the others. The number of sockets from systemd is set in the socket unit: repeat \
     its line, with ReusePort=yes, as often as there are workers (reuse-port.conf).";

    "pin-workers", pin_workers: bool = false, Flag, AtRestart,
    "Whether each worker runs on a CPU of its own, in the order of the CPUs that the process may \
     use. If an address has a socket for each worker, a connection is then served on the CPU that \
     receives its packets (SO_INCOMING_CPU).",
    "It pays off if the packets of a connection stay on one CPU, which depends on the queues of \
     the network card, and if nothing else needs these CPUs. Linux 6.2 or later steers \
     connections; earlier kernels use the hash. The shipped unit does not permit the system call: \
     add SystemCallFilter=sched_setaffinity to its [Service] section with systemctl edit.";
}

/// `[[listener]]`
const LISTENER: Section = Section {
    name: "listener",
    text: "Where to listen. Addresses are used only if no sockets are inherited: under systemd, \
           echo-uring.socket decides, not this list. The built-in two, local-ipv4 and local-ipv6, \
           are left out with a warning on a host without that kind of address; any other listener \
           must be bound. Takes effect with a restart.",
    more: "There may be 256 such sections. Without any in the file itself there are the built-in \
           two, on 127.0.0.1 port 7777 and ::1 port 7777. In a drop-in, a section replaces the \
           listener of the same name as a whole, or adds one; a line \"listener = []\" removes all \
           listeners of earlier files.",
    keys: &[
        Key {
            name: "name",
            path: "listener.name",
            holds: Name,
            effect: Effect::AtRestart,
            text: "Its name in log lines: 1 to 64 letters, digits, \"-\", \"_\" or \".\". Each \
                   listener needs a different name.",
            more: "Required.",
            cell: None,
        },
        Key {
            name: "address",
            path: "listener.address",
            holds: Address,
            effect: Effect::AtRestart,
            text: "\"IPv4:PORT\", \"[IPv6]:PORT\" (\"[::]:PORT\" takes IPv4 as well), the same \
                   after \"udp:\" for UDP, or \"unix:/absolute/path\". Also \"unix-seqpacket:\" \
                   and \"unix-datagram:\", each with a path or an abstract \"@name\". Anyone who \
                   can reach it can make the host send back what they send; keep it on loopback \
                   unless that is intended. Without an address the section applies to the sockets \
                   that systemd passes under this name (FileDescriptorName= of the socket unit). \
                   If there are none, the start fails.",
            more: "A link-local address names its interface: \"[fe80::1%eth0]:PORT\". Host names \
                   are not looked up. \"[::]:PORT\" excludes \"0.0.0.0:PORT\", but TCP and UDP may \
                   have the same port. A listener with \"udp:\", \"unix-seqpacket:\" or \
                   \"unix-datagram:\" is an echo or an identity. Port 0 lets the kernel choose. A \
                   path or a name has at most 107 bytes and no control characters. An abstract \
                   name has no file and therefore no permissions.",
            cell: None,
        },
        Key {
            name: "kind",
            path: "listener.kind",
            holds: Word(&KINDS),
            effect: Effect::AtRestart,
            text: "What is served there: \"echo\"; \"identity\", one line that reports which \
                   server answered; \"status\", a snapshot as JSON for \"echo-uring status\"; \
                   \"metrics\", Prometheus metrics, an HTML status page, /healthz, /ready and \
                   /serving over HTTP; or \"agent-check\", a line for HAProxy. A client that \
                   reaches one of the last three sees traffic figures, and of \"status\" and \
                   \"metrics\" also refused addresses and warnings, so keep them on loopback or on \
                   a Unix socket. At least one listener must be an echo or an identity.",
            more: "See sections MONITORING of echo-uring(8) and IDENTITY below. The file of a Unix \
                   socket for one of the last three has mode 0660. An inherited socket without \
                   a section serves \"status\", \"metrics\" or \"agent-check\" if its \
                   FileDescriptorName= is that word, and an echo otherwise. That is the default of \
                   a section without an address as well.",
            cell: None,
        },
        Key {
            name: "proxy-protocol",
            path: "listener.proxy-protocol",
            holds: Word(&PROXY_PROTOCOL),
            effect: Effect::AtRestart,
            text: "Whether a connection begins with a header that announces the address of its \
                   client. \"off\": it comes from the client itself. \"require\": it comes from a \
                   proxy such as HAProxy or nginx, which sends a header of the PROXY protocol, \
                   version 1 or 2, before anything else; from then on the address that the header \
                   announces is that of the client, for access lists and limits. A connection \
                   without a valid header is refused.",
            more: "See section PROXIES. For an echo or an identity; the default is \"off\".",
            cell: None,
        },
        Key {
            name: "trusted-proxies",
            path: "listener.trusted-proxies",
            holds: Networks,
            effect: Effect::AtRestart,
            text: "The proxies whose headers are believed: networks or single addresses. \
                   Connections from elsewhere are refused. A host in this list can claim any \
                   address, so name the proxies and no other host.",
            more: "Required with proxy-protocol = \"require\", except for a Unix socket: there the \
                   permissions of its file decide who may connect, and this list is not used.",
            cell: None,
        },
        Key {
            name: "identity-host",
            path: "listener.identity-host",
            holds: Or(&Name, NO_HOST),
            effect: Effect::AtRestart,
            text: "What a listener of kind \"identity\" calls this host. \"auto\" is the name that \
                   the system has when the service starts; another word is that name itself. With \
                   \"off\" no host is named. Every peer that reaches the listener learns the name.",
            more: "See section IDENTITY. 1 to 64 letters, digits, \"-\", \"_\" or \".\"; the \
                   default is \"off\".",
            cell: None,
        },
        Key {
            name: "identity-then-echo",
            path: "listener.identity-then-echo",
            holds: Flag,
            effect: Effect::AtRestart,
            text: "Whether a connection of a listener of kind \"identity\" continues as an echo \
                   behind the line. If not, it is ended there.",
            more: "For connections; a datagram is answered by the line alone. The default is \
                   false.",
            cell: None,
        },
    ],
};

section! {
    /// `[access]`: who may connect. Unix peers always may.
    Access in access is "access",
    "Who may connect: networks such as \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\". If \
     access.allow names any, peers in none of them are refused; peers in one of access.deny are \
     refused in any case. A refused connection is closed at once, and datagrams of such peers are \
     not answered. Unix sockets are not affected. IPAddressDeny= in echo-uring.socket does the \
     same in the kernel, before a connection exists; for an example see section \
     EXAMPLES of echo-uring.toml(5).",
    "An entry is a network or a single address; host names are not looked up, and bits beyond the \
     prefix or leading zeros (\"010.0.0.0/8\") are errors. An IPv4 peer of a listener for both \
     families is an IPv4 peer: \"::ffff:10.0.0.0/104\" means the same as \"10.0.0.0/8\", and \
     \"::/0\" means IPv6 only. A refused connection takes no capacity, no buffer and no receive. \
     It cannot be left in the backlog, where it would delay others. It is counted, and logged at \
     most once in ten seconds, with one of the sources.";

    "allow", allow: Vec<Network> = Vec::new(), Networks, AtReload,
    "If this list is not empty, peers in none of its networks are refused.", "";

    "deny", deny: Vec<Network> = Vec::new(), Networks, AtReload,
    "Peers in one of these networks are refused, even if access.allow contains them.", "";
}

section! {
    /// `[limits]`: what the daemon may use in total, and for one source. `None` is "off".
    Limits in limits is "limits", "", "";

    "max-connections", max_connections: u32 = 100_000, Number(1, CONNECTIONS_MAX), AtReload,
    "How many connections may be open at once. Further connections wait in the kernel's backlog \
     until one ends; none is accepted and then dropped. Each needs a file descriptor, so raise \
     LimitNOFILE= together with it.",
    "Connections also wait if the limit on file descriptors is reached. Each worker has a share of \
     the connections. If there are fewer than workers, some workers have no share and leave all \
     connections to the others.";

    "stalled-memory", stalled_memory: u64 = 64 << 20, Size(64 * KIB, TIB), AtReload,
    "The maximum amount of memory for echoes that peers do not read, in the whole process. At the \
     limit no connection is ended: bytes that a slow peer does not read then stay in the socket \
     that they came from, which costs a little more for each echo.",
    "It is counted in pages of 4 KiB. No byte is lost at the limit. The cost is one more system \
     call for each echo, and reaching the limit is counted and logged.";

    "max-connections-per-source", max_connections_per_source: Option<u32> = None,
    Or(&Number(1, CONNECTIONS_MAX), "off"), AtReload,
    "How many connections one source may have open at the same time. Further ones are closed at \
     once. With this limit, or with accepts-per-source, each accept costs one more system call.",
    "They are counted over all workers and listeners. Connections above the limit are accepted and \
     closed, so a source at its limit never blocks another one. Connections that are open when a \
     reload first sets the limit count as well, and none of them is ended. The system call asks \
     the kernel for the address of the peer; any network in [access] costs it as well. A source \
     that is counted takes about 100 bytes of memory.";

    "accepts-per-source", accepts_per_source: Option<u32> = None, Or(&Number(1, 1_000_000), "off"),
    AtReload,
    "How many connections one source may open per second; after a pause of a second, as many in \
     one burst. Further ones are closed at once.",
    "It is a token bucket. The bucket of a source without connections is kept until it is full. At \
     most limits.max-connections such buckets are kept (at least 1024); beyond that the oldest is \
     evicted, and its source starts with a full one. After a restart every bucket is full.";

    "source-prefix-ipv4", source_prefix_ipv4: u8 = 32, Number(8, 32), AtReload,
    "How many leading bits of an IPv4 address identify a source. With 24, neighbours share the \
     limits.",
    "All addresses of a /24 network are then one source.";

    "source-prefix-ipv6", source_prefix_ipv6: u8 = 64, Number(16, 128), AtReload,
    "The same for IPv6. A single customer usually has a network of 64 bits or fewer.",
    "Hosts choose the last 64 bits themselves, so more than 64 is of little use.";

    "max-bytes", max_bytes: Option<u64> = None, Or(&Size(1, TIB), "off"), AtReload,
    "How many bytes one connection may send. It gets these back, and then the end of the stream. \
     Further bytes are not echoed.",
    "Further bytes are received, dropped and counted. Bytes that were received before the limit \
     was set do not count.";
}

section! {
    /// `[timeouts]`: `None` is "off". All are whole milliseconds, the unit of the core.
    Timeouts in timeouts is "timeouts", "", "";

    "idle", idle: Option<Duration> = Some(HOUR), Or(&Time(TEN_MS, YEAR, MILLISECOND), "off"),
    AtReload,
    "A connection on which nothing was received or sent for this time is closed. With \"off\", \
     dead peers hold their connections for as long as tcp.keepalive allows, and silent peers \
     without limit.",
    "";

    "stall", stall: Option<Duration> = Some(MINUTE), Or(&Time(TEN_MS, YEAR, MILLISECOND), "off"),
    AtReload,
    "A connection whose peer takes no byte of its echo for this time is reset. Its unread bytes \
     are lost. With \"off\", peers that never read hold limits.stalled-memory without limit. A \
     shorter tcp.user-timeout takes precedence.",
    "Therefore change both together. Lost bytes are counted as dropped. While peers that never \
     read hold the memory, other slow peers get none.";

    "lifetime", lifetime: Option<Duration> = None, Or(&Time(TEN_MS, YEAR, MILLISECOND), "off"),
    AtReload,
    "A connection that has been open for this time is ended, busy or not. It gets its last echo, \
     and then the end of the stream.",
    "A peer that does not read its last echo still has the time in timeouts.stall.";

    "drain", drain: Duration = Duration::from_secs(10), Time(Duration::ZERO, HOUR, MILLISECOND),
    AtReload,
    "How long a stop waits for peers to finish. After that every connection gets its last echo and \
     the end of the stream, and its peer has five seconds to end the connection. The daemon \
     requests this time from systemd, so TimeoutStopSec= of the service need not be changed.",
    "The time begins with the signal, or with the end of timeouts.drain-lead.";

    "drain-lead", drain_lead: Duration = Duration::ZERO,
    Time(Duration::ZERO, HOUR, MILLISECOND), AtReload,
    "How long a stop continues to accept before the drain begins, while /ready returns 503 and the \
     agent-check returns \"drain\", so that load balancers stop sending connections before any is \
     refused. /serving returns 200 until it is over. A restart that keeps all connections has no \
     lead.",
    "A second signal begins the drain at once. While a restart hands its connections to the next \
     process, the answers are the same, usually for some milliseconds. The daemon requests this \
     time from systemd.";
}

section! {
    /// `[datagram]`: settings for UDP. `None` is "off".
    Datagram in datagram is "datagram",
    "Settings for UDP. The source of a datagram may be forged, and two services that answer \
     everything may be made to answer each other. Therefore datagrams are answered only within \
     these limits, and according to [access]. Those that are not answered are dropped and counted \
     by reason.",
    "Regardless of these keys, a datagram is not answered if it was sent to a broadcast or \
     multicast address; if its source is not a single host, or is the address and port that it was \
     sent to; or if it comes from a port on which this daemon listens for UDP. A reply is as large \
     as the datagram that it answers, and never larger.";

    "datagrams-per-source", datagrams_per_source: Option<u64> = Some(10_000),
    Or(&Number(128, 1_000_000_000), "off"), AtReload,
    "How many datagrams of one source are answered per second; after a pause of a second, as many \
     in one burst. Further ones are dropped. A source is a network of limits.source-prefix-ipv4 or \
     limits.source-prefix-ipv6 bits. The loopback addresses of this machine are not limited.",
    "It is a bucket of tokens, shared by all workers. The default is more than any probe sends, \
     and less than two services that answer each other exchange in a local network: the first \
     datagram that is dropped ends such an exchange. Raise it for load tests from another \
     machine. A burst that the kernel has merged counts as the datagrams that it consists of, and \
     is answered as a whole or not at all.";

    "bytes-per-source", bytes_per_source: Option<u64> = Some(16 << 20),
    Or(&Size(64 * KIB, TIB), "off"), AtReload,
    "The same in bytes of payload.",
    "It bounds what a forger can direct at the victim whose address the datagrams carry.";

    "reflect-source-ports", reflect_source_ports: Vec<u16> = REFLECT_SOURCE_PORTS.into(), Ports,
    AtReload,
    "Datagrams from these ports are not answered: services on them answer every datagram, so a \
     forged datagram would start an endless exchange. The default is echo, daytime, qotd, chargen, \
     time, domain, tftp, sunrpc, ntp, netbios-ns, snmp, ldap, isakmp, router, ssdp, mdns and \
     memcache.",
    "A list replaces the default. An exchange with a service on another port is not prevented. It \
     is bounded by the limits above, but continues below them over a path with a long round trip, \
     until a datagram is lost. Add the port of such a service here.";
}

section! {
    /// `[tcp]`: socket options. `None` is "off" for times and "auto" for buffers.
    Tcp in tcp is "tcp", "",
    "These options are set on the listening sockets, inherited or bound, and apply to every later \
     connection. For Unix sockets only the buffers apply.";

    "nodelay", nodelay: bool = true, Flag, AtReload,
    "Send small echoes at once (TCP_NODELAY). With false they may wait for an acknowledgement of \
     the peer, for 40 ms or more, to save packets.", "";

    // The kernel's ceiling is 32767 s.
    "keepalive", keepalive: Option<Duration> = Some(Duration::from_secs(120)),
    Or(&Time(SECOND, Duration::from_secs(9 * 3600), SECOND), "off"), AtReload,
    "After this silence a keepalive probe is sent to the peer. Four probes without an answer, at \
     intervals of a quarter of this time (at least a second), end the connection, that is after \
     twice this silence. At most 8,000 probes are sent per second. With \"off\", only \
     timeouts.idle ends connections of vanished peers.",
    "Timers are rounded, so a vanished peer may be detected late by 3 % of the time plus one \
     second. If many peers are silent they are probed one after the other, over all workers, \
     because a network would drop a part of a large burst: with a million silent peers each of the \
     four probes may be two minutes later. The daemon decides when to probe, by its own timers; \
     the kernel only sends the probe, so ss(8) shows a keep-alive timer of nine hours. A reload \
     applies to all connections.";

    // The kernel counts milliseconds in 31 bits.
    "user-timeout", user_timeout: Option<Duration> = Some(MINUTE),
    Or(&Time(SECOND, Duration::from_secs(24 * 24 * 3600), MILLISECOND), "off"), AtReload,
    "A connection is ended if the peer does not acknowledge sent bytes for this time \
     (TCP_USER_TIMEOUT). The time also counts while a peer does not read its echo. With \"off\" it \
     is ended after the kernel's retries, about 15 minutes.",
    "It does not shorten the probing of tcp.keepalive, so it may be shorter than that silence.";

    "receive-buffer", receive_buffer: Option<u32> = None, Or(&Size(2 * KIB, GIB), "auto"),
    AtSocketRestart,
    "Kernel buffer of each connection for bytes that the daemon has not received yet (SO_RCVBUF). \
     A size disables the kernel's own tuning and is capped by the sysctl net.core.rmem_max. Large \
     buffers speed up paths with a large bandwidth-delay product, and cost that memory for each \
     connection.",
    "A warning reports that the size was capped.";

    "send-buffer", send_buffer: Option<u32> = None, Or(&Size(2 * KIB, GIB), "auto"),
    AtSocketRestart,
    "The same for bytes that the peer has not acknowledged yet (SO_SNDBUF); capped by \
     net.core.wmem_max.",
    "";
}

section! {
    /// `[log]`
    Log in log is "log", "", "";

    "target", target: LogTarget = LogTarget::Auto, Word(&LOG_TARGETS), AtReload,
    "Where log lines go: \"syslog\" (the socket /dev/log), \"stderr\", or \"auto\": the journal, \
     with its fields, if standard error is connected to it, else stderr.",
    "While /dev/log is not available, \"syslog\" means standard error.";

    "level", level: LevelFilter = LevelFilter::Info, Word(&LOG_LEVELS), AtReload,
    "Lines of this level and more severe ones are written. At \"info\" nothing is written for a \
     connection; \"debug\" writes one line for each, with the address of its peer, which costs a \
     system call for each accept. With \"off\" only the reason of a failure is written.",
    "Of more than 128 accepts per second in one worker, the others are only counted.";
}
