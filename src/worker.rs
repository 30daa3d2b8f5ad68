//! The loop of one thread: wait, let the core decide, submit; nothing else.
//!
//! It knows the ring only through [`Kernel`], so the same loop runs on the real one and on the
//! simulator's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::echo::op::{Event, Kernel, Op, Timestamp};
use crate::echo::server::{ListenerStats, Server, Stats};
use crate::metrics::Board;

/// What the daemon and one worker tell each other. To be heard at once, the daemon also wakes the
/// worker.
#[derive(Debug, Default)]
pub struct Shared {
    turns: AtomicU64,
    ready: AtomicBool,
    /// The deadline of the drain plus 1, or 0 as long as none is asked for.
    drain: AtomicU64,
    /// The worker's counters.
    pub board: Board,
}

impl Shared {
    /// How often the worker has turned its loop.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether the worker has armed its listeners.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Asks the worker to stop accepting, and to end what is still open at `deadline`.
    pub fn drain(&self, deadline: Timestamp) {
        self.drain.store(deadline.0.saturating_add(1), Ordering::Release);
    }

    fn drain_deadline(&self) -> Option<Timestamp> {
        self.drain.load(Ordering::Acquire).checked_sub(1).map(Timestamp)
    }
}

/// Serves until the drain that [`Shared::drain`] asked for is over. `on_ready` is called when the
/// listeners are armed.
///
/// # Errors
/// When the kernel itself fails; the connections are lost then.
pub fn run<K: Kernel>(
    kernel: &mut K,
    mut server: Server,
    shared: &Shared,
    on_ready: impl FnOnce(),
) -> Result<Stats, K::Error> {
    let mut events = Vec::new();
    let mut ops = Vec::new();
    let now = kernel.now();
    step(kernel, &mut server, now, Event::Started, &mut ops);
    // A turn that does not wait hands the accepts to the kernel: from here on the listeners are
    // armed.
    kernel.turn(Some(now), &mut events)?;
    // From here on a board has room for every counter.
    let mut published_us = 0;
    shared.board.publish(counted(&server), 0, &mut published_us, true);
    shared.ready.store(true, Ordering::Release);
    on_ready();
    let mut draining = false;
    loop {
        let clock_us = kernel.now_us();
        let now = Timestamp(clock_us / 1_000);
        server.observe(clock_us, kernel.overflows());
        let idle = events.is_empty();
        if !draining && let Some(deadline) = shared.drain_deadline() {
            draining = true;
            step(kernel, &mut server, now, Event::DrainStarted { deadline }, &mut ops);
        }
        for event in events.drain(..) {
            step(kernel, &mut server, now, event, &mut ops);
        }
        step(kernel, &mut server, now, Event::TimePassed, &mut ops);
        shared.board.publish(counted(&server), clock_us, &mut published_us, idle);
        // Nobody else writes it, so this needs no locked instruction.
        shared.turns.store(shared.turns() + 1, Ordering::Relaxed);
        if server.is_drained() {
            // The last closes are still queued: hand them over, so that every peer sees its FIN
            // before we are gone.
            kernel.turn(Some(now), &mut events)?;
            return Ok(server.stats().clone());
        }
        kernel.turn(server.deadline(), &mut events)?;
    }
}

fn counted(server: &Server) -> (&Stats, &[ListenerStats]) {
    (server.stats(), server.listener_stats())
}

fn step<K: Kernel>(
    kernel: &mut K,
    server: &mut Server,
    now: Timestamp,
    event: Event,
    ops: &mut Vec<Op>,
) {
    server.handle(now, event, ops);
    kernel.submit(ops);
}
