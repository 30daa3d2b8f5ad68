"""The PROXY protocol, as real proxies speak it: a HAProxy and an nginx before the daemon, as the
shipped examples set it up, and echo-load as a proxy with many clients.

The proxies run on the host, in the machine's network. The clients are echo-load in the machine,
which verifies every byte, from addresses of their own: all of 127.0.0.0/8 is loopback.
"""

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import tempfile

from checks import SERVICE, SOCKET, drop_in, echoes, last_account, remove_drop_in
from machine import eventually, expect
import steps_balancer
from steps_admin import status
from steps_examples import DIRECTORY, instructions

UNIT = "echo-uring-proxy.socket"
LISTENER = "proxied"
# Where the examples have the daemon for proxies, and the frontend of HAProxy.
PORT, FRONTEND = 7017, 7078
ADMIN = "/run/haproxy-echo.sock"
CONFIGURATION = "/etc/echo-uring.toml.d"
NGINX = 7079
NGINX_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
# The frontends of HAProxy beside that of the example, each with the options of its server.
VERSIONS = {
    7081: "send-proxy",
    7082: "send-proxy-v2",
    7083: "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    7084: "send-proxy-v2 proxy-v2-options crc32c set-proxy-v2-tlv-fmt(0xE1) %[fc_rtt]",
}
WARNING = 4


def traffic(machine):
    """The counters of connections."""
    return status(machine)["total"]


def load(machine, port, *options, succeeds=True):
    """Runs echo-load in the machine. It must find every byte correct, unless it is to fail."""
    words = " ".join(map(str, options))
    command = f"echo-load 127.0.0.1:{port} -d 500ms --json {words}"
    process = machine.run(command, check=False)
    if not succeeds:
        expect(process.returncode == 1, f"`{command}` ends with {process.returncode}")
        return None
    expect(process.returncode == 0, f"`{command}` says: {process.stdout}")
    return json.loads(process.stdout)


def announces(machine, port, *options):
    """Puts load on a proxy; each of its connections must have announced an address."""
    before = traffic(machine)["announced"]
    made = load(machine, port, *options)["connections_made"]
    expect(made > 0, "no connection was made")
    eventually(
        lambda: traffic(machine)["announced"] >= before + made,
        5,
        f"not all of {made} connections announced an address",
    )
    return made


def checks(machine):
    """How many health checks the daemon has counted. HAProxy resets them at once, so most end
    before they are accepted, and count as aborted accepts."""
    total = traffic(machine)
    return total["health_checks"] + total["accept_failures"]["aborted"]


def version():
    """The version of HAProxy on this host."""
    text = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in re.search(r"(\d+)\.(\d+)", text).groups())


def haproxy_configuration(machine, admin):
    """The shipped example, and a frontend for each of VERSIONS that this HAProxy knows."""
    text = machine.run(f"cat {DIRECTORY}/haproxy-proxy-protocol.cfg").stdout
    expect(ADMIN in text, f"the example does not name {ADMIN}")
    text = text.replace(ADMIN, str(admin))
    for port, options in VERSIONS.items():
        if "tlv-fmt" in options and version() < (2, 9):
            continue
        text += (
            f"listen on{port}\n    bind 127.0.0.1:{port}\n"
            "    unique-id-format %{+X}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid\n"
            f"    server first 127.0.0.1:{PORT} {options}\n"
        )
    return text


@contextlib.contextmanager
def haproxy(machine):
    """HAProxy with its frontends while the body runs; yields its process and its admin socket."""
    with tempfile.TemporaryDirectory() as directory:
        admin = pathlib.Path(directory) / "admin.sock"
        config = pathlib.Path(directory) / "haproxy.cfg"
        config.write_text(haproxy_configuration(machine, admin))
        command = ["haproxy", "-c", "-q", "-f", config]
        check = subprocess.run(command, capture_output=True, text=True, check=False)
        complaints = check.stdout + check.stderr
        expect(check.returncode == 0 and not complaints, f"haproxy -c says: {complaints}")
        process = machine.start(machine.in_its_network("haproxy", "-W", "-db", "-f", config))
        try:
            eventually(lambda: server(admin) == "UP", 15, "HAProxy does not call the server UP")
            yield process, admin
        finally:
            # The master passes the signal on to its workers, including those from before a reload.
            process.terminate()
            process.wait(timeout=20)


def server(admin):
    """The state that HAProxy gives the echo server of the example."""
    return steps_balancer.status(admin, "echo")


@contextlib.contextmanager
def nginx(machine):
    """nginx with a stream server that announces in version 1 while the body runs."""
    with tempfile.TemporaryDirectory() as directory:
        config = pathlib.Path(directory) / "nginx.conf"
        config.write_text(
            f"load_module {NGINX_MODULE};\ndaemon off; user root; pid {directory}/pid;\n"
            f"error_log {directory}/error.log warn;\nevents {{ worker_connections 500; }}\n"
            # Without proxy_half_close nginx ends both directions at the first FIN and loses bytes.
            f"stream {{ server {{ listen 127.0.0.1:{NGINX}; proxy_pass 127.0.0.1:{PORT};"
            " proxy_protocol on; proxy_half_close on; } }\n"
        )
        process = machine.start(machine.in_its_network("nginx", "-c", config))
        try:
            eventually(
                lambda: machine.traffic("echo", "--address", "127.0.0.1", "--port", NGINX)["exact"],
                10,
                "there is no echo through nginx",
            )
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


