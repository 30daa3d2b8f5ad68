"""Restarts and upgrades that keep every established connection, and stops that do not.

It knows systemd's verbs, the journal and the crowd of `crowd.py`; nothing of how it is done.
"""

import pathlib
import sys

from checks import SERVICE, echoes, is_active, place
from machine import Failure, eventually, expect

CROWD = pathlib.Path(__file__).parent / "crowd.py"
# The host's hard limit on open files is 20,000 a process where this is mostly run.
PEOPLE = {"connections": 9000, "talkers": 3000, "stalled": 50}


def gather(machine, people):
    """A crowd that has been answered."""
    options = [word for name, count in people.items() for word in (f"--{name}", count)]
    crowd = machine.start(machine.in_its_network(sys.executable, CROWD, *options))
    ready = crowd.stdout.readline().strip()
    if ready != "ready":
        raise Failure(f"the crowd did not gather: {ready} {crowd.stdout.read()}")
    return crowd


def judge(machine, crowd):
    crowd.terminate()
    return machine.finish_traffic(crowd, timeout=180)


def told(machine, words):
    return [text for text in machine.messages() if words in text]


def survives(machine, act, people):
    """What the crowd says of `act`: nobody may have lost a byte."""
    crowd = gather(machine, people)
    pid = machine.show(SERVICE, "MainPID")
    handed = len(told(machine, "handed over"))
    act()
    eventually(lambda: is_active(machine, SERVICE), 30, "the service is not active")
    expect(machine.show(SERVICE, "MainPID") != pid, "the service was not restarted")
    report = judge(machine, crowd)
    expect(len(told(machine, "handed over")) > handed, "nothing was handed over")
    expect(report["faults"] == 0, f"connections suffered: {report}")
    expect(machine.show(SERVICE, "NFileDescriptorStore") == "0", "the store was not emptied")
    return report


def restart_keeps_everybody(machine, _packages):
    """`systemctl restart` with 9,000 connections: no byte lost, nobody waits for a second."""
    pauses = []
    for verb in ("restart", "restart", "try-restart"):
        report = survives(machine, lambda: machine.run(f"systemctl {verb} {SERVICE}"), PEOPLE)
        pauses.append(report["longest_pause"])
    expect(max(pauses) < 1.0, f"somebody waited too long: {pauses}")
    return f"{report['connections']} kept, longest pauses {pauses} s"


def upgrade_keeps_everybody(machine, packages):
    """`apt install` of a newer version: the same."""
    package = place(machine, packages.newer)
    # It may be the one that is there already, from a step before.
    install = f"apt-get install --yes --allow-downgrades --reinstall {package}"
    report = survives(machine, lambda: machine.run(install), PEOPLE)
    expect(report["longest_pause"] < 1.0, f"somebody waited too long: {report}")
    return f"{report['connections']} kept, longest pause {report['longest_pause']} s"


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
    """A manager that was replaced hands on as well; a process killed at its start wedges nothing."""
    few = {"connections": 60, "talkers": 20, "stalled": 3}
    machine.run("systemctl daemon-reexec")
    survives(machine, lambda: machine.run(f"systemctl restart {SERVICE}"), few)
    crowd = gather(machine, few)
    # Restarted without a wait, and killed as soon as there is something to kill, over and over.
    machine.run(
        f"systemctl --no-block restart {SERVICE}; for n in 1 2 3 4 5; do sleep 0.0$n;"
        f" systemctl kill --signal=KILL {SERVICE}; done; true"
    )
    eventually(lambda: is_active(machine, SERVICE), 30, "the service was wedged")
    eventually(
        lambda: machine.show(SERVICE, "NFileDescriptorStore") == "0", 10, "the store was kept"
    )
    echoes(machine)
    crowd.kill()


STEPS = [
    ("restart keeps all", restart_keeps_everybody),
    ("upgrade keeps all", upgrade_keeps_everybody),
    ("only restarts hand over", only_restarts_hand_over),
    ("hand-over and kills", reexec_and_kills_do_no_harm),
]
