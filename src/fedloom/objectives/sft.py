"""Supervised fine-tuning: cross-entropy of the labelled tokens given everything before them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedloom.data.encode import IGNORED, Encoded


@dataclass(frozen=True)
class Batch:
    """Examples side by side, filled up on the right; all [batch, tokens]."""

    ids: Tensor
    labels: Tensor
    """Not shifted; -100 where nothing is learned."""
    real: Tensor
    """bool: text, not filling."""


def collate(examples: Sequence[Encoded], pad: int, device: torch.device) -> Batch:
    """Put examples side by side."""
    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORED)
    real = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n] = torch.tensor(example.ids)
        labels[row, :n] = torch.tensor(example.labels)
        real[row, :n] = True
    return Batch(ids.to(device), labels.to(device), real.to(device))


def labelled(examples: Sequence[Encoded]) -> int:
    """Tokens that are learned; the first of a text is predicted from nothing and does not count."""
    return sum(sum(label != IGNORED for label in example.labels[1:]) for example in examples)


def wanted(example: Encoded) -> tuple[list[int], list[int]]:
    """After which tokens of a text the model's word is wanted, and the token that stands there in truth."""
    places = [i for i, label in enumerate(example.labels[1:]) if label != IGNORED]
    return places, [example.labels[i + 1] for i in places]


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of each wanted word: logits [n, vocabulary], targets [n] -> [n], at least in float32."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact, targets, reduction="none")


def token_losses(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of each labelled token, in nats, and the row it stands in; both [labelled tokens].

    Filling stands to the right of all text, so that no text sees it and no attention mask is needed.
    """
    logits = module(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    targets = batch.labels[:, 1:]
    rows, columns = torch.nonzero(targets != IGNORED, as_tuple=True)
    return losses(logits[rows, columns], targets[rows, columns]), rows


def labelled_logits(module: nn.Module, batch: Batch) -> Tensor:
    """[labelled tokens, vocabulary] float32: what the model says where labels stand."""
    logits = module(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    return logits[batch.labels[:, 1:] != IGNORED].float()
