//! The loop of one thread: wait, let the core decide, submit; nothing else.
//!
//! It knows the ring only through [`Kernel`], so the same loop runs on the real one and on the
//! simulator's.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use crate::metrics::Board;
use echo_core::op::{Event, Kernel, ListenerId, Op, Timestamp};
use echo_core::server::{RuntimeLimits, Server, Stats, Traffic};

/// What the daemon asks of a worker.
#[derive(Debug)]
pub enum Order {
    /// Accept all who wait at these listeners, and close them: nobody new comes to them. To be
    /// posted before the drain or hand-over that goes with it.
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
    /// From now on, keep to these limits and timeouts.
    Reconfigure(Box<RuntimeLimits>),
}

/// What the daemon and one worker tell each other.
#[derive(Debug, Default)]
pub struct Shared {
    turns: AtomicU64,
    ready: AtomicBool,
    ended: AtomicBool,
    /// Orders that the worker has not taken yet, oldest first.
    orders: Mutex<Vec<Order>>,
    /// Whether there are any: all that a turn without orders looks at.
    has_orders: AtomicBool,
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

    /// Whether the worker has drained, or waits for what becomes of a hand-over; it turns no more,
    /// and its board shows its last figures.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Puts `order` behind those that wait. The worker takes them all at its next turn; wake it
    /// after this call, not before, to be heard at once.
    pub fn post(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.has_orders.store(true, Ordering::Release);
    }

    /// Whether an order waits to be taken.
    #[must_use]
    pub fn has_orders(&self) -> bool {
        self.has_orders.load(Ordering::Acquire)
    }

    /// The orders that wait. None while somebody is posting: the wake-up that follows brings the
    /// worker back.
    fn take_orders(&self) -> Vec<Order> {
        if !self.has_orders.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut orders = match self.orders.try_lock() {
            Ok(orders) => orders,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Vec::new(),
        };
        self.has_orders.store(false, Ordering::Release);
        std::mem::take(&mut *orders)
    }
}

/// Why a worker stopped serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The drain that an [`Order::Drain`] asked for is over.
    Drained,
    /// Every connection is quiescent, as an [`Order::HandOver`] asked.
    Quiescent,
}

/// Serves until the drain or the hand-over that an [`Order`] asked for is over. `on_ready` is
/// called when the listeners are armed.
///
/// # Errors
/// When the kernel itself fails; the connections are lost then.
pub fn run<K: Kernel>(
    kernel: &mut K,
    server: &mut Server,
    shared: &Shared,
    on_ready: impl FnOnce(),
) -> Result<Outcome, K::Error> {
    let mut turns = Turns::default();
    turns.start(kernel, server, shared)?;
    on_ready();
    turns.serve(kernel, server, shared)
}

/// Serves on after [`Outcome::Quiescent`], when the connections could not be handed over and are
/// back (`Event::Imported`). The same server goes on, so whatever it was told since its start still
/// holds, and it accepts nobody: an [`Order::Drain`] must be in the mailbox.
///
/// # Errors
/// When the kernel itself fails; the connections are lost then.
pub fn resume<K: Kernel>(
    kernel: &mut K,
    server: &mut Server,
    shared: &Shared,
) -> Result<Outcome, K::Error> {
    Turns::resume(shared).serve(kernel, server, shared)
}

/// What the loop keeps from one turn to the next. The simulator takes the same turns.
#[derive(Default)]
pub struct Turns {
    /// What the kernel told at the end of the last turn.
    events: Vec<Event>,
    /// Empty between two turns; it stays for its memory.
    ops: Vec<Op>,
    /// When the board was last brought up to date.
    published_us: u64,
}

impl Turns {
    /// For a server that is quiescent and goes on: see [`resume`].
    #[must_use]
    pub fn resume(shared: &Shared) -> Self {
        shared.ended.store(false, Ordering::Release);
        Self::default()
    }

