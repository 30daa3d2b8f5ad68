"""The steps of the system test under a real systemd, one function for each requirement, from the
installation to the purge.

Each function takes the machine and the packages, raises `Failure` with a sentence when the
requirement is not met, and returns a short remark for the table. A later step may depend on the
state that an earlier one left.
"""

import re
import signal
import subprocess
import time

import steps_balancer
import steps_calls
import steps_client
import steps_datagrams
import steps_doctor
import steps_failures
import steps_package
import steps_power
import steps_proxies
import steps_sealed
import steps_handover
import steps_upgrade
from checks import (
    CONFIG,
    LOOPBACK,
    SERVICE,
    SOCKET,
    STOPPED,
    balance,
    drop_in,
    echoes,
    filters_need_privilege,
    is_active,
    last_account,
    place,
    place_client,
    remove_drop_in,
    start_all,
    stop_all,
    stream_of_clients,
    workers_of,
)
import steps_reload
from machine import Failure, eventually, expect

import steps_admin
from steps_access import access_lists_and_limits_apply
from steps_examples import examples_do_what_they_say
from steps_instances import (
    instance_without_configuration_is_named,
    instances_keep_all,
    instances_stand_side_by_side,
    instances_have_a_status,
    removal_ends_instances,
    upgrade_restarts_instances,
)

# Connections that a stream of four clients may have in flight when a socket closes.
LAST_MOMENT = 4

STATUS = re.compile(r"\d+ connections?, .+ echoes/s, .+ echoed, \d+ workers?")
# What the daemon logs before the watchdog ends it.
HUNG = "is stalled: no iteration"


def installs_and_runs(machine, packages):
    """apt installs both packages offline, and the daemon runs without a further command."""
    files = f"{place(machine, packages.current)} {place_client(machine, packages)}"
    machine.run(f"apt-get install --yes {files}")
    for unit in (SERVICE, SOCKET):
        expect(is_active(machine, unit), f"{unit} is not active after the installation")
        expect(machine.show(unit, "UnitFileState") == "enabled", f"{unit} is not enabled")
    for page in ("man8/echo-uring.8.gz", "man5/echo-uring.toml.5.gz"):
        machine.run(f"test -s /usr/share/man/{page}")
    machine.run("dpkg --verify echo-uring && test -s /var/lib/dpkg/info/echo-uring.md5sums")
    steps_client.client_works(machine, packages)
    return machine.run("systemctl --version").stdout.split("(")[1].split(")")[0]


def units_are_well_formed(machine, _packages):
    """systemd-analyze has no complaint about the units."""
    complaints = machine.run(f"systemd-analyze verify --man=no {SERVICE} {SOCKET}").stdout.strip()
    expect(not complaints, f"systemd-analyze verify says: {complaints}")
    warnings = [line for line in machine.messages() if "Unknown key" in line or "ignoring" in line]
    expect(not warnings, f"systemd warns about the units: {warnings}")


def starts_and_echoes(machine, _packages):
    """`systemctl start` works whether it runs or not; each address echoes byte for byte."""
    start_all(machine)
    stop_all(machine)
    expect(not is_active(machine, SERVICE), "the service is active after `systemctl stop`")
    for address in LOOPBACK:
        report = machine.traffic("echo", "--address", address)
        expect(
            report["refused"], f"{address} still answers after both units were stopped: {report}"
        )
    start_all(machine)
    expect(is_active(machine, SERVICE), "the service is not active after `systemctl start`")
    expect(
        is_active(machine, SOCKET), "`systemctl start echo-uring` did not bring the socket along"
    )
    echoes(machine, length=1)
    echoes(machine, length=8 << 20)
    return "8 MiB over IPv4 and IPv6"


def logs_to_the_journal(machine, _packages):
    """The start line has the priority, facility and identifier that administrators filter by."""
    lines = [
        e for e in machine.journal() if re.match(r"echo-uring \S+: starting", str(e["MESSAGE"]))
    ]
    expect(lines, f"the journal has no start line: {machine.messages()[-5:]}")
    for field, wanted in (
        ("PRIORITY", "6"),
        ("SYSLOG_FACILITY", "3"),
        ("SYSLOG_IDENTIFIER", "echo-uring"),
        ("_TRANSPORT", "journal"),
    ):
        found = lines[-1].get(field)
        expect(found == wanted, f"the start line has {field}={found}, not {wanted}: {lines[-1]}")
    ready = [e for e in machine.journal() if e["MESSAGE"] == "ready"][-1]
    expect(int(ready["ECHO_URING_WORKERS"]) > 0, f"the line of readiness has no field: {ready}")
    explained = machine.run(f"journalctl --no-pager --catalog -u {SERVICE} -g ^ready$").stdout
    expect("workers accept connections on every listener" in explained, f"no catalogue entry: {explained}")
    for address in ("127.0.0.1:7", "[::1]:7"):
        wanted = re.compile(re.escape(f"listening on {address} (") + r"(echo, )?inherited\)")
        expect(
            any(map(wanted.fullmatch, machine.messages())),
            f"no line of the journal is `{wanted.pattern}`",
        )
    return lines[-1]["MESSAGE"].split(",")[-1].strip()


