"""Dropout whose masks are keyed: the same client, step and layer draw the same mask wherever and with whom they run.

A mask is drawn over real tokens only, in their order, so that neither padding nor neighbours change it. Where two texts
begin alike, and an engine may compute that part once, the tokens of both have the same rows of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn

from fedloom import rng

if TYPE_CHECKING:
    from fedloom.adapters.together import Segment


@dataclass
class Moment:
    """Where in the training a forward pass stands; shared by all dropout layers of a model, set by the engine."""

    seed: int | None = None
    """Key of this step and micro-batch; None outside training."""
    real: Tensor | None = None
    """[batch, tokens] bool: which positions are text; None: all."""
    drawn: Tensor | None = None
    """[real tokens] which row of the mask is whose, where texts share some; None: one after the other."""
    segments: "Sequence[Segment] | None" = None
    """Whose tokens stand where, while several clients share a pass; None: the pass is one client's."""


class KeyedDropout(nn.Module):
    """Sets a share `p` of its input to zero and scales the rest by 1 / (1 - p)."""

    def __init__(self, p: float, name: str, moment: Moment) -> None:
        super().__init__()
        self.p, self.name, self.moment = p, name, moment

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, features] -> the same; the identity outside training."""
        if not self.training or self.p == 0:
            return x
        if self.moment.seed is None:
            raise RuntimeError("dropout in a training pass without a key: the engine must set `Moment.seed`")
        real = self.moment.real
        if real is not None and real.shape != x.shape[:-1]:
            real = real.reshape(x.shape[:-1])  # some models lay all tokens out in one row
        count = x.shape[:-1].numel() if real is None else int(real.sum())
        drawn = self.moment.drawn
        rows = count if drawn is None else int(drawn.max()) + 1
        kept = torch.from_numpy(draw(rng.key(self.moment.seed, self.name), rows, x.shape[-1], self.p)).to(x.device)
        kept = kept if drawn is None else kept[drawn]
        if real is None:
            mask = kept.view(x.shape)
        else:
            mask = x.new_zeros(x.shape, dtype=torch.bool)
            mask[real] = kept
        return x * mask / (1 - self.p)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"p={self.p}, {self.name}"


def draw(seed: int, rows: int, columns: int, p: float) -> "numpy.ndarray[tuple[int, int], numpy.dtype[numpy.bool_]]":
    """[rows, columns] of keep-or-not from 16-bit numbers: five times cheaper than torch's own generator on a CPU."""
    source = numpy.random.Generator(numpy.random.SFC64(seed))
    numbers = source.integers(0, 1 << 16, size=(rows, columns), dtype=numpy.uint16)
    kept: numpy.ndarray[tuple[int, int], numpy.dtype[numpy.bool_]] = numbers >= round(p * (1 << 16))
    return kept
