"""UDP on the sockets of the socket unit: side by side with TCP, one or several on a port, kept over
restarts and upgrades; see `steps.py`.

It knows `ListenDatagram=`, the journal, the status and the clients of `traffic.py`.
"""

import contextlib
import json
import signal
import time

from checks import LOOPBACK, SERVICE, SOCKET, drop_in, echoes, place, remove_drop_in
from machine import eventually, expect

# Datagrams a second of the load, over all flows. Some hundred of them arrive while one process ends
# and the next starts: more than a socket holds by default, less than a tenth of BUFFER.
RATE = 4000
BUFFER = "ReceiveBuffer=8M\n"


def listen(machine, *lines, alone=False):
    """Serves UDP at these addresses besides those of the shipped unit, or instead of them."""
    text = "[Socket]\n" + ("ListenStream=\n" if alone else "")
    drop_in(machine, SOCKET, "udp", text + "".join(f"{line}\n" for line in lines))
    restart_sockets(machine)


def restart_sockets(machine):
    machine.run(f"systemctl stop {SOCKET} {SERVICE} && systemctl start {SOCKET} {SERVICE}")


def addresses(count=1):
    """`count` sockets on each address of loopback."""
    return [f"ListenDatagram={address}" for address in ("127.0.0.1:7", "[::1]:7")] * count


def datagrams_come_back(machine, where=LOOPBACK):
    for address in where:
        report = machine.traffic("datagrams", "--address", address)
        expect(report["exact"], f"no exact echo of datagrams from {address}: {report}")


def figures(machine):
    """The listeners for datagrams, from the status."""
    return json.loads(machine.run("echo-uring status --json").stdout)["datagram_listeners"]


def figure(machine, name):
    return sum(listener[name] for listener in figures(machine))


def since_start(machine):
    """What the daemon has logged since it was started."""
    messages = machine.messages()
    starts = [number for number, text in enumerate(messages) if ": starting, kernel" in text]
    return messages[starts[-1] :]


