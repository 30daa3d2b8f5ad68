"""What happens to replies on their way: narrow routes, packet filters, slow and dead links."""

import random
import select
import time

from network import Failure, burst, eventually, expect, nothing_waits
from service import answers

# Shapes of a burst: bytes in all, and of each datagram.
SHAPES = ((4 * 1200, 1200), (30 * 1400 + 7, 1400), (64 * 100, 100), (10 * 1472, 1472))


def receive_all(client, payload, segment, what):
    """Checks the datagrams of a burst, in order."""
    for start in range(0, len(payload), segment):
        try:
            answer = client.recv(65536)
        except TimeoutError as error:
            raise Failure(f"{what}: nothing came after {start} of {len(payload)} bytes") from error
        expect(
            answer == payload[start : start + segment],
            f"{what}: {len(answer)} bytes in the place of {segment} from {start} on",
        )
    nothing_waits(client, what)


def both_families(world):
    """Clients of IPv4, IPv6, and IPv4 on a socket for both."""
    return (
        world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7)),
        world.client.udp(("fd00:7::2", 0), ("fd00:7::1", 7777)),
        world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7777)),
    )


def bursts_on_a_link(world):
    """Bursts over a link, passed whole and cut up by the sender; with and without GRO."""
    world.pair()
    daemon = world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"])
    for client_offload, server_offload in (
        ("tx-udp-segmentation on", "gro on"),
        ("tx-udp-segmentation off", "gro on"),
        ("tx-udp-segmentation off", "gro off"),
    ):
        world.client.run(f"ethtool -K v1 {client_offload}")
        world.server.run(f"ethtool -K v0 {server_offload}")
        for client in both_families(world):
            for total, segment in SHAPES:
                # 20 bytes more of header.
                segment -= 20 if segment == 1472 and client.getpeername()[1] == 7777 else 0
                payload = random.randbytes(total)
                what = f"{client_offload}, {server_offload}: {total} by {segment}"
                burst(client, payload, segment)
                receive_all(client, payload, segment, what)
    expect(not daemon.dropped(), f"{daemon.dropped()}")


def flows_of_two_classes(world):
    """Two flows from one address and port number of each, interleaved, of different TOS."""
    world.pair()
    world.client.run("ethtool -K v1 tx-udp-segmentation off")
    world.server.run("ethtool -K v0 gro on")
    daemon = world.daemon(["udp:0.0.0.0:7"])
    one = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7))
    two = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7))
    for number in range(200):
        payload = number.to_bytes(4, "big") * 100
        for client in (one, two):
            # IP_TOS changes within a flow as well: it must not be merged, nor overtake itself.
            client.setsockopt(0, 1, (0, 0xB8)[number % 2])
            client.send(payload)
    for client in (one, two):
        for number in range(200):
            answer = client.recv(65536)
            expect(answer == number.to_bytes(4, "big") * 100, f"{number} came back wrong")
    expect(daemon.figure("datagrams_sent") == 400, f"{daemon.listeners_now()}")


def narrow_route(world):
    """The route back is narrower than the datagrams: bursts go one by one, and fragmented."""
    world.pair()
    world.server.run(
        "ip route replace 10.7.0.0/24 dev v0 mtu 1000\n"
        "ip -6 route replace fd00:7::/64 dev v0 mtu 1280\n"
    )
    daemon = world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"])
    sent = 0
    for client in both_families(world):
        for total, segment in ((4 * 1200, 1200), (20 * 1400 + 7, 1400), (2 * 1300, 1300)):
            payload = random.randbytes(total)
            burst(client, payload, segment)
            receive_all(client, payload, segment, f"narrow route: {total} by {segment}")
            sent += -(-total // segment)
        for length in (1, 1200, 1452, 9000, 65_507):
            answers(client, random.randbytes(length))
            sent += 1
        # Narrow enough for bursts all the same.
        payload = random.randbytes(6000)
        burst(client, payload, 900)
        receive_all(client, payload, 900, "narrow route: 6000 by 900")
        sent += 7
    expect(daemon.figure("datagrams_sent") == sent, f"{sent}: {daemon.listeners_now()}")
    expect(not daemon.dropped(), f"{daemon.dropped()}")


def no_checksum_offload(world):
    """A device that computes no checksums takes no bursts on some kernels (EIO)."""
    world.pair()
    world.server.run("ethtool -K v0 tx off gso off")
    daemon = world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"])
    for client in both_families(world):
        payload = random.randbytes(20 * 1000 + 1)
        burst(client, payload, 1000)
        receive_all(client, payload, 1000, "no checksum offload")
    expect(not daemon.dropped(), f"{daemon.dropped()}")


def packet_filter(world):
    """A filter refuses replies to one client (EPERM): those are counted, others are served."""
    world.pair()
    world.client.run("ip address add 10.7.0.3/24 dev v1")
    world.server.run(
        "nft add table inet t\n"
        "nft add chain inet t out '{ type filter hook output priority 0; }'\n"
        "nft add rule inet t out ip daddr 10.7.0.3 udp sport 7 drop\n"
    )
    daemon = world.daemon(["udp:0.0.0.0:7"])
    other = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7))
    refused = world.client.udp(("10.7.0.3", 0), ("10.7.0.1", 7))
    for number in range(50):
        refused.send(b"refused")
        answers(other, number.to_bytes(2, "big"))
    burst(refused, b"x" * 1000, 100)
    answers(other, b"after a burst")
    daemon.wait_for_dropped(refused=60)
    nothing_waits(refused, "a reply passed the filter")
    world.server.run("nft flush ruleset")
    answers(refused, b"and served again")


