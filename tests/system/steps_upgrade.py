"""An upgrade from the original package of version 0.1.0 with connections open; see `steps.py`.

The old package is built of its own commit (`host.build_baseline`). So the process that hands over
is the old program, in the old units, and the one that takes over is the program under test.
"""

from checks import CONFIG, SERVICE, SOCKET, echoes, is_active, place, stream_of_clients
from machine import expect
from steps_handover import CONNECTIONS, survives, told

PURGE = "apt-get purge --yes echo-uring"


def build_of(machine):
    """The path and the inode of the program that the service runs: two versions may have one
    number."""
    pid = machine.show(SERVICE, "MainPID")
    return machine.run(f"readlink /proc/{pid}/exe; stat -Lc %i /proc/{pid}/exe").stdout.split()


def upgrade_from_the_first_version(machine, packages):
    """`apt install` over a running 0.1.0 with 9,000 connections: no byte lost, none refused."""
    machine.run(f"apt-get install --yes {place(machine, packages.baseline)}")
    version = machine.run("dpkg-query --show --showformat='${Version}' echo-uring").stdout
    expect(version == "0.1.0-1", f"the old package is of version {version}")
    # A change that an administrator may have made.
    machine.run(f"echo '# edited by the administrator' >> {CONFIG}")
    before = build_of(machine)
    opened = machine.show(SOCKET, "ActiveEnterTimestampMonotonic")
    package = place(machine, packages.newer)
    clients = {}

    def upgrade():
        with stream_of_clients(machine) as report:
            # The shipped file has changed as well, and dpkg cannot prompt which one to keep.
            keep = "--option Dpkg::Options::=--force-confold"
            machine.run(f"apt-get install --yes {keep} {package}")
        clients.update(report)

    report = survives(machine, upgrade, CONNECTIONS)
    expect(report["longest_pause"] < 1.0, f"a client waited too long: {report}")
    expect(clients["cut"] == 0, f"clients that connected meanwhile were cut off: {clients}")
    expect(build_of(machine) != before, "the old program still runs")
    reopened = machine.show(SOCKET, "ActiveEnterTimestampMonotonic")
    expect(opened == reopened, "the upgrade restarted the socket unit")
    taken = told(machine, "took over ")[-1]
    # A few of the clients that connected meanwhile may have been open at that moment.
    count = int(taken.split("took over ")[1].split()[0])
    expect(0 <= count - CONNECTIONS["connections"] <= 100, f"it says: {taken}")
    # And a second restart, from the new program, which recognises a restart by itself.
    survives(machine, lambda: machine.run(f"systemctl restart {SERVICE}"), CONNECTIONS)
    echoes(machine)
    return f"{report['connections']} kept, longest pause {report['longest_pause']} s"


def removal_leaves_nothing_of_both(machine, _packages):
    """After an upgrade purge leaves nothing either."""
    machine.run(PURGE)
    expect(not is_active(machine, SERVICE), "the service runs after purge")
    files = machine.run("find / /run -xdev -iname '*echo-uring*'").stdout.strip()
    expect(not files, f"purge left files:\n{files}")


FROM_THE_FIRST = "upgrade from 0.1.0"
NEED_BASELINE = {FROM_THE_FIRST}
STEPS = [
    (FROM_THE_FIRST, upgrade_from_the_first_version),
    ("purge after upgrade", removal_leaves_nothing_of_both),
]
