//! Histories of datagrams: the worker's own loop on a fake kernel, alone or beside streams.
//!
//! `rules` specifies independently which datagrams must not be answered and how much a source may
//! have. `audit` checks everything else that the core promises about datagrams. Neither shares code
//! with the core. `mixed` is the kernel of such a history, `clients` are the senders, `history` is
//! one run from one seed. The tests are `swarm` (many seeds, with `coverage`), `exhaustive` (all
//! small cases), `planted` (bugs that must be found) and `two_workers` (one rate for both).

mod audit;
mod clients;
mod coverage;
mod exhaustive;
mod history;
mod mixed;
mod planted;
mod rules;
mod saboteur;
mod swarm;
mod two_workers;
