//! The core: what an echo server decides, and nothing else. No syscall, no clock, no randomness, no log.

pub mod op;
