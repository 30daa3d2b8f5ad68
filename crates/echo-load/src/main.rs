//! echo-load: a load generator for plain echo servers that checks every byte of the echo.
//!
//! Reading order:
//!
//! - `arguments`, with `target` and `values`: the command line; `status`: all exit statuses.
//! - `run`: the main thread, its phases and reports; `orders`: messages between it and the workers.
//! - `worker`: one thread, and the accounting of messages; `connection`, `schedule` and `size`: its
//!   state.
//! - `pattern`, `diagnosis` and `fault`: the bytes that are sent, and the classification of faults.
//! - `measure` and `result`: the measurements; `table`, `json`, `progress`, `hdr`, `plot`, `diff`:
//!   their output formats.
//! - `machine`, `reach`, `signals`, `files`, `writer`: the interface to the system.

mod announced;
mod arguments;
mod connection;
mod datagram;
mod diagnosis;
mod diff;
mod failure;
mod fault;
mod files;
mod flow;
mod hdr;
mod json;
mod machine;
mod measure;
mod orders;
mod pattern;
mod plot;
mod progress;
mod proxy;
mod reach;
mod result;
mod run;
mod schedule;
mod signals;
mod size;
mod status;
mod table;
mod target;
mod udp;
mod units;
mod unix;
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
