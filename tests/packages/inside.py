"""The steps of tests/packages/run, one after another, inside the root directory.

systemctl is replaced by a recorder where a running systemd would be asked: it notes what is asked of it, answers
as a machine on which the daemon runs, and passes on what needs no running systemd (enable, disable, preset).
"""

import os
import pathlib
import pwd
import stat
import subprocess
import sys

ROOT = pathlib.Path("/root")
CONFIGURATION = pathlib.Path("/etc/echo-uring.toml")
CALLS = pathlib.Path("/root/calls")
# rpm gives scriptlets a PATH of its own, so the recorder takes the place of the program.
SYSTEMCTL = pathlib.Path("/usr/bin/systemctl")
RUNNING = pathlib.Path("/run/systemd/system")
WANTS = pathlib.Path("/etc/systemd/system/multi-user.target.wants/echo-uring.service")
PROGRAM = "/usr/sbin/echo-uring"
# The version of RHEL 9 and Fedora 35.
GLIBC_MAX = (2, 34)
# Debian's rpm has an empty database: the libraries are there, and rpm does not know it.
RPM = ["rpm", "--nodeps"]

RECORDER_TEXT = r"""#!/bin/sh
echo "$*" >>/root/calls
case "$*" in
*list-units*--state=active*) echo 'echo-uring.service loaded active running' ;;
*list-units*) ;;
*show*ExecStart*) cat /root/exec-start ;;
*'disable --now '*) shift 3 && SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl.real disable "$@" ;;
*preset*) SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl.real "$@" ;;
esac
"""


def expect(condition, sentence):
    """Ends the test with `sentence` unless `condition` holds."""
    if not condition:
        raise AssertionError(sentence)


def run(*command, check=True, **environment):
    """A command; returns status and text."""
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    expect(result.returncode == 0 or not check, f"{command}: {result.stdout}")
    return result.returncode, result.stdout


def calls():
    """The calls of systemctl since the last query."""
    text = CALLS.read_text() if CALLS.exists() else ""
    CALLS.unlink(missing_ok=True)
    return text.splitlines()


def exec_start(line):
    """The command line of the running unit."""
    shown = f"{{ path={PROGRAM} ; argv[]={line} ; ignore_errors=no ; pid=0 }}\n"
    (ROOT / "exec-start").write_text(shown)


def requires_no_newer_library():
    """Requirements: the C library of RHEL 9, the shell, and no package that only Debian has."""
    for name in ("echo-uring", "echo-load"):
        for line in run("rpm", "-qp", "--requires", str(ROOT / f"{name}-first.rpm"))[1].splitlines():
            if "(GLIBC_" in line:
                version = line.split("(GLIBC_")[1].split(")")[0]
                expect(tuple(map(int, version.split(".")))[:2] <= GLIBC_MAX, line)
            else:
                known = ("libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux", "rpmlib(", "rtld(")
                known += ("/bin/sh", "config(")
                expect(line.startswith(known), f"{name} requires {line}")


def the_configuration_is_never_replaced():
    """config(noreplace), which an upgrade shows only where the packaged file has changed."""
    query = "[%{FILENAMES} %{FILEFLAGS:fflags}\\n]"
    text = run("rpm", "-qp", "--queryformat", query, str(ROOT / "echo-uring-first.rpm"))[1]
    flags = [line.split() for line in text.splitlines() if line.startswith("/etc/")]
    # c: config, n: noreplace (rpm/build/parseFiles.c). A directory has none.
    expect(flags == [[str(CONFIGURATION), "cn"], ["/etc/echo-uring.toml.d"]], f"the flags are {flags}")


def installs_where_systemd_does_not_run():
    """Image builds: no error, the user and the preset, and a program that runs."""
    # The policy of this machine; a distribution has its own.
    preset = pathlib.Path("/etc/systemd/system-preset/00-test.preset")
    preset.parent.mkdir(parents=True, exist_ok=True)
    preset.write_text("enable echo-uring.s*\ndisable *\n")
    output = run(*RPM, "-i", str(ROOT / "echo-uring-first.rpm"), str(ROOT / "echo-load-first.rpm"))[1]
    expect("fail" not in output.lower() and "error" not in output.lower(), output)
    expect(pwd.getpwnam("echo-uring").pw_shell.endswith("nologin"), "the user has a login shell")
    expect(WANTS.is_symlink(), "the preset was not applied")
    expect(not list(WANTS.parent.glob("*metrics*")), "the preset enabled what it was not asked for")
    for path, mode in ((PROGRAM, 0o755), (CONFIGURATION, 0o644), ("/etc/echo-uring.toml.d", 0o755)):
        found = os.stat(path)
        owned = (found.st_uid, found.st_gid) == (0, 0)
        expect(stat.S_IMODE(found.st_mode) == mode and owned, f"{path}: {found}")
    run(PROGRAM, "check")
    run("echo-load", "--version")
    verified = run("rpm", "--verify", "--nodeps", "echo-uring", "echo-load", check=False)
    expect(verified == (0, ""), f"rpm --verify: {verified}")


