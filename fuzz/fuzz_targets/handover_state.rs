//! Whatever bytes come as the state of a process before us: an answer, no panic, and no more memory
//! than there are bytes. What is read must be what would be written.
#![no_main]

use echo_uring::handover::format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = format::read(&mut &*bytes, bytes.len() as u64) {
        let records: Vec<_> =
            state.records.iter().map(|record| (record.bequest, &*record.unsent)).collect();
        let mut again = Vec::new();
        format::write(state.saved_at_ms, &state.listeners, &records, &mut again)
            .expect("a vector takes everything");
        assert_eq!(again, bytes);
    }
});
