"""A daemon with a stand-in for its service manager, which does what systemd does for the shipped
units: it owns the listening sockets, keeps the descriptors that the daemon stores, and announces
by a signal what a SIGTERM means.

The difference to the units: after a kill the sockets are closed as well.
"""

import fcntl
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request

from network import TIMEOUT_SECONDS, Namespace, eventually, expect

PROGRAM = "/programs/echo-uring"
CONFIG = "/src/tests/fleet/echo-uring.toml"
PORT, PROXIED_PORT, METRICS_PORT, AGENT_PORT = 7, 7017, 17007, 17009
# Name, type and port of the sockets.
SOCKETS = (
    ("echo", socket.SOCK_STREAM, PORT),
    ("echo", socket.SOCK_DGRAM, PORT),
    ("proxied", socket.SOCK_STREAM, PROXIED_PORT),
    ("metrics", socket.SOCK_STREAM, METRICS_PORT),
    ("agent-check", socket.SOCK_STREAM, AGENT_PORT),
)
# The numbers by which descriptors reach the shell, which moves them to those from 3 on.
FIRST_PASSED = 200
# The drain, its lead, and the end of the last connections.
STOP_SECONDS = TIMEOUT_SECONDS + 10


class Manager:
    """The other end of NOTIFY_SOCKET; see sd_notify(3)."""

    def __init__(self, path):
        self.path = path
        self.stored, self.is_ready = [], False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        threading.Thread(target=self.receive, daemon=True).start()

    def receive(self):
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 64)
            # The socket has been shut down.
            if not data:
                return
            fields = data.decode().split("\n")
            if "FDSTORE=1" in fields:
                self.stored += descriptors
                continue
            if "FDSTOREREMOVE=1" in fields:
                descriptors += self.stored
                self.stored = []
            self.is_ready = self.is_ready or "READY=1" in fields
            # A barrier is answered by closing its descriptor.
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        os.unlink(self.path)
        for descriptor in self.stored:
            os.close(descriptor)


class Server:
    def __init__(self, namespace, number):
        self.namespace, self.number = namespace, number
        self.manager = Manager(f"/tmp/notify-{number}")
        self.process, self.sockets, self.lines = None, [], []

    def listen(self):
        for _, kind, port in SOCKETS:
            listener = self.namespace.socket(socket.AF_INET, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", port))
            if kind == socket.SOCK_STREAM:
                listener.listen(4096)
            self.sockets.append(listener)

    def start(self):
        """Returns when the daemon is ready."""
        if not self.sockets:
            self.listen()
        self.manager.is_ready = False
        given = [*(listener.fileno() for listener in self.sockets), *self.manager.stored]
        names = [name for name, _, _ in SOCKETS] + ["bundle"] * len(self.manager.stored)
        passed = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_PASSED) for number in given]
        moves = " ".join(
            f"{3 + index}<&{number} {number}<&-" for index, number in enumerate(passed)
        )
        script = f"exec {moves}; export LISTEN_PID=$$; exec {PROGRAM} --config {CONFIG}"
        self.process = subprocess.Popen(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=passed,
            env={
                "PATH": os.environ["PATH"],
                "NOTIFY_SOCKET": self.manager.path,
                "LISTEN_FDS": str(len(given)),
                "LISTEN_FDNAMES": ":".join(names),
            },
            preexec_fn=self.namespace.enter,
        )
        for number in passed:
            os.close(number)
        threading.Thread(target=self.read, args=(self.process.stderr,), daemon=True).start()

        def ready():
            expect(self.process.poll() is None, f"the daemon has ended: {self.lines[-20:]}")
            return self.manager.is_ready

        eventually(ready, lambda: f"the daemon is not ready: {self.lines[-20:]}")

    def read(self, stream):
        for line in stream:
            self.lines.append(line.rstrip())

    def end(self, announcement):
        """What the unit's ExecStop= sends, and then systemd; returns when the daemon has ended."""
        self.process.send_signal(announcement)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS)
        expect(code == 0, f"the daemon ended with {code}: {self.lines[-20:]}")

    def close_sockets(self):
        for listener in self.sockets:
            listener.close()
        self.sockets = []

    def stop(self):
        """Drain lead, drain, end."""
        self.end(signal.SIGWINCH)
        self.close_sockets()

    def restart(self):
        """The connections go on in the next process."""
        self.end(signal.SIGURG)
        expect(self.manager.stored, f"the daemon has stored nothing: {self.lines[-20:]}")
        self.start()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.close_sockets()

    def close(self):
        """Ends it however it is."""
        if self.process and self.process.poll() is None:
            self.kill()
        self.close_sockets()
        self.manager.close()

    def is_serving(self):
        """What the daemon says at /ready."""
        with Namespace.keeping():
            self.namespace.enter()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/ready", timeout=5):
                    return True
            except urllib.error.HTTPError:
                return False
