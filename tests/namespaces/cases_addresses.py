"""Which address a reply leaves from, and which datagrams are not answered for their addresses."""

import random
import socket

from network import expect, forge, nothing_waits
from service import answers

# As the documentation of [datagram] lists them.
REFLECTED = (7, 13, 17, 19, 37, 53, 69, 111, 123, 137, 161, 389, 500, 520, 1900, 5353, 11211)


def reply_address_ipv4(world):
    """Secondary address, address on lo, AnyIP, and a loopback address, on 0.0.0.0 and on [::]."""
    world.pair()
    world.server.run(
        "ip address add 10.7.0.77/24 dev v0\n"
        "ip address add 192.0.2.80/32 dev lo\n"
        "ip route add local 198.51.100.0/24 dev lo\n"
    )
    world.client.run(
        "ip route add 192.0.2.80 via 10.7.0.1; ip route add 198.51.100.0/24 via 10.7.0.1"
    )
    world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"])
    for port in (7, 7777):
        client = world.client.udp(("10.7.0.2", 0))
        for address in ("10.7.0.1", "10.7.0.77", "192.0.2.80", "198.51.100.1", "198.51.100.254"):
            for length in (0, 1, 1400, 20_000):
                answers(client, random.randbytes(length), (address, port))
        local = world.server.udp(("127.0.0.1", 0))
        for address in ("127.0.0.1", "127.9.9.9", "10.7.0.1", "10.7.0.77", "192.0.2.80"):
            answers(local, b"on lo", (address, port))
    return "5 addresses on either"


def reply_address_ipv6(world):
    """The same over IPv6, and link-local addresses with their scope."""
    world.pair()
    world.server.run(
        "ip address add fd00:7::77/64 dev v0 nodad\n"
        "ip address add 2001:db8::80/128 dev lo nodad\n"
        "ip -6 route add local 2001:db8:1::/64 dev lo\n"
    )
    world.client.run("ip -6 route add 2001:db8::/32 via fd00:7::1")
    world.daemon(["udp:[::]:7", "udp:[fe80::1%v0]:7777"])
    client = world.client.udp(("fd00:7::2", 0))
    for address in ("fd00:7::1", "fd00:7::77", "2001:db8::80", "2001:db8:1::1", "2001:db8:1::ff"):
        for length in (0, 1, 1400, 20_000):
            answers(client, random.randbytes(length), (address, 7))
    scope = world.client.index("v1")
    near = world.client.udp(("fe80::2", 0, 0, scope))
    for port in (7, 7777):
        for length in (0, 1, 1400, 65_527):
            answers(near, random.randbytes(length), ("fe80::1", port, 0, scope))


def two_links_with_one_scope(world):
    """The same link-local address on two links: each is answered on the link it came from."""
    world.pair()
    world.second_link()
    world.daemon(["udp:[::]:7"])
    for interface in ("v1", "w1"):
        scope = world.client.index(interface)
        client = world.client.udp(("fe80::2", 0, 0, scope))
        for _ in range(10):
            answers(client, interface.encode(), ("fe80::1", 7, 0, scope))


def direct_server_return(world):
    """Asked at a virtual address over one link, it answers from there over another link."""
    world.pair()
    world.second_link()
    # The balancer's part: the virtual address is reached over the first link alone, and the
    # client, which has an address of the second link, is reached over that alone.
    world.server.run(
        "ip address add 192.0.2.80/32 dev lo; ip -6 address add 2001:db8::80/128 dev lo"
    )
    world.client.run(
        "ip route add 192.0.2.80 via 10.7.0.1; ip -6 route add 2001:db8::80 via fd00:7::1"
    )
    world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"])
    for source, asked in (
        (("10.8.0.2", 0), ("192.0.2.80", 7)),
        (("10.8.0.2", 0), ("192.0.2.80", 7777)),
        (("fd00:8::2", 0), ("2001:db8::80", 7777)),
    ):
        client = world.client.udp(source)
        before = sent_on(world.server, "w0")
        for number in range(20):
            answers(client, number.to_bytes(2, "big"), asked)
        expect(
            sent_on(world.server, "w0") - before >= 20,
            "the replies did not take the route to the client",
        )


def sent_on(namespace, interface):
    """Packets that left on an interface."""
    return int(namespace.run(f"awk '$1 == \"{interface}:\" {{ print $11 }}' /proc/net/dev"))


