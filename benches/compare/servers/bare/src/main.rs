//! A lower bound: the cost of an echo on a ring whose receives stay armed, if nothing else is done.
//! It must not be used as a server: it loses bytes that a socket does not take at once, has no
//! limits and no counters, and ends at the first unexpected event.
//!
//! It has the ring of the daemon: the same set-up flags and waits, one ring of provided buffers, a
//! multishot accept, a multishot receive for each connection, and one send for each received piece.
//! If the daemon costs more than this, that is the price of correctness; if it costs less, it saves
//! by receives that need not stay armed.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use clap::Parser;
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

/// What a completion is of: the value of an accept, and the bit of a send. A receive is its
/// descriptor.
const ACCEPT: u64 = 1 << 63;
const SEND: u64 = 1 << 62;

/// The bare loop, as a floor.
#[derive(Parser)]
struct Arguments {
    /// Address to listen on, such as 127.0.0.1:7777 or unix:/run/echo.
    #[arg(long)]
    listen: String,
    /// Size of a buffer, in bytes.
    #[arg(long, default_value_t = 4096)]
    buffer: u32,
    /// How many buffers: a power of two up to 32768.
    #[arg(long, default_value_t = 1024)]
    buffers: u16,
}

/// The buffers that receives choose from, never freed.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    size: u32,
    count: u16,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring, count: u16, size: u32) -> io::Result<Self> {
        let entries = zeroed(usize::from(count) * size_of::<BufRingEntry>()).cast();
        let memory = zeroed(usize::from(count) * size as usize);
        // SAFETY: it is page-aligned, has room for this number of entries, and is never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, count, 0, 0)? };
        let mut buffers = Self { entries, memory, size, count, tail: 0 };
        (0..count).for_each(|index| buffers.give(index));
        Ok(buffers)
    }

    fn start(&self, index: u16) -> *mut u8 {
        // SAFETY: the kernel names only buffers that it was given.
        unsafe { self.memory.add(usize::from(index) * self.size as usize) }
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, index: u16) {
        let start = self.start(index);
        let place = usize::from(self.tail & (self.count - 1));
        // SAFETY: the place is inside the ring, and the kernel reads none at or behind the tail.
        let entry = unsafe { &mut *self.entries.add(place) };
        entry.set_addr(start as u64);
        entry.set_len(self.size);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, aligned, and the kernel reads it atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    echo_door::use_all_files()?;
    let listener = echo_door::open(&arguments.listen)?;
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(16384)
        .build(4096)?;
    let mut buffers = Buffers::register(&ring, arguments.buffers, arguments.buffer)?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build().user_data(ACCEPT);
    push(&mut ring, &accept);
    let mut reaped: Vec<cqueue::Entry> = Vec::new();
    loop {
        submit_and_wait(&mut ring)?;
        reaped.extend(ring.completion());
        for completion in reaped.drain(..) {
            match completion.user_data() {
                ACCEPT => receive(&mut ring, completion.result()),
                sent if sent & SEND != 0 => buffers.give(sent as u16),
                descriptor => echo(&mut ring, &buffers, descriptor as RawFd, &completion),
            }
        }
    }
}

/// Waits as the daemon does: not accounted as waiting for I/O, if the kernel supports that.
fn submit_and_wait(ring: &mut IoUring) -> io::Result<()> {
    let mut flags = EnterFlags::GETEVENTS;
    if ring.params().is_feature_no_iowait() {
        flags |= EnterFlags::NO_IOWAIT;
    }
    let submissions = ring.submission().len() as u32;
    // SAFETY: the ring has this number of entries, and there is no argument.
    unsafe { ring.submitter().enter(submissions, 1, flags.bits(), None::<&()>) }.map(drop)
}

/// Sends received bytes back.
fn echo(ring: &mut IoUring, buffers: &Buffers, descriptor: RawFd, completion: &cqueue::Entry) {
    match (completion.result(), cqueue::buffer_select(completion.flags())) {
        (length @ 1.., Some(index)) => {
            let send = opcode::Send::new(Fd(descriptor), buffers.start(index), length as u32)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build();
            push(ring, &send.user_data(SEND | u64::from(index)));
            if !cqueue::more(completion.flags()) {
                receive(ring, descriptor);
            }
        }
        (result, _) if result == -libc::ENOBUFS => receive(ring, descriptor),
        // SAFETY: it came from an accept, and its receive has just ended.
        _ => drop(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}

fn receive(ring: &mut IoUring, descriptor: RawFd) {
    push(ring, &opcode::RecvMulti::new(Fd(descriptor), 0).build().user_data(descriptor as u64));
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: the buffers that entries point to are never freed.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().expect("the kernel takes entries");
    }
}

fn zeroed(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, 4096).expect("a pool smaller than memory");
    // SAFETY: it is not empty: both numbers come from options that the kernel refuses at 0.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        handle_alloc_error(layout);
    }
    start
}
