//! Command line, daemon, exit code; everything else is in the library.

use std::process::ExitCode;

use echo_uring::cli::{self, Command};
use echo_uring::daemon;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(Command::Serve(options)) => daemon::serve(&options),
        Ok(Command::Check(options)) => daemon::check(&options),
        Ok(Command::Reload(options)) => daemon::reload(&options),
        Err(status) => status,
    }
}
