"""What apt and dpkg do with the daemon's package in unusual circumstances: without systemd, where
policy-rc.d forbids starts, with the port in use, with units that an administrator has changed; see
`steps.py`.

It uses apt, dpkg and systemctl, and knows the messages of the package's scripts.
"""

import contextlib
import shutil
import subprocess

from checks import CONFIG, SERVICE, SOCKET, drop_in, echoes, is_active, place, remove_drop_in
from machine import GUEST_ENVIRONMENT, eventually, expect
from steps_handover import open_connections, judge

# An instance beside the first service, with an address of its own.
NAME = "pkg"
INSTANCE = f"echo-uring@{NAME}.service"
INSTANCE_SOCKET = f"echo-uring@{NAME}.socket"
INSTANCE_CONFIG = f"/etc/echo-uring/{NAME}.toml"
INSTANCE_FILE = f"/run/echo-uring/{NAME}/echo.sock"
# No stalled peer: on a slow machine it would be reset.
READERS = {"connections": 60, "talkers": 20, "stalled": 0}
# Messages that a user should not see during an installation.
NOISE = ("Could not execute systemctl", "not found", "line ", "error processing", "is a disabled")
TAKER = "/run/systemd/system/taker"
POLICY = "/usr/sbin/policy-rc.d"
# dpkg as apt calls it. apt takes several times as long and is tested in other steps.
INSTALL = "dpkg --install"
REMOVE = "dpkg --remove echo-uring"
PURGE = "dpkg --purge echo-uring && rm -rf /etc/echo-uring"


class Bare:
    """A copy of a machine's files, entered by chroot(2): no service runs in it."""

    def __init__(self, machine, name):
        self.root = machine.root.with_suffix(f".{name}")
        machine.at_end.callback(shutil.rmtree, self.root, ignore_errors=True)
        copy = ["cp", "--archive", "--one-file-system", machine.root, self.root]
        subprocess.run(copy, check=True)
        # The run-time files of the copied machine do not exist while it is off.
        shutil.rmtree(self.root / "run")
        (self.root / "run").mkdir()

    def run(self, script):
        """Runs a shell script in it, with no network; returns what it printed."""
        enter = ["unshare", "--mount", "--net", "--pid", "--fork", "chroot", self.root]
        command = [*enter, "env", "-i", *GUEST_ENVIRONMENT, "/bin/sh", "-c", script]
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=120,
        )
        code = process.returncode
        expect(code == 0, f"`{script}` ended with {code}:\n{process.stdout}")
        return process.stdout


def is_silent(output):
    """Checks that no internal message was printed."""
    said = [line for line in output.splitlines() if any(noise in line for noise in NOISE)]
    expect(not said, f"it printed: {said}")


def install(machine, package):
    """Installs a package, whatever is installed before; returns the output."""
    output = machine.run(f"{INSTALL} {place(machine, package)}").stdout
    is_silent(output)
    return output


def goes_in_and_out(bare, package):
    """Installs, installs again, removes, installs and purges; returns the outputs."""
    shutil.copyfile(package, bare.root / "var/tmp/package.deb")
    verbs = (
        "apt-get install --yes /var/tmp/package.deb",
        f"{INSTALL} /var/tmp/package.deb",
        REMOVE,
        f"{INSTALL} /var/tmp/package.deb",
    )
    for verb in verbs:
        is_silent(bare.run(verb))
        state = bare.run("dpkg-query --show --showformat='${Status}' echo-uring")
        wanted = "config-files" if verb == REMOVE else "ok installed"
        expect(state.endswith(wanted), f"after `{verb}` its state is {state}")
    bare.run("dpkg --verify echo-uring && echo-uring --version && echo-uring check")


def is_gone(bare):
    is_silent(bare.run(PURGE))
    bare.run("rm -f /var/tmp/package.deb")
    left = bare.run("find / -xdev -iname '*echo-uring*' -not -path '/proc/*'").strip()
    expect(not left, f"purge left files:\n{left}")


def installs_where_nothing_runs(machine, packages):
    """In a chroot, with systemd that does not run and without systemd: no error, no leftovers."""
    bare = Bare(machine, "chroot")
    goes_in_and_out(bare, packages.current)
    links = bare.run("ls /etc/systemd/system/*.wants")
    for unit in (SERVICE, SOCKET):
        expect(unit in links, f"{unit} was not enabled: {links}")
    is_gone(bare)
    # As in a container without systemd; dpkg ignores the dependencies on it.
    bare.run(
        "dpkg --purge --force-all systemd systemd-sysv systemd-standalone-sysusers "
        "libpam-systemd dbus dbus-daemon dbus-bin dbus-system-bus-common 2>&1"
    )
    tools = bare.run("command -v systemctl systemd-sysusers dbus-daemon || true").strip()
    expect(not tools, f"it was meant to be without {tools}")
    goes_in_and_out(bare, packages.current)
    # The program serves as well, on a socket that it binds itself.
    said = bare.run(
        "timeout -s TERM 3 echo-uring --listen unix:/tmp/echo.sock 2>&1 || [ $? = 124 ]"
    )
    expect("ready" in said, f"it does not serve: {said}")
    is_gone(bare)
    shutil.rmtree(bare.root)


