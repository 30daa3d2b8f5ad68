"""Clients of the echo service that verify the echo.

Run as a program by `machine.py` in the network namespace of a test machine, so that the machine
needs no Python of its own and no packet leaves it. Every command prints one line of JSON when it is
done. It must know nothing about systemd or packages, only an address and a port.
"""

import argparse
import asyncio
import json
import random
import selectors
import signal
import socket
import sys
import threading
import time

PORT = 7
# Longer than any restart of the daemon, so that only a client that gets no answer times out.
TIMEOUT_SECONDS = 30.0


def connect(address, port):
    """Connects to a port, or to a Unix socket if the address is a path."""
    if not address.startswith("/"):
        return socket.create_connection((address, port), timeout=TIMEOUT_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_SECONDS)
    connection.connect(address)
    return connection


def echo_once(address, length, seed=1, port=PORT):
    """Sends `length` bytes, half-closes, reads to the end; returns the answer and the payload."""
    payload = random.Random(seed).randbytes(length)
    with connect(address, port) as connection:
        # A thread sends while we read: a large payload does not fit into the two socket buffers.
        def send():
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        answer = bytearray()
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        finally:
            sender.join()
        return bytes(answer), payload


def command_echo(options):
    """One client: whether its echo is exact."""
    started = time.monotonic()
    outcome = {"address": options.address, "refused": False, "exact": False, "error": None}
    try:
        answer, payload = echo_once(options.address, options.bytes, port=options.port)
        outcome["exact"] = answer == payload
        outcome["received"] = len(answer)
    except ConnectionRefusedError:
        outcome["refused"] = True
    except OSError as error:
        outcome["error"] = str(error)
    outcome["seconds"] = round(time.monotonic() - started, 3)
    return outcome


def command_hold(options):
    """Several connections at once: how many of them are served."""
    held, served = [], 0
    for _ in range(options.connections):
        connection = socket.create_connection((options.address, PORT), timeout=TIMEOUT_SECONDS)
        held.append(connection)
        try:
            connection.sendall(b"x")
            served += connection.recv(1) == b"x"
        except ConnectionError:
            pass
    for connection in held:
        connection.close()
    return {"served": served, "connections": len(held)}


def command_through(options):
    """One connection that sends a word every 50 ms until SIGTERM: whether each echo is exact."""
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    words, fault = 0, None
    with connect("127.0.0.1", options.port) as connection:
        while not stop and not fault:
            word = random.Random(words).randbytes(100)
            try:
                connection.sendall(word)
                answer = b""
                while len(answer) < len(word) and (part := connection.recv(100)):
                    answer += part
                fault = None if answer == word else f"word {words} came back as {len(answer)} bytes"
            except OSError as error:
                fault = str(error)
            words += 1
            if words == 1:
                print("ready", flush=True)
            time.sleep(0.05)
    return {"words": words, "fault": fault}


