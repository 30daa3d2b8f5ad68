//! Arbitrary bytes as a configuration file: it is valid, or refused in one clear line. The bytes
//! are used twice: as the file itself, and as the decisions of a grammar that writes one, which
//! reaches files that flipped bits would not produce.
#![no_main]

#[path = "../../tests/config/grammar.rs"]
mod grammar;
#[path = "../../tests/config/judge.rs"]
mod judge;

use std::sync::OnceLock;

use grammar::Grammar;
use libfuzzer_sys::fuzz_target;

static GRAMMAR: OnceLock<Grammar> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let _ = judge::judge(bytes);
    // Two bytes a decision; when they are used up the answer is always the first one.
    let mut decisions =
        bytes.chunks(2).map(|pair| pair.iter().fold(0, |sum, byte| sum << 8 | *byte as usize));
    let file =
        GRAMMAR.get_or_init(Grammar::new).file(&mut |bound| decisions.next().unwrap_or(0) % bound);
    let _ = judge::judge(&file);
});
