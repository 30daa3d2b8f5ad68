//! `echo-uring doctor` with installed units, with a stand-in for systemctl: its findings about
//! their state, addresses, limits and sandbox. `tests/system` tests the same with the real
//! systemctl.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon::program;
use crate::machine::Scratch;

/// What systemd says of the service as it is shipped, running.
const SERVICE: &str = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n\
    StatusText=2 connections\nExecMainCode=0\nExecMainStatus=0\nMainPID=0\nNRestarts=0\n\
    NeedDaemonReload=no\nUser=echo-uring-nobody-has-this-name\nDynamicUser=yes\n\
    LimitNOFILE=infinity\nLimitMEMLOCK=infinity\nFileDescriptorStoreMax=64\n\
    SystemCallFilter=io_uring_enter io_uring_register io_uring_setup read write\n\
    RestrictAddressFamilies=AF_UNIX\nNoNewPrivileges=yes\nCapabilityBoundingSet=\n\
    PrivateNetwork=yes\nPrivateUsers=yes\nProtectSystem=strict\nProtectProc=invisible\n\
    MemoryDenyWriteExecute=yes\n";

/// And of its socket.
const SOCKET: &str = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n\
    NeedDaemonReload=no\nFreeBind=yes\nFileDescriptorName=echo\n";

/// A machine whose systemd knows these units.
struct Machine(Scratch);

impl Machine {
    /// With the shipped units; the socket listens on a port of 127.0.0.1.
    fn new() -> Self {
        let machine = Self(Scratch::new());
        // As systemctl, it answers for each name after "--", separated by empty lines.
        let script = "#!/bin/sh\nPATH=/usr/bin:/bin\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n\
            for name; do echo \"Id=$name\"\n\
            cat \"$(dirname \"$0\")/$name\" 2>/dev/null || echo LoadState=not-found\necho\ndone\n";
        let path = machine.0.path("systemctl");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        machine.with("echo-uring.service", SERVICE, &[("ExecStart", &machine.exec_start())]);
        machine.with("echo-uring.socket", SOCKET, &[("Listen", "127.0.0.1:7 (Stream)")]);
        machine
    }

    fn config(&self) -> String {
        let path = self.0.path("echo-uring.toml");
        if !path.exists() {
            fs::write(&path, "").unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    fn exec_start(&self) -> String {
        let argv = format!("/usr/sbin/echo-uring serve --config {}", self.config());
        format!("{{ path=/usr/sbin/echo-uring ; argv[]={argv} ; ignore_errors=no ; pid=0 }}")
    }

    /// With this unit, but for the properties that are `changed`.
    fn with(&self, name: &str, unit: &str, changed: &[(&str, &str)]) {
        let is_changed =
            |line: &&str| !changed.iter().any(|(key, _)| line.starts_with(&format!("{key}=")));
        let mut lines: Vec<String> = unit.lines().filter(is_changed).map(str::to_owned).collect();
        lines.extend(changed.iter().map(|(key, value)| format!("{key}={value}")));
        fs::write(self.0.path(name), lines.join("\n") + "\n").unwrap();
    }

    /// The service with these changes.
    fn service(&self, changed: &[(&str, &str)]) {
        let unit = fs::read_to_string(self.0.path("echo-uring.service")).unwrap();
        self.with("echo-uring.service", &unit, changed);
    }

    /// The socket with these changes.
    fn socket(&self, changed: &[(&str, &str)]) {
        self.with("echo-uring.socket", SOCKET, changed);
    }

    /// The exit status of the doctor there, and its findings as `topic level what | remedy`.
    fn doctor(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(program());
        command.args(["doctor", "--json"]).args(arguments).env_clear().stdin(Stdio::null());
        let output = command.env("PATH", self.0.path("")).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error} in {output:?}"));
        let lines = json["findings"].as_array().unwrap().iter().map(|it| {
            let word = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {} | {}\n", word("topic"), word("level"), word("what"), word("remedy"))
        });
        (output.status.code().unwrap(), lines.collect())
    }
}

/// Asserts that a line of the findings begins with `start` and holds each of `words`.
fn assert_found(text: &str, start: &str, words: &[&str]) {
    let fits = |line: &&str| line.starts_with(start) && words.iter().all(|it| line.contains(it));
    assert!(text.lines().any(|line| fits(&line)), "no {start:?} with {words:?} in\n{text}");
}

#[test]
fn a_service_that_runs_as_shipped_is_well() {
    let machine = Machine::new();
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 0, "{text}");
    assert_found(&text, "systemd ok echo-uring.service is active (running)", &["2 connections"]);
    assert_found(&text, "sockets ok 127.0.0.1:7 (echo-uring.socket) is open", &[]);
    assert_found(&text, "sandbox ok the sandbox of echo-uring.service is as shipped", &[]);
    assert_found(&text, "config ok ", &[&machine.config(), "is valid"]);
    // The default address of a daemon started by hand is not examined.
    assert!(!text.contains("7777"), "{text}");
}

