"""Restarts that go wrong: a state that the next process cannot use, and processes that die in the
middle of a hand-over, old or new. The service comes back in each case, and nobody is left hanging.

The faults are injected into the daemon as it is shipped, from outside, by strace(1). It knows how a
state begins (src/handover/format.rs) and which calls a hand-over takes.
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

# Where a state has its version, a number of four bytes, and for how long its first connection was
# quiet.
VERSION_AT = 16
# The present version, and the oldest that is read.
VERSION, OLDEST = 3, 1
RECORD_AT = 56
QUIET_AT = RECORD_AT + 8
# What clients may see of a process that died: an end or a reset, but never wrong bytes or silence.
ENDS = {"ended", "[Errno 104] Connection reset by peer", "[Errno 32] Broken pipe"}
# The calls of a hand-over by which the old process is killed, with the signal: it writes the state,
# seals it, packs connections into a socket, gives that to systemd and waits for the answer.
OLD_DIES = (
    ("memfd_create", "KILL"),
    ("lseek", "KILL"),
    ("fcntl", "ABRT"),
    ("socketpair", "KILL"),
    ("sendmsg:when=1", "ABRT"),
    ("sendmsg:when=2", "KILL"),
    ("sendmsg:when=3", "KILL"),
)
# And the new one: it has systemd forget them, waits, unpacks, reads the state, makes its rings.
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
    """strace makes `effect` of the next `call` of this thread, or of the one that it says."""
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
    (cut_short, "it is cut short"),
)


def is_well(machine, pid_before):
    """The service is back, in another process, with an empty store, and serves."""
    eventually(
        lambda: is_active(machine, SERVICE) and machine.show(SERVICE, "MainPID") != pid_before,
        30,
        "the service did not come back",
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
        # It rewinds the state when it is written and before it is sealed.
        with injected(machine, process, "lseek", "delay_enter=20000000"):
            restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
            path = eventually(lambda: state_of(process), 10, "no state was written")
            # In case it is written in several pieces.
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
    """How often the service died of this signal."""
    died = re.compile(f"Main process exited, code=(killed|dumped), status=\\d+/{name}")
    return sum(bool(died.search(text)) for text in machine.messages())


def survived(machine, clients, before, name, number):
    """What is demanded after another death by this signal; whether all connections were kept."""
    is_well(machine, before)
    expect(deaths(machine, name) == number + 1, "not one process died")
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
    """The pid, seen from outside, of the shell that waits in the daemon's place."""
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
    # The one after it is to start as ever.
    remove_drop_in(machine, SERVICE, "stopped")
    with injected(machine, process, call, f"signal=SIG{name}"):
        os.kill(process, signal.SIGCONT)
        restart.communicate(timeout=30)
    return survived(machine, clients, before, name, number)


def deaths_wedge_nothing(machine, _packages):
    """Killed or aborted at any moment of a hand-over: the service comes back, nobody hangs."""
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
    return f"{len(OLD_DIES) + len(NEW_DIES)} deaths, all connections kept after: {', '.join(kept)}"


def refused_hand_over_drains(machine, _packages):
    """If the kernel lets no more descriptors travel, nothing is cut off: it drains."""
    clients = open_connections(machine, FEW)
    before = machine.show(SERVICE, "MainPID")
    words = "connections cannot be handed over"
    said = len(told(machine, words))
    with injected(machine, machine.daemon(), "sendmsg:when=1", "error=ETOOMANYREFS"):
        restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
        eventually(lambda: len(told(machine, words)) > said, 10, f"the journal has no: {words}")
    # They all go on until the drain ends, or they do.
    report = judge(machine, clients)
    expect(report["faults"] == 0, f"connections suffered: {report}")
    output, _ = restart.communicate(timeout=30)
    expect(restart.returncode == 0, f"the restart failed: {output}")
    is_well(machine, before)


STEPS = [
    ("state unusable", unusable_state_is_survived),
    ("hand-over refused", refused_hand_over_drains),
    ("deaths in hand-over", deaths_wedge_nothing),
]
