//! What the daemon asks of a worker.

use alloc::boxed::Box;
use alloc::sync::Arc;

use crate::id::{ListenerId, Timestamp};
use crate::parameters::RuntimeLimits;

/// What the daemon asks of a worker.
#[derive(Clone, Debug)]
pub enum Command {
    /// Accept all connections that wait at these listeners, and close them: no new ones come to
    /// them. To be given before the drain or handover that goes with it.
    EndListeners(Arc<[ListenerId]>),
    /// Stop accepting, and end what is still open at `deadline`.
    Drain {
        /// The deadline.
        deadline: Timestamp,
    },
    /// Stop accepting, and quiesce every connection until `deadline`, for the next process.
    HandOver {
        /// The deadline.
        deadline: Timestamp,
    },
    /// From now on, accept from these of the listeners, in the order of their ids. It does not
    /// concern listeners that end: every worker empties them.
    AcceptFrom(Arc<[bool]>),
    /// From now on, keep to these limits and timeouts.
    Reconfigure(Box<RuntimeLimits>),
}
