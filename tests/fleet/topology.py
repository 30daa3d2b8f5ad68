"""The network of the fleet: a client, a balancer that is the router as well, four servers.

    client 10.90.1.2 --- 10.90.1.1 balancer 10.90.0.1 --- bridge --- servers 10.90.0.11 to .14

The client's packets for the service address 10.90.2.1 go to the balancer; who has that address
depends on the engine. All of it ends with this program. This file must know nothing of any engine.
"""

import os

from network import Namespace

SERVERS = 4
BALANCER = "10.90.0.1"
CLIENT = "10.90.1.2"
SERVICE = "10.90.2.1"


def server_address(index):
    return f"10.90.0.{11 + index}"


def hardware_address(index):
    return f"02:00:00:90:00:{11 + index}"


class Topology:
    def __init__(self):
        self.client, self.balancer = Namespace(), Namespace()
        self.servers = [Namespace() for _ in range(SERVERS)]
        self.balancer.run(
            "sysctl -qw net.ipv4.ip_forward=1\n"
            # A server may answer for an address that is routed elsewhere (ECMP, direct return).
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0\n"
            "ip link add br0 type bridge\n"
            f"ip address add {BALANCER}/24 dev br0\n"
            "ip link set br0 up\n"
        )
        self.join(self.client, "client")
        self.balancer.run("ip address add 10.90.1.1/24 dev client; ip link set client up")
        self.client.run(
            f"ip address add {CLIENT}/24 dev eth0; ip link set eth0 up\n"
            "ip route add default via 10.90.1.1\n"
            # Room for a minute of closed connections.
            "sysctl -qw net.ipv4.ip_local_port_range='10000 65000'\n"
        )
        for index, server in enumerate(self.servers):
            self.join(server, f"s{index}")
            self.balancer.run(f"ip link set s{index} master br0 up")
            server.run(
                f"ip link set eth0 address {hardware_address(index)} up\n"
                f"ip address add {server_address(index)}/24 dev eth0\n"
                f"ip route add default via {BALANCER}\n"
            )

    def join(self, other, name):
        """NAME in the balancer's namespace, and eth0 in the other."""
        target = f"/proc/{os.getpid()}/fd/{other.handle}"
        self.balancer.run(f"ip link add {name} type veth peer name eth0 netns {target}")

    def close(self):
        for namespace in (self.client, self.balancer, *self.servers):
            namespace.close()
