"""What several steps use: an exact echo, a balanced account, a stream of clients.

This file must know nothing about the order of the steps.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import time

from machine import expect

SERVICE = "echo-uring.service"
SOCKET = "echo-uring.socket"
LOOPBACK = ("127.0.0.1", "::1")
CONFIG = "/etc/echo-uring.toml"
STOPPED = re.compile(
    r"stopped: accepted=(\d+) refused=(\d+) closed=(\d+) "
    r"bytes-in=(\d+) bytes-out=(\d+) bytes-dropped=(\d+) "
    r"buffers-home=(\d+) buffers-total=(\d+)"
    r"(?: taken-over=(\d+) bytes-taken-over=(\d+) bytes-handed-over=(\d+))?"
)


def place(machine, package):
    """Copies a package into the machine under a name that the check after `purge` ignores."""
    shutil.copyfile(package, machine.root / "var/tmp/package.deb")
    return "/var/tmp/package.deb"


def place_client(machine, packages):
    """The same for the package of echo-load, beside the daemon's."""
    shutil.copyfile(packages.client, machine.root / "var/tmp/client.deb")
    return "/var/tmp/client.deb"


def echoes(machine, addresses=LOOPBACK, length=1, port=7):
    """Demands an exact echo from each address."""
    for address in addresses:
        report = machine.traffic("echo", "--address", address, "--bytes", length, "--port", port)
        expect(report["exact"], f"no exact echo from port {port} of {address}: {report}")


def is_active(machine, unit):
    return machine.show(unit, "ActiveState") == "active"


def drop_in(machine, unit, name, text):
    """Adds a drop-in that ends with the machine's uptime at the latest."""
    directory = f"/run/systemd/system/{unit}.d"
    machine.run(f"mkdir -p {directory} && cat > {directory}/{name}.conf <<'END'\n{text}\nEND")
    machine.run("systemctl daemon-reload")


def remove_drop_in(machine, unit, name):
    directory = f"/run/systemd/system/{unit}.d"
    machine.run(f"rm {directory}/{name}.conf && rmdir {directory} && systemctl daemon-reload")


def stop_all(machine):
    machine.run(f"systemctl stop {SOCKET} {SERVICE}")


def start_all(machine):
    machine.run(f"systemctl start {SERVICE}")


def balance(stopped):
    """Demands that the account of one orderly stop balances; returns its figures."""
    figures = (int(figure or 0) for figure in stopped.groups())
    accepted, refused, closed, received, sent, dropped, home, total, *handover = figures
    taken_over, bytes_taken_over, bytes_handed_over = handover
    line = stopped.group(0)
    expect(accepted + taken_over == refused + closed, f"connections do not balance: {line}")
    came, left = received + bytes_taken_over, sent + dropped + bytes_handed_over
    expect(came == left, f"bytes do not balance: {line}")
    expect(home == total, f"buffers do not balance: {line}")
    return {"accepted": accepted, "refused": refused, "received": received, "dropped": dropped}


def last_account(machine):
    """The figures of the daemon's last orderly stop, which must balance."""
    accounts = [match for match in map(STOPPED.search, machine.messages()) if match]
    expect(accounts, "the journal has no line `stopped: …` of an orderly stop")
    return balance(accounts[-1])


def workers_of(pid):
    """The threads of the daemon that wait in io_uring_enter (426 on every architecture)."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "syscall").read_text().split()[0] == "426":
                found.append(int(task.name))
    return found


@contextlib.contextmanager
def stream_of_clients(machine):
    """New connections while the body runs; yields a dictionary for their report afterwards."""
    process = machine.start_traffic("stream")
    expect(process.stdout.readline().strip() == "ready", "the stream of clients did not start")
    report = {}
    try:
        yield report
        # The daemon has to answer some of them after the event as well.
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGTERM)
        report.update(machine.finish_traffic(process))
    expect(report["refused"] == 0, f"clients were refused: {report}")
    expect(report["forgotten"] == 0, f"clients got no answer: {report}")
    expect(report["wrong"] == 0, f"clients got wrong bytes: {report}")
    expect(report["echoed"] > 0, f"no client was served: {report}")


@contextlib.contextmanager
def no_message_bus(machine):
    """While the body runs there is no system bus; afterwards there is one again."""
    bus = "dbus.socket dbus.service"
    machine.run(f"systemctl mask --runtime --now {bus} && rm -f /run/dbus/system_bus_socket")
    try:
        yield
    finally:
        # logind does not reconnect to the bus, and its callers would wait for 25 s.
        machine.run(
            f"systemctl unmask --runtime {bus} && systemctl start dbus.socket && "
            "systemctl try-restart systemd-logind.service"
        )


def filters_need_privilege():
    """Whether this kernel refuses socket filters on TCP sockets without CAP_NET_ADMIN."""
    accept_all = ctypes.create_string_buffer(struct.pack("@HBBI", 6, 0, 0, 0xFFFFFFFF))
    program = struct.pack("@HP", 1, ctypes.addressof(accept_all))
    child = os.fork()
    if child == 0:
        refused = 2
        try:
            os.setuid(65534)
            with socket.socket() as probe:
                # SO_ATTACH_FILTER
                probe.setsockopt(socket.SOL_SOCKET, 26, program)
            refused = 0
        except PermissionError:
            refused = 1
        finally:
            os._exit(refused)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    expect(status in (0, 1), f"it cannot be tried whether a filter is refused: {status}")
    return status == 1
