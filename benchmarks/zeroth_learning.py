"""Learning without gradients: FedMeZO, FedKSeed and DeComFL beside FedAvg, by forward passes and by bytes.

`python benchmarks/zeroth_learning.py [--steps 300] [--only NAME ...] [--rates 1e-3 3e-3 1e-2]`. Three clients with
equal shares of three playground skills; LoRA rank 8 on the attention of the embedded model in float32, batch 8, 10
local steps a round (DeComFL: one step of 10 directions). A step without gradients is two forward passes, one with
gradients counts as three. Every method runs at each rate; its best one by the last loss is reported, the others stand
beside it. Losses are on rows nobody trained on. Bytes are those of all messages of a round, both ways, of all clients.
"""

import argparse
import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine, say, table

from fedloom import experiment
from fedloom.config import load
from fedloom.errors import RunStopped
from fedloom.events import Evaluated, RoundFinished

STEPS, POINTS = 10, 6
"""Local steps of a round; points of a curve behind the first."""
COMMON = (
    "model.dtype=float32", "adapter.rank=8", "adapter.alpha=16", "adapter.targets=auto", "data.max_length=128",
    "data.playground.skills=[capitalise, shout, quote]", "partition.method=iid", "partition.clients=3",
    "local.batch_size=8", "local.schedule=constant", "aggregate.server_optimizer.momentum=0",
    "evaluate.forgetting=false", "evaluate.metrics=[loss]", "evaluate.best=loss", "evaluate.rows_per_client=30",
    "checkpoint.every=1000",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A way to learn."""

    settings: Sequence[str]
    passes: int
    """Forward passes of one client's round."""
    rates: Sequence[float]


METHODS = {
    "fedavg": Method((f"local.steps={STEPS}",), 3 * STEPS, (1e-3, 6e-3)),
    "fedmezo": Method((f"local.steps={STEPS}", "algorithm={name: fedmezo}"), 2 * STEPS, ()),
    "fedkseed": Method((f"local.steps={STEPS}", "algorithm={name: fedkseed, epsilon: 1e-3}"), 2 * STEPS, ()),
    "fedkseed-pro": Method(
        (f"local.steps={STEPS}", "algorithm={name: fedkseed, epsilon: 1e-3, pro: true}"), 2 * STEPS, ()
    ),
    "ferret": Method((f"local.steps={STEPS}", "algorithm=ferret"), 3 * STEPS, (1e-3, 6e-3)),
    "decomfl": Method((f"algorithm={{name: decomfl, directions: {STEPS}}}",), 2 * STEPS, ()),
}


def curve(method: Method, rate: float, passes: int) -> list[dict[str, float]]:
    """Loss before, and as forward passes of a client and bytes add up."""
    rounds = max(POINTS, passes // method.passes)
    every = max(1, rounds // POINTS)
    sent, found = [0.0], list[dict[str, float]]()

    def sink(event: Any) -> None:
        if isinstance(event, RoundFinished):
            sent.append(sent[-1] + event.bytes_down + event.bytes_up)
        if isinstance(event, Evaluated):
            found.append({"passes": event.round * method.passes, "bytes": sent[-1], "loss": event.metrics["loss"]})

    with tempfile.TemporaryDirectory() as folder:
        where = [f"run.folder={folder}", f"federation.rounds={rounds}", f"evaluate.every={every}", f"local.lr={rate}"]
        config = load("quickstart", [*COMMON, *method.settings, *where])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(RunStopped):
            experiment.run(config, [sink])
            return found
    return [*found, {**found[-1], "loss": math.inf}]  # it diverged


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="steps without gradients each client takes")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zeroth_learning.jsonl")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in given.only:
        method = METHODS[name]
        tried = {rate: curve(method, rate, 2 * given.steps) for rate in method.rates or given.rates}
        best = min(tried, key=lambda rate: tried[rate][-1]["loss"])
        row = {"method": name, "rate": best, "curve": tried[best], "last": {r: c[-1]["loss"] for r, c in tried.items()}}
        with given.out.open("a") as file:
            file.write(json.dumps({**row, "steps": given.steps, "machine": machine()}) + "\n")
        say(table([{"method": name, "rate": best, **point} for point in tried[best]]))


if __name__ == "__main__":
    main()