@contextlib.contextmanager
def connection_through(machine, port):
    """A connection that sends while the body runs; its echo must be exact."""
    process = machine.start_traffic("through", "--port", port)
    expect(process.stdout.readline().strip() == "ready", f"no echo through port {port}")
    yield
    process.terminate()
    report = machine.finish_traffic(process)
    expect(not report["fault"], f"a connection through port {port} had a fault: {report}")


def warnings_since(machine, count):
    """Messages of the daemon with the severity of a warning or more, after `count` entries, except
    that about the limit on open files, which depends on the host."""
    entries = machine.journal()[count:]
    said = [entry["MESSAGE"] for entry in entries if int(entry.get("PRIORITY", 7)) <= WARNING]
    return [text for text in said if "the limit on open files" not in text]


def is_told(machine, words):
    """Waits until the journal reports refused connections, many of them in one line."""
    eventually(
        lambda: any(words in text for text in machine.messages()),
        15,
        f"the journal does not say: {words}",
    )


def configure(machine, text):
    """Applies further settings without a restart; none with an empty text."""
    path = f"{CONFIGURATION}/test.toml"
    if text:
        machine.run(f"cat > {path} <<'END'\n{text}\nEND")
    else:
        machine.run(f"rm {path}")
    machine.run(f"systemctl reload {SERVICE}")


def unconfigure(machine):
    """Removes these settings. The daemon reports refused connections up to ten seconds later, many
    in one line. It is restarted, so that such a line does not appear in a later step."""
    configure(machine, "")
    machine.run(f"systemctl restart {SERVICE}")


def announced_by_haproxy(machine, _packages):
    """The shipped examples; HAProxy with every version of the header; no warning for its checks."""
    example = machine.run(f"cat {DIRECTORY}/{UNIT}").stdout
    machine.run("set -e\n" + "\n".join(instructions(example)))
    machine.run("echo-uring check")
    complaints = machine.run(f"systemd-analyze verify --man=no {UNIT}").stdout.strip()
    expect(not complaints, f"systemd-analyze verify says: {complaints}")
    # The port without a proxy is unchanged, and the port for proxies refuses a missing header.
    echoes(machine)
    load(machine, PORT, succeeds=False)
    is_told(machine, "no valid PROXY header")
    entries = len(machine.journal())
    with haproxy(machine) as (_, admin):
        made = announces(machine, FRONTEND, "-c", 50)
        for port, options in VERSIONS.items():
            if "tlv-fmt" not in options or version() >= (2, 9):
                made += announces(machine, port, "-c", 8, "--mode", "churn")
                made += announces(machine, port, "-c", 4, "--mode", "stream")
        # More than one check; each sends a header and nothing else.
        seen = checks(machine)
        eventually(
            lambda: checks(machine) >= seen + 2,
            15,
            "the health checks of HAProxy are not counted",
        )
        expect(server(admin) == "UP", "HAProxy does not call the server UP any more")
    said = warnings_since(machine, entries)
    expect(not said, f"the daemon warns: {said}")
    return f"{made} connections announced, by HAProxy {'.'.join(map(str, version()))}"


def announced_by_nginx(machine, _packages):
    """nginx with version 1: every byte is echoed, also of streams that it half-closes."""
    with nginx(machine):
        made = announces(machine, NGINX, "-c", 20)
        made += announces(machine, NGINX, "-c", 4, "--mode", "stream")
        made += announces(machine, NGINX, "-c", 4, "--mode", "churn")
        for length in (0, 1, 1 << 20):
            echoes(machine, ["127.0.0.1"], length=length, port=NGINX)
    return f"{made} connections announced"


def limits_apply_to_clients(machine, _packages):
    """Access lists and limits for each source apply to the clients, not to the proxy."""
    configure(
        machine,
        '[access]\ndeny = ["127.0.0.66"]\n[limits]\nmax-connections-per-source = 2',
    )
    with haproxy(machine):
        # Each of ten sources has two connections, all through one proxy.
        sources = [f"--source 127.0.0.{last}" for last in range(20, 30)]
        load(machine, FRONTEND, "-c", 20, *sources)
        load(machine, FRONTEND, "-c", 3, "--source", "127.0.0.30", succeeds=False)
        load(machine, FRONTEND, "--source", "127.0.0.66", succeeds=False)
        load(machine, FRONTEND, "--source", "127.0.0.67")
    # The same with the proxy itself as the client.
    proxy = "--proxy-protocol v2 --proxy-source"
    made = announces(machine, PORT, "-c", 200, proxy, "10.0.0.0/8")
    load(machine, PORT, "-c", 3, proxy, "10.0.0.1", succeeds=False)
    load(machine, PORT, proxy, "127.0.0.66", succeeds=False)
    # A source that is not a trusted proxy is refused, whatever its header says.
    refused = traffic(machine)["refused"]["untrusted"]
    load(machine, PORT, "--source", "127.0.0.2", proxy, "10.0.0.1", succeeds=False)
    expect(traffic(machine)["refused"]["untrusted"] > refused, "a stranger is not counted")
    for words in ("trusted-proxies", "refused by [access]", "limits.max-connections-per-source"):
        is_told(machine, words)
    unconfigure(machine)
    return f"{made} sources through one address"


