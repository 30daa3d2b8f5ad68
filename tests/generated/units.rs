//! Template units, made from the units of the first service: whatever is changed there holds for
//! every instance.

use crate::{hold, read};

const NOTE: &str = "\
# Made from @SOURCE@; a change belongs there. This writes the file anew:
# ECHO_WRITE=1 cargo test --test generated
#
";

const SERVICE: &str = "\
# One more echo service beside the first: echo-uring@NAME has a configuration of its own,
# /etc/echo-uring/NAME.toml, and the socket unit echo-uring@NAME.socket.

";

const SOCKET: &str = "\
# The sockets of echo-uring@NAME.service. As shipped it is one Unix socket, for there is no port
# that every name could have; a drop-in gives the instance its addresses:
#
#   systemctl edit echo-uring@NAME.socket
#
#   [Socket]
#   ListenStream=
#   ListenStream=127.0.0.1:7007

";

const STATUS: &str = "\
# Where `echo-uring status --instance NAME` asks. Nobody needs to enable it: echo-uring@NAME.service
# wants it.

";

const METRICS: &str = "\
# Metrics of echo-uring@NAME.service over HTTP. As shipped they are at a Unix socket, for there is no
# port that every name could have; a drop-in gives them one:
#
#   systemctl edit echo-uring-metrics@NAME.socket
#
#   [Socket]
#   ListenStream=
#   ListenStream=127.0.0.1:17008
#   ReusePort=yes
#
# Off until enabled:
#
#   systemctl enable echo-uring-metrics@NAME.socket && systemctl restart echo-uring@NAME

";

/// What the sockets of the service are, and that of its status besides.
const REQUIRES: &str = "\
After=echo-uring@%i.socket
# Where its status is asked for; a socket that is wanted by name needs no enabling.
Wants=echo-uring-status@%i.socket
";

/// Where metrics are as long as no drop-in says otherwise.
const METRICS_LISTEN: &str = "\
ListenStream=/run/echo-uring/%i/metrics.sock
# Root and one group; a drop-in may say SocketGroup=.
SocketMode=0660
RemoveOnStop=yes
";

/// The user that exists only while the instance runs.
const USER: &str = "
DynamicUser=yes
# Without a name of its own it would share the user of the first service.
User=echo-uring-%i
";

/// What an instance listens on as long as no drop-in says otherwise.
const LISTEN: &str = "\
ListenStream=/run/echo-uring/%i/echo.sock
# The file of the Unix socket goes with the unit.
RemoveOnStop=yes
";

/// Where the text of the setting, not of a comment, begins to speak of one instance.
fn instance(line: &str) -> String {
    if line.starts_with('#') {
        return line.to_owned();
    }
    if let Some(text) = line.strip_prefix("Description=") {
        return format!("Description={text}, instance %i");
    }
    let mut line = line.replace("/run/echo-uring/", "/run/echo-uring/%i/");
    for kind in ["service", "socket"] {
        for part in ["", "-status", "-metrics"] {
            let name = format!("echo-uring{part}.{kind}");
            line = line.replace(&name, &format!("echo-uring{part}@%i.{kind}"));
        }
    }
    for verb in ["serve", "check", "reload"] {
        let start = format!("/usr/sbin/echo-uring {verb}");
        line = line.replace(&start, &format!("{start} --config /etc/echo-uring/%i.toml"));
    }
    line
}

/// Whatever stands before `from` and from `to` on.
fn without<'a>(text: &'a str, from: &str, to: &str) -> (&'a str, &'a str) {
    let (before, rest) = text.split_once(from).unwrap();
    (before, &rest[rest.find(to).unwrap()..])
}

/// The template that `source` becomes, under `opening`.
fn template(source: &str, opening: &str) -> String {
    let text = read(source);
    let body = &text[text.find("[Unit]").unwrap()..];
    let lines: String = body.lines().map(|line| instance(line) + "\n").collect();
    let lines = lines.replace("\nDynamicUser=yes\n", USER);
    let name = source.rsplit('/').next().unwrap();
    format!("{}{opening}{lines}", NOTE.replace("@SOURCE@", name))
}

#[test]
fn the_template_service_is_the_service_with_a_name() {
    let text = template("packaging/echo-uring.service", SERVICE);
    assert!(text.contains("serve --config /etc/echo-uring/%i.toml"), "{text}");
    assert!(text.contains("User=echo-uring-%i"), "{text}");
    assert!(text.contains("Requires=echo-uring@%i.socket"), "{text}");
    let text = text.replace("After=echo-uring@%i.socket\n", REQUIRES);
    hold("packaging/echo-uring@.service", &text);
}

#[test]
fn the_template_socket_is_the_socket_with_an_address_of_its_own() {
    let text = template("packaging/echo-uring.socket", SOCKET);
    let (before, after) = without(&text, "# Loopback only.", "# Without it a machine");
    let text = format!("{before}{LISTEN}{after}");
    assert_eq!(text.matches("\nListenStream=").count(), 1, "{text}");
    hold("packaging/echo-uring@.socket", &text);
}

#[test]
fn the_template_of_the_status_socket_is_wanted_by_its_instance() {
    let text = template("packaging/admin/echo-uring-status.socket", STATUS);
    let (text, install) = text.split_once("\n[Install]\n").unwrap();
    assert_eq!(install, "WantedBy=echo-uring@%i.service\n");
    for line in [
        "ListenStream=/run/echo-uring/%i/status.sock",
        "PartOf=echo-uring@%i.service",
        "Service=echo-uring@%i.service",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is missing:\n{text}");
    }
    hold("packaging/admin/echo-uring-status@.socket", text);
}

#[test]
fn the_template_of_the_metrics_socket_is_at_a_path() {
    let text = template("packaging/admin/echo-uring-metrics.socket", METRICS);
    let (before, after) = without(&text, "# Loopback only", "# The name tells");
    let text = format!("{before}{METRICS_LISTEN}{after}");
    assert_eq!(text.matches("\nListenStream=").count(), 1, "{text}");
    assert!(text.ends_with("\nWantedBy=echo-uring@%i.service\n"), "{text}");
    hold("packaging/admin/echo-uring-metrics@.socket", &text);
}
