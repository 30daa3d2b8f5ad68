"""Restarts that fail: a state that the next process cannot use, and the old or the new process
killed during a handover. In each case the service runs again and no client hangs.

strace(1) injects the faults into the shipped daemon. This file knows how a state begins
(src/handover/format.rs) and which system calls a handover makes.
"""

import contextlib
import os
import pathlib
import re
import signal
import struct
import time

from checks import SERVICE, drop_in, echoes, is_active, remove_drop_in
from machine import Failure, eventually, expect
from steps_handover import FEW, open_connections, judge, told

# Offsets in a state: its version, a number of four bytes, and for how long its first connection had
# been quiet.
VERSION_AT = 16
# The present version, and the oldest that is read.
VERSION, OLDEST = 3, 1
RECORD_AT = 56
QUIET_AT = RECORD_AT + 8
# What clients may see of a killed process: an end or a reset, but never wrong bytes or silence.
ENDS = {"ended", "[Errno 104] Connection reset by peer", "[Errno 32] Broken pipe"}
# The calls of a handover at which the old process is killed, with the signal: it writes the state,
# seals it, packs connections into a socket, passes that to systemd and waits for the answer.
OLD_DIES = (
    ("memfd_create", "KILL"),
    ("lseek", "KILL"),
    ("fcntl", "ABRT"),
    ("socketpair", "KILL"),
    ("sendmsg:when=1", "ABRT"),
    ("sendmsg:when=2", "KILL"),
    ("sendmsg:when=3", "KILL"),
)
# And those of the new process: it makes systemd drop the stored descriptors, waits, unpacks, reads
# the state, makes its rings.
NEW_DIES = (
    ("sendto:when=1", "KILL"),
    ("sendmsg:when=1", "ABRT"),
    ("recvmsg:when=1", "KILL"),
    ("recvmsg:when=2", "KILL"),
    ("io_uring_setup", "KILL"),
    ("seccomp", "ABRT"),
)
STOPPED_AT_ITS_START = """[Service]
ExecStart=
ExecStart=/bin/sh -c 'kill -STOP $$$$; exec /usr/sbin/echo-uring serve'
# For the shell.
NoExecPaths=
ExecPaths=
SystemCallFilter=getcwd newfstatat wait4
"""


@contextlib.contextmanager
def injected(machine, pid, call, effect):
    """strace applies `effect` to the next `call` of this thread, or to the one of `when=`."""
    name, _, when = call.partition(":")
    injection = ":".join(filter(None, (name, effect, when)))
    trace = machine.root.with_suffix(".injected")
    tracer = machine.start(
        ["strace", f"--output={trace}", f"--attach={pid}", f"--trace={name}"]
        + [f"--inject={injection}"]
    )
    status = pathlib.Path(f"/proc/{pid}/status")
    eventually(lambda: "TracerPid:\t0" not in status.read_text(), 10, "strace does not attach")
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def state_of(pid):
    """The file of the state that this process is about to leave, once it is written."""
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("/memfd:echo-uring-state") and entry.stat().st_size:
                return entry
    return None


def newer(file):
    file.seek(VERSION_AT)
    file.write(struct.pack("<I", VERSION + 1))


def older(file):
    file.seek(VERSION_AT)
    file.write(struct.pack("<I", OLDEST - 1))


def damaged(file):
    file.seek(QUIET_AT)
    byte = file.read(1)
    file.seek(QUIET_AT)
    file.write(bytes((byte[0] ^ 1,)))


def cut_short(file):
    file.truncate(RECORD_AT + 1)


UNUSABLE = (
    (newer, f"it is of version {VERSION + 1}, and this reads {OLDEST} to {VERSION}"),
    (older, f"it is of version {OLDEST - 1}, and this reads {OLDEST} to {VERSION}"),
    (damaged, "its checksum is"),
    (cut_short, "its length is not the one in its header"),
)


def is_well(machine, pid_before):
    """The service runs in another process, with an empty store, and serves."""
    eventually(
        lambda: is_active(machine, SERVICE) and machine.show(SERVICE, "MainPID") != pid_before,
        30,
        "the service does not run again",
    )
    eventually(
        lambda: machine.show(SERVICE, "NFileDescriptorStore") == "0", 10, "the store was kept"
    )
    failed = machine.run("systemctl list-units --failed --no-legend 'echo-uring*'").stdout.strip()
    expect(not failed, f"units failed: {failed}")
    echoes(machine)


