//! The configuration state of the running daemon, if its status socket can be queried. The daemon
//! may run on an earlier configuration because the file is invalid, or was corrected but not
//! reloaded.

use std::path::Path;

use super::finding::{Finding, Topic};
use crate::admin::client::{self, Daemon};

/// The status socket of the packaged service.
const SOCKET: &str = "/run/echo-uring/status.sock";

/// Of the packaged service, or of this instance.
pub(super) fn findings(instance: Option<&str>) -> Vec<Finding> {
    let (daemon, unit) = match instance {
        None => (Daemon::At(SOCKET.into()), "echo-uring".to_owned()),
        Some(name) => (Daemon::Instance(name.to_owned()), format!("echo-uring@{name}")),
    };
    of_daemon_at(&daemon.socket(), &unit)
}

/// If no daemon answers there is no finding: the doctor needs no daemon.
fn of_daemon_at(socket: &Path, unit: &str) -> Vec<Finding> {
    let Some(snapshot) = client::snapshot(socket) else { return Vec::new() };
    let error = snapshot.configuration_error.map(|error| {
        Finding::problem(
            Topic::Config,
            format!("the running daemon: {error}"),
            &format!("correct the file and run \"systemctl reload {unit}\""),
        )
    });
    let keys = snapshot.restart_needed.join(", ");
    let restart = (!keys.is_empty()).then(|| {
        Finding::note(
            Topic::Config,
            format!("the running daemon needs a restart to apply the changes of {keys}"),
            &format!("run \"systemctl restart {unit}\", which keeps established connections"),
        )
    });
    error.into_iter().chain(restart).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::super::finding::Level;
    use super::*;
    use crate::admin::Snapshot;

    /// The findings for a socket whose server answers with `answer`.
    fn found(answer: &str) -> Vec<Finding> {
        let name = format!("echo-uring-doctor-{}-{}", std::process::id(), answer.len());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let findings = std::thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().0.write_all(answer.as_bytes()).unwrap());
            of_daemon_at(&path, "echo-uring@lab")
        });
        std::fs::remove_file(&path).unwrap();
        findings
    }

    #[test]
    fn a_daemon_on_an_earlier_configuration_is_a_problem() {
        let error = Some("invalid configuration: a.toml:3:1: no key; correct it".to_owned());
        let bad = Snapshot { configuration_error: error, ..Snapshot::default() };
        let findings = found(&serde_json::to_string(&bad).unwrap());
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.topic, finding.level), (Topic::Config, Level::Problem));
        assert!(finding.what.contains("a.toml:3:1"), "{finding:?}");
        let remedy = finding.remedy.as_deref().unwrap();
        assert!(remedy.ends_with("\"systemctl reload echo-uring@lab\""), "{finding:?}");
        assert_eq!(found(&serde_json::to_string(&Snapshot::default()).unwrap()), []);
        assert_eq!(found("what?"), []);
        assert_eq!(of_daemon_at(Path::new("/nonexistent/status.sock"), "echo-uring"), []);
    }

    #[test]
    fn a_restart_that_is_needed_is_a_note() {
        let restart_needed = vec!["server.workers".to_owned(), "tcp.send-buffer".to_owned()];
        let pending = Snapshot { restart_needed, ..Snapshot::default() };
        let findings = found(&serde_json::to_string(&pending).unwrap());
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(finding.level, Level::Note);
        assert!(finding.what.ends_with(" of server.workers, tcp.send-buffer"), "{finding:?}");
    }
}
