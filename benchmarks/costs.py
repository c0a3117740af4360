"""What the engine costs beside the mathematics: memory, growth with the cohort, overhead; how near the ceiling it is.

Parts of `engine.py`; memory is measured in processes of its own (`python costs.py MODEL ENGINE COHORT BATCH`).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from machine import median, say
from plain import Plain
from rig import Federation, Rig, encoded
from timing import interleaved, judged, middle, ratios, spread
from torch import nn

from models import LINEAR, LONGEST, QUERY_VALUE, SHAPES, Row, Steps, clients, saved, tokens

SLOTS, BUDGET = 8, 1024
COHORTS = (4, 8, 16, 32, 64)


# -- memory


def memory(engine: str, toy: bool) -> dict[str, Any]:
    """Largest resident size beyond the loaded model: cohorts of 8 and 64, batches of 4 and 8, and the plain loop.

    The plain loop trains one client on batches of as many tokens as one shared pass may hold.
    """
    kind = "micro" if toy else "small"
    rows = [one(kind, engine, *case) for case in ((8, 4), (64, 4), (8, 8))]
    plain = one(kind, "plain", 1, BUDGET // LONGEST)
    few, many, large = rows
    most = plain["activations and rest MiB"]
    targets = [
        judged("cohort 64: peak memory of cohort 8's", many["peak MiB"] / few["peak MiB"], "<=", 1.1),
        judged("batch 8: peak memory of batch 4's", large["peak MiB"] / few["peak MiB"], "<=", 1.1),
        judged(f"activations and rest, of the plain loop's at {BUDGET} tokens a step",
               few["activations and rest MiB"] / most, "<=", 1.1),
    ]  # fmt: skip
    return {"rows": [*rows, plain], "targets": targets}


def one(kind: str, engine: str, cohort: int, batch: int) -> dict[str, Any]:
    command = [sys.executable, __file__, kind, engine, str(cohort), str(batch)]
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    say(str(found))
    return found


def measured(kind: str, engine: str, cohort: int, batch: int) -> dict[str, Any]:
    slots, train, size, module = plainly(kind, batch) if engine == "plain" else federated(kind, engine, cohort, batch)
    loaded = touched(module)
    with suppress(OSError):  # lets the kernel forget the peak of the imports
        Path("/proc/self/clear_refs").write_text("5")
    train()
    rows, peak = slots * 16 * size / 2**20, resident("VmHWM")
    return {
        "model": kind, "engine": engine, "cohort": cohort, "batch": batch, "slots": slots, "trainable": size,
        "loaded MiB": round(loaded, 1), "peak MiB": round(peak, 1), "rows MiB (slots x 16 x P)": round(rows, 1),
        "activations and rest MiB": round(peak - loaded - rows, 1),
    }  # fmt: skip


Ready = tuple[int, Callable[[], object], int, nn.Module]
"""Clients at a time, what is measured, trainable numbers, the model."""


def federated(kind: str, engine: str, cohort: int, batch: int) -> Ready:
    rig = Rig(kind, LINEAR, slots=SLOTS, engine=engine)
    side = Federation(rig, [encoded(steps) for steps in clients(cohort, kind, batch, 2)])
    return SLOTS, side.round, rig.layout.size, rig.base.module


def plainly(kind: str, batch: int) -> Ready:
    plain, ids = Plain(saved(kind), LINEAR), tuple(range(2, 2 + LONGEST))
    row = Row(ids, (-100,) * 102 + ids[102:], 102)  # two fifths are the prompt, as everywhere
    return 1, lambda: plain.train(plain.take(), [[row] * batch] * 2), plain.size, plain.model


def touched(module: nn.Module) -> float:
    """Resident MiB once every weight was read: files that are mapped count only then."""
    for parameter in module.parameters():
        parameter.sum()
    return resident("VmRSS")


def resident(key: str) -> float:
    """VmRSS, memory now, or VmHWM, its peak, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


# -- growth


