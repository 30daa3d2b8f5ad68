//! What the daemon asks of a worker.

use alloc::boxed::Box;
use alloc::sync::Arc;

use crate::id::{ListenerId, Timestamp};
use crate::parameters::RuntimeLimits;

/// What the daemon asks of a worker.
#[derive(Clone, Debug)]
pub enum Command {
    /// Accept all connections that wait at these listeners, and close them: the kernel sends them
    /// no new ones. This command precedes the drain or handover that it belongs to.
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
    /// From now on, accept only from these listeners, in the order of their ids. Listeners that end
    /// are not affected: every worker empties them.
    AcceptFrom(Arc<[bool]>),
    /// From now on, apply these limits and timeouts.
    Reconfigure(Box<RuntimeLimits>),
}