def shows_its_status(machine, _packages):
    """`systemctl status` shows the number of connections."""
    machine.run(f"systemctl restart {SERVICE}")
    echoes(machine)

    def status():
        match = STATUS.fullmatch(machine.show(SERVICE, "StatusText"))
        return match and match.group(0).startswith("0 connections, 0 echoes/s, ") and match.group(0)

    text = eventually(status, 5, "StatusText does not show that two connections have ended")
    shown = machine.run(f"systemctl status --no-pager {SERVICE}").stdout
    expect(
        re.search(r'Status: "' + STATUS.pattern + '"', shown), f"systemctl status shows:\n{shown}"
    )
    return text


def activates_by_socket(machine, _packages):
    """With only the socket enabled, the first client starts the daemon and is answered. The sockets
    can be restarted repeatedly."""
    machine.run(f"systemctl disable --now {SOCKET} {SERVICE}")
    machine.run(f"systemctl enable --now {SOCKET}")
    expect(
        not is_active(machine, SERVICE),
        "`enable --now echo-uring.socket` started the service itself",
    )
    echoes(machine, ["::1"])
    expect(is_active(machine, SERVICE), "the first client did not start the service")
    echoes(machine)
    machine.run(f"systemctl enable --now {SERVICE}")
    for _ in range(8):
        machine.run(f"systemctl restart {SOCKET}")
    echoes(machine)


def lives_without_ipv6(machine, _packages):
    """With IPv6 switched off, IPv4 is still served."""
    setting = "/proc/sys/net/ipv6/conf/all/disable_ipv6"

    def switch(value):
        subprocess.run(machine.in_its_network("sh", "-c", f"echo {value} > {setting}"), check=True)

    switch(1)
    try:
        stop_all(machine)
        start_all(machine)
        echoes(machine, ["127.0.0.1"])
    finally:
        switch(0)
    echoes(machine)


def hung_worker_is_restarted(machine, _packages):
    """One worker that completes no iteration causes a restart; idle workers do not."""
    drop_in(machine, SERVICE, "watchdog", "[Service]\nWatchdogSec=3s")
    machine.run(f"systemctl restart {SERVICE}")
    restarts = int(machine.show(SERVICE, "NRestarts"))
    time.sleep(7)
    expect(
        int(machine.show(SERVICE, "NRestarts")) == restarts, "an idle daemon missed its watchdog"
    )
    pid = machine.daemon()
    workers = eventually(
        lambda: workers_of(pid), 5, "no thread of the daemon waits in io_uring_enter"
    )
    # Its next call keeps this one thread in the kernel for ten minutes; all others continue.
    trace = machine.root.with_suffix(".strace")
    command = ["strace", f"--output={trace}", f"--attach={workers[-1]}"]
    command += ["--trace=io_uring_enter", "--inject=io_uring_enter:delay_enter=600000000"]
    started = time.monotonic()
    injector = machine.start(command)
    try:
        eventually(
            lambda: any("Watchdog timeout" in line for line in machine.messages()),
            20,
            "the watchdog did not notice a hung worker",
        )
        seconds = time.monotonic() - started
    finally:
        # systemd has aborted the daemon by now, but a traced thread is only reaped by its tracer.
        injector.kill()
        injector.wait()
    eventually(
        lambda: int(machine.show(SERVICE, "NRestarts")) > restarts and is_active(machine, SERVICE),
        20,
        "the service did not come back after its watchdog had ended it",
    )
    expect(machine.daemon() != pid, "the hung daemon still runs")
    machine.aborts += 1
    named = [text for text in machine.messages() if HUNG in text]
    expect(named, "the daemon did not say which worker hangs")
    echoes(machine)
    remove_drop_in(machine, SERVICE, "watchdog")
    machine.run(f"systemctl restart {SERVICE}")
    return f"{named[0].split(HUNG)[0]}of {len(workers)}, noticed after {seconds:.1f} s"


