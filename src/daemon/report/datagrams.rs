//! Reports about datagrams: their part of the status line and of the last message, and their
//! classes of warnings.
//!
//! Peers that are forged can cause most of these events, so the rule of the parent applies to each:
//! a count, at most once in ten seconds. Datagrams that need no action of the operator are counted
//! only: those to broadcast addresses, and those whose source is no host.

use echo_core::datagram::{DatagramTraffic, DropReason};

use super::{Class, bytes, count, error, short};

/// What all datagram sockets did.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Datagrams {
    /// Counted by the workers.
    pub(in crate::daemon) traffic: DatagramTraffic,
    /// Datagrams that the kernel dropped since the start of this process, because a receive buffer
    /// was full.
    pub(in crate::daemon) kernel_drops: u64,
    /// Datagrams sent back per second, at the last sample.
    pub(in crate::daemon) rate: u64,
}

impl Datagrams {
    /// The part of the status line.
    pub(super) fn status(&self) -> String {
        let Self { traffic, kernel_drops, rate } = self;
        let dropped = match (traffic.dropped_total(), *kernel_drops) {
            (0, 0) => String::new(),
            (dropped, 0) => format!(" ({} dropped)", short(dropped)),
            (dropped, by_kernel) => {
                format!(" ({} dropped, {} by the kernel)", short(dropped), short(by_kernel))
            }
        };
        format!("{} datagrams/s, {} in datagrams{dropped}", short(*rate), bytes(traffic.bytes_out))
    }

    /// The part of the last message. Every datagram that was received is in one of the two counts
    /// that follow; the kernel's drops were never received.
    pub(in crate::daemon) fn final_counts(&self) -> String {
        let DatagramTraffic { datagrams_in, datagrams_out, bytes_in, bytes_out, .. } = self.traffic;
        format!(
            " datagrams-in={datagrams_in} datagrams-out={datagrams_out} datagrams-dropped={} \
             datagram-bytes-in={bytes_in} datagram-bytes-out={bytes_out} kernel-dropped={}",
            self.traffic.dropped_total(),
            self.kernel_drops,
        )
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.traffic.dropped_for(reason)
    }
}

/// `datagram`, `datagrams`.
fn datagrams(number: u64) -> String {
    count(number, "datagram")
}

/// `reply`, `replies`.
fn replies(number: u64) -> String {
    if number == 1 { "1 reply".to_owned() } else { format!("{number} replies") }
}

