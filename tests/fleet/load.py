"""The load: echo-load in the client's namespace, until it is interrupted, and what it counted."""

import ctypes
import json
import signal
import subprocess

from network import TIMEOUT_SECONDS, expect

PROGRAM = "/programs/echo-load"
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
# What is a wrong byte, whatever happened to the connection.
WRONG = ("corrupted", "lost", "reordered", "duplicated", "cross_talk", "boundary", "wrong_source")
# Exchanges in flight at most, and exchanges each second.
IN_FLIGHT, RATE = 8, 200
# Connections that stay, and flows of datagrams.
ESTABLISHED = FLOWS = 16
# Less than the interval of events, so that what is lost is counted with the event that lost it.
ECHO_TIMEOUT = "2s"


class Load:
    def __init__(self, namespace, target, *options):
        def prepare():
            namespace.enter()
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        command = [
            PROGRAM,
            "--json",
            "--no-progress",
            "--tolerance",
            "0",
            "--timeout",
            ECHO_TIMEOUT,
        ]
        self.process = subprocess.Popen(
            [*command, "--duration", "1h", *options, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        )

    def finish(self):
        """Its result."""
        self.process.send_signal(signal.SIGINT)
        output, errors = self.process.communicate(timeout=TIMEOUT_SECONDS)
        expect(output.startswith("{"), f"echo-load has no result: {errors}")
        return json.loads(output)


def churn(namespace, target):
    """A new connection for each message."""
    options = ("--mode", "churn", "-c", str(IN_FLIGHT), "--rate", str(RATE), "--size", "1..4KiB")
    return Load(namespace, target, *options)


def established(namespace, target):
    """Connections that stay."""
    return Load(namespace, target, "-c", str(ESTABLISHED), "--rate", str(RATE), "--size", "1..4KiB")


def datagrams(namespace, target):
    options = ("-c", str(FLOWS), "--rate", str(RATE), "--size", "16..1200")
    return Load(namespace, f"udp://{target}", *options)


def counts(result):
    """What a row of the table has of a result."""
    errors = result["error_counts"]
    refused = result["connect_failures"] or 0
    return {
        "echoed": result["messages"] + result["late_messages"],
        "bytes": result["echoed_bytes"],
        "failed": refused + result["errors"],
        "refused": refused,
        "ended": errors["closed_early"],
        "reset": errors["reset"],
        # Sent, and the echo was never complete.
        "unanswered": result["unanswered_messages"],
        "wrong_bytes": sum(errors[kind] for kind in WRONG),
    }
