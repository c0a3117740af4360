"""One function over the grid: which cells pass, and by how much the others miss."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np

from fedloom.conformance.answers import Aggregate, Answer, Array, Factors, MalformedError, effective
from fedloom.conformance.cells import TOLERANCE, Case, Cell, case, grid
from fedloom.conformance.looks import suspects, turned_suspects

Target = Callable[[Case], Array]
"""[out, in] float64: what should come out of a case."""
Verdict = Literal["pass", "fail", "refused"]


@dataclass(frozen=True)
class Outcome:
    """What became of one cell."""

    cell: Cell
    verdict: Verdict
    error: float | None = None
    """Relative error in the Frobenius norm; None where nothing could be compared."""
    words: str = ""
    """Why nothing could be compared."""
    looks: tuple[str, ...] = ()
    malformed: bool = False
    """The answer was of a wrong kind, or of a shape that fits in no way."""


@dataclass(frozen=True)
class Report:
    """What became of all cells."""

    name: str
    outcomes: tuple[Outcome, ...]

    @cached_property
    def failed(self) -> tuple[Outcome, ...]:
        """Cells that failed, in the order of the grid."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict == "fail")

    @cached_property
    def refused(self) -> tuple[Outcome, ...]:
        """Cells the function said it cannot do."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict == "refused")

    @property
    def unusable(self) -> str | None:
        """Why nothing at all could be checked, if so."""
        tried = [outcome for outcome in self.outcomes if outcome.verdict != "refused"]
        if not tried:
            return f"it refused every cell: {self.refused[0].words}" if self.refused else "there was no cell to check"
        if all(outcome.malformed for outcome in tried):
            return tried[0].words
        return None

    @property
    def passed(self) -> bool:
        """Some cells passed and none failed."""
        return not self.failed and self.unusable is None

    @property
    def looks(self) -> tuple[tuple[str, int], ...]:
        """Defects that would give the failing answers, each with the number of cells it explains; at most three."""
        left = [outcome.looks for outcome in self.failed if outcome.looks]
        found: list[tuple[str, int]] = []
        while left and len(found) < 3:
            names = dict.fromkeys(name for looks in left for name in looks)
            best = max(names, key=lambda name: sum(name in looks for looks in left))
            found.append((best, sum(best in looks for looks in left)))
            left = [looks for looks in left if best not in looks]
        return tuple(found)

    def worst(self, outcomes: Iterable[Outcome], dtype: str) -> float | None:
        """The largest error among these in one number format; infinity where nothing could be compared."""
        errors = [
            math.inf if outcome.error is None else outcome.error
            for outcome in outcomes
            if outcome.cell.dtype == dtype and outcome.verdict != "refused"
        ]
        return max(errors) if errors else None


def check(
    aggregate: Aggregate,
    *,
    cells: Iterable[Cell] | None = None,
    truncated: bool = False,
    target: Target | None = None,
    name: str = "",
) -> Report:
    """Run a function over the grid and compare its answers.

    Args:
        aggregate: the function.
        cells: which; default: all.
        truncated: an answer of rank k is right when it is the best of that rank, k at least the largest client's.
        target: what should come out; default: Σ p_i s_i B_i A_i.
        name: what the report calls it; default: its own name.
    """
    outcomes = tuple(_outcome(aggregate, cell, truncated, target) for cell in (grid() if cells is None else cells))
    return Report(name or getattr(aggregate, "__qualname__", repr(aggregate)), outcomes)


def _outcome(aggregate: Aggregate, cell: Cell, truncated: bool, target: Target | None) -> Outcome:
    it = case(cell)
    clients, base = it.given()
    try:
        answer = aggregate(clients, base)
    except NotImplementedError as refusal:
        return Outcome(cell, "refused", words=str(refusal) or "NotImplementedError")
    except Exception as error:
        return Outcome(cell, "fail", words=f"it raised {type(error).__name__}: {error}")
    with np.errstate(all="ignore"):  # an infinite answer is told in words, not in warnings
        return _judged(it, answer, truncated, it.target if target is None else target(it))


def _judged(it: Case, answer: Answer, truncated: bool, expected: Array) -> Outcome:
    cell, right, slack = it.cell, expected, 1.0
    try:
        got = effective(answer, it.base)
    except MalformedError as wrong:
        if wrong.turned is None or not _usable(wrong.turned):
            return Outcome(cell, "fail", words=str(wrong), looks=wrong.looks, malformed=not wrong.looks)
        if truncated:
            right, _ = _best(expected, _rank(answer, wrong.turned, cell))
        return Outcome(cell, "fail", words=str(wrong), looks=turned_suspects(it, wrong.turned, right))
    if not np.isfinite(got).all():
        return Outcome(cell, "fail", words="the answer holds NaN or infinity")
    if not _usable(got):
        return Outcome(cell, "fail", words=f"the answer holds numbers as large as {np.abs(got).max():.0e}")
    if truncated:
        kept, least = _rank(answer, got, cell), min(max(client.rank for client in it.clients), *got.shape)
        if kept < least:
            return Outcome(cell, "fail", words=f"the answer has rank {kept}, the largest client {least}")
        right, slack = _best(expected, kept)
    missed = float(np.linalg.norm(got - right) / np.linalg.norm(right))
    if missed <= TOLERANCE[cell.dtype] * slack:
        return Outcome(cell, "pass", missed)
    return Outcome(cell, "fail", missed, looks=suspects(it, got, right))


def _usable(matrix: Array) -> bool:
    """Whether sums of squares of these numbers are numbers."""
    return bool(np.abs(matrix).max() < 1e100)  # not so for NaN either


RELATIVE: Final = {"fp64": 1e-10, "fp32": 1e-5}
"""Singular values below this share of the largest are rounding."""


def _rank(answer: Answer, got: Array, cell: Cell) -> int:
    """The rank an answer was allowed to have."""
    if isinstance(answer, Factors) and answer.residual is None:
        return min(int(np.shape(answer.a)[0]), *got.shape)
    s = np.linalg.svd(got, compute_uv=False)
    return int((s > RELATIVE[cell.dtype] * s[0]).sum())


def _best(matrix: Array, rank: int) -> tuple[Array, float]:
    """The best approximation of this rank, and how many times larger errors are where two singular values are close."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    if rank >= len(s):
        return best, 1.0
    return best, max(1.0, float(s[rank - 1] / max(s[rank - 1] - s[rank], 1e-12 * s[0])))
