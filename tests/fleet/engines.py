"""The balancers: how each is started, and told of a server that leaves or returns.

Each has its configuration in a file of this directory. This file must know nothing of the events,
which are in inside.py; it says how many exchanges an event may cost, and why.
"""

import collections
import csv
import math
import pathlib
import shlex
import socket
import subprocess
import threading

from load import ESTABLISHED, IN_FLIGHT, RATE
from network import TIMEOUT_SECONDS, eventually, expect
from server import PORT
from topology import BALANCER, CLIENT, SERVICE, hardware_address, server_address

HERE = pathlib.Path(__file__).resolve().parent
# What a client sends before it half-closes, and nginx's port without proxy_half_close.
HALF_CLOSE_BYTES, LOSING_PORT = 4_000_000, 7079
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


class Nginx(Engine):
    name = "nginx"
    configuration = pathlib.Path("/run/nginx.conf")

    def start(self):
        self.own_service_address()
        self.configuration.write_text((HERE / "nginx.conf").read_text())
        self.process = self.spawn(self.topology.balancer, *self.command("-g", "daemon off;"))
        eventually(
            lambda: pathlib.Path("/run/nginx.pid").exists(), lambda: f"no nginx: {self.log()}"
        )

    def command(self, *options):
        return ["nginx", "-c", str(self.configuration), *options]

    def reload(self, old, new):
        text = self.configuration.read_text()
        expect(old in text, f"nginx.conf does not have {old!r}")
        self.configuration.write_text(text.replace(old, new))
        self.topology.balancer.run(shlex.join(self.command("-q", "-s", "reload")))

    def withdraw(self, index):
        address = f"server {server_address(index)}:{PORT}"
        self.reload(f"{address} ", f"{address} down ")

    def readmit(self, index):
        address = f"server {server_address(index)}:{PORT}"
        self.reload(f"{address} down ", f"{address} ")

    def kill_bound(self, _seconds):
        return (
            IN_FLIGHT,
            "the exchanges that the killed daemon had; refused connections are tried elsewhere",
        )

    def verify(self):
        """nginx passes the half-close on if it is told to, and else loses bytes."""
        kept, lost = (self.after_half_close(port) for port in (PORT, LOSING_PORT))
        expect(kept == HALF_CLOSE_BYTES, f"with proxy_half_close {kept} bytes come back")
        expect(
            lost < HALF_CLOSE_BYTES, "nothing is lost without proxy_half_close: it is not needed"
        )
        print(f"nginx      half-close: {kept} bytes come back, without the option {lost}")
        return {"event": "half-close", "bytes": kept, "bytes_without_option": lost}

    def after_half_close(self, port):
        """How many bytes come back to a client that sends all of them and half-closes."""
        client = self.topology.client.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.settimeout(TIMEOUT_SECONDS)
        client.connect((SERVICE, port))

        def send():
            client.sendall(bytes(HALF_CLOSE_BYTES))
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = 0
        try:
            while part := client.recv(65536):
                received += len(part)
        except ConnectionResetError:
            pass
        sender.join()
        client.close()
        return received


class Nftables(Engine):
    """What changes elements of maps: withdraw gives those of a server to its neighbour."""

    def start(self):
        self.balancer(f"nft -f {HERE / self.file}")

    def balancer(self, script):
        return self.topology.balancer.run(script)

    def assign(self, index, server):
        """The element `index` of each map now leads to `server`, in one transaction."""
        target = self.target(server)
        changes = "".join(
            f"delete element {self.table} {name} {{ {index} }}\n"
            f"add element {self.table} {name} {{ {index} : {target} }}\n"
            for name in self.maps
        )
        self.balancer(f"nft -f - <<'END'\n{changes}END\n")

    def withdraw(self, index):
        self.assign(index, (index + 1) % len(self.servers))

    def readmit(self, index):
        self.assign(index, index)


class Dnat(Nftables):
    name, file = "nftables", "dnat.nft"
    table, maps = "ip fleet", ("connections", "datagrams")
    has_datagrams = True

    @staticmethod
    def target(server):
        return server_address(server)

    def withdraw(self, index):
        super().withdraw(index)
        # Datagrams of known sources would go on to the server, for as long as they come.
        self.balancer(
            f"conntrack -D -p udp --reply-src {server_address(index)} >/dev/null 2>&1 || true"
        )

    def kill_bound(self, seconds):
        return share_of_one(seconds), "the map does not change: one connection of four is refused"


