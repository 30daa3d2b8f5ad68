//! The descriptors of a handover: packed into a socket that the service manager stores, and
//! unpacked again.
//!
//! One entry of the store (a *bundle*) holds thousands of connections: they are sent into one end
//! of a socket pair (unix(7), `SCM_RIGHTS`), and the other end is stored. With one entry per
//! connection the manager would compare each with all others, and their names would not fit into
//! the environment. The state is the first descriptor, a sealed memfd, so that state and
//! connections cannot be separated.
//!
//! A message carries at most 253 descriptors and its number: when the buffer of a socket is full,
//! another bundle follows, and the store keeps no order. Only this module of `handover` uses
//! rustix, which returns received descriptors as [`OwnedFd`]s without unsafe code of ours.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    getpeername, ipproto, recvmsg, sendmsg, shutdown, socketpair, sockopt,
};
use rustix::time::{ClockId, clock_gettime};

use super::format::{self, Head, RecordRef, State, Unreadable, Version};

/// Descriptors in one message: the kernel's limit (`SCM_MAX_FD`).
const MESSAGE: usize = 253;
/// Bundles of one handover; the unit permits this many entries (`FileDescriptorStoreMax=`). Each
/// holds some hundred thousand descriptors.
const BUNDLES_MAX: usize = 32;

/// Writes the state to a memfd and seals it.
///
/// # Errors
/// When there is no memory or no descriptor left.
pub(super) fn seal(
    version: Version,
    head: &Head,
    records: &[RecordRef<'_>],
) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("echo-uring-state", flags)?);
    format::write(version, head, records, &mut file)?;
    file.rewind()?;
    fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(file.into())
}

/// Reads a sealed state.
///
/// # Errors
/// If it is not a sealed state.
pub(super) fn unseal(fd: OwnedFd) -> Result<State, Unreadable> {
    let seals = fcntl_get_seals(&fd).map_err(|_| Unreadable::Foreign)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(Unreadable::Foreign);
    }
    let mut file = File::from(fd);
    file.rewind()?;
    let length = file.metadata()?.len();
    format::read(&mut io::BufReader::with_capacity(1 << 16, file), length)
}

/// Sends a FIN. It fails only if the peer is gone, and then no FIN is needed.
pub(super) fn finish(connection: BorrowedFd<'_>) {
    let _ = shutdown(connection, Shutdown::Write);
}

