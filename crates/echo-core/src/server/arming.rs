//! Arming the listeners: how many accepts are with the kernel, and in what order.

use super::{Drain, Server};
use crate::listener::Listener;
use crate::op::{ListenerId, Op};

/// What is remembered of it between events.
#[derive(Default)]
pub(super) struct Arming {
    /// Accepts that have been armed in this turn and not been answered. Older ones may be among
    /// them until time next passes; at worst a listener stands back for one turn in vain.
    pub(super) this_turn: u64,
    /// The listener to be armed first.
    next: usize,
    /// Whether a listener waits for the next turn to be armed.
    pub(super) standing_back: bool,
    /// By listener: whether it ends.
    pub(super) ending: Vec<bool>,
    /// By listener: accepts in a row that found their peer gone.
    pub(super) aborts: Vec<u16>,
}

impl Arming {
    /// No accept is armed on any of so many listeners.
    pub(super) fn new(listeners: u16) -> Self {
        let count = usize::from(listeners);
        Self { ending: vec![false; count], aborts: vec![0; count], ..Self::default() }
    }
}

impl Server {
    /// Asks the kernel for as many connections as there are places, and no more in one turn: of two
    /// accepts that race for the last place one would be parked here, while another worker may have
    /// room. Listeners that have to stand back are armed in the next turn. The accept of one that
    /// should take nobody any more is canceled.
    ///
    /// A listener that ends is emptied instead, also in a drain: one accept after the other that
    /// waits for nobody, until one finds nobody, each for a place that is free. At the end of a
    /// drain, when nothing is waited for, it is closed whoever waits there.
    pub(super) fn arm_listeners(&mut self, ops: &mut Vec<Op>) {
        let waiting = !self.parked.is_empty() || !self.admission.undecided.is_empty();
        let wanted = self.drain == Drain::No && !waiting && self.has_place();
        let over = matches!(self.drain, Drain::Over { .. } | Drain::Overdue { .. });
        self.note_fullness();
        self.arming.standing_back = false;
        let places = self.free_places();
        let first = self.arming.next;
        for index in (first..self.listeners.len()).chain(0..first) {
            let ends = self.arming.ending[index];
            let wanted = if ends { !waiting && places > 0 } else { wanted };
            let listener = ListenerId(index as u16);
            match self.listeners[index] {
                Listener::Off | Listener::BackingOff(_) if ends && over => {
                    self.listeners[index] = Listener::Ended;
                    ops.push(Op::CloseListener { listener });
                }
                Listener::Off if wanted && self.arming.this_turn >= places => {
                    self.arming.standing_back = true;
                }
                Listener::Off if wanted => {
                    self.arming.this_turn += 1;
                    self.arming.next = index + 1;
                    let connection = self.take_slot();
                    self.connection(connection).reserve(listener);
                    if ends {
                        self.listeners[index] = Listener::Emptying(connection);
                        ops.push(Op::AcceptWaiting { listener, connection });
                    } else {
                        self.listeners[index] = Listener::Armed(connection);
                        ops.push(Op::Accept { listener, connection });
                    }
                }
                Listener::Armed(connection) if ends || !wanted => {
                    self.listeners[index] = Listener::Canceling(connection);
                    ops.push(Op::CancelAccept { connection });
                }
                Listener::Off
                | Listener::Armed(_)
                | Listener::Canceling(_)
                | Listener::Emptying(_)
                | Listener::Ended
                | Listener::BackingOff(_) => {}
            }
        }
    }

    /// Counts when this worker takes the last place of all workers: from then on connections wait.
    /// Who is undecided, or waits to be armed, has nothing to do with it.
    fn note_fullness(&mut self) {
        let full = self.drain == Drain::No && self.free_places() == 0;
        self.resources.stats.full += u64::from(self.fullness.note(full));
    }

