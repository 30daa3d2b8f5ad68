"""The package of echo-load beside that of the daemon: alone, together, one without the other, and
over version 0.1.0, which had both programs in one package; see `steps.py`.

It uses apt, dpkg and the command line of echo-load. `steps_upgrade.py` tests the daemon and its
connections over an upgrade.
"""

import contextlib
import shutil
import subprocess

from checks import SERVICE, echoes, is_active, place, place_client
from machine import expect
from steps_package import INSTALL, PURGE, is_silent

CLIENT = "/usr/bin/echo-load"
LOAD = "echo-load --connections 4 --duration 1s --no-progress"
REPOSITORY = "/var/tmp/repository"
# Only this repository: the machine has no network, and the lists of its installation.
ONLY = (
    "-o Dir::Etc::SourceList=/var/tmp/repository/sources.list -o Dir::Etc::SourceParts=/dev/null"
    " -o APT::Get::List-Cleanup=false -o Acquire::Languages=none"
)
# The default of apt, which this machine otherwise overrides.
RECOMMENDS = "-o APT::Install-Recommends=true"
# An echo server of other software: a process of cat for each connection.
PLAIN = "/run/systemd/system/plain"
PLAIN_PORT = 7007


def version_of(package):
    """The version of the program in a package: that of the package without its revision."""
    command = ["dpkg-deb", "--field", package, "Version"]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return text.strip().rsplit("-", 1)[0]


def owner(machine, path):
    """The package that a file belongs to; empty if none."""
    return machine.run(f"dpkg --search {path} 2>/dev/null || true").stdout.partition(":")[0]


def client_works(machine, packages, port=7):
    """Checks that the client is that of the package under test, and that it finds no wrong byte."""
    expect(owner(machine, CLIENT) == "echo-load", f"{CLIENT} is of {owner(machine, CLIENT)!r}")
    said = machine.run("echo-load --version").stdout.strip()
    wanted = f"echo-load {version_of(packages.client)}"
    expect(said == wanted, f"it says {said!r} and not {wanted!r}")
    machine.run("dpkg --verify echo-load && test -s /usr/share/man/man1/echo-load.1.gz")
    report = machine.run(f"{LOAD} tcp://127.0.0.1:{port}").stdout
    expect("none (every byte verified)" in report, f"echo-load reports:\n{report}")


def nothing_is_left(machine, name):
    """Checks that no file of a package is left."""
    files = machine.run(f"find / /run -xdev -iname '*{name}*'").stdout.strip()
    expect(not files, f"of {name} there are left:\n{files}")


@contextlib.contextmanager
def plain_server(machine):
    """An echo server made of systemd and cat."""
    machine.run(
        f"printf '[Socket]\\nListenStream=127.0.0.1:{PLAIN_PORT}\\nAccept=yes\\n' >{PLAIN}.socket;"
        f" printf '[Service]\\nExecStart=cat\\nStandardInput=socket\\n' >{PLAIN}@.service;"
        " systemctl daemon-reload && systemctl start plain.socket"
    )
    try:
        yield
    finally:
        machine.run(f"systemctl stop plain.socket; rm {PLAIN}.socket {PLAIN}@.service")
        machine.run("systemctl daemon-reload")


def client_needs_no_daemon(machine, packages):
    """Without the daemon the client can be installed, tests another server, and can be purged."""
    said = machine.run(f"apt-get install --yes {RECOMMENDS} {place_client(machine, packages)}")
    is_silent(said.stdout)
    nothing_is_left(machine, "echo-uring")
    with plain_server(machine):
        client_works(machine, packages, PLAIN_PORT)
    machine.run("apt-get purge --yes echo-load")
    nothing_is_left(machine, "echo-load")


def neither_takes_the_other(machine, packages):
    """Removing or purging one package does not affect the other."""
    client, package = place_client(machine, packages), place(machine, packages.current)
    for verb in ("remove", "purge"):
        is_silent(machine.run(f"{INSTALL} {client} {package}").stdout)
        client_works(machine, packages)
        pid = machine.show(SERVICE, "MainPID")
        machine.run(f"apt-get {verb} --yes echo-load")
        nothing_is_left(machine, "echo-load")
        expect(machine.show(SERVICE, "MainPID") == pid, f"{verb} of echo-load met the service")
        echoes(machine)
        machine.run(f"{INSTALL} {client} && apt-get {verb} --yes echo-uring")
        expect(not is_active(machine, SERVICE), f"the service runs after {verb}")
        with plain_server(machine):
            client_works(machine, packages, PLAIN_PORT)
    nothing_is_left(machine, "echo-uring")
    machine.run("apt-get purge --yes echo-load")