class DirectReturn(Nftables):
    name, file = "dsr", "dsr.nft"
    table, maps = "netdev fleet", ("servers",)
    has_datagrams = True
    keeps_established = False

    @staticmethod
    def target(server):
        return hardware_address(server)

    def start(self):
        give_service_address_to_servers(self.topology)
        super().start()

    def drain_bound(self):
        return moved(2 * len(self.servers))

    def kill_bound(self, seconds):
        return share_of_one(seconds), "the map does not change: a quarter of the ports is refused"


class Bird(Engine):
    name = "bird"
    keeps_established = False
    has_datagrams = True

    def start(self):
        give_service_address_to_servers(self.topology)
        self.topology.balancer.run("sysctl -qw net.ipv4.fib_multipath_hash_policy=1")
        self.bird(self.topology.balancer, "bird-router.conf", "router")
        for index, namespace in enumerate(self.topology.servers):
            self.bird(namespace, "bird-server.conf", index)

    def bird(self, namespace, configuration, name):
        self.spawn(
            namespace, "bird", "-f", "-c", str(HERE / configuration), "-s", f"/run/bird-{name}.ctl"
        )

    def control(self, index, command):
        self.topology.servers[index].run(f"birdc -s /run/bird-{index}.ctl {command} anycast")

    def withdraw(self, index):
        self.control(index, "disable")

    def readmit(self, index):
        self.control(index, "enable")

    def is_in_use(self, index):
        routes = self.topology.balancer.run(f"ip route show {SERVICE}")
        return server_address(index) in routes

    def drain_bound(self):
        return moved(2 * len(self.servers))

    def kill_bound(self, seconds):
        return share_of_one(
            seconds
        ), "BGP watches the machine alone: a quarter of the ports is refused"


class Keepalived(Engine):
    name = "keepalived"
    keeps_established = False

    def start(self):
        check = pathlib.Path("/usr/local/sbin/echo-check")
        # keepalived refuses a script that users other than root can write.
        check.write_text((HERE / "echo-check").read_text())
        check.chmod(0o755)
        self.topology.balancer.run(f"ip route add {SERVICE}/32 dev br0")
        for index, namespace in enumerate(self.topology.servers):
            pids = [
                f"--{kind}pid=/run/keepalived-{index}{suffix}.pid" for kind, suffix in PID_FILES
            ]
            command = ["keepalived", "--dont-fork", "--log-console", "--vrrp", *pids]
            configuration = f"--use-file={HERE / 'keepalived.conf'}"
            self.spawn(namespace, *command, configuration, f"--config-id=s{index}")

    def holders(self):
        """The servers that have the service address."""
        return [
            index
            for index, namespace in enumerate(self.topology.servers)
            if SERVICE in namespace.run("ip address show dev eth0")
        ]

    def victim(self):
        return self.holders()[0]

    def is_in_use(self, index):
        """The server is able to take over, and one of them has the address."""
        return self.servers[index].is_serving() and len(self.holders()) == 1

    def drain_bound(self):
        return moved(len(self.servers))

    def kill_bound(self, _seconds):
        # Two checks a second apart, of a second each at most, and then VRRP's skew time.
        return RATE * 4 + IN_FLIGHT, "two checks, and VRRP until another server takes over"


# Their names among keepalived's options, and what tells their files apart.
PID_FILES = (("", ""), ("vrrp_", "-vrrp"))


def give_service_address_to_servers(topology):
    for server in topology.servers:
        server.run(
            "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2\n"
            f"ip address add {SERVICE}/32 dev lo\n"
        )


def moved(moves):
    """What moves may cost: each of them all exchanges in flight."""
    return IN_FLIGHT * moves, MOVED


def share_of_one(seconds):
    """What one server of four gets, if ports choose, but for one chance in a million."""
    total = RATE * seconds
    return math.ceil(total / 4 + 5 * math.sqrt(total * 3 / 16)) + IN_FLIGHT


ENGINES = {engine.name: engine for engine in (HAProxy, Nginx, Dnat, DirectReturn, Bird, Keepalived)}
