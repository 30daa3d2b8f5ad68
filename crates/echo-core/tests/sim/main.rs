//! Histories: the pure core on a fake kernel that does everything the real one may do.
//!
//! `fake` is that kernel, `audit` the contract between core and kernel and the model of each
//! connection, `peers` the far ends, `audited` the layer between fake and core, `history` one run
//! from one seed: the worker's own loop. The tests are `swarm` (many seeds), `exhaustive` (all
//! small cases), `timers` (each timeout, early and late) and `planted` (a simulator that does not
//! find planted bugs proves nothing); `taken_back` is about a handover that fails.

mod apart;
mod audit;
mod audited;
mod caught;
mod coverage;
mod datagrams;
mod exhaustive;
mod fake;
mod history;
mod peers;
mod planted;
mod saboteur;
mod swarm;
mod taken_back;
mod timers;
mod two_workers;
