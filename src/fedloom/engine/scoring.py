"""What an evaluation's rows score, and which evaluations concern one and the same model."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeAlias

import torch

from fedloom.engine.requests import Evaluate
from fedloom.metrics.scores import Scores
from fedloom.metrics.text import exact_match, rouge_l

RowLoss: TypeAlias = tuple[float, int]
"""Summed loss and labelled tokens of a row."""
_NOTHING = torch.zeros(0)


def alike(one: Evaluate, other: Evaluate) -> bool:
    """The same weights and settings; weights that came over a wire are equal, not identical."""
    settings = (one.metrics, one.batch_size, one.max_new_tokens, one.layout) == (
        other.metrics,
        other.batch_size,
        other.max_new_tokens,
        other.layout,
    )
    return settings and all(
        mine is theirs or torch.equal(mine, theirs)
        for mine, theirs in zip_longest((one.x, *one.carry), (other.x, *other.carry), fillvalue=_NOTHING)
    )


def wants_answers(request: Evaluate) -> bool:
    """Whether the model must write answers, not only score given ones."""
    return bool({"exact_match", "rouge_l"} & set(request.metrics))


def scores(
    like: Evaluate, examples: Sequence[Any], losses: Sequence[RowLoss], answers: Sequence[str] | None
) -> list[Scores]:
    """One row's scores each, in order; `answers` where they are wanted."""
    if answers is None:
        return [Scores(1, n, nll) for nll, n in losses]
    wants_rouge = "rouge_l" in like.metrics
    return [
        Scores(1, n, nll, 1, int(exact_match(a, e.answer)), rouge_l(a, e.answer) if wants_rouge else 0.0)
        for (nll, n), a, e in zip(losses, answers, examples, strict=True)
    ]
