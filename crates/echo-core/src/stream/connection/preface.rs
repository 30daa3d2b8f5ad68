//! A connection whose peer is announced by a header (PROXY protocol), until the header is complete.
//!
//! The driver reads and parses the header; its consequences are decided here:
//!
//! 1. The connection waits for an incomplete header until it is too long or its timeout expires.
//! 2. With a complete header the connection is open, if the server admits its peer. Bytes behind
//!    the header have stayed in the receive queue, so the connection starts like one without a
//!    header.
//! 3. Any other connection is refused: it is closed, and counted as refused and not as closed.
//!
//! The health check of a proxy is a connection that it closes or resets without a header, or after
//! a header that announces no address (`LOCAL`) and without a further byte. That is not an error.

use super::Connection;
use crate::limits;
use crate::op::{Op, PeerOrigin, PrefaceProgress, Shutdown};
use crate::reason::{ConnectionError, ReceiveEnd, RefuseReason};
use crate::stream::phase::Phase;
use crate::stream::resources::Context;

impl Connection {
    /// It becomes open when its header is complete. Returns its phase until then.
    pub(super) fn await_preface(&mut self) -> Phase {
        self.inbound.begin_unjudged();
        Phase::Preface(PrefaceProgress::Awaited)
    }

    /// Whether its peer is not known, or never was, because its header has not been completed.
    #[must_use]
    pub(crate) fn is_unjudged(&self) -> bool {
        self.inbound.is_unjudged()
    }

    /// `received` bytes of the header have arrived, and the header is not complete.
    pub(crate) fn on_preface_partial(&mut self, context: &mut Context, received: u16) {
        self.inbound.end_preface();
        if let Phase::Preface(_) = self.phase {
            if received < limits::PREFACE_BYTES_MAX {
                self.phase = Phase::Preface(PrefaceProgress::Begun);
            } else {
                self.refuse_header(context, RefuseReason::InvalidHeader);
            }
        }
        self.advance(context);
    }

    /// The header is complete, and its peer was judged.
    pub(crate) fn on_preface_complete(
        &mut self,
        context: &mut Context,
        origin: PeerOrigin,
        verdict: Result<(), RefuseReason>,
    ) {
        self.inbound.end_preface();
        if let Phase::Preface(_) = self.phase {
            match origin {
                PeerOrigin::Announced => {
                    self.inbound.end_unjudged();
                    context.resources.traffic(self.listener).announced += 1;
                }
                PeerOrigin::Socket => self.inbound.begin_untried(),
            }
            match verdict {
                Ok(()) => {
                    self.phase = self.begin(context);
                    self.timeouts.restart(context.now);
                }
                Err(reason) => self.refuse(context, reason),
            }
        }
        self.advance(context);
    }

    /// The stream does not begin with a valid header.
    pub(crate) fn on_preface_invalid(&mut self, context: &mut Context) {
        self.inbound.end_preface();
        if let Phase::Preface(_) = self.phase {
            self.refuse_header(context, RefuseReason::InvalidHeader);
        }
        self.advance(context);
    }

    /// Counts the connection as a health check if its receive has ended for this reason and it is
    /// one.
    pub(super) fn note_health_check(&self, context: &mut Context, reason: ReceiveEnd) {
        let has_ended =
            matches!(reason, ReceiveEnd::EndOfStream | ReceiveEnd::Failed(ConnectionError::Reset));
        let is_untried = self.phase == Phase::Preface(PrefaceProgress::Awaited)
            || self.phase == Phase::Open && self.inbound.is_untried();
        if has_ended && is_untried {
            context.resources.traffic(self.listener).health_checks += 1;
        }
    }

    /// Refuses it because of its header, or because it has none in time.
    pub(super) fn refuse_header(&mut self, context: &mut Context, reason: RefuseReason) {
        context.resources.refused_headers.push((context.id, self.listener, reason));
        self.refuse(context, reason);
    }

    /// Refuses it. shutdown(2) makes the operations in flight complete.
    fn refuse(&mut self, context: &mut Context, reason: RefuseReason) {
        self.phase = Phase::Refusing(reason);
        self.inbound.give_up();
        if !self.is_quiescent() {
            context.ops.push(Op::Shutdown { connection: context.id, how: Shutdown::Both });
        }
    }

    /// Closes if the kernel holds no operation of it any more.
    pub(super) fn join_refused(&mut self, context: &mut Context, reason: RefuseReason) {
        if self.is_quiescent() {
            context.ops.push(Op::Close { connection: context.id });
            context.resources.traffic(self.listener).refused[reason as usize] += 1;
            self.vacate();
        }
    }
}