    /// Arms the listeners.
    ///
    /// # Errors
    /// When the kernel itself fails.
    pub fn start<K: Kernel>(
        &mut self,
        kernel: &mut K,
        server: &mut Server,
        shared: &Shared,
    ) -> Result<(), K::Error> {
        let now = kernel.now();
        step(kernel, server, now, Event::Started, &mut self.ops);
        // A turn that does not wait hands the accepts to the kernel: from here on the listeners are
        // armed.
        kernel.turn(Some(now), &mut self.events)?;
        // From here on a board has room for every counter.
        shared.board.publish(|| counted(server), 0, &mut self.published_us, true);
        shared.ready.store(true, Ordering::Release);
        Ok(())
    }

    fn serve<K: Kernel>(
        &mut self,
        kernel: &mut K,
        server: &mut Server,
        shared: &Shared,
    ) -> Result<Outcome, K::Error> {
        loop {
            if let Some(outcome) = self.turn(kernel, server, shared)? {
                return Ok(outcome);
            }
        }
    }

    /// One turn: orders, events, timers, operations, and a wait for the next events. Says how the
    /// worker ended, if it did.
    ///
    /// # Errors
    /// When the kernel itself fails; the connections are lost then.
    pub fn turn<K: Kernel>(
        &mut self,
        kernel: &mut K,
        server: &mut Server,
        shared: &Shared,
    ) -> Result<Option<Outcome>, K::Error> {
        let Self { events, ops, published_us } = self;
        let clock_us = kernel.now_us();
        let now = Timestamp(clock_us / 1_000);
        server.observe(clock_us, kernel.overflows());
        let idle = events.is_empty();
        for order in shared.take_orders() {
            obey(kernel, server, now, order, ops);
        }
        for event in events.drain(..) {
            server.handle(now, event, ops);
        }
        let mut deadline = server.deadline();
        if deadline.is_some_and(|deadline| deadline <= now) {
            server.handle(now, Event::TimePassed, ops);
            deadline = server.deadline();
        }
        kernel.submit(ops);
        // After new rules: from here on the kernel tells where those come from who are accepted.
        for connection in server.take_uncounted() {
            server.count_source(now, connection, kernel.source_of(connection));
        }
        let last = server.is_drained();
        let quiescent = server.is_quiescent();
        if last || quiescent {
            shared.board.publish_last(server.stats(), server.listener_traffic());
        } else {
            shared.board.publish(|| counted(server), clock_us, published_us, idle);
        }
        // Nobody else writes it, so this needs no locked instruction.
        shared.turns.store(shared.turns() + 1, Ordering::Relaxed);
        if last {
            // The last closes are still queued: hand them over, so that every peer sees its FIN
            // before we are gone.
            kernel.turn(Some(now), events)?;
            shared.ended.store(true, Ordering::Release);
            return Ok(Some(Outcome::Drained));
        }
        if quiescent {
            shared.ended.store(true, Ordering::Release);
            return Ok(Some(Outcome::Quiescent));
        }
        kernel.turn(deadline, events)?;
        Ok(None)
    }
}

fn obey<K: Kernel>(
    kernel: &mut K,
    server: &mut Server,
    now: Timestamp,
    order: Order,
    ops: &mut Vec<Op>,
) {
    match order {
        Order::EndListeners(listeners) => {
            for &listener in &*listeners {
                step(kernel, server, now, Event::ListenerEnding { listener }, ops);
            }
        }
        Order::Drain { deadline } => {
            step(kernel, server, now, Event::DrainStarted { deadline }, ops);
        }
        Order::HandOver { deadline } => {
            step(kernel, server, now, Event::HandOverStarted { deadline }, ops);
        }
        Order::Reconfigure(runtime_limits) => server.reconfigure(now, *runtime_limits),
    }
}

fn counted(server: &Server) -> (Stats, &[Traffic]) {
    (server.stats(), server.listener_traffic())
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
