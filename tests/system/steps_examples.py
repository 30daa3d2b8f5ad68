"""The examples that the package ships: each is installed as its own comment says, and must have the
effect that its first line states. An example without a function here fails the step.
"""

import json
import re
import subprocess

from checks import LOOPBACK, SERVICE, SOCKET, echoes, is_active, start_all, stop_all
from machine import eventually, expect

DIRECTORY = "/usr/share/doc/echo-uring/examples"
# An address reserved for documentation, assigned to the machine's loopback device for one step.
NETWORK_ADDRESS = "192.0.2.1"
LISTENING = "0A"
# What the stand-in for BIRD's program was told.
TOLD = "/var/tmp/told"


def instructions(text):
    """The commands in the opening comment of an example: its indented lines."""
    opening = text.split("\n[")[0]
    return re.findall(r"^#   (\S.*)$", opening, re.MULTILINE)


def listeners(machine, port):
    """How many TCP sockets listen on this port in the machine."""
    tables = machine.run("cat /proc/net/tcp /proc/net/tcp6").stdout
    fields = [line.split() for line in tables.splitlines() if ": " in line]
    at_port = f":{port:04X}"
    return sum(row[1].endswith(at_port) and row[3] == LISTENING for row in fields)


def refuses(machine, address, port=7):
    report = machine.traffic("echo", "--address", address, "--port", port)
    expect(report["refused"], f"{address} port {port} is served: {report}")


def opens_to_a_network(machine):
    """The shipped unit serves loopback only; with the example it serves a network."""
    echoes(machine, [*LOOPBACK, NETWORK_ADDRESS])


def serves_another_port(machine):
    echoes(machine, port=7007)
    for address in LOOPBACK:
        refuses(machine, address)


def has_several_sockets(machine):
    count = listeners(machine, 7)
    expect(count == 8, f"{count} sockets listen on port 7, not 4 for each address")
    # More clients than sockets: whichever socket the kernel selects, a worker accepts from it.
    for _ in range(12):
        echoes(machine)


def has_an_allow_list(machine):
    """systemd has parsed the lists. Their effect needs cgroup v2 and is not tested."""
    allowed = machine.show(SOCKET, "IPAddressAllow").split()
    for wanted in ("192.0.2.0/24", "2001:db8::/32", "127.0.0.0/8", "::1/128"):
        expect(wanted in allowed, f"{wanted} is not allowed: {allowed}")
    denied = machine.show(SOCKET, "IPAddressDeny").split()
    expect(sorted(denied) == ["0.0.0.0/0", "::/0"], f"not all other addresses are denied: {denied}")
    echoes(machine)


def stays_on_one_cpu(machine):
    pid = machine.show(SERVICE, "MainPID")
    status = machine.run(f"cat /proc/{pid}/status").stdout
    cpus = re.search(r"Cpus_allowed_list:\s*(\S+)", status).group(1)
    expect(cpus == "0", f"the daemon may run on CPU {cpus}, not on CPU 0 alone")
    started = [text for text in machine.messages() if ": starting, " in text][-1]
    expect("1 worker" in started, f"on one CPU it does not start one worker: {started}")
    echoes(machine)


def logs_as_much_as_it_likes(machine):
    interval = machine.show(SERVICE, "LogRateLimitIntervalUSec")
    burst = machine.show(SERVICE, "LogRateLimitBurst")
    expect((interval, burst) == ("1s", "200000"), f"{burst} lines in {interval}")
    echoes(machine)


def shows_its_status_to_a_group(machine):
    member = "setpriv --reuid=nobody --regid=nogroup --groups=adm echo-uring status"
    machine.run(member)
    stranger = member.replace("--groups=adm", "--clear-groups")
    refused = machine.run(stranger, check=False)
    expect(refused.returncode == 69, f"a stranger got {refused.returncode}: {refused.stdout}")


def serves_an_instance(machine):
    unit = "echo-uring@lab.service"
    expect(machine.show(unit, "ActiveState") == "active", f"{unit} is not active")
    echoes(machine, ["127.0.0.1"], port=7070)
    # The first service is not affected.
    echoes(machine)
    machine.run("systemctl disable --now echo-uring@lab.socket echo-uring@lab.service")
    machine.run("rm /etc/echo-uring/lab.toml && rmdir /etc/echo-uring")


