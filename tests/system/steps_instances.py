"""Template instances: more echo services beside the first, each with a name, a configuration and
sockets of its own. `lab` is left running for the upgrade and the removal of the package.
"""

import json
import re
import subprocess

from checks import SERVICE, drop_in, echoes, is_active, no_message_bus, place, remove_drop_in
from machine import expect
from steps_handover import survives

LAB = "echo-uring@lab"
EDGE = "echo-uring@edge"
LAB_SOCKET_FILE = "/run/echo-uring/lab/echo.sock"
EDGE_PORT = 7071
CONNECTIONS = {"connections": 1000, "talkers": 300, "stalled": 10}
LAB_STATUS = "echo-uring-status@lab.socket"
LAB_METRICS = "echo-uring-metrics@lab.socket"


def configure(machine, name, connections):
    """Writes a configuration for the instance that differs from all others in one value."""
    text = f"[limits]\\nmax-connections = {connections}\\n"
    machine.run(f"mkdir -p /etc/echo-uring && printf '{text}' > /etc/echo-uring/{name}.toml")


def process_of(machine, unit):
    """The main process of a unit and the user it runs as."""
    pid = machine.show(unit, "MainPID")
    return pid, machine.run(f"stat --format=%u /proc/{pid}").stdout.strip()


def lab_echoes(machine):
    """The instance on its Unix socket, which the host reaches through the machine's root."""
    path = f"/proc/{machine.leader}/root{LAB_SOCKET_FILE}"
    report = machine.traffic("echo", "--address", path, "--bytes", 1 << 20)
    expect(report["exact"], f"no exact echo from {LAB_SOCKET_FILE}: {report}")


def status(machine, name):
    """The status of the instance, and the addresses it listens at."""
    seen = json.loads(machine.run(f"echo-uring status --json --instance {name}").stdout)
    return seen, [listener["address"] for listener in seen["listeners"]]


def exposure(machine, unit):
    text = machine.run(f"systemd-analyze security --no-pager {unit}").stdout
    return re.search(r"Overall exposure level for \S+: ([0-9.]+)", text).group(1)


def instances_stand_side_by_side(machine, _packages):
    """Two instances beside the first service: own addresses and users, stopped separately, the same
    sandbox."""
    configure(machine, "lab", 2001)
    configure(machine, "edge", 102)
    drop_in(
        machine,
        f"{EDGE}.socket",
        "address",
        f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{EDGE_PORT}",
    )
    units = f"{LAB}.service {LAB}.socket {EDGE}.service {EDGE}.socket"
    complaints = machine.run(f"systemd-analyze verify --man=no {units}").stdout.strip()
    expect(not complaints, f"systemd-analyze verify says: {complaints}")
    machine.run(f"systemctl enable --now {LAB}.socket {LAB}.service")
    # The first client starts the other one.
    machine.run(f"systemctl start {EDGE}.socket")
    expect(not is_active(machine, f"{EDGE}.service"), "the socket alone started the service")
    echoes(machine, ["127.0.0.1"], length=1 << 20, port=EDGE_PORT)
    lab_echoes(machine)
    echoes(machine)

    processes = [process_of(machine, unit) for unit in (SERVICE, f"{LAB}.service", f"{EDGE}.service")]
    for what, values in zip(("processes", "users"), zip(*processes)):
        expect(len(set(values)) == 3, f"three services, but as {what} {values}")
    # The command line, from /proc, names the configuration file.
    words = machine.run(f"tr '\\0' ' ' < /proc/{processes[1][0]}/cmdline").stdout
    expect("--config /etc/echo-uring/lab.toml" in words, f"lab runs as {words}")
    for unit in (LAB, EDGE):
        score = exposure(machine, f"{unit}.service")
        wanted = exposure(machine, SERVICE)
        expect(score == wanted, f"{unit} has exposure {score}, the first service {wanted}")

    machine.run(f"systemctl stop {EDGE}.socket {EDGE}.service")
    report = machine.traffic("echo", "--address", "127.0.0.1", "--port", EDGE_PORT)
    expect(report["refused"], f"port {EDGE_PORT} answers after its instance was stopped: {report}")
    machine.run(f"systemctl restart {SERVICE}")
    lab_echoes(machine)
    echoes(machine)
    pid, _ = process_of(machine, f"{LAB}.service")
    expect(pid == processes[1][0], "a restart of the first service restarted the instance")
    remove_drop_in(machine, f"{EDGE}.socket", "address")
    return f"users {', '.join(user for _, user in processes)}, exposure {exposure(machine, SERVICE)}"


def lab_keeps_all(machine, command):
    """The command restarts the instance, and each connection to it continues."""
    socket = f"/proc/{machine.leader}/root{LAB_SOCKET_FILE}"
    return survives(machine, lambda: machine.run(command), CONNECTIONS, f"{LAB}.service", socket)


def instances_keep_all(machine, packages):
    """A restart of an instance keeps its connections; so does an upgrade without a message bus."""
    names = machine.run("cut -d : -f 1 /etc/passwd").stdout.split()
    expect("echo-uring-lab" not in names, "the instance has a user in /etc/passwd")
    command = f"systemctl restart {LAB}.service"
    reports = [lab_keeps_all(machine, command) for _ in range(2)]
    with no_message_bus(machine):
        upgrade = f"dpkg --install {place(machine, packages.newer)}"
        reports.append(lab_keeps_all(machine, upgrade))
    pauses = [report["longest_pause"] for report in reports]
    return f"{CONNECTIONS['connections']} kept, longest pauses {pauses} s"


