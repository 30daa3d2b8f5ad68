//! Histories of datagrams: the worker's own loop on a fake kernel, alone or beside streams.
//!
//! `rules` states in its own words which datagrams must not be answered and how much a source may
//! have, `audit` everything else that the core promises of datagrams; neither shares code with it.
//! `mixed` is the kernel of such a history, `clients` who sends, `history` one run from one seed.
//! Tests stand on them: `swarm` (many seeds, with `coverage`), `exhaustive` (all small cases),
//! `planted` (bugs that must be found) and `two_workers` (one rate for both).

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
