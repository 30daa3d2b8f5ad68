"""Network namespaces, links between them, and sockets in them: ordinary ones, and raw ones that
forge.

A namespace is held by a descriptor and ends with this program, however that ends. This file must
know nothing about the daemon.
"""

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import time

CLONE_NEWNET = 0x40000000
# What socket.py of older versions has no name for.
UDP_SEGMENT, UDP_GRO = 103, 104
ETH_P_ALL = 3
LIBC = ctypes.CDLL(None, use_errno=True)
# For what may take long on a loaded machine.
TIMEOUT_SECONDS = 20.0


def call(name, *arguments):
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


class Failure(Exception):
    """A requirement that was not met, in one sentence."""


def expect(condition, sentence):
    if not condition:
        raise Failure(sentence)


def eventually(attempt, sentence, seconds=TIMEOUT_SECONDS):
    """Calls `attempt` until it returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        outcome = attempt()
        if outcome:
            return outcome
        if time.monotonic() > deadline:
            raise Failure(f"{sentence() if callable(sentence) else sentence} (waited {seconds} s)")
        time.sleep(0.01)


class Namespace:
    """A network namespace with loopback up."""

    def __init__(self):
        with self.keeping():
            call("unshare", CLONE_NEWNET)
            self.handle = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.run("ip link set lo up")

    @staticmethod
    @contextlib.contextmanager
    def keeping():
        """Comes back to the present namespace."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield
        finally:
            call("setns", own, CLONE_NEWNET)
            os.close(own)

    def enter(self):
        call("setns", self.handle, CLONE_NEWNET)

    def run(self, script, timeout=TIMEOUT_SECONDS):
        """Runs a shell script in it."""
        process = subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            preexec_fn=self.enter,
        )
        if process.returncode != 0:
            raise RuntimeError(f"`{script}` ended with {process.returncode}: {process.stdout}")
        return process.stdout

    def socket(self, *arguments):
        with self.keeping():
            self.enter()
            return socket.socket(*arguments)

    def index(self, interface):
        with self.keeping():
            self.enter()
            return socket.if_nametoindex(interface)

    def close(self):
        os.close(self.handle)

    def udp(self, source=("0.0.0.0", 0), asked=None):
        """A client; with `asked` it receives from that address alone."""
        family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
        client = self.socket(family, socket.SOCK_DGRAM)
        client.settimeout(TIMEOUT_SECONDS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        client.bind(source)
        if asked:
            client.connect(asked)
        return client


def link(one, two, name, number):
    """A pair of interfaces: NAME0 in `one` with 10.NUMBER.0.1 and fd00:NUMBER::1, NAME1 in `two`
    with the same but the last figure 2. Addresses are usable at once."""
    # `ip` takes a path in the place of a name.
    target = f"/proc/{os.getpid()}/fd/{two.handle}"
    one.run(f"ip link add {name}0 type veth peer name {name}1 netns {target}")
    for namespace, end in ((one, 0), (two, 1)):
        interface = f"{name}{end}"
        namespace.run(
            f"echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad\n"
            f"ip link set {interface} up\n"
            f"ip address add 10.{number}.0.{end + 1}/24 brd + dev {interface}\n"
            f"ip address add fd00:{number}::{end + 1}/64 dev {interface} nodad\n"
            f"ip address add fe80::{end + 1}/64 dev {interface} nodad\n"
        )
    for namespace, end in ((one, 0), (two, 1)):
        eventually(
            lambda namespace=namespace, end=end: "LOWER_UP"
            in namespace.run(f"ip -o link show {name}{end}"),
            f"{name}{end} did not come up",
        )


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source, target, payload, family):
    """The UDP header and payload, with a checksum."""
    length = 8 + len(payload)
    addresses = socket.inet_pton(family, source[0]) + socket.inet_pton(family, target[0])
    pseudo = addresses + struct.pack("!II", length, socket.IPPROTO_UDP)
    header = struct.pack("!HHHH", source[1], target[1], length, 0)
    total = checksum(pseudo + header + payload) or 0xFFFF
    return header[:6] + struct.pack("!H", total) + payload


def forge(namespace, source, target, payload=b"forged", interface=None):
    """Sends a datagram with any source address and port."""
    if ":" in source[0]:
        body = datagram(source, target, payload, socket.AF_INET6)
        packet = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_UDP, 64)
        packet += socket.inet_pton(socket.AF_INET6, source[0])
        packet += socket.inet_pton(socket.AF_INET6, target[0]) + body
        family, kind = socket.AF_INET6, socket.IPPROTO_RAW
    else:
        body = datagram(source, target, payload, socket.AF_INET)
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_UDP, 0)
        packet += socket.inet_aton(source[0]) + socket.inet_aton(target[0]) + body
        family, kind = socket.AF_INET, socket.IPPROTO_RAW
    with namespace.socket(family, socket.SOCK_RAW, kind) as raw:
        if interface:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        raw.sendto(packet, (target[0], 0))


class Tap:
    """Counts the UDP datagrams that pass an interface, in either direction."""

    def __init__(self, namespace, interface):
        self.socket = namespace.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
        )
        # SO_RCVBUFFORCE, as it is read only at the end.
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)
        self.socket.bind((interface, ETH_P_ALL))
        self.socket.setblocking(False)
        self.ports = []

    def seen(self):
        """Source and target port of each so far."""
        while select.select([self.socket], [], [], 0)[0]:
            packet, address = self.socket.recvfrom(65536)
            start = {0x0800: 20, 0x86DD: 40}.get(address[1])
            protocol = {20: 9, 40: 6}.get(start)
            if start and packet[protocol] == socket.IPPROTO_UDP:
                self.ports.append(struct.unpack("!HH", packet[start : start + 4]))
        return self.ports


def burst(client, payload, segment):
    """Sends the payload as datagrams of `segment` bytes in one call."""
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
    expect(client.sendmsg([payload], control) == len(payload), "a burst was sent in part")


def nothing_waits(client, what):
    """Checks that the socket has received nothing so far."""
    if select.select([client], [], [], 0)[0]:
        data, source = client.recvfrom(65536)
        raise Failure(f"{what}: {len(data)} bytes came from {source}")
