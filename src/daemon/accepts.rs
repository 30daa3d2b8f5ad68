//! One line for each accept, at level debug.
//!
//! The event loops log nothing: each keeps its last accepts (`echo_core::admission::AcceptLog`),
//! and the main thread logs them once a second. Of a worker that accepts more than fits its log,
//! the others are counted.

use echo_core::admission::Accept;

use super::report;
use super::workers::Worker;

/// Logs accepts, each once.
#[derive(Debug, Default)]
pub(super) struct AcceptReporter {
    /// How many accepts of each worker have been seen.
    seen: Vec<u64>,
}

impl AcceptReporter {
    /// Logs the accepts of `workers` since the last call; `names` are those of the listeners.
    pub(super) fn log(&mut self, workers: &[Worker], names: &[String]) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        self.seen.resize(workers.len(), 0);
        for (worker, seen) in workers.iter().zip(&mut self.seen) {
            let accepts = worker.shared.board.accepts();
            let (missed, new) = accepts.since(*seen);
            *seen = accepts.total();
            if missed > 0 {
                log::debug!("{} not listed", report::count(missed, "connection"));
            }
            for accept in new {
                log::debug!("{}", line(&accept, names));
            }
        }
    }
}

fn line(accept: &Accept, names: &[String]) -> String {
    let Accept { listener, peer, refused } = accept;
    // A connection of the previous process may be from a listener that is gone; it counts for the
    // first one, even if there is none.
    let name = names.get(usize::from(listener.0)).map_or("a former listener", String::as_str);
    match refused {
        None => format!("connection from {peer} accepted at {name}"),
        Some(reason) => format!("connection from {peer} refused at {name}: {}", reason.name()),
    }
}

#[cfg(test)]
mod tests {
    use echo_core::op::{ListenerId, PeerAddr};
    use echo_core::reason::RefuseReason;

    use super::*;

    #[test]
    fn a_line_names_the_peer_the_listener_and_the_verdict() {
        let names = ["lan".to_owned(), "local".to_owned()];
        let listener = ListenerId(1);
        let peer = PeerAddr::Ipv4([192, 0, 2, 7]);
        let accept = Accept { listener, peer, refused: None };
        assert_eq!(line(&accept, &names), "connection from 192.0.2.7 accepted at local");
        let accept = Accept { refused: Some(RefuseReason::SourceRate), ..accept };
        let text = "connection from 192.0.2.7 refused at local: source-rate";
        assert_eq!(line(&accept, &names), text);
        let text = "connection from 192.0.2.7 refused at a former listener: source-rate";
        assert_eq!(line(&accept, &[]), text);
    }
}
