"""Sequence classification: cross-entropy of a row's class given its text.

loss_i = -log softmax(z_i)[y_i], in nats, with z_i [classes] the head's word on row i and y_i its class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedloom.data.labelled import Labelled
from fedloom.metrics.classes import NO_CLASS
from fedloom.metrics.scores import Scores
from fedloom.objectives.base import Forward, Text


@dataclass(frozen=True)
class Classify:
    """One class for each row, from logits of a head on the pooled text."""

    forward: Forward = "pooled"
    reference: None = None
    writes: bool = False

    def texts(self, part: Sequence[Labelled]) -> list[Text]:
        """One text for each row, in the order of rows."""
        return [Text(row.ids) for row in part]

    def count(self, batch: Sequence[Labelled]) -> int:
        """Rows."""
        return len(batch)

    def losses(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Labelled]) -> Tensor:
        """Cross-entropy of each row [rows] in nats, at least in float32.

        Args:
            said: logits of each row [classes].
            reference: nobody's.
            part: the rows; every label is 0..classes - 1.
        """
        return F.cross_entropy(_exact(said), _labels(part, said[0].device), reduction="none")

    def scores(
        self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Labelled]
    ) -> list[Scores]:
        """Loss and most probable class of each row; where a logit is not finite, no class at all."""
        logits = _exact(said)
        losses = F.cross_entropy(logits, _labels(part, logits.device), reduction="none")
        # the largest of numbers with a NaN among them is that NaN: it would pass for a class
        chosen = torch.where(logits.isfinite().all(1), logits.argmax(1), NO_CLASS)
        return [
            Scores(examples=1, tokens=1, nll=nll, confusion=((row.label, best, 1),))
            for nll, best, row in zip(losses.tolist(), chosen.tolist(), part, strict=True)
        ]

    def made_up(self, ids: Sequence[int]) -> Labelled:
        """A row of the first class with these tokens."""
        return Labelled(tuple(ids), 0, None)


def _exact(said: Sequence[Tensor]) -> Tensor:
    """All rows' logits [rows, classes], float32 or float64."""
    logits = torch.stack(list(said))
    return logits if logits.dtype == torch.float64 else logits.float()


def _labels(part: Sequence[Labelled], device: torch.device) -> Tensor:
    return torch.tensor([row.label for row in part], device=device)
