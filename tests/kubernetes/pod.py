"""Runs the daemon with the configuration of the ConfigMap, as the kubelet would: pod.py FILE DAEMON CLIENT, in
namespaces of its own (run). User, groups, capabilities, arguments, paths, probes and the grace period are read
from the manifest. Runs the script that installs the seccomp profile as well."""

import ctypes
import filecmp
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.dont_write_bytecode = True

import relations  # noqa: E402
import yaml  # noqa: E402
from relations import container, expect, find, pod  # noqa: E402

PR_SET_NO_NEW_PRIVS = 38
# How long something may take that takes milliseconds on an idle machine.
SOON = 10


def eventually(condition, what, limit=SOON):
    end = time.monotonic() + limit
    while not condition():
        expect(time.monotonic() < end, f"not within {limit} s: {what}")
        time.sleep(0.02)


def mount_config_map(directory, files):
    """As the kubelet writes a ConfigMap: each name is a link to a link to the file."""
    versioned = directory / "..2026_01_01_00_00_00.1"
    versioned.mkdir(parents=True)
    for name, text in files.items():
        (versioned / name).write_text(text)
        (directory / name).symlink_to(f"..data/{name}")
    (directory / "..data").symlink_to(versioned.name)


def lay_out(objects):
    """The volumes, on empty directories: what is there on this machine is not touched."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for directory in ("/etc", "/run"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory], check=True)
    group = pod(objects)["spec"]["securityContext"]["fsGroup"]
    volumes = {it["name"]: it for it in pod(objects)["spec"]["volumes"]}
    for mount in container(objects)["volumeMounts"]:
        path, volume = pathlib.Path(mount["mountPath"]), volumes[mount["name"]]
        if "configMap" in volume:
            mount_config_map(path, find(objects, "ConfigMap")["data"])
        else:
            # Of a volume the group alone is that of the pod, so nothing else may be needed.
            path.mkdir(parents=True)
            os.chown(path, 0, group)
            path.chmod(0o2770)


def start(objects, program):
    context = pod(objects)["spec"]["securityContext"]
    libc = ctypes.CDLL(None)

    def confine():
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    # A change of the user from root drops all capabilities.
    return subprocess.Popen(
        [program, *container(objects)["args"]],
        user=context["runAsUser"],
        group=context["runAsGroup"],
        extra_groups=[context["fsGroup"]],
        preexec_fn=confine,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin"},
    )


class Probe:
    """A probe of the manifest, or a path at its port."""

    def __init__(self, objects):
        self.objects = objects
        self.ports = {it["name"]: it["containerPort"] for it in container(objects)["ports"]}

    def __call__(self, path):
        """The status; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://[::1]:{self.ports['metrics']}{path}", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def is_ready(self):
        """The readiness probe of the manifest."""
        return self(container(self.objects)["readinessProbe"]["httpGet"]["path"]) == 200

    def is_live(self):
        return self(container(self.objects)["livenessProbe"]["httpGet"]["path"]) == 200

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.ports["echo-tcp"]), timeout=SOON)


def echoes(connection, word=b"word"):
    connection.sendall(word)
    return connection.recv(len(word), socket.MSG_WAITALL) == word


