"""What an intruder could do: the sandbox of the running service, tested from inside.

Each function is a step as those of steps.py.
"""

import json
import pathlib
import re
import subprocess
import sys

from checks import SERVICE, drop_in, echoes, remove_drop_in
from machine import expect

INSIDE = pathlib.Path(__file__).with_name("inside.py")
EXPOSURE_MAX = 0.2


def sandbox_is_tight(machine, _packages):
    """The exposure that systemd-analyze computes is at most 0.2 of 10."""
    text = machine.run(f"systemd-analyze security --no-pager {SERVICE}").stdout
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    expect(match, f"systemd-analyze security printed no score:\n{text}")
    score = match.group(1)
    expect(float(score) <= EXPOSURE_MAX, f"the exposure level is {score}, above {EXPOSURE_MAX}")
    return f"exposure {score}"


def status_of(task):
    """The fields of a thread's status in /proc."""
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def nothing_is_in_reach(machine, _packages):
    """No capability, nothing writable, no network; rings that refuse other operations."""
    # At this log level the daemon reports how it tested its rings, which only it can do.
    command = "/usr/sbin/echo-uring serve --log-level debug"
    drop_in(machine, SERVICE, "sealed", f"[Service]\nExecStart=\nExecStart={command}")
    machine.run(f"systemctl restart {SERVICE}")
    echoes(machine)
    proofs = [text for text in machine.messages() if text.startswith("sealed: ")]
    expect(proofs, "the daemon did not say that its rings are sealed")
    for word in ("OPENAT", "SOCKET", "further ring"):
        expect(word in proofs[-1], f"{word} is not said to be refused: {proofs[-1]}")
    pid = machine.daemon()
    tasks = list(pathlib.Path(f"/proc/{pid}/task").iterdir())
    expect(len(tasks) >= 2, "the daemon has no worker")
    for task in tasks:
        status = status_of(task)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            expect(int(status[name], 16) == 0, f"{name} of a thread is {status[name]}")
        for name, wanted in (("NoNewPrivs", "1"), ("Seccomp", "2")):
            expect(status[name] == wanted, f"{name} of a thread is {status[name]}, not {wanted}")
        expect("0" not in status["Uid"].split(), f"a thread runs as root: {status['Uid']}")
    filters = {status_of(task)["Seccomp_filters"] for task in tasks}
    expect(len(filters) == 1, f"threads differ in their seccomp filters: {filters}")
    output = subprocess.run(
        [sys.executable, INSIDE, str(pid)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    found = json.loads(output)
    expect(found["seen"] > 100, f"hardly a directory was tried: {found}")
    expect(not found["writable"], f"the daemon could write to {found['writable']}")
    expect(found["interfaces"] == ["lo"], f"the daemon sees the network {found['interfaces']}")
    remove_drop_in(machine, SERVICE, "sealed")
    machine.run(f"systemctl restart {SERVICE}")
    return f"{found['seen']} directories tried, {filters.pop()} filters"


def doctor_sees_the_sandbox(machine, _packages):
    """`echo-uring doctor` in a unit like ours finds itself sandboxed; outside, the daemon."""
    # A copy of the service under another name runs the doctor in the sandbox of the daemon.
    unit = "echo-uring-doctor.service"
    path = f"/run/systemd/system/{unit}"
    source = f"/lib/systemd/system/{SERVICE}"
    machine.run(
        f"sed -e 's/^Type=.*/Type=oneshot/; s/^ExecStart=.*/ExecStart=echo-uring doctor --json/; "
        f"s|=echo-uring doctor|=/usr/sbin/echo-uring doctor|; /^Restart/d; /^Watchdog/d; "
        f"/^Sockets=/d; /^Requires=/d; /^ExecReload/d' {source} > {path}"
    )
    machine.run("systemctl daemon-reload")
    started = machine.run(f"systemctl start {unit}", check=False)
    entries = [entry for entry in machine.journal(unit) if entry.get("_COMM") == "echo-uring"]
    text = "\n".join(str(entry["MESSAGE"]) for entry in entries)
    # A doctor with findings ends with 1, so the unit fails; that state is reset.
    machine.run(f"systemctl reset-failed {unit}; rm {path} && systemctl daemon-reload")
    expect(text, f"the doctor said nothing: {started.stdout}")
    findings = json.loads(text)["findings"]
    sandbox = [finding for finding in findings if finding["topic"] == "sandbox"]
    whats = " | ".join(finding["what"] for finding in sandbox)
    expect(all(finding["level"] == "ok" for finding in sandbox), f"not sandboxed: {whats}")
    expect("none of the usual directories is writable" in whats, f"something is writable: {whats}")
    expect("network interfaces: lo" in whats, f"there is a network: {whats}")
    outside = machine.run("echo-uring doctor", check=False).stdout
    pid = machine.show(SERVICE, "MainPID")
    expect(
        f"the running daemon (process {pid}): " in outside, f"it sees no daemon:\n{outside}"
    )
    expect("this command is not sandboxed" in outside, f"root passes for sandboxed:\n{outside}")
    return f"{len(findings)} findings"


STEPS = [
    ("sandbox tight", sandbox_is_tight),
    ("nothing writable", nothing_is_in_reach),
    ("doctor", doctor_sees_the_sandbox),
]
