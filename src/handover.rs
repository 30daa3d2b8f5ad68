//! Connections on their way from one process to the next, over the service manager's store of
//! descriptors.
//!
//! [`pack`] turns quiescent connections into a few descriptors for the store, [`unpack`] reads
//! them, and [`Import::import`] turns them back: `format` is the state as bytes, `store` the
//! descriptors. What cannot be read is given back too, as connections that are to be ended in
//! order: a state of an unknown version or a damaged one never keeps a service from starting.
//! Decides nothing about when to hand over, and knows neither the service manager nor the ring.

pub mod format;
mod store;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use echo_core::op::CloseReason;
use echo_core::op::{ListenerId, TransferPhase, TransferState};
use format::{Head, Record, RecordRef, State, Version};
use store::{Connected, Refused};

/// One connection between two processes.
#[derive(Debug)]
pub struct ConnectionTransfer {
    /// Its socket.
    pub socket: OwnedFd,
    /// Where it stood.
    pub transfer: TransferState,
    /// The address that its header has announced.
    pub announced: Option<SocketAddr>,
    /// The state of the parser of its header; there exactly if some of that has come, and not all.
    pub preface: Box<[u8]>,
    /// The bytes that are still to be sent.
    pub unsent: Box<[u8]>,
}

impl ConnectionTransfer {
    /// The same after so many milliseconds in which nobody served it.
    #[must_use]
    pub fn after(self, milliseconds: u64) -> Self {
        Self { transfer: self.transfer.after(milliseconds), ..self }
    }
}

/// Ends connections for which a state of `version` has no place: those whose header is being read.
/// Their peers get a FIN, and the next process waits for theirs. Returns how many they are.
///
/// The address that a header has announced is left out by such a version: the connection goes on,
/// and counts as one of its proxy.
pub fn end_unfit<'a>(
    version: Version,
    transfers: impl Iterator<Item = &'a mut ConnectionTransfer>,
) -> usize {
    let is_unfit = |connection: &&mut ConnectionTransfer| {
        !version.has_headers() && matches!(connection.transfer.phase, TransferPhase::Preface(_))
    };
    let unfit = transfers.filter(is_unfit).map(|connection| {
        store::finish(connection.socket.as_fd());
        connection.transfer.phase = TransferPhase::Lingering(CloseReason::Drained);
        connection.transfer.quiet_ms = 0;
        connection.preface = Box::default();
    });
    unfit.count()
}

/// What the process before us left.
#[derive(Debug)]
pub struct Imported {
    /// The connections.
    pub transfers: Vec<ConnectionTransfer>,
    /// Connections whose peer has gone in between; they are closed.
    pub ended: usize,
    /// What else was among them, and is closed.
    pub foreign: Vec<&'static str>,
    /// Why they cannot be gone on with, if so: then they are only to be ended in order.
    pub complaint: Option<String>,
}

/// Descriptors for the store that hold all of `transfers`, which came from the listeners with these
/// addresses, and the last valid configuration as TOML. They stay open.
///
/// # Errors
/// When the system does not let so many descriptors travel: ETOOMANYREFS beyond the limit on open
/// files (what is under way counts against it, apart from what is open), EMFILE, ENOMEM, …
///
/// # Panics
/// If the version has no place for one of them: see [`end_unfit`].
pub fn pack<'a>(
    version: Version,
    listeners: &[String],
    configuration: String,
    transfers: impl Iterator<Item = &'a ConnectionTransfer> + Clone,
) -> io::Result<Vec<OwnedFd>> {
    let record = |connection: &'a ConnectionTransfer| {
        let ConnectionTransfer { socket: _, transfer, announced, preface, unsent } = connection;
        RecordRef { transfer: *transfer, announced: *announced, preface, unsent }
    };
    let records: Vec<RecordRef<'_>> = transfers.clone().map(record).collect();
    let saved_at_ms = store::now_ms();
    let head = Head { saved_at_ms, listeners: listeners.to_vec(), configuration };
    let state = store::seal(version, &head, &records)?;
    let sockets = transfers.map(|connection| connection.socket.as_fd());
    let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(state.as_fd()).chain(sockets).collect();
    store::pack(&descriptors)
}

