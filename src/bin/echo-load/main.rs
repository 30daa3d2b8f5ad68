//! echo-load: puts load on a plain echo server and checks every byte that comes back.
//!
//! Reading order: `arguments` (what is asked for), `run` (the main thread: phases, reports, exit
//! status), `worker` (one thread, one ring), `connection`, `schedule` and `size` (what a worker
//! goes by), `pattern` and `diagnosis` (what is sent, and what is wrong with an echo), `measure`;
//! then the forms of a result: `table`, `json`, `progress`, `hdr`, `plot`, `diff`.

mod arguments;
mod connection;
mod diagnosis;
mod diff;
mod hdr;
mod json;
mod measure;
mod pattern;
mod plot;
mod progress;
mod run;
mod schedule;
mod size;
mod table;
mod worker;

use std::process::ExitCode;

use arguments::Command;

/// All echoes were right, nothing is worse.
const EXIT_RIGHT: u8 = 0;
/// Something came back wrong, a connection was lost, or a figure got worse.
const EXIT_DIFFERENCE: u8 = 1;
/// Wrong usage (clap's own number), or something that was named cannot be used.
const EXIT_USAGE: u8 = 2;
/// A connection could not be made.
const EXIT_UNCONNECTED: u8 = 3;

fn main() -> ExitCode {
    let status = match arguments::parse() {
        Command::Load(plan) => run::run(*plan),
        Command::Diff(plan) => diff::run(&plan),
    };
    ExitCode::from(status)
}
