//! The container: its seccomp profile, made from the system calls that the unit permits, so that a
//! new call is listed once; and its configuration, which must fit the engine's stop timeout.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::{hold, read};

/// What systemd adds to every filter and the daemon may call (`@default` of systemd-analyze(1)).
const BY_SYSTEMD: &[&str] = &[
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "execve",
    "exit",
    "gettimeofday",
    "nanosleep",
    "rt_sigreturn",
    "time",
];

/// Without a service manager the daemon binds its sockets itself: addresses, the mode of the status
/// socket (fchmodat on arm64), a stale socket file (unlinkat), and terminals (ioctl).
const BY_BINDING: &[&str] = &["bind", "chmod", "fchmodat", "ioctl", "listen", "unlink", "unlinkat"];

/// What runc and crun call between applying the profile and starting the program.
const BY_THE_RUNTIME: &[&str] = &[
    "capget",
    "capset",
    "chdir",
    "close_range",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "faccessat2",
    "fchdir",
    "fchown",
    "fstatfs",
    "getcwd",
    "getegid",
    "geteuid",
    "getgid",
    "getppid",
    "getresgid",
    "getresuid",
    "getuid",
    "openat2",
    "pselect6",
    "pwrite64",
    "select",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "stat",
    "tkill",
    "umask",
];

/// The names in all `SystemCallFilter=` of a unit.
fn permitted(unit: &str) -> BTreeSet<&str> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let names: BTreeSet<&str> = lines.flat_map(str::split_whitespace).collect();
    let plain = |name: &&str| name.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
    // A group or a negation would have to be resolved first.
    assert!(names.iter().all(plain), "{names:?}");
    names
}

/// The profile in the format that Docker, Podman and the kubelet read.
fn profile(unit: &str) -> String {
    let mut daemon = permitted(unit);
    daemon.extend(BY_SYSTEMD);
    daemon.extend(BY_BINDING);
    let runtime: BTreeSet<&str> =
        BY_THE_RUNTIME.iter().copied().filter(|name| !daemon.contains(name)).collect();
    let allow =
        |names, comment| json!({ "names": names, "action": "SCMP_ACT_ALLOW", "comment": comment });
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        // The daemon gets an error that it can report: EPERM, as in the unit.
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            allow(daemon, "echo-uring: SystemCallFilter= of its unit, and binding its sockets"),
            allow(runtime, "runc and crun, between applying this profile and execve"),
        ],
    });
    serde_json::to_string_pretty(&profile).unwrap() + "\n"
}

/// The same profile as an object of the Security Profiles Operator. It has no field for the error,
/// which is EPERM then.
fn profile_object(profile: &str) -> String {
    let profile: serde_json::Value = serde_json::from_str(profile).unwrap();
    let mut text =
        "# Made from the unit of the service: ECHO_WRITE=1 cargo test --test generated.\n\
                    apiVersion: security-profiles-operator.x-k8s.io/v1\n\
                    kind: SeccompProfile\n\
                    metadata:\n  \
                      name: echo-uring\n  \
                      labels: {app.kubernetes.io/name: echo-uring}\n\
                    spec:\n"
            .to_owned();
    writeln!(text, "  defaultAction: {}", profile["defaultAction"].as_str().unwrap()).unwrap();
    let list = |text: &mut String, indent: &str, names: &serde_json::Value| {
        for name in names.as_array().unwrap() {
            writeln!(text, "{indent}- {}", name.as_str().unwrap()).unwrap();
        }
    };
    text += "  architectures:\n";
    list(&mut text, "    ", &profile["architectures"]);
    text += "  syscalls:\n";
    for rule in profile["syscalls"].as_array().unwrap() {
        writeln!(text, "    # {}", rule["comment"].as_str().unwrap()).unwrap();
        writeln!(text, "    - action: {}", rule["action"].as_str().unwrap()).unwrap();
        text += "      names:\n";
        list(&mut text, "        ", &rule["names"]);
    }
    text
}

#[test]
fn the_seccomp_profile_permits_what_the_unit_permits() {
    let text = profile(&read("packaging/echo-uring.service"));
    for name in ["io_uring_setup", "io_uring_enter", "io_uring_register", "bind", "capset"] {
        assert!(text.contains(&format!("\"{name}\"")), "{name} is missing:\n{text}");
    }
    // No access to other processes, mounts or programs in the kernel.
    for name in ["ptrace", "mount", "unshare", "process_vm_writev", "bpf", "socketcall"] {
        assert!(!text.contains(&format!("\"{name}\"")), "{name}:\n{text}");
    }
    hold("packaging/container/seccomp.json", &text);
    // Kustomize reads no file outside its directory.
    hold("packaging/kubernetes/nodes/echo-uring.json", &text);
    let operators = "packaging/kubernetes/components/security-profiles-operator";
    hold(&format!("{operators}/seccomp-profile.yaml"), &profile_object(&text));
}

#[test]
fn a_call_of_the_unit_is_a_call_of_the_profile() {
    let text = profile("SystemCallFilter=read fancy_call\n# SystemCallFilter=ptrace\n");
    assert!(text.contains("\"fancy_call\""), "{text}");
    assert!(!text.contains("ptrace"), "{text}");
}

/// Goal: a stop of the container ends before the engine kills it, 10 s after SIGTERM
/// (docker-stop(1), podman-stop(1)), with two seconds to spare; and what the image promises is
/// configured.
#[test]
fn the_configuration_of_the_container_fits_its_engine() {
    let path = "packaging/container/echo-uring.toml";
    let config =
        echo_uring::config::Config::from_bytes(read(path).as_bytes(), Path::new(path)).unwrap();
    let lingering = Duration::from_millis(echo_core::limits::LINGER_MS);
    let stop = config.timeouts.drain_lead + config.timeouts.drain + lingering;
    assert!(stop <= Duration::from_secs(8), "a stop may take {stop:?}");
    let addresses: Vec<String> =
        config.listeners.iter().map(|it| format!("{:?}", it.address)).collect();
    for wanted in ["7777", "17007", "/run/echo-uring/status.sock"] {
        assert!(addresses.iter().any(|it| it.contains(wanted)), "{wanted}: {addresses:?}");
    }
}
