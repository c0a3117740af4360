"""The engine that trains many clients in one forward pass, against a loop written by hand, against its own limits.

`python benchmarks/engine.py [single|together|bf16|memory|growth|overhead|ceiling ...]`, all parts by default. Each part
writes its own section of `results/engine.json`. Times are CPU seconds of one thread; variants take turns in one
process, and a ratio is the median of the turns' ratios. `--try` runs a part on a toy model and writes nothing.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import costs
import picture
import torch
from machine import median, say, table
from plain import Plain
from rig import ENGINES, Rig, encoded
from timing import interleaved, judged, least, merge, middle, piecewise, ratios, spread, targets_table
from torch import Tensor

from models import QUERY_VALUE, STEPS, Steps, clients, tokens

COUNTS = (2, 4, 8, 16)
TURNS = {("micro", 1): 1, ("micro", 4): 1, ("tiny", 1): 9, ("tiny", 4): 5, ("small", 1): 5, ("small", 4): 3}
ALONE = {("tiny", 1): 8, ("tiny", 4): 3, ("small", 1): 3}
"""Clients of a turn where each trains alone; 1 where not said."""
SINGLE = {1: 1.03, 4: 0.70}
"""Share of the plain loop's time that one client may take, by batch size."""
TOGETHER = {("tiny", 1): 1.25, ("tiny", 4): 1.6, ("small", 1): 1.1, ("small", 4): 1.5}
"""How many times faster than the plain loop eight clients are to be."""


@dataclass(frozen=True)
class Case:
    """A model and a batch size."""

    kind: str
    batch: int
    engine: str

    @property
    def turns(self) -> int:
        return TURNS[self.kind, self.batch]

    def work(self, count: int) -> list[Steps]:
        return clients(count, self.kind, self.batch)

    def rig(self, slots: int, dtype: str = "float32") -> Rig:
        return Rig(self.kind, QUERY_VALUE, slots=slots, dtype=dtype, engine=self.engine)

    def plain(self, **settings: Any) -> Plain:
        return Plain(self.rig(1).base.name, QUERY_VALUE, **settings)  # type: ignore[arg-type]

    @property
    def bar(self) -> str:
        return f", {self.kind}, batch {self.batch}"

    @property
    def said(self) -> dict[str, Any]:
        return {"model": self.kind, "batch": self.batch, "steps": STEPS[self.kind]}


def single(cases: Sequence[Case]) -> dict[str, Any]:
    """One client at a time."""
    rows, targets = [], []
    for case in cases:
        work = case.work(ALONE.get((case.kind, case.batch), 1))
        plain, wrapped, ours = case.plain(), case.plain(peft=True), case.rig(1)
        oracle = Rig(case.kind, QUERY_VALUE, engine="reference")
        held = [encoded(steps) for steps in work]
        start = ours.factors(ours.adapted.start)
        times = piecewise(
            {
                "plain": lambda i: plain.train(start, work[i]),  # noqa: B023
                "peft": lambda i: wrapped.train(start, work[i]),  # noqa: B023
                "reference": lambda i: oracle.train([held[i]]),  # noqa: B023
                "ours": lambda i: ours.train([held[i]]),  # noqa: B023
            },
            len(work),
            case.turns,
        )
        found = ratios(times["ours"], times["plain"])
        rows.append(
            {
                **case.said,
                "plain ms / client-round": middle([1e3 * t / len(work) for t in times["plain"]], 1),
                "peft loop / plain": middle(ratios(times["peft"], times["plain"])),
                "reference / plain": middle(ratios(times["reference"], times["plain"])),
                "slots / plain": middle(found), "range": spread(found), "turns": case.turns,
                "of the quickest turns": least(times["ours"], times["plain"]),
                "weights differ by": f"{difference(ours, plain, work[0]):.1e}",
            }
        )  # fmt: skip
        say(str(rows[-1]))
        what = f"one client, {case.kind}, batch {case.batch}: share of the plain loop's time"
        targets.append(judged(what, median(found), "<=", SINGLE[case.batch], f"one client{case.bar}"))
    return {"rows": rows, "targets": targets}


def together(cases: Sequence[Case]) -> dict[str, Any]:
    """Several clients in one forward pass, against the same clients one after another."""
    rows, targets = [], []
    for case in cases:
        work, plain = case.work(max(COUNTS)), case.plain()
        held = [encoded(steps) for steps in work]
        rigs = {n: case.rig(n) for n in COUNTS}
        start = rigs[2].factors(rigs[2].adapted.start)
        variants: dict[str, Callable[[], object]] = {}
        for less, n in zip((0, *COUNTS), COUNTS, strict=False):
            more = work[less:n]  # every client trains alone once a turn, between those who train together
            variants[f"plain {n}"] = lambda more=more: [plain.train(start, steps) for steps in more]  # type: ignore[misc]  # noqa: B023
            variants[f"ours {n}"] = lambda n=n: rigs[n].train(held[:n])  # type: ignore[misc]  # noqa: B023
        times = interleaved(variants, case.turns)
        alone = [0.0] * case.turns
        for n in COUNTS:
            alone = [sum(pair) for pair in zip(alone, times[f"plain {n}"], strict=True)]
            found = ratios(alone, times[f"ours {n}"])
            if n == 8 and (case.kind, case.batch) in TOGETHER:
                what = f"8 clients together, {case.kind}, batch {case.batch}: times faster than the plain loop"
                wanted = TOGETHER[case.kind, case.batch]
                targets.append(judged(what, median(found), ">=", wanted, f"8 clients together{case.bar}"))
            rows.append(
                {
                    **case.said, "clients": n,
                    "plain ms / client-round": middle([1e3 * t / n for t in alone], 1),
                    "ours ms / client-round": middle([1e3 * t / n for t in times[f"ours {n}"]], 1),
                    "times faster": middle(found), "range": spread(found), "turns": case.turns,
                    "of the quickest turns": least(alone, times[f"ours {n}"]),
                    "real tokens / s": round(tokens(work[:n]) / median(times[f"ours {n}"])),
                }
            )  # fmt: skip
            say(str(rows[-1]))
    worst = min(rows, key=lambda row: row["times faster"])
    where = f"{worst['clients']} clients, {worst['model']}, batch {worst['batch']}"
    targets.append(judged(f"any count of clients, at worst ({where})", worst["times faster"], ">=", 1.0))
    return {"rows": rows, "targets": targets}


