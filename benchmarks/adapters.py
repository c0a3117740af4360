"""Kinds of adapters on the embedded model: bytes a client sends in a round, and loss after equal steps.

Five clients learn ten skills, as in the recipe `quickstart` with fewer rounds. Kinds want rates of different sizes, so
each is run with two, and the better one counts; both are in the result. AdaLoRA has no shared model: its loss is that
of clients alone, each on its own rows, and LoRA's beside it is the same.
"""

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from machine import say, table, write

SETTINGS = [
    "partition.clients=5", "federation.rounds=3", "evaluate.every=3", "evaluate.metrics=[loss]",
    "evaluate.forgetting=false", "data.playground.test_rows=10", "model.dtype=float32", "model.device=cpu",
]  # fmt: skip
ALONE = ["algorithm={name: local, keep_inner: true}"]
VIRTUAL = [2e-2, 1e-1]
Kind = tuple[str, list[float], list[str]]
"""The section `adapter`, learning rates to try, further settings."""
KINDS: dict[str, Kind] = {
    "lora": ("{kind: lora, rank: 16, alpha: 32, targets: all-linear}", [6e-3, 2e-2], []),
    "dora": ("{kind: dora, rank: 16, alpha: 32, targets: all-linear}", [6e-3, 2e-2], []),
    "ia3": ("{kind: ia3, targets: all-linear}", [2e-2, 1e-1], []),
    "vera": ("{kind: vera, targets: all-linear}", [2e-2, 1e-1], []),
    "prefix": ("{kind: prefix}", VIRTUAL, []),
    "prefix, zero": ("{kind: prefix, start: zero}", VIRTUAL, []),
    "prompt": ("{kind: prompt}", VIRTUAL, []),
    "prompt, vocabulary": ("{kind: prompt, start: vocabulary}", VIRTUAL, []),
    "p_tuning": ("{kind: p_tuning}", [2e-3, 1e-2], []),
    "full": ("{kind: full}", [5e-4, 2e-3], []),
    "lora, alone": ("{kind: lora, rank: 16, alpha: 32, targets: all-linear}", [6e-3], ALONE),
    "adalora, alone": (
        "{kind: adalora, rank: 16, target_rank: 8, alpha: 32, targets: all-linear, steps: 24, warmup: 4, final: 6, "
        "orthogonal: 0.1}",
        [6e-3, 2e-2],
        ALONE,
    ),
}


def main() -> int:
    rows, every = [], []
    for name in KINDS:
        found = []
        for rate in KINDS[name][1]:
            command = [sys.executable, __file__, name, str(rate)]
            out = subprocess.run(command, capture_output=True, text=True, check=False)
            if out.returncode:
                say(out.stderr)
                return 1
            found.append(json.loads(out.stdout.splitlines()[-1]))
            say(str(found[-1]))
        every += found
        rows.append(min(found, key=lambda row: row["loss after"]))
    say(table(rows))
    write("adapters", "python benchmarks/run.py adapters", {"rows": rows, "every run": every})
    return 0


def measure(name: str, rate: float) -> dict[str, Any]:
    from fedloom import load, run
    from fedloom.events import Evaluated, Event, RoundFinished, RunStarted

    adapter, _, more = KINDS[name]
    losses, sent, numbers, loss = list[float](), list[int](), [0], [0.0]

    def sink(event: Event) -> None:
        if isinstance(event, RunStarted):
            numbers[0] = event.trainable_parameters
        elif isinstance(event, RoundFinished):
            sent.append(event.bytes_up // 5)
            loss[0] = event.loss or 0.0
        elif isinstance(event, Evaluated) and event.split == "test":
            losses.append(event.metrics["loss"])

    with tempfile.TemporaryDirectory() as folder:
        own = [f"adapter={adapter}", f"local.lr={rate}", f"run.folder={folder}"]
        config = load("quickstart", [*SETTINGS, *more, *own])
        begun = time.process_time()
        run(config, [sink])
        spent = time.process_time() - begun
    return {
        "kind": name,
        "trained numbers": numbers[0],
        "bytes up, a client and round": max(sent),
        "rate": rate,
        "loss before": round(losses[0], 3),
        "loss after": round(losses[-1], 3),
        "training loss of the last round": round(loss[0], 3),
        "CPU s": round(spent, 1),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
    else:
        sys.exit(main())
