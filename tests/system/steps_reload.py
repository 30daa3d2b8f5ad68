"""`systemctl reload`, one function for each requirement; see `steps.py`.

echo-load, whose package is installed with the daemon's, makes the load and compares every byte.
"""

import json
import time

from checks import CONFIG, SERVICE, echoes, place
from machine import eventually, expect

DROP_INS = f"{CONFIG}.d"
RELOADS = 100
MESSAGES_A_SECOND = 20000
CONNECTIONS = 100
LOAD_SECONDS = 60
LOAD = (
    f"echo-load tcp://127.0.0.1:7 --rate {MESSAGES_A_SECOND} --connections {CONNECTIONS} "
    f"--duration {LOAD_SECONDS}s --no-progress --json"
)
# Each reload applies another of these, so that each has something to change.
VARIANTS = (
    r"[timeouts]\nidle = \"30s\"\n[limits]\nmax-connections = 101\n",
    r"[timeouts]\nidle = \"2h\"\nstall = \"off\"\n[limits]\nmax-connections = 9000\n",
    r"[timeouts]\nidle = \"off\"\n[tcp]\nnodelay = false\n[limits]\nmax-connections = 50\n",
)


def status_text(machine):
    return machine.show(SERVICE, "StatusText")


def state(machine):
    return machine.show(SERVICE, "ActiveState")


def reloads_lose_nothing(machine, _packages):
    """100 reloads under 20,000 checked messages a second: no connection ends, no byte is lost."""
    machine.run(f"cp -p {CONFIG} /var/tmp/good.toml")
    pid = machine.show(SERVICE, "MainPID")
    load = machine.start(machine.inside(f"echo $$ >/var/tmp/load.pid; exec {LOAD}"))
    eventually(
        lambda: f"{CONNECTIONS} connections" in status_text(machine), 20, "the load did not start"
    )
    variants = " ".join(f'"{text}"' for text in VARIANTS)
    began = time.monotonic()
    machine.run(
        f"set -- {variants}; for round in $(seq {RELOADS}); do "
        f'printf "$1" >{CONFIG}.new && mv {CONFIG}.new {CONFIG} && '
        f"systemctl reload {SERVICE} || exit 1; "
        f"systemctl is-active --quiet {SERVICE} || exit 2; "
        'first=$1; shift; set -- "$@" "$first"; done',
        timeout=LOAD_SECONDS,
    )
    took = time.monotonic() - began
    machine.run("kill -INT $(cat /var/tmp/load.pid)")
    output, _ = load.communicate(timeout=60)
    expect(load.returncode == 0, f"echo-load ended with {load.returncode}: {output[-2000:]}")
    machine.run(f"mv /var/tmp/good.toml {CONFIG} && systemctl reload {SERVICE}")
    expect(machine.show(SERVICE, "MainPID") == pid, "the daemon was restarted")
    reloads = sum(text.startswith("reloaded: ") for text in machine.messages())
    expect(reloads >= RELOADS, f"the journal has {reloads} of {RELOADS} reloads")
    result = json.loads(output[output.index("{") :])
    # echo-load would count a lost connection as an error and make it again.
    made = result["connections_made"]
    expect(made == result["settings"]["connections"], f"connections were made again: {result}")
    expect(result["errors"] == 0, f"echoes were wrong: {result}")
    rate = result["messages_per_second"]
    expect(rate > 0.9 * MESSAGES_A_SECOND, f"the load was only {rate:.0f} messages a second")
    slowest = result["latency_microseconds"]["uncorrected"]["max"] / 1000
    return f"{RELOADS} in {took:.1f} s under {rate:.0f} messages/s, slowest {slowest:.0f} ms"


