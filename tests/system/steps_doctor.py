"""`echo-uring doctor` and `echo-uring check` on a machine with the installed units.

Each function is a step as those of steps.py.
"""

import json

from checks import CONFIG, SERVICE, SOCKET, drop_in, echoes, remove_drop_in, start_all
from machine import expect

# What the daemon logs where it may not make a ring.
REFUSED = "a seccomp filter refuses io_uring"
CALLS = "io_uring_setup io_uring_enter io_uring_register"


def doctor(machine, options=""):
    """Its exit status, and its findings, each a line: topic, level, what and remedy."""
    process = machine.run(f"echo-uring doctor --json {options}", check=False)
    findings = json.loads(process.stdout)["findings"]
    lines = [f"{it['topic']} {it['level']} {it['what']} | {it['remedy']}" for it in findings]
    return process.returncode, lines


def found(lines, start, *words):
    """Expects a finding that begins with `start` and holds all of `words`."""
    fitting = [line for line in lines if line.startswith(start)]
    fitting = [line for line in fitting if all(word in line for word in words)]
    expect(fitting, f"no finding {start!r} with {words}: {lines}")
    return fitting[0]


def doctor_sees_the_units(machine, _packages):
    """State, addresses, limits and sandbox are those of the units, not of the command."""
    code, lines = doctor(machine)
    expect(code == 0, f"a service that runs has problems: {lines}")
    found(lines, f"systemd ok {SERVICE} is active (running)")
    for address in ("127.0.0.1:7", "[::1]:7"):
        found(lines, f"sockets ok {address} ({SOCKET}) is open")
    found(lines, f"sandbox ok the sandbox of {SERVICE} is as shipped")
    found(lines, "systemd ok a restart of echo-uring.service keeps connections")
    found(lines, "limits", "open files", f"{SERVICE} (process ")
    found(lines, "limits", "locked memory", "workers need")
    expect(not any("7777" in line for line in lines), f"it looks at port 7777: {lines}")
    return f"{len(lines)} findings"


def doctor_tells_why_it_failed(machine, _packages):
    """A drop-in that refuses io_uring: the doctor says so, before and after the service fails."""
    drop_in(machine, SERVICE, "refusal", f"[Service]\nSystemCallFilter=~{CALLS}")
    _, lines = doctor(machine)
    found(lines, "sandbox problem SystemCallFilter= of", "io_uring_setup", "SystemCallFilter=io_u")
    machine.run(f"systemctl restart {SERVICE}", check=False)
    code, lines = doctor(machine)
    expect(code == 1, f"a service that failed has no problem: {lines}")
    words = ("failed", "exit status 78", "a seccomp filter refuses io_uring", "allow io_uring_setup")
    reason = found(lines, f"systemd problem {SERVICE}", *words)
    remove_drop_in(machine, SERVICE, "refusal")
    machine.run(f"systemctl stop {SOCKET}; systemctl reset-failed {SERVICE}")
    start_all(machine)
    echoes(machine)
    return reason[:60]


def doctor_finds_a_wrong_address(machine, _packages):
    """FreeBind= permits a socket to listen at an address of no interface; the doctor reports it."""
    drop_in(machine, SOCKET, "wrong", "[Socket]\nListenStream=192.0.2.77:7")
    machine.run(f"systemctl stop {SOCKET} {SERVICE}")
    start_all(machine)
    code, lines = doctor(machine)
    expect(code == 0, f"the other addresses are there: {lines}")
    wrong = found(lines, f"sockets note 192.0.2.77:7 ({SOCKET}) is not an address of this machine")
    remove_drop_in(machine, SOCKET, "wrong")
    machine.run(f"systemctl stop {SOCKET} {SERVICE}")
    start_all(machine)
    echoes(machine)
    return wrong[:60]


def root_is_not_the_service(machine, _packages):
    """check and the doctor report a file that only root can read as invalid."""
    machine.run(f"chmod 600 {CONFIG}")
    checked = machine.run("echo-uring check", check=False)
    code, lines = doctor(machine)
    machine.run(f"chmod 644 {CONFIG}")
    remedy = f"chmod o+r {CONFIG}"
    expect(checked.returncode == 78, f"check calls it valid: {checked.stdout}")
    expect(remedy in checked.stdout, f"check does not say what to do: {checked.stdout}")
    expect(code == 1, f"the doctor calls it valid: {lines}")
    found(lines, "config problem", "user echo-uring", remedy)
    machine.run("echo-uring check")
    return checked.stdout.strip()[-60:]


STEPS = [
    ("doctor and units", doctor_sees_the_units),
    ("doctor and failure", doctor_tells_why_it_failed),
    ("doctor and address", doctor_finds_a_wrong_address),
    ("file only for root", root_is_not_the_service),
]