def serves(probe, client):
    """TCP and UDP, IPv4 and IPv6, every byte verified by the client."""
    for protocol, name in (("tcp", "echo-tcp"), ("udp", "echo-udp")):
        for host in ("127.0.0.1", "[::1]"):
            target = f"{protocol}://{host}:{probe.ports[name]}"
            command = [client, "-c", "8", "-d", "500ms", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            expect(done.returncode == 0, f"{target}: {done.stdout} {done.stderr}")
    with urllib.request.urlopen(f"http://127.0.0.1:{probe.ports['metrics']}/metrics", timeout=5) as answer:
        expect(b"echo_uring_ready 1" in answer.read(), "metrics")


def stops(daemon, probe, objects):
    """A stop, as seen by probes and clients. Returns how long it took, and the part with new clients."""
    timeouts = relations.configuration(objects)["timeouts"]
    lead, drain = (relations.seconds(timeouts[key]) for key in ("drain-lead", "drain"))
    old = probe.connect()
    expect(echoes(old), "no echo")
    began = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    eventually(lambda: probe("/ready") == 503, "/ready to say 503")
    last = 0
    while probe.is_ready():
        # A client that connects while the probe succeeds is served, unless accepting ends between the two.
        try:
            with probe.connect() as client:
                expect(echoes(client), "a new client has no echo")
            last = time.monotonic() - began
        except OSError:
            eventually(lambda: not probe.is_ready(), "the probe to fail, as accepting has ended", 2)
        expect(time.monotonic() - began < lead + drain, "the probe succeeds during the drain")
        time.sleep(0.1)
    expect(last > lead - 2, f"new clients were served for {last:.1f} s, and the lead is {lead:g} s")
    expect(probe.is_live(), "the liveness probe fails during a stop")
    expect(probe("/serving") == 503 and probe("/ready") == 503, "a probe succeeds during the drain")
    expect(echoes(old), "no echo during the drain")
    old.close()
    expect(daemon.wait(timeout=SOON) == 0, f"exit status {daemon.returncode}: {daemon.stderr.read()}")
    return time.monotonic() - began, last


def the_profile_is_installed(objects):
    """The script of the DaemonSet, by every shell that is here, as root without capabilities."""
    data = find(objects, "ConfigMap")["data"]
    template = find(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    script, source, destination = template["command"][1:]
    probe = template["readinessProbe"]["exec"]["command"]
    shells = [["sh"]]
    if busybox := shutil.which("busybox"):
        shells.append([busybox, "sh"])
    for shell in shells:
        with tempfile.TemporaryDirectory() as scratch:
            here = {path: f"{scratch}{path}" for path in (script, source, destination)}
            for path in here.values():
                pathlib.Path(path).parent.mkdir(exist_ok=True)
            for path in (script, source):
                pathlib.Path(here[path]).write_text(data[path.rsplit("/", 1)[1]])
            # An older version of the profile is replaced.
            pathlib.Path(here[destination]).write_text("{}")
            confined = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
            process = subprocess.Popen([*confined, *shell, *here.values()], stdout=subprocess.DEVNULL)
            check = [here.get(word, word) for word in probe]
            eventually(lambda: subprocess.run(check, check=False).returncode == 0, f"{shell} to install it")
            expect(filecmp.cmp(here[source], here[destination], shallow=False), "another profile")
            process.terminate()
            expect(process.wait(timeout=SOON) == 0, f"{shell}: exit status {process.returncode}")
            left = sorted(it.name for it in pathlib.Path(here[destination]).parent.iterdir())
            expect(left == [destination.rsplit("/", 1)[1]], f"{shell} left {left}")
    return len(shells)


def main():
    manifests, program, client = sys.argv[1:]
    texts = json.loads(pathlib.Path(manifests).read_text())
    rendered = {name: list(yaml.safe_load_all(text)) for name, text in texts.items()}
    objects = rendered["base"]
    shells = the_profile_is_installed(rendered["nodes"])
    print(f"the seccomp profile was installed by {shells} of the shells sh and busybox sh")
    lay_out(objects)
    daemon = start(objects, program)
    probe = Probe(objects)
    try:
        # Its end is an answer as well.
        eventually(lambda: probe.is_ready() or daemon.poll() is not None, "the readiness probe")
        expect(daemon.poll() is None, f"the daemon has ended: {daemon.poll()}")
        expect(probe.is_live() and probe("/ready") == 200, "a probe fails")
        serves(probe, client)
        status = subprocess.run([program, "status"], capture_output=True, text=True, check=False)
        expect(status.returncode == 0 and ": ready, up " in status.stdout, f"status: {status}")
        took, served = stops(daemon, probe, objects)
    except AssertionError:
        daemon.kill()
        print(daemon.stderr.read(), file=sys.stderr)
        raise
    grace = pod(objects)["spec"]["terminationGracePeriodSeconds"]
    print(
        f"the pod: TCP and UDP verified; after SIGTERM new clients were served for {served:.1f} s; it ended after "
        f"{took:.1f} s of {grace} s"
    )


if __name__ == "__main__":
    try:
        main()
    except AssertionError as failure:
        sys.exit(f"pod: {failure}")
