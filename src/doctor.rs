//! The doctor: examines the machine, the configuration and the sandbox, and names a remedy for each
//! problem. If the units of the service are installed, the doctor examines the units. What the
//! units do not show is reported as this process sees it.
//!
//! The doctor makes no permanent changes. Each finding has a text; a finding that is not ok also
//! has a remedy. The doctor must never need a running daemon, nor any privilege that the daemon
//! lacks.

mod addresses;
mod confinement;
mod finding;
mod kernel;
mod limits;
mod receive_buffer;
mod running;
mod sandbox;
mod service;
mod sockets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::{DoctorOptions, Options};
use crate::config::{self, Config, Overrides};
use echo_ring::output;
use finding::{Finding, Level, Topic};
use service::Service;

/// Examines everything and prints the findings. The exit status is 1 if there is a problem.
#[must_use]
pub fn examine(doctor: &DoctorOptions) -> ExitCode {
    let findings = findings(doctor);
    let text = if doctor.json { finding::json(&findings) } else { finding::table(&findings) };
    if let Err(error) = output::print(&text) {
        output::complain(&format!("echo-uring: {}", output::unwritten(&error)));
        return ExitCode::from(output::EXIT_OUTPUT);
    }
    let problems = findings.iter().any(|finding| finding.level == Level::Problem);
    ExitCode::from(u8::from(problems))
}

fn findings(doctor: &DoctorOptions) -> Vec<Finding> {
    let (service, units) = match look(doctor) {
        Ok(service) => {
            let findings = service.findings();
            (Some(service), findings)
        }
        Err(finding) => (None, vec![finding]),
    };
    let service = service.as_ref();
    let mut configured = Vec::new();
    let config = configuration(doctor, service, &mut configured);
    let Listening { findings: listening, with_datagrams } = match service {
        Some(service) => addresses::look(service, &config),
        None => sockets::look(&config),
    };
    let account = service.and_then(|service| service.account.as_ref());
    let mut findings = kernel::findings(account, with_datagrams);
    findings.extend(configured);
    findings.extend(units);
    // With --listen the question is about a daemon that is started by hand.
    if doctor.options.listen.is_empty() {
        findings.extend(running::findings(doctor.instance.as_deref()));
    }
    limits::findings(&config, service, with_datagrams, &mut findings);
    sockets::longest_backlog(&mut findings);
    findings.extend(listening);
    findings.extend(service.map(confinement::findings).unwrap_or_default());
    sandbox::findings(&mut findings);
    findings
}

/// The addresses that the service has, or would have.
struct Listening {
    findings: Vec<Finding>,
    /// Whether one of them is for datagrams.
    with_datagrams: bool,
}

/// The installed units. With --listen the question is about a daemon started by hand instead.
fn look(doctor: &DoctorOptions) -> Result<Service, Finding> {
    if !doctor.options.listen.is_empty() {
        let what = "with --listen the units are not examined";
        return Err(Finding::ok(Topic::Systemd, what));
    }
    service::look(doctor.instance.as_deref())
}

/// The configuration, or the defaults if there is no valid one, so that the rest can still be
/// examined. Without an option it is the file that the service reads.
fn configuration(
    doctor: &DoctorOptions,
    service: Option<&Service>,
    findings: &mut Vec<Finding>,
) -> Config {
    let Options { config, listen, metrics, status, log_level } = doctor.options.clone();
    let overrides = Overrides { listen, metrics, status, log_level };
    let of_instance =
        || Some(PathBuf::from(format!("/etc/echo-uring/{}.toml", doctor.instance.as_ref()?)));
    let of_service = || service.map_or_else(of_instance, |service| service.unit.config());
    let path = config.or_else(of_service);
    let path = path.as_deref();
    let shown = path.unwrap_or(Path::new(config::DEFAULT_PATH));
    match config::examine(path, &overrides) {
        Ok(examined) => {
            let what = match &examined.files()[..] {
                [] => format!("no {}: the defaults apply", shown.display()),
                [file] => format!("{file} is valid"),
                files => format!("{} are valid", files.join(", ")),
            };
            let denied = service.and_then(|service| {
                let account = service.account.as_ref()?;
                let files = config::files(path);
                files.iter().find_map(|file| {
                    let denied = account.try_reading(file).err()?;
                    Some(format!("{}: {denied}", file.display()))
                })
            });
            findings.push(match denied {
                None => Finding::ok(Topic::Config, what),
                Some(denied) => {
                    let what = format!("{what}, but {denied}");
                    Finding::from_error(Topic::Config, &what, "give the service read access")
                }
            });
            findings.extend(examined.warnings.iter().map(|warning| {
                let (what, remedy) = warning.split_once("; ").unwrap_or((warning, "correct it"));
                Finding::note(Topic::Config, what.to_owned(), remedy)
            }));
            examined.config
        }
        Err(invalid) => {
            let lines = invalid.lines();
            let found = lines.iter().map(|it| Finding::from_error(Topic::Config, it, "correct it"));
            findings.extend(found);
            Config::default()
        }
    }
}
