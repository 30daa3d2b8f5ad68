"""Two daemons that are tricked into answering each other, and sources that send too much."""

import time

from network import Tap, burst, eventually, expect, forge, nothing_waits
from service import answers

LEAST = "[datagram]\ndatagrams-per-source = 128\n"


def silence(world, first, second):
    """Waits until no datagram is in flight between two daemons, the forged one included, so that
    none will follow; returns how many passed the link."""

    def quiet():
        before = [daemon.balanced() for daemon in (first, second)]
        if not all(before):
            return False
        crossing = [
            first.figure("datagrams_received") - second.figure("datagrams_sent"),
            second.figure("datagrams_received") - first.figure("datagrams_sent"),
        ]
        # One of the two got the forged one, which the other never sent.
        return sorted(crossing) == [0, 1] and before == [
            daemon.balanced() for daemon in (first, second)
        ]

    eventually(quiet, lambda: f"no silence: {first.listeners_now()} {second.listeners_now()}")
    passed = len(world.tap.seen())
    sent = first.figure("datagrams_sent") + second.figure("datagrams_sent")
    expect(passed == sent + 1, f"{passed} passed, but {sent} and the forged one were sent")
    return passed


def loop(world, ports, config="", forged_by=0):
    """Two daemons, one in each namespace, and one datagram that seems to come from the other."""
    world.pair()
    world.tap = Tap(world.server, "v0")
    sides = ((world.server, "10.7.0.1"), (world.client, "10.7.0.2"))
    daemons = [
        world.daemon([f"udp:0.0.0.0:{port}"], config, namespace)
        for (namespace, _), port in zip(sides, ports)
    ]
    (namespace, source), target = sides[forged_by], sides[1 - forged_by][1]
    forge(namespace, (source, ports[forged_by]), (target, ports[1 - forged_by]))
    passed = silence(world, *daemons)
    dropped = [daemon.dropped() for daemon in daemons]
    return passed, dropped


def loop_on_one_port(world):
    """Both on port 7, both on a port that is in no set: one datagram, and silence."""
    for ports in ((7, 7), (7777, 7777)):
        passed, dropped = loop(world, ports)
        expect(passed == 1, f"{passed} datagrams passed")
        expect(dropped == [{}, {"source-port": 1}], f"dropped {dropped}")
        world.reset()


def loop_on_ports_of_the_set(world):
    """Ports of the set on one side or on both: two datagrams at most."""
    for ports, forged_by, most in (
        ((7, 19), 0, 1),
        ((7, 19), 1, 1),
        ((7777, 7), 0, 2),
        ((7777, 7), 1, 1),
        ((53, 11211), 0, 1),
    ):
        passed, dropped = loop(world, ports, forged_by=forged_by)
        expect(passed == most, f"{ports}, {forged_by}: {passed} datagrams passed, not {most}")
        total = sum(sum(each.values()) for each in dropped)
        expect(total == 1, f"dropped {dropped}")
        world.reset()


def loop_on_other_ports(world):
    """On other pairs of ports the bucket of the source ends it, and that is counted."""
    began = time.monotonic()
    passed, dropped = loop(world, (7777, 8888), LEAST)
    seconds = time.monotonic() - began
    expect(
        sorted(map(str, dropped)) == ["{'source-datagrams': 1}", "{}"], f"dropped {dropped}"
    )
    # A second's worth at once and what came in since, of each side, and the leases.
    most = 2 * (128 * (1 + seconds) + 2 * 2 + 8)
    expect(200 < passed < most, f"{passed} datagrams in {seconds:.2f} s, at most {most:.0f}")
    return f"{passed} datagrams, then silence"