/// Goal: no "ok" if the service could not start, but its last message and the remedy.
#[test]
fn a_service_without_io_uring_is_a_problem() {
    let machine = Machine::new();
    let said =
        "a seccomp filter refuses io_uring: io_uring_setup(2) fails with EPERM; allow the calls";
    let changed = [
        ("ActiveState", "failed"),
        ("SubState", "failed"),
        ("Result", "exit-code"),
        ("ExecMainCode", "1"),
        ("ExecMainStatus", "78"),
        ("StatusText", said),
        ("SystemCallFilter", "~io_uring_setup io_uring_register"),
    ];
    machine.service(&changed);
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 1, "{text}");
    let words =
        ["failed (failed)", "exit-code", "status 78", "fails with EPERM | allow the calls; then:"];
    assert_found(&text, "systemd problem echo-uring.service", &words);
    let words = ["refuses io_uring_setup, io_uring_register | ", "SystemCallFilter=io_uring_setup"];
    assert_found(&text, "sandbox problem", &words);
}

#[test]
fn an_address_of_no_interface_is_found_though_it_is_listened_on() {
    let machine = Machine::new();
    let addresses = [("Listen", "127.0.0.1:7 (Stream)"), ("Listen", "192.0.2.1:7 (Stream)")];
    machine.socket(&addresses);
    let (code, text) = machine.doctor(&[]);
    // It may be a floating address that another machine has at the moment.
    assert_eq!(code, 0, "{text}");
    assert_found(
        &text,
        "sockets note 192.0.2.1:7 (echo-uring.socket) is not an address of",
        &["edit"],
    );
    machine.socket(&addresses[1..]);
    let (code, text) = machine.doctor(&[]);
    // But clients cannot connect to any address.
    assert_eq!(code, 1, "{text}");
    assert_found(&text, "sockets problem 192.0.2.1:7 ", &["clients cannot connect"]);
}

#[test]
fn closed_sockets_are_reported_with_the_reason() {
    let machine = Machine::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("{} (Stream)", taken.local_addr().unwrap());
    let failed = [("ActiveState", "failed"), ("Result", "resources"), ("Listen", &listen)];
    machine.socket(&failed);
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 1, "{text}");
    assert_found(&text, "sockets problem echo-uring.socket has failed (resources)", &["ss -tlnp"]);
    assert_found(&text, "sockets problem 127.0.0.1:", &["in use by another program"]);
    let both = [("ActiveState", "inactive"), ("SubState", "dead")];
    machine.socket(&both);
    machine.service(&both);
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 0, "{text}");
    assert_found(&text, "systemd note echo-uring.service is inactive (dead)", &["start"]);
    assert_found(&text, "sockets note echo-uring.socket is inactive and does not", &["start"]);
    machine.socket(&[("Listen", "127.0.0.1:7 (Stream)")]);
    let (_, text) = machine.doctor(&[]);
    assert_found(&text, "systemd ok echo-uring.service is inactive (dead)", &["first connection"]);
}

/// Goal: where a unit has UDP addresses, their receive buffer is judged and the rings permit two
/// more operations; elsewhere neither is mentioned.
#[test]
fn datagram_sockets_are_judged_by_their_receive_buffer() {
    let machine = Machine::new();
    let (_, text) = machine.doctor(&[]);
    assert!(!text.contains("receive buffer") && !text.contains("SENDMSG"), "{text}");
    let listen = [("Listen", "127.0.0.1:7 (Stream)"), ("Listen", "127.0.0.1:7 (Datagram)")];
    machine.socket(&[&listen[..], &[("ReceiveBuffer", "0")]].concat());
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 0, "{text}");
    assert_found(&text, "sockets ok udp:127.0.0.1:7 (echo-uring.socket) is open", &[]);
    // In this unit ReceiveBuffer= would also concern every connection.
    let words = ["a unit of their own with ReceiveBuffer=4M", "echo-uring-udp.socket"];
    assert_found(&text, "sockets note UDP sockets of echo-uring.socket: a receive", &words);
    assert_found(&text, "io_uring ok operations: ", &["RECVMSG, SENDMSG"]);
    machine.socket(&listen[1..]);
    let (_, text) = machine.doctor(&[]);
    let words = ["| set ReceiveBuffer=4M in [Socket]: systemctl edit echo-uring.socket"];
    assert_found(&text, "sockets note UDP sockets of echo-uring.socket: a receive", &words);
    machine.socket(&[&listen[..], &[("ReceiveBuffer", "4194304")]].concat());
    let (_, text) = machine.doctor(&[]);
    let words = ["8192 KiB holds 10082 small or 126 large datagrams"];
    assert_found(&text, "sockets ok UDP sockets of echo-uring.socket", &words);
    machine.socket(&[("Listen", "/run/echo.sock (Datagram)")]);
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 0, "{text}");
    assert_found(&text, "sockets ok unix-datagram:/run/echo.sock (echo-uring.socket)", &[]);
    // Datagrams of a Unix socket are charged to their senders.
    assert!(!text.contains("receive buffer"), "{text}");
}