def sent_to_many(world):
    """Datagrams to broadcast and multicast addresses are counted, and nothing is sent."""
    world.pair()
    # Of several sockets on one port, each would get one.
    world.daemon(["udp:0.0.0.0:7"], "[server]\nworkers = 1\n")
    client = world.client.udp(("10.7.0.2", 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    client.setsockopt(
        socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.7.0.2")
    )
    many = ("10.7.0.255", "255.255.255.255", "224.0.0.1", "239.1.1.1")
    # The kernel delivers datagrams of groups that were not joined only if that is requested.
    delivered = many[:3]
    for address in many:
        client.sendto(b"everyone", (address, 7))
    world.daemons[0].wait_for_dropped(destination=len(delivered))
    answers(client, b"one", ("10.7.0.1", 7))
    nothing_waits(client, "a broadcast was answered")


def sent_to_many_dual_stack(world):
    """The same on a socket for both families, for which the kernel reports less about IPv4."""
    world.pair()
    daemon = world.daemon(["udp:[::]:7"], "[server]\nworkers = 1\n")
    client = world.client.udp(("10.7.0.2", 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    client.setsockopt(
        socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.7.0.2")
    )
    # Groups of IPv4 that it did not join are not delivered to a socket of IPv6.
    for address in ("255.255.255.255", "239.1.1.1", "10.7.0.255"):
        client.sendto(b"everyone", (address, 7))
    scope = world.client.index("v1")
    near = world.client.udp(("fe80::2", 0, 0, scope))
    near.sendto(b"all nodes", ("ff02::1", 7, 0, scope))
    answers(client, b"one", ("10.7.0.1", 7))
    answers(near, b"one", ("fe80::1", 7, 0, scope))
    nothing_waits(client, "a broadcast was answered")
    nothing_waits(near, "a multicast was answered")
    # The broadcast address of a network looks like any other there; no route leads from it.
    daemon.wait_for_dropped(unroutable=1, destination=2)
    expect(daemon.figure("datagrams_sent") == 2, f"{daemon.listeners_now()}")


def forged_sources(world):
    """Sources that are no host, and port 0: those that the kernel delivers are counted."""
    world.pair()
    daemon = world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"])
    expected = {}
    for target in (("10.7.0.1", 7), ("10.7.0.1", 7777)):
        for source, reason in (
            (("10.7.0.2", 0), "source"),
            (("240.0.0.1", 4000), "source"),
            (("254.1.2.3", 4000), "source"),
            (("0.1.2.3", 4000), "source"),
            (("203.0.113.9", 4000), "unroutable"),
            # The kernel drops these itself: martians.
            (("255.255.255.255", 4000), None),
            (("224.0.0.1", 4000), None),
            (("10.7.0.1", 7), None),
            (("127.0.0.1", 4000), None),
        ):
            forge(world.client, source, target, interface="v1")
            if reason:
                expected[reason] = expected.get(reason, 0) + 1
                daemon.wait_for_dropped(**expected)
    for source, reason in (
        (("fd00:7::2", 0), "source"),
        (("2001:db8:9::9", 4000), "unroutable"),
        (("ff02::1", 4000), None),
        (("fd00:7::2", 53), "source-port"),
    ):
        forge(world.client, source, ("fd00:7::1", 7777), interface="v1")
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
            daemon.wait_for_dropped(**expected)
    # On lo the kernel delivers more of them.
    for source in (("240.0.0.1", 4000), ("0.1.2.3", 4000), ("127.0.0.1", 0)):
        for target in (("127.0.0.1", 7), ("127.0.0.1", 7777)):
            forge(world.server, source, target)
            expected["source"] += 1
            daemon.wait_for_dropped(**expected)
    # In front of the next ones, if anything of the others were still to come.
    client = world.client.udp(("10.7.0.2", 0))
    answers(client, b"a host", ("10.7.0.1", 7))
    answers(client, b"a host", ("10.7.0.1", 7777))
    daemon.wait_for_dropped(**expected)
    return f"{sum(expected.values())} dropped"


def own_address_forged(world):
    """On lo, forged datagrams from the very address and port that they are sent to."""
    world.pair()
    daemon = world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777", "udp:10.7.0.1:9999"])
    count = 0
    for target in (
        ("127.0.0.1", 7),
        ("10.7.0.1", 7),
        ("127.0.0.1", 7777),
        ("::1", 7777),
        ("10.7.0.1", 9999),
    ):
        forge(world.server, target, target)
        count += 1
        daemon.wait_for_dropped(own_address=count)
    # Another address of ours, with our port: that is a service of ours as well.
    forge(world.server, ("127.0.0.2", 7), ("127.0.0.1", 7))
    forge(world.server, ("10.7.0.1", 9999), ("127.0.0.1", 7))
    daemon.wait_for_dropped(own_address=count, source_port=2)
    expect(daemon.figure("datagrams_sent") == 0, "one of them was answered")


def source_ports(world):
    """Nothing is answered to the ports of the set; to others there is, privileged or not."""
    world.pair()
    daemon = world.daemon(["udp:0.0.0.0:7777"])
    for number, port in enumerate(REFLECTED, 1):
        with world.client.udp(("10.7.0.2", port)) as client:
            client.sendto(b"no answer", ("10.7.0.1", 7777))
            daemon.wait_for_dropped(source_port=number)
            nothing_waits(client, f"port {port} was answered")
    for port in (1, 9, 22, 443, 862, 1024, 40_000):
        with world.client.udp(("10.7.0.2", port)) as client:
            answers(client, b"answer", ("10.7.0.1", 7777))
    return f"{len(REFLECTED)} ports"


CASES = [
    ("reply address, IPv4", reply_address_ipv4),
    ("reply address, IPv6", reply_address_ipv6),
    ("two links, one scope", two_links_with_one_scope),
    ("direct server return", direct_server_return),
    ("sent to many", sent_to_many),
    ("sent to many, dual stack", sent_to_many_dual_stack),
    ("forged sources", forged_sources),
    ("own address forged", own_address_forged),
    ("source ports", source_ports),
]
