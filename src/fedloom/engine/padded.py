"""Texts side by side, filled up on the right, and what a model says of them: the plain way, for any model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedloom.objectives.base import Forward, Text


@dataclass(frozen=True)
class Batch:
    """Texts side by side; [texts, longest]."""

    ids: Tensor
    real: Tensor
    """bool: text, not filling."""
    rows: Tensor
    """[wanted] the text each wanted word belongs to."""
    places: Tensor
    """[wanted] after which of its tokens."""
    targets: Tensor
    """[wanted] what stands there in truth."""
    counts: Sequence[int]
    """Wanted words of each text."""
    drawn: Tensor | None = None
    """[real tokens] which row of dropout's masks each has, where texts share some."""


def collate(texts: Sequence[Text], pad: int, device: torch.device) -> Batch:
    """Put texts side by side."""
    ids = torch.full((len(texts), max(len(text.ids) for text in texts)), pad)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        real[row, : len(text.ids)] = True
    counts = [len(text.places) for text in texts]
    rows = torch.arange(len(texts)).repeat_interleave(torch.tensor(counts))
    places = torch.tensor([place for text in texts for place in text.places], dtype=torch.long)
    targets = torch.tensor([target for text in texts for target in text.targets], dtype=torch.long)
    drawn = _drawn(texts).to(device) if any(text.shared for text in texts) else None
    ids, real, rows, places, targets = (one.to(device) for one in (ids, real, rows, places, targets))
    return Batch(ids, real, rows, places, targets, counts, drawn)


def _drawn(texts: Sequence[Text]) -> Tensor:
    """Rows of dropout's masks: each text's own tokens have new ones, those it shares have their trunk's."""
    found, first, behind = list[int](), 0, 0
    for text in texts:
        first = first if text.shared else behind
        found += [*range(first, first + text.shared), *range(behind, behind + text.own)]
        behind += text.own
    return torch.tensor(found)


def said(module: nn.Module, batch: Batch, forward: Forward) -> list[Tensor]:
    """What the model says of each text, as `forward` names it.

    Filling stands to the right of all text: where later tokens are not looked at, no text sees it and no attention mask
    is needed; a model with a head is told what is text. Virtual tokens stand right before each text.
    """
    if forward == "pooled":
        return list(exact(module(input_ids=batch.ids, attention_mask=batch.real)).unbind())
    logits = module(input_ids=batch.ids, use_cache=False).logits
    before = logits.shape[1] - batch.ids.shape[1]  # virtual tokens, where the model speaks of them too
    words = logits[batch.rows, batch.places + before]
    return apart(words, batch.targets, batch.counts, forward)


def apart(words: Tensor, targets: Tensor, counts: Sequence[int], forward: Forward) -> list[Tensor]:
    """The model's words [wanted, vocabulary] at the wanted places, text by text: as log p of the targets or as is."""
    found = exact(words) if forward == "logits" else -F.cross_entropy(exact(words), targets, reduction="none")
    return list(found.split(list(counts)))


def exact(values: Tensor) -> Tensor:
    """At least in float32."""
    return values if values.dtype == torch.float64 else values.float()


def together(parts: Sequence[Any], forward: Forward) -> Tensor:
    """What was said of some texts as one: [texts, classes], or [wanted, vocabulary]."""
    return torch.stack(list(parts)) if forward == "pooled" else torch.cat(list(parts))
