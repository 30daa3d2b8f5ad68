"""The steps of tests/containers/run, each with each engine. Runs inside the root directory with the engines.

The container runs as the image says (user 65532, its own configuration) and is given nothing but a seccomp
profile: the root file system is read-only, all capabilities are dropped, no new privileges are permitted.
This file must know nothing about how the image is built.
"""

import json
import pathlib
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request

FILES = pathlib.Path("/files")
SOURCE = pathlib.Path("/src")
PROFILE = SOURCE / "packaging/container/seccomp.json"
IMAGE = "localhost/echo-uring"
NAME = "echo"
# How long an engine waits after SIGTERM by default: docker-stop(1), podman-stop(1).
STOP_TIMEOUT = 10
# EX_CONFIG of sysexits.h: another try would not help.
EXIT_CONFIG = 78
HARDENED = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"]
PODMAN = ["podman", "--cgroup-manager=cgroupfs"]
# The command of each engine, and its options for a machine whose control groups we may not change.
ENGINES = {
    "podman-crun": ([*PODMAN, "--runtime=crun"], ["--cgroups=disabled"]),
    "podman-runc": ([*PODMAN, "--runtime=runc"], ["--pids-limit=0"]),
    # With containerd and runc.
    "docker": (["docker"], []),
}
# The error of the default profile for a call that it does not permit.
DEFAULT_ERRNO = {"podman-crun": "ENOSYS", "podman-runc": "ENOSYS", "docker": "EPERM"}


class Failure(Exception):
    """A requirement that was not met, in one sentence."""


def expect(condition, sentence):
    """Fails the step with `sentence` unless `condition` holds."""
    if not condition:
        raise Failure(sentence)


def run(*command, check=True, timeout=60):
    """A command; its output is text, standard error included."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    expect(result.returncode == 0 or not check, f"{command} fails: {result.stdout}")
    return result


def tag(engine):
    """Loads the image; returns its name."""
    command, _ = ENGINES[engine]
    output = run(*command, "load", "--input", str(FILES / "image.tar")).stdout
    names = run(*command, "images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    found = [name for name in names if name.startswith(f"{IMAGE}:")]
    expect(len(found) == 1, f"the image has no name of ours: {names}, {output}")
    return found[0]


def docker_daemon():
    """Starts Docker's daemon; returns when it answers."""
    for directory in ("/var/lib/docker", "/var/lib/containerd"):
        pathlib.Path(directory).mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", directory)
    log = pathlib.Path("/tmp/dockerd.log")
    with log.open("wb") as output:
        command = ["dockerd", "--storage-driver=vfs"]
        daemon = subprocess.Popen(command, stdout=output, stderr=output)
    deadline = time.monotonic() + 60
    while run("docker", "info", check=False).returncode != 0:
        running = daemon.poll() is None and time.monotonic() < deadline
        expect(running, f"Docker does not start: {log.read_text()[-2000:]}")
        time.sleep(0.2)