/// Goal: TCP and UDP have one port without a conflict, and the remedy shows the sockets of the
/// protocol that is meant.
#[test]
fn a_closed_datagram_socket_is_reported_with_the_reason() {
    let machine = Machine::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = [format!("{address} (Stream)"), format!("{address} (Datagram)")];
    let [stream, datagram] = &listen;
    machine.socket(&[
        ("ActiveState", "failed"),
        ("Result", "resources"),
        ("Listen", stream),
        ("Listen", datagram),
    ]);
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 1, "{text}");
    assert_found(&text, "sockets problem echo-uring.socket has failed", &["ss -tulnp"]);
    let start = format!("sockets problem udp:{address} (echo-uring.socket) is in use");
    assert_found(&text, &start, &["see ss -lunp"]);
    assert!(!text.contains(&format!("problem {address}")), "{text}");
}

#[test]
fn limits_are_those_of_the_unit() {
    let machine = Machine::new();
    fs::write(machine.config(), "[server]\nworkers = 25\n").unwrap();
    machine.service(&[("LimitNOFILE", "1024"), ("LimitMEMLOCK", "8388608")]);
    let (_, text) = machine.doctor(&[]);
    assert_found(&text, "limits note open files: at most 1024 for echo-uring.service", &[]);
    assert_found(&text, "limits ", &["locked memory: at most 8192 KiB for echo-uring.service"]);
    // Those of a process that runs are known.
    let own = std::process::id().to_string();
    machine.service(&[("MainPID", &own)]);
    let (_, text) = machine.doctor(&[]);
    assert_found(&text, "limits ", &["open files", &format!("(process {own})")]);
}

#[test]
fn a_weaker_sandbox_and_a_lost_restart_are_noted() {
    let machine = Machine::new();
    machine.service(&[("PrivateNetwork", "no"), ("User", ""), ("DynamicUser", "no")]);
    machine.service(&[("FileDescriptorStoreMax", "0"), ("NeedDaemonReload", "yes")]);
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 0, "{text}");
    assert_found(&text, "sandbox note", &["PrivateNetwork=no", "User=root", "systemctl cat"]);
    assert_found(&text, "systemd note a restart of echo-uring.service ends every connection", &[]);
    assert_found(&text, "systemd note unit files", &["daemon-reload"]);
}

#[test]
fn an_instance_is_looked_at_by_its_name() {
    let machine = Machine::new();
    let (code, text) = machine.doctor(&["--instance", "lab"]);
    assert_eq!(code, 1, "{text}");
    assert_found(&text, "systemd problem echo-uring@lab.service is not installed", &[]);
    let exec_start = machine.exec_start();
    machine.with("echo-uring@lab.service", SERVICE, &[("ExecStart", &exec_start)]);
    let listen = [("Listen", "/run/echo-uring/lab/echo.sock (Stream)")];
    machine.with("echo-uring@lab.socket", SOCKET, &listen);
    let (code, text) = machine.doctor(&["--instance", "lab"]);
    assert_eq!(code, 0, "{text}");
    assert_found(
        &text,
        "sockets ok unix:/run/echo-uring/lab/echo.sock (echo-uring@lab.socket)",
        &[],
    );
}

/// Goal: root reads every file, the service does not.
#[test]
fn a_file_that_the_service_cannot_read_is_not_well() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: only root can try as another user");
        return;
    }
    let machine = Machine::new();
    let config = machine.config();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let (code, text) = machine.doctor(&[]);
    assert_eq!(code, 1, "{text}");
    let remedy = format!("| chmod o+r {config}");
    assert_found(&text, "config problem", &["cannot read it: Permission denied", &remedy]);
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(machine.doctor(&[]).0, 0);
}

#[test]
fn without_systemd_it_says_so() {
    let scratch = Scratch::new();
    let mut command = Command::new(program());
    command.arg("doctor").env_clear().env("PATH", scratch.path("")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = ["systemd is not running", "the units cannot be examined"];
    assert!(words.iter().any(|word| text.contains(word)), "{text}");
}