def growth(engine: str, toy: bool) -> dict[str, Any]:
    """Rounds of FedAvg with cohorts of 4 to 64; clients repeat four sets of rows, so that work grows in a line."""
    kind = "micro" if toy else "tiny"
    rig, four = Rig(kind, QUERY_VALUE, slots=SLOTS, engine=engine), [encoded(s) for s in clients(4, kind, 1)]
    sides = {n: Federation(rig, [four[i % 4] for i in range(n)]) for n in COHORTS}
    times = interleaved({str(n): side.round for n, side in sides.items()}, 1 if toy else 5)
    spent = {n: median(times[str(n)]) for n in COHORTS}
    slope = (spent[64] - spent[8]) / 56
    rows, off = [], []
    for less, n in zip((0, *COHORTS), COHORTS, strict=False):
        own = (spent[n] - spent.get(less, 0.0)) / (n - less)
        if less >= SLOTS:
            off.append(abs(own / slope - 1))
        rows.append(
            {"cohort": n, "slots": SLOTS, "round CPU s": round(spent[n], 3), "range": spread(times[str(n)], 3),
             "ms / client": round(1e3 * spent[n] / n, 1), "ms / client more than before": round(1e3 * own, 1)}
        )  # fmt: skip
    return {"rows": rows, "targets": [judged("slopes 8..64 off the straight line, at most", max(off), "<=", 0.05)]}


# -- overhead


class Clock:
    """Where a round's CPU seconds go: model mathematics, the rest of the engine, everything else."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.mathematics, self.engine, self._begun = rig, 0.0, 0.0, 0.0

    def _begin(self, *ignored: Any) -> None:
        self._begun = self._begun or time.process_time()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """From the embedding of a forward pass to the end of its backward pass is mathematics."""
        backward, engine = torch.autograd.backward, self.rig.engine

        def timed(*arguments: Any, **named: Any) -> None:
            backward(*arguments, **named)
            self.mathematics += time.process_time() - self._begun
            self._begun = 0.0

        hook = self.rig.adapted.module.get_input_embeddings().register_forward_pre_hook(self._begin)  # type: ignore[operator]
        torch.autograd.backward = timed
        engine.advance, engine.admit = self._within(engine.advance), self._within(engine.admit)
        try:
            yield
        finally:
            torch.autograd.backward = backward
            hook.remove()
            del engine.advance, engine.admit

    def _within(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = time.process_time()
            found = work(*arguments)
            self.engine += time.process_time() - begun
            return found

        return timed


def overhead(engine: str, toy: bool) -> dict[str, Any]:
    """A round of eight clients, what is not forward or backward pass; the fixed part and that of a step by two runs."""
    kind, rows, targets = "micro" if toy else "tiny", list[dict[str, Any]](), list[dict[str, Any]]()
    for names, rank, limit in ((QUERY_VALUE, 8, 0.5), (LINEAR, 8 if toy else 52, 2.0)):
        rig = Rig(kind, names, rank=rank, slots=SLOTS, engine=engine)
        split = {steps: shares(rig, kind, steps, 1 if toy else 15) for steps in (1, 11)}
        each = {part: (split[11][part] - split[1][part]) / 10 for part in split[1]}
        fixed = {part: split[1][part] - each[part] for part in split[1]}
        ten = {part: fixed[part] + 10 * each[part] for part in fixed}
        rows.append(
            {
                "trainable": rig.layout.size, "slots": SLOTS, "model mathematics ms": round(ten["mathematics"], 1),
                "federation ms": round(ten["federation"], 3), "engine, fixed ms": round(fixed["engine"], 3),
                "engine, ms / step": round(each["engine"], 3), "all of 10 steps ms": round(ten["all"], 3),
                "share of a client-round": f"{ten['all'] / (ten['all'] + ten['mathematics']):.2%}",
            }
        )  # fmt: skip
        name = f"{rig.layout.size:,} numbers, ms per client-round of 10 steps"
        targets.append(judged(f"{name}: everything but forward and backward", ten["all"], "<=", limit))
        runtime = ten["federation"] + fixed["engine"]
        targets.append(judged(f"{name}: the same without what every step needs", runtime, "<=", limit))
    return {"rows": rows, "targets": targets}


def shares(rig: Rig, kind: str, steps: int, turns: int) -> dict[str, float]:
    """CPU milliseconds of a client-round by part, medians."""
    side = Federation(rig, [encoded(s) for s in clients(SLOTS, kind, 1, steps)])
    found = list[dict[str, float]]()
    for _ in range(2 + turns):
        clock = Clock(rig)
        with clock.watching():
            begun = time.process_time()
            side.round()
            total = time.process_time() - begun
        engine, mathematics = clock.engine - clock.mathematics, clock.mathematics
        parts = {"mathematics": mathematics, "engine": engine, "federation": total - clock.engine,
                 "all": total - mathematics}  # fmt: skip
        found.append({name: 1e3 * seconds / SLOTS for name, seconds in parts.items()})
    return {name: median([one[name] for one in found[2:]]) for name in found[0]}


# -- ceiling


def ceiling(engine: str, toy: bool) -> dict[str, Any]:
    """Useful operations per second of eight clients, against bare products of the model's own shapes, in turns."""
    rows, targets = [], []
    for kind in ("micro",) if toy else ("tiny", "small"):
        for batch in (1, 4):
            work = clients(SLOTS, kind, batch, 2)
            held, useful = [encoded(steps) for steps in work], operations(kind, work)
            for dtype in ("float32", "bfloat16"):
                rig = Rig(kind, QUERY_VALUE, slots=SLOTS, engine=engine, dtype=dtype)
                bare = Bare(kind, getattr(torch, dtype))
                times = interleaved(
                    {"bare": bare.run, "ours": lambda: rig.train(held)}, 1 if toy else 7 if kind == "tiny" else 3  # noqa: B023
                )  # fmt: skip
                speed = useful / median(times["ours"])
                peak = bare.operations / median(times["bare"])
                share = 1 / median(ratios(times["ours"], times["bare"])) * useful / bare.operations
                rows.append(
                    {"model": kind, "batch": batch, "base": dtype, "clients": SLOTS,
                     "real tokens / s": round(tokens(work) / median(times["ours"])),
                     "useful GFLOP / s": round(speed / 1e9, 1), "bare products GFLOP / s": round(peak / 1e9, 1),
                     "share": middle([share])}
                )  # fmt: skip
                say(str(rows[-1]))
                if (kind, batch, dtype) == ("small", 4, "float32"):
                    targets.append(judged("small, batch 4: share of the speed of bare products", share, ">=", 0.85))
    return {"rows": rows, "targets": targets or [judged("nothing on a toy", 0, ">=", 0)]}