def proxies_and_restarts(machine, _packages):
    """A reload of HAProxy, a restart of the daemon, one of HAProxy, and a drain."""
    entries = len(machine.journal())
    with haproxy(machine) as (process, admin):
        with connection_through(machine, FRONTEND), connection_through(machine, 7083):
            # SIGUSR2 to the master is a reload: old workers keep their connections.
            process.send_signal(signal.SIGUSR2)
            eventually(lambda: server(admin) == "UP", 15, "HAProxy is not UP after its reload")
            machine.run(f"systemctl restart {SERVICE}")
            announces(machine, FRONTEND, "-c", 10)
        said = warnings_since(machine, entries)
        expect(not said, f"the daemon warns: {said}")
        addresses_survive(machine)
        entries = len(machine.journal())
    # HAProxy ended with its connections; another one starts.
    with haproxy(machine):
        made = announces(machine, FRONTEND, "-c", 10)
        said = warnings_since(machine, entries)
        expect(not said, f"the daemon warns: {said}")
        machine.run(f"systemctl stop {SERVICE}")
        account = last_account(machine)
        machine.run(f"systemctl start {SERVICE}")
        announces(machine, FRONTEND, "-c", 10)
    return f"{made} connections after a restart; {account['accepted']} accounted for"


def addresses_survive(machine):
    """After a restart, connections still count for the clients whom their headers announced."""
    configure(machine, "[limits]\nmax-connections-per-source = 2")
    options = "--mode idle -c 2 --source 127.0.0.40 -d 4s --json"
    command = machine.inside(f"echo-load 127.0.0.1:{FRONTEND} {options}")
    before = traffic(machine)["announced"]
    two = machine.start(command)
    eventually(
        lambda: traffic(machine)["announced"] == before + 2, 3, "two connections were not made"
    )
    machine.run(f"systemctl restart {SERVICE}")
    load(machine, FRONTEND, "-c", 2, "--source", "127.0.0.41")
    load(machine, FRONTEND, "--source", "127.0.0.40", succeeds=False)
    output, _ = two.communicate(timeout=30)
    expect(two.returncode == 0, f"the connections did not survive the restart: {output}")
    is_told(machine, "limits.max-connections-per-source")
    unconfigure(machine)


def datagrams_of_a_proxy(machine, _packages):
    """Version 2 in each datagram: the reply has no header; datagrams without one are dropped."""
    drop_in(machine, UNIT, "udp", f"[Socket]\nListenDatagram=127.0.0.1:{PORT}")
    machine.run(f"systemctl stop {UNIT} {SERVICE} && systemctl start {UNIT} {SERVICE}")
    options = "-c 20 -d 500ms --json --proxy-protocol v2 --proxy-source 10.0.0.0/8"
    result = json.loads(machine.run(f"echo-load udp://127.0.0.1:{PORT} {options}").stdout)
    plain = machine.run(f"echo-load udp://127.0.0.1:{PORT} -d 300ms --timeout 300ms", check=False)
    expect(plain.returncode == 1, f"datagrams without a header are answered: {plain.stdout}")
    remove_drop_in(machine, UNIT, "udp")
    machine.run(f"systemctl stop {UNIT} {SERVICE} && systemctl start {UNIT} {SERVICE}")
    return f"{result['messages']} datagrams"


def as_before(machine, _packages):
    """Without the examples there is no port for proxies."""
    machine.run(
        f"systemctl disable --now {UNIT}; rm /etc/systemd/system/{UNIT}"
        f" {CONFIGURATION}/proxy-protocol.toml; rmdir {CONFIGURATION} 2>/dev/null;"
        f" systemctl daemon-reload && systemctl restart {SOCKET} {SERVICE}"
    )
    report = machine.traffic("echo", "--address", "127.0.0.1", "--port", PORT)
    expect(report["refused"], f"port {PORT} is still open: {report}")
    echoes(machine)


STEPS = [
    ("PROXY by HAProxy", announced_by_haproxy),
    ("PROXY by nginx", announced_by_nginx),
    ("PROXY and limits", limits_apply_to_clients),
    ("PROXY and restarts", proxies_and_restarts),
    ("PROXY over UDP", datagrams_of_a_proxy),
    ("PROXY off", as_before),
]