class Container:
    """A container that runs detached; removed at the end."""

    def __init__(self, engine, image, *options, network="host"):
        self.engine, here = ENGINES[engine]
        command = [*self.engine, "run", "--detach", f"--name={NAME}", *here]
        command += [f"--network={network}", *HARDENED, *options, image]
        self.started = run(*command, check=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        run(*self.engine, "rm", "--force", "--volumes", NAME, check=False)

    def state(self, member):
        """One member of the engine's record of the container's state."""
        return run(*self.engine, "inspect", f"--format={{{{.State.{member}}}}}", NAME).stdout.strip()

    def log(self):
        """What the daemon wrote to standard error."""
        return run(*self.engine, "logs", NAME, check=False).stdout

    def ready(self):
        """Waits until the daemon accepts."""
        deadline = time.monotonic() + 20
        while "info ready" not in self.log():
            running = self.started.returncode == 0 and self.state("Running") == "true"
            expect(
                running and time.monotonic() < deadline,
                f"the container does not start: {self.started.stdout}{self.log()}",
            )
            time.sleep(0.1)

    def execute(self, *command, check=True):
        """A command inside the container."""
        return run(*self.engine, "exec", NAME, *command, check=check)

    def ended(self):
        """Waits until the container has ended; returns its exit status."""
        return int(run(*self.engine, "wait", NAME).stdout.split()[-1])


def get(path):
    """Status and text of a page at the metrics port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:17007{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def echo_load(*arguments):
    """Load of the verifying client; its result."""
    text = run(str(FILES / "echo-load"), "--json", *arguments).stdout
    return json.loads(text[text.index("{") :])


def daemon_of_container():
    """The restrictions of the daemon's process according to the kernel, whatever the engine reports."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
        except FileNotFoundError:
            continue
        if fields["Name"] == "echo-uring":
            found.append(fields)
    expect(len(found) == 1, f"there are {len(found)} daemons")
    return found[0]


def works_under_its_profile(engine, image):
    """Echo over TCP and UDP, verified; probes, metrics and status; without any privilege."""
    with Container(engine, image, f"--security-opt=seccomp={PROFILE}") as container:
        container.ready()
        fields = daemon_of_container()
        expect(fields["Uid"].split() == ["65532"] * 4, f"the user is {fields['Uid']}")
        expect(fields["Gid"].split() == ["65532"] * 4, f"the group is {fields['Gid']}")
        for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            expect(int(fields[capabilities], 16) == 0, f"{capabilities} is {fields[capabilities]}")
        expect(fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2", f"{fields}")
        counts = []
        for target in ("tcp://127.0.0.1:7777", "tcp://[::1]:7777", "udp://127.0.0.1:7777", "udp://[::1]:7777"):
            # The exit status is 1 if a byte was lost, doubled or changed.
            result = echo_load("-c", "8", "--duration", "1s", target)
            counts.append(find(result, "messages"))
            expect(counts[-1] > 0, f"{target}: nothing came back: {result}")
        for path in ("/healthz", "/ready", "/serving"):
            expect(get(path)[0] == 200, f"{path} says {get(path)}")
        expect("echo_uring_" in get("/metrics")[1], "there are no metrics")
        status = json.loads(container.execute("echo-uring", "status", "--json").stdout)
        expect(status, "there is no status")
        check = container.execute("echo-uring", "check")
        expect('drain = "3s"' in check.stdout, check.stdout)
        expect("warn" not in container.log(), container.log())
        return f"{' + '.join(map(str, counts))} messages verified"


def find(result, name):
    """The first number of this name in a JSON value, outer members first."""
    waiting = [result]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, dict):
            if isinstance(value.get(name), int):
                return value[name]
            waiting.extend(value.values())
    raise Failure(f"{name} is missing: {result}")


def stops_within_the_time_out(engine, image):
    """SIGTERM with an idle connection and one whose peer does not read: exit status 0, and no SIGKILL."""
    with Container(engine, image, f"--security-opt=seccomp={PROFILE}") as container:
        container.ready()
        idle = socket.create_connection(("127.0.0.1", 7777))
        idle.sendall(b"x")
        expect(idle.recv(1) == b"x", "the idle connection is not echoed")
        stalled = socket.create_connection(("127.0.0.1", 7777))
        stalled.settimeout(1)
        try:
            while True:
                stalled.sendall(bytes(65536))
        except TimeoutError:
            pass
        began = time.monotonic()
        # Without --time: the engine's own stop time-out, after which it kills.
        run(*container.engine, "stop", NAME)
        seconds = time.monotonic() - began
        status = container.state("ExitCode")
        expect(status == "0", f"the exit status is {status} after {seconds:.1f} s: {container.log()}")
        expect(seconds < STOP_TIMEOUT, f"the stop took {seconds:.1f} s")
        idle.settimeout(5)
        expect(idle.recv(1) == b"", "the idle connection did not end in order")
        return f"{seconds:.1f} s, exit status 0"


def names_the_profile(engine, image, options, errno):
    """A refusal is one line that names the profile, where it is, and how each engine applies it."""
    with Container(engine, image, *options) as container:
        status = container.ended()
        lines = [line for line in container.log().splitlines() if "seccomp" in line]
        expect(status == EXIT_CONFIG, f"the exit status is {status}: {container.log()}")
        expect(len(lines) == 1, f"the message is not one line: {container.log()}")
        for words in (
            f"io_uring_setup(2) fails with {errno}",
            "seccomp.json in /usr/share/echo-uring",
            "--security-opt seccomp=seccomp.json",
            "Kubernetes",
            "localhostProfile: echo-uring.json",
        ):
            expect(words in lines[0], f"{words!r} is missing: {lines[0]}")
        # The profile is at the path in the message.
        copied = pathlib.Path("/tmp/seccomp.json")
        run(*container.engine, "cp", f"{NAME}:/usr/share/echo-uring/seccomp.json", str(copied))
        expect(copied.read_text() == PROFILE.read_text(), "the image has another profile")
        return f"exit status {status}"


def refused_by_default(engine, image):
    """The engine's own profile."""
    return names_the_profile(engine, image, [], DEFAULT_ERRNO[engine])


def refused_with_eperm(engine, image):
    """A profile that permits everything but io_uring, which it answers with EPERM."""
    calls = ["io_uring_setup", "io_uring_enter", "io_uring_register"]
    rule = {"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile = pathlib.Path("/tmp/eperm.json")
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    return names_the_profile(engine, image, [f"--security-opt=seccomp={profile}"], "EPERM")


def published_ports(engine, image):
    """A network of its own, port 7 outside mapped to 7777 inside, for TCP and UDP."""
    options = [f"--security-opt=seccomp={PROFILE}", "--publish=7:7777", "--publish=7:7777/udp"]
    with Container(engine, image, *options, network="bridge") as container:
        container.ready()
        counts = [
            find(echo_load("-c", "4", "--duration", "1s", target), "messages")
            for target in ("tcp://127.0.0.1:7", "udp://127.0.0.1:7")
        ]
        expect(min(counts) > 0, f"nothing came back: {counts}")
        return f"{counts} messages verified"


def runs_in_an_empty_root(engine, image):
    """The program without an engine, in a root directory with only its own file."""
    directory = pathlib.Path("/tmp/empty")
    directory.mkdir(exist_ok=True)
    command, here = ENGINES[engine]
    run(*command, "create", f"--name={NAME}", *here, image)
    try:
        run(*command, "cp", f"{NAME}:/usr/sbin/echo-uring", str(directory / "echo-uring"))
    finally:
        run(*command, "rm", "--force", "--volumes", NAME)
    expect(len(list(directory.iterdir())) == 1, "the root directory is not empty")
    command = ["chroot", str(directory), "/echo-uring", "--listen", "127.0.0.1:7700"]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while "info ready" not in (line := daemon.stderr.readline()):
            expect(line, "it ended before it was ready")
        count = find(echo_load("-c", "4", "--duration", "1s", "tcp://127.0.0.1:7700"), "messages")
        expect(count > 0, "nothing came back")
    finally:
        daemon.terminate()
        status = daemon.wait(timeout=STOP_TIMEOUT)
    expect(status == 0, f"the exit status is {status}")
    return f"{count} messages verified"


STEPS = {
    "strict": works_under_its_profile,
    "stop": stops_within_the_time_out,
    "default": refused_by_default,
    "eperm": refused_with_eperm,
    "publish": published_ports,
    "static": runs_in_an_empty_root,
}


def main():
    chosen = sys.argv[1:] or list(STEPS)
    unknown = [name for name in chosen if name not in STEPS]
    if unknown:
        print(f"tests/containers/run: there is no step {unknown[0]}: {', '.join(STEPS)}")
        return 64
    docker_daemon()
    table = []
    for engine in ENGINES:
        image = tag(engine)
        for name in chosen:
            began = time.monotonic()
            try:
                outcome, remark = "ok", STEPS[name](engine, image)
            except Failure as failure:
                outcome, remark = "FAILED", str(failure)
            except Exception:  # noqa: BLE001 (any exception is a failure of this step)
                outcome, remark = "FAILED", traceback.format_exc()
            table.append(outcome)
            seconds = time.monotonic() - began
            print(f"{engine:11} {name:8} {outcome:7} {seconds:5.1f} s  {remark}", flush=True)
    failed = table.count("FAILED")
    print(f"{len(table) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
