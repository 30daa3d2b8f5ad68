//! The global check: what a daemon must have written last at an orderly end.
//!
//! It works on text only, so that the check itself can be tested: a check that cannot fail proves
//! nothing.

/// Whether bytes may be missing from the echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    /// Every byte was echoed.
    None,
    /// Some peers were reset, stalled too long, or wrote after the end.
    Allowed,
}

/// The counters in the last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Connections accepted.
    pub(crate) accepted: u64,
    /// Connections refused.
    pub(crate) refused: u64,
    /// Connections closed.
    pub(crate) closed: u64,
    /// Bytes received.
    pub(crate) bytes_in: u64,
    /// Bytes sent.
    pub(crate) bytes_out: u64,
    /// Bytes that could not be echoed.
    pub(crate) bytes_dropped: u64,
    /// Pooled buffers that were free at the end.
    pub(crate) buffers_home: u64,
    /// All pooled buffers.
    pub(crate) buffers_total: u64,
    /// Connections of the previous process.
    pub(crate) taken_over: u64,
    /// Unsent bytes of the previous process.
    pub(crate) bytes_taken_over: u64,
    /// Bytes that were left to the next process.
    pub(crate) bytes_handed_over: u64,
    /// Of datagrams, if there was a listener for them.
    pub(crate) datagrams: Option<Datagrams>,
}

/// The counters of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagrams {
    /// Received.
    pub(crate) received: u64,
    /// Sent back.
    pub(crate) sent: u64,
    /// Received and not answered.
    pub(crate) dropped: u64,
    /// Payload received.
    pub(crate) bytes_received: u64,
    /// Payload sent back.
    pub(crate) bytes_sent: u64,
    /// Never received, because a receive buffer was full.
    pub(crate) kernel_dropped: u64,
}

impl Counters {
    /// Checks the lines of a daemon that has ended, and returns its counters.
    pub(crate) fn judge(lines: &[&str], losses: Losses) -> Result<Self, String> {
        for line in lines {
            if line.contains("panicked") || line.contains("assertion") {
                return Err(format!("it panicked: {line}"));
            }
        }
        let last = lines.last().ok_or("it wrote nothing")?;
        let counters = Self::parse(last).ok_or(format!("no counters in the last line: {last}"))?;
        counters.balance(losses)?;
        Ok(counters)
    }

    fn balance(self, losses: Losses) -> Result<(), String> {
        let fault = |what: &str| Err(format!("{what}: {self:?}"));
        if self.accepted + self.taken_over != self.closed + self.refused {
            return fault("connections leaked");
        }
        let left = self.bytes_out + self.bytes_dropped + self.bytes_handed_over;
        if self.bytes_in + self.bytes_taken_over != left {
            return fault("bytes in are not bytes out and bytes dropped");
        }
        if losses == Losses::None && self.bytes_dropped != 0 {
            return fault("bytes were dropped");
        }
        if let Some(Datagrams { received, sent, dropped, bytes_received, bytes_sent, .. }) =
            self.datagrams
        {
            if received != sent + dropped {
                return fault("datagrams in are not datagrams out and datagrams dropped");
            }
            if bytes_sent > bytes_received || (dropped == 0 && bytes_sent != bytes_received) {
                return fault("payload sent in datagrams is not payload received");
            }
        }
        if self.buffers_home != self.buffers_total {
            return fault("buffers leaked");
        }
        if self.buffers_total == 0 {
            return fault("there is no pool");
        }
        Ok(())
    }