def loop_by_bytes(world):
    """The same by the bytes of the source alone."""
    passed, dropped = loop(
        world,
        (7777, 8888),
        '[datagram]\ndatagrams-per-source = "off"\nbytes-per-source = "64KiB"\n',
    )
    expect(
        sorted(map(str, dropped)) == ["{'source-bytes': 1}", "{}"], f"dropped {dropped}"
    )
    # 65,536 bytes of each side at once, of 6 bytes each.
    expect(passed > 20_000, f"{passed} datagrams passed")
    return f"{passed} datagrams of 6 bytes, then silence"


def sources_have_limits(world):
    """A source gets its datagrams a second and no more; others are not affected; a reload applies."""
    world.pair()
    world.client.run("ip address add 10.7.0.3/24 dev v1; ip address add fd00:7::3/64 dev v1 nodad")
    daemon = world.daemon(["udp:0.0.0.0:7", "udp:[::]:7777"], LEAST)
    for source, target in (
        (("10.7.0.2", 0), ("10.7.0.1", 7)),
        (("fd00:7::2", 0), ("fd00:7::1", 7777)),
    ):
        before = daemon.listeners_now()
        began = time.monotonic()
        greedy = world.client.udp(source, target)
        for _ in range(1000):
            greedy.send(b"too many")
        answered = wait_for(daemon, before, 1000)
        most = 128 * (1 + time.monotonic() - began) + 8
        expect(128 <= answered <= most, f"{answered} answered, at most {most:.0f}")
    # Another address is another source, but of IPv6 only in another network.
    other = world.client.udp(("10.7.0.3", 0), ("10.7.0.1", 7))
    answers(other, b"not my limit")
    dropped = daemon.dropped()
    expect(set(dropped) == {"source-datagrams"}, f"dropped {dropped}")
    # This machine itself has none.
    local = world.server.udp(("127.0.0.1", 0), ("127.0.0.1", 7))
    for number in range(1000):
        answers(local, number.to_bytes(2, "big"))
    daemon.reload('[datagram]\ndatagrams-per-source = "off"\n')
    greedy = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7))
    for number in range(1000):
        answers(greedy, number.to_bytes(2, "big"))
    daemon.reload(LEAST)
    before = daemon.listeners_now()
    for _ in range(1000):
        greedy.send(b"too many")
    answered = wait_for(daemon, before, 1000)
    expect(answered < 1000, "the reload did not bring the limit back")


def wait_for(daemon, before, count):
    """Waits until the daemon has handled this number of further datagrams; returns how many it
    answered."""

    def figure(listeners, name):
        return sum(listener[name] for listener in listeners)

    def done():
        now = daemon.balanced()
        lost = now and figure(now, "kernel_dropped") - figure(before, "kernel_dropped")
        expect(not lost, f"the kernel dropped {lost}")
        come = now and figure(now, "datagrams_received") - figure(before, "datagrams_received")
        return now if come == count else None

    now = eventually(done, lambda: f"not {count} more: {daemon.listeners_now()}")
    return figure(now, "datagrams_sent") - figure(before, "datagrams_sent")


def prefixes_make_sources(world):
    """Neighbours share a limit if the prefixes say so; bursts count as what they are made of."""
    world.pair()
    world.client.run("ip address add 10.7.0.3/24 dev v1; ip address add fd00:7::3/64 dev v1 nodad")
    daemon = world.daemon(
        ["udp:0.0.0.0:7", "udp:[::]:7777"], f"[limits]\nsource-prefix-ipv4 = 24\n{LEAST}"
    )
    for sources, target in (
        ((("10.7.0.2", 0), ("10.7.0.3", 0)), ("10.7.0.1", 7)),
        ((("fd00:7::2", 0), ("fd00:7::3", 0)), ("fd00:7::1", 7777)),
    ):
        before = daemon.listeners_now()
        began = time.monotonic()
        for source in sources:
            client = world.client.udp(source, target)
            for _ in range(10):
                burst(client, bytes(6400), 100)
        answered = wait_for(daemon, before, 2 * 640)
        most = 128 * (1 + time.monotonic() - began) + 64
        expect(answered <= most, f"{answered} answered, at most {most:.0f}")
        # Whole bursts or nothing of them.
        expect(answered >= 64 and answered % 64 == 0, f"{answered} answered")