def kill_refuses_no_client(machine, _packages):
    """SIGKILL, 25 times, under a stream of new connections: each is accepted and answered."""
    # More than TriggerLimitBurst= of the socket unit: restarts must not count towards that limit.
    kills = 25
    before = int(machine.show(SERVICE, "NRestarts"))
    with stream_of_clients(machine) as report:
        for number in range(kills):
            machine.run(f"systemctl kill --signal=KILL {SERVICE}")
            eventually(
                lambda: int(machine.show(SERVICE, "NRestarts")) > before + number
                and is_active(machine, SERVICE),
                20,
                f"the service did not come back after kill {number + 1}",
            )
    restarts = int(machine.show(SERVICE, "NRestarts")) - before
    expect(restarts == kills, f"{kills} kills made {restarts} restarts")
    return f"{kills} kills, {report['echoed']} echoed, {report['cut']} cut, 0 refused"


def stop_loses_nothing(machine, _packages):
    """Stopped with 200 busy connections it echoes every byte; a new client is served afterwards."""
    connections, size, seconds = 200, 256 << 10, 4
    # Shorter than the drain, so that the daemon must ask for more time. Long enough for ExecStop=.
    drop_in(machine, SERVICE, "stop", "[Service]\nTimeoutStopSec=2s")
    machine.run(f"systemctl restart {SERVICE}")
    process = machine.start_traffic(
        "busy", "--connections", connections, "--bytes", size, "--seconds", seconds
    )
    expect(process.stdout.readline().strip() == "ready", "200 connections were not accepted")
    time.sleep(0.5)
    pid = machine.show(SERVICE, "MainPID")
    started = time.monotonic()
    stop = machine.start(machine.inside(f"systemctl stop {SERVICE}"))
    eventually(
        lambda: machine.show(SERVICE, "StatusText").startswith("draining"),
        3,
        "the service does not drain",
    )
    latecomer = machine.start_traffic("echo", "--address", "127.0.0.1", "--bytes", 1000)
    report = machine.finish_traffic(process)
    output, _ = stop.communicate(timeout=30)
    drained = time.monotonic() - started
    expect(stop.returncode == 0, f"systemctl stop ended with {stop.returncode}: {output}")
    expect(report["exact"] == connections, f"not every connection got all its bytes back: {report}")
    late = machine.finish_traffic(latecomer)
    expect(late["exact"], f"a client that connected during the stop was not served: {late}")
    expect(machine.show(SERVICE, "MainPID") != pid, "the daemon that was told to stop still runs")
    account = last_account(machine)
    remove_drop_in(machine, SERVICE, "stop")
    total = connections * (size + 1)
    expect(account["dropped"] == 0, f"the daemon itself says that it dropped bytes: {account}")
    expect(
        account["accepted"] == connections, f"another number than {connections} accepted: {account}"
    )
    expect(account["received"] == total, f"another number than {total} bytes received: {account}")
    return f"{connections} connections, {total >> 20} MiB exact, drained in {drained:.1f} s"


def stop_of_the_sockets_resets_no_client(machine, _packages):
    """Stopping socket and service, named in either order, resets no connected client: systemd
    announces over the bus that it will close the sockets, and the daemon accepts the whole backlog
    first. Where the kernel does not permit the daemon to refuse new connections by a filter, it
    says so, and clients that connect in the last moment may be reset."""
    counts, cut = [], 0
    for units in (f"{SOCKET} {SERVICE}", f"{SERVICE} {SOCKET}"):
        # This client keeps sending, so that the drain takes some time.
        last = machine.start_traffic("through")
        expect(last.stdout.readline().strip() == "ready", "a connection was not accepted")
        stream = machine.start_traffic("stream")
        expect(stream.stdout.readline().strip() == "ready", "the stream of clients did not start")
        time.sleep(0.5)
        stop = machine.start(machine.inside(f"systemctl stop {units}"))
        time.sleep(3)
        last.send_signal(signal.SIGTERM)
        words = machine.finish_traffic(last)
        output, _ = stop.communicate(timeout=60)
        expect(stop.returncode == 0, f"systemctl stop ended with {stop.returncode}: {output}")
        stream.send_signal(signal.SIGTERM)
        report = machine.finish_traffic(stream)
        start_all(machine)
        expect(not words["fault"], f"a connection was not served during the stop: {words}")
        warned = any("may be reset: the kernel" in text for text in machine.messages())
        expect(warned == filters_need_privilege(), "the warning about refused filters is wrong")
        lost = report["forgotten"] + report["wrong"] + (0 if warned else report["cut"])
        expect(not lost, f"stop {units}: clients were lost: {report}")
        expect(report["cut"] <= LAST_MOMENT, f"stop {units}: too many were reset: {report}")
        cut += report["cut"]
        expect(report["echoed"] > 0, f"no client was served: {report}")
        counts.append(f"{report['echoed']} echoed")
    echoes(machine)
    return ", ".join(counts) + f", {cut} reset"