    fn parse(line: &str) -> Option<Self> {
        let (_, account) = line.split_once("stopped: ")?;
        let mut words = account.split(' ').peekable();
        let mut next = |name: &str| -> Option<u64> {
            let is_it = |word: &&str| word.split('=').next() == Some(name);
            words.next_if(is_it)?.split_once('=')?.1.parse().ok()
        };
        let counters = Self {
            accepted: next("accepted")?,
            refused: next("refused")?,
            closed: next("closed")?,
            bytes_in: next("bytes-in")?,
            bytes_out: next("bytes-out")?,
            bytes_dropped: next("bytes-dropped")?,
            buffers_home: next("buffers-home")?,
            buffers_total: next("buffers-total")?,
            taken_over: 0,
            bytes_taken_over: 0,
            bytes_handed_over: 0,
            datagrams: None,
        };
        // A daemon that took over and handed over nothing does not mention it.
        let counters = match next("taken-over") {
            None => counters,
            Some(taken_over) => Self {
                taken_over,
                bytes_taken_over: next("bytes-taken-over")?,
                bytes_handed_over: next("bytes-handed-over")?,
                ..counters
            },
        };
        // A daemon without a datagram listener does not mention datagrams.
        let counters = match next("datagrams-in") {
            None => counters,
            Some(received) => {
                let datagrams = Datagrams {
                    received,
                    sent: next("datagrams-out")?,
                    dropped: next("datagrams-dropped")?,
                    bytes_received: next("datagram-bytes-in")?,
                    bytes_sent: next("datagram-bytes-out")?,
                    kernel_dropped: next("kernel-dropped")?,
                };
                Self { datagrams: Some(datagrams), ..counters }
            }
        };
        words.next().is_none().then_some(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "info stopped: accepted=5 refused=2 closed=3 bytes-in=10 \
                        bytes-out=8 bytes-dropped=2 buffers-home=256 buffers-total=256";

    fn fault(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from));
        Counters::judge(&[&GOOD.replace(from, to)], Losses::Allowed).unwrap_err()
    }

    #[test]
    fn a_good_end_passes() {
        let counters = Counters::judge(&["info ready", GOOD], Losses::Allowed).unwrap();
        assert_eq!(counters.bytes_in, 10);
    }

    #[test]
    fn datagrams_balance_as_well() {
        let account = " datagrams-in=5 datagrams-out=3 datagrams-dropped=2 datagram-bytes-in=50 \
                       datagram-bytes-out=30 kernel-dropped=9";
        let judge = |line: &str| Counters::judge(&[line], Losses::Allowed);
        let counters = judge(&format!("{GOOD}{account}")).unwrap();
        assert_eq!(counters.datagrams.unwrap().kernel_dropped, 9);
        let handover = " taken-over=0 bytes-taken-over=0 bytes-handed-over=0";
        assert!(judge(&format!("{GOOD}{handover}{account}")).unwrap().datagrams.is_some());
        let unbalanced = account.replace("dropped=2", "dropped=1");
        assert!(judge(&format!("{GOOD}{unbalanced}")).unwrap_err().starts_with("datagrams in"));
        let amplified = account.replace("bytes-out=30", "bytes-out=51");
        assert!(judge(&format!("{GOOD}{amplified}")).unwrap_err().starts_with("payload sent"));
        assert!(judge(&format!("{GOOD} more=1")).unwrap_err().starts_with("no counters"));
    }

    #[test]
    fn dropped_bytes_pass_only_where_they_may() {
        let verdict = Counters::judge(&[GOOD], Losses::None).unwrap_err();
        assert!(verdict.starts_with("bytes were dropped"), "{verdict}");
    }

    #[test]
    fn each_leak_is_found() {
        assert!(fault("closed=3", "closed=2").starts_with("connections leaked"));
        assert!(fault("bytes-out=8", "bytes-out=7").starts_with("bytes in are not"));
        assert!(fault("home=256", "home=255").starts_with("buffers leaked"));
        assert!(fault(" refused=2", "").starts_with("no counters"));
    }

    #[test]
    fn a_panic_or_a_line_after_the_end_is_found() {
        let panic = "thread 'worker' panicked at src/x.rs:1:1:";
        assert!(Counters::judge(&[panic, GOOD], Losses::Allowed).unwrap_err().contains("panicked"));
        let verdict = Counters::judge(&[GOOD, "info one more"], Losses::Allowed).unwrap_err();
        assert!(verdict.starts_with("no counters"), "{verdict}");
    }
}
