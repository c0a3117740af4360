"""The report as text of at most 80 columns."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from fedloom.conformance.cells import AXES, TOLERANCE
from fedloom.conformance.judge import Outcome, Report

WIDTH: Final = 80
GROUP: Final = ("ranks", "scaling", "layer", "shape")
WORDS: Final = {
    "ranks": "{} ranks",
    "scaling": "{}",
    "layer": "{} layers",
    "shape": "{} layers",
    "weights": "{} weights",
    "drift": "{} drift",
    "clients": "{} clients",
    "dtype": "{}",
}
ALLOWED: Final = (
    f"Largest relative error in the Frobenius norm; allowed: {TOLERANCE['fp64']:.0e} in fp64, "
    f"{TOLERANCE['fp32']:.0e} in fp32."
)


def grid_table(report: Report) -> str:
    """One line for each combination of ranks, scaling and layer."""
    lines = [f"{'ranks':6} {'scaling':8} {'layer':7} {'shape':7} {'cells':>5} {'fp64':>9} {'fp32':>9}"]
    for key, group in groupby(
        report.outcomes, key=lambda outcome: tuple(getattr(outcome.cell, axis) for axis in GROUP)
    ):
        cells = list(group)
        ranks, scaling, layer, shape = key
        lines.append(
            f"{ranks:6} {scaling:8} {layer:7} {shape:7} {len(cells):5} {_number(report, cells, 'fp64'):>9} "
            f"{_number(report, cells, 'fp32'):>9}  {_verdict(cells)}"
        )
    return "\n".join(lines)


def line(name: str, regime: str, report: Report) -> str:
    """One line for a whole report."""
    return (
        f"{name:11} {regime:29} {len(report.outcomes):5} {_number(report, report.outcomes, 'fp64'):>8} "
        f"{_number(report, report.outcomes, 'fp32'):>8}  {_verdict(report.outcomes)}"
    )


def line_head() -> str:
    """The head over such lines."""
    return f"{'space':11} {'equals':29} {'cells':>5} {'fp64':>8} {'fp32':>8}"


def findings(report: Report) -> str:
    """What failed first, what it looks like, where else; what was refused. Empty when there is nothing to say."""
    return "\n".join(_findings(report))


def _findings(report: Report) -> Iterator[str]:
    if report.failed:
        first = report.failed[0]
        what = first.words or f"relative error {first.error:.2g}"
        yield _fill("first failure: ", str(first.cell).replace(" ", "\0").replace(",\0", ", "))
        yield _fill("               ", what)
        for i, (name, count) in enumerate(report.looks):
            some = f" ({count} of {len(report.failed)} failing cells)" if count < len(report.failed) else ""
            yield _fill("               " if i else "looks like:    ", name + some)
        if only := _only(report):
            yield _fill("fails only in: ", only)
    reasons: dict[str, int] = {}
    for outcome in report.refused:
        reasons[outcome.words] = reasons.get(outcome.words, 0) + 1
    for reason, count in list(reasons.items())[:3]:
        yield _fill("refused:       ", f"{count} cells: {reason}")


def _only(report: Report) -> str:
    """What all failing cells have in common, where a cell that differs in nothing else passes."""
    verdicts = {outcome.cell: outcome.verdict for outcome in report.outcomes}
    common = []
    for axis, values in AXES.items():
        bad = [value for value in values if any(getattr(outcome.cell, axis) == value for outcome in report.failed)]
        good = [
            value
            for value in values
            if value not in bad
            and any(verdicts.get(replace(outcome.cell, **{axis: value})) == "pass" for outcome in report.failed)
        ]
        if good:
            common.append(WORDS[axis].format(" or ".join(map(str, bad))))
    return "; ".join(common).replace("1 clients", "1 client")


def _number(report: Report, outcomes: Sequence[Outcome], dtype: str) -> str:
    worst = report.worst(outcomes, dtype)
    return "-" if worst is None else "none" if worst == float("inf") else f"{worst:.1e}"


def _verdict(outcomes: Sequence[Outcome]) -> str:
    failed = sum(outcome.verdict == "fail" for outcome in outcomes)
    refused = sum(outcome.verdict == "refused" for outcome in outcomes)
    if failed:
        return "FAIL" if failed == len(outcomes) else f"FAIL {failed}"
    if refused:
        return "refused" if refused == len(outcomes) else f"pass, {refused} refused"
    return "pass"


def _fill(head: str, text: str) -> str:
    shown = textwrap.shorten(text, 400, placeholder=" ...")
    lines = textwrap.fill(shown, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)).split("\n")
    return "\n".join("".join(char if char.isprintable() else " " for char in line) for line in lines)


def fill(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
