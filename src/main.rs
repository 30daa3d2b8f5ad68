//! Command line, daemon, exit code; everything else is in the library.

use std::process::ExitCode;

use echo_uring::admin::client::{self, Daemon, Form, Times};
use echo_uring::cli::{self, Command};
use echo_uring::{daemon, doctor};

fn main() -> ExitCode {
    match cli::parse() {
        Ok(Command::Serve(options)) => daemon::serve(&options),
        Ok(Command::Check(options)) => daemon::check(&options),
        Ok(Command::Reload(options)) => daemon::reload(&options),
        Ok(Command::Status(options)) => client::run(
            &match options.instance {
                Some(name) => Daemon::Instance(name),
                None => Daemon::At(options.socket),
            },
            if options.json { Form::Json } else { Form::Table },
            if options.watch { Times::Watch } else { Times::Once },
        ),
        Ok(Command::Doctor(options)) => doctor::examine(&options),
        Err(status) => status,
    }
}
