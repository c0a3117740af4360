"""Results side by side: groups from their members, clients as mean and worst, and what is no better than chance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from fedloom.evaluate.job import Entrant, Result, Value
from fedloom.evaluate.tasks import Score, Task

Verdict: TypeAlias = Literal["below chance", "like chance", ""]
CERTAIN: Final = 2.0
"""Standard errors above chance from which a score is better than guessing."""
Results: TypeAlias = Mapping[tuple[str, str], Result]
"""By label of the model and name of the task."""


@dataclass(frozen=True)
class Cell:
    """One score of one column."""

    column: str
    task: str
    score: Score
    value: float
    """0..1."""
    stderr: float | None
    rows: int
    verdict: Verdict
    who: str = ""
    """The client, where it is one client's."""


def cells(entrants: Sequence[Entrant], tasks: Sequence[Task], results: Results) -> list[Cell]:
    """Every score of every column, in the order of tasks, scores and columns; groups first, then nothing of members.

    A column of clients' own models becomes two: the mean over clients, each counted once, and the worst.
    """
    columns = list(dict.fromkeys(one.column for one in entrants))
    made = []
    for task in tasks:
        for score in task.scores:
            for column in columns:
                of_column = [one for one in entrants if one.column == column]
                each = [_cell(one, task, score, results) for one in of_column]
                made += each if not of_column[0].who else _summed(each)
    return made


def _cell(entrant: Entrant, task: Task, score: Score, results: Results) -> Cell:
    parts = [results[entrant.label, name] for name in task.members or (task.name,)]
    value = pooled([(part.scores[score.name], part.rows) for part in parts])
    rows = sum(part.rows for part in parts)
    return Cell(entrant.column, task.name, score, value.value, value.stderr, rows, verdict(value, score), entrant.who)


def _summed(each: Sequence[Cell]) -> list[Cell]:
    """Mean and worst of clients."""
    first, worst = each[0], min(each, key=lambda cell: cell.value)
    mean = Value(value=math.fsum(cell.value for cell in each) / len(each))
    return [
        Cell(f"{first.column} mean", first.task, first.score, mean.value, None, first.rows, verdict(mean, first.score)),
        Cell(
            f"{first.column} worst",
            first.task,
            first.score,
            worst.value,
            worst.stderr,
            worst.rows,
            worst.verdict,
            worst.who,
        ),
    ]


def pooled(parts: Sequence[tuple[Value, int]]) -> Value:
    """The score of several tasks' rows together, as lm-eval pools them.

    Args:
        parts: score and rows of each.

    Returns:
        Σ nᵢ vᵢ / Σ nᵢ, and the standard error sqrt(Σ (nᵢ − 1) nᵢ sᵢ² / (Σ nᵢ − k) / Σ nᵢ); None if one has none.
    """
    if len(parts) == 1:
        return parts[0][0]
    rows = sum(count for _, count in parts)
    value = sum(part.value * count for part, count in parts) / rows
    errors = [part.stderr for part, _ in parts]
    if rows == len(parts) or any(error is None for error in errors):
        return Value(value=value)
    variance = sum((n - 1) * n * (part.stderr or 0.0) ** 2 for part, n in parts) / (rows - len(parts))
    return Value(value=value, stderr=math.sqrt(variance / rows))


def verdict(value: Value, score: Score) -> Verdict:
    """Whether a score says anything: guessing would reach `score.chance` on average."""
    if score.chance is None:
        return ""
    if value.value < score.chance:
        return "below chance"
    return "like chance" if value.value < score.chance + CERTAIN * (value.stderr or 0.0) else ""


def as_json(
    entrants: Sequence[Entrant], tasks: Sequence[Task], results: Results, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything, members of groups and single clients too, as plain values."""
    aside = {"template", "home"}
    return {
        "format": 1,
        "settings": dict(settings),
        "models": [{"label": one.label, **one.model_dump(mode="json", exclude=aside)} for one in entrants],
        "table": [
            {
                "task": cell.task,
                "score": cell.score.name,
                "column": cell.column,
                "value": cell.value,
                "stderr": cell.stderr,
                "rows": cell.rows,
                "chance": cell.score.chance,
                "verdict": cell.verdict,
                "client": cell.who or None,
            }
            for cell in cells(entrants, tasks, results)
        ],
        "results": [{"model": label, **result.model_dump(mode="json")} for (label, _), result in results.items()],
    }
