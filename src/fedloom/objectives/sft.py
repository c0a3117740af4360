"""Supervised fine-tuning: cross-entropy of the labelled tokens given everything before them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.data.encode import IGNORED, Encoded
from fedloom.metrics.scores import Scores
from fedloom.objectives.base import Forward, Text


@dataclass(frozen=True)
class Sft:
    """Mean over labelled tokens of -log p(token | what stands before it)."""

    forward: Forward = "logprob"
    reference: None = None
    writes: bool = True

    def texts(self, part: Sequence[Encoded]) -> list[Text]:
        """One text each."""
        return [wanted(example) for example in part]

    def count(self, batch: Sequence[Encoded]) -> int:
        """Labelled tokens; the first of a text is predicted from nothing and does not count."""
        return sum(sum(label != IGNORED for label in example.labels[1:]) for example in batch)

    def losses(self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Encoded]) -> Tensor:
        """[labelled tokens], in nats."""
        return -torch.cat(list(said))

    def scores(
        self, said: Sequence[Tensor], reference: Sequence[Tensor] | None, part: Sequence[Encoded]
    ) -> list[Scores]:
        """Labelled tokens of each text, and their losses summed in float64."""
        sums = torch.stack([-one.double().sum() for one in said]).tolist() if said else []
        return [Scores(1, len(one), nll) for one, nll in zip(said, sums, strict=True)]

    def made_up(self, ids: Sequence[int]) -> Encoded:
        """Two tokens of prompt, the others are the answer."""
        return Encoded(tuple(ids), (IGNORED, IGNORED, *ids[2:]), tuple(ids[:2]), "", None)


def wanted(example: Encoded) -> Text:
    """A text, after which of its tokens the model's word is wanted, and the token that stands there in truth."""
    places = [i for i, label in enumerate(example.labels[1:]) if label != IGNORED]
    return Text(example.ids, places, [example.labels[i + 1] for i in places])
