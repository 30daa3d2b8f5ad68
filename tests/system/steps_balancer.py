"""A real HAProxy before the daemon, with the agent-check, as the shipped examples set it up.

HAProxy runs on the host, in the machine's network.
"""

import csv
import pathlib
import socket
import subprocess
import tempfile
import time

from checks import CONFIG, SERVICE, echoes, is_active
from machine import eventually, expect
from steps_examples import DIRECTORY, instructions

AGENT_SOCKET = "echo-uring-agent.socket"
# Where the example has its frontend, and the socket for administrators.
FRONTEND = 7077
ADMIN = "/run/haproxy-echo.sock"


def status(path, proxy=None):
    """The state that HAProxy gives the echo server (of `proxy`, if it has several), by its socket at
    `path`; None while it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(path))
        except OSError:
            return None
        connection.sendall(b"show stat\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    rows = csv.DictReader(text.removeprefix("# ").splitlines())
    return next(
        row["status"]
        for row in rows
        if row["svname"] == "first" and proxy in (None, row["pxname"])
    )


def balanced(machine, path):
    """The checks, with a HAProxy whose admin socket is at `path`."""
    eventually(lambda: status(path) == "UP", 15, "HAProxy does not call the server UP")
    echoes(machine, ["127.0.0.1"], length=1 << 20, port=FRONTEND)

    # A restart keeps all connections, so it announces nothing; a stop does.
    clients = machine.start_traffic("through", "--port", FRONTEND)
    expect(clients.stdout.readline().strip() == "ready", "no echo through HAProxy")
    restart = machine.start(machine.inside(f"systemctl restart {SERVICE}"))
    seen = {status(path)}
    until = time.monotonic() + 4
    while restart.poll() is None or time.monotonic() < until:
        seen.add(status(path))
        time.sleep(0.05)
    expect(seen == {"UP"}, f"during a restart HAProxy saw {seen}")

    started = time.monotonic()
    machine.run(f"systemctl stop --no-block {SERVICE}")
    eventually(lambda: "DRAIN" in status(path), 4, "HAProxy does not say DRAIN")
    seconds = time.monotonic() - started
    # Still in the lead time: a client that does not connect through HAProxy is still served.
    echoes(machine)
    expect(machine.show(SERVICE, "ActiveState") == "deactivating", "the lead time was over")
    clients.terminate()
    report = machine.finish_traffic(clients)
    expect(not report["fault"], f"a connection through HAProxy had a fault: {report}")
    eventually(lambda: not is_active(machine, SERVICE), 20, "the service does not stop")
    machine.run(f"systemctl start {SERVICE}")
    eventually(lambda: status(path) == "UP", 15, "HAProxy does not call the server UP again")
    echoes(machine, ["127.0.0.1"], port=FRONTEND)
    return f"UP through a restart, DRAIN {seconds:.1f} s after the begin of a stop"


def haproxy_is_told(machine, _packages):
    """HAProxy says DRAIN before accepting stops, and nothing during a restart."""
    example = machine.run(f"cat {DIRECTORY}/{AGENT_SOCKET}").stdout
    machine.run(f"cp -p {CONFIG} /var/tmp/saved.toml")
    machine.run(f"""sed -i 's/^drain-lead = .*/drain-lead = "6s"/' {CONFIG}""")
    machine.run("set -e\n" + "\n".join(instructions(example)))
    complaints = machine.run(f"systemd-analyze verify --man=no {AGENT_SOCKET}").stdout.strip()
    expect(not complaints, f"systemd-analyze verify says: {complaints}")
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "admin.sock"
        text = machine.run(f"cat {DIRECTORY}/haproxy.cfg").stdout
        expect(ADMIN in text, f"haproxy.cfg does not name {ADMIN}")
        config = pathlib.Path(directory) / "haproxy.cfg"
        config.write_text(text.replace(ADMIN, str(path)))
        command = ["haproxy", "-c", "-q", "-f", config]
        check = subprocess.run(command, capture_output=True, text=True, check=False)
        warnings = check.stdout + check.stderr
        expect(check.returncode == 0 and not warnings, f"haproxy -c says: {warnings}")
        haproxy = machine.start(machine.in_its_network("haproxy", "-db", "-f", config))
        try:
            remark = balanced(machine, path)
        finally:
            haproxy.terminate()
            haproxy.wait()
    machine.run(f"mv /var/tmp/saved.toml {CONFIG}")
    machine.run(
        f"systemctl disable --now {AGENT_SOCKET}; rm /etc/systemd/system/{AGENT_SOCKET};"
        f" systemctl daemon-reload && systemctl restart {SERVICE}"
    )
    return remark


STEPS = [("HAProxy", haproxy_is_told)]