@contextlib.contextmanager
def flows(machine):
    """Numbered datagrams at RATE in several flows while the body runs; yields their report."""
    process = machine.start_traffic("flows", "--rate", RATE)
    expect(process.stdout.readline().strip() == "ready", "the flows did not start")
    report = {}
    try:
        yield report
        # The daemon has to answer some of them after the event as well.
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGTERM)
        report.update(machine.finish_traffic(process))
    for fault in ("wrong", "doubled", "reordered"):
        expect(report[fault] == 0, f"datagrams were {fault}: {report}")
    expect(report["answered"] > RATE // 2, f"there was no load: {report}")


def served_beside_tcp(machine, _packages):
    """`ListenDatagram=` on port 7 beside TCP: every length, both addresses, and the journal."""
    listen(machine, *addresses())
    datagrams_come_back(machine)
    echoes(machine, length=1 << 20)
    for address in ("127.0.0.1:7", "[::1]:7"):
        wanted = f"listening on udp:{address} (echo, inherited)"
        expect(wanted in since_start(machine), f"the journal has no line `{wanted}`")
    hints = [text for text in since_start(machine) if "ReusePort=yes" in text]
    workers = int(machine.show(SERVICE, "StatusText").split()[-2])
    # One socket for each address: with more than two workers some workers have none.
    expect(len(hints) == (1 if workers > 2 else 0), f"{workers} workers, and it says {hints}")
    listeners = figures(machine)
    expect(len(listeners) == 2, f"the status has other listeners: {listeners}")
    return f"{figure(machine, 'datagrams_sent')} datagrams"


def recognised_by_nmap(machine, _packages):
    """nmap recognises the port as echo."""
    command = machine.in_its_network("nmap", "-n", "-Pn", "-sU", "-sV", "-p", "7", "127.0.0.1")
    output, _ = machine.start(command).communicate(timeout=90)
    line = [line.split() for line in output.splitlines() if line.startswith("7/udp")]
    expect(line and line[0][1:3] == ["open", "echo"], f"nmap says: {output}")
    return " ".join(line[0])


def first_datagram_starts_it(machine, _packages):
    """The first datagram to the socket starts the service and is answered, also without TCP."""
    machine.run(f"systemctl stop {SERVICE} && systemctl start {SOCKET}")
    datagrams_come_back(machine, LOOPBACK[:1])
    listen(machine, *addresses(), alone=True)
    datagrams_come_back(machine)
    machine.run(f"systemctl stop {SERVICE} && systemctl start {SOCKET}")
    datagrams_come_back(machine)
    report = machine.traffic("echo", "--address", "127.0.0.1")
    expect(report["refused"], f"there is a TCP listener: {report}")


def several_on_one_port(machine, _packages):
    """Several `ListenDatagram=` of one address with `ReusePort=yes`: every worker has one."""
    listen(machine, *addresses(4), BUFFER)
    datagrams_come_back(machine)
    hints = [text for text in since_start(machine) if "workers serve it" in text]
    expect(not hints, f"the journal says: {hints}")
    with flows(machine) as report:
        pass
    expect(report["lost"] == 0, f"datagrams were lost: {report}")
    listeners = figures(machine)
    expect(len(listeners) == 2, f"the status does not add up the sockets: {listeners}")
    return f"{report['answered']} answered in order"


def restart_loses_nothing(machine, _packages):
    """Restarts and a reload under load: each datagram that the sockets hold is answered."""
    with flows(machine) as report:
        for verb in ("restart", "try-restart", "reload", "restart"):
            machine.run(f"systemctl {verb} {SERVICE}")
            time.sleep(0.3)
        drops = figure(machine, "kernel_dropped")
    expect(drops == 0, f"the kernel dropped {drops} in spite of {BUFFER}")
    expect(report["lost"] == 0, f"datagrams were lost: {report}")
    return f"{report['answered']} answered, longest pause {report['longest_pause']} s"


def upgrade_loses_nothing(machine, packages):
    """`apt install` of another version under load: the same."""
    package = place(machine, packages.newer)
    opened = machine.show(SOCKET, "ActiveEnterTimestampMonotonic")
    pid = machine.show(SERVICE, "MainPID")
    with flows(machine) as report:
        machine.run(f"apt-get install --yes --allow-downgrades --reinstall {package}")
    expect(machine.show(SERVICE, "MainPID") != pid, "the service was not restarted")
    reopened = machine.show(SOCKET, "ActiveEnterTimestampMonotonic")
    expect(reopened == opened, "the upgrade restarted the socket unit")
    expect(report["lost"] == 0, f"datagrams were lost: {report}")
    return f"{report['answered']} answered, longest pause {report['longest_pause']} s"


def default_buffers_drop(machine, _packages):
    """With the kernel's default buffer a restart loses the datagrams that the buffer does not hold,
    and no others; the status counts them."""
    listen(machine, *addresses())
    before = figure(machine, "kernel_dropped")
    with flows(machine) as report:
        # Longer than a restart, so that the buffers certainly overflow.
        machine.run(f"systemctl kill --signal=STOP {SERVICE}")
        time.sleep(1)
        machine.run(f"systemctl kill --signal=CONT {SERVICE}")
        machine.run(f"systemctl restart {SERVICE}")
    drops = figure(machine, "kernel_dropped") - before
    expect(drops > 0, f"the kernel dropped nothing: {report}")
    expect(report["lost"] == drops, f"the kernel dropped {drops}, but: {report}")
    return f"{drops} of {report['sent']} dropped by the kernel, and counted"


def as_before(machine, _packages):
    """Without the drop-in there is no UDP: the port is closed."""
    remove_drop_in(machine, SOCKET, "udp")
    restart_sockets(machine)
    echoes(machine)
    report = machine.traffic("datagrams", "--address", "127.0.0.1")
    expect(report["refused"], f"port 7 of UDP is open: {report}")
    eventually(lambda: not figures(machine), 5, "the status knows of listeners for datagrams")


STEPS = [
    ("UDP beside TCP", served_beside_tcp),
    ("UDP and nmap", recognised_by_nmap),
    ("UDP activates", first_datagram_starts_it),
    ("UDP, several sockets", several_on_one_port),
    ("UDP restart", restart_loses_nothing),
    ("UDP upgrade", upgrade_loses_nothing),
    ("UDP default buffers", default_buffers_drop),
    ("UDP off", as_before),
]
