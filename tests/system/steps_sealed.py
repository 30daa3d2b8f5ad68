"""What an intruder would find: the sandbox of the running service, seen and tried from inside.

Each function is a step as those of steps.py.
"""

import json
import pathlib
import re
import subprocess
import sys
import time

from checks import CONFIG, SERVICE, SOCKET, drop_in, echoes, is_active, remove_drop_in
from machine import eventually, expect

INSIDE = pathlib.Path(__file__).with_name("inside.py")
EXPOSURE_MAX = 0.2
# The proof of the seal is a call that must be refused.
REFUSED_ON_PURPOSE = {"io_uring_setup"}
# The beginning of a line of strace: the name of a call.
CALL = re.compile(r"(\w+)\(")


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
    """No capability, nothing writable, no network; rings that refuse all but an echo."""
    # The log file of a daemon that says more: it tries its own rings, which no one else can.
    command = "/usr/sbin/echo-uring serve --log-level debug"
    drop_in(machine, SERVICE, "sealed", f"[Service]\nExecStart=\nExecStart={command}")
    machine.run(f"systemctl restart {SERVICE}")
    echoes(machine)
    proofs = [text for text in machine.messages() if text.startswith("sealed: ")]
    expect(proofs, "the daemon did not say that its rings are sealed")
    for word in ("OPENAT", "SOCKET", "another ring"):
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
    """`echo-uring doctor` in a unit like ours finds itself sandboxed, and the daemon outside."""
    # A copy of the service under another name: the doctor's eyes, in the sandbox of the daemon.
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
    # A doctor with findings ends with 1; nothing of it is to be left.
    machine.run(f"systemctl reset-failed {unit}; rm {path} && systemctl daemon-reload")
    expect(text, f"the doctor said nothing: {started.stdout}")
    findings = json.loads(text)["findings"]
    sandbox = [finding for finding in findings if finding["topic"] == "sandbox"]
    whats = " | ".join(finding["what"] for finding in sandbox)
    expect(all(finding["level"] == "ok" for finding in sandbox), f"not sandboxed: {whats}")
    expect("nothing is writable" in whats, f"something is writable: {whats}")
    expect("network interfaces: lo" in whats, f"there is a network: {whats}")
    outside = machine.run("echo-uring doctor", check=False).stdout
    pid = machine.show(SERVICE, "MainPID")
    expect(
        f"the daemon that runs as process {pid}: " in outside, f"it sees no daemon:\n{outside}"
    )
    expect("this command is not sandboxed" in outside, f"root passes for sandboxed:\n{outside}")
    return f"{len(findings)} findings"


class Tracer:
    """strace(1) on everything that the machine's systemd starts, a file a thread."""

    def __init__(self, machine):
        self.directory = machine.root.with_suffix(".calls")
        self.directory.mkdir()
        self.process = machine.start(
            ["strace", "--follow-forks", "--output-separately", "--quiet=all"]
            + [f"--output={self.directory}/call", f"--attach={machine.leader}"]
        )
        eventually(lambda: list(self.directory.iterdir()), 10, "strace does not attach")

    def end(self):
        """Detaches."""
        self.process.terminate()
        self.process.wait()

    def calls(self, tasks):
        """The calls of these threads, and of what ran in the sandbox for a reload, by name; and
        the lines of those that were refused."""
        used, refused = set(), []
        for path in self.directory.iterdir():
            lines = path.read_text(errors="replace").splitlines()
            begins = [
                number
                for number, line in enumerate(lines)
                if re.match(r'execve\("(/usr/sbin/echo-uring|(/usr)?/bin/kill)".* = 0$', line)
            ]
            if not begins and path.suffix[1:] not in tasks:
                continue
            for line in lines[begins[-1] + 1 if begins else 0 :]:
                match = CALL.match(line)
                if match:
                    used.add(match.group(1))
                    if " = -1 EPERM" in line and match.group(1) not in REFUSED_ON_PURPOSE:
                        refused.append(line)
        return used, refused


def calls_are_listed(machine, _packages):
    """A life of the service under strace makes no call that its unit does not list."""
    tracer = Tracer(machine)
    tasks = set()
    try:
        machine.run(f"systemctl restart {SERVICE}")
        echoes(machine, length=1 << 20)
        if machine.show(SERVICE, "CanReload") == "yes":
            machine.run(f"systemctl reload {SERVICE}")
            machine.run(f"echo 'nonsense = 1' >> {CONFIG}")
            machine.run(f"systemctl reload {SERVICE}", check=False)
            machine.run(f"sed -i '$d' {CONFIG} && systemctl reload {SERVICE}")
        machine.run("echo-uring status", check=False)
        time.sleep(2)
        tasks |= {entry.name for entry in pathlib.Path(f"/proc/{machine.daemon()}/task").iterdir()}
        # Once more: what one hands over, the next takes over.
        process = machine.start_traffic(
            "busy", "--connections", 20, "--bytes", 64 << 10, "--seconds", 2
        )
        expect(process.stdout.readline().strip() == "ready", "20 connections were not accepted")
        machine.run(f"systemctl restart {SERVICE}")
        machine.finish_traffic(process)
        tasks |= {entry.name for entry in pathlib.Path(f"/proc/{machine.daemon()}/task").iterdir()}
        machine.run(f"systemctl stop {SERVICE} {SOCKET}")
    finally:
        tracer.end()
    machine.run(f"systemctl start {SERVICE}")
    expect(is_active(machine, SERVICE), "the service does not start again")
    allowed = set(machine.show(SERVICE, "SystemCallFilter").split())
    used, refused = tracer.calls(tasks)
    expect("io_uring_enter" in used, f"the daemon was not traced: {sorted(used)}")
    unlisted = used - allowed
    expect(not unlisted, f"calls that the unit does not list: {sorted(unlisted)}")
    expect(not refused, f"calls that were refused: {refused[:5]}")
    spare = " ".join(sorted(allowed - used))
    print(f"    {machine.release}: allowed, and not used in this life: {spare}", flush=True)
    return f"{len(used)} of {len(allowed)} calls used"


STEPS = [
    ("sandbox tight", sandbox_is_tight),
    ("nothing in reach", nothing_is_in_reach),
    ("calls listed", calls_are_listed),
    ("doctor", doctor_sees_the_sandbox),
]