def bf16(cases: Sequence[Case]) -> dict[str, Any]:
    """A base in bfloat16 and eight clients, against the plain loop in float32 and with the flag everybody has."""
    rows, targets = [], []
    for case in cases:
        work = case.work(8)
        held = [encoded(steps) for steps in work]
        plain, flagged, exact, ours = case.plain(), case.plain(bf16=True), case.rig(8), case.rig(8, "bfloat16")
        start = ours.factors(ours.adapted.start)
        times = interleaved(
            {
                "plain": lambda: [plain.train(start, steps) for steps in work],  # noqa: B023
                "plain bf16": lambda: [flagged.train(start, steps) for steps in work],  # noqa: B023
                "ours": lambda: exact.train(held),  # noqa: B023
                "ours bf16": lambda: ours.train(held),  # noqa: B023
            },
            case.turns,
        )
        found = ratios(times["plain"], times["ours bf16"])
        wrong = max(error(ours, plain, steps) for steps in work)
        rows.append(
            {
                **case.said, "clients": 8,
                "times faster than plain fp32": middle(found), "range": spread(found), "turns": case.turns,
                "of the quickest turns": least(times["plain"], times["ours bf16"]),
                "than plain bf16 autocast": middle(ratios(times["plain bf16"], times["ours bf16"])),
                "than ours fp32": middle(ratios(times["ours"], times["ours bf16"])),
                "gradient error, worst of 8": f"{wrong:.2%}",
                "of autocast": f"{max(error(ours, plain, steps, flagged) for steps in work):.2%}",
                "of ours fp32": f"{max(error(exact, plain, steps) for steps in work):.1e}",
            }
        )  # fmt: skip
        say(str(rows[-1]))
        name = f"bfloat16 base, 8 clients, {case.kind}, batch {case.batch}"
        what = f"{name}: times faster than the plain loop in float32"
        targets.append(judged(what, median(found), ">=", 3.0, f"8 together, bf16 base{case.bar}"))
        targets.append(judged(f"{name}: relative error of the gradient", wrong, "<=", 0.02))
    return {"rows": rows, "targets": targets}


def difference(ours: Rig, plain: Plain, steps: Steps) -> float:
    """Between both results of one client-round, as a share of how far the client went."""
    (run,) = ours.train([encoded(steps)])
    wanted = plain.train(ours.factors(ours.adapted.start), steps)
    return relative(run.y, ours.layout.gather(wanted), ours.adapted.start)


def error(ours: Rig, plain: Plain, steps: Steps, other: Plain | None = None) -> float:
    """Of the gradient of a client's first batch, against the plain loop's in float32."""
    x = ours.somewhere()
    factors, rows = ours.factors(x), steps[0]
    wanted = ours.layout.gather(plain.gradient(factors, rows))
    found = ours.layout.gather(other.gradient(factors, rows)) if other else ours.gradient(encoded([rows])[0], x)
    return relative(found, wanted, torch.zeros(()))


def relative(found: Tensor, wanted: Tensor, start: Tensor) -> float:
    return float((found - wanted).norm() / (wanted - start).norm())


PARTS: dict[str, Callable[[Sequence[Case]], dict[str, Any]]] = {"single": single, "together": together, "bf16": bf16}
COSTS: dict[str, Callable[[str, bool], dict[str, Any]]] = {
    "memory": costs.memory, "growth": costs.growth, "overhead": costs.overhead, "ceiling": costs.ceiling
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join((*PARTS, *COSTS))}; default: all")
    parser.add_argument("--engine", choices=ENGINES, default="slots", help="reference: to try the script itself")
    parser.add_argument("--models", nargs="+", choices=("tiny", "small"), default=("tiny", "small"))
    parser.add_argument("--try", dest="toy", action="store_true", help="a toy model, one turn, nothing written")
    asked = parser.parse_args()
    if unknown := sorted({*asked.parts} - {*PARTS, *COSTS}):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join((*PARTS, *COSTS))}")
    torch.set_num_threads(1)
    cases = [Case(k, b, asked.engine) for k in (("micro",) if asked.toy else asked.models) for b in (1, 4)]
    for part in asked.parts or (*PARTS, *COSTS):
        result = PARTS[part](cases) if part in PARTS else COSTS[part](asked.engine, asked.toy)
        say(f"\n## {part}\n\n{table(result['rows'])}\n\n{targets_table(result['targets'])}\n")
        if not asked.toy and asked.engine == "slots":
            merge("engine", part, f"python benchmarks/engine.py {part}", result)
            picture.draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