class Bare:
    """The model's matrix products over as many tokens as one forward pass may hold, forward and towards the input."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        pairs = shapes(kind)
        self.layers, self.x = SHAPES[kind]["num_hidden_layers"], {n: torch.randn(BUDGET, n).to(dtype) for n, _ in pairs}
        self.weights = [torch.randn(out, n).to(dtype) for n, out in pairs]
        self.g = {out: torch.randn(BUDGET, out).to(dtype) for _, out in pairs}
        self.operations = 4.0 * BUDGET * self.layers * sum(n * out for n, out in pairs)

    def run(self) -> None:
        for _ in range(self.layers):
            for weight in self.weights:
                self.x[weight.shape[1]] @ weight.t()
            for weight in self.weights:
                self.g[weight.shape[0]] @ weight


def shapes(kind: str) -> list[tuple[int, int]]:
    """Inputs and outputs of a layer's linear modules."""
    wide, inner = SHAPES[kind]["hidden_size"], SHAPES[kind]["intermediate_size"]
    return [(wide, wide)] * 4 + [(wide, inner)] * 2 + [(inner, wide)]


def operations(kind: str, work: Sequence[Steps], rank: int = 8) -> float:
    """What training needs at least: no filling, no masked half of attention, a head on learned tokens only.

    A frozen product costs 2 per weight and token forward and as much towards its input, which the first layer's
    projections of queries, keys and values do not need; a factor costs 6; attention 2 forward and 4 backward.
    """
    shape = SHAPES[kind]
    wide, layers, vocab = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
    rows = [row for steps in work for step in steps for row in step]
    count, learned = tokens(list(work)), sum(len(row.ids) - row.prompt for row in rows)
    linear = 4 * count * layers * sum(n * out for n, out in shapes(kind)) - 2 * count * 3 * wide * wide
    factors = 6 * count * layers * 2 * rank * 2 * wide
    attention = 6 * wide * layers * sum(len(row.ids) ** 2 for row in rows)
    return float(linear + factors + attention + 4 * learned * wide * vocab)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