def echoes_datagrams(machine):
    """A datagram to each loopback address comes back, from a port that nothing reflects."""
    for address in LOOPBACK:
        exchange = (
            f"exec 3<>/dev/udp/{address}/7; echo hello >&3; timeout 5 head --bytes=6 <&3"
        )
        answer = machine.run(f"bash -c '{exchange}'").stdout
        expect(answer == "hello\n", f"UDP at {address} answers {answer!r}")


def serves_udp(machine):
    """TCP and UDP on one port; the doctor judges the receive buffer, which is the default."""
    echoes(machine)
    echoes_datagrams(machine)
    table = machine.run("echo-uring status").stdout
    expect("udp:127.0.0.1:7" in table, f"the status shows no UDP: {table}")
    found = machine.run("echo-uring doctor", check=False).stdout
    expect("ReceiveBuffer=4M" in found, f"the doctor does not name ReceiveBuffer=: {found}")


def serves_udp_with_a_buffer_of_its_own(machine):
    """The unit with UDP sockets is installed without the end of a connection, and its buffer is
    large enough for the doctor."""
    name = "echo-uring-udp.socket"
    for command in instructions(machine.run(f"cat {DIRECTORY}/{name}").stdout):
        machine.run(command)
    complaints = machine.run(f"systemd-analyze verify --man=no {name}").stdout.strip()
    expect(not complaints, f"with {name}, systemd-analyze verify says: {complaints}")
    echoes(machine)
    echoes_datagrams(machine)
    found = machine.run("echo-uring doctor", check=False).stdout
    judged = f"UDP sockets of {name}: a receive buffer of 8192 KiB"
    expect(judged in found, f"the doctor does not judge the buffer: {found}")
    # It accompanies the TCP sockets.
    stop_all(machine)
    expect(machine.show(name, "ActiveState") == "inactive", f"{name} is not stopped with the others")
    start_all(machine)
    echoes_datagrams(machine)
    stop_all(machine)
    machine.run(f"systemctl disable {name} && rm /etc/systemd/system/{name}")
    machine.run("systemctl daemon-reload")
    start_all(machine)


def serves_unix_sockets_with_messages(machine):
    """The unit with seqpacket and datagram sockets is installed without the end of a connection,
    accompanies the TCP sockets, and its sockets are in the status."""
    name = "echo-uring-unix.socket"
    for command in instructions(machine.run(f"cat {DIRECTORY}/{name}").stdout):
        machine.run(command)
    complaints = machine.run(f"systemd-analyze verify --man=no {name}").stdout.strip()
    expect(not complaints, f"with {name}, systemd-analyze verify says: {complaints}")
    echoes(machine)
    table = machine.run("echo-uring status").stdout
    for address in ("unix-seqpacket:/run/echo-uring-messages.sock",
                    "unix-datagram:/run/echo-uring-datagrams.sock"):
        expect(address in table, f"the status does not show {address}: {table}")
    stop_all(machine)
    expect(machine.show(name, "ActiveState") == "inactive", f"{name} is not stopped with the others")
    machine.run(f"systemctl disable {name} && rm /etc/systemd/system/{name}")
    machine.run("systemctl daemon-reload")
    start_all(machine)


def names_the_server(machine):
    """The unit with the port that names the server is installed without the end of a connection. It
    names the host over TCP and UDP, and the port of the echo stays an echo."""
    name, drop_in = "echo-uring-identity.socket", "/etc/echo-uring.toml.d/identity.toml"
    for command in instructions(machine.run(f"cat {DIRECTORY}/{name}").stdout):
        # Each has a shell of its own here.
        machine.run(f"cd {DIRECTORY}; {command}")
    complaints = machine.run(f"systemd-analyze verify --man=no {name}").stdout.strip()
    expect(not complaints, f"with {name}, systemd-analyze verify says: {complaints}")
    host = machine.run("hostname").stdout.strip()
    ask = {
        "tcp": "timeout 5 head --lines=1 <&3",
        "udp": "printf %512s >&3; timeout 5 head --lines=1 <&3",
    }
    for protocol, exchange in ask.items():
        script = f"bash -c 'exec 3<>/dev/{protocol}/127.0.0.1/7007; {exchange}'"
        answer = json.loads(machine.run(script).stdout)
        expect(answer["host"] == host, f"over {protocol} {host} says that it is {answer}")
    echoes(machine)
    stop_all(machine)
    expect(machine.show(name, "ActiveState") == "inactive", f"{name} is not stopped with the others")
    machine.run(f"systemctl disable {name} && rm /etc/systemd/system/{name} {drop_in}")
    machine.run("systemctl daemon-reload")
    start_all(machine)


