"""What an evaluation's rows score, and which evaluations concern one and the same model."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch

from fedloom.engine.requests import Evaluate
from fedloom.metrics.scores import Scores
from fedloom.metrics.text import exact_match, rouge_l

_NOTHING = torch.zeros(0)


def alike(one: Evaluate, other: Evaluate) -> bool:
    """The same weights and settings; weights that came over a wire are equal, not identical."""
    settings = (one.metrics, one.batch_size, one.max_new_tokens, one.layout) == (
        other.metrics,
        other.batch_size,
        other.max_new_tokens,
        other.layout,
    )
    if not settings or one.drift is not None:
        return settings and one.drift is not None and one.drift.same(other.drift)
    return other.drift is None and all(
        mine is theirs or torch.equal(mine, theirs)
        for mine, theirs in zip_longest((one.x, *one.carry), (other.x, *other.carry), fillvalue=_NOTHING)
    )


def wants_answers(request: Evaluate) -> bool:
    """Whether the model must write answers, not only score given ones."""
    return bool({"exact_match", "rouge_l"} & set(request.metrics))


def answered(like: Evaluate, scores: Sequence[Scores], examples: Sequence[Any], answers: Sequence[str]) -> list[Scores]:
    """The rows' scores with those of the answers the model wrote."""
    rouge = "rouge_l" in like.metrics
    return [
        replace(
            score,
            answered=1,
            exact=int(exact_match(answer, example.answer)),
            rouge=rouge_l(answer, example.answer) if rouge else 0.0,
        )
        for score, example, answer in zip(scores, examples, answers, strict=True)
    ]
