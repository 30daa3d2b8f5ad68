"""Which system calls the service makes, against the list in its unit, `SystemCallFilter=`.

Where the host has tracefs, the kernel records every call of every process of the units in every
step, from the installation to the purge. Elsewhere one life of the service is run under strace(1).
Each function is a step as those of steps.py.
"""

import pathlib
import re
import time

import recorder
from checks import CONFIG, SERVICE, SOCKET, echoes, filters_need_privilege, is_active
from machine import eventually, expect

# The daemon's threads, the first by its name before it has another. What systemd runs for a
# reload, and the doctor in the sandbox, have the first name, too.
THREADS = ("echo-uring", "worker-*", "log", "admin", "query")
# The daemon tests its seal with calls that must be refused. Where a drop-in refuses io_uring, the
# daemon tries all three calls to find out what refuses them.
REFUSED_ON_PURPOSE = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
# The line of the unit after which it lists calls that are kept although no step makes them.
KEPT = "# not called in tests/system"
# The beginning of a line of strace: the name of a call.
CALL = re.compile(r"(\w+)\(")


def calls_are_recorded(machine, _packages):
    """From here on the kernel records the system calls of the machine's services."""
    if not recorder.is_available():
        print(
            f"    {machine.release}: NO TRACEFS on this host: not every step's system calls are"
            " compared with the unit's list, only those of one run under strace",
            flush=True,
        )
        return "no tracefs: one run under strace"
    recording = recorder.Recorder(machine.release, machine.leader, THREADS)
    machine.recording = recording
    machine.at_end.callback(recording.end)
    return "by tracefs"


def listed(machine):
    """The calls that the unit allows, and those among them that need not be made: those that
    systemd adds by itself, and those that the unit marks as kept."""
    allowed = set(machine.show(SERVICE, "SystemCallFilter").split())
    text = machine.run("systemd-analyze syscall-filter @default @sandbox", check=False).stdout
    spared = set(re.findall(r"^ {4}(\w+)$", text, re.MULTILINE))
    unit = machine.run(f"systemctl cat {SERVICE}").stdout
    _, found, kept = unit.partition(KEPT)
    expect(found, f"the unit has no line that begins with {KEPT!r}")
    for line in re.findall(r"^SystemCallFilter=(.+)$", kept, re.MULTILINE):
        spared.update(line.split())
    return allowed, spared


def judge(machine, used, refused):
    """Compares the calls made with those listed; returns the listed calls that were not made."""
    expect({"openat", "sendmsg"} <= used, f"the daemon was not seen: {sorted(used)}")
    allowed, spared = listed(machine)
    unlisted = used - allowed
    expect(not unlisted, f"calls that the unit does not list: {sorted(unlisted)}")
    unexpected = refused - REFUSED_ON_PURPOSE
    if filters_need_privilege():
        # The filter that refuses new connections; the kernel refuses it, not the unit.
        unexpected -= {"setsockopt"}
    expect(not unexpected, f"calls that were refused: {sorted(unexpected)}")
    spare = allowed - used - spared
    return spare, f"{len(used)} calls made of {len(allowed)}"


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
        those that were refused."""
        used, refused = set(), set()
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
                    if " = -1 EPERM" in line:
                        refused.add(match.group(1))
        return used, refused


def one_life(machine):
    """Restart, traffic, reload, a bad reload and stop under strace; the calls made."""
    tracer = Tracer(machine)
    tasks = set()
    try:
        machine.run(f"systemctl restart {SERVICE}")
        echoes(machine, length=1 << 20)
        machine.run(f"systemctl reload {SERVICE}")
        machine.run(f"echo 'nonsense = 1' >> {CONFIG}")
        machine.run(f"systemctl reload {SERVICE}", check=False)
        machine.run(f"sed -i '$d' {CONFIG} && systemctl reload {SERVICE}")
        machine.run("echo-uring status", check=False)
        time.sleep(2)
        tasks |= {entry.name for entry in pathlib.Path(f"/proc/{machine.daemon()}/task").iterdir()}
        # Once more: this process has connections to hand over, and the next one takes them over.
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
    return tracer.calls(tasks)


def calls_are_listed(machine, _packages):
    """The unit lists every call made in any step, and every listed call was made."""
    if machine.recording is None:
        spare, remark = judge(machine, *one_life(machine))
        print(f"    {machine.release}: not called in this one run: {' '.join(sorted(spare))}")
        return f"{remark}, in one run only"
    lost = machine.recording.end()
    expect(lost == 0, f"the kernel could not record {lost} calls")
    strangers = machine.recording.strangers
    expect(not strangers, f"threads of names that were not recorded: {sorted(strangers)}")
    names = {number: recorder.name_of(number) for number in machine.recording.counts}
    refused = {names[number] for number in machine.recording.refusals}
    spare, remark = judge(machine, {*names.values(), "io_uring_enter"}, refused)
    expect(
        not spare or machine.is_partial,
        f"calls that the unit lists, and no step made: {sorted(spare)}",
    )
    return f"{remark}, in {'these steps' if machine.is_partial else 'all steps'}"


FIRST = [("calls recorded", calls_are_recorded)]
LAST = [("calls listed", calls_are_listed)]
