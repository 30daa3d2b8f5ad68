//! The doctor: what the machine, the configuration and the sandbox are like, as this process sees
//! them, and what to do about it.
//!
//! It looks and tries, and changes nothing that lasts. A finding says what is so; one that is not
//! well says the cure. It must never need the daemon to run, nor any right that the daemon has not.

mod finding;
mod kernel;
mod limits;
mod running;
mod sandbox;
mod sockets;

use std::path::Path;
use std::process::ExitCode;

use crate::cli::{DoctorOptions, Options};
use crate::config::{self, Config, Overrides};
use crate::output;
use finding::{Finding, Level, Topic};

/// Looks at everything and prints what it found. The exit status is 1 if there is a problem.
#[must_use]
pub fn examine(doctor: &DoctorOptions) -> ExitCode {
    let findings = findings(&doctor.options);
    let text = if doctor.json { finding::json(&findings) } else { finding::table(&findings) };
    if let Err(error) = output::print(&text) {
        output::complain(&format!("echo-uring: {}", output::unwritten(&error)));
        return ExitCode::from(output::EXIT_OUTPUT);
    }
    let problems = findings.iter().any(|finding| finding.level == Level::Problem);
    ExitCode::from(u8::from(problems))
}

fn findings(options: &Options) -> Vec<Finding> {
    let mut findings = kernel::findings();
    let config = configuration(options, &mut findings);
    running::findings(&mut findings);
    limits::findings(&config, &mut findings);
    sockets::findings(&config, &mut findings);
    sandbox::findings(&mut findings);
    findings
}

/// The configuration, or the defaults where there is no valid one, so that the rest can be looked
/// at all the same.
fn configuration(options: &Options, findings: &mut Vec<Finding>) -> Config {
    let overrides = Overrides { listen: options.listen.clone(), log_level: options.log_level };
    let path = options.config.as_deref();
    let shown = path.unwrap_or(Path::new(config::DEFAULT_PATH));
    match config::load(path, &overrides) {
        Ok(config) => {
            let what = match (path, shown.exists()) {
                (None, false) => format!("no {}: the defaults apply", shown.display()),
                _ => format!("{} is valid", shown.display()),
            };
            findings.push(Finding::ok(Topic::Config, what));
            config
        }
        Err(error) => {
            let text = error.to_string();
            findings.push(Finding::from_error(Topic::Config, &text, "correct it"));
            Config::default()
        }
    }
}