def sources_have_bytes(world):
    """A source gets its bytes a second, of the longest datagrams as well."""
    world.pair()
    daemon = world.daemon(["udp:0.0.0.0:7"], '[datagram]\nbytes-per-source = "64KiB"\n')
    client = world.client.udp(("10.7.0.2", 0), ("10.7.0.1", 7))
    answers(client, bytes(65_507))
    for _ in range(40):
        client.send(bytes(60_000))
    began = time.monotonic()
    eventually(lambda: daemon.figure("datagrams_received") == 41, "not all of them came")
    eventually(daemon.balanced, "replies are in flight")
    sent = daemon.figure("bytes_sent")
    most = 65_536 * (2 + time.monotonic() - began) + 20_000
    expect(sent <= most, f"{sent} bytes, at most {most:.0f}")
    dropped = daemon.dropped()
    expect(set(dropped) == {"source-bytes"}, f"dropped {dropped}")


def limits_are_not_saved_up(world):
    """A source at its limit of bytes does not accumulate tokens for datagrams meanwhile, and vice
    versa."""
    world.pair()
    world.client.run("ip address add 10.7.0.3/24 dev v1")
    config = '[server]\nworkers = 1\n[datagram]\ndatagrams-per-source = 1000\n'
    daemon = world.daemon(["udp:0.0.0.0:7"], config + 'bytes-per-source = "64KiB"\n')
    large, small = bytes(1000), b""
    for source, first, then in (("10.7.0.2", large, small), ("10.7.0.3", small, large)):
        client = world.client.udp((source, 0), ("10.7.0.1", 7))
        end = time.monotonic() + 3
        while time.monotonic() < end:
            for _ in range(1 if first else 10):
                client.send(first)
            time.sleep(0.01)
        before = eventually(daemon.balanced, "replies are in flight")
        began = time.monotonic()
        # As many as a socket holds, until five times a second's worth was sent.
        for _ in range(50):
            for _ in range(100 if first else 10):
                client.send(then)
            eventually(daemon.balanced, "replies are in flight")
        answered = wait_for(daemon, before, 5000 if first else 500)
        worth = 1000 if first else 65.6
        most = worth * (1 + time.monotonic() - began) + worth / 32 + 1
        expect(answered <= most, f"{answered} answered after a pause, at most {most:.0f}")


def access_lists(world):
    """A denied network gets no byte, and is counted."""
    world.pair()
    world.client.run("ip address add 10.7.0.3/24 dev v1; ip address add fd00:7::3/64 dev v1 nodad")
    daemon = world.daemon(
        ["udp:0.0.0.0:7", "udp:[::]:7777"],
        '[access]\ndeny = ["10.7.0.3", "fd00:7::3"]\n',
    )
    for number, (source, target) in enumerate(
        (
            ("10.7.0.3", ("10.7.0.1", 7)),
            ("10.7.0.3", ("10.7.0.1", 7777)),
            ("fd00:7::3", ("fd00:7::1", 7777)),
        ),
        1,
    ):
        denied = world.client.udp((source, 0), target)
        denied.send(b"let me in")
        daemon.wait_for_dropped(denied=number)
        nothing_waits(denied, "a denied client was answered")
        answers(world.client.udp((source.replace("3", "2"), 0), target), b"let me in")


CASES = [
    ("loop on one port", loop_on_one_port),
    ("loop on ports of the set", loop_on_ports_of_the_set),
    ("loop on other ports", loop_on_other_ports),
    ("loop by bytes", loop_by_bytes),
    ("sources have limits", sources_have_limits),
    ("prefixes make sources", prefixes_make_sources),
    ("sources have bytes", sources_have_bytes),
    ("limits are not saved up", limits_are_not_saved_up),
    ("access lists", access_lists),
]