def an_upgrade_keeps_the_configuration_and_the_sockets():
    """With a systemd that runs: one restart, of the service, after the files are in place."""
    RUNNING.mkdir(parents=True, exist_ok=True)
    SYSTEMCTL.rename("/usr/bin/systemctl.real")
    SYSTEMCTL.write_text(RECORDER_TEXT)
    SYSTEMCTL.chmod(0o755)
    exec_start(f"{PROGRAM} serve")
    edited = CONFIGURATION.read_text().replace('drain = "10s"', 'drain = "11s"')
    CONFIGURATION.write_text(edited)
    # Disabled as by an administrator.
    WANTS.unlink()
    calls()
    run(*RPM, "-U", str(ROOT / "echo-uring-second.rpm"), str(ROOT / "echo-load-second.rpm"))
    expect(CONFIGURATION.read_text() == edited, "the edited configuration was replaced")
    asked = calls()
    restarts = [line for line in asked if "restart" in line or "stop" in line or "disable" in line]
    expect(restarts == ["try-restart echo-uring.service"], f"asked was: {asked}")
    expect(not any("preset" in line for line in asked), "an upgrade applies the preset")
    expect(not WANTS.is_symlink(), "an upgrade enabled what an administrator had disabled")


def an_upgrade_restarts_nothing_that_would_not_start():
    """An invalid configuration, at the path that a drop-in names: the reason is told, and nothing restarted."""
    other = pathlib.Path("/etc/other.toml")
    other.write_text("[limits]\nmax-connections = 0\n")
    exec_start(f"{PROGRAM} --config {other} serve")
    calls()
    status, output = run(*RPM, "-U", "--oldpackage", str(ROOT / "echo-uring-first.rpm"))
    expect("max-connections" in output and "was not restarted" in output, output)
    expect(not any("restart" in line for line in calls()), "a broken service was restarted")
    # Another program in the command line is not run to check the file; the service is restarted.
    exec_start("/usr/local/bin/wrapper serve")
    run(*RPM, "-U", str(ROOT / "echo-uring-second.rpm"))
    expect("try-restart echo-uring.service" in calls(), "a wrapped service was not restarted")


def a_removal_leaves_nothing_but_what_was_edited():
    """Units are disabled and stopped, sockets with their service; the edited file is kept as .rpmsave."""
    enable = ("/usr/bin/systemctl.real", "enable", "echo-uring.service", "echo-uring.socket")
    run(*enable, SYSTEMD_OFFLINE="1")
    expect(WANTS.is_symlink(), "the service is not enabled")
    calls()
    run(*RPM, "-e", "echo-uring", "echo-load")
    asked = [line for line in calls() if "disable --now" in line]
    expect(len(asked) == 1 and "echo-uring.socket echo-uring.service" in asked[0], f"{asked}")
    expect(not WANTS.is_symlink(), "the service is still enabled")
    expect(pathlib.Path(f"{CONFIGURATION}.rpmsave").exists(), "the edited file is lost")
    left = [
        path
        for directory in ("/usr", "/etc", "/var/lib")
        for path in pathlib.Path(directory).rglob("*echo-uring*")
        if not path.name.endswith(".rpmsave")
    ]
    expect(not left, f"left behind: {left}")


STEPS = (
    requires_no_newer_library,
    the_configuration_is_never_replaced,
    installs_where_systemd_does_not_run,
    an_upgrade_keeps_the_configuration_and_the_sockets,
    an_upgrade_restarts_nothing_that_would_not_start,
    a_removal_leaves_nothing_but_what_was_edited,
)


def main():
    for number, step in enumerate(STEPS):
        name = step.__name__.replace("_", " ")
        try:
            step()
        except AssertionError as failure:
            print(f"FAILED  {name}: {failure}")
            # The other steps depend on it.
            print(f"{number} passed, 1 failed")
            return 1
        print(f"ok      {name}", flush=True)
    print(f"{len(STEPS)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
