"""Restarts and upgrades, which keep every established connection, and stops, which do not.

It uses systemctl, the journal and the clients of `connections.py`.
"""

import pathlib
import sys

from checks import SERVICE, drop_in, echoes, is_active, no_message_bus, place, remove_drop_in
from machine import Failure, eventually, expect

CLIENT = pathlib.Path(__file__).parent / "connections.py"
# The host's hard limit on open files is 20,000 a process where this is mostly run.
CONNECTIONS = {"connections": 9000, "talkers": 3000, "stalled": 50}
FEW = {"connections": 60, "talkers": 20, "stalled": 3}


def open_connections(machine, kinds, address=None):
    """Opens connections of these kinds, to `address` or to both addresses of loopback."""
    options = [word for name, count in kinds.items() for word in (f"--{name}", count)]
    options += ["--address", address] if address else []
    clients = machine.start(machine.in_its_network(sys.executable, CLIENT, *options))
    ready = clients.stdout.readline().strip()
    if ready != "ready":
        raise Failure(f"the connections were not opened: {ready} {clients.stdout.read()}")
    return clients


def judge(machine, clients):
    clients.terminate()
    return machine.finish_traffic(clients, timeout=180)


def told(machine, words, unit=SERVICE):
    return [text for text in machine.messages(unit) if words in text]


def survives(machine, act, kinds, unit=SERVICE, address=None):
    """Runs `act` while clients are connected. No client may lose a byte."""
    clients = open_connections(machine, kinds, address)
    pid = machine.show(unit, "MainPID")
    handed = len(told(machine, "handed over", unit))
    act()
    eventually(lambda: is_active(machine, unit), 30, f"{unit} is not active")
    expect(machine.show(unit, "MainPID") != pid, f"{unit} was not restarted")
    report = judge(machine, clients)
    expect(len(told(machine, "handed over", unit)) > handed, "nothing was handed over")
    expect(report["faults"] == 0, f"connections had faults: {report}")
    expect(machine.show(unit, "NFileDescriptorStore") == "0", "the store was not emptied")
    return report


def drains(machine, command, kinds):
    """The command begins a drain, during which every client is still served."""
    clients = open_connections(machine, kinds)
    drained, handed = (len(told(machine, words)) for words in ("draining: ", "handed over"))
    ending = machine.start(machine.inside(command))
    eventually(
        lambda: len(told(machine, "draining: ")) > drained, 10, f"{command} did not drain"
    )
    report = judge(machine, clients)
    expect(report["faults"] == 0, f"connections had faults: {report}")
    output, _ = ending.communicate(timeout=30)
    expect(ending.returncode == 0, f"{command} failed: {output}")
    expect(len(told(machine, "handed over")) == handed, f"{command} handed over")


def restart_keeps_all(machine, _packages):
    """`systemctl restart` with 9,000 connections: no byte lost, no client waits for a second."""
    pauses = []
    for verb in ("restart", "restart", "try-restart"):
        report = survives(machine, lambda: machine.run(f"systemctl {verb} {SERVICE}"), CONNECTIONS)
        pauses.append(report["longest_pause"])
    expect(max(pauses) < 1.0, f"a client waited too long: {pauses}")
    return f"{report['connections']} kept, longest pauses {pauses} s"


def upgrade_keeps_all(machine, packages):
    """`apt install` of a newer version: the same."""
    package = place(machine, packages.newer)
    # It may be the one that is there already, from a step before.
    install = f"apt-get install --yes --allow-downgrades --reinstall {package}"
    report = survives(machine, lambda: machine.run(install), CONNECTIONS)
    expect(report["longest_pause"] < 1.0, f"a client waited too long: {report}")
    return f"{report['connections']} kept, longest pause {report['longest_pause']} s"


def restart_needs_no_bus(machine, _packages):
    """Without a message bus a restart keeps all; without ExecStop= as well it drains and warns."""
    words = "so a restart will close"
    with no_message_bus(machine):
        for _ in range(3):
            survives(machine, lambda: machine.run(f"systemctl restart {SERVICE}"), FEW)
        expect(not told(machine, words), "a restart that keeps all connections warned of their end")
        drop_in(machine, SERVICE, "untold", "[Service]\nExecStop=")
        drains(machine, f"systemctl restart {SERVICE}", FEW)
        entries = [e for e in machine.journal() if words in str(e["MESSAGE"])]
        expect(len(entries) == 1, f"not one warning, but {entries}")
        expect(entries[0]["PRIORITY"] == "4", f"it is no warning: {entries}")
        remove_drop_in(machine, SERVICE, "untold")
        machine.run(f"systemctl stop {SERVICE} && systemctl start {SERVICE}")
        expect(len(told(machine, words)) == 1, "a stop warned of connections that end")
    return entries[0]["MESSAGE"]


def store_that_is_off_is_told(machine, _packages):
    """A restart with FileDescriptorStoreMax=0 drains, and warns."""
    drop_in(machine, SERVICE, "store", "[Service]\nFileDescriptorStoreMax=0")
    words = "this restart keeps no connections"
    drains(machine, f"systemctl restart {SERVICE}", FEW)
    remove_drop_in(machine, SERVICE, "store")
    expect(len(told(machine, words)) == 1, f"the journal has no: {words}")


def only_restarts_hand_over(machine, _packages):
    """A stop drains, and so does a signal that no job of systemd sent."""
    for act in (
        f"systemctl stop {SERVICE}",
        f"systemctl kill --signal=TERM {SERVICE}",
    ):
        machine.run(f"systemctl start {SERVICE}")
        before = len(told(machine, "draining: "))
        handed = len(told(machine, "handed over"))
        machine.run(act)
        eventually(
            lambda before=before: len(told(machine, "draining: ")) > before,
            10,
            f"{act} did not drain",
        )
        expect(len(told(machine, "handed over")) == handed, f"{act} handed over")
        eventually(lambda: not is_active(machine, SERVICE), 20, f"{act} did not end the service")
    machine.run(f"systemctl start {SERVICE}")
    echoes(machine)


def reexec_and_kills_do_no_harm(machine, _packages):
    """A restart after daemon-reexec keeps connections. After kills during a start the service runs
    again."""
    machine.run("systemctl daemon-reexec")
    survives(machine, lambda: machine.run(f"systemctl restart {SERVICE}"), FEW)
    clients = open_connections(machine, FEW)
    # Restarted without a wait, and killed repeatedly during the start.
    machine.run(
        f"systemctl --no-block restart {SERVICE}; for n in 1 2 3 4 5; do sleep 0.0$n;"
        f" systemctl kill --signal=KILL {SERVICE}; done; true"
    )
    eventually(lambda: is_active(machine, SERVICE), 30, "the service does not run again")
    eventually(
        lambda: machine.show(SERVICE, "NFileDescriptorStore") == "0", 10, "the store was kept"
    )
    echoes(machine)
    clients.kill()


STEPS = [
    ("restart keeps all", restart_keeps_all),
    ("upgrade keeps all", upgrade_keeps_all),
    ("restart without a bus", restart_needs_no_bus),
    ("no store", store_that_is_off_is_told),
    ("only restarts hand over", only_restarts_hand_over),
    ("handover and kills", reexec_and_kills_do_no_harm),
]
