"""How differently two models speak."""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from fedloom.engine import padded
from fedloom.objectives.base import Objective

TEXTS: Final = 8
"""Texts compared at once: a vocabulary for every token of two models takes room."""


@torch.no_grad()
def apart(
    first: nn.Module, second: nn.Module, objective: Objective, examples: Sequence[Any], pad: int
) -> tuple[float, float, int]:
    """How two models' words differ at the learned tokens.

    Args:
        first: its words are taken for the truth; on the device of both.
        second: over the same vocabulary.
        objective: says which texts there are, and where words are wanted.
        examples: what is said of them is compared.
        pad: fills up texts.

    Returns:
        Mean over tokens of KL(first, second) in nats, share of tokens at which the likeliest word is the same, and
        tokens.
    """
    device = next(first.parameters()).device
    total, same, tokens = 0.0, 0, 0
    order = sorted(examples, key=lambda one: int(one.size))
    for i in range(0, len(order), TEXTS):
        batch = padded.collate(objective.texts(order[i : i + TEXTS]), pad, device)
        p, q = (F.log_softmax(torch.cat(padded.said(one, batch, "logits")), -1) for one in (first, second))
        total += float((p.exp() * (p - q)).sum(-1).double().sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(p)
    return total / max(1, tokens), same / max(1, tokens), tokens
