"""Kill -9 of a deployment's processes at random moments: lost rounds, wrong weights.

A server (two processes) and three clients over TLS on loopback train SCAFFOLD, whose clients have memories, while one
of the processes is killed again and again, at a moment drawn from a seed, and started again with the same command. The
final state is compared, byte for byte, with that of the same recipe in simulation.

    python benchmarks/soak.py              # 50 kills
    python benchmarks/soak.py --kills 10 --seed 1
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import say, table, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "deployment"))
from processes import FEDLOOM, Federation, write_rows

NAMES = ("site-a", "site-b", "site-c")
WHAT = ("server", "mailroom", "client")
RECIPE = """
run: {name: soak, folder: runs}
seed: 5
data: {source: data, test: 0.1, max_length: 96}
partition: {method: natural}
algorithm: {name: scaffold}
local: {steps: 2, batch_size: 2, lr: 0.05, optimizer: {name: sgd}}
evaluate: {every: 0, metrics: [loss], rows_per_client: 2}
engine: {name: slots, slots: 1, threads: 1}
model: {dtype: float32}
deploy: {clients: 3}
"""
APART = 6.0
"""Seconds between a start and the next kill, at most."""


def soak(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so often, then let it end, and compare."""
    drawn = random.Random(seed)
    federation = Federation(root, NAMES)
    (root / "my.yaml").write_text(RECIPE)
    write_rows(root / "data", NAMES, 20)
    federation.invite()
    federation.settings = (f"federation.rounds={1000 * kills}",)  # more than will be reached
    federation.start_server()
    federation.start_clients()
    federation.until(1)
    log: list[dict[str, Any]] = []
    try:
        for _ in range(kills):
            log.append(one(federation, drawn))
            if len(log) % 10 == 0:
                say(f"{len(log)} kills, round {federation.rounds()}")
        federation.until(federation.rounds() + 2, 300)
        subprocess.run([*FEDLOOM, "stop"], cwd=root, check=True, stdout=subprocess.DEVNULL)
        end = federation.rounds()
    finally:
        federation.end()
    return {"kills": log, "rounds": end, **compared(federation, end)}


def one(federation: Federation, drawn: random.Random) -> dict[str, Any]:
    """Kill one process at some moment, start it again, wait for a round more."""
    time.sleep(drawn.random() * APART)
    what, before = drawn.choice(WHAT), federation.rounds()
    begun = time.perf_counter()
    assert federation.server is not None
    if what == "client":
        name = drawn.choice(NAMES)
        federation.kill(federation.clients[name])
        federation.start_clients([name])
    else:
        if what == "mailroom":
            kill_mailroom(federation.server.pid)
            federation.server.wait(120)
        else:
            federation.kill(federation.server)
        federation.start_server()
    federation.until(before + 1, 300)
    return {"what": what, "round": before, "seconds": round(time.perf_counter() - begun, 2)}


def kill_mailroom(server: int) -> None:
    """The server's child process."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    for child in children:
        if b"mailroom" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)


def compared(federation: Federation, end: int) -> dict[str, Any]:
    """The state after `end` rounds against a simulation's; every round's once."""
    import fedloom

    root = federation.root
    changes = [f"data.source={root / 'data'}", f"run.folder={root / 'simulated'}", *federation.settings]
    config = fedloom.load(root / "my.yaml", [*changes, f"federation.rounds={end}"])
    simulated = fedloom.run(config).folder
    name = f"checkpoints/round-{end:04d}/state.safetensors"
    runs = list((root / "runs").iterdir())
    wrong = (runs[0] / name).read_bytes() != (simulated / name).read_bytes()
    return {"wrong_weights": int(wrong), "run_folders": len(runs)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), args.kills, args.seed)
    rows = []
    for what in WHAT:
        took = [kill["seconds"] for kill in result["kills"] if kill["what"] == what]
        if took:
            back = {"median s to the next round": f"{statistics.median(took):.1f}", "longest": f"{max(took):.1f}"}
            rows.append({"killed": what, "times": len(took), **back})
    say(table(rows))
    say(f"{len(result['kills'])} kills, {result['rounds']} rounds, wrong weights: {result['wrong_weights']}")
    lost = 0 if not result["wrong_weights"] and result["run_folders"] == 1 else 1
    counts = Counter(kill["what"] for kill in result["kills"])
    write("soak", "python benchmarks/soak.py", {**result, "lost": lost, "counts": dict(counts)})


if __name__ == "__main__":
    main()