def withdraws_before_a_stop(machine):
    """The commands of the example come at the right times: none at a restart but the announcement,
    the withdrawal before the lead of a stop. What they do to a network is shown by tests/fleet.
    """
    # In the place of BIRD's program, which would need a BIRD: it says what it was told.
    machine.run(
        f"printf '#!/bin/sh\\necho \"$*\" >>{TOLD}\\n' >/usr/local/sbin/birdc"
        " && chmod 755 /usr/local/sbin/birdc"
    )

    def told():
        return machine.run(f"cat {TOLD} 2>/dev/null", check=False).stdout.splitlines()

    machine.run(f"systemctl restart {SERVICE}")
    expect(told() == ["enable anycast"], f"at a restart BIRD is told {told()}")
    machine.run(f"systemctl stop --no-block {SOCKET} {SERVICE}")
    eventually(lambda: "disable anycast" in told(), 5, "BIRD is not told of a stop")
    # The lead: clients that come by old routes are still served.
    echoes(machine)
    state = machine.show(SERVICE, "ActiveState")
    expect(state == "deactivating", f"after the withdrawal the service is {state}")
    # drain-lead = "10s" in the instructions.
    eventually(lambda: not is_active(machine, SOCKET), 30, "the socket does not stop")
    expect(not is_active(machine, SERVICE), "the service does not stop")
    start_all(machine)
    expected = ["enable anycast", "disable anycast", "enable anycast"]
    expect(told() == expected, f"BIRD was told {told()}")
    machine.run(f"rm /usr/local/sbin/birdc {TOLD} /etc/echo-uring.toml.d/drain-lead.toml")


EXAMPLES = {
    "allow-list.conf": has_an_allow_list,
    "another-port.conf": serves_another_port,
    "cpu-affinity.conf": stays_on_one_cpu,
    "instance-address.conf": serves_an_instance,
    "log-rate.conf": logs_as_much_as_it_likes,
    "open-to-network.conf": opens_to_a_network,
    "reuse-port.conf": has_several_sockets,
    "status-group.conf": shows_its_status_to_a_group,
    "udp.conf": serves_udp,
    "withdraw.conf": withdraws_before_a_stop,
}
# Tested by steps_balancer.py, below, and by steps_proxies.py.
OTHERS = (
    "echo-uring-agent.socket",
    "haproxy.cfg",
    "echo-uring-udp.socket",
    "echo-uring-unix.socket",
    "echo-uring-identity.socket",
    "identity.toml",
    "echo-uring-proxy.socket",
    "haproxy-proxy-protocol.cfg",
    "proxy-protocol.toml",
)


def examples_do_what_they_say(machine, _packages):
    """Each example, installed by its own instructions, does what it says; then it is removed."""
    change = machine.in_its_network("ip", "address", "replace", f"{NETWORK_ADDRESS}/32", "dev", "lo")
    subprocess.run(change, check=True)
    start_all(machine)
    # As shipped: loopback only.
    refuses(machine, NETWORK_ADDRESS)
    shipped = machine.run(f"ls {DIRECTORY}").stdout.split()
    known = sorted([*EXAMPLES, *OTHERS])
    expect(shipped == known, f"shipped are {shipped}, known are {known}")
    for name, check in EXAMPLES.items():
        commands = instructions(machine.run(f"cat {DIRECTORY}/{name}").stdout)
        expect(len(commands) >= 5, f"{name} does not say how to install it: {commands}")
        # This many restarts in a row would exceed systemd's start limit.
        machine.run(f"systemctl reset-failed {SOCKET} {SERVICE}")
        machine.run("set -e\n" + "\n".join(commands))
        drop_in = machine.run("ls -d /etc/systemd/system/echo-uring*.d").stdout.strip()
        unit = drop_in.rpartition("/")[2].removesuffix(".d")
        complaints = machine.run(f"systemd-analyze verify --man=no {unit}").stdout.strip()
        expect(not complaints, f"with {name}, systemd-analyze verify says: {complaints}")
        start_all(machine)
        check(machine)
        machine.run(f"rm -r {drop_in} && systemctl daemon-reload")
        machine.run(f"systemctl reset-failed {SOCKET} {SERVICE}")
        stop_all(machine)
        start_all(machine)
    serves_udp_with_a_buffer_of_its_own(machine)
    serves_unix_sockets_with_messages(machine)
    names_the_server(machine)
    echoes(machine)
    refuses(machine, NETWORK_ADDRESS)
    return f"{len(EXAMPLES) + 3} examples"
