"""One test machine: a Debian release in a directory, booted with its own systemd as PID 1.

It has a network namespace with nothing but loopback, and is entered from outside with nsenter; so
it needs neither a network of ours nor a tool inside. This file must know nothing about what is
tested in it.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

TRAFFIC = pathlib.Path(__file__).with_name("traffic.py")
PR_SET_PDEATHSIG = 1
# The machine does not inherit the caller's environment.
GUEST_ENVIRONMENT = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "TERM=dumb",
    "DEBIAN_FRONTEND=noninteractive",
    "SYSTEMD_PAGER=",
    "SYSTEMD_COLORS=0",
]


class Failure(Exception):
    """A requirement that was not met, in one sentence for the reader of the report."""


def expect(condition, sentence):
    """Fails the step with `sentence` unless `condition` holds."""
    if not condition:
        raise Failure(sentence)


def eventually(attempt, seconds, sentence):
    """Calls `attempt` until it returns something true, and returns that; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        outcome = attempt()
        if outcome:
            return outcome
        expect(time.monotonic() < deadline, f"{sentence} (waited {seconds} s)")
        time.sleep(0.1)


def bootstrap(release, directory, mirror, log):
    """Starts the installation of a minimal Debian into `directory`; returns the process."""
    # In a mount namespace of its own, so that its mounts end with the process.
    command = ["unshare", "--mount-proc", "--pid", "--fork", "--kill-child=KILL", "debootstrap"]
    command += [
        "--variant=minbase",
        "--include=systemd,systemd-sysv,dbus",
        release,
        directory,
        mirror,
    ]
    with open(log, "wb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


class ControlGroup:
    """A control group for the machine: two machines on one host must not share /payload."""

    def __init__(self, name):
        root = pathlib.Path("/sys/fs/cgroup")
        # Where systemd runs the host, it assigns control groups itself.
        self.ours = not pathlib.Path("/run/systemd/system").exists()
        parents = [root / "systemd", root / "unified"] if (root / "systemd").exists() else [root]
        self.paths = [parent / name for parent in parents if parent.exists()] if self.ours else []
        for path in self.paths:
            path.mkdir()

    def enter(self):
        """Moves the calling process into the group."""
        for path in self.paths:
            (path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        for path in self.paths:
            directories = [entry for entry, _, _ in os.walk(path, topdown=False)]
            for directory in directories:
                # The kernel needs a moment after the last process has ended.
                for _ in range(50):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
                        break
                    time.sleep(0.1)


class Machine:
    """A booted machine. `leader` is the pid of its PID 1 on the host."""

    def __init__(self, release, directory, keep):
        self.release = release
        self.root = pathlib.Path(directory)
        self.keep = keep
        self.console = self.root.with_suffix(".console")
        self.group = ControlGroup(f"echo-uring-test.{os.getpid()}.{release}")
        self.supervisor = None
        self.leader = None
        self.children = []
        # Whether only some of the steps are run.
        self.is_partial = False
        # What a step leaves for a later one, and what is to be undone when the machine ends.
        self.recording = None
        # How often steps made the service abort.
        self.aborts = 0
        self.at_end = contextlib.ExitStack()

    def boot(self):
        """Starts the machine and waits until its systemd has nothing left to start."""
        # It has no network: the packages that ours recommends were installed with the machine.
        apt = self.root / "etc/apt/apt.conf.d/90no-recommends"
        apt.write_text('APT::Install-Recommends "false";\n')
        # The machine is temporary: dpkg need not wait until each file is on the disk.
        dpkg = self.root / "etc/dpkg/dpkg.cfg.d/unsafe-io"
        dpkg.write_text("force-unsafe-io\n")
        command = ["systemd-nspawn", "--quiet", "--boot", "--private-network", "--register=no"]
        command += [
            "--console=read-only",
            "--link-journal=no",
            f"--machine=echo-uring-{self.release}",
        ]
        command += ["--keep-unit"] if self.group.ours else []
        command += [f"--directory={self.root}"]
        library = ctypes.CDLL(None)

        def prepare():
            self.group.enter()
            if not self.keep:
                # If this program is killed, nspawn gets the signal to shut the machine down.
                library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        with open(self.console, "wb") as output:
            self.supervisor = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.leader = eventually(self.find_leader, 20, "systemd-nspawn started no machine")
        if self.recording:
            self.recording.follow(self.leader)
        eventually(self.is_running, 60, "the machine did not finish booting")

    def find_leader(self):
        expect(
            self.supervisor.poll() is None,
            f"systemd-nspawn ended at once:\n{self.console.read_text(errors='replace')}",
        )
        pid = self.supervisor.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                # Until it executes systemd the child is still a copy of nspawn.
                if pathlib.Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return None

    def is_running(self):
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        # A minimal machine in a container has units that cannot work; they are not ours.
        return state in ("running", "degraded")

    def inside(self, script):
        """The command that runs a shell script in the machine."""
        enter = ["nsenter", f"--target={self.leader}", "--all", "--root", "--wd"]
        return [*enter, "env", "-i", *GUEST_ENVIRONMENT, "/bin/sh", "-c", script]

    def run(self, script, check=True, timeout=90):
        """Runs a shell script in the machine; returns the completed process with its output."""
        try:
            process = subprocess.run(
                self.inside(script),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise Failure(f"in the machine `{script}` did not end in {timeout} s") from error
        if check:
            code = process.returncode
            expect(code == 0, f"in the machine `{script}` ended with {code}:\n{process.stdout}")
        return process

    def show(self, unit, name):
        """One property of a unit."""
        return self.run(f"systemctl show --value --property={name} {unit}").stdout.strip()

    def journal(self, unit="echo-uring.service"):
        """The unit's journal, an entry a dictionary, in order."""
        text = self.run(
            f"journalctl --sync; journalctl --no-pager --output=json --unit={unit}"
        ).stdout
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def messages(self, unit="echo-uring.service"):
        """The text of the service's own journal and of what systemd says about it."""
        return [str(entry.get("MESSAGE")) for entry in self.journal(unit)]

    def start(self, command):
        """Starts a process that ends with the machine at the latest."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.children.append(process)
        return process

    def in_its_network(self, *command):
        """The command that runs a program of the host in the machine's network namespace."""
        return ["nsenter", f"--net=/proc/{self.leader}/ns/net", *map(str, command)]

    def start_traffic(self, *arguments):
        """Starts a client in the machine's network; its report is the last line it prints."""
        return self.start(self.in_its_network(sys.executable, TRAFFIC, *arguments))

    def finish_traffic(self, process, timeout=60):
        """Waits for a client and returns its report."""
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"a client did not end in {timeout} s") from error
        lines = output.splitlines()
        expect(process.returncode == 0 and lines, f"a client broke down: {output}")
        return json.loads(lines[-1])

    def traffic(self, *arguments):
        """Runs a client to its end and returns its report."""
        return self.finish_traffic(self.start_traffic(*arguments))

    def daemon(self):
        """The pid of the daemon on the host."""
        namespace = os.readlink(f"/proc/{self.leader}/ns/pid")
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() != "echo-uring":
                    continue
                if os.readlink(entry / "ns/pid") == namespace:
                    return int(entry.name)
        raise Failure("no echo-uring runs in the machine")

    def end(self):
        """Ends the machine and everything we started in it, by pid."""
        self.at_end.close()
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()
        if self.supervisor is None or self.keep:
            return
        if self.leader and self.supervisor.poll() is None:
            # It needs no orderly shutdown; its processes end with its PID 1.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
        try:
            self.supervisor.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.supervisor.kill()
            self.supervisor.wait()

    def remove(self):
        """Ends the machine and removes what it leaves on the host, unless it is to be kept."""
        self.end()
        if not self.keep:
            self.group.remove()
            shutil.rmtree(self.root, ignore_errors=True)