def first_version(machine, packages):
    """Installs the original 0.1.0, which has the client in the same package."""
    machine.run(f"{INSTALL} {place(machine, packages.baseline)}")
    expect(owner(machine, CLIENT) == "echo-uring", "0.1.0 has no client")
    echoes(machine)


def fill_repository(machine, packages):
    """A repository that has both packages, with an index and without a signature."""
    directory = machine.root / REPOSITORY.removeprefix("/")
    directory.mkdir()
    shutil.copyfile(packages.current, directory / "daemon.deb")
    shutil.copyfile(packages.client, directory / "client.deb")
    # An index as dpkg-scanpackages makes it, with the fields that apt needs.
    entries = []
    for path in sorted(directory.glob("*.deb")):
        fields = subprocess.run(
            ["dpkg-deb", "--field", path], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        digest = subprocess.run(
            ["sha256sum", path], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()[0]
        size = path.stat().st_size
        where = f"Filename: ./{path.name}\nSize: {size}\nSHA256: {digest}"
        entries.append(f"{fields.strip()}\n{where}\n")
    (directory / "Packages").write_text("\n".join(entries))
    (directory / "sources.list").write_text(f"deb [trusted=yes] file:{REPOSITORY} ./\n")
    machine.run(f"apt-get update {ONLY}")


def both_are_whole(machine, packages):
    """After an upgrade dpkg has nothing to complain about, and both programs work."""
    audit = machine.run("dpkg --audit").stdout.strip()
    expect(not audit, f"dpkg --audit says:\n{audit}")
    machine.run("dpkg --verify echo-uring")
    echoes(machine)
    client_works(machine, packages)


def upgrade_keeps_the_client(machine, packages):
    """0.1.0 upgraded with the usual commands: apt installs the client, as it is recommended. Where
    apt may not install new packages it leaves 0.1.0 installed."""
    fill_repository(machine, packages)
    first_version(machine, packages)
    machine.run(f"apt-get {ONLY} {RECOMMENDS} --yes upgrade")
    expect(owner(machine, CLIENT) == "echo-uring", "apt-get upgrade took the client away")
    for verb in ("upgrade --with-new-pkgs", "install echo-uring", "dist-upgrade"):
        first_version(machine, packages)
        is_silent(machine.run(f"apt-get {ONLY} {RECOMMENDS} --yes {verb}").stdout)
        both_are_whole(machine, packages)
        machine.run(f"{PURGE} && dpkg --purge echo-load")
    machine.run(f"rm -r {REPOSITORY}")
    # And from files, as README.md describes.
    first_version(machine, packages)
    files = f"{place(machine, packages.current)} {place_client(machine, packages)}"
    is_silent(machine.run(f"apt-get install --yes {files}").stdout)
    both_are_whole(machine, packages)
    machine.run(f"{PURGE} && dpkg --purge echo-load")


def upgrade_without_the_client(machine, packages):
    """The daemon's package alone over 0.1.0 removes the client and nothing else. The client's
    package can be installed afterwards, but not before."""
    first_version(machine, packages)
    client = place_client(machine, packages)
    refused = machine.run(f"{INSTALL} {client}", check=False)
    expect(refused.returncode != 0, "dpkg took the client beside 0.1.0, which has the same files")
    expect("breaks echo-uring" in refused.stdout, f"dpkg does not say why: {refused.stdout}")
    expect(owner(machine, CLIENT) == "echo-uring", "the refused package took the client")
    echoes(machine)
    is_silent(machine.run(f"{INSTALL} {place(machine, packages.current)}").stdout)
    expect(not owner(machine, CLIENT), f"{CLIENT} is of a package that is not installed")
    machine.run(f"test ! -e {CLIENT}")
    echoes(machine)
    is_silent(machine.run(f"{INSTALL} {client}").stdout)
    both_are_whole(machine, packages)
    machine.run(f"{PURGE} && dpkg --purge echo-load")
    nothing_is_left(machine, "echo-uring")


FIRST = [("client alone", client_needs_no_daemon)]
LAST = [("one without the other", neither_takes_the_other)]
KEEPS, WITHOUT = "upgrade keeps client", "upgrade without client"
NEED_BASELINE = {KEEPS, WITHOUT}
UPGRADES = [
    (KEEPS, upgrade_keeps_the_client),
    (WITHOUT, upgrade_without_the_client),
]
