"""Trained tensors that begin at numbers of the base: what is trained, and travels, is what was added to them.

So they begin at zero on every machine, and a server that has no base can add and average them. Only what is written
for others holds the sum.
"""

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn
from torch.nn import functional

from fedloom.errors import UserError


class Magnitude(DoraLinearLayer):  # type: ignore[misc]
    """DoRA's lengths of a layer's output rows [out]; they begin at the lengths in the base."""

    def __init__(self, fan_in_fan_out: bool, origin: Tensor) -> None:
        super().__init__(fan_in_fan_out)
        _begin(self, origin)

    @property
    def weight(self) -> Tensor:
        """[out], differentiable."""
        return _whole(self)


class PromptRows(nn.Module):
    """Virtual tokens [tokens, width] in place of peft's embedding; they begin at rows of the base's own table."""

    def __init__(self, origin: Tensor) -> None:
        super().__init__()
        _begin(self, origin)

    @property
    def weight(self) -> Tensor:
        """[tokens, width], differentiable."""
        return _whole(self)

    def forward(self, indices: Tensor) -> Tensor:
        """[..., width] of these virtual tokens."""
        return functional.embedding(indices, self.weight)


def _begin(module: nn.Module, origin: Tensor) -> None:
    exact = origin.dtype if origin.dtype == torch.float64 else torch.float32
    module.register_buffer("origin", origin.detach().to(exact, copy=True), persistent=False)
    device = "cpu" if origin.is_meta else origin.device
    module.difference = nn.Parameter(torch.zeros(origin.shape, dtype=exact, device=device))


def _whole(module: Any) -> Tensor:
    if module.origin.is_meta:
        raise UserError(
            "this adapter begins at numbers of the base model, and this process has the base without its weights, as a "
            "server has: neither can the adapter be used here, nor written for use with peft"
        )
    found: Tensor = module.origin + module.difference
    return found