def slow_link(world):
    """A link that is slower than what comes: what does not fit is counted, nothing waits for it."""
    world.pair()
    world.second_link()
    world.server.run("tc qdisc add dev w0 root tbf rate 1mbit burst 5kb limit 10mb")
    daemon = world.daemon(
        ["udp:0.0.0.0:7", "udp:0.0.0.0:7777", "10.7.0.1:7"], "[server]\nworkers = 1\n"
    )
    slow = world.client.udp(("10.8.0.2", 0), ("10.7.0.1", 7))
    other = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7777))
    longest = 0.0
    # The daemon asks for a send buffer of 4 MiB. The kernel doubles that and charges each of these
    # datagrams with more than 2 KiB (socket(7)): 4,000 of them do not fit.
    for number in range(6000):
        slow.send(bytes(1000))
        if number % 200 == 199:
            began = time.monotonic()
            answers(other, number.to_bytes(2, "big"))
            world.tcp_answers()
            longest = max(longest, time.monotonic() - began)
    eventually(daemon.balanced, lambda: f"a reply waits: {daemon.listeners_now()}")
    dropped = daemon.dropped()
    expect(set(dropped) == {"send-buffer"}, f"dropped {dropped}")
    expect(longest < 1.0, f"others waited for {longest:.3f} s")
    # What the socket holds goes out all the same, once there is a way.
    world.server.run("tc qdisc del dev w0 root")
    eventually(lambda: is_served(slow), "the slow client is not served again")
    return f"{dropped['send-buffer']} of 6000 dropped, others waited {1000 * longest:.0f} ms at most"


def dead_link(world):
    """The link of some clients goes down and comes back: the others are not affected."""
    world.pair()
    world.second_link()
    daemon = world.daemon(
        ["udp:0.0.0.0:7", "udp:0.0.0.0:7777", "10.7.0.1:7"], "[server]\nworkers = 1\n"
    )
    cut_off = world.client.udp(("10.8.0.2", 0), ("10.7.0.1", 7))
    other = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7777))
    answers(cut_off, b"before")
    for down, up in (
        # No carrier; no neighbour; no interface.
        ("ip link set w1 down", "ip link set w1 up; ip address replace 10.8.0.2/24 dev w1"),
        ("ip link set w1 arp off; ip neighbour flush all", "ip link set w1 arp on"),
    ):
        # The source stays ours in the meantime.
        world.client.run("ip address replace 10.8.0.2/32 dev lo")
        world.client.run(down)
        world.server.run("ip neighbour flush all")
        longest = 0.0
        for number in range(400):
            cut_off.send(bytes(1000))
            if number % 20 == 19:
                began = time.monotonic()
                answers(other, number.to_bytes(2, "big"))
                world.tcp_answers()
                longest = max(longest, time.monotonic() - began)
        eventually(daemon.balanced, lambda: f"a reply waits: {daemon.listeners_now()}")
        expect(longest < 1.0, f"others waited for {longest:.3f} s")
        world.client.run(up)
        eventually(lambda: is_served(cut_off), f"after `{up}` the client is not served again")
    world.server.run("ip link set w0 down")
    before = sum(daemon.dropped().values())
    cut_off.send(b"no route")
    eventually(
        lambda: sum(daemon.dropped().values()) > before, lambda: f"dropped {daemon.dropped()}"
    )
    answers(other, b"no matter")
    return f"dropped {daemon.dropped()}"


def is_served(client):
    """Whether an echo comes back soon; late ones are ignored."""
    word = random.randbytes(8)
    client.send(word)
    deadline = time.monotonic() + 0.5
    while (left := deadline - time.monotonic()) > 0:
        if select.select([client], [], [], left)[0] and client.recv(65536) == word:
            return True
    return False


CASES = [
    ("bursts on a link", bursts_on_a_link),
    ("flows of two classes", flows_of_two_classes),
    ("narrow route", narrow_route),
    ("no checksum offload", no_checksum_offload),
    ("packet filter", packet_filter),
    ("slow link", slow_link),
    ("dead link", dead_link),
]