/// The time in milliseconds of the monotonic clock of this boot, which both processes share.
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Packs copies of `descriptors`, in this order, into as many bundles as needed.
///
/// # Errors
/// ETOOMANYREFS when more descriptors of this user are in flight than the limit on open files
/// permits, EMFILE when none is left for the sockets, and others.
pub(super) fn pack(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let messages = descriptors.chunks(MESSAGE);
    let count = messages.len() as u32;
    let mut bundles = Vec::new();
    let (mut sender, receiver) = pair()?;
    bundles.push(receiver);
    for (number, message) in (0..).zip(messages) {
        match send(&sender, number, count, message) {
            Err(Errno::AGAIN) if bundles.len() < BUNDLES_MAX => {
                let (next, receiver) = pair()?;
                sender = next;
                bundles.push(receiver);
                send(&sender, number, count, message)?;
            }
            sent => sent?,
        }
    }
    Ok(bundles)
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn send(
    socket: &OwnedFd,
    number: u32,
    count: u32,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    assert!(fits, "a message has room for {MESSAGE} descriptors");
    let text = label(number, count);
    sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// The payload of a message: its number, and how many there are in all.
fn label(number: u32, count: u32) -> [u8; 8] {
    let mut label = [0; 8];
    label[..4].copy_from_slice(&number.to_le_bytes());
    label[4..].copy_from_slice(&count.to_le_bytes());
    label
}

/// The content of the bundles.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// In the order in which they were packed; some may be missing.
    pub(super) descriptors: Vec<OwnedFd>,
    /// Why some may be missing, if so.
    pub(super) damage: Option<&'static str>,
}

/// Unpacks what [`pack`] packed. Returns what is there even if some is missing.
pub(super) fn unpack(bundles: Vec<OwnedFd>) -> Unpacked {
    let mut unpacked = Unpacked::default();
    let mut messages: Vec<([u8; 8], Vec<OwnedFd>)> = Vec::new();
    for bundle in bundles {
        loop {
            match receive(bundle.as_fd()) {
                Ok(None) => break,
                Ok(Some(message)) => {
                    if message.truncated {
                        unpacked.damage =
                            Some("the limit on open files is too low for all of them");
                    }
                    messages.push((message.label, message.descriptors));
                }
                Err(_) => {
                    unpacked.damage = Some("a bundle of them cannot be read");
                    break;
                }
            }
        }
    }
    messages.sort_by_key(|(label, _)| u32::from_le_bytes([label[0], label[1], label[2], label[3]]));
    let count = messages.len() as u32;
    let whole =
        (0..count).zip(&messages).all(|(number, (found, _))| *found == label(number, count));
    if !whole || messages.is_empty() {
        unpacked.damage = unpacked.damage.or(Some("some are missing"));
    }
    unpacked.descriptors = messages.into_iter().flat_map(|(_, descriptors)| descriptors).collect();
    unpacked
}

struct Message {
    label: [u8; 8],
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

/// A copy of the first descriptor that was packed. The bundles are left unchanged.
pub(super) fn peek(bundles: &[OwnedFd]) -> Option<OwnedFd> {
    let firsts = bundles.iter().filter_map(|bundle| next(bundle.as_fd(), RecvFlags::PEEK).ok()?);
    let mut firsts = firsts.filter(|message| message.label[..4] == [0; 4]);
    firsts.next()?.descriptors.into_iter().next()
}

/// The next message; none at the end.
fn receive(bundle: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    next(bundle, RecvFlags::empty())
}

fn next(bundle: BorrowedFd<'_>, how: RecvFlags) -> Result<Option<Message>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut label = [0; 8];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | how;
    let got = recvmsg(bundle, &mut [IoSliceMut::new(&mut label)], &mut ancillary, flags)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    Ok(Some(Message {
        label,
        descriptors: descriptors.collect(),
        truncated: got.flags.contains(ReturnFlags::CTRUNC),
    }))
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connected {
    /// A stream of bytes.
    Stream,
    /// Messages with boundaries (SOCK_SEQPACKET).
    Records,
}

/// Why a descriptor is not imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A connection that has ended: nothing can be received or sent any more.
    Ended,
    /// Not a connection; what it is instead.
    Foreign(&'static str),
}

/// What is carried by this connected socket of a family that we serve. The driver could not handle
/// anything else: a pipe would never end, a listening socket would never receive.
pub(super) fn check_connection(fd: BorrowedFd<'_>) -> Result<Connected, Refused> {
    let kind = match sockopt::socket_type(fd) {
        Ok(SocketType::STREAM) => Connected::Stream,
        Ok(SocketType::SEQPACKET) => Connected::Records,
        Ok(_) => return Err(Refused::Foreign("a socket without connections")),
        Err(_) => return Err(Refused::Foreign("no socket")),
    };
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::UNIX) => {}
        Ok(_) if kind == Connected::Records => {
            return Err(Refused::Foreign("a seqpacket socket of another family than Unix"));
        }
        Ok(AddressFamily::INET | AddressFamily::INET6) => {
            if sockopt::socket_protocol(fd) != Ok(Some(ipproto::TCP)) {
                return Err(Refused::Foreign("a stream of another protocol than TCP"));
            }
        }
        Ok(_) | Err(_) => return Err(Refused::Foreign("a stream of another family")),
    }
    // A listening socket has no peer, and a TCP connection that was reset has lost it.
    match (getpeername(fd), sockopt::socket_acceptconn(fd)) {
        (Ok(_), _) => Ok(kind),
        (Err(_), Ok(false)) => Err(Refused::Ended),
        (Err(_), _) => Err(Refused::Foreign("a listening socket")),
    }
}
