"""The daemon in a namespace: started, examined, ended with the checks common to all cases."""

import ctypes
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading

from network import TIMEOUT_SECONDS, Failure, eventually, expect

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Daemon:
    """`listen` are the addresses of its listeners; `config` is the rest of the configuration."""

    def __init__(self, program, namespace, listen, config=""):
        self.scratch = tempfile.TemporaryDirectory(prefix="echo-uring-namespaces-")
        directory = pathlib.Path(self.scratch.name)
        self.status_path = str(directory / "status")
        self.config_path = directory / "echo-uring.toml"
        self.listeners = "".join(
            f'[[listener]]\nname = "{name}"\naddress = "{address}"\n'
            for name, address in enumerate_names(listen)
        )
        self.listeners += (
            f'[[listener]]\nname = "status"\nkind = "status"\naddress = "unix:{self.status_path}"\n'
        )
        self.write(config)

        def prepare():
            namespace.enter()
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        self.process = subprocess.Popen(
            [program, "--config", str(self.config_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "RUST_BACKTRACE": "1"},
            preexec_fn=prepare,
        )
        self.lines = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.wait_for_line("ready")

    def write(self, config):
        # Top-level tables come in any order.
        self.config_path.write_text(f"{config}\n{self.listeners}")

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_for_line(self, part, after=0):
        def found():
            expect(self.process.poll() is None, f"the daemon ended: {self.lines}")
            return [line for line in self.lines[after:] if part in line]

        return eventually(found, lambda: f"no line with {part!r}: {self.lines}")[0]

    def reload(self, config):
        self.write(config)
        after = len(self.lines)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for_line("reloaded", after)

    def listeners_now(self):
        with socket.socket(socket.AF_UNIX) as window:
            window.settimeout(TIMEOUT_SECONDS)
            window.connect(self.status_path)
            text = b""
            while part := window.recv(65536):
                text += part
        return json.loads(text)["datagram_listeners"]

    def figure(self, name):
        return sum(listener[name] for listener in self.listeners_now())

    def dropped(self):
        """Datagrams dropped by reason, but for reasons without any."""
        total = {}
        for listener in self.listeners_now():
            for reason, count in listener["dropped"].items():
                total[reason] = total.get(reason, 0) + count
        return {reason: count for reason, count in total.items() if count}

    def wait_for_dropped(self, **wanted):
        """Waits until exactly these numbers were dropped, by reason, and none for other reasons."""
        wanted = {reason.replace("_", "-"): count for reason, count in wanted.items()}
        eventually(
            lambda: self.dropped() == wanted,
            lambda: f"dropped {self.dropped()}, expected {wanted}",
        )

    def balanced(self):
        """The figures when no datagram is in flight in the daemon, else None."""
        listeners = self.listeners_now()
        for listener in listeners:
            received, sent = listener["datagrams_received"], listener["datagrams_sent"]
            dropped = sum(listener["dropped"].values())
            expect(sent + dropped <= received, f"more is told of than came: {listener}")
            in_, out = listener["bytes_received"], listener["bytes_sent"]
            expect(out <= in_, f"more bytes went out than came in: {listener}")
            if sent + dropped != received:
                return None
        return listeners

    def stop(self):
        """Checks its figures and its end."""
        eventually(self.balanced, lambda: f"replies without end: {self.listeners_now()}")
        self.process.terminate()
        code = self.process.wait(timeout=TIMEOUT_SECONDS)
        self.reader.join(TIMEOUT_SECONDS)
        expect(code == 0, f"the daemon ended with {code}: {self.lines}")
        faults = [line for line in self.lines if "panicked" in line or line.startswith("error")]
        expect(not faults, f"the daemon said: {faults}")

    def end(self):
        """Ends it however it is."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.scratch.cleanup()


def enumerate_names(addresses):
    return [(f"l{number}", address) for number, address in enumerate(addresses)]


def answers(client, payload, asked=None):
    """Checks for an exact echo, from the address that was asked."""
    if asked:
        client.sendto(payload, asked)
    else:
        client.send(payload)
    try:
        answer, source = client.recvfrom(65536)
    except TimeoutError as error:
        raise Failure(f"no answer from {asked or client.getpeername()}") from error
    expect(answer == payload, f"{len(payload)} bytes came back as {len(answer)}, or changed")
    if asked:
        expect(source[:2] == asked[:2], f"{asked} was asked, but {source} answered")
