"""Pairs, judged answers, and what a model may say of them, for tests of preference objectives."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.data.encode import IGNORED, Encoded
from fedloom.data.pairs import Judged, Pair

ORACLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "oracles_preference.json").read_text())


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Encoded:
    return Encoded((*prompt, *answer), (IGNORED,) * len(prompt) + tuple(answer), tuple(prompt), "words", None)


def pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Pair:
    return Pair(answered(prompt, chosen), answered(prompt, rejected))


def judged(prompt: Sequence[int], answer: Sequence[int], good: bool) -> Judged:
    return Judged(answered(prompt, answer), good)


def spread(total: float, tokens: int) -> Tensor:
    """Log-likelihoods of so many tokens that sum to `total`, none like another; float64."""
    weights = torch.arange(1.0, tokens + 1, dtype=torch.float64)
    return total * weights / weights.sum()


def numbers(*lengths: int, seed: int = 0, size: float = 1.0) -> list[Tensor]:
    """Negative random log-likelihoods, float64, one tensor of each length."""
    source = torch.Generator().manual_seed(seed)
    return [-size * torch.rand(n, generator=source, dtype=torch.float64) - 0.01 for n in lengths]
