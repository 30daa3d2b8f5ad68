//! Arbitrary bytes as the state of the previous process: a result, no panic, and no more memory
//! than there are bytes. A state that was read must be written identically.
//!
//! A fuzzer cannot guess a checksum, so nearly all interesting states would be refused. A state in
//! which only the checksum is wrong is therefore read again with the right one.
#![no_main]

use echo_uring::handover::format::{self, State, Unreadable};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8]) -> Result<State, Unreadable> {
    format::read(&mut &*bytes, bytes.len() as u64)
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    let mut read_so_far = read(&bytes);
    if let Err(Unreadable::Checksum(right)) = read_so_far {
        bytes[format::CHECKSUM_AT..][..8].copy_from_slice(&right.to_le_bytes());
        read_so_far = read(&bytes);
        assert!(read_so_far.is_ok(), "{read_so_far:?}, though nothing else was wrong");
    }
    if let Ok(state) = read_so_far {
        let records: Vec<_> = state.records.iter().map(format::Record::as_ref).collect();
        let mut again = Vec::new();
        format::write(state.version, &state.head, &records, &mut again)
            .expect("a vector takes everything");
        assert_eq!(again, bytes);
    }
});
