"""The balancers: how each is started, and told of a server that leaves or returns.

Each has its configuration in a file of this directory. This file must know nothing of the events,
which are in inside.py; it says how many exchanges an event may cost, and why.
"""

import collections
import csv
import pathlib
import socket
import subprocess

from load import ESTABLISHED, IN_FLIGHT
from network import eventually, expect
from topology import BALANCER, CLIENT, SERVICE

HERE = pathlib.Path(__file__).resolve().parent
# Why connections fail where the balancer does not remember where they are.
MOVED = "a connection whose path moves meets a server that does not know it, and is reset"


class Engine:
    """What an engine does unless it says otherwise."""

    # Whether connections stay where they are when servers leave or return.
    keeps_established = True
    # Whether the engine forwards UDP.
    has_datagrams = False

    def __init__(self, topology, servers):
        self.topology, self.servers = topology, servers
        self.processes = []

    def spawn(self, namespace, *command):
        """A program in a namespace that ends with the engine."""
        log = open(f"/tmp/{self.name}.log", "ab")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=namespace.enter
        )
        log.close()
        self.processes.append(process)
        return process

    def own_service_address(self):
        self.topology.balancer.run(f"ip address add {SERVICE}/32 dev lo")

    def withdraw(self, index):
        """New connections are to go elsewhere. By default the engine asks the daemon itself."""

    def readmit(self, index):
        """The server has started again."""

    def is_in_use(self, index):
        """Whether the engine gives new connections to the server."""
        return True

    def wait_until_in_use(self, index):
        eventually(
            lambda: self.is_in_use(index), lambda: f"server {index} is not in use: {self.log()}"
        )

    def drain_bound(self):
        """How many exchanges may fail while all servers are drained once, and why."""
        return 0, "new connections go elsewhere before the daemon ceases to accept"

    def established_bound(self):
        """The same of the connections that stay, beyond those that the drain ends in order."""
        if self.keeps_established:
            return 0, "they stay with their server until the end of its drain"
        return ESTABLISHED, MOVED

    def restart_bound(self):
        return 0, "the sockets stay open, and the next process takes over the connections"

    def log(self):
        path = pathlib.Path(f"/tmp/{self.name}.log")
        return path.read_text()[-3000:] if path.exists() else ""

    def victim(self):
        """The server to kill."""
        return 0

    def verify(self):
        """What else the engine owes, after all events; counts, if there are some."""

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


class HAProxy(Engine):
    name = "haproxy"

    def start(self):
        self.own_service_address()
        configuration = str(HERE / "haproxy.cfg")
        check = subprocess.run(
            ["haproxy", "-c", "-q", "-f", configuration], capture_output=True, text=True
        )
        expect(check.returncode == 0 and not check.stderr, f"haproxy -c says: {check.stderr}")
        self.spawn(self.topology.balancer, "haproxy", "-db", "-f", configuration)

    def status(self):
        """What HAProxy says of each server."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                connection.connect("/run/haproxy.sock")
            except OSError:
                return {}
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows}

    def is_in_use(self, index):
        row = self.status().get(f"s{index}", {})
        # Without the agent's word a server that leaves would be in use until the next one.
        return row.get("status") == "UP" and row.get("agent_status") == "L7OK"

    def verify(self):
        """The daemons know the client by the headers. HAProxy's checks announce nobody (LOCAL)."""
        # "connection from 10.90.1.2 accepted at proxied"
        lines = [
            line
            for server in self.servers
            for line in server.lines
            if "accepted at proxied" in line
        ]
        peers = collections.Counter(line.split(" from ")[1].split()[0] for line in lines)
        expect(set(peers) == {CLIENT, BALANCER}, f"behind HAProxy the daemons know of {peers}")
        expect(peers[CLIENT] > peers[BALANCER], f"there are more checks than connections: {peers}")

    def kill_bound(self, _seconds):
        return (
            IN_FLIGHT,
            "the exchanges that the killed daemon had; refused connections are tried elsewhere",
        )


ENGINES = {engine.name: engine for engine in (HAProxy,)}
