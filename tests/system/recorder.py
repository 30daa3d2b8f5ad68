"""Records every system call that the processes of a machine's units make, with tracefs.

Uses an instance of tracefs of its own, limited to the descendants of the machine's PID 1: so what
runs beside them on the host, and what is run in the machine from outside, is not in it. The exits
of calls are recorded, since a call that a filter refuses has no entry. io_uring_enter(2), which is
most of what an echo costs, is left out. This file must know nothing about units and lists.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import threading

TRACEFS = pathlib.Path("/sys/kernel/tracing")
PREFIX = "echo-uring-test."
# The same number on every architecture.
IO_URING_ENTER = 426
EXIT = re.compile(r" sys_exit: NR (\d+) = (-?\d+)$")
RENAMED = re.compile(r" task_rename: pid=\d+ oldcomm=(.*) newcomm=(.*) oom_score_adj=-?\d+$")
EPERM = 1
# Seconds between two looks at the kernel's buffer, and what fits into that, for each CPU.
INTERVAL = 0.2
BUFFER_KIB = 8192


def is_available():
    """Whether the kernel can record; mounts tracefs if necessary."""
    if not (TRACEFS / "instances").exists():
        mount = ["mount", "-t", "tracefs", "tracefs", str(TRACEFS)]
        with contextlib.suppress(OSError):
            subprocess.run(mount, check=False, capture_output=True)
    events = [TRACEFS / "events" / name for name in ("raw_syscalls/sys_exit", "task/task_rename")]
    return os.access(TRACEFS / "instances", os.W_OK) and all(event.exists() for event in events)


def remove_leftovers():
    """Removes the instance of a killed test, which would slow down every call on the host."""
    for path in (TRACEFS / "instances").glob(f"{PREFIX}*"):
        owner = path.name.removeprefix(PREFIX).split(".")[0]
        if not pathlib.Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                path.rmdir()


class Recorder:
    """Records from its making on, until `end`: the calls of threads whose name is one of `names`
    (shell patterns), of descendants of the process `ancestor`. A thread that was called
    `names[0]` and is renamed to something that none of them matches is in `strangers`."""

    def __init__(self, title, ancestor, names):
        remove_leftovers()
        self.directory = TRACEFS / "instances" / f"{PREFIX}{os.getpid()}.{title}"
        self.first = names[0]
        self.patterns = [re.compile(re.escape(name).replace(r"\*", ".*")) for name in names]
        # How often each call was made, and how often it failed with EPERM, by number.
        self.counts, self.refusals, self.strangers = {}, {}, set()
        self.directory.mkdir()
        try:
            self.begin(ancestor, names)
        except OSError:
            self.directory.rmdir()
            raise
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.read_on)
        self.thread.start()

    def write(self, name, text):
        (self.directory / name).write_text(str(text))

    def begin(self, ancestor, names):
        self.write("buffer_size_kb", BUFFER_KIB)
        self.write("options/event-fork", 1)
        self.write("set_event_pid", ancestor)
        named = " || ".join(f'comm ~ "{name}"' for name in names)
        self.write("events/raw_syscalls/sys_exit/filter", f"id != {IO_URING_ENTER} && ({named})")
        self.write("events/task/task_rename/enable", 1)
        self.write("events/raw_syscalls/sys_exit/enable", 1)
        # Without O_NONBLOCK a read could wait forever for an event.
        self.pipe = os.open(self.directory / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)

    def follow(self, ancestor):
        """Records the descendants of this process as well."""
        # Opened without O_TRUNC, the write adds to the processes that are followed.
        file = os.open(self.directory / "set_event_pid", os.O_WRONLY)
        try:
            os.write(file, str(ancestor).encode())
        finally:
            os.close(file)

    def read_on(self):
        rest = ""
        while True:
            last = self.ending.wait(INTERVAL)
            with contextlib.suppress(BlockingIOError):
                while text := os.read(self.pipe, 1 << 16):
                    *lines, rest = (rest + text.decode(errors="replace")).split("\n")
                    for line in lines:
                        self.note(line)
            if last:
                return

    def note(self, line):
        if match := EXIT.search(line):
            number, result = map(int, match.groups())
            self.counts[number] = self.counts.get(number, 0) + 1
            if result == -EPERM:
                self.refusals[number] = self.refusals.get(number, 0) + 1
        elif match := RENAMED.search(line):
            old, new = match.groups()
            if old == self.first and not any(p.fullmatch(new) for p in self.patterns):
                self.strangers.add(new)

    def lost(self):
        """How many events the kernel dropped because its buffer was full."""
        texts = [path.read_text() for path in self.directory.glob("per_cpu/cpu*/stats")]
        return sum(int(re.search(r"^overrun: (\d+)", text, re.MULTILINE)[1]) for text in texts)

    def end(self):
        """Stops recording; returns how many events were lost. Harmless when it has ended."""
        if self.ending.is_set():
            return 0
        self.write("events/enable", 0)
        self.ending.set()
        self.thread.join()
        os.close(self.pipe)
        lost = self.lost()
        self.directory.rmdir()
        return lost


def name_of(number):
    """The name of a system call on this machine, by libseccomp's own tables."""
    tool = shutil.which("scmp_sys_resolver")
    return subprocess.run(
        [tool, str(number)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