def bad_reload_is_visible(machine, _packages):
    """A bad file fails the reload, with line and column, and the old one stays in force. A reload
    of a valid file succeeds."""
    machine.run(f"cp -p {CONFIG} /var/tmp/good.toml")
    line = len(machine.run(f"cat {CONFIG}").stdout.splitlines()) + 1
    machine.run(f"echo '  nonsense = 1' >> {CONFIG}")
    reloaded = machine.run(f"systemctl reload {SERVICE}", check=False)
    expect(reloaded.returncode == 1, f"systemctl reload ended with {reloaded.returncode}")
    place = f"{CONFIG}:{line}:3: "
    wanted = f"reload failed: {place}"
    eventually(lambda: state(machine) == "active", 10, "the reload does not end")
    text = status_text(machine)
    expect(text.startswith(wanted), f"the status is: {text}")
    expect("the old configuration is in force" in text, f"the status is: {text}")
    shown = machine.run(f"systemctl status {SERVICE}").stdout
    expect(wanted in shown, f"systemctl status shows: {shown}")
    errors = [entry for entry in machine.journal() if entry.get("PRIORITY") == "3"]
    told = [entry["MESSAGE"] for entry in errors if wanted in entry.get("MESSAGE", "")]
    expect(len(told) == 1, f"not one error in the journal, but {told}")
    echoes(machine)
    machine.run(f"mv /var/tmp/good.toml {CONFIG}")
    machine.run(f"systemctl reload {SERVICE}")
    text = status_text(machine)
    expect("failed" not in text, f"the status after the repair is: {text}")
    echoes(machine)
    return told[0].split("reload failed: ")[1][:80]


def drop_ins_are_configuration(machine, packages):
    """A file in DROP_INS takes effect with a reload, survives the package, and is named in errors."""
    local, bad = f"{DROP_INS}/50-local.toml", f"{DROP_INS}/90-bad.toml"
    shipped = machine.run(f"sha256sum {CONFIG}").stdout
    machine.run(f"printf '[limits]\\nmax-connections = 77\\n' > {local}")
    machine.run(f"systemctl reload {SERVICE}")
    changes = [text for text in machine.messages() if text.startswith("reloaded: ")]
    expect("limits.max-connections = 77" in changes[-1], f"the reload reports {changes[-1]!r}")
    # Two errors in one file: a reload reports the first, `check` both.
    machine.run(f"printf '[limits]\\nmax-bites = 1\\nmax-bytes = -1\\n' > {bad}")
    reloaded = machine.run(f"systemctl reload {SERVICE}", check=False)
    expect(reloaded.returncode == 1, f"systemctl reload ended with {reloaded.returncode}")
    text = status_text(machine)
    expect(text.startswith(f"reload failed: {bad}:2:1: "), f"the status is: {text}")
    checked = machine.run("echo-uring check", check=False)
    places = [f"{bad}:{line}:" in checked.stdout for line in (2, 3)]
    expect(checked.returncode == 78 and all(places), f"check: {checked}")
    machine.run(f"rm {bad} && systemctl reload {SERVICE}")
    # The package replaces its own file without a question, and leaves those of the administrator.
    output = machine.run(
        f"dpkg --install {place(machine, packages.newer)} </dev/null && "
        f"dpkg --install {place(machine, packages.current)} </dev/null"
    ).stdout
    expect("onfiguration file" not in output, f"dpkg asked about a file: {output}")
    expect(machine.run(f"sha256sum {CONFIG}").stdout == shipped, f"{CONFIG} was changed")
    expect("max-connections = 77\n" in machine.run("echo-uring check").stdout, "77 is not in force")
    echoes(machine)
    machine.run(f"rm {local} && systemctl reload {SERVICE}")
    changes = [text for text in machine.messages() if text.startswith("reloaded: ")]
    expect("limits.max-connections = " in changes[-1], f"the reload reports {changes[-1]!r}")
    return changes[-1]


STEPS = [
    ("100 reloads", reloads_lose_nothing),
    ("bad reload", bad_reload_is_visible),
    ("drop-ins", drop_ins_are_configuration),
]