pub(in crate::daemon) const CLASSES: [Class<Datagrams>; 14] = [
    Class {
        reason: "kernel-drops",
        counter: |seen| seen.kernel_drops,
        line: |number, _| {
            format!(
                "the kernel dropped {}, because a receive buffer was full; raise ReceiveBuffer= of \
                 the socket unit for UDP (without one: the sysctl net.core.rmem_max)",
                datagrams(number)
            )
        },
    },
    Class {
        reason: "source-datagrams",
        counter: |seen| seen.dropped(DropReason::SourceDatagrams),
        line: |number, _| {
            format!(
                "{} dropped: their source exceeded datagram.datagrams-per-source; raise it if the \
                 source is one of yours",
                datagrams(number)
            )
        },
    },
    Class {
        reason: "source-bytes",
        counter: |seen| seen.dropped(DropReason::SourceBytes),
        line: |number, _| {
            format!(
                "{} dropped: their source exceeded datagram.bytes-per-source; raise it if the \
                 source is one of yours",
                datagrams(number)
            )
        },
    },
    Class {
        reason: "source-port",
        counter: |seen| seen.dropped(DropReason::SourcePort) + seen.dropped(DropReason::Own),
        line: |number, _| {
            format!(
                "{} not answered: they come from a port of datagram.reflect-source-ports or from \
                 one of our own, where a service answers by itself; their source may be forged",
                datagrams(number)
            )
        },
    },
    Class {
        reason: "datagrams-denied",
        counter: |seen| seen.dropped(DropReason::Denied),
        line: |number, _| format!("{} dropped by [access]", datagrams(number)),
    },
    Class {
        reason: "datagrams-untrusted",
        counter: |seen| seen.dropped(DropReason::Untrusted),
        line: |number, _| {
            format!(
                "{} dropped: they do not come from a proxy in trusted-proxies of their listener",
                datagrams(number)
            )
        },
    },
    Class {
        reason: "datagrams-invalid-header",
        counter: |seen| seen.dropped(DropReason::InvalidHeader),
        line: |number, _| {
            format!("{} from a proxy dropped: no valid PROXY header (version 2)", datagrams(number))
        },
    },
    Class {
        reason: "truncated",
        counter: |seen| seen.dropped(DropReason::Truncated),
        line: |number, _| {
            format!(
                "{} dropped: longer than the 65922 bytes that can be echoed (on a Unix socket; \
                 over UDP this is a defect: please report it)",
                datagrams(number)
            )
        },
    },
    Class {
        reason: "send-buffer",
        counter: |seen| seen.dropped(DropReason::SendBuffer),
        line: |number, _| {
            format!(
                "{} dropped: the link is down or slower than the requests, or the queue of a Unix \
                 peer is full; for short bursts raise SendBuffer= of the socket unit, or the \
                 sysctl net.unix.max_dgram_qlen",
                replies(number)
            )
        },
    },
    Class {
        reason: "too-large",
        counter: |seen| seen.dropped(DropReason::TooLarge),
        line: |number, _| {
            format!("{} dropped: the route does not take datagrams of this size", replies(number))
        },
    },
    Class {
        reason: "unroutable",
        counter: |seen| seen.dropped(DropReason::Unroutable),
        line: |number, _| {
            format!(
                "{} dropped: there is no route to the source, which may be forged (see \
                 \"ip route\"), or a Unix peer is gone",
                replies(number)
            )
        },
    },
    Class {
        reason: "datagrams-filtered",
        counter: |seen| seen.dropped(DropReason::Refused),
        line: |number, _| {
            format!(
                "{} dropped: a packet filter (see \"nft list ruleset\") or the permissions of a \
                 Unix socket refused them",
                replies(number)
            )
        },
    },
    Class {
        reason: "datagram-memory",
        counter: |seen| seen.dropped(DropReason::Memory),
        line: |number, _| format!("{} dropped: the kernel ran out of memory", replies(number)),
    },
    Class {
        reason: "datagrams-unexpected",
        counter: |seen| seen.dropped(DropReason::Unexpected) + seen.traffic.receive_failures,
        line: |number, seen| match seen.traffic.unexpected_errno {
            0 => format!("receiving datagrams failed {}; it is retried", count(number, "time")),
            errno => format!(
                "receiving or answering datagrams failed {}, last with {}; receives are retried",
                count(number, "time"),
                error(errno)
            ),
        },
    },
];

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::Reporter;
    use super::*;

    /// What 8 received datagrams of 10 bytes come to if `dropped` of them were, for this reason.
    fn seen(reason: DropReason, dropped: u64) -> Datagrams {
        let mut traffic = DatagramTraffic {
            datagrams_in: 8,
            bytes_in: 80,
            datagrams_out: 8 - dropped,
            bytes_out: 80 - 10 * dropped,
            ..DatagramTraffic::default()
        };
        traffic.dropped[reason as usize] = dropped;
        Datagrams { traffic, kernel_drops: 0, rate: 0 }
    }

    #[test]
    fn a_status_shows_drops_if_there_are_any() {
        let mut seen = seen(DropReason::Source, 0);
        seen.rate = 1_250;
        assert_eq!(seen.status(), "1.2 k datagrams/s, 80 B in datagrams");
        seen.kernel_drops = 7_000;
        seen.traffic.dropped[0] = 2;
        let text = "1.2 k datagrams/s, 80 B in datagrams (2 dropped, 7.0 k by the kernel)";
        assert_eq!(seen.status(), text);
    }

    #[test]
    fn the_last_message_accounts_for_every_datagram() {
        let counts = seen(DropReason::Denied, 3).final_counts();
        let expected = " datagrams-in=8 datagrams-out=5 datagrams-dropped=3 datagram-bytes-in=80 \
                        datagram-bytes-out=50 kernel-dropped=0";
        assert_eq!(counts, expected);
    }

    /// Goal: a warning names what to do; what needs no action is not logged.
    #[test]
    fn warnings_name_the_remedy() {
        let lines = |seen: &Datagrams| Reporter::new(&CLASSES).lines(Instant::now(), seen);
        for (reason, part) in [
            (DropReason::SourceDatagrams, "raise it if the source is one of yours"),
            (DropReason::SourceBytes, "exceeded datagram.bytes-per-source"),
            (DropReason::SourcePort, "datagram.reflect-source-ports"),
            (DropReason::Own, "or from one of our own"),
            (DropReason::SendBuffer, "2 replies dropped: the link is down"),
            (DropReason::Refused, "packet filter"),
        ] {
            let lines = lines(&seen(reason, 2));
            assert_eq!((lines.len(), lines[0].count), (1, 2), "{reason:?}: {lines:?}");
            assert!(lines[0].text.contains(part), "{reason:?}: {lines:?}");
        }
        for reason in [DropReason::Destination, DropReason::Source] {
            assert!(lines(&seen(reason, 2)).is_empty(), "{reason:?}");
        }
        let kernel = Datagrams { kernel_drops: 1, ..Datagrams::default() };
        let text = &lines(&kernel)[0].text;
        assert!(text.starts_with("the kernel dropped 1 datagram, "), "{text}");
        assert!(text.contains("raise ReceiveBuffer= of the socket unit"), "{text}");
    }

    /// Goal: a flood that is dropped is one line in ten seconds.
    #[test]
    fn a_flood_is_one_line() {
        let mut reporter = Reporter::new(&CLASSES);
        let start = Instant::now();
        let mut flood = Datagrams::default();
        let mut lines = 0;
        for second in 0..30 {
            flood.traffic.dropped[DropReason::SourceDatagrams as usize] += 1_000_000;
            lines += reporter.lines(start + Duration::from_secs(second), &flood).len();
        }
        assert_eq!(lines, 3);
    }

    #[test]
    fn an_unexpected_error_is_named() {
        let mut seen = seen(DropReason::Unexpected, 1);
        seen.traffic.unexpected_errno = 5;
        let lines = Reporter::new(&CLASSES).lines(Instant::now(), &seen);
        assert!(lines[0].text.contains("failed 1 time, last with EIO"), "{lines:?}");
    }
}
