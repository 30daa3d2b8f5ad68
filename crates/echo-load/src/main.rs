//! echo-load: puts load on a plain echo server and checks every byte that comes back.
//!
//! Reading order: `arguments`, with `target` and `values` (what is asked for), `status` (all exit
//! statuses), `run` (the main thread: phases, reports), `orders` (what main thread and workers tell
//! each other), `worker` (one thread, one ring, the account of messages), `connection`, `schedule`
//! and `size` (what a worker goes by), `pattern` and `diagnosis` (what is sent, and what is wrong
//! with an echo), `measure` and `result` (what it comes to); then the forms of a result: `table`,
//! `json`, `progress`, `hdr`, `plot`, `diff`; and the outside world: `machine`, `reach`, `signals`,
//! `files`, `writer`.

mod arguments;
mod connection;
mod diagnosis;
mod diff;
mod files;
mod hdr;
mod json;
mod machine;
mod measure;
mod orders;
mod pattern;
mod plot;
mod progress;
mod reach;
mod result;
mod run;
mod schedule;
mod signals;
mod size;
mod status;
mod table;
mod target;
mod values;
mod worker;
mod writer;

use std::process::ExitCode;

use arguments::Command;

fn main() -> ExitCode {
    let status = match arguments::parse() {
        Ok(Command::Load(plan)) => run::run(*plan),
        Ok(Command::Diff(plan)) => diff::run(&plan),
        Err(status) => status,
    };
    status.into()
}
