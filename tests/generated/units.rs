//! Template units, made from the units of the main service: a change there applies to every
//! instance.

use crate::{hold, read};

const NOTE: &str = "\
# Generated from @SOURCE@; edit that file. To generate this one again:
# ECHO_WRITE=1 cargo test --test generated
#
";

const SERVICE: &str = "\
# A named instance of the echo service: echo-uring@NAME has its own configuration,
# /etc/echo-uring/NAME.toml, and its own socket unit, echo-uring@NAME.socket. NAME has at most 20
# letters, digits and hyphens, because the user of the service is called echo-uring-NAME.

";

const SOCKET: &str = "\
# The sockets of echo-uring@NAME.service. By default this is one Unix socket, because no default
# port would suit every instance. A drop-in sets the addresses of the instance:
#
#   systemctl edit echo-uring@NAME.socket
#
#   [Socket]
#   ListenStream=
#   ListenStream=127.0.0.1:7007

";

const STATUS: &str = "\
# The socket that `echo-uring status --instance NAME` queries. It need not be enabled, because
# echo-uring@NAME.service wants it.

";

const METRICS: &str = "\
# Metrics of echo-uring@NAME.service over HTTP. By default they are served at a Unix socket, because
# no default port would suit every instance. A drop-in sets a port:
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

/// The sockets of the service, and its status socket.
const REQUIRES: &str = "\
After=echo-uring@%i.socket
# Its status socket. A unit that is wanted by name need not be enabled.
Wants=echo-uring-status@%i.socket
";

/// Where metrics are served without a drop-in.
const METRICS_LISTEN: &str = "\
ListenStream=/run/echo-uring/%i/metrics.sock
# Access for root and one group; a drop-in may set SocketGroup=.
SocketMode=0660
RemoveOnStop=yes
";

/// The user that exists only while the instance runs.
const USER: &str = "
DynamicUser=yes
# With the default name it would share the user of the main service.
User=echo-uring-%i
";

/// What an instance listens on without a drop-in.
const LISTEN: &str = "\
ListenStream=/run/echo-uring/%i/echo.sock
# The socket file is removed when the unit stops.
RemoveOnStop=yes
";

/// A line of a unit for one instance; comments are not changed.
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

/// The text before `from`, and the text from `to` on.
fn without<'a>(text: &'a str, from: &str, to: &str) -> (&'a str, &'a str) {
    let (before, rest) = text.split_once(from).unwrap();
    (before, &rest[rest.find(to).unwrap()..])
}

/// The template made from `source`, headed by `opening`.
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
    let (before, after) = without(&text, "# Loopback only.", "# Without it this unit");
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
    let (before, after) = without(&text, "# Loopback only", "# The name selects");
    let text = format!("{before}{METRICS_LISTEN}{after}");
    assert_eq!(text.matches("\nListenStream=").count(), 1, "{text}");
    assert!(text.ends_with("\nWantedBy=echo-uring@%i.service\n"), "{text}");
    hold("packaging/admin/echo-uring-metrics@.socket", &text);
}
