"""Idle connections in a process of their own, with commands on standard input.

    idle_connections.py ADDRESS PORT COUNT LOSS

Opens COUNT connections, from several source addresses if ADDRESS is of loopback, waits for one
answer on each, and prints "open". From then on each connection loses LOSS percent of its incoming
packets. Commands: "check" sends a word on all connections and prints how many answer. "gone" makes
them unreachable: all their incoming packets are dropped. "ended" prints how many have been ended in
order, by reset, and not at all.
"""

import ctypes
import resource
import select
import socket
import struct
import sys
import time

SO_ATTACH_FILTER = 26
PER_SOURCE = 20_000


def lose(connection, percent):
    """Drops `percent` of a socket's incoming packets before TCP: see linux/filter.h."""
    random = 0xFFFFFFFF & (-0x1000 + 56)
    code = [
        (0x20, 0, 0, random),
        (0x94, 0, 0, 100),
        (0x35, 0, 1, percent),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *it) for it in code))
    # struct sock_fprog.
    header = struct.pack("HL", len(code), ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)


def connect(address, port, index):
    """One connection that has been answered."""
    connection = socket.socket()
    connection.settimeout(30)
    if address.startswith("127."):
        connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        connection.bind((f"127.8.0.{1 + index // PER_SOURCE}", 0))
    connection.connect((address, port))
    connection.sendall(b"hello")
    return connection


def read_word(connection, word):
    """Whether the connection answers with this word."""
    try:
        answer = b""
        while len(answer) < len(word):
            piece = connection.recv(len(word) - len(answer))
            if not piece:
                return False
            answer += piece
    except OSError:
        return False
    return answer == word


def answers(connections):
    """How many answer."""
    count = 0
    for start in range(0, len(connections), 500):
        asked = []
        for connection in connections[start : start + 500]:
            try:
                connection.sendall(b"still there?")
                asked.append(connection)
            except OSError:
                pass
        count += sum(read_word(connection, b"still there?") for connection in asked)
    return count


def ends(connections):
    """How many were ended in order, by reset, and not at all."""
    counts = [0, 0, 0]
    for connection in connections:
        if not select.select([connection], [], [], 0)[0]:
            counts[2] += 1
            continue
        try:
            counts[0 if connection.recv(1) == b"" else 2] += 1
        except OSError:
            counts[1] += 1
    return counts


def main():
    address, port, count, loss = sys.argv[1], *map(int, sys.argv[2:5])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = []
    began = time.monotonic()
    for index in range(count):
        connections.append(connect(address, port, index))
    opened = time.monotonic() - began
    if not all(read_word(connection, b"hello") for connection in connections):
        sys.exit("a connection was not answered at the start")
    for connection in connections:
        lose(connection, loss)
    print(f"open {opened:.1f}", flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "check":
            print(f"answers {answers(connections)}", flush=True)
        elif command == "gone":
            for connection in connections:
                lose(connection, 100)
            print("gone", flush=True)
        elif command == "ended":
            print("ended {} {} {}".format(*ends(connections)), flush=True)


main()
