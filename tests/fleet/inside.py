"""The events of tests/fleet/run with each engine. Runs inside the root directory with the engines.

For each engine: drain one server after another, restart one after another, kill one, each under
load whose every byte is verified. A row of counts is kept for each event and kind of load, and
judged by the bound of the engine.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "namespaces")]

import load  # noqa: E402
from engines import ENGINES  # noqa: E402
from network import Failure, expect  # noqa: E402
from server import PORT, Server  # noqa: E402
from topology import SERVERS, SERVICE, Topology  # noqa: E402

TARGET = f"{SERVICE}:{PORT}"
# How long a killed server is away.
AWAY_SECONDS = 3
# Before the first event, between events, and after the last.
PAUSE_SECONDS = 0.5
# The descriptor for the counts.
COUNTS = 3


class Fleet:
    def __init__(self, name):
        self.topology = Topology()
        self.servers = [Server(namespace, n) for n, namespace in enumerate(self.topology.servers)]
        self.engine = ENGINES[name](self.topology, self.servers)
        self.rows = []

    def start(self):
        for server in self.servers:
            server.start()
        self.engine.start()
        for index in range(SERVERS):
            self.engine.wait_until_in_use(index)

    def under_load(self, event, kinds, act):
        """Rows of counts for `act`, one for each kind of load."""
        loads = {kind.__name__: kind(self.topology.client, TARGET) for kind in kinds}
        time.sleep(PAUSE_SECONDS)
        began = time.monotonic()
        act()
        seconds = time.monotonic() - began
        time.sleep(PAUSE_SECONDS)
        for kind, running in loads.items():
            row = {"engine": self.engine.name, "event": event, "load": kind}
            row |= load.counts(running.finish()) | {"seconds": round(seconds, 1)}
            self.rows.append(row)
        return seconds

    def row(self, event, kind):
        return next(row for row in self.rows if (row["event"], row["load"]) == (event, kind))

    def judge(self, event, kind, bound, reason):
        """Demands that an event cost no more than `bound` exchanges, and no wrong byte."""
        row = self.row(event, kind)
        row |= {"bound": bound, "reason": reason}
        show(row)
        what = f"{event}, {kind}"
        expect(row["echoed"] > 0, f"{what}: nothing was echoed")
        expect(row["wrong_bytes"] == 0, f"{what}: {row['wrong_bytes']} faults in bytes")
        expect(row["failed"] <= bound, f"{what}: {row['failed']} failed, at most {bound} may")

    def drain(self):
        def act():
            for index, server in enumerate(self.servers):
                self.engine.withdraw(index)
                server.stop()
                server.start()
                self.engine.readmit(index)
                self.engine.wait_until_in_use(index)

        kinds = self.kinds()
        self.under_load("drain", kinds, act)
        self.judge("drain", "churn", *self.engine.drain_bound())
        # The drain ends connections in order when its time is over, which is no failure.
        row = self.row("drain", "established")
        row["failed"] -= row["ended"]
        self.judge("drain", "established", *self.engine.established_bound())
        if load.datagrams in kinds:
            self.judge("drain", "datagrams", 0, "a server answers each datagram that it gets")

    def kinds(self):
        datagrams = [load.datagrams] if self.engine.has_datagrams else []
        return [load.churn, load.established, *datagrams]

    def restart(self):
        def act():
            for server in self.servers:
                server.restart()
                time.sleep(PAUSE_SECONDS)

        kinds = self.kinds()
        self.under_load("restart", kinds, act)
        for kind in kinds:
            self.judge("restart", kind.__name__, *self.engine.restart_bound())

    def kill(self):
        index = self.engine.victim()

        def act():
            self.servers[index].kill()
            time.sleep(AWAY_SECONDS)
            self.servers[index].start()
            self.engine.wait_until_in_use(index)

        seconds = self.under_load("kill", (load.churn,), act)
        self.judge("kill", "churn", *self.engine.kill_bound(seconds))

    def verify(self):
        if counts := self.engine.verify():
            self.rows.append({"engine": self.engine.name, **counts})

    def close(self):
        self.engine.close()
        for server in self.servers:
            server.close()
        self.topology.close()


def show(row):
    print(
        f"{row['engine']:10} {row['event']:8} {row['load']:12} {row['echoed']:6} echoed,"
        f" {row['failed']} failed, {row['bound']} may ({row['refused']} refused,"
        f" {row['reset']} reset, {row['ended']} ended, {row['unanswered']} unanswered),"
        f" {row['bytes']} bytes, {row['seconds']} s",
        flush=True,
    )


def prove(name):
    """The rows of an engine, and whether all promises were kept."""
    fleet = Fleet(name)
    kept = True
    try:
        fleet.start()
        for event in (fleet.drain, fleet.restart, fleet.kill, fleet.verify):
            event()
    except Exception as failure:  # noqa: BLE001 (whatever it is, it is this engine that failed)
        kept = False
        print(f"{name}: FAILED: {failure}", flush=True)
        if not isinstance(failure, Failure):
            traceback.print_exc(file=sys.stdout)
        print(fleet.engine.log())
    finally:
        fleet.close()
    return fleet.rows, kept


def main():
    parser = argparse.ArgumentParser(prog="tests/fleet/run", description=__doc__.splitlines()[0])
    parser.add_argument("engine", nargs="*", metavar="ENGINE", help=f"of: {', '.join(ENGINES)}")
    options = parser.parse_args()
    if unknown := set(options.engine) - set(ENGINES):
        parser.error(
            f"there is no engine {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}"
        )
    outcomes = [prove(name) for name in options.engine or ENGINES]
    with os.fdopen(COUNTS, "w") as file:
        json.dump([row for rows, _ in outcomes for row in rows], file, indent=1)
    kept = [kept for _, kept in outcomes]
    print(f"fleet: {sum(kept)} of {len(kept)} engines kept their promises")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
