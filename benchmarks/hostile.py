"""A server, two honest clients, sixty hostile ones with real keys, and strangers: is the run what it is without them?

Real processes on loopback over TLS. Each hostile client answers every task, each time with another kind of nonsense
(`hostile_answers.py`), and then a second time with something faultless. Meanwhile strangers and hostile clients send
the server's port what nobody should (`hostile_requests.py`), and everything the honest clients say is overheard and
said again. The final state must have the bits of a run of the honest clients alone; nothing of the others may count,
and everything refused must be in a log.

    python benchmarks/hostile.py [--rounds 12] [--clients 60]
"""

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from machine import say, table, write

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS / "deployment"))

from hostile_answers import KINDS  # noqa: E402
from hostile_gang import Mallory, Plot  # noqa: E402
from hostile_requests import RECORDER, STRANGERS, Key, Sender, Tape, Wire, others_node, strange_protobuf  # noqa: E402
from processes import Federation, write_rows  # noqa: E402

from fedloom.deployment import joining  # noqa: E402
from fedloom.deployment.client import Place  # noqa: E402
from fedloom.deployment.home import Home  # noqa: E402
from fedloom.runtime.flower.parcels import ParcelError  # noqa: E402

HONEST = ("a-honest", "b-honest")
EACH = 60
"""Requests of each kind of the strangers'."""
RECIPE = """
run: {{name: hostile, folder: runs}}
seed: 5
data: {{source: data, test: 0.1, max_length: 96}}
partition: {{method: natural}}
local: {{steps: 3, batch_size: 4, lr: 0.002}}
federation: {{rounds: {rounds}, min_replies: 2}}
channel: {{max_norm: 1000, max_weight: 1000}}
evaluate: {{every: 0}}
checkpoint: {{keep: 2}}
engine: {{name: slots, slots: 1, threads: 1}}
model: {{dtype: float32}}
deploy: {{clients: {clients}, round_timeout: 180, join_timeout: 300}}
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clients", type=int, default=60)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        alone = federation(Path(folder) / "alone", HONEST, wanted.rounds, len(HONEST))
        alone.start_server()
        alone.start_clients()
        if alone.wait(900):
            say(alone.said())
            return 1
        say("the honest clients alone: done")
        found = attacked(Path(folder) / "attacked", wanted.rounds, wanted.clients, last(alone, wanted.rounds))
    setting = {"rounds": wanted.rounds, "hostile clients": wanted.clients, "recipe": RECIPE}
    command = f"python benchmarks/hostile.py --rounds {wanted.rounds} --clients {wanted.clients}"
    write("hostile", command, setting | found)
    say(table(found["answers"]))
    say(table(found["requests"]))
    say(table([found["outcome"]]))
    return 0 if found["held"] else 1


def federation(root: Path, names: tuple[str, ...], rounds: int, wait_for: int) -> Federation:
    root.mkdir()
    (root / "my.yaml").write_text(RECIPE.format(rounds=rounds, clients=wait_for))
    write_rows(root / "data", HONEST, 40)
    made = Federation(root, names)
    made.invite()
    return made


def last(made: Federation, rounds: int) -> bytes:
    return (made.run() / "checkpoints" / f"round-{rounds:04d}" / "state.safetensors").read_bytes()


def attacked(root: Path, rounds: int, clients: int, wanted: bytes) -> dict[str, Any]:
    mute = tuple(f"y{i}" for i in range(3))
    hostile = tuple(f"z{i:02d}" for i in range(clients))
    made = federation(root, (*HONEST, *mute, *hostile), rounds, len(HONEST) + clients)
    plot, began = Plot(clients), time.monotonic()
    try:
        made.start_server()
        overheard(made)
        gang = [Mallory(i, place(made, name), plot) for i, name in enumerate(hostile)]
        gang += [Mallory(-1 - i, place(made, name), plot) for i, name in enumerate(mute)]
        wires = [threading.Thread(target=act, daemon=True, args=arg) for arg in strangers(made, plot, gang)]
        peaks = drive(made, gang, wires)
        code = made.wait(900)
        for client in made.clients.values():
            client.wait(60)
    finally:
        made.end()
    for one in gang:
        one.node.leave()
    return report(made, plot, code, wanted, rounds, peaks, time.monotonic() - began)


def place(made: Federation, name: str) -> Place:
    join = joining.read(made.root / f"{name}.join")
    return Place(join, made.root / "data" / f"{HONEST[0]}.jsonl", made.root / "hostile")


def overheard(made: Federation) -> None:
    """Start the honest clients with a tape running."""
    spy = made.root / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(RECORDER)
    os.environ |= {"PYTHONPATH": str(spy), "FEDLOOM_TRIAL_TAPE": str(made.root / "tape")}
    made.start_clients(*[[name] for name in HONEST])
    del os.environ["PYTHONPATH"]


WIRES: list[Wire] = []


def strangers(made: Federation, plot: Plot, gang: list[Mallory]) -> Iterator[tuple[Any, ...]]:
    """Each with its own connection: those without a key, those with one, and the one with the tape."""
    key = Key(gang[0].place.join.key)
    mine = {"another's mailbox": others_node(key, [5, 6]), "strange protobuf": strange_protobuf(key, lambda: plot.run)}
    yield made, plot, STRANGERS, None, gang[0]
    yield made, plot, mine, None, gang[0]
    yield made, plot, {}, Tape(made.root / "tape"), gang[0]


def act(made: Federation, plot: Plot, kinds: dict[str, Sender], tape: Tape | None, one: Mallory) -> None:
    """Send what there is to send, from the first task on."""
    wire = Wire(made.port, made.home / "ca.pem")
    WIRES.append(wire)
    while not plot.sent:
        time.sleep(0.2)
    if "strange protobuf" in kinds:
        key = Key(one.place.join.key, one.node.id or 0)
        kinds = {**kinds, "strange protobuf": strange_protobuf(key, lambda: plot.run)}
    for i in range(EACH if kinds else 10**9):
        if made.server is None or made.server.poll() is not None:
            return
        for kind, send in kinds.items():
            send(wire, kind, i)
        for path, head, body in tape.new() if tape is not None else ():
            time.sleep(0.02)
            wire.send("an honest request, said again", path, body, head)
        time.sleep(0.1)


def drive(made: Federation, gang: list[Mallory], wires: list[threading.Thread]) -> dict[str, float]:
    """Let the hostile clients take part until the server has ended; peak memory of its processes, MiB."""
    for wire in wires:
        wire.start()
    assert made.server is not None
    peaks: dict[str, float] = {}
    while made.server.poll() is None and not all(one.over for one in gang):
        for one in gang:
            if not one.over:
                with suppress(ParcelError):
                    one.step()
        for name, pid in processes(made.server.pid):
            with suppress(OSError, TypeError):
                status = Path(f"/proc/{pid}/status").read_text()
                peaks[name] = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
        time.sleep(0.05)
    return peaks


def processes(pid: int) -> Iterator[tuple[str, int]]:
    yield "server", pid
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield "mailroom", int(child)


def report(
    made: Federation, plot: Plot, code: int, wanted: bytes, rounds: int, peaks: dict[str, float], seconds: float
) -> dict[str, Any]:
    events = [json.loads(line) for line in (made.run() / "events.jsonl").read_text().splitlines()]
    missing: dict[tuple[int, str], Any] = {}
    for e in events:
        if e["event"] == "ReplyMissing":  # a later one of the same round is about scoring
            missing.setdefault((e["round"], e["name"]), e)
    counted = Counter(e["name"] for e in events if e["event"] == "ClientTrained")
    log = Home.open(made.home).log.read_text()
    answers = [answered(plot, kind, missing) for kind in KINDS]
    seen = {kind: statuses for wire in WIRES for kind, statuses in wire.seen.items()}
    requests = [
        {"requests": kind, "sent": sum(found.values()), "answered": told(found)} for kind, found in seen.items()
    ]
    refused = sum(n for found in seen.values() for status, n in found.items() if status[0] in "45")
    strange = [name for name in counted if name not in HONEST]
    ran = [e["round"] for e in events if e["event"] == "RoundFinished"]
    same = bool(ran) and ran[-1] == rounds and last(made, rounds) == wanted
    total = 2 * len(plot.sent) + sum(row["sent"] for row in requests)
    unsaid = [kind for (round, name), kind in plot.sent.items() if (round, name) not in missing]
    outcome = {
        "hostile requests and answers": total, "faultless second answers": plot.second,
        "of them counted": sum(counted[name] for name in strange),
        "rounds": len(ran), "honest replies counted": sum(counted[name] for name in HONEST),
        "exit code": code, "same bits as without them": same, "refused over HTTP": refused,
        "lines in server.log": len(re.findall(r"fedloom\.guard WARNING refused", log)),
        "answers without a reason in the log": len(unsaid),
        "tracebacks": log.count("Traceback") + made.said().count("Traceback"),
        "seconds": round(seconds), **{f"peak MiB, {name}": round(peak) for name, peak in peaks.items()},
    }  # fmt: skip
    held = not code and same and not strange and not unsaid and len(ran) == rounds
    if not held:
        say(made.said())
    return {
        "held": held, "answers": answers, "requests": requests, "outcome": outcome,
        "words": words(plot, missing), "notes": [e for e in events if e["event"] == "Noted"][:20],
        "troubles of the hostile": dict(plot.troubles),
        "log": Counter(re.sub(r"[0-9a-f]{6,}|\d+", "#", line[24:])[:160] for line in log.splitlines()),
    }  # fmt: skip


def told(found: dict[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(found.items()))


def answered(plot: Plot, kind: str, missing: dict[tuple[int, str], Any]) -> dict[str, Any]:
    mine = [key for key, sent in plot.sent.items() if sent == kind]
    reasons = Counter(missing[key]["reason"] for key in mine if key in missing)
    said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return {"answers": kind, "sent": len(mine), "refused as": said, "counted": len(mine) - sum(reasons.values())}


def words(plot: Plot, missing: dict[tuple[int, str], Any]) -> dict[str, list[str]]:
    """What the log says of each kind."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for key, kind in plot.sent.items():
        if key in missing:
            found[kind][re.sub(r"\d{3,}", "#", missing[key]["detail"])[:160]] += 1
    return {kind: [f"{count} x {said}" for said, count in counts.most_common(30)] for kind, counts in found.items()}


if __name__ == "__main__":
    sys.exit(main())
