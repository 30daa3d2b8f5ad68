//! Connections on their way from one process to the next, over the service manager's store of
//! descriptors.
//!
//! [`pack`] turns connections at rest into a few descriptors for the store, [`unpack`] turns them
//! back: `format` is the state as bytes, `store` the descriptors. What cannot be read is given back
//! too, as connections that are to be ended in order: a state of another version or a damaged one
//! never keeps a service from starting. Decides nothing about when to hand over, and knows neither
//! the service manager nor the ring.

pub mod format;
mod store;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::echo::op::{Bequest, ListenerId, Standing};
use crate::echo::stats::CloseReason;
use format::State;

/// One connection between two processes.
#[derive(Debug)]
pub struct Estate {
    /// Its socket.
    pub socket: OwnedFd,
    /// Where it stood.
    pub bequest: Bequest,
    /// The bytes that are still to be sent.
    pub unsent: Box<[u8]>,
}

/// What the process before us left.
#[derive(Debug)]
pub struct Inheritance {
    /// The connections.
    pub estates: Vec<Estate>,
    /// Why they cannot be gone on with, if so: then they are only to be ended in order.
    pub complaint: Option<String>,
}

/// Descriptors for the store that hold all of `estates`, which came from the listeners with these
/// addresses. They stay open.
///
/// # Errors
/// When the system does not let so many descriptors travel: ETOOMANYREFS beyond the limit on open
/// files (what is under way counts against it, apart from what is open), EMFILE, ENOMEM, …
pub fn pack<'a>(
    listeners: &[String],
    estates: impl Iterator<Item = &'a Estate> + Clone,
) -> io::Result<Vec<OwnedFd>> {
    let records: Vec<(Bequest, &[u8])> =
        estates.clone().map(|estate| (estate.bequest, &*estate.unsent)).collect();
    let state = store::seal(listeners, &records)?;
    let sockets = estates.map(|estate| estate.socket.as_fd());
    let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(state.as_fd()).chain(sockets).collect();
    store::pack(&descriptors)
}

/// What was packed into `bundles`, in whatever order they come.
///
/// Each connection is said to come from that of `listeners`, our own addresses, from which it did;
/// or from the first one, if there is no such listener any more.
#[must_use]
pub fn unpack(listeners: &[String], bundles: Vec<OwnedFd>) -> Inheritance {
    let store::Parcel { descriptors, damage } = store::unpack(bundles);
    let mut descriptors = descriptors.into_iter();
    let state = match descriptors.next() {
        Some(state) => store::unseal(state).map_err(|unreadable| unreadable.to_string()),
        None => Err("there is none".to_owned()),
    };
    let sockets: Vec<OwnedFd> = descriptors.collect();
    match (damage, state) {
        (None, Ok(state)) if state.records.len() == sockets.len() => {
            resume(listeners, sockets, state)
        }
        (None, Ok(state)) => {
            let (told, came) = (state.records.len(), sockets.len());
            end(sockets, format!("it tells of {told} connections, and {came} came"))
        }
        (None, Err(unreadable)) => end(sockets, unreadable),
        (Some(damage), _) => end(sockets, damage.to_owned()),
    }
}

fn resume(listeners: &[String], sockets: Vec<OwnedFd>, state: State) -> Inheritance {
    let ours: Vec<ListenerId> = state
        .listeners
        .iter()
        .map(|theirs| listeners.iter().position(|address| address == theirs).unwrap_or(0))
        .map(|index| ListenerId(index as u16))
        .collect();
    // Time went on while nobody was there.
    let elapsed = store::now_ms().saturating_sub(state.saved_at_ms);
    let estates = sockets.into_iter().zip(state.records).map(|(socket, record)| {
        let theirs = usize::from(record.bequest.listener.0);
        let listener = ours.get(theirs).copied().unwrap_or(ListenerId(0));
        let age_ms = record.bequest.age_ms.saturating_add(elapsed);
        let quiet_ms = record.bequest.quiet_ms.saturating_add(elapsed);
        Estate {
            socket,
            bequest: Bequest { listener, quiet_ms, age_ms, ..record.bequest },
            unsent: record.unsent,
        }
    });
    Inheritance { estates: estates.collect(), complaint: None }
}

/// A FIN behind what the peer got so far, and patience for its own: closing at once would reset
/// whoever is still sending.
fn end(sockets: Vec<OwnedFd>, complaint: String) -> Inheritance {
    let standing = Standing::Flushing(CloseReason::Drained);
    let bequest = Bequest {
        listener: ListenerId(0),
        standing,
        unsent: 0,
        quiet_ms: 0,
        age_ms: 0,
        received: 0,
    };
    let estates =
        sockets.into_iter().map(|socket| Estate { socket, bequest, unsent: Box::default() });
    Inheritance { estates: estates.collect(), complaint: Some(complaint) }
}
