"""What it costs to average replies of 10 million numbers, in time and memory, and how both grow with the cohort.

`mean`: the rule `Mean` through `runtime.folding.Fold`, float64 sums, one reply in memory at a time. `mean, measured`:
the same as FedAvg has it, with the drift and the aggregation error of the round. `hub`: what the server does with every
reply besides, its size and the check that all numbers are finite. `list, sum`: what is commonly done, all state dicts
kept in a list and every tensor summed by Python's `sum` over float32 copies times weight. Replies are LoRA factors of
76 modules of 4096 x 4096 at rank 16, 152 tensors of 65,536 numbers. What the list costs depends on how large tensors
are beside the cache, so the same numbers are also summed as ten tensors of a million, and as one.

Each row runs in a process of its own, in turn, three times; medians. CPU seconds of one thread, the making of replies
left out. Memory is the largest resident size beyond the start (where one vector already lies), in copies of a reply.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from machine import median, say, table, write
from torch import Tensor

from fedloom.aggregate.rules import Mean
from fedloom.channel.check import fault
from fedloom.channel.codec import size
from fedloom.contracts import Rule, Weighted
from fedloom.params import Layout, Leaf
from fedloom.runtime.folding import Fold
from fedloom.spaces.factors import Factors
from fedloom.spaces.measure import Measured, Sketch

MODULES, RANK, SIDE = 76, 16, 4096
COHORTS, REPEATS = (10, 100), 3


@dataclass(frozen=True)
class Result(Weighted):
    y: Tensor


def main() -> int:
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(REPEATS):
        for name in VARIANTS:
            for cohort in COHORTS:
                out = subprocess.check_output([sys.executable, __file__, name, str(cohort)], text=True)
                found.setdefault((name, cohort), []).append(json.loads(out))
    rows = [
        {
            "variant": name, "cohort": cohort, "ms / client": round(median([run["ms"] for run in runs]), 1),
            "range": f"{min(run['ms'] for run in runs):.1f} .. {max(run['ms'] for run in runs):.1f}",
            "extra memory, copies": round(median([run["copies"] for run in runs]), 2),
        }
        for (name, cohort), runs in found.items()
    ]  # fmt: skip
    ms = {key: median([run["ms"] for run in runs]) for key, runs in found.items()}
    ratios = {f"{name} / mean at {n}": round(ms[name, n] / ms["mean", n], 2) for name in LISTS for n in COHORTS}
    say(table(rows))
    say(str(ratios))
    write("aggregation", "python benchmarks/run.py aggregation", {"numbers": size_of(), "rows": rows, "ratios": ratios})
    return 0


def measure(name: str, cohort: int) -> dict[str, float]:
    torch.set_num_threads(1)
    shared = torch.linspace(-1, 1, size_of())
    VARIANTS[name](shared[: 1 << 16].clone(), 2)  # warms up
    begun = resident("VmRSS")
    with suppress(OSError):  # lets the kernel forget the peak of the imports
        Path("/proc/self/clear_refs").write_text("5")
    spent = VARIANTS[name](shared, cohort)
    return {"ms": spent / cohort * 1e3, "copies": (resident("VmHWM") - begun) / (4 * size_of())}


def streamed(shared: Tensor, cohort: int) -> float:
    return fold(shared, cohort, Mean())


def watched(shared: Tensor, cohort: int) -> float:
    """As in `FedAvg.round`, the figures included."""
    if len(shared) < size_of():
        return 0.0
    space, sketch = Factors(LAYOUT), Sketch()
    point = shared

    def figures(mean: Tensor) -> None:
        sketch.drift(space.form(point, 0))
        sketch.error(space.form(mean, 0))

    return fold(shared, cohort, Measured(space.rule, lambda term: space.form(term, 0), sketch), figures)


def fold(shared: Tensor, cohort: int, rule: Rule, after: Callable[[Tensor], None] = lambda mean: None) -> float:
    spent, collected = 0.0, Fold({"y": rule}, None, ())
    for reply in replies(shared, cohort):
        begun = time.process_time()
        collected.add(len(collected.clients), reply)
        spent += time.process_time() - begun
        del reply
    begun = time.process_time()
    after(collected.got({}).value.y)
    return spent + time.process_time() - begun


def hub(shared: Tensor, cohort: int) -> float:
    spent = 0.0
    for reply in replies(shared, cohort):
        begun = time.process_time()
        size(reply)
        assert fault(reply) is None
        spent += time.process_time() - begun
        del reply
    return spent


def listed(shared: Tensor, cohort: int, width: int = RANK * SIDE) -> float:
    """The average as it is commonly written down, over tensors of `width` numbers."""
    received = [(reply.weight, dict(enumerate(reply.y.split(width)))) for reply in replies(shared, cohort)]
    begun = time.process_time()
    total = sum(weight for weight, _ in received)
    mean = {name: sum([state[name] * (weight / total) for weight, state in received]) for name in received[0][1]}
    spent = time.process_time() - begun
    assert sum(len(tensor) for tensor in mean.values()) == len(shared)
    return spent


def replies(shared: Tensor, cohort: int) -> Iterator[Result]:
    """One after the other; whoever takes one has to let it go."""
    for i in range(cohort):
        yield Result(y=shared * (1 + i / cohort), weight=10.0 + i % 7)


def resident(key: str) -> int:
    """VmRSS, memory now, or VmHWM, its peak, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def size_of() -> int:
    return LAYOUT.size


LAYOUT = Layout.of(
    [
        Leaf(f"{m}.{factor}", shape, factor=factor, module=str(m), scale=2.0)
        for m in range(MODULES)
        for factor, shape in (("A", (RANK, SIDE)), ("B", (SIDE, RANK)))
    ]
)
VARIANTS: dict[str, Callable[[Tensor, int], float]] = {
    "mean": streamed,
    "mean, measured": watched,
    "hub": hub,
    "list, sum, 152 tensors": listed,
    "list, sum, 10 tensors": partial(listed, width=1 << 20),
    "list, sum, 1 tensor": partial(listed, width=1 << 30),
}
LISTS = [name for name in VARIANTS if name.startswith("list")]

if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        sys.exit(main())
