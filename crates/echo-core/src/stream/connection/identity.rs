//! A connection whose peer is told where it has arrived: the first that it is sent.
//!
//! If nothing follows, it is `Flushing` from its beginning: a FIN comes behind the line.

use super::Connection;
use crate::op::Op;
use crate::parameters::AfterIdentity;
use crate::reason::{CloseReason, ConnectionError};
use crate::stream::phase::Phase;
use crate::stream::resources::Context;

impl Connection {
    /// Its peer is known and admitted. On a listener with an identity that is the first that the
    /// peer is sent. Returns its phase from here on.
    pub(super) fn begin(&mut self, context: &mut Context) -> Phase {
        let listener = self.listener;
        let Some(after) = context.resources.parameters.identity_of(listener) else {
            return Phase::Open;
        };
        context.ops.push(Op::Identify { connection: context.id, listener });
        context.resources.traffic(listener).identities += 1;
        match after {
            AfterIdentity::End => Phase::Flushing(CloseReason::Identified),
            AfterIdentity::Echo => Phase::Open,
        }
    }

    /// The identity was not taken whole, so the peer cannot be told where it is.
    pub(crate) fn on_identify_failed(&mut self, context: &mut Context, error: ConnectionError) {
        match self.phase {
            Phase::Open | Phase::HalfClosed | Phase::Flushing(_) | Phase::Lingering(_) => {
                self.fail(context, error);
            }
            Phase::Closing(_) | Phase::Refusing(_) => {}
            Phase::Free | Phase::Accepting | Phase::WaitingForCapacity | Phase::Preface(_) => {
                unreachable!("no peer is told anything in {:?}", self.phase)
            }
        }
        self.advance(context);
    }
}
