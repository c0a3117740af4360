"""What a deployment costs: real processes on this machine, over TLS and with authenticated clients.

    python benchmarks/deployment.py [PART...]     # results/deployment.json; all parts by default

overhead   a round of two clients with a 2 MB adapter, beside Flower as it comes where `peers.py install` was run
large      a round of two clients with a 200 MB adapter: seconds, and memory of the server's processes
bytes      what passes on one client's link, against the encoded messages
many       50 clients in one process, 100 rounds: memory of the server's processes
cost       CPU and memory of the server's processes a client-round, for docs/scaling.md
waiting    CPU of the server's processes for clients that have nothing to do

Clients train one step on one row, so that nearly all of the time is the federation's; its share is printed.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import deployed
import flower_deployed
from deployed import NANO_NUMBERS, Trial, names, settings
from machine import median, say, table
from timing import judged, merge, spread, targets_table

from models import LINEAR, saved

MB = 1e6
TWO = round(2 * MB / 4 / NANO_NUMBERS)
"""Rank at which the embedded model's adapter has 2 MB."""
TINY = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--try", dest="toy", action="store_true", help="few rounds, nothing written")
    asked = parser.parse_args()
    if unknown := sorted({*asked.parts} - {*PARTS}):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for name in asked.parts or PARTS:
        found = PARTS[name](asked.toy)
        say(f"\n## {name}\n\n{table(found['rows'])}\n\n{targets_table(found.get('targets', []))}\n")
        if not asked.toy:
            merge("deployment", name, f"python benchmarks/deployment.py {name}", found)
    return 0


def overhead(toy: bool) -> dict[str, Any]:
    count = 4 if toy else 12
    trial = Trial(names(2), settings(2, count, TWO)).go(300)
    rows = [_timed("fedloom, TLS, authenticated", trial.rounds(), trial.payload())]
    targets = [judged("a round of two clients with 2 MB, median of 10, seconds", median(trial.rounds()), "<=", 5.0)]
    if flower_deployed.there():
        seconds = flower_deployed.rounds(2 * MB, count)[2:]
        rows.append(_timed("Flower as it comes, without TLS", seconds, 2 * MB))
    return {"rows": rows, "targets": targets}


def _timed(what: str, seconds: list[float], payload: float) -> dict[str, Any]:
    return {"what": what, "MB": round(payload / MB, 1), "s a round": round(median(seconds), 2),
            "range": spread(seconds), "rounds": len(seconds)}  # fmt: skip


def large(toy: bool) -> dict[str, Any]:
    rank, model = (64 if toy else 531), saved("wide")
    more = [f"model.name={model}", f"adapter.targets=[{', '.join(LINEAR)}]", 'data.template="{instruction} "',
            "local.optimizer.name=SGD", "local.optimizer.args={}"]  # fmt: skip
    trial = Trial(names(2), settings(2, 3 if toy else 7, rank, *more)).go(900)
    payload, idle = trial.payload(), Trial(names(2), settings(2, 2, TINY)).go(300).after(1)
    server = max(look.server for look in trial.looks) - idle.server
    mailroom = max(look.mailroom for look in trial.looks) - idle.mailroom
    rows = [
        {**_timed("two clients", trial.rounds(), payload), "server above idle MB": round(server / MB),
         "in payloads": round(server / payload, 2), "mailroom above idle MB": round(mailroom / MB),
         "payloads": round(mailroom / payload, 2)}
    ]  # fmt: skip
    targets = [
        judged("a round of two clients with 200 MB, seconds", median(trial.rounds()), "<=", 15.0),
        judged("memory of the server's process above idle, payloads", server / payload, "<=", 4.0),
    ]
    idles = {"idle server MB": round(idle.server / MB), "idle mailroom MB": round(idle.mailroom / MB)}
    return {"rows": rows, "targets": targets, **idles, "checkpoint MB": round(trial.checkpoint / MB, 1)}


def bytes_(toy: bool) -> dict[str, Any]:
    rows, worst = [], 0.0
    for rank in (TINY, TWO):
        short, long = (Trial(names(1), settings(1, n, rank)).go(120, count=True) for n in (2, 4 if toy else 12))
        more = len(long.rounds(0)) - len(short.rounds(0))
        up, down = (long.bytes_up - short.bytes_up) / more, (long.bytes_down - short.bytes_down) / more
        payload = long.payload()
        over = (up + down) / (2 * payload) - 1
        worst = over if rank == TWO else worst
        rows.append({"encoded bytes": round(payload), "up a round": round(up), "down a round": round(down),
                     "more than encoded, both ways": f"{100 * over:.1f} %"})  # fmt: skip
    return {"rows": rows, "targets": [judged("bytes on the link beyond the encoded 2 MB, share", worst, "<=", 0.05)]}


def many(toy: bool) -> dict[str, Any]:
    count, rounds = (5, 8) if toy else (50, 100)
    trial = Trial(names(count), settings(count, rounds, TINY), together=True).go(3000)
    marks = sorted({max(1, rounds // 20), rounds // 4, rounds // 2, 3 * rounds // 4, rounds})
    rows = [
        {"after round": round, "server MB": f"{trial.after(round).server / MB:.1f}",
         "mailroom MB": f"{trial.after(round).mailroom / MB:.1f}"}
        for round in marks
    ]  # fmt: skip
    ended = [event for event in trial.events if event["event"] == "RoundFinished"]
    whole = sum(event["clients"] == count for event in ended)
    return {
        "rows": rows, "targets": [judged(f"rounds in which all {count} replied", whole, ">=", rounds)],
        "s a round": round(median(trial.rounds()), 2), "range": spread(trial.rounds()),
    }  # fmt: skip


def cost(toy: bool) -> dict[str, Any]:
    rows = []
    for rank in (TINY, TWO):
        for count in (2, 5) if toy else (2, 10, 50):
            rows.append(_cost(rank, count, 3 if toy else 8 if count > 10 else 15))
            say(str(rows[-1]))
    return {"rows": rows}


def _cost(rank: int, count: int, rounds: int) -> dict[str, Any]:
    trial = Trial(names(count), settings(count, rounds, rank), together=True).go(1200)
    first, last = trial.after(2), trial.after(rounds)
    work = count * (rounds - 2)
    over = [look for look in trial.looks if look.time > first.time]
    return {
        "encoded MB": round(trial.payload() / MB, 2), "clients": count, "s a round": round(median(trial.rounds()), 2),
        "server CPU ms a client-round": round(1000 * (last.server_cpu - first.server_cpu) / work, 1),
        "mailroom CPU ms a client-round": round(1000 * (last.mailroom_cpu - first.mailroom_cpu) / work, 1),
        "server MB at most": round(max(look.server for look in over) / MB),
        "mailroom MB at most": round(max(look.mailroom for look in over) / MB),
        "checkpoint MB": round(trial.checkpoint / MB, 2),
    }  # fmt: skip


def waiting(toy: bool) -> dict[str, Any]:
    rows = []
    for count in (2,) if toy else (2, 10, 50):
        first, last = deployed.idle(count, 5.0 if toy else 60.0)
        work = (last.time - first.time) * count
        rows.append({
            "clients": count, "seconds": round(last.time - first.time),
            "server CPU ms a client-second": round(1000 * (last.server_cpu - first.server_cpu) / work, 2),
            "mailroom CPU ms a client-second": round(1000 * (last.mailroom_cpu - first.mailroom_cpu) / work, 2),
        })  # fmt: skip
    return {"rows": rows}


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "overhead": overhead, "large": large, "bytes": bytes_, "many": many, "cost": cost,
    "waiting": waiting,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
