"""What the host has to provide: tools, a mirror, the packages.

This file must know nothing about the machines.
"""

import os
import pathlib
import re
import shutil
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# The commit of version 0.1.0, the first release.
BASELINE = "94ae6b1737c3e89f4ef4d80905dbda569eaae293"
# A quick build matters more here than a fast program; the behaviour is the same.
BASELINE_PROFILE = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_PROFILE_RELEASE_DEBUG": "false",
}
# Each tool with its Debian package.
TOOLS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "strace": "strace",
    "scmp_sys_resolver": "seccomp",
    "ip": "iproute2",
    "dpkg-deb": "dpkg",
    "dpkg-shlibdeps": "dpkg-dev",
    "lintian": "lintian",
    "curl": "curl",
    "git": "git",
    "promtool": "prometheus",
    "haproxy": "haproxy",
    # With its module for streams.
    "nginx": "nginx-full",
    "nmap": "nmap",
    "man": "man-db",
    "mandoc": "mandoc",
    "zsh": "zsh",
    "fish": "fish",
}


class Unready(Exception):
    """The host cannot run the test; the text says what to do about it."""


def output_of(*command, **options):
    process = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False, **options
    )
    return process.stdout.strip()


def check_prerequisites(work_directory):
    """Raises `Unready` where this host cannot run the test at all."""
    if os.geteuid() != 0:
        raise Unready("needs root, for booting machines: run it with sudo")
    if not shutil.which("apt-get"):
        raise Unready("needs a Debian host, for its apt and debootstrap")
    switch = pathlib.Path("/proc/sys/kernel/io_uring_disabled")
    if switch.exists() and switch.read_text().strip() != "0":
        raise Unready(
            f"io_uring is switched off on this host: sysctl kernel.io_uring_disabled=0 ({switch})"
        )
    free = shutil.disk_usage(work_directory).free
    if free < 2 << 30:
        raise Unready(
            f"needs 2 GiB in {work_directory}, which has {free >> 20} MiB: use --work-dir"
        )


def install_tools(say):
    """Installs by apt the tools that are missing."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    for command in (["apt-get", "update"], install):
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
        if process.returncode != 0 and command is install:
            raise Unready(f"{' '.join(command)} failed:\n{process.stdout}{process.stderr}")


def find_mirror():
    """The Debian mirror that this host's own apt uses."""
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    list_targets = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    # A host that never ran `apt-get update` has no origins yet.
    for targets in (output_of(*list_targets), None):
        if targets is None:
            output_of("apt-get", "update", "--quiet", stderr=subprocess.STDOUT)
            targets = output_of(*list_targets)
        for line in targets.splitlines():
            origin, label, uri = line.split("|", 2)
            if origin == label == "Debian" and uri.startswith(("http:", "https:", "file:")):
                return uri.rstrip("/")
    raise Unready("apt on this host has no Debian mirror: name one with --mirror")


def proxy_environment():
    """apt's proxy, in the form that debootstrap's downloader understands."""
    for scheme in ("http", "https"):
        text = output_of("apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy")
        match = re.fullmatch(r"PROXY='(.+)'", text)
        if match and match.group(1) != "DIRECT":
            os.environ.setdefault(f"{scheme}_proxy", match.group(1))


def check_signatures():
    """Without keys debootstrap continues without a warning; here that is an error."""
    keyring = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.exists():
        raise Unready("no keys to verify the archive with: apt-get install debian-archive-keyring")


class Packages:
    """The packages under test: that of the daemon (`current`), that of the client, the daemon's
    content with a higher version (`newer`), and, if a step needs it, that of the first version,
    which had both programs (`baseline`)."""

    baseline = None

    def __init__(self, current, client, work_directory):
        self.current = pathlib.Path(current).resolve()
        # build-deb leaves them side by side.
        beside = self.current.with_name(self.current.name.replace("echo-uring_", "echo-load_", 1))
        self.client = pathlib.Path(client).resolve() if client else beside
        for package, name in ((self.current, "echo-uring"), (self.client, "echo-load")):
            if not package.is_file():
                raise Unready(f"there is no package {package} (--deb, --client-deb)")
            found = output_of("dpkg-deb", "--field", str(package), "Package")
            if found != name:
                raise Unready(f"{package} is {found}, not {name} (--deb, --client-deb)")
        version = output_of("dpkg-deb", "--field", str(self.current), "Version")
        self.newer_version = f"{version}+newer"
        self.newer = work_directory / "newer.deb"
        tree = work_directory / "newer"
        subprocess.run(["dpkg-deb", "--raw-extract", str(self.current), str(tree)], check=True)
        control = tree / "DEBIAN/control"
        old, new = f"Version: {version}\n", f"Version: {self.newer_version}\n"
        control.write_text(control.read_text().replace(old, new))
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(self.newer)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)


def build_package(tree=REPOSITORY, environment=None):
    """Builds the packages of a source tree and returns the path of the daemon's."""
    process = subprocess.run(
        [str(tree / "packaging/build-deb")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if process.returncode != 0:
        raise Unready(f"{tree}/packaging/build-deb failed:\n{process.stdout}")
    return process.stdout.strip().splitlines()[-1]


def build_baseline(work_directory):
    """Builds the package of BASELINE and returns its path. It is kept in the target directory of
    this source tree for the next run."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    kept = target / "baseline" / f"{BASELINE}.deb"
    if kept.exists():
        return kept
    git = ["git", "-C", str(REPOSITORY), "-c", f"safe.directory={REPOSITORY}"]
    tree = work_directory / "baseline"
    tree.mkdir()
    archive = subprocess.Popen([*git, "archive", BASELINE], stdout=subprocess.PIPE)
    unpacked = subprocess.run(["tar", "--extract", "--directory", tree], stdin=archive.stdout)
    if archive.wait() != 0 or unpacked.returncode != 0:
        raise Unready(
            f"needs the commit {BASELINE}, to upgrade from it: this is no clone with its history "
            "(git fetch --unshallow), or name a package built of it with --baseline"
        )
    environment = {**BASELINE_PROFILE, "CARGO_TARGET_DIR": str(target / "baseline")}
    built = build_package(tree, environment)
    shutil.move(built, kept)
    # Some hundred MB that are not needed again.
    shutil.rmtree(target / "baseline/release")
    shutil.rmtree(tree)
    return kept


def lint(package):
    """lintian's errors and warnings about the package; empty when it has none."""
    process = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(package)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process.stdout.strip() if process.returncode != 0 else ""