def bad_configuration_is_named(machine, _packages):
    """A mistake in the file ends the start with 78, once, and the journal names file and line."""
    machine.run(f"cp -p {CONFIG} /var/tmp/good.toml")
    line = len(machine.run(f"cat {CONFIG}").stdout.splitlines()) + 1
    machine.run(f"echo 'nonsense = 1' >> {CONFIG}")
    wanted = f"{CONFIG}:{line}:"

    def told():
        return [text for text in machine.messages() if wanted in text]

    # Another step may have caused an error in the same line.
    before = len(told())
    started = machine.run(f"systemctl restart {SERVICE}", check=False)
    expect(started.returncode != 0, "systemctl restart succeeded with a bad configuration")
    restarts = machine.show(SERVICE, "NRestarts")
    time.sleep(3)
    status = machine.show(SERVICE, "ExecMainStatus")
    expect(status == "78", f"the daemon ended with {status} instead of 78")
    expect(machine.show(SERVICE, "ActiveState") == "failed", "the service is not marked as failed")
    expect(
        machine.show(SERVICE, "NRestarts") == restarts,
        "a bad configuration is tried again and again",
    )
    complaints = told()[before:]
    expect(
        len(complaints) == 1,
        f"no single line of the journal names {wanted} {machine.messages()[-5:]}",
    )
    # A waiting client makes systemd start the service again and again, until its limit is reached.
    waiting = machine.start_traffic("echo", "--address", "127.0.0.1")
    eventually(
        lambda: machine.show(SOCKET, "Result") == "trigger-limit-hit",
        30,
        "clients cause starts without end",
    )
    machine.finish_traffic(waiting)
    machine.run(f"mv /var/tmp/good.toml {CONFIG}")
    start_all(machine)
    echoes(machine)
    return complaints[0].split(wanted)[1].strip()[:60]


def upgrade_refuses_no_client(machine, packages):
    """An upgrade under a stream of new connections loses none; the edited configuration stays."""
    edit = "# edited by the administrator"
    machine.run(f"echo '{edit}' >> {CONFIG}")
    pid = machine.show(SERVICE, "MainPID")
    opened = machine.show(SOCKET, "ActiveEnterTimestampMonotonic")
    package = place(machine, packages.newer)
    with stream_of_clients(machine) as report:
        machine.run(f"apt-get install --yes {package}")
    version = machine.run("dpkg-query --show --showformat='${Version}' echo-uring").stdout
    expect(version == packages.newer_version, f"version {version} is installed after the upgrade")
    expect(is_active(machine, SERVICE), "the service is not active after the upgrade")
    expect(machine.show(SERVICE, "MainPID") != pid, "the upgrade did not restart the service")
    reopened = machine.show(SOCKET, "ActiveEnterTimestampMonotonic")
    expect(reopened == opened, "the upgrade restarted the socket unit")
    expect(report["cut"] == 0, f"accepted connections were cut off: {report}")
    expect(
        machine.run(f"tail -n 1 {CONFIG}").stdout.strip() == edit,
        "the edited configuration is lost",
    )
    leftovers = machine.run(f"ls {CONFIG}.*", check=False).stdout
    expect("dpkg" not in leftovers, f"the upgrade left {leftovers}")
    last_account(machine)
    return f"{report['echoed']} echoed, 0 refused, slowest {report['slowest_seconds']} s"


