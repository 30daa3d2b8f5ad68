//! Arming the listeners: how many accepts are with the kernel, and in what order.

use super::{Drain, Server};
use crate::echo::listener::Listener;
use crate::echo::op::{ListenerId, Op};

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
}

impl Server {
    /// Asks the kernel for as many connections as there are places, and no more in one turn: of two
    /// accepts that race for the last place one would be parked here, while another worker may have
    /// room. Listeners that have to stand back are armed in the next turn. The accept of one that
    /// should take nobody any more is canceled.
    pub(super) fn arm_listeners(&mut self, ops: &mut Vec<Op>) {
        let waiting = !self.parked.is_empty() || !self.admission.undecided.is_empty();
        let wanted = self.drain == Drain::No && !waiting && self.has_place();
        self.note_fullness();
        self.arming.standing_back = false;
        let places = self.free_places();
        let first = self.arming.next;
        for index in (first..self.listeners.len()).chain(0..first) {
            match self.listeners[index] {
                Listener::Off if wanted && self.arming.this_turn >= places => {
                    self.arming.standing_back = true;
                }
                Listener::Off if wanted => {
                    self.arming.this_turn += 1;
                    self.arming.next = index + 1;
                    let listener = ListenerId(index as u16);
                    let connection = self.take_slot();
                    self.connection(connection).reserve(listener);
                    self.listeners[index] = Listener::Armed(connection);
                    ops.push(Op::Accept { listener, connection });
                }
                Listener::Armed(connection) if !wanted => {
                    self.listeners[index] = Listener::Canceling(connection);
                    ops.push(Op::CancelAccept { connection });
                }
                Listener::Off
                | Listener::Armed(_)
                | Listener::Canceling(_)
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::echo::fullness::Fullness;
    use crate::echo::op::{Event, Source, Timestamp};
    use crate::echo::server::Parameters;

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
            workers[0].retune(Timestamp(2), parameters.tuning);
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
}
