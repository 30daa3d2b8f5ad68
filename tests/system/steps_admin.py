"""What an operator sees of the running daemon: the status socket, metrics, readiness, alerts.

Prometheus and its promtool run on the host, in the machine's network, as an operator's would beside
the daemon.
"""

import json
import pathlib
import subprocess
import tempfile
import time

from checks import SERVICE, drop_in, echoes, is_active, remove_drop_in
from machine import eventually, expect

STATUS_SOCKET = "echo-uring-status.socket"
METRICS_SOCKET = "echo-uring-metrics.socket"
PATH = "/run/echo-uring/status.sock"
METRICS = "127.0.0.1:17007"
# A port of Prometheus in the machine's network namespace.
PROMETHEUS = "127.0.0.1:9090"
PACKAGING = pathlib.Path(__file__).resolve().parents[2] / "packaging"


def status(machine):
    return json.loads(machine.run("echo-uring status --json").stdout)


def fetch(machine, address, path="/"):
    """The status code and the body that a server in the machine's network answers with."""
    curl = ["curl", "--silent", "--max-time", "10", "--write-out", "\n%{http_code}"]
    process = subprocess.run(
        machine.in_its_network(*curl, f"http://{address}{path}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    body, _, code = process.stdout.rpartition("\n")
    return int(code), body


def tells_its_status(machine, _packages):
    """`echo-uring status` works for root and a group and no other user; it starts no daemon."""
    machine.run(f"systemctl restart {SERVICE}")
    echoes(machine)
    expect(is_active(machine, STATUS_SOCKET), f"{STATUS_SOCKET} is not active")
    seen = eventually(
        lambda: (seen := status(machine))["total"]["closed"]["finished"] == 2 and seen,
        5,
        "two connections that have ended are not in the status",
    )
    addresses = sorted(listener["address"] for listener in seen["listeners"])
    expect(addresses == ["127.0.0.1:7", "[::1]:7"], f"the listeners are {addresses}")
    mode = machine.run(f"stat -c '%a %U %G' {PATH}").stdout.strip()
    expect(mode == "660 root root", f"{PATH} is {mode}")
    stranger = "setpriv --reuid=nobody --regid=nogroup --clear-groups echo-uring status"
    refused = machine.run(stranger, check=False)
    expect(refused.returncode == 69, f"nobody got {refused.returncode}: {refused.stdout}")
    expect("SocketGroup=" in refused.stdout, f"no remedy is named: {refused.stdout}")

    example = "/usr/share/doc/echo-uring/examples/status-group.conf"
    text = machine.run(f"cat {example}").stdout
    drop_in(machine, STATUS_SOCKET, "group", text)
    machine.run(f"systemctl restart {SERVICE}")
    mode = machine.run(f"stat -c '%a %U %G' {PATH}").stdout.strip()
    expect(mode == "660 root adm", f"with the drop-in {PATH} is {mode}")
    member = "setpriv --reuid=nobody --regid=nogroup --groups=adm echo-uring status"
    machine.run(member)
    remove_drop_in(machine, STATUS_SOCKET, "group")

    machine.run(f"systemctl stop echo-uring.socket {SERVICE}")
    stopped = machine.run("echo-uring status", check=False)
    expect(stopped.returncode == 69, f"of a stopped daemon: {stopped.stdout}")
    expect("systemctl status" in stopped.stdout, f"no remedy is named: {stopped.stdout}")
    expect(not is_active(machine, SERVICE), "asking for the status started the daemon")
    machine.run(f"systemctl start {SERVICE}")
    return f"{len(seen['workers'])} workers"


def is_scraped(machine, _packages):
    """The metrics socket is off; enabled, promtool and a real Prometheus accept the metrics."""
    expect(not is_active(machine, METRICS_SOCKET), f"{METRICS_SOCKET} is on by default")
    machine.run(f"systemctl enable {METRICS_SOCKET} && systemctl restart {SERVICE}")
    expect(is_active(machine, METRICS_SOCKET), f"{METRICS_SOCKET} is not active")
    comes_back_with_the_service(machine)
    echoes(machine)
    code, text = fetch(machine, METRICS, "/metrics")
    expect(code == 200, f"/metrics answers {code}")
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    complaints = check.stdout + check.stderr
    expect(check.returncode == 0 and not complaints, f"promtool check metrics says: {complaints}")
    for command in (
        ("check", "rules", PACKAGING / "prometheus/echo-uring.rules.yml"),
        ("test", "rules", PACKAGING / "prometheus/echo-uring.rules.test.yml"),
        ("check", "config", "--syntax-only", PACKAGING / "prometheus/prometheus.yml"),
    ):
        tool = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        expect(tool.returncode == 0, f"promtool {command[0]} {command[1]}: {tool.stdout}")
    with tempfile.TemporaryDirectory() as directory:
        return scrape(machine, pathlib.Path(directory))


def comes_back_with_the_service(machine):
    """No restart of the service leaves the metrics socket closed, and no restart of the echo socket
    leaves the echo socket closed.

    A child of systemd that cleans up may still hold the old sockets when the new ones are bound."""
    for unit, restarted, count in (
        (METRICS_SOCKET, SERVICE, 40),
        ("echo-uring.socket", "echo-uring.socket", 20),
    ):
        failed = machine.run(
            f"for n in $(seq {count}); do systemctl reset-failed {unit};"
            f" systemctl restart {restarted}; systemctl is-active --quiet {unit} || echo $n; done"
        ).stdout.split()
        expect(not failed, f"{unit} was closed after restart {failed} of {count} of {restarted}")


def scrape(machine, directory):
    """Runs Prometheus until it has the metrics, and evaluates every expression that we ship."""
    config = directory / "prometheus.yml"
    scrapes = [
        {
            "job_name": "echo-uring",
            "scrape_interval": "1s",
            "static_configs": [{"targets": [METRICS]}],
        }
    ]
    # JSON is valid YAML.
    rules = [str(PACKAGING / "prometheus/echo-uring.rules.yml")]
    config.write_text(json.dumps({"scrape_configs": scrapes, "rule_files": rules}))
    prometheus = machine.start(
        machine.in_its_network(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={PROMETHEUS}",
        )
    )

    def query(expression):
        encoded = "".join(f"%{byte:02x}" for byte in expression.encode())
        code, body = fetch(machine, PROMETHEUS, f"/api/v1/query?query={encoded}")
        if code != 200:
            return None
        return json.loads(body)["data"]["result"]

    try:
        echoed = 'sum(echo_uring_sent_bytes_total{job="echo-uring"}) > 0'
        eventually(lambda: query(echoed), 30, "Prometheus did not scrape the metrics")
        down = query('up{job="echo-uring"} == 0')
        expect(down == [], f"Prometheus calls it down: {down}")
        echoes(machine)
        time.sleep(3)
        dashboard = json.loads((PACKAGING / "grafana/echo-uring.json").read_text())
        targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
        for target in targets:
            expression = target["expr"].replace("$__rate_interval", "10s")
            expression = expression.replace("$instance", ".+")
            found = query(expression)
            expect(found is not None, f"the dashboard's expression is wrong: {expression}")
            # The shipped socket unit has no UDP.
            may_be_empty = "> 0" in expression or "_datagram" in expression
            expect(found or may_be_empty, f"the dashboard has nothing to show for: {expression}")
        alerts = query('ALERTS{alertstate="firing"}')
        expect(alerts == [], f"an idle daemon raises alerts: {alerts}")
    finally:
        prometheus.terminate()
        prometheus.wait(timeout=20)
    return f"{len(targets)} expressions of the dashboard have data"


def announces_its_end(machine, _packages):
    """/ready returns 503 during the lead time, while connections are still accepted."""
    machine.run("cp /etc/echo-uring.toml /var/tmp/saved.toml")
    machine.run("sed -i 's/^drain-lead = .*/drain-lead = \"4s\"/' /etc/echo-uring.toml")
    machine.run(f"systemctl restart {SERVICE}")
    code, _ = fetch(machine, METRICS, "/ready")
    expect(code == 200, f"/ready answers {code}")
    started = time.monotonic()
    machine.run(f"systemctl stop --no-block {SERVICE}")
    eventually(lambda: fetch(machine, METRICS, "/ready")[0] == 503, 3, "/ready does not say 503")
    for path in ("/healthz", "/serving"):
        expect(fetch(machine, METRICS, path)[0] == 200, f"{path} is not 200 in the lead time")
    echoes(machine)
    seconds = time.monotonic() - started
    expect(seconds < 4, f"seeing it took {seconds:.1f} s, longer than the lead time")
    machine.run("mv /var/tmp/saved.toml /etc/echo-uring.toml")
    eventually(lambda: not is_active(machine, METRICS_SOCKET), 20, "the metrics socket stays open")
    machine.run(f"systemctl disable {METRICS_SOCKET} && systemctl start {SERVICE}")
    expect(not is_active(machine, METRICS_SOCKET), "the metrics socket came back")
    return f"503 and an echo after {seconds:.1f} s"


STEPS = [
    ("status command", tells_its_status),
    ("metrics", is_scraped),
    ("drain announced", announces_its_end),
]
