//! The promises about headers: nothing is received before a header is complete. A connection
//! without a header in time, or with an invalid one, is refused at once.

use echo_core::limits::PREFACE_BYTES_MAX;
use echo_core::op::{ConnectionId, PeerAddr, PeerOrigin, ReceiveMode};

use super::{Audit, Open};

/// A header that is not complete.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Preface {
    /// Bytes of it that have arrived.
    pub(super) received: u16,
    /// When this process first submitted a read of it.
    asked_at: Option<u64>,
    /// Its timeout had expired when the connection was shut down.
    late: bool,
}

impl Open {
    /// Whether the core has decided to end it for another reason than its header.
    fn is_ending(&self) -> bool {
        self.dead || self.both_shut || self.write_shut_at.is_some()
    }
}

impl Audit {
    pub(super) fn read_preface(&mut self, now: u64, connection: ConnectionId) {
        let open = self.open(connection);
        assert!(open.receive.is_none(), "contract: {connection:?} has two receives");
        assert!(!open.ended, "contract: a header of {connection:?} is read after its end");
        assert!(!open.is_ending(), "promise: the header of {connection:?} is of no use");
        let preface = open.preface.as_mut();
        let preface = preface.unwrap_or_else(|| panic!("contract: {connection:?} has no header"));
        preface.asked_at.get_or_insert(now);
        open.was_asked = true;
        open.receive = Some(ReceiveMode::WhenReadable);
        open.receive_canceled = false;
        self.check_thawed(connection);
    }

    /// The read of the header has completed. Returns whether that matters.
    fn end_read(&mut self, connection: ConnectionId) -> bool {
        let open = self.open(connection);
        let asked = open.receive.take() == Some(ReceiveMode::WhenReadable);
        assert!(
            asked && open.preface.is_some(),
            "seam: no header of {connection:?} was being read"
        );
        open.receive_canceled = false;
        !open.is_ending()
    }

    pub(super) fn preface_partial(&mut self, connection: ConnectionId, received: u16) {
        let matters = self.end_read(connection);
        let preface = self.open(connection).preface.as_mut().expect("a header was being read");
        assert!(received > preface.received, "seam: no byte of a header was received");
        preface.received = received;
        if matters && received >= PREFACE_BYTES_MAX {
            self.admission.refuse(connection);
        }
    }

    pub(super) fn preface_complete(
        &mut self,
        now: u64,
        connection: ConnectionId,
        peer: PeerAddr,
        origin: PeerOrigin,
    ) {
        let matters = self.end_read(connection);
        let open = self.open(connection);
        if matters {
            open.preface = None;
            (open.active_at, open.progress_at) = (now, now);
            self.announced += u64::from(origin == PeerOrigin::Announced);
            self.admission.judge(now, connection, peer);
        }
    }

    pub(super) fn preface_invalid(&mut self, connection: ConnectionId) {
        if self.end_read(connection) {
            self.admission.refuse(connection);
        }
    }

    /// A stream that ends in the middle of its header is invalid. A stream that ends before its
    /// header is a health check.
    pub(super) fn ended_in_preface(&mut self, connection: ConnectionId) {
        let open = self.open(connection);
        let begun = open.preface.is_some_and(|preface| preface.received > 0);
        if begun && !open.is_ending() {
            self.admission.refuse(connection);
        }
    }

    /// Whether the time for the header has expired and nothing else ends the connection, so that it
    /// may be shut down.
    pub(super) fn is_header_late(&mut self, now: u64, connection: ConnectionId) -> bool {
        let timeout = self.limits.preface_timeout;
        let open = self.open(connection);
        let ending = open.is_ending() || open.ended;
        let Some(preface) = &mut open.preface else { return false };
        let over = preface.asked_at.is_some_and(|at| now >= at + timeout);
        preface.late |= over && !ending;
        preface.late
    }

    /// A connection is closed. Whether that is because its header is late; it is counted then.
    pub(super) fn close_late(&mut self, now: u64, connection: ConnectionId) -> bool {
        if !self.is_header_late(now, connection) {
            return false;
        }
        let drain = self.drain_deadline.is_some_and(|at| now >= at);
        let handover = self.quiesce_deadline.is_some_and(|at| now >= at);
        // A connection that ends at the end of a drain or a handover is closed and not refused. The
        // order of the two is not visible here.
        if drain || handover || self.open(connection).dead {
            self.closed_or_refused += 1;
        } else {
            self.admission.refused += 1;
        }
        true
    }

    /// The next process starts reading the header again. Returns how many bytes of it there are.
    pub(super) fn take_over_preface(&mut self, connection: ConnectionId) -> Option<u16> {
        let preface = self.open(connection).preface.as_mut()?;
        preface.asked_at = None;
        Some(preface.received)
    }
}
