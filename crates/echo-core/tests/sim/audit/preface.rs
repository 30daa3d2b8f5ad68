//! The promises about headers: nothing is received before one is complete, and who sends none in
//! time, or a wrong one, is refused at once.

use echo_core::limits::PREFACE_BYTES_MAX;
use echo_core::op::{ConnectionId, PeerAddr, PeerOrigin, ReceiveMode};

use super::{Audit, Open};

/// A header that is not complete.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Preface {
    /// Bytes of it that have come.
    pub(super) received: u16,
    /// When it was first asked for, by this process.
    asked_at: Option<u64>,
    /// Its time was over when the connection was shut down.
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
        assert!(!open.ended, "contract: {connection:?} is asked for a header after its end");
        assert!(!open.is_ending(), "promise: the header of {connection:?} is of no use");
        let preface = open.preface.as_mut();
        let preface = preface.unwrap_or_else(|| panic!("contract: {connection:?} has no header"));
        preface.asked_at.get_or_insert(now);
        open.was_asked = true;
        open.receive = Some(ReceiveMode::WhenReadable);
        open.receive_canceled = false;
        self.check_thawed(connection);
    }

    /// What was asked of the header is answered. Whether that matters.
    fn end_read(&mut self, connection: ConnectionId) -> bool {
        let open = self.open(connection);
        let asked = open.receive.take() == Some(ReceiveMode::WhenReadable);
        assert!(asked && open.preface.is_some(), "seam: {connection:?} was asked for no header");
        open.receive_canceled = false;
        !open.is_ending()
    }

    pub(super) fn preface_partial(&mut self, connection: ConnectionId, received: u16) {
        let matters = self.end_read(connection);
        let preface = self.open(connection).preface.as_mut().expect("a header was asked for");
        assert!(received > preface.received, "seam: nothing of a header came");
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

    /// A stream that ends in the middle of its header is invalid; one without a byte of it only
    /// looks whether anybody is here.
    pub(super) fn ended_in_preface(&mut self, connection: ConnectionId) {
        let open = self.open(connection);
        let begun = open.preface.is_some_and(|preface| preface.received > 0);
        if begun && !open.is_ending() {
            self.admission.refuse(connection);
        }
    }

    /// Whether the time for the header is over, and nothing else ends the connection: so it may be
    /// shut down.
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
        // What dies at the end of a drain or a handover is closed and not refused. Which of the
        // two came first cannot be seen.
        if drain || handover || self.open(connection).dead {
            self.closed_or_refused += 1;
        } else {
            self.admission.refused += 1;
        }
        true
    }

    /// The next process begins to ask for the header anew. Returns how much of it there is.
    pub(super) fn take_over_preface(&mut self, connection: ConnectionId) -> Option<u16> {
        let preface = self.open(connection).preface.as_mut()?;
        preface.asked_at = None;
        Some(preface.received)
    }
}