def instances_have_a_status(machine, _packages):
    """Each instance has a status of its own, and metrics once they are enabled."""
    machine.run(f"systemctl start {EDGE}.socket {EDGE}.service")
    for name in ("lab", "edge"):
        seen, addresses = status(machine, name)
        expect(addresses == [f"unix:/run/echo-uring/{name}/echo.sock"], f"{name}: {addresses}")
        expect(seen["state"] == "ready", f"{name} is {seen['state']}")
    before, _ = status(machine, "lab")
    lab_echoes(machine)
    echoed = lambda seen: seen["total"]["bytes_sent"]
    after, _ = status(machine, "lab")
    expect(echoed(after) - echoed(before) == 1 << 20, "the status does not count what lab echoed")
    expect(echoed(status(machine, "edge")[0]) == 0, "the status of edge counts what lab echoed")
    mode = machine.run("stat -c '%a %U %G' /run/echo-uring/lab/status.sock").stdout.strip()
    expect(mode == "660 root root", f"the status socket of lab is {mode}")

    # The user of an instance is in no file, which a restart does not need.
    judged = machine.run("echo-uring doctor --instance lab", check=False).stdout
    kept = "a restart of echo-uring@lab.service keeps connections"
    expect(kept in judged, f"the doctor does not know that: {judged}")

    machine.run(f"systemctl stop {EDGE}.socket {EDGE}.service")
    stopped = machine.run("echo-uring status --instance edge", check=False)
    expect(stopped.returncode == 69, f"of a stopped instance: {stopped.stdout}")
    remedy = "systemctl status echo-uring@edge.service echo-uring-status@edge.socket"
    expect(remedy in stopped.stdout, f"no remedy is named: {stopped.stdout}")
    expect(not is_active(machine, f"{EDGE}.service"), "asking for the status started the instance")

    expect(not is_active(machine, LAB_METRICS), f"{LAB_METRICS} is on by default")
    machine.run(f"systemctl enable {LAB_METRICS} && systemctl restart {LAB}.service")
    metrics = f"/proc/{machine.leader}/root/run/echo-uring/lab/metrics.sock"
    curl = ["curl", "--silent", "--max-time", "10", "--unix-socket", metrics]
    text = subprocess.run([*curl, "http://lab/metrics"], capture_output=True, text=True).stdout
    expect("\necho_uring_ready 1\n" in text, f"no metrics of lab: {text[:200]}")
    seen, _ = status(machine, "lab")
    expect(seen["uptime_seconds"] < 60, "the status socket leads to an earlier process")
    machine.run(f"systemctl disable {LAB_METRICS}")


def instance_without_configuration_is_named(machine, _packages):
    """An instance without a configuration file reports that, and does not start."""
    machine.run("rm /etc/echo-uring/edge.toml")
    started = machine.run(f"systemctl start {EDGE}.service", check=False)
    expect(started.returncode != 0, "an instance started without a configuration")
    status = machine.show(f"{EDGE}.service", "ExecMainStatus")
    expect(status == "78", f"it ended with {status} instead of 78")
    entries = machine.journal(f"{EDGE}.service")
    said = [str(e["MESSAGE"]) for e in entries if "/etc/echo-uring/edge.toml" in str(e["MESSAGE"])]
    expect(said, f"the journal does not name the file: {entries[-3:]}")
    machine.run(f"systemctl stop {EDGE}.socket && systemctl reset-failed {EDGE}.service")
    return said[0]


def upgrade_restarts_instances(machine, packages):
    """An upgrade restarts running instances but not their sockets, and starts no idle instance."""
    unit, socket = f"{LAB}.service", f"{LAB}.socket"
    pid, _ = process_of(machine, unit)
    opened = machine.show(socket, "ActiveEnterTimestampMonotonic")
    # As after an upgrade from a version that had no such socket.
    machine.run(f"systemctl stop {LAB_STATUS}")
    package = place(machine, packages.newer)
    lab_keeps_all(machine, f"apt-get install --yes --reinstall {package}")
    renewed, _ = process_of(machine, unit)
    expect(renewed != pid, "the upgrade did not restart the instance")
    reopened = machine.show(socket, "ActiveEnterTimestampMonotonic")
    expect(reopened == opened, "the upgrade restarted the socket of the instance")
    expect(not is_active(machine, f"{EDGE}.service"), "the upgrade started an idle instance")
    expect(status(machine, "lab")[0]["state"] == "ready", "the upgraded instance has no status")
    lab_echoes(machine)


def removal_ends_instances(machine, _packages):
    """After removal no instance is left, running, failed or as a directory."""
    for unit in (f"{LAB}.service", f"{LAB}.socket", LAB_STATUS, LAB_METRICS):
        expect(not is_active(machine, unit), f"{unit} is still active after removal")
    failed = machine.run("systemctl list-units --failed --no-legend 'echo-uring*'").stdout.strip()
    expect(not failed, f"after removal there are failed units: {failed}")
    left = machine.run("ls -d /run/echo-uring", check=False)
    expect(left.returncode != 0, "removal left /run/echo-uring")