def no_other_errors(machine, _packages):
    """No panic, no core dump but the watchdog's, and all accounts of bytes and buffers balance."""
    journal = machine.run(
        "journalctl --sync; journalctl --no-pager --boot --output=short-monotonic"
    ).stdout
    panics = [line for line in journal.splitlines() if "panicked at" in line]
    expect(not panics, f"the daemon panicked: {panics}")
    aborts = [line for line in journal.splitlines() if "echo-uring.service: Main process" in line]
    unexpected = [
        line for line in aborts if not re.search(r"status=(9/KILL|6/ABRT|78/CONFIG)", line)
    ]
    expect(not unexpected, f"the daemon ended in an unexpected way: {unexpected}")
    expect(
        sum("6/ABRT" in line for line in aborts) == machine.aborts,
        f"other aborts than those of the steps, {machine.aborts}: {aborts}",
    )
    accounts = [match for match in map(STOPPED.search, journal.splitlines()) if match]
    for match in accounts:
        balance(match)
    entries = [e for e in machine.journal() if e.get("SYSLOG_IDENTIFIER") == "echo-uring"]
    errors = [str(entry["MESSAGE"]) for entry in entries if int(entry["PRIORITY"]) <= 3]
    expected = (CONFIG, HUNG, steps_doctor.REFUSED)
    unexpected = [text for text in errors if not any(known in text for known in expected)]
    expect(not unexpected, f"the daemon logged errors: {unexpected}")
    return f"{len(accounts)} orderly stops balance"


def remove_stops_it(machine, _packages):
    """After removal nothing runs and nothing listens."""
    machine.run("apt-get remove --yes echo-uring")
    for unit in (SERVICE, SOCKET):
        expect(not is_active(machine, unit), f"{unit} is still active after removal")
    for address in LOOPBACK:
        report = machine.traffic("echo", "--address", address)
        expect(report["refused"], f"{address} still answers after removal: {report}")
    try:
        pid = machine.daemon()
    except Failure:
        return
    raise Failure(f"the daemon still runs after removal, pid {pid}")


def purge_leaves_nothing(machine, _packages):
    """After purge no file, unit or state of the package is left, only the administrator's files."""
    list_written = "ls -d /etc/echo-uring/*"
    written = machine.run(list_written, check=False).stdout
    machine.run("apt-get purge --yes echo-uring")
    left = machine.run(list_written, check=False).stdout
    expect(left == written, f"purge removed the administrator's files: {written} -> {left}")
    machine.run("rm -rf /etc/echo-uring")
    files = machine.run("find / /run -xdev -iname '*echo-uring*'").stdout.strip()
    expect(not files, f"purge left files:\n{files}")
    for command in ("list-unit-files", "list-units --all"):
        left = machine.run(
            f"systemctl {command} --no-legend 'echo-uring*'", check=False
        ).stdout.strip()
        expect(not left, f"`systemctl {command}` still knows: {left}")


STEPS = [
    *steps_package.FIRST,
    *steps_client.FIRST,
    *steps_calls.FIRST,
    ("install starts it", installs_and_runs),
    ("units well-formed", units_are_well_formed),
    *steps_sealed.STEPS,
    *steps_doctor.STEPS,
    ("start, stop, echo", starts_and_echoes),
    ("journal", logs_to_the_journal),
    ("status", shows_its_status),
    *steps_admin.STEPS,
    *steps_balancer.STEPS,
    *steps_proxies.STEPS,
    ("socket activation", activates_by_socket),
    ("examples", examples_do_what_they_say),
    ("without IPv6", lives_without_ipv6),
    ("access", access_lists_and_limits_apply),
    ("hung worker", hung_worker_is_restarted),
    ("25 kills", kill_refuses_no_client),
    ("stop amid traffic", stop_loses_nothing),
    ("stop of the sockets", stop_of_the_sockets_resets_no_client),
    ("bad configuration", bad_configuration_is_named),
    *steps_reload.STEPS,
    ("upgrade amid traffic", upgrade_refuses_no_client),
    *steps_handover.STEPS,
    *steps_datagrams.STEPS,
    *steps_failures.STEPS,
    ("no other errors", no_other_errors),
    ("instances", instances_stand_side_by_side),
    ("instance keeps all", instances_keep_all),
    ("instance status", instances_have_a_status),
    ("instance unconfigured", instance_without_configuration_is_named),
    ("instance upgraded", upgrade_restarts_instances),
    *steps_power.STEPS,
    *steps_calls.LAST,
    ("remove", remove_stops_it),
    ("instances removed", removal_ends_instances),
    ("purge", purge_leaves_nothing),
    *steps_client.LAST,
    *steps_package.LAST,
    *steps_upgrade.STEPS,
    *steps_client.UPGRADES,
]
# These upgrade from 0.1.0, whose package takes some minutes to build.
NEED_BASELINE = steps_upgrade.NEED_BASELINE | steps_client.NEED_BASELINE
