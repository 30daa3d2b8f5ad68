"""The machine is powered off with connections open, and boots again."""

import time

from checks import SERVICE, echoes, is_active, last_account
from machine import eventually, expect
from steps_handover import open_connections, judge

CONNECTIONS = {"connections": 60, "talkers": 20, "stalled": 3}
# timeouts.drain of 10 s, 5 s for peers that do not close, and the time that other units take.
SECONDS_MAX = 25
# Stands for the service that sets up the network, with the order that systemd.special(7) requires.
NETWORK = """[Unit]
Before=network.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
ExecStop=true
"""


def at(entries, words):
    """When the first of these entries of the journal that has `words` was written, in µs."""
    times = [int(e["__MONOTONIC_TIMESTAMP"]) for e in entries if words in str(e.get("MESSAGE"))]
    expect(times, f"the journal of the shutdown has no: {words}")
    return times[0]


def goes_down_in_order(machine, _packages):
    """`systemctl poweroff` ends connections in order and in time; the service runs after a boot."""
    machine.run(f"cat > /etc/systemd/system/test-network.service <<'END'\n{NETWORK}END")
    machine.run("systemctl daemon-reload && systemctl start test-network.service")
    # Started while the network is up, as at any boot.
    machine.run(f"systemctl restart {SERVICE}")
    machine.run("mkdir -p /var/log/journal && journalctl --flush")
    clients = open_connections(machine, CONNECTIONS)
    started = time.monotonic()
    machine.run("systemctl poweroff", check=False)
    eventually(lambda: machine.supervisor.poll() is not None, 60, "the machine does not go down")
    seconds = time.monotonic() - started
    kinds = judge(machine, clients)["kinds"]
    # A peer that never reads its echo is reset after some time.
    ended = kinds.get("ended", 0)
    readers = CONNECTIONS["connections"] - CONNECTIONS["stalled"]
    expect(ended >= readers, f"not all connections ended: {kinds}")
    expect(seconds < SECONDS_MAX, f"it took {seconds:.1f} s")

    machine.boot()
    entries = machine.journal("echo-uring.service --boot=-1")
    said = [str(entry.get("MESSAGE")) for entry in entries]
    # Entries from the begin of the last stop on; this journal has earlier runs as well.
    stop = max(index for index, text in enumerate(said) if text.startswith("Stopping echo-uring"))
    bad = [text for text in said[stop:] if "timed out" in text or "Killing" in text]
    expect(not bad, f"the stop timed out: {bad}")
    network = machine.journal("test-network.service --boot=-1")
    # Both units were stopped before: the last stop is the one of the shutdown.
    ended, network_ended = at(entries[::-1], "Stopped echo-uring.service"), at(network, "Stopping")
    expect(ended < network_ended, "the network was taken down before the service had ended")
    expect(is_active(machine, SERVICE), "after the boot the service does not run")
    echoes(machine)
    account = last_account(machine)
    machine.run("rm /etc/systemd/system/test-network.service && systemctl daemon-reload")
    return f"down in {seconds:.1f} s with {account['accepted']} connections"


STEPS = [("power off and on", goes_down_in_order)]