class Stream:
    """A continuous stream of new connections from several threads, counted by how they ended."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.counts = {"echoed": 0, "refused": 0, "cut": 0, "forgotten": 0, "wrong": 0}
        self.slowest = 0.0
        self.examples = []

    def count(self, kind, seconds, detail=None):
        with self.lock:
            self.counts[kind] += 1
            self.slowest = max(self.slowest, seconds)
            if detail and len(self.examples) < 5:
                self.examples.append(f"{kind}: {detail}")

    def run(self, address, seed):
        while not self.stop.is_set():
            started = time.monotonic()
            seed += 1000
            kind, detail = "echoed", None
            try:
                answer, payload = echo_once(address, 100, seed)
                if answer != payload:
                    # Only the first part of the payload came back: the daemon ended in between.
                    kind = "cut" if payload.startswith(answer) else "wrong"
                    detail = f"{len(answer)} of {len(payload)} bytes"
            except ConnectionRefusedError as error:
                kind, detail = "refused", error
            except TimeoutError as error:
                kind, detail = "forgotten", error
            except OSError as error:
                kind, detail = "cut", error
            self.count(kind, time.monotonic() - started, detail)
            # About 100 clients a second and thread: a stream, not a load test.
            time.sleep(0.01)


def command_stream(options):
    """New connections until SIGTERM. Those accepted and not answered in full are called `cut`."""
    stream = Stream()
    signal.signal(signal.SIGTERM, lambda *_: stream.stop.set())
    threads = [
        threading.Thread(target=stream.run, args=(("127.0.0.1", "::1")[number % 2], number))
        for number in range(options.threads)
    ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    # With a timeout, since a plain wait would delay the signal handler forever on some versions.
    while not stream.stop.wait(0.2):
        pass
    for thread in threads:
        thread.join()
    return {
        **stream.counts,
        "slowest_seconds": round(stream.slowest, 3),
        "examples": stream.examples,
    }


async def busy_connection(number, options, start, counts):
    """Proves that it was accepted, sends over the given time, half-closes, reads to the end."""
    payload = random.Random(number).randbytes(options.bytes)
    address = ("127.0.0.1", "::1")[number % 2]
    reader, writer = await asyncio.open_connection(address, PORT)
    writer.write(b"!")
    assert await reader.readexactly(1) == b"!"
    counts["accepted"] += 1
    await start.wait()

    async def send():
        pieces = 40
        size = -(-len(payload) // pieces)
        for piece in range(pieces):
            writer.write(payload[piece * size : (piece + 1) * size])
            await writer.drain()
            await asyncio.sleep(options.seconds / pieces)
        writer.write_eof()

    async def receive():
        answer = await reader.read(-1)
        if answer == payload:
            counts["exact"] += 1
        elif payload.startswith(answer):
            counts["short"] += 1
            counts["bytes_missing"] += len(payload) - len(answer)
        else:
            counts["wrong"] += 1

    try:
        await asyncio.gather(send(), receive())
    except OSError as error:
        counts["errors"] += 1
        counts["example"] = str(error)
    finally:
        writer.close()


async def busy(options):
    counts = {"accepted": 0, "exact": 0, "short": 0, "wrong": 0, "errors": 0, "bytes_missing": 0}
    start = asyncio.Event()
    tasks = [
        asyncio.create_task(busy_connection(number, options, start, counts))
        for number in range(options.connections)
    ]
    while counts["accepted"] < options.connections:
        await asyncio.sleep(0.02)
        for task in tasks:
            if task.done():
                task.result()
    print("ready", flush=True)
    start.set()
    await asyncio.gather(*tasks)
    return counts


def command_busy(options):
    """Many connections in the middle of sending; prints "ready" once all were accepted."""
    return asyncio.run(busy(options))


def command_datagrams(options):
    """Datagrams of many lengths, 0 included, one by one: whether each comes back unchanged."""
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    longest = 65_527 if family == socket.AF_INET6 else 65_507
    outcome = {"refused": False, "exact": False, "error": None}
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT_SECONDS)
        client.connect((options.address, options.port))
        try:
            for length in (1, 0, 0, 100, 1_472, 0, 9_000, longest, 1):
                payload = random.Random(length).randbytes(length)
                client.send(payload)
                answer = client.recv(65_536)
                if answer != payload:
                    outcome["error"] = f"{length} bytes came back as {len(answer)}"
                    return outcome
            outcome["exact"] = True
        except ConnectionRefusedError:
            outcome["refused"] = True
        except OSError as error:
            outcome["error"] = str(error)
    return outcome


class Flow:
    """One flow of numbered datagrams, and the answers received."""

    def __init__(self, number):
        address = ("127.0.0.1", "::1")[number % 2]
        family = socket.AF_INET6 if number % 2 else socket.AF_INET
        self.number = number
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        # SO_RCVBUFFORCE, so that no datagram is lost in this socket.
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self.socket.connect((address, PORT))
        self.socket.setblocking(False)
        self.sent, self.last = 0, -1
        self.seen = set()
        self.counts = {"wrong": 0, "doubled": 0, "reordered": 0}

    def payload(self, number):
        word = number.to_bytes(8, "big") + self.number.to_bytes(2, "big")
        return word * (1 + number % 20)

    def send(self):
        self.socket.send(self.payload(self.sent))
        self.sent += 1

    def receive(self):
        """Receives one waiting datagram."""
        answer = self.socket.recv(65_536)
        number = int.from_bytes(answer[:8], "big")
        if number >= self.sent or answer != self.payload(number):
            self.counts["wrong"] += 1
            return
        self.counts["doubled"] += number in self.seen
        self.counts["reordered"] += number < self.last
        self.seen.add(number)
        self.last = number


def command_flows(options):
    """Datagrams at a fixed rate until SIGTERM, whether answered or not; counts the outcomes."""
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    poll = selectors.DefaultSelector()
    flows = [Flow(number) for number in range(options.flows)]
    for flow in flows:
        poll.register(flow.socket, selectors.EVENT_READ, flow)
    began = answered_at = time.monotonic()
    sent, longest_pause, silent_since = 0, 0.0, None
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        if stop:
            silent_since = silent_since or now
            if all(len(flow.seen) == flow.sent for flow in flows) or now > silent_since + 2:
                break
        else:
            # If a busy machine delayed sending, the missing datagrams are not sent in one burst.
            wanted = min(int((now - began) * options.rate), sent + 50)
            while sent < wanted:
                flows[sent % len(flows)].send()
                sent += 1
        for key, _ in poll.select(0.001):
            key.data.receive()
            longest_pause = max(longest_pause, time.monotonic() - answered_at)
            answered_at = time.monotonic()
            silent_since = None
    answered = sum(len(flow.seen) for flow in flows)
    faults = {fault: sum(flow.counts[fault] for flow in flows) for fault in flows[0].counts}
    return {
        "sent": sent,
        "answered": answered,
        "lost": sent - answered,
        **faults,
        "longest_pause": round(longest_pause, 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    echo = commands.add_parser("echo")
    echo.add_argument("--address", required=True)
    echo.add_argument("--bytes", type=int, default=1)
    echo.add_argument("--port", type=int, default=PORT)
    echo.set_defaults(command=command_echo)
    hold = commands.add_parser("hold")
    hold.add_argument("--address", required=True)
    hold.add_argument("--connections", type=int, required=True)
    hold.set_defaults(command=command_hold)
    through = commands.add_parser("through")
    through.add_argument("--port", type=int, default=PORT)
    through.set_defaults(command=command_through)
    stream = commands.add_parser("stream")
    stream.add_argument("--threads", type=int, default=4)
    stream.set_defaults(command=command_stream)
    many = commands.add_parser("busy")
    many.add_argument("--connections", type=int, required=True)
    many.add_argument("--bytes", type=int, required=True)
    many.add_argument("--seconds", type=float, required=True)
    many.set_defaults(command=command_busy)
    datagrams = commands.add_parser("datagrams")
    datagrams.add_argument("--address", required=True)
    datagrams.add_argument("--port", type=int, default=PORT)
    datagrams.set_defaults(command=command_datagrams)
    flows = commands.add_parser("flows")
    flows.add_argument("--flows", type=int, default=8)
    flows.add_argument("--rate", type=int, required=True)
    flows.set_defaults(command=command_flows)
    options = parser.parse_args()
    print(json.dumps(options.command(options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
