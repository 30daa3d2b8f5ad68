//! Handover: connections continue in the next process. They wait in the descriptor store of the
//! service manager.
//!
//! [`pack`] turns quiescent connections into a few descriptors for the store, [`unpack`] reads
//! them, and [`Import::import`] turns them back: `format` is the state as bytes, `store` the
//! descriptors. If the state cannot be read, the connections are returned to be closed with a FIN:
//! a state that is damaged or of an unknown version does not prevent a start.
//! This module does not decide when to hand over, and knows neither the service manager nor the
//! ring.

pub mod format;
mod store;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use echo_core::op::CloseReason;
use echo_core::op::{ListenerId, TransferPhase, TransferState};
use format::{Head, Record, RecordRef, State, Version};
use store::{Connected, Refused};

/// One connection during a handover.
#[derive(Debug)]
pub struct ConnectionTransfer {
    /// Its socket.
    pub socket: OwnedFd,
    /// Its state.
    pub transfer: TransferState,
    /// The address that its header has announced.
    pub announced: Option<SocketAddr>,
    /// The state of the parser of its header; present exactly if a part of the header has arrived,
    /// but not all.
    pub preface: Box<[u8]>,
    /// The bytes that are still to be sent.
    pub unsent: Box<[u8]>,
}

impl ConnectionTransfer {
    /// The same after `milliseconds` in which no process served it.
    #[must_use]
    pub fn after(self, milliseconds: u64) -> Self {
        Self { transfer: self.transfer.after(milliseconds), ..self }
    }
}

/// Ends connections that a state of `version` cannot represent: those whose header is being read.
/// Their peers get a FIN, and the next process waits for the peers' FIN. Returns how many there
/// are.
///
/// Such a version omits the address that a header has announced: the connection continues, and
/// counts as a connection of its proxy.
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

/// What the previous process handed over.
#[derive(Debug)]
pub struct Imported {
    /// The connections.
    pub transfers: Vec<ConnectionTransfer>,
    /// Connections that ended in the meantime; they are closed.
    pub ended: usize,
    /// Descriptors that are not connections, by kind; they are closed.
    pub foreign: Vec<&'static str>,
    /// Why the state is unusable, if it is. The connections are then only closed with a FIN.
    pub complaint: Option<String>,
}

/// Descriptors for the store that hold all of `transfers`, which came from the listeners with these
/// addresses, and the last valid configuration as TOML. They stay open.
///
/// # Errors
/// When the system refuses to send this many descriptors: ETOOMANYREFS beyond the limit on open
/// files (descriptors in flight count against it separately from open ones), EMFILE, ENOMEM, …
///
/// # Panics
/// If the version cannot represent one of them: see [`end_unfit`].
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

/// The last valid configuration of the previous process, as TOML, if `bundles` hold one along with
/// connections. The content of the bundles stays there.
#[must_use]
pub fn configuration(bundles: &[OwnedFd]) -> Option<String> {
    let State { head, records, .. } = store::unseal(store::peek(bundles)?).ok()?;
    (!records.is_empty() && !head.configuration.is_empty()).then_some(head.configuration)
}

/// The content of the store, read and not yet imported.
#[derive(Debug)]
pub struct Import {
    sockets: Vec<OwnedFd>,
    /// The state of each of them, or why it is unusable.
    state: Result<State, String>,
}

/// Unpacks `bundles`, which may be in any order.
#[must_use]
pub fn unpack(bundles: Vec<OwnedFd>) -> Import {
    let store::Unpacked { descriptors, damage } = store::unpack(bundles);
    let mut descriptors = descriptors.into_iter();
    let state = match descriptors.next() {
        Some(state) => store::unseal(state).map_err(|unreadable| unreadable.to_string()),
        None => Err("no state was stored".to_owned()),
    };
    let sockets: Vec<OwnedFd> = descriptors.collect();
    let state = match (damage, state) {
        (Some(damage), _) => Err(damage.to_owned()),
        (None, Ok(state)) if state.records.len() != sockets.len() => {
            let listed = state.records.len();
            Err(format!(
                "it lists {listed} connections, but {sockets} sockets were stored",
                sockets = sockets.len()
            ))
        }
        (None, state) => state,
    };
    Import { sockets, state }
}

impl Import {
    /// The connections. Each is attributed to the listener of `listeners` with the address that it
    /// came from, or to the first if that address is gone. Anything but a connected stream or
    /// seqpacket socket is closed.
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
                    // The type of the socket decides, regardless of the record.
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
    // No process served them in the meantime.
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

/// A FIN after what the peer has received, then time for its FIN: an immediate close would reset a
/// peer that is still sending.
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