def unusable_state_is_survived(machine, _packages):
    """A state that is newer, older or damaged: connections end in order; the journal says why."""
    for spoil, reason in UNUSABLE:
        clients = open_connections(machine, FEW)
        before, process = machine.show(SERVICE, "MainPID"), machine.daemon()
        said = len(told(machine, reason))
        # The daemon rewinds the state after it has written it and before it seals it.
        with injected(machine, process, "lseek", "delay_enter=20000000"):
            restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
            path = eventually(lambda: state_of(process), 10, "no state was written")
            # The daemon may write it in several pieces.
            time.sleep(0.2)
            with open(path, "r+b", buffering=0) as file:
                spoil(file)
        output, _ = restart.communicate(timeout=30)
        expect(restart.returncode == 0, f"{spoil.__name__}: the restart failed: {output}")
        is_well(machine, before)
        expect(len(told(machine, reason)) == said + 1, f"the journal does not say: {reason}")
        report = judge(machine, clients)
        kinds = report["kinds"]
        expect(kinds == {"ended": FEW["connections"]}, f"{spoil.__name__}: not all ended: {kinds}")
    return f"{len(UNUSABLE)} states, {FEW['connections']} connections ended in order each time"


def deaths(machine, name):
    """How often this signal has killed the service."""
    died = re.compile(f"Main process exited, code=(killed|dumped), status=\\d+/{name}")
    return sum(bool(died.search(text)) for text in machine.messages())


def survived(machine, clients, before, name, number):
    """The checks after another kill by this signal; returns whether all connections were kept."""
    is_well(machine, before)
    expect(deaths(machine, name) == number + 1, "not exactly one process was killed")
    machine.aborts += name == "ABRT"
    kinds = judge(machine, clients)["kinds"]
    expect(set(kinds) <= ENDS, f"clients saw {kinds}")
    return not kinds


def old_process_dies(machine, call, name):
    clients = open_connections(machine, FEW)
    before, number = machine.show(SERVICE, "MainPID"), deaths(machine, name)
    with injected(machine, machine.daemon(), call, f"signal=SIG{name}"):
        restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
        restart.communicate(timeout=30)
    return survived(machine, clients, before, name, number)


def stopped_shell(machine):
    """The pid, as the host sees it, of the stopped shell that becomes the daemon."""
    namespace = os.readlink(f"/proc/{machine.leader}/ns/pid")
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            if (rest.split()[0], name) != ("T", "sh"):
                continue
            if os.readlink(entry / "ns/pid") == namespace:
                return int(entry.name)
    return None


def new_process_dies(machine, call, name):
    clients = open_connections(machine, FEW)
    before, number = machine.show(SERVICE, "MainPID"), deaths(machine, name)
    drop_in(machine, SERVICE, "stopped", STOPPED_AT_ITS_START)
    restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
    process = eventually(lambda: stopped_shell(machine), 10, "the next process does not start")
    # The process after it starts normally.
    remove_drop_in(machine, SERVICE, "stopped")
    with injected(machine, process, call, f"signal=SIG{name}"):
        os.kill(process, signal.SIGCONT)
        restart.communicate(timeout=30)
    return survived(machine, clients, before, name, number)


def service_survives_kills(machine, _packages):
    """Killed or aborted at any moment of a handover: the service runs again, no client hangs."""
    kept = []
    for title, dies, moments in (
        ("old", old_process_dies, OLD_DIES),
        ("new", new_process_dies, NEW_DIES),
    ):
        for call, name in moments:
            moment = f"SIG{name} of the {title} process at {call}"
            try:
                if dies(machine, call, name):
                    kept.append(f"{title} at {call}")
            except Failure as failure:
                raise Failure(f"{moment}: {failure}") from failure
    return f"{len(OLD_DIES) + len(NEW_DIES)} kills, all connections kept after: {', '.join(kept)}"


def refused_handover_drains(machine, _packages):
    """If the kernel passes no more descriptors, the daemon drains and cuts no connection off."""
    clients = open_connections(machine, FEW)
    before = machine.show(SERVICE, "MainPID")
    words = "connections cannot be handed over"
    said = len(told(machine, words))
    with injected(machine, machine.daemon(), "sendmsg:when=1", "error=ETOOMANYREFS"):
        restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
        eventually(lambda: len(told(machine, words)) > said, 10, f"the journal has no: {words}")
    # All connections continue until the client closes them or the drain ends.
    report = judge(machine, clients)
    expect(report["faults"] == 0, f"connections had faults: {report}")
    output, _ = restart.communicate(timeout=30)
    expect(restart.returncode == 0, f"the restart failed: {output}")
    is_well(machine, before)


STEPS = [
    ("state unusable", unusable_state_is_survived),
    ("handover refused", refused_handover_drains),
    ("kills in a handover", service_survives_kills),
]
