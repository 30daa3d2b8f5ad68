//! What one process stores for the next: a state, and descriptors behind it. This module unpacks
//! and packs it independently of the daemon's code.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// A bundle of one message: at most 252 descriptors behind the state.
pub(crate) struct Bundle {
    /// The bytes of the state.
    pub(crate) state: Vec<u8>,
    /// The descriptors that it describes, in order.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Bundle {
    /// Unpacks what a daemon has stored.
    pub(crate) fn open(stored: Vec<OwnedFd>) -> Self {
        let [bundle] = <[OwnedFd; 1]>::try_from(stored).expect("one bundle");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut label = [0; 8];
        recvmsg(
            &bundle,
            &mut [IoSliceMut::new(&mut label)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        assert_eq!(label, LABEL, "there is more than one message");
        let mut descriptors: Vec<OwnedFd> = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
                _ => Vec::new(),
            })
            .collect();
        let mut file = File::from(descriptors.remove(0));
        let mut state = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut state).unwrap();
        Self { state, descriptors }
    }

    /// Packs it, for a daemon to import.
    pub(crate) fn close(self) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("bundle", flags).unwrap());
        file.write_all(&self.state).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
        let state = OwnedFd::from(file);
        let all: Vec<_> =
            std::iter::once(&state).chain(&self.descriptors).map(AsFd::as_fd).collect();
        let (sender, receiver) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&all)));
        sendmsg(&sender, &[IoSlice::new(&LABEL)], &mut ancillary, SendFlags::empty()).unwrap();
        receiver
    }
}

/// Number 0 of 1.
const LABEL: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];