/// The last valid configuration of the process before us, as TOML, if it left any in `bundles`
/// along with connections. All that is in them stays there.
#[must_use]
pub fn configuration(bundles: &[OwnedFd]) -> Option<String> {
    let State { head, records, .. } = store::unseal(store::peek(bundles)?).ok()?;
    (!records.is_empty() && !head.configuration.is_empty()).then_some(head.configuration)
}

/// What was in the store: read, and not yet imported.
#[derive(Debug)]
pub struct Import {
    sockets: Vec<OwnedFd>,
    /// Where each of them stood, or why that cannot be known.
    state: Result<State, String>,
}

/// What was packed into `bundles`, in whatever order they come.
#[must_use]
pub fn unpack(bundles: Vec<OwnedFd>) -> Import {
    let store::Unpacked { descriptors, damage } = store::unpack(bundles);
    let mut descriptors = descriptors.into_iter();
    let state = match descriptors.next() {
        Some(state) => store::unseal(state).map_err(|unreadable| unreadable.to_string()),
        None => Err("there is none".to_owned()),
    };
    let sockets: Vec<OwnedFd> = descriptors.collect();
    let state = match (damage, state) {
        (Some(damage), _) => Err(damage.to_owned()),
        (None, Ok(state)) if state.records.len() != sockets.len() => {
            let (told, came) = (state.records.len(), sockets.len());
            Err(format!("it tells of {told} connections, and {came} came"))
        }
        (None, state) => state,
    };
    Import { sockets, state }
}

impl Import {
    /// The connections. Each is said to come from that of `listeners`, our own addresses, from
    /// which it did; or from the first one, if there is no such listener any more. Whatever is no
    /// connected stream or seqpacket socket is closed.
    #[must_use]
    pub fn import(self, listeners: &[String]) -> Imported {
        let Self { sockets, state } = self;
        let (transfers, complaint): (Vec<ConnectionTransfer>, _) = match state {
            Ok(state) => (resume(listeners, sockets, state), None),
            Err(complaint) => (end(sockets), Some(complaint)),
        };
        let mut imported =
            Imported { transfers: Vec::new(), ended: 0, foreign: Vec::new(), complaint };
        for mut connection in transfers {
            match store::check_connection(connection.socket.as_fd()) {
                Ok(Connected::Records) if !connection.unsent.is_empty() => {
                    imported.foreign.push("a seqpacket socket with messages of its own");
                }
                Ok(connected) => {
                    // The socket itself tells, whatever was written of it.
                    connection.transfer.records = connected == Connected::Records;
                    imported.transfers.push(connection);
                }
                Err(Refused::Ended) => imported.ended += 1,
                Err(Refused::Foreign(what)) => imported.foreign.push(what),
            }
        }
        imported
    }
}

fn resume(listeners: &[String], sockets: Vec<OwnedFd>, state: State) -> Vec<ConnectionTransfer> {
    let State { head, records, version: _ } = state;
    let ours: Vec<ListenerId> = head
        .listeners
        .iter()
        .map(|theirs| listeners.iter().position(|address| address == theirs).unwrap_or(0))
        .map(|index| ListenerId(index as u16))
        .collect();
    // Time went on while nobody was there.
    let elapsed = store::now_ms().saturating_sub(head.saved_at_ms);
    let transfers = sockets.into_iter().zip(records).map(|(socket, record)| {
        let theirs = usize::from(record.transfer.listener.0);
        let listener = ours.get(theirs).copied().unwrap_or(ListenerId(0));
        let Record { transfer, announced, preface, unsent } = record;
        let transfer = TransferState { listener, ..transfer };
        ConnectionTransfer { socket, transfer, announced, preface, unsent }.after(elapsed)
    });
    transfers.collect()
}

/// A FIN behind what the peer got so far, and time for its own: closing at once would reset whoever
/// is still sending.
fn end(sockets: Vec<OwnedFd>) -> Vec<ConnectionTransfer> {
    let phase = TransferPhase::Flushing(CloseReason::Drained);
    let transfer = TransferState {
        listener: ListenerId(0),
        records: false,
        phase,
        unsent: 0,
        quiet_ms: 0,
        age_ms: 0,
        received: 0,
    };
    let transfers = sockets.into_iter().map(|socket| ConnectionTransfer {
        socket,
        transfer,
        announced: None,
        preface: Box::default(),
        unsent: Box::default(),
    });
    transfers.collect()
}