@contextlib.contextmanager
def port_taken(machine):
    """Another program uses the port."""
    machine.run(
        f"printf '[Socket]\\nListenStream=127.0.0.1:7\\nAccept=yes\\n' > {TAKER}.socket;"
        f" printf '[Service]\\nExecStart=/bin/cat\\n' > {TAKER}@.service;"
        " systemctl daemon-reload && systemctl start taker.socket"
    )
    try:
        yield
    finally:
        machine.run(f"systemctl stop taker.socket; rm {TAKER}.socket {TAKER}@.service")
        machine.run("systemctl daemon-reload")


def taken_port_is_named(machine, packages):
    """With port 7 in use the package can be installed, and apt shows what to do."""
    with port_taken(machine):
        package = place(machine, packages.current)
        said = machine.run(f"apt-get install --yes {package}").stdout
        is_silent(said)
        for words in ("(127.0.0.1:7): Address already in use", "ss -lntp", "another-port.conf"):
            expect(words in said, f"apt does not show {words!r}:\n{said}")
        expect(not is_active(machine, SOCKET), "the socket is active on a port that is taken")
        # An upgrade tries again, and says it again.
        expect("already in use" in install(machine, packages.newer), "the upgrade says nothing")
    # What it says is to be done works.
    remedy = [line for line in said.splitlines() if line.startswith("echo-uring: systemctl start")]
    expect(remedy, f"no command is named:\n{said}")
    machine.run(remedy[0].removeprefix("echo-uring: "))
    echoes(machine)
    machine.run(f"systemctl stop {SERVICE} {SOCKET}")
    with port_taken(machine):
        machine.run("systemctl start echo-uring", check=False)
        install(machine, packages.current)
    # Without another word, if an upgrade comes when the port is free.
    install(machine, packages.newer)
    echoes(machine)
    machine.run(PURGE)


def policy_is_obeyed(machine, packages):
    """Where policy-rc.d forbids it nothing is started, restarted or stopped."""
    forbid = f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod +x {POLICY}"
    machine.run(forbid)
    said = install(machine, packages.current)
    expect("returned 101" in said, f"apt does not say why nothing runs:\n{said}")
    for unit in (SERVICE, SOCKET):
        expect(not is_active(machine, unit), f"{unit} was started against the policy")
        expect(machine.show(unit, "UnitFileState") == "enabled", f"{unit} is not enabled")
    machine.run(f"rm {POLICY} && systemctl start {SERVICE}")
    pid = machine.show(SERVICE, "MainPID")
    machine.run(forbid)
    install(machine, packages.newer)
    expect(machine.show(SERVICE, "MainPID") == pid, "an upgrade restarted it against the policy")
    machine.run(f"rm {POLICY}")
    echoes(machine)
    machine.run(PURGE)


def add_instance(machine):
    """Makes the instance and enables it, if that was not done yet."""
    machine.run(f"mkdir -p /etc/echo-uring && echo '[limits]' > {INSTANCE_CONFIG}")
    machine.run(f"systemctl enable --now {INSTANCE} {INSTANCE_SOCKET}")


def instance_echoes(machine):
    path = f"/proc/{machine.leader}/root{INSTANCE_FILE}"
    report = machine.traffic("echo", "--address", path, "--bytes", 1000)
    expect(report["exact"], f"no exact echo from {INSTANCE_FILE}: {report}")


def reinstallation_starts_what_is_enabled(machine, packages):
    """Removed and installed again: the enabled units run, instances included, and no others."""
    install(machine, packages.current)
    add_instance(machine)
    machine.run("cp /etc/echo-uring.toml /etc/echo-uring/idle.toml")
    machine.run("systemctl start echo-uring@idle.service")
    is_silent(machine.run(REMOVE).stdout)
    expect(not is_active(machine, INSTANCE), "an instance runs on after removal")
    install(machine, packages.current)
    for unit in (SERVICE, SOCKET, INSTANCE, INSTANCE_SOCKET):
        expect(is_active(machine, unit), f"{unit} is enabled and was not started")
    idle = is_active(machine, "echo-uring@idle.service")
    expect(not idle, "an instance runs that is not enabled")
    echoes(machine)
    instance_echoes(machine)
    machine.run("echo-uring status --json && echo-uring status --json --instance pkg")
    # Only the socket is enabled, for a service that its first client starts.
    machine.run(f"systemctl disable --now {SERVICE}")
    machine.run(REMOVE)
    install(machine, packages.current)
    expect(not is_active(machine, SERVICE), "a service that is disabled was started")
    echoes(machine)
    machine.run(f"systemctl enable {SERVICE}")