    /// From now on `listener` is emptied, or once more.
    pub(super) fn end_listener(&mut self, listener: ListenerId) {
        let index = usize::from(listener.0);
        self.arming.ending[index] = true;
        if let Listener::Ended | Listener::BackingOff(_) = self.listeners[index] {
            self.listeners[index] = Listener::Off;
        }
    }

    /// Whether every listener that ends has been emptied.
    pub(super) fn has_ended_listeners(&self) -> bool {
        let mut all = self.listeners.iter().zip(&self.arming.ending);
        all.all(|(listener, ends)| !ends || *listener == Listener::Ended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fullness::Fullness;
    use crate::limits;
    use crate::op::{AcceptError, Event, ReceiveEnd, Source, Timestamp};
    use crate::server::Parameters;

    fn server(listeners: u16, places: u32) -> Server {
        Server::new(Parameters::small(listeners, places))
    }

    fn accepts(ops: &mut Vec<Op>) -> Vec<u16> {
        let listener =
            |op| if let Op::Accept { listener, .. } = op { Some(listener.0) } else { None };
        ops.drain(..).filter_map(listener).collect()
    }

    /// Goal: nobody is parked as long as clients come one by one. Method: two listeners and one
    /// place, turn by turn.
    #[test]
    fn listeners_do_not_race_for_the_last_place() {
        let mut server = server(2, 1);
        let (now, mut ops) = (Timestamp(1), Vec::new());
        server.handle(now, Event::Started, &mut ops);
        server.handle(now, Event::TimePassed, &mut ops);
        assert_eq!(accepts(&mut ops), [0]);
        assert_eq!(server.deadline(), Some(Timestamp(0)), "the other one is armed soon");
        server.handle(now, Event::TimePassed, &mut ops);
        assert_eq!(accepts(&mut ops), [1]);
        assert_ne!(server.deadline(), Some(Timestamp(0)));
    }

    /// Two workers that share the places.
    fn pair(shares: [u32; 2]) -> [Server; 2] {
        let fullness = Arc::new(Fullness::new(2));
        shares.map(|share| {
            let fullness = Arc::clone(&fullness);
            let mut server = Server::new(Parameters { fullness, ..Parameters::small(1, share) });
            server.handle(Timestamp(1), Event::Started, &mut Vec::new());
            server
        })
    }

    /// Lets one more client in, and says how often all places were taken so far.
    fn accept(server: &mut Server) -> u64 {
        let Listener::Armed(connection) = server.listeners[0] else { panic!("not armed") };
        let accepted = Event::Accepted { connection, source: Source::Untold };
        server.handle(Timestamp(1), accepted, &mut Vec::new());
        server.stats().full
    }

    /// Goal: "all places were taken" is said when it is so, and not of a worker that has none while
    /// another has, nor of one without any share.
    #[test]
    fn places_are_taken_when_no_worker_has_one() {
        let mut workers = pair([2, 1]);
        assert_eq!(accept(&mut workers[1]), 0, "the other one has two places");
        assert_eq!(accept(&mut workers[0]), 0);
        assert_eq!(accept(&mut workers[0]), 1, "now they are all taken");

        let mut workers = pair([1, 0]);
        assert_eq!(workers.each_ref().map(|worker| worker.stats().full), [0, 0], "nobody has come");
        assert_eq!(accept(&mut workers[0]), 1);
        // No longer, and then once more.
        for places in [2, 1] {
            let parameters = Parameters::small(1, places);
            workers[0].reconfigure(Timestamp(2), parameters.runtime_limits);
            workers[0].handle(Timestamp(2), Event::TimePassed, &mut Vec::new());
        }
        assert_eq!(workers[0].stats().full, 2);

        let mut workers = pair([1, 0]);
        let deadline = Timestamp(100);
        workers[1].handle(Timestamp(2), Event::DrainStarted { deadline }, &mut Vec::new());
        assert_eq!(accept(&mut workers[0]), 0, "one that drains has not taken a place");
    }

    #[test]
    fn with_room_all_are_armed_at_once() {
        let mut server = server(3, 3);
        let mut ops = Vec::new();
        server.handle(Timestamp(1), Event::Started, &mut ops);
        assert_eq!(accepts(&mut ops), [0, 1, 2]);
    }

    /// Goal: an accept that finds its peer gone is armed again at once, but not for ever.
    #[test]
    fn accepts_that_bring_nobody_again_and_again_back_off() {
        let mut server = server(1, 4);
        let (now, mut ops) = (Timestamp(1), Vec::new());
        server.handle(now, Event::Started, &mut ops);
        let mut tries = 0;
        while let Some(Op::Accept { connection, .. }) = ops.pop() {
            tries += 1;
            let error = AcceptError::Aborted;
            server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
            server.handle(now, Event::TimePassed, &mut ops);
        }
        assert_eq!(tries, limits::ACCEPT_ABORTS_MAX);
        assert_eq!(server.deadline(), Some(now.plus(limits::ACCEPT_BACKOFF_MS)));
    }

    /// What the listener is asked for, one operation at a time.
    fn only(ops: &mut Vec<Op>) -> Op {
        let op = ops.pop().expect("an operation");
        assert!(ops.is_empty(), "{op:?} and {ops:?}");
        op
    }

    /// Goal: a listener that ends is emptied, whatever begins meanwhile, and then closed; the drain
    /// is not over before that. Told again it is looked at again.
    #[test]
    fn a_listener_that_ends_is_emptied_and_closed() {
        let mut server = server(1, 1);
        let (now, mut ops) = (Timestamp(1), Vec::new());
        server.handle(now, Event::Started, &mut ops);
        let Op::Accept { listener, connection } = only(&mut ops) else { panic!("an accept") };
        server.handle(now, Event::ListenerEnding { listener }, &mut ops);
        assert_eq!(only(&mut ops), Op::CancelAccept { connection });
        server.handle(now, Event::DrainStarted { deadline: now.plus(1_000) }, &mut ops);
        let error = AcceptError::Canceled;
        server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
        let Op::AcceptWaiting { connection, .. } = only(&mut ops) else { panic!("it is emptied") };
        server.handle(now, Event::Accepted { connection, source: Source::Untold }, &mut ops);
        // It has the only place: the next one waits in the backlog until it is free.
        assert!(ops.iter().all(|op| matches!(op, Op::Receive { .. })), "{ops:?}");
        ops.clear();
        let reason = ReceiveEnd::EndOfStream;
        server.handle(now, Event::ReceiveEnded { connection, reason }, &mut ops);
        let Some(Op::AcceptWaiting { connection, .. }) = ops.pop() else { panic!("{ops:?}") };
        assert!(!server.is_drained(), "somebody may wait");
        ops.clear();
        let error = AcceptError::Nobody;
        server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
        assert_eq!(only(&mut ops), Op::CloseListener { listener });
        assert!(server.is_drained());
        server.handle(now, Event::ListenerEnding { listener }, &mut ops);
        assert!(matches!(only(&mut ops), Op::AcceptWaiting { .. }));
        assert!(!server.is_drained());
    }

    /// Goal: another worker may close a listener before this one hears that it ends; that is no
    /// reason to spin, and none to wait when it hears of it.
    #[test]
    fn a_listener_that_another_worker_has_closed_is_left_alone() {
        let mut server = server(1, 1);
        let (now, mut ops) = (Timestamp(1), Vec::new());
        server.handle(now, Event::Started, &mut ops);
        let Op::Accept { listener, connection } = only(&mut ops) else { panic!("an accept") };
        let error = AcceptError::Nobody;
        server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
        assert_eq!(ops, []);
        server.handle(now, Event::ListenerEnding { listener }, &mut ops);
        let Op::AcceptWaiting { connection, .. } = only(&mut ops) else { panic!("it is emptied") };
        server.handle(now, Event::AcceptFailed { connection, error }, &mut ops);
        assert_eq!(only(&mut ops), Op::CloseListener { listener });
        assert_eq!(server.stats().unexpected_errors, 0);
    }
}
