//! One finding, and how a list of them is printed: as a table for people, as JSON for programs.

use std::fmt::Write;

/// The version of the JSON members: incremented when members are added. 0.1.0 has no number.
const SCHEMA: u32 = 2;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// All is well.
    Ok,
    /// Worth knowing; the service runs.
    Note,
    /// The service does not run, or not as configured.
    Problem,
}

/// The subject of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Kernel,
    IoUring,
    Config,
    Limits,
    Sockets,
    Sandbox,
    Systemd,
}

/// One result of the doctor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) topic: Topic,
    pub(super) level: Level,
    /// The result, in one line.
    pub(super) what: String,
    /// What to do about it, in one line; `None` if nothing needs to be done.
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(topic: Topic, what: impl Into<String>) -> Self {
        Self { topic, level: Level::Ok, what: what.into(), remedy: None }
    }

    pub(super) fn note(topic: Topic, what: impl Into<String>, remedy: &str) -> Self {
        Self { topic, level: Level::Note, what: what.into(), remedy: Some(remedy.to_owned()) }
    }

    pub(super) fn problem(topic: Topic, what: impl Into<String>, remedy: &str) -> Self {
        Self { topic, level: Level::Problem, what: what.into(), remedy: Some(remedy.to_owned()) }
    }

    /// A problem from an error message of the daemon, which has the form `what; remedy`.
    pub(super) fn from_error(topic: Topic, error: &str, otherwise: &str) -> Self {
        let (what, remedy) = error.rsplit_once("; ").unwrap_or((error, otherwise));
        Self::problem(topic, what, remedy)
    }
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

impl Topic {
    fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::IoUring => "io_uring",
            Self::Config => "config",
            Self::Limits => "limits",
            Self::Sockets => "sockets",
            Self::Sandbox => "sandbox",
            Self::Systemd => "systemd",
        }
    }
}

fn problems(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.level == Level::Problem).count()
}

/// Topic, level and text in columns, with the remedy below its finding.
pub(super) fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { topic, level, what, remedy } in findings {
        line(&mut text, &format!("{:<9} {:<8} {what}", topic.word(), level.word()));
        if let Some(remedy) = remedy {
            line(&mut text, &format!("{:<19}remedy: {remedy}", ""));
        }
    }
    line(
        &mut text,
        &match problems(findings) {
            0 => "no problems".to_owned(),
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        },
    );
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("invariant: writing to a String never fails");
}

/// One JSON object, as described in echo-uring(8).
pub(super) fn json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|Finding { topic, level, what, remedy }| {
            serde_json::json!({
                "topic": topic.word(), "level": level.word(), "what": what, "remedy": remedy,
            })
        })
        .collect();
    let whole = serde_json::json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "problems": problems(findings),
        "findings": list,
    });
    format!("{whole:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_daemon_is_split_into_what_and_remedy() {
        let error = "a.toml:3: limits.x is 0; use 1 or more";
        let finding = Finding::from_error(Topic::Config, error, "-");
        assert_eq!(finding.what, "a.toml:3: limits.x is 0");
        assert_eq!(finding.remedy.as_deref(), Some("use 1 or more"));
        let finding = Finding::from_error(Topic::Config, "no more", "repair it");
        assert_eq!((&*finding.what, finding.remedy.as_deref()), ("no more", Some("repair it")));
    }

    #[test]
    fn a_table_has_a_line_for_each_and_the_remedy_below() {
        let list = [Finding::ok(Topic::Kernel, "Linux"), Finding::problem(Topic::Limits, "x", "y")];
        let lines = [
            "kernel    ok       Linux",
            "limits    problem  x",
            "                   remedy: y",
            "1 problem",
            "",
        ];
        assert_eq!(table(&list), lines.join("\n"));
    }
}