def upgrade_leaves_what_was_changed(machine, packages):
    """Units that were stopped, disabled or masked stay so over an upgrade, without a complaint."""
    install(machine, packages.current)
    add_instance(machine)
    other = packages.newer
    for change, undo in (
        (f"stop {SERVICE} {SOCKET} {INSTANCE} {INSTANCE_SOCKET}", None),
        (f"disable --now {SERVICE} {SOCKET} {INSTANCE} {INSTANCE_SOCKET}", "enable"),
        (f"mask --now {SERVICE} {SOCKET} {INSTANCE} {INSTANCE_SOCKET}", "unmask"),
    ):
        verb, *units = [word for word in change.split() if word != "--now"]
        machine.run(f"systemctl {change}")
        before = [machine.show(unit, "UnitFileState") for unit in units]
        install(machine, other)
        after = [machine.show(unit, "UnitFileState") for unit in units]
        expect(before == after, f"{verb}: {before} became {after}")
        running = [unit for unit in units if is_active(machine, unit)]
        expect(not running, f"after {verb} and an upgrade {running} run")
        machine.run(f"systemctl {undo} {' '.join(units)}" if undo else "true")
        machine.run(f"systemctl start {SERVICE} {INSTANCE}")
        other = packages.current if other == packages.newer else packages.newer
    # A masked service that runs cannot be restarted and continues to run.
    pid = machine.show(SERVICE, "MainPID")
    machine.run(f"systemctl mask {SERVICE}")
    said = install(machine, other)
    expect("echo-uring is masked and was not restarted" in said, f"apt does not say so: {said}")
    expect(machine.show(SERVICE, "MainPID") == pid, "a masked service was restarted")
    machine.run(f"systemctl unmask {SERVICE}")
    echoes(machine)
    instance_echoes(machine)


def bad_files_are_left_to_the_old(machine, packages):
    """An upgrade does not restart a service with a bad configuration, and says what to do."""
    path = f"/proc/{machine.leader}/root{INSTANCE_FILE}"
    services = (
        ("echo-uring", SERVICE, CONFIG, None),
        (f"echo-uring@{NAME}", INSTANCE, INSTANCE_CONFIG, path),
    )
    install(machine, packages.current)
    add_instance(machine)
    for name, unit, config, address in services:
        install(machine, packages.current)
        good = next(each for _, each, _, _ in services if each != unit)
        machine.run(f"cp -p {config} /var/tmp/good.toml && echo 'nonsense = 1' >> {config}")
        line = len(machine.run(f"cat {config}").stdout.splitlines())
        clients = open_connections(machine, READERS, address)
        pid, good_pid = machine.show(unit, "MainPID"), machine.show(good, "MainPID")
        said = install(machine, packages.newer)
        left, remedy = f"{name} was not restarted", f"systemctl restart {name}"
        for words in (left, f"{config}:{line}:", remedy):
            expect(words in said, f"apt does not show {words!r}:\n{said}")
        expect(machine.show(unit, "MainPID") == pid, f"{unit} was restarted with a bad file")
        expect(is_active(machine, unit), f"{unit} is not active")
        expect(machine.show(good, "MainPID") != good_pid, f"{good} was not restarted")
        report = judge(machine, clients)
        expect(report["faults"] == 0, f"connections had faults: {report}")
        # As it says: repaired and restarted.
        machine.run(f"mv /var/tmp/good.toml {config} && systemctl restart {name}")
        expect(machine.show(unit, "MainPID") != pid, f"{unit} was not restarted after the repair")
        echoes(machine)
        instance_echoes(machine)
    # The file is the one that the unit names.
    machine.run("echo '[limits]' > /etc/echo-uring/elsewhere.toml")
    start = "ExecStart=/usr/sbin/echo-uring --config /etc/echo-uring/elsewhere.toml serve"
    drop_in(machine, SERVICE, "elsewhere", f"[Service]\nExecStart=\n{start}")
    machine.run(f"cp -p {CONFIG} /var/tmp/good.toml && echo 'nonsense = 1' >> {CONFIG}")
    pid = machine.show(SERVICE, "MainPID")
    said = install(machine, packages.current)
    expect("was not restarted" not in said, f"a file that no unit names matters: {said}")
    expect(machine.show(SERVICE, "MainPID") != pid, "the service was not restarted")
    machine.run("echo nonsense >> /etc/echo-uring/elsewhere.toml")
    said = install(machine, packages.newer)
    expect("/etc/echo-uring/elsewhere.toml:2" in said, f"apt does not show its file: {said}")
    machine.run(f"mv /var/tmp/good.toml {CONFIG}")
    remove_drop_in(machine, SERVICE, "elsewhere")
    machine.run(f"systemctl restart {SERVICE}")
    # A service that does not run because of a bad file is reported as one that failed to start.
    machine.run(f"echo nonsense >> {CONFIG} && systemctl restart {SERVICE}", check=False)
    eventually(lambda: machine.show(SERVICE, "ActiveState") == "failed", 10, "it did not fail")
    said = install(machine, packages.current)
    expect("echo-uring does not run" in said and f"{CONFIG}:" in said, f"apt shows: {said}")
    machine.run(PURGE)


# Before the first installation, and after the last purge.
FIRST = [("without systemd", installs_where_nothing_runs)]
LAST = [
    ("port taken", taken_port_is_named),
    ("policy", policy_is_obeyed),
    ("installed again", reinstallation_starts_what_is_enabled),
    ("upgrade changes nothing", upgrade_leaves_what_was_changed),
    ("upgrade, bad file", bad_files_are_left_to_the_old),
]
