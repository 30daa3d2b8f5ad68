"""Many connections that are open before a restart and must be open after it.

Run as a program by `machine.py`, like `traffic.py`. Of some thousand connections a third sends all
the time, some do not read until the end, and the others are silent. Prints "ready" when each
connection has been answered once. At SIGTERM it checks every byte and every connection, and ends.
"""

import argparse
import collections
import json
import random
import selectors
import signal
import socket
import sys
import time

import traffic

WORD = 512
PERIOD = 1 << 16
TAPE = random.Random(1).randbytes(PERIOD) * 3


def tape(seed, start, length):
    """Bytes from an endless stream; each connection has its own."""
    start = (start + 4099 * seed) % PERIOD
    return TAPE[start : start + length]


class Talker:
    """Sends a word when the last one has come back."""

    def __init__(self, connection, seed):
        self.connection, self.seed = connection, seed
        self.sent = self.received = 0
        self.since = time.monotonic()
        self.pause = 0.0
        self.fault = None

    def send(self):
        word = tape(self.seed, self.sent, WORD)
        # One word always fits into an empty socket.
        sent = self.connection.send(word)
        self.sent += sent
        if sent != WORD:
            self.fault = f"only {sent} bytes of a word fitted"

    def receive(self):
        while self.received < self.sent:
            try:
                answer = self.connection.recv(self.sent - self.received)
            except BlockingIOError:
                return False
            except OSError as error:
                self.fault = str(error)
                return False
            if not answer:
                self.fault = "ended"
                return False
            expected = tape(self.seed, (self.sent - WORD), WORD)
            begin = self.received - (self.sent - WORD)
            if answer != expected[begin : begin + len(answer)]:
                self.fault = "wrong bytes"
                return False
            self.received += len(answer)
        now = time.monotonic()
        self.pause = max(self.pause, now - self.since)
        self.since = now
        return True


def connect(address):
    """Connects to port 7 of an address, or to a Unix socket if it is a path."""
    connection = traffic.connect(address, traffic.PORT)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def stuff(connection, seed):
    """Writes until the socket takes no more for 0.3 s; returns the number of bytes."""
    connection.setblocking(False)
    written, quiet_since = 0, time.monotonic()
    while time.monotonic() - quiet_since < 0.3:
        try:
            written += connection.send(tape(seed, written, PERIOD))
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    return written


def read_back(connection, seed, length):
    """Reads the echo of `length` stuffed bytes; returns what is wrong with it, if anything."""
    connection.settimeout(30)
    received = 0
    while received < length:
        answer = connection.recv(min(PERIOD, length - received))
        if not answer:
            return "ended"
        if answer != tape(seed, received, len(answer)):
            return f"wrong bytes at {received}"
        received += len(answer)
    return None


def ping(connection, seed):
    connection.settimeout(30)
    word = tape(seed, 0, 64)
    connection.sendall(word)
    answer = b""
    while len(answer) < len(word):
        part = connection.recv(len(word) - len(answer))
        if not part:
            return "ended"
        answer += part
    return None if answer == word else "wrong bytes"


def faults_of(check, members):
    """The faults that `check` finds in `members`."""
    faults = []
    for seed, (connection, *rest) in members:
        try:
            fault = check(connection, seed, *rest)
        except OSError as error:
            fault = str(error)
        if fault:
            faults.append(fault)
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--talkers", type=int, required=True)
    parser.add_argument("--stalled", type=int, required=True)
    parser.add_argument("--address", action="append", help="default: both of loopback")
    options = parser.parse_args()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    places = options.address or ["127.0.0.1", "::1"]
    connections = [connect(places[n % len(places)]) for n in range(options.connections)]
    first = faults_of(ping, [(seed, (c,)) for seed, c in enumerate(connections)])
    talkers = []
    selector = selectors.EpollSelector()
    for seed in range(options.talkers):
        connections[seed].setblocking(False)
        talkers.append(Talker(connections[seed], seed))
        selector.register(connections[seed], selectors.EVENT_READ, talkers[-1])
    rest = list(enumerate(connections))[options.talkers :]
    stalled = [(seed, (c, stuff(c, seed))) for seed, c in rest[: options.stalled]]
    silent = [(seed, (c,)) for seed, c in rest[options.stalled :]]
    for talker in talkers:
        talker.since = time.monotonic()
        talker.send()
    print("ready", flush=True)
    while not stop:
        for key, _ in selector.select(timeout=0.2):
            talker = key.data
            if talker.receive():
                talker.send()
            elif talker.fault:
                selector.unregister(talker.connection)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(t.received < t.sent and not t.fault for t in talkers):
        for key, _ in selector.select(timeout=0.2):
            key.data.receive()
            if key.data.fault:
                selector.unregister(key.data.connection)
    faults = first + [talker.fault for talker in talkers if talker.fault]
    faults += ["silence" for talker in talkers if talker.received < talker.sent and not talker.fault]
    faults += faults_of(read_back, stalled)
    faults += faults_of(ping, silent)
    print(
        json.dumps(
            {
                "connections": len(connections),
                "faults": len(faults),
                "kinds": collections.Counter(faults),
                "words": sum(talker.received for talker in talkers) // WORD,
                "stalled_bytes": sum(members[1] for _, members in stalled),
                "longest_pause": round(max(talker.pause for talker in talkers), 3),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
